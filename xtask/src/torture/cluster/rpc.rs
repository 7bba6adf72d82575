//! One connection to one node, and what the end of an exchange says about its effect.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::http::{self, Parser, READ_BYTES};
use crate::node::Kind;

/// What a refusal ends with if the lease that was named does not exist.
pub(crate) const NO_LEASE: &str = "requested lease not found";

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Reply {
    Done(Value),
    /// The server said that it did nothing: the message.
    Refused(String),
    /// It may have been done, or may still be.
    Unknown(String),
    /// It never left this process.
    Unsent,
}

/// A client of one node with one connection at a time.
#[derive(Debug)]
pub(crate) struct Rpc {
    kind: Kind,
    address: SocketAddr,
    stream: Option<TcpStream>,
    /// Counts connections.
    pub(crate) connection: u32,
    parser: Parser,
    request: Vec<u8>,
    arrived: Vec<u8>,
}

impl Rpc {
    /// A client that connects when it is needed.
    pub(crate) fn new(kind: Kind, address: SocketAddr) -> Rpc {
        let (parser, arrived) = (Parser::new(), vec![0; READ_BYTES]);
        Rpc { kind, address, stream: None, connection: 0, parser, request: Vec::new(), arrived }
    }

    /// Posts JSON and waits for at most `limit`.
    pub(crate) fn call(&mut self, path: &str, body: &str, limit: Duration) -> Reply {
        self.request.clear();
        http::post(&mut self.request, path, body.as_bytes());
        match self.exchange(limit) {
            Ok(None) => Reply::Unsent,
            Ok(Some(200)) => match serde_json::from_slice(self.parser.body()) {
                Ok(answer) => Reply::Done(answer),
                Err(error) => Reply::Unknown(format!("an answer that is no JSON: {error}")),
            },
            Ok(Some(status)) => self.failure(status),
            Err(error) => {
                self.stream = None;
                Reply::Unknown(kind_of(&error))
            }
        }
    }

    /// Posts JSON to a server that is expected to answer; anything else is an error with the server's words.
    pub(crate) fn ask(&mut self, path: &str, body: &str, limit: Duration) -> Result<Value> {
        let (address, failed) = (self.address, |why: String| Error::Answer(why));
        match self.call(path, body, limit) {
            Reply::Done(answer) => Ok(answer),
            Reply::Refused(why) | Reply::Unknown(why) => Err(failed(format!("{path} on {address}: {why}"))),
            Reply::Unsent => Err(failed(format!("{path} on {address}: no connection"))),
        }
    }

    /// Gets a page; nothing if it cannot be had.
    pub(crate) fn page(&mut self, path: &str, limit: Duration) -> Option<String> {
        self.request.clear();
        http::get(&mut self.request, path);
        match self.exchange(limit) {
            Ok(Some(200)) => Some(String::from_utf8_lossy(self.parser.body()).into_owned()),
            Ok(_) => None,
            Err(_) => {
                self.stream = None;
                None
            }
        }
    }

    /// What a status other than 200 says. Tally marks what it has done or may have; etcd does not, so nothing is known there.
    fn failure(&self, status: u16) -> Reply {
        let body: Value = serde_json::from_slice(self.parser.body()).unwrap_or_default();
        let message = body["message"].as_str().or(body["error"].as_str()).unwrap_or_default();
        let text = format!("{status} {message}");
        let known = match self.kind {
            Kind::Tally => !message.is_empty() && body["outcome"].is_null(),
            Kind::Etcd => {
                ["too many requests", "not supported for learner", NO_LEASE].iter().any(|end| message.ends_with(end))
            }
        };
        if known { Reply::Refused(text) } else { Reply::Unknown(text) }
    }

    /// Sends the request; nothing if no connection could be made.
    fn exchange(&mut self, limit: Duration) -> io::Result<Option<u16>> {
        let end = Instant::now() + limit;
        if self.stream.is_none() {
            let Ok(stream) = TcpStream::connect_timeout(&self.address, limit) else { return Ok(None) };
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(limit))?;
            self.connection += 1;
            self.stream = Some(stream);
        }
        let Some(stream) = self.stream.as_mut() else { return Ok(None) };
        stream.write_all(&self.request)?;
        self.parser.reset();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            stream.set_read_timeout(Some(left))?;
            let count = match stream.read(&mut self.arrived) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if self.parser.feed(&self.arrived[..count])? {
                return Ok(Some(self.parser.status()));
            }
        }
    }
}

/// A short name for what broke a connection, the same for all ways to say it.
pub(crate) fn kind_of(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "the connection broke".to_owned()
        }
        _ => error.to_string(),
    }
}
