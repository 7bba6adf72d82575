//! openraft's log over `tally-wal`: entries, vote and commit index, in one ordered stream of records.
//!
//! - `append` returns when entries are readable; openraft's callback runs after the fsync, on the log's flusher thread.
//! - `save_vote` returns when the vote, and every entry before it, is durable.
//! - `save_committed` writes nothing: the commit index rides along with the next append, so it never costs an fsync of
//!   its own. It only says how much may be replayed before an election, so losing the latest one loses nothing.
//! - The first failure is final: it is kept as the node's fatal error and every later call fails.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState};
use tally_wal::{Entry as WalEntry, LogIndex, State, SyncError, Ticket, Wal};
use tokio::sync::oneshot;

use crate::codec::encode_vote;
use crate::entry::to_wal;
use crate::fatal::FatalError;
use crate::log_reader::LogReader;
use crate::progress::Shared;
use crate::snapshot::unmark_install;
use crate::types::{RaftEntry, RaftLogId, RaftVote, TypeConfig, log_id_at, log_index, position};

/// The vote as last saved, shared with the readers, who must see it as soon as `save_vote` has returned.
pub(crate) type SharedVote = Arc<Mutex<Option<RaftVote>>>;

/// The node's log, held by openraft while it runs and closed by the node after it has stopped.
#[derive(Clone)]
pub(crate) struct LogStore {
    inner: Arc<Mutex<Inner>>,
    reader: LogReader,
    vote: SharedVote,
    shared: Arc<Shared>,
    member_id: u64,
    /// Where the store is, beside which an installed snapshot leaves its mark until the log is behind it.
    store: Arc<Path>,
}

struct Inner {
    /// None once closed.
    wal: Option<Wal>,
    /// The last entry, or where the log was purged to.
    last: Option<RaftLogId>,
    purged: Option<RaftLogId>,
    committed: Option<RaftLogId>,
    /// The commit index that the log has a record of.
    committed_saved: Option<RaftLogId>,
    vote: Option<RaftVote>,
}

/// The log has been closed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the log is closed")]
struct Closed;

/// What was found in the log when it was opened.
pub(crate) struct Found {
    pub(crate) vote: Option<RaftVote>,
    pub(crate) committed: Option<RaftLogId>,
    pub(crate) purged: Option<RaftLogId>,
    pub(crate) last: Option<RaftLogId>,
}

impl LogStore {
    pub(crate) fn new(wal: Wal, found: Found, shared: Arc<Shared>, member_id: u64, store: &Path) -> LogStore {
        let vote = SharedVote::new(Mutex::new(found.vote));
        let reader = LogReader::new(wal.reader(), Arc::clone(&vote), Arc::clone(&shared));
        let inner = Inner {
            wal: Some(wal),
            last: found.last.or(found.purged),
            purged: found.purged,
            committed: found.committed,
            committed_saved: found.committed,
            vote: found.vote,
        };
        LogStore { inner: Arc::new(Mutex::new(inner)), reader, vote, shared, member_id, store: store.into() }
    }

    /// The log's own reader, for replay.
    pub(crate) fn reader(&self) -> &tally_wal::Reader {
        self.reader.log()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the error as the fatal one and hands openraft its own kind.
    fn fail(&self, error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
        fail(&self.shared, Arc::new(error))
    }

    /// Saves what is not saved yet, makes everything durable and closes the files. Idempotent.
    ///
    /// Blocks for an fsync. Called after openraft has stopped.
    pub(crate) fn close(&self) -> Result<(), FatalError> {
        let mut inner = self.lock();
        let written = inner.save_committed();
        let Some(wal) = inner.wal.take() else { return Ok(()) };
        written.map_err(|error| FatalError::LogWrite(Arc::new(error)))?;
        wal.close().map_err(|error| FatalError::LogWrite(Arc::new(error)))
    }

    fn append_entries(&self, entries: Vec<WalEntry>, callback: IOFlushed<TypeConfig>) -> io::Result<()> {
        let Some(last) = entries.last().map(|entry| tally_wal::LogPosition { index: entry.index, term: entry.term })
        else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let bytes: usize = entries.iter().map(|entry| entry.payload.len()).sum();
        let mut inner = self.lock();
        let appended = inner.save_committed().and_then(|()| inner.append(&entries));
        let ticket = match appended {
            Ok(ticket) => ticket,
            Err(error) => {
                drop(inner);
                let error = self.fail(error);
                callback.io_completed(Err(io::Error::other(error.to_string())));
                return Err(error);
            }
        };
        inner.last = log_id_at(last);
        self.shared.last.store(last.index.get(), Ordering::Release);
        self.shared.appended_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let (shared, generation) = (Arc::clone(&self.shared), self.shared.logged.generation());
        inner.flush(ticket, move |result| {
            callback.io_completed(match result {
                Ok(()) => {
                    shared.logged.advance(generation, last.index.get());
                    Ok(())
                }
                Err(error) => Err(fail(&shared, Arc::new(error))),
            });
        });
        Ok(())
    }

    /// Asks for an fsync whose success nobody waits for and whose failure is fatal.
    fn flush_in_background(&self, inner: &Inner, ticket: Ticket) {
        let shared = Arc::clone(&self.shared);
        inner.flush(ticket, move |result| {
            if let Err(error) = result {
                fail(&shared, Arc::new(error));
            }
        });
    }
}

fn fail(shared: &Shared, error: Arc<dyn std::error::Error + Send + Sync>) -> io::Error {
    shared.logged.mark().fail();
    shared.applied.fail();
    io::Error::other(shared.fatal.set(FatalError::LogWrite(error)))
}

/// What may fail when a record is handed to the log.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Append(#[from] tally_wal::AppendError),
    #[error(transparent)]
    Closed(#[from] Closed),
}

impl Inner {
    fn wal(&mut self) -> Result<&mut Wal, Closed> {
        self.wal.as_mut().ok_or(Closed)
    }

    fn append(&mut self, entries: &[WalEntry]) -> Result<Ticket, WriteError> {
        Ok(self.wal()?.append(entries)?)
    }

    fn flush(&self, ticket: Ticket, done: impl FnOnce(Result<(), SyncError>) + Send + 'static) {
        match &self.wal {
            Some(wal) => wal.flush(ticket, done),
            // Closing made everything durable, or said that it could not.
            None => done(Ok(())),
        }
    }

    fn save_state(&mut self) -> Result<Ticket, WriteError> {
        let state = State {
            vote: self.vote.as_ref().map(encode_vote).unwrap_or_default(),
            committed: self.committed.as_ref().map(position),
        };
        let ticket = self.wal()?.save_state(state)?;
        self.committed_saved = self.committed;
        Ok(ticket)
    }

    fn save_committed(&mut self) -> Result<(), WriteError> {
        if self.committed == self.committed_saved || self.wal.is_none() {
            return Ok(());
        }
        self.save_state().map(drop)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let inner = self.lock();
        Ok(LogState { last_purged_log_id: inner.purged, last_log_id: inner.last })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut inner = self.lock();
            inner.vote = Some(*vote);
            let ticket = inner.save_state().map_err(|error| self.fail(error))?;
            inner.flush(ticket, move |result| drop(sender.send(result)));
        }
        match receiver.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(self.fail(error)),
            Err(_) => return Err(self.fail(Closed)),
        }
        *self.vote.lock().unwrap_or_else(PoisonError::into_inner) = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> Result<(), io::Error> {
        self.lock().committed = committed;
        if let Some(id) = committed {
            self.shared.committed.fetch_max(log_index(id.index), Ordering::AcqRel);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<RaftLogId>, io::Error> {
        Ok(self.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + Send,
        I::IntoIter: Send,
    {
        let seen = entries.into_iter().inspect(|entry| {
            if let EntryPayload::Membership(membership) = &entry.payload {
                self.shared.sole.change(membership.nodes().map(|(id, _)| *id).eq([self.member_id]));
            }
        });
        let entries = seen.map(to_wal).collect();
        self.append_entries(entries, callback)
    }

    async fn truncate_after(&mut self, last_log_id: Option<RaftLogId>) -> Result<(), io::Error> {
        let mut inner = self.lock();
        let index = last_log_id.map_or(0, |id| log_index(id.index));
        if index >= inner.last.map_or(0, |id| log_index(id.index)) {
            return Ok(());
        }
        // A membership may be among what is taken back.
        self.shared.sole.change(false);
        let kept = (index > 0).then(|| LogIndex::new(index));
        let truncated: Result<Ticket, WriteError> =
            inner.wal().map_err(WriteError::from).and_then(|wal| Ok(wal.truncate_after(kept)?));
        let ticket = truncated.map_err(|error| self.fail(error))?;
        inner.last = last_log_id.max(inner.purged);
        self.shared.logged.truncate(index);
        self.shared.last.store(index, Ordering::Release);
        self.flush_in_background(&inner, ticket);
        Ok(())
    }

    async fn purge(&mut self, log_id: RaftLogId) -> Result<(), io::Error> {
        let mut inner = self.lock();
        let upto = position(&log_id);
        let purged: Result<Ticket, WriteError> =
            inner.wal().map_err(WriteError::from).and_then(|wal| Ok(wal.purge_upto(upto)?));
        let ticket = purged.map_err(|error| self.fail(error))?;
        inner.purged = Some(log_id).max(inner.purged);
        inner.last = inner.last.max(Some(log_id));
        self.shared.purged.fetch_max(upto.index.get(), Ordering::AcqRel);
        self.shared.last.fetch_max(upto.index.get(), Ordering::AcqRel);
        let (shared, store) = (Arc::clone(&self.shared), Arc::clone(&self.store));
        inner.flush(ticket, move |result| match result {
            Ok(()) => {
                if let Err(error) = unmark_install(&store, upto.index.get()) {
                    tracing::warn!(%error, "a mark that has served stays until the next start");
                }
            }
            Err(error) => drop(fail(&shared, Arc::new(error))),
        });
        Ok(())
    }
}
