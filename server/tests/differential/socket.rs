//! Streams over WebSocket, on the gateway's paths: requests and results as text messages, in both directions at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::Sender;

use crate::grpc::{Ended, Item};
use crate::http::Client;
use crate::lines::Connection;

/// The key of RFC 6455's example, and what it must be answered with.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The sending half. The stream ends when it is dropped.
pub(crate) struct Socket {
    stream: TcpStream,
    _connection: Connection,
}

impl Client {
    /// Opens a WebSocket; each message that comes back is sent on.
    pub(crate) fn socket(&self, path: &str, items: Sender<Item>) -> Socket {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_nodelay(true).unwrap();
        let host = self.address();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        // What is sent before the answer may be lost.
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let begun = begin(&mut reader);
        std::thread::spawn(move || {
            let ended = begun.and_then(|()| read(reader, &items));
            let message = ended.err().map_or("the end".to_owned(), |error| error.to_string());
            items.send(Item::End(Ended { code: -1, message })).unwrap_or(());
        });
        let connection = Connection::of(stream.try_clone().unwrap());
        Socket { stream, _connection: connection }
    }
}

impl Socket {
    /// Sends a text message. What cannot be sent any more is noticed by who reads.
    pub(crate) fn send(&mut self, text: &str) {
        let mut frame = vec![0x81];
        match text.len() {
            length @ 0..126 => frame.push(0x80 | length as u8),
            length => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            }
        }
        // Clients must mask; with zeros the text stays what it is.
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(text.as_bytes());
        self.stream.write_all(&frame).unwrap_or(());
    }
}

fn odd(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned())
}

/// Reads the answer to the request to change to WebSocket.
fn begin(from: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    if !line.starts_with("HTTP/1.1 101") {
        return Err(odd(&line));
    }
    let mut accepted = false;
    while line != "\r\n" {
        line.clear();
        from.read_line(&mut line)?;
        accepted |= line.to_ascii_lowercase().starts_with("sec-websocket-accept:") && line.contains(ACCEPT);
    }
    if accepted { Ok(()) } else { Err(odd("no or a wrong Sec-WebSocket-Accept")) }
}

fn read(mut from: BufReader<TcpStream>, items: &Sender<Item>) -> std::io::Result<()> {
    let mut message = Vec::new();
    loop {
        let mut head = [0; 2];
        from.read_exact(&mut head)?;
        let mut length = [0; 8];
        let width = match head[1] {
            126 => 2,
            127 => 8,
            short @ 0..126 => {
                length[7] = short;
                0
            }
            _ => return Err(odd("a masked frame from the server")),
        };
        from.read_exact(&mut length[8 - width..])?;
        let at = message.len();
        message.resize(at + usize::try_from(u64::from_be_bytes(length)).map_err(|_| odd("a frame too long"))?, 0);
        from.read_exact(&mut message[at..])?;
        match (head[0] & 0x0f, head[0] & 0x80 != 0) {
            (0..3, false) => {}
            (0..3, true) => {
                if items.send(Item::Message(std::mem::take(&mut message))).is_err() {
                    return Ok(());
                }
            }
            (8, _) => return Err(odd(&format!("closed: {:?}", String::from_utf8_lossy(&message[at..])))),
            _ => message.truncate(at),
        }
    }
}
