//! One keep-alive connection of a load generator, with at most one request on its way.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Poll, Token};

use crate::http::Parser;

/// How long connecting may take. Everything is on this machine, where it either works or is refused at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection that an epoll watches.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    parser: Parser,
    request: Vec<u8>,
    /// So much of the request was sent.
    sent: usize,
    begun: Instant,
    /// Whether the kernel was asked to say when there is room to send.
    waiting: bool,
}

impl Connection {
    /// Connects.
    pub(crate) fn open(poll: &Poll, address: SocketAddr, token: Token) -> io::Result<Connection> {
        let stream = std::net::TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, token, Interest::READABLE)?;
        let request = Vec::with_capacity(1024);
        Ok(Connection { stream, parser: Parser::new(), request, sent: 0, begun: Instant::now(), waiting: false })
    }

    /// Begins the request that `fill` appends.
    pub(crate) fn ask(&mut self, now: Instant, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.parser.reset();
        self.request.clear();
        self.sent = 0;
        fill(&mut self.request);
        self.begun = now;
        self.send()
    }

    /// Sends what there is room for.
    pub(crate) fn send(&mut self) -> io::Result<()> {
        while self.sent < self.request.len() {
            match self.stream.write(&self.request[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Asks to be told about room to send while, and only while, something waits to be sent.
    pub(crate) fn watch(&mut self, poll: &Poll, token: Token) -> io::Result<()> {
        let waiting = self.sent < self.request.len();
        if waiting == self.waiting {
            return Ok(());
        }
        self.waiting = waiting;
        let interest = if waiting { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        poll.registry().reregister(&mut self.stream, token, interest)
    }

    /// Reads what has arrived; tells whether the answer is complete now. The server's end of the connection is an error.
    pub(crate) fn read(&mut self, arrived: &mut [u8]) -> io::Result<bool> {
        loop {
            let count = match self.stream.read(arrived) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if self.parser.feed(&arrived[..count])? {
                return Ok(true);
            }
            // Less than there was room for: the socket is empty, and epoll tells when it is not.
            if count < arrived.len() {
                return Ok(false);
            }
        }
    }

    /// Whether a request can still be sent after the last answer: the server has neither announced nor made an end.
    pub(crate) fn usable(&mut self) -> bool {
        if self.parser.closes() {
            return false;
        }
        let quiet = self.stream.read(&mut [0; 1]);
        matches!(quiet, Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted))
    }

    /// Whether none of the request has left.
    pub(crate) fn unsent(&self) -> bool {
        self.sent == 0
    }

    /// When the request was begun.
    pub(crate) fn begun(&self) -> Instant {
        self.begun
    }

    /// What has arrived of the answer's body, for whoever takes it as it comes.
    pub(crate) fn partial(&mut self) -> &mut Vec<u8> {
        self.parser.partial_body()
    }

    /// The complete answer.
    pub(crate) fn answer(&self) -> (u16, &[u8]) {
        (self.parser.status(), self.parser.body())
    }
}
