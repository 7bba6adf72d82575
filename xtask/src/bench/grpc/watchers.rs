//! Watchers over gRPC: streams with many watchers each, and puts whose events are awaited from all of them.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::load::connect;
use crate::bench::closed::Times;
use crate::bench::hist::Histogram;
use crate::bench::keys::VALUE_BYTES;
use crate::bench::load::{Length, Measured};
use crate::error::{Error, Result};
use crate::grpc::{self, Channel, Fields, Stream, Value, frame, method, nested};

/// How long the events of one put may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How watchers are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watchers {
    pub(crate) connections: usize,
    /// Streams on each connection.
    pub(crate) streams: usize,
    /// Watchers on each stream.
    pub(crate) each: usize,
}

impl Watchers {
    /// All of them.
    pub(crate) fn count(self) -> usize {
        self.connections * self.streams * self.each
    }

    /// Opens them; watcher `n` of all watches `key(n)`. Each has been created when this returns.
    pub(crate) async fn open(self, address: SocketAddr, key: impl Fn(usize) -> Vec<u8>) -> Result<Vec<Stream>> {
        let mut streams = Vec::with_capacity(self.connections * self.streams);
        let mut watcher = 0;
        for mut channel in connect(&[address], self.connections).await? {
            for _ in 0..self.streams {
                let mut stream = channel.open(method::WATCH).await?;
                for _ in 0..self.each {
                    stream.send(frame(|out| nested(out, 1, |out| grpc::bytes(out, 1, &key(watcher)))))?;
                    watcher += 1;
                }
                for _ in 0..self.each {
                    let created = grpc::find(stream.next().await?, 3);
                    if created != Some(Value::Number(1)) {
                        return Err(Error::Answer("a watcher was not created".to_owned()));
                    }
                }
                streams.push(stream);
            }
        }
        Ok(streams)
    }
}

/// What the readers of all streams share.
#[derive(Debug, Default)]
struct Arrivals {
    events: Cell<u64>,
    /// So many are to come before somebody is told.
    wanted: Cell<u64>,
    last: Cell<Option<Instant>>,
    all: Notify,
}

/// Puts one key again and again, each time when all watchers have heard of the last time; `edge` is called when the measured
/// part begins and when it ends. The latencies are those of the last watcher.
pub(crate) async fn fan_out(
    address: SocketAddr,
    watchers: Watchers,
    times: Times,
    edge: &mut dyn FnMut() -> Result<()>,
) -> Result<Measured> {
    const KEY: &[u8] = b"watched by everybody";
    let streams = watchers.open(address, |_| KEY.to_vec()).await?;
    let arrivals = Rc::new(Arrivals::default());
    let counts: Vec<_> = streams.iter().map(|_| Rc::new(RefCell::new(vec![0; watchers.each]))).collect();
    let mut readers = JoinSet::new();
    for (stream, counts) in streams.into_iter().zip(&counts) {
        readers.spawn_local(read(stream, Rc::clone(&arrivals), Rc::clone(counts)));
    }
    let mut channel = Channel::connect(address).await?;
    let Length::Time { warmup, window } = times.length() else { unreachable!("times are lengths of time") };
    let (begun, mut measured_from, mut latency, mut puts) = (Instant::now(), None, Histogram::new(), 0_u64);
    loop {
        if measured_from.is_none() && begun.elapsed() >= warmup {
            edge()?;
            measured_from = Some(Instant::now());
        }
        let took = measured_from.map_or(Duration::ZERO, |from: Instant| from.elapsed());
        if took >= window {
            edge()?;
            check(&counts, puts)?;
            return Ok(Measured { latency, took, answered: puts });
        }
        puts += 1;
        arrivals.wanted.set(puts * watchers.count() as u64);
        let asked = Instant::now();
        let put = put(&mut channel, KEY, puts);
        tokio::select! {
            done = tokio::time::timeout(PATIENCE, async { tokio::join!(put, arrivals.all.notified()) }) => match done {
                Ok((put, ())) => put?,
                Err(_) => return Err(Error::Answer(format!("not all watchers heard of put {puts} in {PATIENCE:?}"))),
            },
            ended = readers.join_next() => match ended {
                Some(Ok(Err(error))) => return Err(error),
                _ => return Err(Error::Check("a reader has ended".to_owned())),
            },
        }
        if let (Some(_), Some(last)) = (measured_from, arrivals.last.get()) {
            latency.add(last.duration_since(asked));
        }
    }
}

async fn put(channel: &mut Channel, key: &[u8], number: u64) -> Result<()> {
    let mut value = vec![b'v'; VALUE_BYTES];
    value[..8].copy_from_slice(&number.to_be_bytes());
    let message = frame(|out| {
        grpc::bytes(out, 1, key);
        grpc::bytes(out, 2, &value);
    });
    channel.call(method::PUT, message, &mut Vec::new()).await
}

/// Counts what arrives on one stream, by watcher.
async fn read(mut stream: Stream, arrivals: Rc<Arrivals>, counts: Rc<RefCell<Vec<u64>>>) -> Result<()> {
    loop {
        let mut response = stream.next().await?;
        let mut events = 0;
        loop {
            let (watcher, count) = events_of(response)?;
            match counts.borrow_mut().get_mut(watcher) {
                Some(counted) => *counted += count,
                None => return Err(Error::Answer(format!("an event for watcher {watcher}, which there is not"))),
            }
            events += count;
            if !stream.ready() {
                break;
            }
            response = stream.next().await?;
        }
        arrivals.events.set(arrivals.events.get() + events);
        if arrivals.events.get() >= arrivals.wanted.get() {
            arrivals.last.set(Some(Instant::now()));
            arrivals.all.notify_one();
        }
    }
}

/// The watcher that a response is for, and how many events it holds.
fn events_of(response: &[u8]) -> Result<(usize, u64)> {
    let (mut watcher, mut events) = (0, 0);
    for (field, value) in Fields(response) {
        match (field, value) {
            (2, Value::Number(id)) => watcher = id as usize,
            (4, Value::Number(1)) => return Err(Error::Answer(format!("watcher {watcher} was canceled"))),
            (11, _) => events += 1,
            _ => {}
        }
    }
    Ok((watcher, events))
}

/// Every watcher must have heard of every put, once.
fn check(counts: &[Rc<RefCell<Vec<u64>>>], puts: u64) -> Result<()> {
    match counts.iter().find(|counts| counts.borrow().iter().any(|count| *count != puts)) {
        Some(wrong) => Err(Error::Answer(format!("{puts} puts, but watchers of one stream saw {:?}", wrong.borrow()))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{check, events_of};
    use crate::grpc::{frame, nested, number};
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn responses_tell_their_watcher_and_events() {
        let response = frame(|out| {
            nested(out, 1, |out| number(out, 3, 9));
            number(out, 2, 7);
            (0..3).for_each(|_| nested(out, 11, |_| {}));
        });
        assert_eq!(events_of(&response[5..]).unwrap(), (7, 3));
        assert!(events_of(&frame(|out| number(out, 4, 1))[5..]).is_err());
    }

    #[test]
    fn a_lost_or_doubled_event_is_an_error() {
        let counts = |counts: [u64; 2]| vec![Rc::new(RefCell::new(counts.to_vec()))];
        assert!(check(&counts([5, 5]), 5).is_ok());
        assert!(check(&counts([5, 4]), 5).is_err());
        assert!(check(&counts([5, 6]), 5).is_err());
    }
}
