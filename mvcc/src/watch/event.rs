//! One change, shared by everybody who watches its key.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::error::{ReadError, Rejection};
use crate::index::{Rev, Revision};
use crate::record::Record;
use crate::shared::Shared;
use crate::view::View;

/// How many encodings of an event can be kept with it.
pub const ENCODINGS: usize = 4;

/// What an event takes beside its record, in bytes; a round figure.
const EVENT_OVERHEAD_BYTES: usize = 256;
/// Record, previous record and encodings together, in records.
const COPIES: usize = 4;
/// How often a previous record is looked for if the sweep overtakes the read.
const READ_ATTEMPTS: usize = 3;

/// One change to one key: a put or a delete.
///
/// However many watch it, it is one object: the caller's encodings are made once and kept in it.
pub struct Event {
    at: Revision,
    delete: bool,
    record: Record,
    prev: OnceLock<Option<Record>>,
    encodings: [OnceLock<Bytes>; ENCODINGS],
}

impl Event {
    pub(super) fn new(at: Revision, record: Record) -> Event {
        let delete = record.is_tombstone();
        Event { at, delete, record, prev: OnceLock::new(), encodings: Default::default() }
    }

    /// The revision that made the change; all changes of a transaction have the same.
    pub fn revision(&self) -> i64 {
        self.at.main()
    }

    /// True if the key was deleted.
    pub fn is_delete(&self) -> bool {
        self.delete
    }

    /// What was written; a tombstone for a delete.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What the key had before, if it had anything that has not been compacted. Known only if the event was handed to a
    /// watcher that asked for it.
    pub fn prev_kv(&self) -> Option<&Record> {
        self.prev.get()?.as_ref()
    }

    /// The encoding in place `slot`, made by `make` for the first who asks.
    ///
    /// **Invariant**: an encoding that contains the previous record must not share a slot with one that does not, and
    /// must not be asked for on behalf of a watcher without [`WatchSpec::prev_kv`](super::WatchSpec::prev_kv).
    ///
    /// # Panics
    /// If `slot` is not below [`ENCODINGS`].
    pub fn encoding(&self, slot: usize, make: impl FnOnce(&Event) -> Bytes) -> &Bytes {
        self.encodings[slot].get_or_init(|| make(self))
    }

    /// What the event may take in memory, at most, in bytes.
    pub(super) fn weight(&self) -> usize {
        self.record.bytes().len() * COPIES + EVENT_OVERHEAD_BYTES
    }

    /// Looks the previous record up in memory, unless somebody has. False if it is to be read from the store.
    pub(super) fn is_prev_at_hand(&self, shared: &Arc<Shared>) -> bool {
        if self.prev.get().is_some() {
            return true;
        }
        let view = View { shared: Arc::clone(shared), at: shared.published.load_full() };
        let found = match self.prev_rev(&view) {
            None => None,
            Some(rev) => match shared.records.at_hand(rev.at, &shared.metrics) {
                None => return false,
                found => found,
            },
        };
        let _ = self.prev.set(found);
        true
    }

    /// Looks the previous record up, unless somebody has. It may have to be read from the store.
    pub(super) fn find_prev(&self, shared: &Arc<Shared>) -> Result<(), ReadError> {
        if self.prev.get().is_some() {
            return Ok(());
        }
        let mut attempt = 1;
        let found = loop {
            match self.look_up_prev(shared) {
                Err(ReadError::Overtaken { .. }) if attempt < READ_ATTEMPTS => attempt += 1,
                // Its compaction took it: absent, as if it had happened before.
                Err(ReadError::Rejected(Rejection::Compacted { .. })) => break None,
                other => break other?,
            }
        };
        // Whoever was faster found the same, or found it before a compaction: either is right.
        let _ = self.prev.set(found);
        Ok(())
    }

    fn look_up_prev(&self, shared: &Arc<Shared>) -> Result<Option<Record>, ReadError> {
        let view = View { shared: Arc::clone(shared), at: shared.published.load_full() };
        let Some(rev) = self.prev_rev(&view) else { return Ok(None) };
        view.state().fetch(rev).map(Some).map_err(|error| view.explain(error, self.revision() - 1))
    }

    /// Which record the key had before, if any that has not been compacted. A key that the event created had none.
    fn prev_rev(&self, view: &View) -> Option<Rev> {
        let before = self.revision() - 1;
        let created = !self.delete && self.record.create_revision() == self.revision();
        if created || before < view.compact_revision() || before > view.revision() {
            return None;
        }
        view.state().lookup(self.record.key(), before)
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Event").field("at", &self.at).field("record", &self.record).finish_non_exhaustive()
    }
}
