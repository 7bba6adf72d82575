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
        self.act_revoke(index, id, batch)?;
        Ok(Ok(Reply::Done))
    }

    /// Revokes those leases that there still are, each in a revision of its own.
    pub(super) fn expire(&mut self, index: u64, ids: &[i64], batch: &mut WriteBatch) -> Result<Reply, Fatal> {
        let mut revoked = 0;
        for id in ids {
            if self.leases.contains(*id) {
                self.act_revoke(index, *id, batch)?;
                revoked += 1;
            }
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

    /// Deletes the attached keys in ascending order, as one revision, then the lease.
    fn act_revoke(&mut self, index: u64, id: i64, batch: &mut WriteBatch) -> Result<(), Fatal> {
        let from = self.kv.staged().len();
        // No stored key is empty, so every one of them is a range.
        let ranges = self.leases.keys(id).into_iter().filter_map(|key| KeyRange::single(key).ok());
        let deletes: Vec<Op> = ranges.map(|range| Op::Delete(DeleteRequest { range, prev_kv: false })).collect();
        if !deletes.is_empty() {
            let txn = TxnRequest { success: deletes, ..TxnRequest::default() };
            let plan = self.kv.check(&txn).map_err(|source: CheckError| Fatal::Check { index, source })?;
            self.kv.act(plan, &txn, batch).map_err(|source| Fatal::Write { index, source })?;
            self.follow(from);
        }
        self.leases.revoke(id, batch);
        self.lease_changes.push(LeaseChange::Revoked { id });
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
