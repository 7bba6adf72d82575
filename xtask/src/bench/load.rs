//! The load generator: one thread, one epoll, a closed loop per connection.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::hist::Histogram;
use super::work::Work;
use crate::error::{Error, Result};
use crate::http::{Parser, READ_BYTES};

/// How long no answer at all may arrive before a measurement is given up.
const SILENCE: Duration = Duration::from_secs(30);

/// When a measurement ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Length {
    /// After a warm-up, measure for so long.
    Time { warmup: Duration, window: Duration },
    /// Until so many requests were answered, all of them measured.
    Requests(u64),
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) latency: Histogram,
    /// How long the measured part took.
    pub(crate) took: Duration,
    /// Requests answered, warm-up included.
    pub(crate) answered: u64,
}

impl Measured {
    /// Requests per second.
    pub(crate) fn rate(&self) -> f64 {
        self.latency.count() as f64 / self.took.as_secs_f64().max(1e-9)
    }
}

/// One client: a connection with a request on its way.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    parser: Parser,
    request: Vec<u8>,
    /// So much of the request was sent.
    sent: usize,
    begun: Instant,
    /// Whether the kernel was asked to say when there is room to send.
    waiting: bool,
}

/// Runs `clients` closed loops; `edge` is called when the measured part begins and when it ends.
pub(crate) fn run(
    address: SocketAddr,
    clients: usize,
    length: Length,
    work: &mut Work,
    mut edge: impl FnMut() -> Result<()>,
) -> Result<Measured> {
    let mut poll = Poll::new().map_err(Error::network("make an epoll"))?;
    let limit = match length {
        Length::Requests(count) => count,
        Length::Time { .. } => u64::MAX,
    };
    let clients = clients.min(usize::try_from(limit).unwrap_or(clients));
    let mut connections = Vec::with_capacity(clients);
    for index in 0..clients {
        connections.push(connect(&poll, address, index).map_err(Error::network(format!("connect to {address}")))?);
    }
    let (warmup, window) = match length {
        Length::Time { warmup, window } => (warmup, window),
        Length::Requests(_) => (Duration::ZERO, Duration::MAX),
    };
    let mut asked = 0;
    for (index, connection) in connections.iter_mut().enumerate() {
        asked += 1;
        ask(connection, work, Instant::now()).map_err(Error::network("send"))?;
        watch(&poll, connection, Token(index)).map_err(Error::network("watch a connection"))?;
    }
    let mut run = Run { latency: Histogram::new(), answered: 0, asked, limit, measuring: false };
    let (begun, mut measured_from, mut last_answered) = (Instant::now(), None, (0, Instant::now()));
    let mut events = Events::with_capacity(1024);
    let mut arrived = vec![0; READ_BYTES];
    loop {
        let now = Instant::now();
        if !run.measuring && now.duration_since(begun) >= warmup {
            edge()?;
            run.measuring = true;
            measured_from = Some(Instant::now());
        }
        let took = measured_from.map_or(Duration::ZERO, |from: Instant| from.elapsed());
        if took >= window || run.answered >= limit {
            edge()?;
            return Ok(Measured { latency: run.latency, took, answered: run.answered });
        }
        if run.answered != last_answered.0 {
            last_answered = (run.answered, now);
        } else if now.duration_since(last_answered.1) > SILENCE {
            return Err(Error::Answer(format!("{address} has answered nothing for {SILENCE:?}")));
        }
        match poll.poll(&mut events, Some(Duration::from_millis(100))) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(Error::network("wait")(error)),
            Ok(()) | Err(_) => {}
        }
        for event in &events {
            let connection = &mut connections[event.token().0];
            if event.is_writable() && connection.waiting {
                send(connection).map_err(Error::network("send"))?;
            }
            if event.is_readable() {
                run.read(connection, &mut arrived, work)?;
            }
            watch(&poll, connection, event.token()).map_err(Error::network("watch a connection"))?;
        }
    }
}

/// What all connections share.
#[derive(Debug)]
struct Run {
    latency: Histogram,
    answered: u64,
    asked: u64,
    limit: u64,
    measuring: bool,
}

impl Run {
    /// Reads what has arrived; a complete answer is followed by the next request.
    fn read(&mut self, connection: &mut Connection, arrived: &mut [u8], work: &mut Work) -> Result<()> {
        loop {
            let count = match connection.stream.read(arrived) {
                Ok(0) => return Err(Error::network("receive")(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::network("receive")(error)),
            };
            if connection.parser.feed(&arrived[..count]).map_err(Error::network("receive"))? {
                let now = Instant::now();
                self.answered += 1;
                if self.measuring {
                    self.latency.add(now.duration_since(connection.begun));
                }
                if let Some(why) = work.refuse(connection.parser.status(), connection.parser.body()) {
                    return Err(Error::Answer(why));
                }
                if self.asked < self.limit {
                    self.asked += 1;
                    ask(connection, work, now).map_err(Error::network("send"))?;
                }
            }
            // Less than there was room for: the socket is empty, and epoll tells when it is not.
            if count < arrived.len() {
                return Ok(());
            }
        }
    }
}

fn connect(poll: &Poll, address: SocketAddr, index: usize) -> io::Result<Connection> {
    let stream = std::net::TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let mut stream = TcpStream::from_std(stream);
    poll.registry().register(&mut stream, Token(index), Interest::READABLE)?;
    let request = Vec::with_capacity(1024);
    Ok(Connection { stream, parser: Parser::new(), request, sent: 0, begun: Instant::now(), waiting: false })
}

fn ask(connection: &mut Connection, work: &mut Work, now: Instant) -> io::Result<()> {
    connection.parser.reset();
    connection.request.clear();
    connection.sent = 0;
    work.request(&mut connection.request);
    connection.begun = now;
    send(connection)
}

fn send(connection: &mut Connection) -> io::Result<()> {
    while connection.sent < connection.request.len() {
        match connection.stream.write(&connection.request[connection.sent..]) {
            Ok(count) => connection.sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Asks to be told about room to send while, and only while, something waits to be sent.
fn watch(poll: &Poll, connection: &mut Connection, token: Token) -> io::Result<()> {
    let waiting = connection.sent < connection.request.len();
    if waiting == connection.waiting {
        return Ok(());
    }
    connection.waiting = waiting;
    let interest = if waiting { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
    poll.registry().reregister(&mut connection.stream, token, interest)
}
