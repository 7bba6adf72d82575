//! openraft's state machine over `tally-apply`: committed entries in, one commit per bounded chunk, then the answers.
//!
//! Applying runs on the async task that drives it. A chunk is small enough for that (about a millisecond), and handing
//! it to another thread would cost more than it takes; between chunks other tasks get their turn. A command that touches
//! thousands of keys may take seconds: while it is carried out the other tasks go on elsewhere.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use tally_apply::{Applier, Aside, Body, Committed, Outcome, Reads};
use tally_backend::Backend;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;
use tokio::task::block_in_place;

use crate::background;
use crate::codec::decode_in_force;
use crate::command::Stamp;
use crate::config::ApplyLimits;
use crate::entry::to_committed;
use crate::fatal::FatalError;
use crate::progress::Shared;
use crate::proposals::ProposeError;
use crate::proposals::Waiting;
use crate::snapshot::{Checkpoint, SnapshotBuilder, install, snapshot_of};
use crate::types::{RaftLogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, log_id, log_index};

/// The store in force and its readers' side; an installed snapshot replaces both together.
pub(crate) struct Live {
    pub(crate) backend: Backend,
    pub(crate) reads: Reads,
    /// For opening the state of a snapshot.
    pub(crate) kv: tally_mvcc::Options,
}

pub(crate) type SharedLive = Arc<ArcSwap<Live>>;

/// Hears how long entries take to be applied. Called on the task that applies, after every commit: must be quick.
pub trait ApplyObserver: Send + Sync {
    /// So many entries were decoded, carried out and committed together, in this time.
    fn on_apply(&self, entries: usize, took: Duration);
}

/// The replica's state, as openraft drives it.
pub(crate) struct StateMachine {
    applier: Applier,
    live: SharedLive,
    shared: Arc<Shared>,
    waiting: Arc<Waiting>,
    limits: ApplyLimits,
    observer: Option<Arc<dyn ApplyObserver>>,
    /// Dropped with this, which tells the node that the store is no longer in use.
    _in_use: oneshot::Sender<Infallible>,
}

/// Entries waiting to be applied together, with whoever waits for them.
#[derive(Default)]
struct Chunk {
    entries: Vec<Committed>,
    /// Which of the entries are proposals of this process, in order, by their place among the entries.
    own: Vec<(usize, Stamp)>,
    responders: Vec<ApplyResponder<TypeConfig>>,
    bytes: usize,
}

/// What takes long lets the other tasks of this thread, heartbeats among them, go on with another one.
struct OtherThread;

impl Aside for OtherThread {
    fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
            // There is no other thread, or there are no other tasks.
            Ok(_) | Err(_) => work(),
        }
    }
}

impl StateMachine {
    /// The receiver ends when openraft has let go of the state machine.
    pub(crate) fn new(
        applier: Applier,
        live: SharedLive,
        shared: Arc<Shared>,
        waiting: Arc<Waiting>,
        limits: ApplyLimits,
    ) -> (StateMachine, oneshot::Receiver<Infallible>) {
        let (in_use, released) = oneshot::channel();
        (StateMachine { applier, live, shared, waiting, limits, observer: None, _in_use: in_use }, released)
    }

    /// Tells `observer` of every commit from now on.
    pub(crate) fn observe(&mut self, observer: Option<Arc<dyn ApplyObserver>>) {
        self.observer = observer;
    }

    /// Applies entries with one commit and makes them known.
    ///
    /// Invariant: an error here is final. It is kept as the node's fatal error, nothing is answered, and openraft
    /// stops.
    pub(crate) fn commit(&mut self, entries: &[Committed]) -> io::Result<Vec<Outcome>> {
        // Here and not in `apply`, which has no clock: twice for a chunk, whatever it holds.
        let began = Instant::now();
        match self.applier.apply_aside(entries, &OtherThread) {
            Ok(outcomes) => {
                if let Some(observer) = &self.observer {
                    observer.on_apply(entries.len(), began.elapsed());
                }
                self.shared.applied.advance(self.applier.applied().index);
                Ok(outcomes)
            }
            Err(error) => Err(self.fail(FatalError::Apply(Arc::new(error)))),
        }
    }

    fn answer(&mut self, chunk: &mut Chunk) -> io::Result<()> {
        let outcomes = self.commit(&chunk.entries)?;
        let mut outcomes = outcomes.into_iter().enumerate();
        let own = chunk
            .own
            .drain(..)
            .filter_map(|(place, stamp)| outcomes.find(|(at, _)| *at == place).map(|(_, outcome)| (stamp, outcome)));
        self.waiting.complete(own);
        if let Some(last) = chunk.entries.last() {
            self.waiting.decided(last.term);
        }
        chunk.responders.drain(..).for_each(|responder| responder.send(()));
        chunk.entries.clear();
        chunk.bytes = 0;
        Ok(())
    }

    fn fail(&self, error: FatalError) -> io::Error {
        self.shared.applied.fail();
        io::Error::other(self.shared.fatal.set(error))
    }

    fn is_full(&self, chunk: &Chunk) -> bool {
        chunk.entries.len() >= self.limits.entries_max || chunk.bytes >= self.limits.bytes_max
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Checkpoint;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, StoredMembership), io::Error> {
        let applied = self.applier.applied();
        let membership = decode_in_force(&applied.membership);
        let position = log_id(applied.index, applied.term);
        Ok((position, membership.map_err(|error| self.fail(error.into()))?))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let mut chunk = Chunk::default();
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            if self.is_full(&chunk) {
                self.answer(&mut chunk)?;
                tokio::task::yield_now().await;
            }
            let (mut entry, stamp) = to_committed(entry);
            if let Some(stamp) = stamp.filter(|stamp| stamp.origin == self.waiting.origin()) {
                entry.asked = true;
                chunk.own.push((chunk.entries.len(), stamp));
            }
            chunk.bytes += bytes_of(&entry);
            chunk.entries.push(entry);
            chunk.responders.extend(responder);
        }
        if chunk.entries.is_empty() { Ok(()) } else { self.answer(&mut chunk) }
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<SnapshotBuilder> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder::new(Arc::clone(&self.live), Arc::clone(&self.shared))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Checkpoint) -> Result<(), io::Error> {
        let announced = meta.last_log_id.map_or(0, |id| log_index(id.index));
        let live = self.live.load_full();
        let installed = OtherThread.run(|| install(&live.backend, &snapshot, announced, live.kv.clone()));
        let (backend, applier, reads) = installed.map_err(|error| self.fail(FatalError::Install(Arc::new(error))))?;
        // The membership in force is the snapshot's now.
        self.shared.sole.change(false);
        // Readers first: watchers look for the new store as soon as the writer of the old one is gone.
        self.live.store(Arc::new(Live { backend, reads, kv: live.kv.clone() }));
        let replaced = (live, std::mem::replace(&mut self.applier, applier));
        // It is as large as what took its place.
        tokio::spawn(background::run("tally-drop", move || drop(replaced)));
        let index = self.applier.applied().index;
        self.shared.committed.fetch_max(index, Ordering::AcqRel);
        self.shared.durable.fetch_max(index, Ordering::AcqRel);
        self.shared.applied.advance(index);
        // What was jumped over may have held proposals of this process.
        self.waiting.lose_all(&ProposeError::Discarded);
        self.waiting.decided(self.applier.applied().term);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let durable = self.live.load().backend.durable();
        if durable.index == 0 {
            return Ok(None);
        }
        let snapshot = snapshot_of(self.live.load().backend.clone(), durable);
        snapshot.map(Some).map_err(|error| self.fail(error.into()))
    }
}

fn bytes_of(entry: &Committed) -> usize {
    match &entry.body {
        Body::Blank => 0,
        Body::Command(bytes) | Body::Membership(bytes) => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::mpsc::channel;

    use tokio::runtime::Builder;

    use super::*;

    #[test]
    fn what_takes_long_does_not_keep_others_waiting() {
        // All other tasks have one thread, and the work waits for one of them.
        let runtime = Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (done, until_done) = channel();
        let long = runtime.spawn(async move {
            tokio::spawn(async move { done.send(()).unwrap() });
            OtherThread.run(|| until_done.recv_timeout(Duration::from_secs(60)))
        });
        runtime.block_on(long).unwrap().unwrap();
        // Where there is nobody else, it is done all the same.
        let alone = Builder::new_current_thread().build().unwrap();
        assert_eq!(alone.block_on(async { OtherThread.run(|| 1) }), 1);
        assert_eq!(OtherThread.run(|| 2), 2);
    }
}
