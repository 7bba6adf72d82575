//! A crash-safe, segmented write-ahead log: opaque entries in, durable entries out.
//!
//! It **is** the durable half of a replicated log: consecutive entries with a term each, an opaque vote, a committed
//! position, truncation at the end, purging at the start, and group commit: whatever waits while one sync runs shares the
//! next. It **is not** a consensus implementation (it knows terms only as numbers), not a key-value store, and not
//! portable to systems without positioned file I/O (Unix).
//!
//! ```text
//!  dir/ 0000000000000007-00000000000a2c01.wal    sequence, first index; preallocated, recycled
//!       0000000000000008-00000000000b9d44.wal
//!       0000000000000003.spare                   waits to be a segment
//!       LOCK
//!
//!  segment  | crc | metadata | state | snapshot? | records ...              | unused |
//!  record   | length | type | group | prev | crc | head | data | zeros to a multiple of 8 |
//!                              |       `-----`-- rolling CRC-32C over all records of all segments
//!                              `-- where the group starts: all before it was durable when this was written
//! ```
//!
//! **Invariant**: an operation is reported durable only after its bytes, those of every operation before it, and the name
//! of their file have been synced.
//! **Invariant**: one failed write or sync is final; everything not durable by then is reported as failed.
//! **Invariant**: a group is written only after the group before it is durable. So damage that is followed by a later
//! group hit acknowledged bytes, and opening refuses; only the last group can be taken for an unfinished write, and
//! opening and closing both put a record behind it.
//! **Invariant**: a segment that has a successor is whole, up to an end and a chain value that the successor records.
//! **Invariant**: no record of a recycled file's former life passes the checksums of its new one.
//! **Invariant**: nothing is deleted before the purge that allows it is durable.
//!
//! ```
//! use std::sync::Arc;
//! use tally_wal::{Config, Entry, LogIndex, Metadata, RealFs, Wal};
//!
//! let dir = tempfile::tempdir()?;
//! let metadata = Metadata { format: Metadata::FORMAT, cluster_id: 1, member_id: 2, directory_uuid: [3; 16] };
//! let config = Config { metadata: Some(metadata), segment_bytes: 1 << 20, ..Config::default() };
//! let (mut wal, recovered) = Wal::open(Arc::new(RealFs), dir.path(), config.clone())?;
//! assert!(recovered.created);
//!
//! let ticket = wal.append(&[Entry { index: LogIndex::new(1), term: 1, payload: "hello".into() }])?;
//! wal.flush(ticket, |result| assert!(result.is_ok()));
//! wal.close()?;
//!
//! let (wal, recovered) = Wal::open(Arc::new(RealFs), dir.path(), config)?;
//! assert_eq!(recovered.last.map(|last| last.index), Some(LogIndex::new(1)));
//! let entries = wal.reader().read(LogIndex::new(1)..LogIndex::new(2), 1 << 20)?;
//! assert_eq!(&entries[0].payload[..], b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod dump;
pub mod memfs;

mod allocator;
mod config;
mod encoder;
mod error;
mod flusher;
mod fs;
mod open;
mod queue;
mod reader;
mod record;
mod replay;
mod scan;
mod segment;
mod types;
mod view;
mod wal;

pub use crate::config::{Config, ConfigError, Observer};
pub use crate::error::{AppendError, Damage, OpenError, ReadError, ScanError, SyncError};
pub use crate::fs::{Access, DirLock, Fs, FsFile, RealFs};
pub use crate::open::Recovered;
pub use crate::queue::Durable;
pub use crate::reader::Reader;
pub use crate::types::{Entry, LogIndex, LogPosition, Metadata, State, Ticket, TornTail};
pub use crate::wal::Wal;
