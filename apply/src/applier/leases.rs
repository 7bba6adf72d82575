//! Leases among the commands: what they do to the table, to the keys attached to them, and to those who follow the table.

use tally_backend::WriteBatch;
use tally_lease::Lease;
use tally_mvcc::{CheckError, DeleteRequest, KeyRange, Op, TxnRequest};

use super::{Applier, Fatal};
use crate::lease_feed::LeaseChange;
use crate::outcome::{Rejection, Reply};

impl Applier {
    pub(super) fn grant(&mut self, id: i64, ttl_s: i64, batch: &mut WriteBatch) -> Result<Reply, Rejection> {
        self.leases.check_grant(id, ttl_s)?;
        let lease = self.leases.grant(id, ttl_s, batch);
        self.lease_changes.push(LeaseChange::Granted { id, lease });
        Ok(Reply::LeaseGrant { ttl_s: lease.granted_s })
    }

    pub(super) fn revoke(
        &mut self,
        index: u64,
        id: i64,
        batch: &mut WriteBatch,
    ) -> Result<Result<Reply, Rejection>, Fatal> {
        if let Err(rejection) = self.leases.check_revoke(id) {
            return Ok(Err(rejection.into()));
        }
        let mut limit = self.limits.removed_bytes;
        let (deletes, is_all) = self.deletes_of(id, &mut limit);
        if !is_all {
            return Ok(Err(Rejection::RemovesTooMuch { limit: self.limits.removed_bytes }));
        }
        self.act_revoke(index, id, deletes, batch)?;
        Ok(Ok(Reply::Done))
    }

    /// Revokes those leases that there still are, each in a revision of its own. All of it is one atomic write: where that would
    /// delete too much, what is left, even of one lease's keys, is for the next command.
    pub(super) fn expire(&mut self, index: u64, ids: &[i64], batch: &mut WriteBatch) -> Result<Reply, Fatal> {
        let (mut revoked, mut limit) = (0, self.limits.removed_bytes);
        for id in ids {
            if !self.leases.contains(*id) {
                continue;
            }
            let (deletes, is_all) = self.deletes_of(*id, &mut limit);
            if !is_all {
                self.delete_attached(index, deletes, batch)?;
                break;
            }
            self.act_revoke(index, *id, deletes, batch)?;
            revoked += 1;
        }
        Ok(Reply::LeaseExpire { revoked })
    }

    pub(super) fn checkpoint(&mut self, remaining: &[(i64, i64)], batch: &mut WriteBatch) -> Reply {
        for (id, remaining_s) in remaining {
            if self.leases.checkpoint(*id, *remaining_s, batch)
                && let Some(Lease { remaining_s, .. }) = self.leases.get(*id)
            {
                self.lease_changes.push(LeaseChange::Noted { id: *id, remaining_s });
            }
        }
        Reply::Done
    }

    /// Deletes of the attached keys in ascending order, as many as may still be staged, and whether these are all. Takes what they
    /// stage from `limit`.
    fn deletes_of(&self, id: i64, limit: &mut u64) -> (Vec<Op>, bool) {
        let mut deletes = Vec::new();
        for key in self.leases.keys(id) {
            // No stored key is empty, so every one of them is a range.
            let Ok(range) = KeyRange::single(key) else { continue };
            let delete = DeleteRequest { range, prev_kv: false };
            match limit.checked_sub(self.kv.removed_bytes(&delete, u64::MAX)) {
                Some(left) => *limit = left,
                None => return (deletes, false),
            }
            deletes.push(Op::Delete(delete));
        }
        (deletes, true)
    }

    /// Deletes the attached keys as one revision, then the lease.
    fn act_revoke(&mut self, index: u64, id: i64, deletes: Vec<Op>, batch: &mut WriteBatch) -> Result<(), Fatal> {
        self.delete_attached(index, deletes, batch)?;
        self.leases.revoke(id, batch);
        self.lease_changes.push(LeaseChange::Revoked { id });
        Ok(())
    }

    fn delete_attached(&mut self, index: u64, deletes: Vec<Op>, batch: &mut WriteBatch) -> Result<(), Fatal> {
        if deletes.is_empty() {
            return Ok(());
        }
        let from = self.kv.staged().len();
        let txn = TxnRequest { success: deletes, ..TxnRequest::default() };
        let plan = self.kv.check(&txn).map_err(|source: CheckError| Fatal::Check { index, source })?;
        self.kv.act(plan, &txn, batch).map_err(|source| Fatal::Write { index, source })?;
        self.follow(from);
        Ok(())
    }

    /// Attaches and detaches what was written since `from` records were staged.
    pub(super) fn follow(&mut self, from: usize) {
        // Without leases nothing is attached, and nothing that was accepted names one.
        if self.leases.is_empty() {
            return;
        }
        for (_, record) in &self.kv.staged()[from..] {
            let parts = record.parts();
            self.leases.set(parts.key, parts.lease);
        }
    }
}
