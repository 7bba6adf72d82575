//! Appends a few entries to the log in a directory, then reads back what is there.
//!
//! Run it twice on the same directory: `cargo run --example append -- /tmp/wal-example`. Without a directory it uses a
//! temporary one.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use tally_wal::{Config, Entry, LogIndex, LogPosition, Metadata, RealFs, State, Wal, dump};

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let dir = std::env::args_os().nth(1).map_or(temporary.path().to_owned(), PathBuf::from);
    let fs = Arc::new(RealFs);

    // Only a new log needs an identity; an existing one knows its own.
    let metadata = if Wal::exists(&*fs, &dir)? {
        None
    } else {
        Some(Metadata { format: Metadata::FORMAT, cluster_id: 1, member_id: 1, directory_uuid: *b"choose at random" })
    };
    let config = Config { metadata, segment_bytes: 1 << 20, ..Config::default() };
    let (mut wal, recovered) = Wal::open(fs, &dir, config)?;
    println!("{}: {}", dir.display(), recovered.metadata);
    if let Some(torn) = &recovered.torn {
        println!("cut off: {torn}");
    }

    let first = recovered.last.map_or(LogIndex::new(1), |last| last.index.next());
    let entries = (0..5)
        .map(|i| Entry {
            index: LogIndex::new(first.get() + i),
            term: 1,
            payload: format!("entry number {}", first.get() + i).into(),
        })
        .collect::<Vec<_>>();
    let ticket = wal.append(&entries)?;
    // All five become durable with one sync.
    wal.flush(ticket, |result| println!("durable: {}", result.is_ok()));

    let last = LogPosition { index: LogIndex::new(first.get() + 4), term: 1 };
    let ticket = wal.save_state(State { vote: "me".into(), committed: Some(last) })?;
    wal.wait(ticket)?;

    let reader = wal.reader();
    if let Some(start) = reader.first() {
        for entry in reader.read(start..last.index.next(), 64 << 10)? {
            println!("{} (term {}): {}", entry.index, entry.term, String::from_utf8_lossy(&entry.payload));
        }
    }
    wal.close()?;
    print!("{}", dump::verify(&dir)?);
    Ok(())
}
