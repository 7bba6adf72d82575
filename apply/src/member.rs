//! Members: names and URLs as replicated state. Who votes is the log's business (`Applied::membership`), not this one's.

use std::collections::BTreeMap;

use bytes::BytesMut;
use tally_backend::{Bucket, ReadTx, WriteBatch};

use crate::applier::OpenError;
use crate::codec::Fields;
use crate::root::{self, Part};

/// What clients and operators know of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Never used again once removed.
    pub id: u64,
    /// The `--name` it started with; empty until it has started.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
}

/// The members by id, with their part of the state root.
#[derive(Clone, Debug, Default)]
pub(crate) struct Members {
    by_id: BTreeMap<u64, Member>,
    sum: u128,
}

impl Members {
    pub(crate) fn load(tx: &ReadTx) -> Result<Self, OpenError> {
        let mut members = Self::default();
        for item in tx.scan(Bucket::Member, &[], None) {
            let (key, value) = item?;
            let member = crate::decode::member(Fields::new(value))
                .map_err(|source| OpenError::Member { key: key.to_vec(), source })?;
            if key[..] != member.id.to_be_bytes() {
                return Err(OpenError::Corrupt { what: "member record", key: key.to_vec() });
            }
            members.insert(member);
        }
        Ok(members)
    }

    pub(crate) fn list(&self) -> Vec<Member> {
        self.by_id.values().cloned().collect()
    }

    pub(crate) fn sum(&self) -> u128 {
        self.sum
    }

    pub(crate) fn set(&mut self, member: Member, batch: &mut WriteBatch) {
        batch.put(Bucket::Member, &member.id.to_be_bytes(), &encode(&member));
        self.insert(member);
    }

    fn insert(&mut self, member: Member) {
        self.sum = self.sum.wrapping_add(print(&member));
        if let Some(old) = self.by_id.insert(member.id, member) {
            self.sum = self.sum.wrapping_sub(print(&old));
        }
    }
}

fn encode(member: &Member) -> BytesMut {
    let mut value = BytesMut::new();
    crate::encode::member(member, &mut value);
    value
}

fn print(member: &Member) -> u128 {
    root::print(Part::Member, &member.id.to_be_bytes(), &encode(member))
}
