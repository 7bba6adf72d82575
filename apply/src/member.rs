//! Members: what each says about itself, as replicated state, and which ids are used up. Who is a member, who votes and where
//! its peers reach it is the log's business (`Applied::membership`), not this one's.
//!
//! The member bucket holds one record per id, under the id (8 bytes big-endian): the member's fields, or the tombstone of one
//! that was removed. A tombstone is never overwritten or deleted.

use std::collections::BTreeMap;

use bytes::BytesMut;
use tally_backend::{Bucket, ReadTx, WriteBatch};

use crate::applier::OpenError;
use crate::outcome::Rejection;
use crate::root::{self, Part};

/// The directory of a member that has not said which one it runs on.
pub(crate) const NO_DIRECTORY: [u8; 16] = [0; 16];

/// What a member says about itself once it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Never used again once removed.
    pub id: u64,
    /// The `--name` it started with.
    pub name: String,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// The UUID of its data directory; all zero in records of versions that did not write it. Once known it stays: a member
    /// that comes with another directory has lost what it had acknowledged.
    pub directory: [u8; 16],
}

/// What the bucket holds for an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Member(Member),
    Removed { id: u64 },
}

/// The records by id, with their part of the state root.
#[derive(Clone, Debug, Default)]
pub(crate) struct Members {
    by_id: BTreeMap<u64, Record>,
    sum: u128,
}

impl Members {
    /// Reads the bucket. The second value is the part of the root over the records as they are stored, which differs from
    /// [`Self::sum`] where a record still holds fields that have been retired since.
    pub(crate) fn load(tx: &ReadTx) -> Result<(Self, u128), OpenError> {
        let (mut members, mut as_stored) = (Self::default(), 0u128);
        for item in tx.scan(Bucket::Member, &[], None) {
            let (key, value) = item?;
            as_stored = as_stored.wrapping_add(root::print(Part::Member, &key, &value));
            let record = crate::decode::member_record(value)
                .map_err(|source| OpenError::Member { key: key.to_vec(), source })?;
            if key[..] != record.id().to_be_bytes() {
                return Err(OpenError::Corrupt { what: "member record", key: key.to_vec() });
            }
            members.insert(record);
        }
        Ok((members, as_stored))
    }

    /// The members that have said something about themselves and were not removed.
    pub(crate) fn list(&self) -> Vec<Member> {
        self.by_id.values().filter_map(Record::member).cloned().collect()
    }

    /// The ids of those that were removed, ascending.
    pub(crate) fn removed(&self) -> Vec<u64> {
        self.by_id.values().filter(|record| record.member().is_none()).map(Record::id).collect()
    }

    pub(crate) fn sum(&self) -> u128 {
        self.sum
    }

    /// A removed id never comes back, and a member never changes its data directory.
    pub(crate) fn check_set(&self, member: &Member) -> Result<(), Rejection> {
        let id = member.id;
        match self.by_id.get(&id) {
            None => Ok(()),
            Some(Record::Removed { .. }) => Err(Rejection::MemberRemoved { id }),
            Some(Record::Member(known)) => {
                let same = known.directory == NO_DIRECTORY || known.directory == member.directory;
                if same { Ok(()) } else { Err(Rejection::MemberDirectory { id }) }
            }
        }
    }

    /// Records a member that [`Self::check_set`] has accepted.
    pub(crate) fn set(&mut self, member: Member, batch: &mut WriteBatch) {
        self.write(Record::Member(member), batch);
    }

    /// Leaves a tombstone, whether or not the member is known; a second removal changes nothing.
    pub(crate) fn remove(&mut self, id: u64, batch: &mut WriteBatch) {
        self.write(Record::Removed { id }, batch);
    }

    fn write(&mut self, record: Record, batch: &mut WriteBatch) {
        batch.put(Bucket::Member, &record.id().to_be_bytes(), &record.encode());
        self.insert(record);
    }

    fn insert(&mut self, record: Record) {
        self.sum = self.sum.wrapping_add(record.print());
        if let Some(old) = self.by_id.insert(record.id(), record) {
            self.sum = self.sum.wrapping_sub(old.print());
        }
    }
}

impl Record {
    fn id(&self) -> u64 {
        match self {
            Self::Member(member) => member.id,
            Self::Removed { id } => *id,
        }
    }

    fn member(&self) -> Option<&Member> {
        match self {
            Self::Member(member) => Some(member),
            Self::Removed { .. } => None,
        }
    }

    fn encode(&self) -> BytesMut {
        let mut value = BytesMut::new();
        match self {
            Self::Member(member) => crate::encode::member(member, &mut value),
            Self::Removed { id } => crate::encode::tombstone(*id, &mut value),
        }
        value
    }

    /// Over what the record says today, not over the stored bytes: replicas whose records were written by different versions
    /// must agree.
    fn print(&self) -> u128 {
        root::print(Part::Member, &self.id().to_be_bytes(), &self.encode())
    }
}
