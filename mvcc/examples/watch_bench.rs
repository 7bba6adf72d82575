//! What watching costs whoever writes, and what a watcher takes in memory.
//!
//! `cargo run --release -p tally-mvcc --example watch_bench`
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use tally_backend::{Applied, Backend, Config, Identity};
use tally_mvcc::{KeyRange, Options, PutRequest, Reader, Step, WatchLimits, WatchSpec, WatchStream, Writer, open};

type Failure = Box<dyn std::error::Error>;

const PUTS: u64 = 20_000;

struct Store {
    backend: Backend,
    writer: Writer,
    reader: Reader,
    index: u64,
}

impl Store {
    fn put(&mut self, key: &str) -> Result<Duration, Failure> {
        let mut batch = self.backend.batch();
        self.writer.put(&PutRequest::new(key.to_owned(), vec![b'v'; 64]), &mut batch)?;
        self.writer.stage_meta(&mut batch);
        self.index += 1;
        batch.commit(&Applied { index: self.index, term: 1, root: self.writer.root(), ..Applied::default() })?;
        let started = Instant::now();
        self.writer.publish();
        Ok(started.elapsed())
    }

    /// Nanoseconds of each publication, polling streams in between.
    fn publish(&mut self, key: &str, streams: &mut [WatchStream]) -> Result<(u128, u128), Failure> {
        let (mut publishing, mut polling) = (Duration::ZERO, Duration::ZERO);
        let puts = if streams.is_empty() { PUTS } else { PUTS / 100 };
        for _ in 0..puts {
            publishing += self.put(key)?;
            let started = Instant::now();
            streams.iter_mut().for_each(drain);
            polling += started.elapsed();
        }
        Ok((publishing.as_nanos() / u128::from(puts), polling.as_nanos() / u128::from(puts)))
    }
}

fn drain(stream: &mut WatchStream) {
    let mut cx = Context::from_waker(Waker::noop());
    while let std::task::Poll::Ready(step) = stream.poll_next(&mut cx) {
        if let Step::Read(history) = step {
            stream.absorb(history.read());
        }
    }
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0) * 1024
}

fn main() -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let backend = Backend::open(Config::new(directory.path(), Identity::default()))?;
    let (writer, reader) = open(&backend, Options::default())?;
    let mut store = Store { backend, writer, reader, index: 0 };
    println!("nobody watches: {} ns for a publication", store.publish("k", &mut [])?.0);

    let before = resident_bytes();
    let mut idle = store.reader.watch_stream(WatchLimits::default());
    let started = Instant::now();
    for number in 0..100_000 {
        idle.create(WatchSpec::new(KeyRange::single(format!("idle/{number:08}").into())?))?;
    }
    let each = started.elapsed().as_nanos() / 100_000;
    println!(
        "100,000 watchers of other keys on one stream: {each} ns and {} bytes each",
        (resident_bytes() - before) / 100_000
    );
    println!("  {} ns for a publication", store.publish("k", &mut [])?.0);

    let before = resident_bytes();
    let mut streams = Vec::new();
    for number in 0..10_000 {
        let mut stream = store.reader.watch_stream(WatchLimits::default());
        stream.create(WatchSpec::new(KeyRange::new(
            format!("p/{number:08}/").into(),
            format!("p/{number:08}0").into(),
        )?))?;
        streams.push(stream);
    }
    println!("10,000 streams with a prefix each: {} bytes each", (resident_bytes() - before) / 10_000);
    println!("  {} ns for a publication", store.publish("k", &mut [])?.0);
    drop(streams);

    for (count, watchers) in [(10, 100), (1_000, 1)] {
        let mut streams = Vec::new();
        for _ in 0..count {
            let mut stream = store.reader.watch_stream(WatchLimits::default());
            for _ in 0..watchers {
                stream.create(WatchSpec::new(KeyRange::single("k".into())?))?;
            }
            streams.push(stream);
        }
        let (publishing, polling) = store.publish("k", &mut streams)?;
        println!(
            "{count} streams of {watchers} watchers of the key: {publishing} ns to publish, {} ns to poll each watcher",
            polling / 1_000
        );
    }
    Ok(())
}
