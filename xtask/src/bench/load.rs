//! The load generator of the closed-loop rows: one thread, one epoll, no failure forgiven.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use super::connection::Connection;
use super::hist::Histogram;
use super::work::Work;
use crate::error::{Error, Result};
use crate::http::READ_BYTES;

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

/// Runs `clients` closed loops, spread evenly over the addresses; `edge` is called when the measured part begins and when
/// it ends. Where there are fewer clients than addresses, each client visits its share of them in turn, request by
/// request, so that the numbers are those of the whole cluster and not of the member that happened to be asked.
pub(crate) fn run(
    addresses: &[SocketAddr],
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
    let places = clients.max(addresses.len());
    let mut connections = Vec::with_capacity(places);
    for (index, address) in (0..places).zip(addresses.iter().cycle()) {
        let connection = Connection::open(&poll, *address, Token(index));
        connections.push(connection.map_err(Error::network(format!("connect to {address}")))?);
    }
    let (warmup, window) = match length {
        Length::Time { warmup, window } => (warmup, window),
        Length::Requests(_) => (Duration::ZERO, Duration::MAX),
    };
    let mut run = Run { latency: Histogram::new(), answered: 0, asked: 0, limit, measuring: false };
    for (index, connection) in connections.iter_mut().enumerate().take(clients) {
        run.ask(connection, &poll, Token(index), work, Instant::now())?;
    }
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
            return Err(Error::Answer(format!("{addresses:?} have answered nothing for {SILENCE:?}")));
        }
        match poll.poll(&mut events, Some(Duration::from_millis(100))) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(Error::network("wait")(error)),
            Ok(()) | Err(_) => {}
        }
        for event in &events {
            let index = event.token().0;
            let connection = &mut connections[index];
            if event.is_writable() {
                connection.send().map_err(Error::network("send"))?;
                connection.watch(&poll, event.token()).map_err(Error::network("watch a connection"))?;
            }
            if event.is_readable() && connection.read(&mut arrived).map_err(Error::network("receive"))? {
                let now = run.answered(connection, work)?;
                let next = following(index, clients, places);
                run.ask(&mut connections[next], &poll, Token(next), work, now)?;
            }
        }
    }
}

/// The connection on which the client goes on that was answered on this one: the same, unless a client has several.
fn following(index: usize, clients: usize, places: usize) -> usize {
    let next = index + clients;
    if next < places { next } else { index % clients }
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
    /// Sends the next request, unless there are to be no more.
    fn ask(
        &mut self,
        connection: &mut Connection,
        poll: &Poll,
        token: Token,
        work: &mut Work,
        now: Instant,
    ) -> Result<()> {
        if self.asked >= self.limit {
            return Ok(());
        }
        self.asked += 1;
        connection.ask(now, |out| work.request(out)).map_err(Error::network("send"))?;
        connection.watch(poll, token).map_err(Error::network("watch a connection"))
    }

    /// Counts a complete answer; gives the time when it was.
    fn answered(&mut self, connection: &Connection, work: &Work) -> Result<Instant> {
        let now = Instant::now();
        self.answered += 1;
        if self.measuring {
            self.latency.add(now.duration_since(connection.begun()));
        }
        let (status, body) = connection.answer();
        work.refuse(status, body).map_or(Ok(now), |why| Err(Error::Answer(why)))
    }
}

#[cfg(test)]
mod tests {
    use super::following;

    #[test]
    fn clients_keep_their_connection_or_visit_their_share_in_turn() {
        assert_eq!([0, 1, 2].map(|index| following(index, 1, 3)), [1, 2, 0]);
        assert_eq!([0, 1, 2].map(|index| following(index, 2, 3)), [2, 1, 0]);
        assert_eq!([0, 1, 2, 3].map(|index| following(index, 4, 4)), [0, 1, 2, 3]);
    }
}
