//! Snapshots: a durable backend *is* the snapshot.
//!
//! Building one makes the backend durable and notes how far; no file is copied. What is handed to openraft is a
//! [`Checkpoint`], whose bytes are set aside when a peer needs them; what a peer has sent is one, too. The bytes of
//! that are made ready beside the state in force, and their root is proved, before consensus hears of it: until an
//! installation ends, consensus answers nobody, so all that is left for it is the switch.
//!
//! The log of a member that gets a snapshot ends before it. Between the switch and the moment at which the log is durably
//! said to go on behind the snapshot, a crash would leave what looks like a log that was replaced by an older one. So the
//! position is marked before the switch (see [`mark`]), and the next start finishes what was begun.

mod mark;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use openraft::storage::RaftSnapshotBuilder;
use tally_apply::{Applier, Reads};
use tally_backend::{Applied, Backend, Export, Frozen, Staged, StorageError};

use crate::background;
use crate::codec::{CodecError, decode_in_force};
use crate::fatal::FatalError;
use crate::progress::Shared;
use crate::state_machine::SharedLive;
use crate::types::{Snapshot, SnapshotMeta, TypeConfig, log_id};

pub(crate) use mark::{MarkError, finish_install, unmark_install};

/// A durable state.
#[derive(Clone, Debug)]
pub(crate) enum Checkpoint {
    /// This member's own, which can be set aside. What is may be newer than the position noted here, never older.
    Live(Backend),
    /// A peer's, received whole and made ready to be put in force.
    Received(Received),
}

/// What was received and made ready, until it is put in force. Dropping it deletes it.
#[derive(Clone, Default)]
pub(crate) struct Received(Arc<Unused>);

#[derive(Default)]
struct Unused(Mutex<Option<Prepared>>);

/// A state is as large as the store and its index. It may be consensus itself that finds it is not needed.
impl Drop for Unused {
    fn drop(&mut self) {
        if let Some(prepared) = self.take() {
            background::leave("tally-drop", move || drop(prepared));
        }
    }
}

impl Unused {
    fn take(&self) -> Option<Prepared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Received {
    /// Of a state that this member has already: consensus will see that.
    pub(crate) fn known() -> Received {
        Received::default()
    }

    fn take(&self) -> Option<Prepared> {
        self.0.take()
    }
}

impl std::fmt::Debug for Received {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Received")
    }
}

/// An export that is deleted when nobody needs it any more.
#[derive(Debug)]
pub(crate) struct OwnedExport(Export);

impl OwnedExport {
    pub(crate) fn new(export: Export) -> OwnedExport {
        OwnedExport(export)
    }

    pub(crate) fn export(&self) -> &Export {
        &self.0
    }
}

impl Drop for OwnedExport {
    fn drop(&mut self) {
        if let Err(error) = self.0.clone().remove() {
            tracing::warn!(%error, "a snapshot is left behind; the next start deletes it");
        }
    }
}

/// A state that is deleted when it has been sent, or nobody wants it any more.
#[derive(Debug)]
pub(crate) struct SetAside(Option<Frozen>);

impl SetAside {
    pub(crate) fn new(state: Frozen) -> SetAside {
        SetAside(Some(state))
    }

    pub(crate) fn state(&self) -> &Frozen {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for SetAside {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(Frozen::remove) {
            tracing::warn!(%error, "a state that was sent is left behind and keeps its tables; the next start deletes it");
        }
    }
}

/// Builds one snapshot.
pub(crate) struct SnapshotBuilder {
    live: SharedLive,
    shared: Arc<Shared>,
}

impl SnapshotBuilder {
    pub(crate) fn new(live: SharedLive, shared: Arc<Shared>) -> SnapshotBuilder {
        SnapshotBuilder { live, shared }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = Checkpoint;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        loop {
            let live = self.live.load_full();
            let backend = live.backend.clone();
            // Flushing takes as long as the disk wants: not on a thread that serves requests.
            let synced = tokio::task::spawn_blocking(move || backend.sync()).await;
            let synced = synced.map_err(|error| {
                self.fail(FatalError::Consensus { reason: format!("a flush of the store ended: {error}") })
            })?;
            let durable = match synced {
                // A peer's took its place, or is about to: that one is what there is a snapshot of now. Unless that failed.
                Err(StorageError::Replaced { .. }) if self.shared.fatal.get().is_none() => continue,
                synced => synced.map_err(|error| self.fail(FatalError::Snapshot(Arc::new(error))))?,
            };
            self.shared.durable.fetch_max(durable.index, Ordering::AcqRel);
            return snapshot_of(live.backend.clone(), durable).map_err(|error| self.fail(error.into()));
        }
    }
}

impl SnapshotBuilder {
    fn fail(&self, error: FatalError) -> io::Error {
        io::Error::other(self.shared.fatal.set(error))
    }
}

/// The snapshot that a durable backend is.
pub(crate) fn snapshot_of(backend: Backend, durable: Applied) -> Result<Snapshot, CodecError> {
    let meta = SnapshotMeta {
        last_log_id: log_id(durable.index, durable.term),
        last_membership: decode_in_force(&durable.membership)?,
    };
    Ok(Snapshot { meta, snapshot: Checkpoint::Live(backend) })
}

/// Why a snapshot could not be put in force. This process goes no further with the state before it: the next start finds
/// either of the two, whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error("the snapshot cannot be exported")]
    Export(#[from] tally_backend::ExportError),
    #[error("the snapshot cannot be put beside the state in force")]
    Stage(#[from] tally_backend::InstallError),
    #[error("the state in the snapshot does not open")]
    State(#[from] tally_apply::OpenError),
    #[error("the snapshot is at index {found}, the leader announced {announced}")]
    Position { found: u64, announced: u64 },
    #[error("the position of the snapshot cannot be marked")]
    Mark(#[from] MarkError),
    #[error("the snapshot was put in force already")]
    Twice,
}

/// Where states are put while they are sent, or before they are installed: beside the store, on the same disk.
pub(crate) fn incoming_dir(store: &Path) -> PathBuf {
    store.with_file_name("incoming")
}

/// A state beside the one in force, whole and proved.
pub(crate) struct Prepared {
    staged: Staged,
    applier: Applier,
    reads: Reads,
}

impl Prepared {
    /// Makes the state of `export` ready to take the place of that of `backend`, which goes on working. Blocks as long as
    /// copying and checking takes.
    ///
    /// Invariant: the root is recomputed from the staged bytes, so a snapshot damaged on its way never becomes the state of
    /// a replica.
    pub(crate) fn new(
        backend: &Backend,
        export: &OwnedExport,
        kv: tally_mvcc::Options,
    ) -> Result<Prepared, InstallError> {
        let staged = backend.stage_received(export.export())?;
        let (applier, reads) = Applier::open(staged.backend().clone(), kv)?;
        Ok(Prepared { staged, applier, reads })
    }

    /// Hands it to consensus.
    pub(crate) fn received(self) -> Checkpoint {
        Checkpoint::Received(Received(Arc::new(Unused(Mutex::new(Some(self))))))
    }

    /// Puts it in force in place of the state of `store`. Takes no longer than a few fsyncs.
    fn put_in_force(self, store: &Path, announced: u64) -> Result<(Backend, Applier, Reads), InstallError> {
        let found = self.applier.applied().index;
        if found < announced {
            return Err(InstallError::Position { found, announced });
        }
        // As it is stored: that is what the next start will find.
        mark::mark_install(store, &self.staged.backend().applied())?;
        let backend = self.staged.switch()?;
        Ok((backend, self.applier, self.reads))
    }
}

/// Puts the state of `snapshot` in force in place of that of `backend`.
pub(crate) fn install(
    backend: &Backend,
    snapshot: &Checkpoint,
    announced: u64,
    kv: tally_mvcc::Options,
) -> Result<(Backend, Applier, Reads), InstallError> {
    let prepared = match snapshot {
        Checkpoint::Live(other) => {
            let export = OwnedExport::new(other.export(&incoming_dir(backend.path()))?);
            Prepared::new(backend, &export, kv)?
        }
        Checkpoint::Received(received) => received.take().ok_or(InstallError::Twice)?,
    };
    prepared.put_in_force(backend.path(), announced)
}
