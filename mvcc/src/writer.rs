//! Writing: check, then act. One writer owns the working state; what it stages becomes visible by `publish`.

use std::sync::Arc;

use bytes::Bytes;
use tally_backend::{Bucket, WriteBatch};

use crate::error::{CheckError, Rejection, WriteError};
use crate::fingerprint::fingerprint;
use crate::index::{Rev, Revision, Tree};
use crate::meta;
use crate::record::{Record, RecordParts};
use crate::reply::{Allowance, Answers, DeleteReply, OpReply, PutReply, TxnReply};
use crate::request::{DeleteRequest, Op, PutRequest, TxnRequest};
use crate::shared::{Dropped, Epoch, Published, Shared, root};
use crate::state::State;
use crate::txn::{Plan, next_on};

/// The most records of one publication that are cached: what a few hundred clients write at a time.
const CACHED_MAX: usize = 256;

/// The one writer of a store.
///
/// For each request: *check* it, which may refuse but changes nothing; then *act*, which cannot refuse, and puts the
/// effects into a batch. Later requests see what earlier ones staged. For each chunk of requests: [`Writer::stage_meta`],
/// commit the batch, then [`Writer::publish`].
///
/// **Invariant**: after an error of an acting method, or of a commit, the writer's state is ahead of the backend and
/// must not be used; stop the process and open the store again.
pub struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) tree: Tree,
    pub(crate) revision: i64,
    pub(crate) compact: i64,
    /// Records of the batch that is not committed yet, in ascending order.
    pub(crate) staged: Vec<(Revision, Record)>,
    /// What compactions dropped since the last publication.
    pub(crate) dropped: Dropped,
    pub(crate) epoch: Arc<Epoch>,
    /// The revision that the meta bucket has, or will have after the commit of the present batch.
    pub(crate) persisted: i64,
    /// What may still be read for replies.
    pub(crate) allowance: Allowance,
    /// What could be read for them at first.
    pub(crate) allowed: usize,
}

/// The revision that a request writes: `main` for all of it, one `sub` for each change.
struct Turn {
    main: i64,
    sub: u32,
}

impl Turn {
    fn changed(&self) -> bool {
        self.sub > 0
    }

    fn next(&mut self) -> Revision {
        let revision = Revision::new(self.main, self.sub);
        self.sub += 1;
        revision
    }
}

impl Writer {
    /// The current revision, staged writes included.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The compaction revision, staged compactions included; [`NEVER_COMPACTED`](crate::NEVER_COMPACTED) at first.
    pub fn compact_revision(&self) -> i64 {
        self.compact
    }

    /// The root of the working state: a hash of the whole history that is not compacted, with the current and the
    /// compaction revision. O(1).
    pub fn root(&self) -> u128 {
        root(self.tree.sum(), self.revision, self.compact)
    }

    /// What the replies of all that is done from now on, until the next call, may hold of what requests want to read. A
    /// replica that nobody waits on need not read it, and a small request must not make one read without end. At first
    /// replies hold everything.
    ///
    /// Nothing else depends on it.
    pub fn answer(&mut self, answers: Answers) {
        self.allowance = answers.into();
        self.allowed = if let Answers::UpTo(bytes) = answers { bytes } else { 0 };
    }

    /// What was read since the last [`Writer::answer`] that set a limit, in bytes; 0 if nothing was to be read or too much.
    pub fn answered_bytes(&self) -> usize {
        match self.allowance {
            Allowance::Bytes(left) => self.allowed - left,
            Allowance::Unwanted | Allowance::Exceeded => 0,
        }
    }

    /// Whether more was to be read since the last [`Writer::answer`] than it allowed. Then what was done is done like
    /// anything else, but in the replies records are missing.
    pub fn answer_was_cut(&self) -> bool {
        self.allowance == Allowance::Exceeded
    }

    /// Checks a transaction, taking every lease to exist.
    pub fn check(&self, txn: &TxnRequest) -> Result<Plan, CheckError> {
        self.check_with_leases(txn, &|_| true)
    }

    /// Checks everything that can refuse a transaction, in the order of its operations along the path that its compares
    /// take, so that the first mistake decides the answer, as in etcd 3.6 and later. `lease_exists` must answer from replicated state alone.
    pub fn check_with_leases(&self, txn: &TxnRequest, lease_exists: &dyn Fn(i64) -> bool) -> Result<Plan, CheckError> {
        self.state(self.revision).check_txn(txn, lease_exists)
    }

    /// Checks a put, taking its lease to exist.
    pub fn check_put(&self, put: &PutRequest) -> Result<(), CheckError> {
        self.check_put_with_leases(put, &|_| true)
    }

    /// Checks a put. `lease_exists` must answer from replicated state alone.
    pub fn check_put_with_leases(
        &self,
        put: &PutRequest,
        lease_exists: &dyn Fn(i64) -> bool,
    ) -> Result<(), CheckError> {
        Ok(self.state(self.revision).check_put(put, lease_exists)?)
    }

    /// Does a transaction that was just checked. It makes one revision if it changes anything.
    ///
    /// # Panics
    /// If anything was written since `plan` was made: acting on it could give wrong answers.
    pub fn act(&mut self, plan: Plan, txn: &TxnRequest, batch: &mut WriteBatch) -> Result<TxnReply, WriteError> {
        assert_eq!(plan.revision, self.revision, "a plan must be acted on before anything else is written");
        let mut turn = self.turn();
        let mut operations = 0;
        let reply = self.run(txn, &mut plan.path.iter().copied(), &mut turn, &mut operations, batch)?;
        if operations > 1 {
            self.shared.metrics.txns.add(1);
        }
        self.finish(turn);
        Ok(reply)
    }

    /// Does a put that was just checked.
    pub fn put(&mut self, put: &PutRequest, batch: &mut WriteBatch) -> Result<PutReply, WriteError> {
        let mut turn = self.turn();
        let reply = self.write_put(put, &mut turn, batch)?;
        self.finish(turn);
        Ok(reply)
    }

    /// Deletes a range. Nothing can refuse it. O(keys deleted) in time and memory.
    pub fn delete_range(&mut self, delete: &DeleteRequest, batch: &mut WriteBatch) -> Result<DeleteReply, WriteError> {
        let mut turn = self.turn();
        let reply = self.write_delete(delete, &mut turn, batch)?;
        self.finish(turn);
        Ok(reply)
    }

    /// Checks a compaction: it must be beyond the last one and not beyond the current revision.
    pub fn check_compact(&self, revision: i64) -> Result<(), Rejection> {
        if revision <= self.compact {
            return Err(Rejection::Compacted { requested: revision, compacted: self.compact });
        }
        if revision > self.revision {
            return Err(Rejection::FutureRevision { requested: revision, current: self.revision });
        }
        Ok(())
    }

    /// Compacts the history up to `revision`, which was just checked: of each key, only what it had at `revision` and
    /// what came later remains (a tombstone only if it is of `revision` itself). The records are deleted later, by
    /// [`Reader::sweep`](crate::Reader::sweep). Costs in proportion to the keys with something to drop.
    pub fn compact(&mut self, revision: i64, batch: &mut WriteBatch) -> Result<(), WriteError> {
        let dropped = &mut self.dropped;
        self.tree.compact(revision, |_, revs| dropped.add(revs.iter().map(|rev| rev.at)));
        self.compact = revision;
        self.epoch = Arc::new(Epoch);
        self.shared.metrics.compactions.add(1);
        meta::put_compact(batch, revision);
        Ok(())
    }

    /// Adds the current revision to the batch, if it changed. Call it once per batch, before the commit.
    pub fn stage_meta(&mut self, batch: &mut WriteBatch) {
        if self.persisted != self.revision {
            meta::put_revision(batch, self.revision);
            self.persisted = self.revision;
        }
    }

    /// The records written since the last [`Writer::publish`], in the order of their revisions.
    pub fn staged(&self) -> &[(Revision, Record)] {
        &self.staged
    }

    /// Shows readers the working state, then tells watchers what changed. Call it after the commit of the batch with
    /// everything staged so far.
    pub fn publish(&mut self) {
        // Readers first: whoever hears of a revision must be able to read it.
        if self.show() {
            self.tell();
        }
    }

    /// The half that readers see; whether there was anything to show.
    pub(crate) fn show(&mut self) -> bool {
        let seen = self.shared.published.load();
        if seen.revision == self.revision && seen.compact == self.compact {
            return false;
        }
        drop(seen);
        self.cache_staged();
        let next = Published {
            tree: self.tree.clone(),
            revision: self.revision,
            compact: self.compact,
            epoch: Arc::clone(&self.epoch),
        };
        self.shared.publish(next, std::mem::replace(&mut self.dropped, Dropped::none()));
        true
    }

    /// The half that watchers hear of.
    pub(crate) fn tell(&mut self) {
        self.shared.hub.publish(&self.staged, self.revision);
        self.staged.clear();
    }

    /// The working state, with `revision` as the newest in it.
    pub(crate) fn state(&self, revision: i64) -> State<'_> {
        State {
            tree: &self.tree,
            revision,
            compact: self.compact,
            records: &self.shared.records,
            staged: &self.staged,
            metrics: &self.shared.metrics,
        }
    }

    fn turn(&self) -> Turn {
        Turn { main: self.revision + 1, sub: 0 }
    }

    fn finish(&mut self, turn: Turn) {
        self.revision = self.revision_in(&turn);
    }

    /// The newest revision as an operation within a turn sees it.
    fn revision_in(&self, turn: &Turn) -> i64 {
        if turn.changed() { turn.main } else { self.revision }
    }

    fn run(
        &mut self,
        txn: &TxnRequest,
        path: &mut dyn Iterator<Item = bool>,
        turn: &mut Turn,
        operations: &mut usize,
        batch: &mut WriteBatch,
    ) -> Result<TxnReply, WriteError> {
        let succeeded = next_on(path);
        let ops = txn.branch(succeeded);
        *operations += ops.len();
        let mut replies = Vec::with_capacity(ops.len());
        for op in ops {
            replies.push(match op {
                Op::Put(put) => OpReply::Put(self.write_put(put, turn, batch)?),
                Op::Delete(delete) => OpReply::Delete(self.write_delete(delete, turn, batch)?),
                Op::Txn(nested) => OpReply::Txn(self.run(nested, path, turn, operations, batch)?),
                Op::Range(range) => {
                    let mut allowance = self.allowance;
                    let state = self.state(self.revision_in(turn));
                    // The check found the revision readable before this transaction, and nothing takes that away.
                    let at = if range.revision > 0 { range.revision } else { state.revision };
                    let result = state.range_allowed(range, at, &mut allowance)?;
                    self.allowance = allowance;
                    OpReply::Range(result)
                }
            });
        }
        Ok(TxnReply { succeeded, replies, revision: self.revision_in(turn) })
    }

    fn write_put(&mut self, put: &PutRequest, turn: &mut Turn, batch: &mut WriteBatch) -> Result<PutReply, WriteError> {
        let metrics = &self.shared.metrics;
        metrics.puts.add(1);
        let state = self.state(self.revision_in(turn));
        let replaced = state.lookup(&put.key, state.revision);
        let shown = put.prev_kv && self.allowance.is_open();
        let previous = match replaced {
            Some(rev) if shown || put.ignore_value || put.ignore_lease => Some(state.fetch(rev)?),
            Some(_) | None => None,
        };
        // What is to be kept exists, by the check. Were it deleted by this same transaction (which validation
        // forbids), the new record starts from nothing, on every replica alike.
        let kept = previous.as_ref().map(Record::parts).unwrap_or_default();
        let revision = turn.next();
        let (create_revision, version) = replaced.map_or((turn.main, 1), |rev| (rev.create, rev.version + 1));
        let record = Record::encode(&RecordParts {
            key: &put.key,
            create_revision,
            mod_revision: turn.main,
            version,
            value: if put.ignore_value { kept.value } else { &put.value },
            lease: if put.ignore_lease { kept.lease } else { put.lease },
        });
        self.stage(revision, record, batch);
        let prev_kv = previous.filter(|record| shown && self.allowance.take(record.bytes().len()));
        Ok(PutReply { prev_kv, revision: turn.main })
    }

    fn write_delete(
        &mut self,
        delete: &DeleteRequest,
        turn: &mut Turn,
        batch: &mut WriteBatch,
    ) -> Result<DeleteReply, WriteError> {
        self.shared.metrics.deletes.add(1);
        let state = self.state(self.revision_in(turn));
        let (mut keys, mut revs) = (Vec::<Bytes>::new(), Vec::new());
        if delete.range.is_single() {
            if let Some(rev) = state.lookup(delete.range.start(), state.revision) {
                keys.push(delete.range.key().clone());
                revs.push(rev);
            }
        } else {
            state.walk(delete.range.start(), delete.range.upper(), state.revision, |key, rev| {
                keys.push(key.to_vec().into());
                revs.push(rev);
                std::ops::ControlFlow::Continue(())
            });
        }
        let mut allowance = self.allowance;
        let prev_kvs = if delete.prev_kv { state.fetch_allowed(&revs, &mut allowance)? } else { Vec::new() };
        self.allowance = allowance;
        let deleted = keys.len() as i64;
        for key in keys {
            let revision = turn.next();
            self.stage(revision, Record::tombstone(&key, turn.main), batch);
        }
        Ok(DeleteReply { deleted, prev_kvs, revision: self.revision_in(turn) })
    }

    /// Keeps what was written for those who read it next. Of much at once, which is a replica that catches up and not
    /// clients who write, nobody is known to want any.
    fn cache_staged(&self) {
        if self.staged.len() <= CACHED_MAX {
            let kept = self.staged.iter().filter(|(_, record)| !record.is_tombstone());
            kept.for_each(|(at, record)| self.shared.records.cache.insert(*at, record));
        }
    }

    /// Enters one new record everywhere: index, batch, and where later requests of this batch find it.
    fn stage(&mut self, at: Revision, record: Record, batch: &mut WriteBatch) {
        let parts = record.parts();
        let print = fingerprint(parts.key, at, parts.create_revision, parts.version, parts.lease, parts.value);
        let rev = Rev { at, create: parts.create_revision, version: parts.version, print };
        self.tree.insert(parts.key, rev);
        self.shared.metrics.put_bytes.add(if rev.is_tombstone() {
            0
        } else {
            (parts.key.len() + parts.value.len()) as u64
        });
        batch.put(Bucket::Kv, &at.to_key(), record.bytes());
        self.staged.push((at, record));
    }
}

impl Drop for Writer {
    /// Nothing will be published any more: who watches has to look for the store's successor.
    fn drop(&mut self) {
        self.shared.hub.close();
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Writer").field("revision", &self.revision).field("compact", &self.compact).finish()
    }
}
