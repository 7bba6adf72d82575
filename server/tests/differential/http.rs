//! A minimal HTTP/1.1 client over one kept connection, so that nothing stands between the test and the bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// One request to send.
pub(crate) struct Request {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) body: Vec<u8>,
    /// Whether there is a CORRUPT alarm.
    pub(crate) corrupt: bool,
}

impl Request {
    pub(crate) fn post(path: String, body: String) -> Self {
        Self { method: "POST", path, body: body.into_bytes(), corrupt: false }
    }

    pub(crate) fn describe(&self) -> String {
        format!("{} {} {}", self.method, self.path, String::from_utf8_lossy(&self.body[..self.body.len().min(300)]))
    }
}

/// One answer.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) body: Vec<u8>,
}

/// A client that reconnects when its connection was closed.
pub(crate) struct Client {
    address: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The request as it goes out.
    pub(crate) fn message(&self, request: &Request) -> Vec<u8> {
        let head = format!(
            "{} {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            request.method,
            request.path,
            self.address,
            request.body.len()
        );
        let mut message = head.into_bytes();
        message.extend_from_slice(&request.body);
        message
    }

    /// Sends the request and reads the whole answer; a connection that the server closed in between is opened again once.
    pub(crate) fn send(&mut self, request: &Request) -> Response {
        let fresh = self.connection.is_none();
        match self.try_send(request) {
            Ok(response) => response,
            Err(error) if fresh => panic!("{}: {error}", request.describe()),
            Err(_) => {
                self.connection = None;
                self.try_send(request).unwrap_or_else(|error| panic!("{}: {error}", request.describe()))
            }
        }
    }

    /// Sends the request once; an error leaves open whether the server carried it out.
    pub(crate) fn try_send(&mut self, request: &Request) -> std::io::Result<Response> {
        if self.connection.is_none() {
            let stream = TcpStream::connect(self.address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            self.connection = Some(BufReader::new(stream));
        }
        let message = self.message(request);
        let connection = self.connection.as_mut().unwrap();
        // A server may refuse a large body before it has read all of it; the answer is what counts then.
        let written = connection.get_mut().write_all(&message);
        match read_response(connection, request.method) {
            Ok((response, keep)) => {
                if !keep || written.is_err() {
                    self.connection = None;
                }
                Ok(response)
            }
            Err(error) => {
                self.connection = None;
                Err(error)
            }
        }
    }
}

fn read_response(from: &mut BufReader<TcpStream>, method: &str) -> std::io::Result<(Response, bool)> {
    let bad = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Err(bad("connection closed before the answer"));
    }
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| bad("status line"))?;
    let (mut length, mut chunked, mut keep, mut content_type) = (None, false, true, String::new());
    loop {
        line.clear();
        from.read_line(&mut line)?;
        let header = line.trim_end();
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').ok_or_else(|| bad("header"))?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok(),
            "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" => keep = !value.eq_ignore_ascii_case("close"),
            "content-type" => content_type = value.to_owned(),
            _ => {}
        }
    }
    let mut body = Vec::new();
    if method == "HEAD" {
        // No body, whatever the length says.
    } else if chunked {
        read_chunks(from, &mut body)?;
    } else if let Some(length) = length {
        body.resize(length, 0);
        from.read_exact(&mut body)?;
    } else {
        from.read_to_end(&mut body)?;
        keep = false;
    }
    Ok((Response { status, content_type, body }, keep))
}

fn read_chunks(from: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> std::io::Result<()> {
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16)
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))?;
        let at = body.len();
        body.resize(at + size, 0);
        from.read_exact(&mut body[at..])?;
        line.clear();
        from.read_line(&mut line)?;
        if size == 0 {
            return Ok(());
        }
    }
}
