//! A queue of keys: those who want something put a key with their lease under a common prefix, and whoever has the oldest
//! key has it. Locks and elections are this, with the very keys that etcd's have, so that clients of both see each other.
//!
//! **Invariant**: nobody is told that its turn has come before its own key has been read again, after the last older one
//! was gone. A lease that expired meanwhile took the key with it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tally_apply::{Command, Reply};
use tally_mvcc::{
    Compare, CompareResult, CompareTarget, DeleteRequest, Filters, KeyRange, Op, OpReply, PutRequest, RangeOptions,
    RangeRequest, Record, SortOrder, SortTarget, TxnReply, TxnRequest,
};

use crate::api::follow::{Followed, Follower};
use crate::api::kv::no_reply;
use crate::api::range::{self, Begun};
use crate::api::state::State;
use crate::error::ApiError;

/// The lease of a request that names none, in seconds, unless every lease has to be longer. Nobody keeps it alive.
const SESSION_TTL_S: i64 = 60;

/// How often the key of who waits no more is tried to be deleted, and the first pause between; each is twice the one before.
const LEAVING_ATTEMPTS: u32 = 10;
const LEAVING_AGAIN: Duration = Duration::from_millis(100);

const OTHER_REPLY: ApiError = ApiError::Defect { what: "a transaction was answered with the reply to another" };

/// Asks for the oldest key.
const OLDEST: RangeOptions = RangeOptions {
    limit: 1,
    sort_order: SortOrder::Ascend,
    sort_target: SortTarget::Create,
    keys_only: false,
    count_only: false,
    min_mod_revision: 0,
    max_mod_revision: 0,
    min_create_revision: 0,
    max_create_revision: 0,
};

/// The keys under one name.
pub(crate) struct Queue {
    state: Arc<State>,
    /// The name and a slash.
    prefix: Bytes,
}

/// A key in the queue.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: Bytes,
    /// Its place in the queue. It grows with every entry, so it can fence off whoever had the turn before.
    pub(crate) create_revision: i64,
    /// It was there before; with this value.
    pub(crate) found: Option<Bytes>,
    /// The store's revision when it entered.
    pub(crate) revision: i64,
    /// No older key was there at that revision.
    pub(crate) is_first: bool,
}

impl Queue {
    pub(crate) fn new(state: &Arc<State>, name: &[u8]) -> Queue {
        Queue { state: Arc::clone(state), prefix: Bytes::from([name, b"/"].concat()) }
    }

    /// The lease that was named, or a new one.
    pub(crate) async fn session(&self, lease: i64) -> Result<i64, ApiError> {
        if lease != 0 {
            return Ok(lease);
        }
        let id = random_id();
        let ttl_s = SESSION_TTL_S.max(self.state.lease_ttl_min_s);
        self.state.propose(&Command::LeaseGrant { id, ttl_s }).await?;
        Ok(id)
    }

    /// Puts the key of a lease into the queue, unless it is there.
    ///
    /// Who goes before this is answered leaves the key in the queue: another attempt with the same lease may have found it,
    /// and been told that its turn has come.
    pub(crate) async fn enter(&self, lease: i64, value: Bytes) -> Result<Entry, ApiError> {
        let key = Bytes::from([&self.prefix[..], lease_name(lease).as_bytes()].concat());
        let range = single(&key)?;
        let absent = Compare { range: range.clone(), result: CompareResult::Equal, target: CompareTarget::Create(0) };
        let put = PutRequest { lease, ..PutRequest::new(key.clone(), value) };
        let get = RangeRequest::latest(range);
        let oldest = RangeRequest { range: self.range()?, revision: 0, options: OLDEST };
        let reply = self.txn(TxnRequest {
            compares: vec![absent],
            success: vec![Op::Put(put), Op::Range(oldest.clone())],
            failure: vec![Op::Range(get), Op::Range(oldest)],
        });
        let TxnReply { succeeded, replies, revision } = reply.await?;
        let mut ranges = replies.into_iter().map(|reply| match reply {
            OpReply::Range(found) => found.kvs.into_iter().next(),
            _ => None,
        });
        let (found, oldest) = (ranges.next().flatten(), ranges.next().flatten());
        let create_revision = match &found {
            None if succeeded => revision,
            Some(record) => record.create_revision(),
            None => return Err(OTHER_REPLY),
        };
        let found = found.map(|record| Bytes::copy_from_slice(record.value()));
        let is_first = oldest.is_none_or(|oldest| oldest.create_revision() == create_revision);
        Ok(Entry { key, create_revision, found, revision, is_first })
    }

    /// Waits until no older key is left, then reads the entry's own key again: its record and the store's revision, or
    /// `None` if it is gone.
    pub(crate) async fn turn(&self, entry: &Entry) -> Result<(Option<Record>, i64), ApiError> {
        while let Some((older, revision)) = self.youngest_before(entry.create_revision).await? {
            self.gone(&older, revision).await?;
        }
        self.state.barrier().await?;
        let Begun { result, .. } = range::begin(&self.state, &RangeRequest::latest(single(&entry.key)?)).await?;
        let own = result.kvs.into_iter().next().filter(|own| own.create_revision() == entry.create_revision);
        Ok((own, result.revision))
    }

    /// The youngest of the keys that are older than a revision, and the revision of the store that says so. This member's
    /// state is enough: it holds the entry whose turn is asked for, and so everything older.
    async fn youngest_before(&self, create_revision: i64) -> Result<Option<(Bytes, i64)>, ApiError> {
        let options = RangeOptions {
            limit: 1,
            sort_order: SortOrder::Descend,
            sort_target: SortTarget::Create,
            max_create_revision: create_revision - 1,
            keys_only: true,
            ..RangeOptions::default()
        };
        let found = self.first(options).await?;
        Ok(found.0.map(|record| (Bytes::copy_from_slice(record.key()), found.1)))
    }

    /// The oldest key, whose turn it is, and the revision of the store.
    pub(crate) async fn oldest(&self) -> Result<(Option<Record>, i64), ApiError> {
        self.state.barrier().await?;
        self.first(OLDEST).await
    }

    async fn first(&self, options: RangeOptions) -> Result<(Option<Record>, i64), ApiError> {
        self.state.refuse_if_corrupt()?;
        let request = RangeRequest { range: self.range()?, revision: 0, options };
        let Begun { result, .. } = range::begin(&self.state, &request).await?;
        Ok((result.kvs.into_iter().next(), result.revision))
    }

    /// Waits until a key that was there at a revision is deleted.
    async fn gone(&self, key: &Bytes, revision: i64) -> Result<(), ApiError> {
        let deletes = Filters { no_put: true, no_delete: false };
        let mut follower = Follower::new(&self.state, single(key)?, revision + 1, deletes)?;
        match follower.next().await? {
            // Either way the queue is looked at again.
            Followed::Changes(_) | Followed::Compacted => Ok(()),
        }
    }

    /// All keys of the queue.
    pub(crate) fn range(&self) -> Result<KeyRange, ApiError> {
        let mut end = self.prefix.to_vec();
        // The prefix ends in a slash, so there is a next byte.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        KeyRange::new(self.prefix.clone(), end.into()).map_err(|_| ApiError::EmptyKey)
    }

    pub(crate) async fn txn(&self, request: TxnRequest) -> Result<TxnReply, ApiError> {
        let proposed = self.state.propose(&Command::Txn(request));
        match proposed.await? {
            (_, Reply::Txn(reply)) => Ok(reply),
            (_, other) => Err(no_reply(&other)),
        }
    }

    /// Does something with a key if it is still the one that was created then; the reply says whether it was.
    pub(crate) async fn if_still(&self, key: &Bytes, create_revision: i64, op: Op) -> Result<TxnReply, ApiError> {
        let range = single(key)?;
        let same = Compare { range, result: CompareResult::Equal, target: CompareTarget::Create(create_revision) };
        self.txn(TxnRequest { compares: vec![same], success: vec![op], failure: Vec::new() }).await
    }

    /// Takes the entry out of the queue when the guard is dropped before [`Leaving::stay`]: whoever waited is not waited
    /// for any more.
    pub(crate) fn leave_unless_told(&self, entry: &Entry) -> Leaving {
        Leaving { state: Some(Arc::clone(&self.state)), key: entry.key.clone(), create_revision: entry.create_revision }
    }
}

/// What etcd's clients call a lease in their keys: in hexadecimal, the sign before it.
fn lease_name(lease: i64) -> String {
    let sign = if lease < 0 { "-" } else { "" };
    format!("{sign}{:x}", lease.unsigned_abs())
}

/// Positive, and so improbable that nobody has it.
fn random_id() -> i64 {
    let random = uuid::Uuid::new_v4().as_u128() as i64;
    (random & i64::MAX).max(1)
}

pub(crate) fn single(key: &Bytes) -> Result<KeyRange, ApiError> {
    KeyRange::single(key.clone()).map_err(|_| ApiError::EmptyKey)
}

pub(crate) fn delete(key: &Bytes) -> Result<Op, ApiError> {
    Ok(Op::Delete(DeleteRequest { range: single(key)?, prev_kv: false }))
}

/// See [`Queue::leave_unless_told`].
pub(crate) struct Leaving {
    state: Option<Arc<State>>,
    key: Bytes,
    create_revision: i64,
}

impl Leaving {
    pub(crate) fn stay(mut self) {
        self.state = None;
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let Some(state) = self.state.take() else { return };
        let (key, create_revision) = (std::mem::take(&mut self.key), self.create_revision);
        tokio::spawn(async move {
            let queue = Queue { state, prefix: Bytes::new() };
            let mut pause = LEAVING_AGAIN;
            for left in (0..LEAVING_ATTEMPTS).rev() {
                let Ok(delete) = delete(&key) else { return };
                match queue.if_still(&key, create_revision, delete).await {
                    // Many may go at once, because the server has too much to do. Any other error is no reason to go on: a
                    // server that stops is not held up by this.
                    Err(ApiError::TooManyRequests) if left > 0 => {
                        tokio::time::sleep(pause).await;
                        pause *= 2;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a key of who waits no more may stay in its queue until its lease ends");
                        return;
                    }
                    Ok(_) => return,
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::lease_name;

    #[test]
    fn leases_are_named_as_in_the_keys_of_go() {
        for (lease, name) in
            [(0x6f0a, "6f0a"), (i64::MAX, "7fffffffffffffff"), (-7, "-7"), (i64::MIN, "-8000000000000000")]
        {
            assert_eq!(lease_name(lease), name);
        }
    }
}
