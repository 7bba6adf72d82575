//! The table as readers see it: a moment that stays as it was.

use bytes::Bytes;

use crate::lease::Lease;
use crate::map::Map;

/// Leases and attachments at one moment. A clone costs two reference counts; it never changes and never holds anybody up.
#[derive(Clone, Debug, Default)]
pub struct LeaseView {
    leases: Map<i64, Lease>,
    /// Attached keys by lease, then key.
    keys: Map<(i64, Bytes), ()>,
}

impl LeaseView {
    /// The lease. O(log n).
    pub fn get(&self, id: i64) -> Option<Lease> {
        self.leases.get(&id).copied()
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.leases.len() == 0
    }

    /// All leases by id.
    pub fn iter(&self) -> impl Iterator<Item = (i64, Lease)> {
        self.leases.iter().map(|(id, lease)| (*id, *lease))
    }

    /// The keys attached to a lease, ascending. O(log n) to begin, then O(1) per key on average.
    pub fn keys(&self, id: i64) -> impl Iterator<Item = Bytes> {
        let all = self.keys.from(&(id, Bytes::new()));
        all.take_while(move |((lease, _), ())| *lease == id).map(|((_, key), ())| key.clone())
    }

    pub(crate) fn put(&mut self, id: i64, lease: Lease) -> Option<Lease> {
        self.leases.insert(id, lease)
    }

    pub(crate) fn remove(&mut self, id: i64) -> Option<Lease> {
        self.leases.remove(&id)
    }

    pub(crate) fn attach(&mut self, lease: i64, key: Bytes) {
        self.keys.insert((lease, key), ());
    }

    pub(crate) fn detach(&mut self, lease: i64, key: &Bytes) {
        self.keys.remove(&(lease, key.clone()));
    }
}
