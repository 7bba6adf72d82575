//! etcd's `HashKV`: a CRC-32C over all records up to a revision, in bytes that equal etcd's.
//!
//! ```text
//! crc32c( "key"  then for each record, in order:  main: u64 BE | '_' | sub: u64 BE [| 't' if tombstone]  KeyValue )
//! ```
//!
//! where a tombstone's `KeyValue` has its key alone. Left out are records that compaction dropped, whether or not the
//! sweep has been there; so the hash is a function of the history, as the hash of an etcd that has finished compacting.

use std::ops::ControlFlow;

use crc::{CRC_32_ISCSI, Crc, Digest, Table};
use tally_backend::Bucket;

use crate::error::{Corruption, ReadError, Rejection};
use crate::index::Revision;
use crate::keyrange::KeyRange;
use crate::record::{self, RecordParts};
use crate::view::{Reader, View};

const CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);
/// Records hashed before the iterator is given back, so that it pins no old files for long.
const PIECE_RECORDS: usize = 4_096;

/// What one hash is over.
#[derive(Clone, Copy)]
struct Pass {
    /// Records up to this revision are hashed.
    upto: i64,
    /// Of those up to the compaction revision, what was in force at this one. It is `upto`; but if no key is there at
    /// `upto`, etcd hashes all that is on disk, which is what was in force at the compaction revision.
    kept_at: i64,
}

/// What `HashKV` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    /// The CRC-32C.
    pub hash: u32,
    /// The revision up to which records were hashed.
    pub hash_revision: i64,
    /// The compaction revision of the state hashed.
    pub compact_revision: i64,
    /// The store's revision: etcd's header revision.
    pub revision: i64,
}

impl Reader {
    /// Hashes the newest state up to `revision`. See [`View::hash_kv`].
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv, ReadError> {
        self.view().hash_kv(revision)
    }
}

impl View {
    /// Hashes all records up to `revision` (zero or less: this state's own) that are not compacted, as etcd does.
    /// Reads all of them: linear in the data. Blocks; call it where that is allowed.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv, ReadError> {
        let (current, compacted) = (self.revision(), self.compact_revision());
        if revision > 0 && revision <= compacted {
            return Err(Rejection::Compacted { requested: revision, compacted }.into());
        }
        if revision > current {
            return Err(Rejection::FutureRevision { requested: revision, current }.into());
        }
        let upto = if revision > 0 { revision } else { current };
        let mut digest = CRC32C.digest();
        digest.update(b"key");
        let pass = Pass { upto, kept_at: if self.has_keys_at(upto) { upto } else { compacted } };
        let mut next = Some(Revision::new(0, 0));
        while let Some(from) = next {
            next = self.hash_piece(from, pass, &mut digest)?;
        }
        let swept = self.shared.overrun_by();
        if swept > compacted {
            return Err(ReadError::Overtaken { revision: current, swept });
        }
        Ok(HashKv { hash: digest.finalize(), hash_revision: upto, compact_revision: compacted, revision: current })
    }

    /// Hashes up to [`PIECE_RECORDS`] records and says where to go on.
    fn hash_piece(
        &self,
        from: Revision,
        pass: Pass,
        digest: &mut Digest<'_, u32, Table<16>>,
    ) -> Result<Option<Revision>, ReadError> {
        let (mut next, mut seen, mut failed) = (None, 0, None);
        let end = pass.upto.checked_add(1).map(|end| Revision::new(end, 0).to_key());
        let end = end.as_ref().map(|end| &end[..]);
        self.shared.records.backend.read().for_each(Bucket::Kv, &from.to_key(), end, |key, value| {
            let hashed = self.hash_record(key, value, pass, digest);
            seen += 1;
            match hashed {
                Ok(at) if seen >= PIECE_RECORDS => {
                    next = Some(Revision::new(at.main(), at.sub() + 1));
                    ControlFlow::Break(())
                }
                Ok(_) => ControlFlow::Continue(()),
                Err(corruption) => {
                    failed = Some(corruption);
                    ControlFlow::Break(())
                }
            }
        })?;
        failed.map_or(Ok(next), |corruption| Err(corruption.into()))
    }

    fn hash_record(
        &self,
        key: &[u8],
        value: &[u8],
        pass: Pass,
        digest: &mut Digest<'_, u32, Table<16>>,
    ) -> Result<Revision, Corruption> {
        let at = Revision::from_key(key).ok_or(Corruption::BadRevisionKey { length: key.len() })?;
        let parts = record::parse(value).map_err(|source| Corruption::Undecodable {
            main: at.main(),
            sub: at.sub(),
            source,
        })?;
        if at.main() <= self.compact_revision() && !self.survives(&parts, at, pass) {
            return Ok(at);
        }
        let tombstone = parts.version == 0;
        let mut etcd_key = *b"mmmmmmmm_sssssssst";
        etcd_key[..8].copy_from_slice(&at.main().to_be_bytes());
        etcd_key[9..17].copy_from_slice(&u64::from(at.sub()).to_be_bytes());
        digest.update(if tombstone { &etcd_key } else { &etcd_key[..17] });
        // The first field of a record is its key: that is all that etcd stores of a tombstone, and our mod revision,
        // which follows, is a varint field of one tag byte.
        let stored = if tombstone { key_field(value, &parts) } else { value };
        digest.update(stored);
        Ok(at)
    }

    /// Of the records up to the compaction revision, etcd hashes those that a compaction at the hashed revision would
    /// keep, leaving out tombstones.
    fn survives(&self, parts: &RecordParts<'_>, at: Revision, pass: Pass) -> bool {
        let found = self.at.tree.get(parts.key).and_then(|history| history.at(pass.kept_at));
        found.is_some_and(|rev| rev.at == at && !rev.is_tombstone())
    }

    fn has_keys_at(&self, revision: i64) -> bool {
        let mut any = false;
        self.state().walk_range(&KeyRange::all(), revision, |_| {
            any = true;
            ControlFlow::Break(())
        });
        any
    }
}

/// The encoded key field that a record begins with.
fn key_field<'a>(value: &'a [u8], parts: &RecordParts<'_>) -> &'a [u8] {
    let length_bytes = value[1..].iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
    &value[..1 + length_bytes + parts.key.len()]
}
