//! The replicated table, as the one who applies commands has it.
//!
//! Leases are records of the lease bucket. Attachments are not stored here: every key-value record names its lease, so they
//! are told to the table as records are loaded ([`Leases::restore`]) and written ([`Leases::set`]).
//!
//! **Invariant**: a check may refuse and changes nothing; what was checked cannot be refused.
//! **Invariant**: a key is attached to one lease at most, and that lease is in the table.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tally_backend::{Bucket, ReadTx, WriteBatch};

use crate::error::{OpenError, Rejection};
use crate::lease::{Lease, TTL_MAX_S, id_of, print, record_key};
use crate::metrics::Metrics;
use crate::view::LeaseView;

/// All leases with the keys attached to them.
#[derive(Debug, Default)]
pub struct Leases {
    view: LeaseView,
    /// The lease of each attached key.
    attached: BTreeMap<Bytes, i64>,
    sum: u128,
    metrics: Arc<Metrics>,
}

impl Leases {
    /// Reads the bucket. The attachments are to be added by [`Leases::restore`]. O(leases).
    ///
    /// # Errors
    /// [`OpenError::Storage`], [`OpenError::Corrupt`].
    pub fn load(tx: &ReadTx) -> Result<Leases, OpenError> {
        let mut leases = Leases::default();
        for item in tx.scan(Bucket::Lease, &[], None) {
            let (key, record) = item?;
            let (Some(id), Some(lease)) = (id_of(&key), Lease::decode(&record)) else {
                return Err(OpenError::Corrupt { key: key.to_vec() });
            };
            leases.put(id, lease);
        }
        Ok(leases)
    }

    /// Adds an attachment that a stored record has. O(log n).
    ///
    /// # Errors
    /// [`OpenError::Dangling`] if there is no such lease.
    pub fn restore(&mut self, key: &[u8], lease: i64) -> Result<(), OpenError> {
        if !self.contains(lease) {
            return Err(OpenError::Dangling { key: key.to_vec(), lease });
        }
        self.attach(Bytes::copy_from_slice(key), lease);
        Ok(())
    }

    /// Whether there is this lease. O(log n).
    pub fn contains(&self, id: i64) -> bool {
        self.get(id).is_some()
    }

    /// The lease. O(log n).
    pub fn get(&self, id: i64) -> Option<Lease> {
        self.view.get(id)
    }

    /// Whether there are no leases, and so no attachments.
    pub fn is_empty(&self) -> bool {
        self.view.is_empty()
    }

    /// The sum of the leases' fingerprints (mod 2^128): equal tables have equal sums. Attachments are in the key-value
    /// records and so in their root. O(1).
    pub fn sum(&self) -> u128 {
        self.sum
    }

    /// What readers may look at: the table as it is now, whatever happens to it later. O(1).
    pub fn view(&self) -> LeaseView {
        self.view.clone()
    }

    /// What has been counted since the table was opened.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Whether a lease may be granted.
    ///
    /// # Errors
    /// [`Rejection::TtlTooLarge`], [`Rejection::Exists`]; [`Rejection::NotFound`] for id 0, which is no lease.
    pub fn check_grant(&self, id: i64, ttl_s: i64) -> Result<(), Rejection> {
        if id == 0 {
            return Err(Rejection::NotFound(id));
        }
        if ttl_s > TTL_MAX_S {
            return Err(Rejection::TtlTooLarge { asked_s: ttl_s });
        }
        if self.contains(id) { Err(Rejection::Exists(id)) } else { Ok(()) }
    }

    /// Grants a lease that was just checked, of at least a second. O(log n).
    pub fn grant(&mut self, id: i64, ttl_s: i64, batch: &mut WriteBatch) -> Lease {
        let lease = Lease::granted(ttl_s.max(1));
        self.write(id, lease, batch);
        self.metrics.granted(lease.granted_s);
        lease
    }

    /// Whether a lease may be revoked.
    ///
    /// # Errors
    /// [`Rejection::NotFound`].
    pub fn check_revoke(&self, id: i64) -> Result<(), Rejection> {
        if self.contains(id) { Ok(()) } else { Err(Rejection::NotFound(id)) }
    }

    /// The keys attached to a lease, ascending: to be deleted in this order, by all replicas alike. O(answer + log n).
    pub fn keys(&self, id: i64) -> Vec<Bytes> {
        self.view.keys(id).collect()
    }

    /// How many keys are attached to a lease, counted no farther than `most`. O(answer + log n).
    pub fn keys_up_to(&self, id: i64, most: u64) -> u64 {
        self.view.keys(id).take(usize::try_from(most).unwrap_or(usize::MAX)).count() as u64
    }

    /// Revokes a lease that was just checked, and detaches what is still attached to it. O((1 + attached) · log n).
    pub fn revoke(&mut self, id: i64, batch: &mut WriteBatch) {
        for key in self.keys(id) {
            self.detach(&key);
        }
        if let Some(lease) = self.view.remove(id) {
            self.sum = self.sum.wrapping_sub(print(id, &lease));
            self.metrics.revoked.add(1);
            batch.delete(Bucket::Lease, &record_key(id));
        }
    }

    /// Notes what is left of a lease, in seconds, or that it has its whole time again (0). False, and nothing changes, if
    /// there is no such lease or it says so already. O(log n).
    pub fn checkpoint(&mut self, id: i64, remaining_s: i64, batch: &mut WriteBatch) -> bool {
        let Some(lease) = self.get(id) else { return false };
        let noted = Lease { remaining_s: remaining_s.clamp(0, lease.granted_s), ..lease };
        if noted == lease {
            return false;
        }
        self.write(id, noted, batch);
        true
    }

    /// Follows a record that was just written: `key` is attached to `lease`, or to none (0) if it was deleted or put
    /// without one. O(log n); O(1) while nothing is attached.
    pub fn set(&mut self, key: &[u8], lease: i64) {
        if lease != 0 {
            self.attach(Bytes::copy_from_slice(key), lease);
        } else if !self.attached.is_empty() {
            self.detach(key);
        }
    }

    /// Attaches a key to a lease that there is, and detaches it from any other. O(log n).
    pub fn attach(&mut self, key: Bytes, lease: i64) {
        debug_assert!(self.contains(lease), "keys are attached to leases that were checked to exist");
        match self.attached.insert(key.clone(), lease) {
            Some(same) if same == lease => {}
            Some(other) => {
                self.view.detach(other, &key);
                self.view.attach(lease, key);
            }
            None => self.view.attach(lease, key),
        }
    }

    /// Detaches a key from its lease, if it has one. O(log n).
    pub fn detach(&mut self, key: &[u8]) {
        if let Some((key, lease)) = self.attached.remove_entry(key) {
            self.view.detach(lease, &key);
        }
    }

    fn write(&mut self, id: i64, lease: Lease, batch: &mut WriteBatch) {
        batch.put(Bucket::Lease, &record_key(id), &lease.encode());
        self.put(id, lease);
    }

    fn put(&mut self, id: i64, lease: Lease) {
        self.sum = self.sum.wrapping_add(print(id, &lease));
        if let Some(old) = self.view.put(id, lease) {
            self.sum = self.sum.wrapping_sub(print(id, &old));
        }
    }
}
