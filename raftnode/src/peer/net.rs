//! The node's side of the transport: one [`Net`] per process, shared by everything that speaks to peers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};

use super::complaints::Complaints;
use super::frame::Address;
use super::peers::Peer;
use super::{CallError, Host, Local, NetConfig, Transport, control, serve};
use crate::barrier::BarrierError;
use crate::member::{MemberChange, MemberError};

/// Peers that are remembered; more than a cluster ever has.
const PEERS_MAX: usize = 128;
/// Channels served at the same time; a cluster of nine with every kind of channel needs less than fifty.
const CHANNELS_MAX: usize = 256;

/// The transport of one member. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub(crate) struct Net {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) local: Local,
    pub(super) config: NetConfig,
    pub(super) complaints: Complaints,
    /// Channels that may still be served.
    pub(super) places: Arc<Semaphore>,
    /// A snapshot is being received.
    pub(super) receiving: AtomicBool,
    /// Snapshots being sent.
    pub(super) sending: AtomicUsize,
    host: RwLock<HostSlot>,
    peers: Mutex<BTreeMap<u64, Arc<Peer>>>,
    calls: AtomicU64,
    closed: watch::Sender<bool>,
}

enum HostSlot {
    Unset,
    Set(Arc<dyn Host>),
    Closed,
}

impl Net {
    /// A transport that serves nobody until it has a host.
    pub(crate) fn new(config: NetConfig, local: Local) -> Net {
        let inner = Inner {
            local,
            config,
            complaints: Complaints::default(),
            places: Arc::new(Semaphore::new(CHANNELS_MAX)),
            receiving: AtomicBool::new(false),
            sending: AtomicUsize::new(0),
            host: RwLock::new(HostSlot::Unset),
            peers: Mutex::new(BTreeMap::new()),
            calls: AtomicU64::new(0),
            closed: watch::Sender::new(false),
        };
        Net { inner: Arc::new(inner) }
    }

    /// Begins to serve. Only the first host counts.
    pub(crate) fn set_host(&self, host: Arc<dyn Host>) {
        let mut slot = self.inner.host.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*slot, HostSlot::Unset) {
            *slot = HostSlot::Set(host);
        }
    }

    /// Ends every channel, refuses new ones, and lets go of the host. Idempotent.
    pub(crate) fn close(&self) {
        let host =
            std::mem::replace(&mut *self.inner.host.write().unwrap_or_else(PoisonError::into_inner), HostSlot::Closed);
        self.inner.closed.send_replace(true);
        // Outside of the lock: it may be the last handle of the node.
        drop(host);
    }

    /// What openraft makes its connections with.
    pub(crate) fn transport(&self) -> Transport {
        Transport::new(self.clone())
    }

    /// What is served on the peer port.
    pub(crate) fn router(&self) -> axum::Router {
        serve::router(self.clone())
    }

    /// Where a member is reached from now on.
    pub(crate) fn set_addresses(&self, id: u64, urls: &[String]) {
        self.peer(id).set_urls(urls);
    }

    /// From now on this member's log holds nothing up to `floor` for that member: a stream that still sends it ends.
    pub(crate) fn give_up_below(&self, id: u64, floor: u64) {
        self.peer(id).give_up_below(floor);
    }

    /// Shows those members that this one is there. Does not wait for them.
    pub(crate) fn knock(&self, members: impl IntoIterator<Item = u64>) {
        for to in members {
            let net = self.clone();
            tokio::spawn(async move { control::knock(&net, to).await });
        }
    }

    /// Whether a snapshot is being sent to anybody.
    pub(crate) fn is_sending_snapshots(&self) -> bool {
        self.inner.sending.load(Ordering::Acquire) > 0
    }

    /// When anything last came from that member.
    pub(crate) fn last_contact(&self, id: u64) -> Option<Instant> {
        self.known(id)?.last_contact()
    }

    /// Whether that member is connected and something came from it within this time.
    pub(crate) fn is_heard(&self, id: u64, within: Duration) -> bool {
        self.known(id)
            .is_some_and(|peer| peer.is_connected() && peer.last_contact().is_some_and(|at| at.elapsed() < within))
    }

    /// Asks the leader for the index of a read, confirmed by a round that begins after this call.
    ///
    /// # Errors
    /// The outer one: it did not answer; nothing happened. The inner one: it cannot confirm
    /// ([`BarrierError::NoLeader`] also if it does not lead, or is stopping).
    pub(crate) async fn read_index(&self, to: u64) -> Result<Result<u64, BarrierError>, CallError> {
        control::read_index(self, to).await
    }

    /// Puts a question to the leader. None if that member does not lead.
    ///
    /// # Errors
    /// It did not answer; it may have heard the question.
    pub(crate) async fn ask(&self, to: u64, kind: u8, question: Bytes) -> Result<Option<Bytes>, CallError> {
        control::ask(self, to, kind, &question).await
    }

    /// Has the leader change the membership.
    ///
    /// # Errors
    /// The outer one: it did not answer; only after [`CallError::NotSent`] it is certain that nothing happened. The inner
    /// one: what it answered.
    pub(crate) async fn change_members(
        &self,
        to: u64,
        change: &MemberChange,
    ) -> Result<Result<(), MemberError>, CallError> {
        control::change_members(self, to, change).await
    }

    /// The host, while there is one.
    pub(super) fn host(&self) -> Option<Arc<dyn Host>> {
        match &*self.inner.host.read().unwrap_or_else(PoisonError::into_inner) {
            HostSlot::Set(host) => Some(Arc::clone(host)),
            HostSlot::Unset | HostSlot::Closed => None,
        }
    }

    /// Resolves when the transport has been closed.
    pub(super) async fn closed(&self) {
        let mut closed = self.inner.closed.subscribe();
        // The sender lives as long as `self` does: an error is not possible, and would mean the same.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// The state of a peer, made if it is new.
    pub(super) fn peer(&self, id: u64) -> Arc<Peer> {
        let mut peers = self.inner.peers.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(peers.entry(id).or_insert_with(|| Arc::new(Peer::new(id, self.inner.config.observer.clone()))))
    }

    /// The state of whoever says that it is this member; kept only while there is room, so that nobody can fill the
    /// memory with members that do not exist.
    pub(super) fn caller(&self, id: u64) -> Arc<Peer> {
        let mut peers = self.inner.peers.lock().unwrap_or_else(PoisonError::into_inner);
        match peers.get(&id) {
            Some(peer) => Arc::clone(peer),
            // Nobody counts what one does that is not kept: the figures of each peer stay for good.
            None if peers.len() >= PEERS_MAX => Arc::new(Peer::new(id, None)),
            None => {
                let peer = Arc::new(Peer::new(id, self.inner.config.observer.clone()));
                peers.insert(id, Arc::clone(&peer));
                peer
            }
        }
    }

    fn known(&self, id: u64) -> Option<Arc<Peer>> {
        self.inner.peers.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// What stands in every frame to that member.
    pub(super) fn address_to(&self, to: u64) -> Address {
        Address { cluster: self.inner.local.cluster_id, from: self.inner.local.member_id, to }
    }

    /// An id that no call of this process had before.
    pub(super) fn next_call(&self) -> u64 {
        self.inner.calls.fetch_add(1, Ordering::Relaxed) + 1
    }
}
