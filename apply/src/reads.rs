//! What readers may ask of a replica's state without disturbing its writer.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tally_backend::Applied;
use tally_lease::LeaseView;
use tally_mvcc::Reader;

use crate::alarm::{Alarm, AlarmKind};
use crate::checkpoints::Checkpoints;
use crate::lease_feed::{ChangesLost, LeaseChange, LeaseFeed};
use crate::member::Member;

/// The small state, replaced as a whole after each commit.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) applied: Applied,
    pub(crate) alarms: Arc<[Alarm]>,
    pub(crate) members: Arc<[Member]>,
    pub(crate) removed_members: Arc<[u64]>,
    pub(crate) leases: LeaseView,
    pub(crate) level: u32,
}

/// A handle for readers; cheap to clone, and every call is a consistent look at one moment.
#[derive(Clone)]
pub struct Reads {
    pub(crate) kv: Reader,
    pub(crate) shared: Arc<ArcSwap<Shared>>,
    pub(crate) checkpoints: Arc<Checkpoints>,
    pub(crate) lease_feed: Arc<LeaseFeed>,
    pub(crate) lease_metrics: Arc<tally_lease::Metrics>,
}

impl Reads {
    /// The key-value store.
    pub fn kv(&self) -> &Reader {
        &self.kv
    }

    /// The last entry applied and shown to readers, with the state root after it.
    pub fn applied(&self) -> Applied {
        self.shared.load().applied.clone()
    }

    /// The index of the last entry applied.
    pub fn applied_index(&self) -> u64 {
        self.shared.load().applied.index
    }

    /// The alarms raised now, by member and kind.
    pub fn alarms(&self) -> Arc<[Alarm]> {
        Arc::clone(&self.shared.load().alarms)
    }

    /// Whether any member has raised an alarm of this kind.
    pub fn alarmed(&self, kind: AlarmKind) -> bool {
        self.shared.load().alarms.iter().any(|alarm| alarm.kind == kind)
    }

    /// What the members have said about themselves, by id. Who *is* a member is the log's business, not this list's.
    pub fn members(&self) -> Arc<[Member]> {
        Arc::clone(&self.shared.load().members)
    }

    /// The ids of the members that were removed, ascending; none of them is ever used again.
    pub fn removed_members(&self) -> Arc<[u64]> {
        Arc::clone(&self.shared.load().removed_members)
    }

    /// State roots at the last multiples of [`CHECKPOINT_INTERVAL`](crate::CHECKPOINT_INTERVAL) that were applied since
    /// the state was opened, oldest first: applied index, and root after it. Equal on all replicas.
    pub fn checkpoints(&self) -> Vec<(u64, u128)> {
        self.checkpoints.list()
    }

    /// The leases and the keys attached to them, as they are now.
    pub fn leases(&self) -> LeaseView {
        self.shared.load().leases.clone()
    }

    /// Begins or ceases to keep changes of the leases for [`Reads::take_lease_changes`]. There is one listener; a second one
    /// takes its place.
    pub fn listen_to_leases(&self, listens: bool) {
        self.lease_feed.listen(listens);
    }

    /// The changes of the leases since the last call, in their order. Each of them can be seen in [`Reads::leases`].
    ///
    /// # Errors
    /// [`ChangesLost`] if there were too many; what happens from now on is kept again.
    pub fn take_lease_changes(&self) -> Result<Vec<LeaseChange>, ChangesLost> {
        self.lease_feed.take()
    }

    /// What the lease table counted since the state was opened.
    pub fn lease_metrics(&self) -> &tally_lease::Metrics {
        &self.lease_metrics
    }

    /// The replicated feature level.
    pub fn feature_level(&self) -> u32 {
        self.shared.load().level
    }
}
