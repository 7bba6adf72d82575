//! A minimal HTTP/1.1 client: keep-alive, one request at a time, bodies by length or in chunks.
//!
//! It shares the cores with the server that it measures, so it looks at nothing that it does not need.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The longest head of a response, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// What is read from a connection at once, in bytes.
pub(crate) const READ_BYTES: usize = 256 * 1024;

/// Appends a request for `path` with a JSON body to `out`.
pub(crate) fn post(out: &mut Vec<u8>, path: &str, body: &[u8]) {
    out.extend_from_slice(b"POST ");
    out.extend_from_slice(path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: ");
    decimal(out, body.len());
    out.extend_from_slice(b"\r\n\r\n");
    out.extend_from_slice(body);
}

/// Appends a request for `path` without a body to `out`.
pub(crate) fn get(out: &mut Vec<u8>, path: &str) {
    out.extend_from_slice(b"GET ");
    out.extend_from_slice(path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nHost: localhost\r\n\r\n");
}

/// Appends a number in decimal.
pub(crate) fn decimal(out: &mut Vec<u8>, number: usize) {
    let begun = out.len();
    let mut rest = number;
    loop {
        out.push(b'0' + (rest % 10) as u8);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out[begun..].reverse();
}

/// Where the parser stands in a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    /// So many bytes of the body are still to come.
    Body(usize),
    ChunkSize,
    /// So many bytes of the chunk and its line end are still to come.
    Chunk(usize),
    /// The lines after the last chunk.
    Trailer,
    Done,
}

/// Takes responses apart as their bytes arrive.
#[derive(Debug)]
pub(crate) struct Parser {
    state: State,
    /// An unfinished head or line.
    partial: Vec<u8>,
    status: u16,
    /// Whether the server said that it closes the connection after this response.
    closes: bool,
    body: Vec<u8>,
}

impl Parser {
    /// A parser that waits for a response to begin.
    pub(crate) fn new() -> Parser {
        Parser { state: State::Head, partial: Vec::new(), status: 0, closes: false, body: Vec::new() }
    }

    /// Forgets the response that was read, for the next one.
    pub(crate) fn reset(&mut self) {
        self.state = State::Head;
        self.partial.clear();
        self.body.clear();
    }

    /// Takes bytes that arrived; tells whether the response is complete.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> io::Result<bool> {
        while !bytes.is_empty() {
            let used = match self.state {
                State::Head => self.head(bytes)?,
                State::Body(left) => {
                    let used = left.min(bytes.len());
                    self.body.extend_from_slice(&bytes[..used]);
                    self.state = if used == left { State::Done } else { State::Body(left - used) };
                    used
                }
                State::ChunkSize => self.chunk_size(bytes)?,
                State::Chunk(left) => {
                    let used = left.min(bytes.len());
                    // The last two bytes of a chunk are its line end.
                    let data = left.saturating_sub(2).min(used);
                    self.body.extend_from_slice(&bytes[..data]);
                    self.state = if used == left { State::ChunkSize } else { State::Chunk(left - used) };
                    used
                }
                State::Trailer => self.trailer(bytes)?,
                State::Done => return Err(odd("bytes after the end of the response")),
            };
            bytes = &bytes[used..];
        }
        Ok(self.state == State::Done)
    }

    /// The complete response's status.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// Whether no further request may be sent after the complete response.
    pub(crate) fn closes(&self) -> bool {
        self.closes
    }

    /// The complete response's body.
    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    /// What has arrived of the body.
    pub(crate) fn partial_body(&mut self) -> &mut Vec<u8> {
        &mut self.body
    }

    fn head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Usually the whole head arrives at once and need not be copied.
        if self.partial.is_empty()
            && let Some(end) = end_of_head(bytes)
        {
            self.read_head(&bytes[..end])?;
            return Ok(end);
        }
        let before = self.partial.len();
        self.partial.extend_from_slice(bytes);
        let whole = std::mem::take(&mut self.partial);
        match end_of_head(&whole) {
            Some(end) => {
                self.read_head(&whole[..end])?;
                Ok(end - before)
            }
            None if whole.len() > HEAD_BYTES_MAX => Err(odd("the response's head does not end")),
            None => {
                self.partial = whole;
                Ok(bytes.len())
            }
        }
    }

    fn read_head(&mut self, head: &[u8]) -> io::Result<()> {
        let status = head.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        self.status = status.filter(|_| head.starts_with(b"HTTP/1.")).ok_or_else(|| odd("not an HTTP/1 response"))?;
        self.closes = false;
        let mut next = None;
        for line in head.split(|byte| *byte == b'\n').skip(1) {
            // Only three headers matter, and few others begin with these letters.
            if !matches!(line.first(), Some(b'C' | b'c' | b'T' | b't')) {
                continue;
            }
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let value = line[colon + 1..].trim_ascii();
            if line[..colon].eq_ignore_ascii_case(b"content-length") {
                let length = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
                next = Some(State::Body(length.ok_or_else(|| odd("bad Content-Length"))?));
            } else if line[..colon].eq_ignore_ascii_case(b"transfer-encoding") && value.eq_ignore_ascii_case(b"chunked")
            {
                next = Some(State::ChunkSize);
            } else if line[..colon].eq_ignore_ascii_case(b"connection") {
                self.closes = value.eq_ignore_ascii_case(b"close");
            }
        }
        self.state = match next {
            Some(State::Body(0)) => State::Done,
            Some(state) => state,
            None => return Err(odd("a response with neither a length nor chunks")),
        };
        Ok(())
    }

    fn chunk_size(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(used) = self.line(bytes)? else { return Ok(bytes.len()) };
        let line = std::mem::take(&mut self.partial);
        let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let size = std::str::from_utf8(digits).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
        let size = size.ok_or_else(|| odd("bad chunk size"))?;
        self.state = if size == 0 { State::Trailer } else { State::Chunk(size.saturating_add(2)) };
        Ok(used)
    }

    fn trailer(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(used) = self.line(bytes)? else { return Ok(bytes.len()) };
        if self.partial.trim_ascii().is_empty() {
            self.state = State::Done;
        }
        self.partial.clear();
        Ok(used)
    }

    /// Collects a line in `partial`; gives how many bytes it used once the line is complete.
    fn line(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        self.partial.extend_from_slice(&bytes[..end.map_or(bytes.len(), |end| end + 1)]);
        if self.partial.len() > HEAD_BYTES_MAX { Err(odd("a line does not end")) } else { Ok(end.map(|end| end + 1)) }
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A blocking client with one connection, made when it is needed.
#[derive(Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    timeout: Duration,
    stream: Option<TcpStream>,
    parser: Parser,
    request: Vec<u8>,
    arrived: Vec<u8>,
}

impl Client {
    /// A client of this server; every wait on the connection ends after `timeout`.
    pub(crate) fn new(address: SocketAddr, timeout: Duration) -> Client {
        let arrived = vec![0; READ_BYTES];
        Client { address, timeout, stream: None, parser: Parser::new(), request: Vec::new(), arrived }
    }

    /// Posts a JSON body and gives the status and the body of the answer.
    pub(crate) fn post(&mut self, path: &str, body: &[u8]) -> io::Result<(u16, &[u8])> {
        self.request.clear();
        post(&mut self.request, path, body);
        self.exchange()
    }

    /// Gets a page.
    pub(crate) fn get(&mut self, path: &str) -> io::Result<(u16, &[u8])> {
        self.request.clear();
        get(&mut self.request, path);
        self.exchange()
    }

    /// Sends what is in `request`. After an error the connection is given up: nothing is known about the request.
    fn exchange(&mut self) -> io::Result<(u16, &[u8])> {
        match self.try_exchange() {
            Ok(()) => {
                if self.parser.closes() {
                    self.stream = None;
                }
                Ok((self.parser.status(), self.parser.body()))
            }
            Err(error) => {
                self.stream = None;
                Err(error)
            }
        }
    }

    fn try_exchange(&mut self) -> io::Result<()> {
        if self.stream.is_none() {
            let stream = TcpStream::connect_timeout(&self.address, self.timeout)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(self.timeout))?;
            stream.set_write_timeout(Some(self.timeout))?;
            self.stream = Some(stream);
        }
        let Some(stream) = self.stream.as_mut() else { return Err(odd("no connection")) };
        stream.write_all(&self.request)?;
        self.parser.reset();
        loop {
            let count = stream.read(&mut self.arrived)?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            if self.parser.feed(&self.arrived[..count])? {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{Parser, decimal};

    const RESPONSES: [(&[u8], u16, &[u8]); 4] = [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: x\r\n\r\nhello", 200, b"hello"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length:0\r\n\r\n", 404, b""),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7;x=y\r\n, world\r\n0\r\n\r\n",
            200,
            b"hello, world",
        ),
        (
            b"HTTP/1.1 500 X\r\ntransfer-encoding: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\nT: y\r\n\r\n",
            500,
            b"0123456789",
        ),
    ];

    #[test]
    fn responses_in_pieces_of_every_size() {
        for (bytes, status, body) in RESPONSES {
            for size in 1..=bytes.len() {
                let mut parser = Parser::new();
                let mut done = false;
                for piece in bytes.chunks(size) {
                    assert!(!done, "ended early");
                    done = parser.feed(piece).unwrap();
                }
                assert!(done);
                assert_eq!((parser.status(), parser.body()), (status, body));
                parser.reset();
                assert!(parser.feed(bytes).unwrap(), "a parser serves many responses");
            }
        }
    }

    #[test]
    fn a_server_may_say_that_it_closes() {
        let mut parser = Parser::new();
        assert!(parser.feed(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").unwrap());
        assert!(parser.closes());
        parser.reset();
        assert!(parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap());
        assert!(!parser.closes());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Parser::new().feed(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").is_err());
        assert!(Parser::new().feed(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(Parser::new().feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").is_err());
        assert!(Parser::new().feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab").is_err());
    }

    #[test]
    fn decimals() {
        let mut out = Vec::new();
        for number in [0, 7, 10, 1234567890] {
            decimal(&mut out, number);
            out.push(b' ');
        }
        assert_eq!(out, b"0 7 10 1234567890 ");
    }
}
