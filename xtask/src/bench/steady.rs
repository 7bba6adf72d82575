//! Clients that go on whatever happens to the servers: they retry, change servers, and keep a timeline.
//!
//! Two kinds of them put keys. Closed loops make the load. Beside them *probes* are sent at fixed intervals without
//! waiting for each other: a closed loop whose requests all hang sends nothing, and would not notice that the servers
//! work again.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use super::connection::Connection;
use super::timeline::{Failure, Timeline, refusal};
use super::work::{self, Work};
use crate::error::{Error, Result};
use crate::http::READ_BYTES;
use crate::node::Kind;

/// How long a client waits for an answer before it gives up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a client waits before it tries again after a failure.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// Time between two probes.
const PROBE_INTERVAL: Duration = Duration::from_millis(10);
/// Probes that may hang at the same time; beyond that none are sent until one is answered or given up.
const PROBES_MAX: usize = 400;
/// How often clients are looked at that no event wakes.
const SCAN_INTERVAL: Duration = Duration::from_millis(2);

/// Who puts what where.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) server: Kind,
    pub(crate) addresses: Vec<SocketAddr>,
    /// Closed loops, spread evenly over the addresses.
    pub(crate) clients: usize,
    /// Keys that are put.
    pub(crate) keys: u32,
    pub(crate) seed: u64,
}

/// Clients at work in a thread of their own.
#[derive(Debug)]
pub(crate) struct Steady {
    stop: Arc<AtomicBool>,
    timeline: Arc<Mutex<Timeline>>,
    thread: JoinHandle<Result<()>>,
}

impl Steady {
    /// Sets them to work.
    pub(crate) fn start(load: Load) -> Result<Steady> {
        let stop = Arc::new(AtomicBool::new(false));
        let timeline = Arc::new(Mutex::new(Timeline::default()));
        let mut engine = Engine::new(load, Arc::clone(&timeline))?;
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || engine.run(&stopped));
        Ok(Steady { stop, timeline, thread })
    }

    /// Waits until a write is acknowledged that was sent after `moment`; gives when it was.
    pub(crate) fn wait_for_write_after(&self, moment: Instant, limit: Duration) -> Result<Instant> {
        loop {
            if let Some(answered) = locked(&self.timeline).first_sent_after(moment) {
                return Ok(answered);
            }
            if self.thread.is_finished() {
                return Err(Error::Check("the load generator has ended".to_owned()));
            }
            if moment.elapsed() > limit {
                let failures = locked(&self.timeline).failures_after(moment);
                return Err(Error::Answer(format!("no write was acknowledged for {limit:?}; failures: {failures:?}")));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends them and gives what happened.
    pub(crate) fn stop(self) -> Result<Timeline> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| Error::Check("the load generator panicked".to_owned()))??;
        Ok(std::mem::take(&mut *locked(&self.timeline)))
    }
}

/// A panic of the other side is reported when its thread is joined.
fn locked(timeline: &Mutex<Timeline>) -> MutexGuard<'_, Timeline> {
    timeline.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a client does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Waits for its answer.
    Asking,
    /// Asks again at that time.
    Pausing(Instant),
    /// A probe that is not needed now.
    Parked,
}

#[derive(Debug)]
struct Client {
    probe: bool,
    /// The address it uses, by its number.
    at: usize,
    connection: Option<Connection>,
    state: State,
}

#[derive(Debug)]
struct Engine {
    load: Load,
    poll: Poll,
    /// The closed loops, then the probes.
    clients: Vec<Client>,
    /// Probes that are not needed now, by their number, the longest parked first.
    parked: VecDeque<usize>,
    work: Work,
    timeline: Arc<Mutex<Timeline>>,
    arrived: Vec<u8>,
}

impl Engine {
    fn new(load: Load, timeline: Arc<Mutex<Timeline>>) -> Result<Engine> {
        let poll = Poll::new().map_err(Error::network("make an epoll"))?;
        let work = Work::new(work::Kind::Put, load.keys, load.seed);
        let now = Instant::now();
        let closed = |at| Client { probe: false, at, connection: None, state: State::Pausing(now) };
        let clients = (0..load.clients).map(closed).collect();
        let arrived = vec![0; READ_BYTES];
        let mut engine = Engine { load, poll, clients, parked: VecDeque::new(), work, timeline, arrived };
        // One at each address, so that the probes visit all of them in turn.
        (0..engine.load.addresses.len()).for_each(|_| engine.add_probe());
        Ok(engine)
    }

    /// Adds a client for probes, at the next address.
    fn add_probe(&mut self) {
        let index = self.clients.len();
        self.clients.push(Client { probe: true, at: index, connection: None, state: State::Parked });
        self.parked.push_back(index);
    }

    fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        let mut events = Events::with_capacity(1024);
        let (mut scan_at, mut probe_at) = (Instant::now(), Instant::now());
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            if now >= scan_at {
                self.scan(now);
                scan_at = now + SCAN_INTERVAL;
            }
            if now >= probe_at {
                self.probe(now);
                probe_at = (probe_at + PROBE_INTERVAL).max(now);
            }
            match self.poll.poll(&mut events, Some(SCAN_INTERVAL)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(Error::network("wait")(error)),
                Ok(()) | Err(_) => {}
            }
            for event in &events {
                let index = event.token().0;
                if event.is_writable() {
                    self.send(index);
                }
                if event.is_readable() {
                    self.read(index);
                }
            }
        }
        let asking = self.clients.iter().filter(|client| client.state == State::Asking);
        for connection in asking.filter_map(|client| client.connection.as_ref()) {
            locked(&self.timeline).leave_hanging(connection.begun());
        }
        Ok(())
    }

    /// Wakes clients whose pause is over, and ends waits that have lasted too long.
    fn scan(&mut self, now: Instant) {
        for index in 0..self.clients.len() {
            let client = &self.clients[index];
            let overdue = |connection: &Connection| now.duration_since(connection.begun()) > ANSWER_TIMEOUT;
            match client.state {
                State::Pausing(until) if until <= now => self.ask(index, now),
                State::Asking if client.connection.as_ref().is_some_and(overdue) => {
                    let told = format!("no answer within {ANSWER_TIMEOUT:?}");
                    self.fail(index, Failure { told, unclear: true });
                }
                State::Asking | State::Pausing(_) | State::Parked => {}
            }
        }
    }

    /// Sends one more request beside the closed loops, by the client that has been parked longest.
    fn probe(&mut self, now: Instant) {
        if self.parked.is_empty() && self.clients.len() - self.load.clients < PROBES_MAX {
            self.add_probe();
        }
        if let Some(index) = self.parked.pop_front() {
            self.ask(index, now);
        }
    }

    fn ask(&mut self, index: usize, now: Instant) {
        let client = &mut self.clients[index];
        if client.connection.as_mut().is_some_and(|connection| !connection.usable()) {
            // A server that says goodbye is about to go: on to the next.
            client.connection = None;
            client.at += 1;
        }
        let connection = match client.connection.take() {
            Some(connection) => Ok(connection),
            None => {
                let address = self.load.addresses[client.at % self.load.addresses.len()];
                Connection::open(&self.poll, address, Token(index))
            }
        };
        let mut connection = match connection {
            Ok(connection) => connection,
            Err(error) => {
                let told = format!("cannot connect: {}", error.kind());
                return self.fail(index, Failure { told, unclear: false });
            }
        };
        let sent = connection.ask(now, |out| self.work.request(out));
        let sent = sent.and_then(|()| connection.watch(&self.poll, Token(index)));
        let unclear = !connection.unsent();
        let client = &mut self.clients[index];
        client.connection = Some(connection);
        client.state = State::Asking;
        if let Err(error) = sent {
            self.fail(index, Failure { told: format!("cannot send: {}", error.kind()), unclear });
        }
    }

    fn send(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(connection) = client.connection.as_mut().filter(|_| client.state == State::Asking) else { return };
        let sent = connection.send().and_then(|()| connection.watch(&self.poll, Token(index)));
        if let Err(error) = sent {
            let unclear = !connection.unsent();
            self.fail(index, Failure { told: format!("cannot send: {}", error.kind()), unclear });
        }
    }

    fn read(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(connection) = client.connection.as_mut() else { return };
        if client.state != State::Asking {
            // Nothing is expected, so this is the end of the connection; `ask` would find out too.
            client.connection = None;
            return;
        }
        match connection.read(&mut self.arrived) {
            Ok(false) => {}
            Ok(true) => self.answered(index),
            Err(error) => {
                // The server may have carried the request out and closed before it could say so.
                let told = format!("connection lost while waiting: {}", error.kind());
                self.fail(index, Failure { told, unclear: true });
            }
        }
    }

    fn answered(&mut self, index: usize) {
        let now = Instant::now();
        let client = &mut self.clients[index];
        let Some(connection) = client.connection.as_mut() else { return };
        let (status, body) = connection.answer();
        if status != 200 {
            let failure = refusal(self.load.server, status, body);
            return self.fail(index, failure);
        }
        locked(&self.timeline).acknowledge(connection.begun(), now);
        if client.probe {
            client.state = State::Parked;
            self.parked.push_back(index);
        } else {
            self.ask(index, now);
        }
    }

    /// Notes a failure; the client goes on elsewhere after a pause, and a probe not at all.
    fn fail(&mut self, index: usize, failure: Failure) {
        let now = Instant::now();
        locked(&self.timeline).fail(now, failure);
        let client = &mut self.clients[index];
        client.connection = None;
        client.at += 1;
        if client.probe {
            client.state = State::Parked;
            self.parked.push_back(index);
        } else {
            client.state = State::Pausing(now + RETRY_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{Load, Steady, locked};
    use crate::node::Kind;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener};
    use std::thread;
    use std::time::{Duration, Instant};

    /// A server that says `answer` to every request, and then closes if it is to.
    fn server(answer: &'static str, closes: bool) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // It goes on until the test's process ends.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    // A put of a 256-byte value arrives in one piece on loopback.
                    while stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {
                        if stream.write_all(answer.as_bytes()).is_err() || closes {
                            return;
                        }
                    }
                });
            }
        });
        address
    }

    /// Runs clients until a write was acknowledged and all of `expected` failed; gives the unclear failures and all
    /// failures in words.
    fn run(addresses: Vec<SocketAddr>, expected: &[&str]) -> (u64, String) {
        let begun = Instant::now();
        let load = Load { server: Kind::Tally, addresses, clients: 4, keys: 100, seed: 1 };
        let clients = Steady::start(load).unwrap();
        clients.wait_for_write_after(begun, Duration::from_secs(60)).unwrap();
        let failures = || format!("{:?}", locked(&clients.timeline).failures_after(begun));
        while !expected.iter().all(|text| failures().contains(text)) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{}", failures());
            thread::sleep(Duration::from_millis(1));
        }
        let timeline = clients.stop().unwrap();
        (timeline.unclear_after(begun), format!("{:?}", timeline.failures_after(begun)))
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

    #[test]
    fn a_server_that_closes_without_an_answer_leaves_the_outcome_unclear() {
        let (unclear, _) = run(vec![server("", true), server(OK, false)], &["connection lost while waiting"]);
        assert!(unclear > 0);
    }

    #[test]
    fn a_refused_connection_and_a_clear_refusal_are_safe() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let no = "HTTP/1.1 503 X\r\nContent-Length: 33\r\n\r\n{\"error\":\"etcdserver: no leader\"}";
        let expected = ["cannot connect", "no leader (safe to retry)"];
        let (unclear, failures) = run(vec![gone, server(no, false), server(OK, false)], &expected);
        assert_eq!(unclear, 0, "{failures}");
    }

    #[test]
    fn a_server_that_says_it_closes_costs_nothing() {
        let bye = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(run(vec![server(bye, true)], &[]), (0, "{}".to_owned()));
    }
}
