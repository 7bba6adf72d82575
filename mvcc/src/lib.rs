//! A multi-version key-value store: every write makes a revision, and every revision can be read until it is compacted.
//!
//! It *is* the state of a replicated store: ranges, puts, deletes and transactions with etcd's meaning, an index that
//! counts and hashes, compaction, and a root that tells equal histories from different ones. It *is not* consensus,
//! durability (the caller orders, commits and syncs), leases (it stores their numbers), users or network.
//!
//! ```text
//!            check, act                   view ── range, txn, scan, root_of, hash_kv
//!   Writer ──────────────┐                  │
//!     │  index, staged   │  publish         │           sweep
//!     │  records         ├──────────> Arc<Published> <── Reader ──┐
//!     ▼ WriteBatch       └──────────> watch: WatchStream          ▼
//!   backend: kv bucket (revision -> record), meta bucket (current, compacted and swept revision)
//! ```
//!
//! **Invariant**: what is answered is a function of the operations and logical compactions, in their order, alone.
//! **Invariant**: a check may refuse and changes nothing; an act cannot refuse. Views never block the writer.
//! **Invariant**: the sweep changes neither answers nor roots.
//!
//! ```
//! # use tally_backend::{Applied, Backend, Config, Identity};
//! use tally_mvcc::{KeyRange, Options, PutRequest, RangeRequest, open};
//! let dir = tempfile::tempdir()?;
//! let backend = Backend::open(Config::new(dir.path(), Identity::default()))?;
//! let (mut writer, reader) = open(&backend, Options::default())?;
//! let put = PutRequest::new("greeting", "hello");
//! let mut batch = backend.batch();
//! writer.check_put(&put)?;
//! writer.put(&put, &mut batch)?;
//! writer.stage_meta(&mut batch);
//! batch.commit(&Applied { index: 1, term: 1, root: writer.root(), ..Applied::default() })?;
//! writer.publish();
//! let answer = reader.view().range(&RangeRequest::latest(KeyRange::all()))?;
//! assert_eq!((answer.count, answer.kvs[0].value(), answer.revision), (1, &b"hello"[..], 2));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cache;
mod error;
mod extent;
mod fingerprint;
mod hash;
mod index;
mod keyrange;
mod merge;
mod meta;
mod metrics;
mod open;
mod overlap;
mod range;
mod record;
mod records;
mod reply;
mod request;
mod scan;
mod shared;
mod state;
mod sweep;
mod txn;
mod validate;
mod view;
mod watch;
mod writer;

pub use error::{CheckError, Corruption, OpenError, ReadError, Rejection, SweepError, WriteError};
pub use keyrange::{EmptyKey, KeyRange, RangeEnd};
pub use meta::{FIRST_REVISION, NEVER_COMPACTED};
pub use record::{Record, RecordError, RecordParts};
pub use reply::{Answers, DeleteReply, OpReply, PutReply, RangeResult, TxnReply};
pub use request::{
    Compare, CompareResult, CompareTarget, DeleteRequest, Op, PutRequest, RangeOptions, RangeRequest, SortOrder,
    SortTarget, TxnRequest,
};
pub use sweep::{SweepLimits, SweepObserver, SweepProgress};
pub use validate::{Invalid, MAX_TXN_DEPTH};
pub use view::{RangeRoot, Reader, View};
pub use watch::*;
pub use {hash::HashKv, index::Revision, metrics::Metrics, scan::Scan, txn::Plan, writer::Writer};
pub use {open::Options, open::open, open::open_with_leases};
