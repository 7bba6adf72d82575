//! Measures appending with a number of callers that each wait for their entry to be durable, and the syncs they share.
//!
//! `cargo run --release --example throughput -- DIR [ENTRIES] [IN_FLIGHT] [PAYLOAD_BYTES]`

use std::error::Error;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tally_wal::{Config, Entry, LogIndex, Metadata, Observer, RealFs, Wal};

#[derive(Default)]
struct Syncs(AtomicU64);

impl Observer for Syncs {
    fn on_sync(&self, _: Duration, _: u64, _: u64) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().map_or(temporary.path().join("wal"), PathBuf::from);
    let mut number = |default| arguments.next().map_or(Ok(default), |text| text.parse::<u64>());
    let (entries, in_flight, payload) = (number(20_000)?, number(64)?, number(300)?);
    let payload = Bytes::from(vec![b'x'; usize::try_from(payload)?]);
    let syncs = Arc::new(Syncs::default());
    let observer: Arc<dyn Observer> = Arc::<Syncs>::clone(&syncs);
    let metadata = Metadata { format: Metadata::FORMAT, cluster_id: 1, member_id: 1, directory_uuid: [1; 16] };
    let config = Config { metadata: Some(metadata), observer: Some(observer), ..Config::default() };
    let (mut wal, recovered) = Wal::open(Arc::new(RealFs), &dir, config)?;
    let first = recovered.last.map_or(1, |last| last.index.get() + 1);
    let (durable, heard) = mpsc::channel();
    let started = Instant::now();
    let before = syncs.0.load(Ordering::Relaxed);
    for i in 0..entries {
        if i >= in_flight {
            heard.recv()?;
        }
        let index = LogIndex::new(first + i);
        let ticket = wal.append(&[Entry { index, term: 1, payload: payload.clone() }])?;
        let durable = durable.clone();
        wal.flush(ticket, move |result| {
            // Nobody listens any more once the last ones are not waited for.
            let _ = durable.send(result.is_ok());
        });
    }
    wal.close()?;
    let (took, syncs) = (started.elapsed(), syncs.0.load(Ordering::Relaxed) - before);
    println!("{entries} entries of {} bytes, {in_flight} in flight: {took:?}, {syncs} syncs", payload.len());
    println!("{:.0} entries/s, {:.1} entries/sync", entries as f64 / took.as_secs_f64(), entries as f64 / syncs as f64);
    Ok(())
}
