//! The store's own figures in the meta bucket. Each is a version byte, then fixed-width big-endian fields.
//!
//! ```text
//! mvcc.revision  | 1 | current revision: i64 |
//! mvcc.compact   | 1 | compaction revision: i64 |
//! mvcc.swept     | 1 | compaction the sweep works for: i64 | next record to look at: main i64, sub u32 |
//! ```
//!
//! The current revision is kept for itself because the records that would tell it may have been compacted away.

use tally_backend::{Backend, Bucket, StorageError, WriteBatch};

use crate::error::{Corruption, OpenError};
use crate::index::Revision;

const VERSION: u8 = 1;
const REVISION: &str = "mvcc.revision";
const COMPACT: &str = "mvcc.compact";
const SWEPT: &str = "mvcc.swept";

/// The compact revision of a store that never was compacted: below every revision that can be asked for.
pub const NEVER_COMPACTED: i64 = -1;
/// The current revision of an empty store; the first write makes the next one.
pub const FIRST_REVISION: i64 = 1;

/// How far the sweep is. It is done with the compaction once `next` is beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Swept {
    pub(crate) target: i64,
    pub(crate) next: Revision,
}

/// The figures a store is opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) revision: i64,
    pub(crate) compact: i64,
    pub(crate) swept: Swept,
}

impl Swept {
    /// Nothing is left to sweep up to `target`.
    pub(crate) fn finished(target: i64) -> Swept {
        Swept { target, next: Revision::new(target + 1, 0) }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.next.main() > self.target
    }
}

pub(crate) fn read(backend: &Backend) -> Result<Figures, OpenError> {
    let revision = read_one(backend, REVISION)?.map_or(FIRST_REVISION, i64::from_be_bytes);
    let compact = read_one(backend, COMPACT)?.map_or(NEVER_COMPACTED, i64::from_be_bytes);
    let swept = match read_one::<20>(backend, SWEPT)? {
        None => Swept::finished(NEVER_COMPACTED),
        Some(fields) => {
            let (target, next) = fields.split_at(8);
            let bad = || Corruption::BadMeta { name: SWEPT, length: 21, version: Some(VERSION) };
            let target = i64::from_be_bytes(target.try_into().map_err(|_| bad())?);
            Swept { target, next: Revision::from_key(next).ok_or_else(bad)? }
        }
    };
    Ok(Figures { revision, compact, swept })
}

pub(crate) fn put_revision(batch: &mut WriteBatch, revision: i64) {
    put_one(batch, REVISION, &revision.to_be_bytes());
}

pub(crate) fn put_compact(batch: &mut WriteBatch, compact: i64) {
    put_one(batch, COMPACT, &compact.to_be_bytes());
}

pub(crate) fn put_swept(batch: &mut WriteBatch, swept: Swept) {
    let mut fields = [0; 20];
    fields[..8].copy_from_slice(&swept.target.to_be_bytes());
    fields[8..].copy_from_slice(&swept.next.to_key());
    put_one(batch, SWEPT, &fields);
}

fn put_one(batch: &mut WriteBatch, name: &str, fields: &[u8]) {
    let mut value = [VERSION; 21];
    value[1..=fields.len()].copy_from_slice(fields);
    batch.put(Bucket::Meta, name.as_bytes(), &value[..=fields.len()]);
}

fn read_one<const N: usize>(backend: &Backend, name: &'static str) -> Result<Option<[u8; N]>, OpenError> {
    let found: Result<_, StorageError> = backend.get(Bucket::Meta, name.as_bytes());
    let Some(value) = found? else { return Ok(None) };
    let version = value.first().copied();
    let bad = Corruption::BadMeta { name, length: value.len(), version };
    match version {
        Some(VERSION) => Ok(Some(value[1..].try_into().map_err(|_| bad)?)),
        Some(_) | None => Err(bad.into()),
    }
}
