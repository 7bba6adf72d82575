//! Watchers over JSON: one HTTP/1.1 connection and one stream of lines each, and puts whose events are awaited from all.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use crate::bench::closed::Times;
use crate::bench::connection::Connection;
use crate::bench::hist::Histogram;
use crate::bench::keys::{VALUE_BYTES, base64};
use crate::bench::load::{Length, Measured};
use crate::error::{Error, Result};
use crate::http::{self, READ_BYTES};

/// How long the events of one put may take, or the beginning of all streams.
const PATIENCE: Duration = Duration::from_secs(30);
const KEY: &[u8] = b"watched by everybody";

/// Puts one key again and again, each time when all `streams` watchers have heard of the last time; `edge` is called when
/// the measured part begins and when it ends. The latencies are those of the last watcher.
pub(crate) fn fan_out(
    address: SocketAddr,
    streams: usize,
    times: Times,
    edge: &mut dyn FnMut() -> Result<()>,
) -> Result<Measured> {
    let mut fan = Fan::open(address, streams)?;
    let Length::Time { warmup, window } = times.length() else { unreachable!("times are lengths of time") };
    let (begun, mut measured_from, mut latency, mut puts) = (Instant::now(), None, Histogram::new(), 0);
    loop {
        if measured_from.is_none() && begun.elapsed() >= warmup {
            edge()?;
            measured_from = Some(Instant::now());
        }
        let took = measured_from.map_or(Duration::ZERO, |from: Instant| from.elapsed());
        if took >= window {
            edge()?;
            return Ok(Measured { latency, took, answered: puts });
        }
        puts += 1;
        let took = fan.put(puts)?;
        if measured_from.is_some() {
            latency.add(took);
        }
    }
}

/// All watchers, and a connection for the puts behind them.
#[derive(Debug)]
struct Fan {
    poll: Poll,
    watchers: Vec<Watcher>,
    putter: Connection,
    /// Watchers that have not heard yet what they wait for.
    missing: usize,
    answered: bool,
    arrived: Vec<u8>,
}

#[derive(Debug)]
struct Watcher {
    connection: Connection,
    /// Lines that have come.
    lines: u64,
}

impl Fan {
    /// Opens all streams; each has said that its watcher was created when this returns.
    fn open(address: SocketAddr, streams: usize) -> Result<Fan> {
        let poll = Poll::new().map_err(Error::network("make an epoll"))?;
        let connect = |index| {
            let connection = Connection::open(&poll, address, Token(index));
            connection.map_err(Error::network(format!("connect to {address}")))
        };
        let putter = connect(streams)?;
        let watchers = (0..streams).map(|index| Ok(Watcher { connection: connect(index)?, lines: 0 }));
        let watchers = watchers.collect::<Result<Vec<_>>>()?;
        let mut fan = Fan { poll, watchers, putter, missing: streams, answered: true, arrived: vec![0; READ_BYTES] };
        let mut body = br#"{"create_request":{"key":""#.to_vec();
        base64(KEY, &mut body);
        body.extend_from_slice(br#""}}"#);
        for (index, watcher) in fan.watchers.iter_mut().enumerate() {
            let asked = watcher.connection.ask(Instant::now(), |out| http::post(out, "/v3/watch", &body));
            asked.and_then(|()| watcher.connection.watch(&fan.poll, Token(index))).map_err(Error::network("send"))?;
        }
        fan.wait(1)?;
        Ok(fan)
    }

    /// Puts the key once; gives the time until the last watcher had heard of it.
    fn put(&mut self, number: u64) -> Result<Duration> {
        let mut value = vec![b'v'; VALUE_BYTES];
        value[..8].copy_from_slice(&number.to_be_bytes());
        let mut body = br#"{"key":""#.to_vec();
        base64(KEY, &mut body);
        body.extend_from_slice(br#"","value":""#);
        base64(&value, &mut body);
        body.extend_from_slice(br#""}"#);
        let asked = Instant::now();
        self.putter.ask(asked, |out| http::post(out, "/v3/kv/put", &body)).map_err(Error::network("send"))?;
        self.missing = self.watchers.len();
        self.answered = false;
        Ok(self.wait(number + 1)?.duration_since(asked))
    }

    /// Waits until every watcher has got that many lines, and the put its answer; gives when the last line came.
    fn wait(&mut self, lines: u64) -> Result<Instant> {
        let begun = Instant::now();
        let mut last = begun;
        let mut events = Events::with_capacity(1024);
        while self.missing > 0 || !self.answered {
            match self.poll.poll(&mut events, Some(PATIENCE)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(Error::network("wait")(error)),
                Ok(()) | Err(_) => {}
            }
            if begun.elapsed() > PATIENCE {
                let missing = self.missing;
                return Err(Error::Answer(format!("{missing} watchers have not got line {lines} in {PATIENCE:?}")));
            }
            for event in &events {
                let received = Error::network("receive");
                let Some(watcher) = self.watchers.get_mut(event.token().0) else {
                    if self.putter.read(&mut self.arrived).map_err(received)? {
                        self.answered = true;
                        let (status, body) = self.putter.answer();
                        if status != 200 {
                            let shown = String::from_utf8_lossy(body);
                            return Err(Error::Answer(format!("a put was answered with {status}: {shown}")));
                        }
                    }
                    continue;
                };
                if watcher.connection.read(&mut self.arrived).map_err(received)? {
                    return Err(Error::Answer("a watch stream has ended".to_owned()));
                }
                let before = watcher.lines;
                watcher.take_lines()?;
                if before < lines && watcher.lines >= lines {
                    self.missing -= 1;
                    last = Instant::now();
                }
                if watcher.lines > lines {
                    return Err(Error::Answer(format!("{} lines where there should be {lines}", watcher.lines)));
                }
            }
        }
        Ok(last)
    }
}

impl Watcher {
    /// Counts and drops the whole lines that have come.
    fn take_lines(&mut self) -> Result<()> {
        let body = self.connection.partial();
        let mut begun = 0;
        while let Some(length) = body[begun..].iter().position(|byte| *byte == b'\n') {
            self.lines += 1;
            check(self.lines, &body[begun..begun + length])?;
            begun += length + 1;
        }
        body.drain(..begun);
        Ok(())
    }
}

/// The first line says that the watcher was created, each later one is about an event.
fn check(number: u64, line: &[u8]) -> Result<()> {
    let is_right = if number == 1 {
        let mark = br#""created":true"#;
        line.windows(mark.len()).any(|found| found == mark)
    } else {
        // Nothing before the events has a bracket: this is done a thousand times per put, beside the server.
        let bracket = line.iter().position(|byte| *byte == b'[');
        bracket.is_some_and(|at| line[..at].ends_with(br#""events":"#) && line[at + 1..].starts_with(b"{"))
    };
    if is_right {
        return Ok(());
    }
    Err(Error::Answer(format!("line {number} of a watch is {}", String::from_utf8_lossy(line))))
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn lines_must_be_what_they_should_be() {
        let (created, event) = (br#"{"result":{"created":true}}"#, br#"{"result":{"events":[{"kv":{}}]}}"#);
        assert!(check(1, created).is_ok() && check(2, event).is_ok());
        assert!(check(2, created).is_err() && check(1, event).is_err());
    }
}
