//! Watch streams over JSON and WebSocket, as a client sees them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::{PATIENCE, base64, unbase64};

/// A watch stream over the body of a request that does not end.
pub struct JsonWatch {
    lines: BufReader<Chunks>,
    requests: TcpStream,
    /// The head of the answer.
    pub head: String,
}

/// Takes the chunked coding off.
struct Chunks {
    stream: BufReader<TcpStream>,
    left: usize,
    ended: bool,
}

impl Read for Chunks {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        if self.left == 0 {
            let mut size = String::new();
            self.stream.read_line(&mut size)?;
            self.left = usize::from_str_radix(size.trim(), 16).map_err(std::io::Error::other)?;
            self.ended = self.left == 0;
            if self.ended {
                return Ok(0);
            }
        }
        let most = out.len().min(self.left);
        let read = self.stream.read(&mut out[..most])?;
        self.left -= read;
        if self.left == 0 {
            self.stream.read_exact(&mut [0; 2])?;
        }
        Ok(read)
    }
}

fn tcp(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn head_of(stream: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let before = head.len();
        stream.read_line(&mut head).unwrap();
        assert!(head.len() > before, "the connection was closed after {head:?}");
    }
    head
}

impl JsonWatch {
    pub fn open(address: &str, first: &Value) -> JsonWatch {
        JsonWatch::open_with(address, "", first)
    }

    /// With more header lines, each with its line feed.
    pub fn open_with(address: &str, headers: &str, first: &Value) -> JsonWatch {
        let mut requests = tcp(address);
        let head = format!("POST /v3/watch HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n{headers}\r\n");
        requests.write_all(head.as_bytes()).unwrap();
        let body = first.to_string();
        requests.write_all(format!("{:x}\r\n{body}\r\n", body.len()).as_bytes()).unwrap();
        let mut stream = BufReader::new(requests.try_clone().unwrap());
        let head = head_of(&mut stream);
        JsonWatch { lines: BufReader::new(Chunks { stream, left: 0, ended: false }), requests, head }
    }

    /// One watch, whose creation has been confirmed.
    pub fn on(address: &str, create: Value) -> JsonWatch {
        let mut watch = JsonWatch::open(address, &json!({ "create_request": create }));
        let created = watch.result();
        assert_eq!((&created["created"], &created["canceled"]), (&json!(true), &Value::Null), "{created}");
        watch
    }

    pub fn send(&mut self, request: &Value) {
        self.send_text(&request.to_string());
    }

    pub fn send_text(&mut self, body: &str) {
        self.requests.write_all(format!("{:x}\r\n{body}\r\n", body.len()).as_bytes()).unwrap();
    }

    /// Ends the request's body.
    pub fn finish(&mut self) {
        self.requests.write_all(b"0\r\n\r\n").unwrap();
    }

    /// The next line; `None` at the end.
    pub fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line).unwrap();
        (read > 0).then(|| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}")))
    }

    /// The next response.
    pub fn result(&mut self) -> Value {
        let line = self.line().expect("the stream goes on");
        assert!(line["result"].is_object(), "{line}");
        line["result"].clone()
    }

    /// The error with which the stream ends.
    pub fn error(&mut self) -> Value {
        loop {
            let line = self.line().expect("an error before the end");
            if line["error"].is_object() {
                assert_eq!(self.line(), None);
                return line["error"].clone();
            }
        }
    }

    /// Changes until there are as many as wanted.
    pub fn changes(&mut self, wanted: usize) -> Vec<(i64, String, Option<String>)> {
        let mut found = Vec::new();
        while found.len() < wanted {
            found.extend(changes(&self.result()));
        }
        found
    }
}

pub fn number(value: &Value) -> i64 {
    value.as_str().map_or(0, |text| text.parse().unwrap())
}

/// The changes in a response: revision, key, and value unless it was deleted.
pub fn changes(result: &Value) -> Vec<(i64, String, Option<String>)> {
    let events = result["events"].as_array().cloned().unwrap_or_default();
    let change = |event: &Value| {
        let kv = &event["kv"];
        let value = kv["value"].as_str().map(unbase64).unwrap_or_default();
        let key = unbase64(kv["key"].as_str().unwrap());
        (number(&kv["mod_revision"]), key, (event["type"] != "DELETE").then_some(value))
    };
    events.iter().map(change).collect()
}

pub fn key(name: &str) -> Value {
    json!({ "key": base64(name) })
}

/// A WebSocket, just enough of it: text messages, masked as a client's have to be.
pub struct Socket {
    stream: BufReader<TcpStream>,
}

impl Socket {
    pub fn open(address: &str) -> Socket {
        let mut stream = tcp(address);
        let head = "GET /v3/watch HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut stream = BufReader::new(stream);
        let head = head_of(&mut stream);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.to_ascii_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        Socket { stream }
    }

    pub fn send(&mut self, request: &Value) {
        self.frame(0x81, request.to_string().as_bytes());
    }

    pub fn frame(&mut self, first: u8, payload: &[u8]) {
        let mut frame = vec![first];
        match payload.len() {
            length @ ..126 => frame.push(0x80 | length as u8),
            length => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
        }
        let mask = [1, 2, 3, 4];
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.stream.get_mut().write_all(&frame).unwrap();
    }

    /// The next message's first byte and content; `None` if the connection was closed.
    pub fn message(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).ok()?;
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.stream.read_exact(&mut length).unwrap();
                usize::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                self.stream.read_exact(&mut length).unwrap();
                usize::try_from(u64::from_be_bytes(length)).unwrap()
            }
            length => usize::from(length),
        };
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).unwrap();
        Some((head[0], payload))
    }

    /// The next text message.
    pub fn json(&mut self) -> Value {
        let (first, payload) = self.message().expect("a message");
        assert_eq!(first, 0x81, "not a text message: {payload:?}");
        serde_json::from_slice(&payload).unwrap()
    }
}
