//! Buckets of records over RocksDB, in which a batch and its position in the log are one atomic write.
//!
//! For a program that builds a state from a replicated or otherwise replayable log: every commit carries the position
//! ([`Applied`]) that the state is at after it, so a crash never leaves effects without their position or a position
//! without its effects.
//!
//! **It is** ordered buckets, atomic batches, consistent views, a durable watermark, and whole states as files or streams
//! that are checked on every way. **It is not** durable by itself at each commit (your log is: replay from
//! [`Backend::applied`] after a crash, purge up to [`Backend::durable`]), nor a place for secrets, nor aware of its content.
//!
//! ```text
//! <path>/LIVE        format, identity, name of the generation in force; replaced by one atomic rename
//!        LOCK        locked while open
//!        CREATING    only while the first generation is made
//!        db-<unique>/   one generation: RocksDB, a column family per bucket
//! <anywhere>/export-<index>-<unique>/   a finished export: tables and MANIFEST.tally
//! ```
//!
//! - **Invariant** (applied once): a commit moves the position on, or fails and ends the writing.
//! - **Invariant** (one state): what is found after a crash is what one commit left, in all buckets, and not before
//!   [`Backend::durable`].
//! - **Invariant** (fail-stop): after an error of a commit, a sync or a background flush, every later one fails alike.
//! - **Invariant** (no leftovers): what a crash left behind is deleted at open and never reused; data that was in force
//!   is never deleted without a pointer to its successor.
//! - **Invariant** (verified): an export is put in force only after every byte of it matched its checksum.
//!
//! ```
//! use tally_backend::{Applied, Backend, Bucket, Config, Identity};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?; let path = directory.path().join("data");
//! let identity = Identity { cluster_id: 1, member_id: 2, directory_uuid: [3; 16] };
//! let backend = Backend::open(Config::new(&path, identity))?;
//!
//! let mut batch = backend.batch();
//! batch.put(Bucket::Kv, b"greeting", b"hello");
//! batch.commit(&Applied { index: 1, term: 1, ..Applied::default() })?;
//!
//! assert_eq!(backend.get(Bucket::Kv, b"greeting")?.as_deref(), Some(&b"hello"[..]));
//! assert_eq!(backend.sync()?.index, 1); // entries up to 1 may now be purged from the log
//! # Ok(())
//! # }
//! ```

mod applied;
mod backend;
mod batch;
mod bucket;
mod checksum;
mod config;
mod durable;
mod engine;
mod error;
mod export;
mod failpoint;
mod install;
mod layout;
mod manifest;
mod metrics;
mod pointer;
mod read;
mod stream;
mod tidy;

pub use crate::{
    applied::{Applied, RecordError},
    backend::{Backend, Size},
    batch::WriteBatch,
    bucket::Bucket,
    config::{Config, Identity, Observer},
    error::{EngineError, ExportError, FileError, InstallError, OpenError, StorageError},
    export::{Export, Frozen},
    failpoint::{Failpoints, Step},
    install::Staged,
    manifest::ExportedFile,
    metrics::Metrics,
    read::{ReadTx, Scan},
    stream::ExportReader,
};
