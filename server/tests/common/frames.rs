//! HTTP/2 by hand, for what no client library would send.

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(content);
    frame
}

/// How a client begins that takes whatever the server has to send.
pub fn hello() -> Vec<u8> {
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]),
        frame(WINDOW_UPDATE, 0, 0, &[0x40, 0, 0, 0]),
    ]
    .concat()
}

/// The head of a gRPC call.
pub fn call(stream: u32, path: &str) -> Vec<u8> {
    let mut head = vec![0x83, 0x86];
    for (name, value) in
        [(&[0x04][..], path), (&[0x01], "h"), (&[0x0f, 0x10], "application/grpc"), (b"\x00\x02te", "trailers")]
    {
        head.extend_from_slice(name);
        head.push(u8::try_from(value.len()).unwrap());
        head.extend_from_slice(value.as_bytes());
    }
    frame(HEADERS, END_HEADERS, stream, &head)
}

/// A part of a call's body.
pub fn message(stream: u32, content: &[u8]) -> Vec<u8> {
    frame(DATA, 0, stream, content)
}

/// The last part of a call's body: a call of one message is answered once that is there.
pub fn last_message(stream: u32, content: &[u8]) -> Vec<u8> {
    frame(DATA, END_STREAM, stream, content)
}
