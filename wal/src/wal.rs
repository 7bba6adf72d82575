//! The log itself: what a caller holds.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::config::Config;
use crate::encoder::{Encoder, SMALL_RECORD};
use crate::error::{AppendError, OpenError, SyncError};
use crate::fs::{DirLock, Fs};
use crate::open::{self, Opened, Recovered};
use crate::queue::{Durable, Shared, lock};
use crate::reader::Reader;
use crate::record::framed_entry;
use crate::types::{Entry, LogIndex, LogPosition, Metadata, State, Ticket};
use crate::view::{Location, View};

/// An open log. One owner appends; [`Reader`] and [`Durable`] handles may be anywhere.
///
/// Nothing but [`Wal::open`], [`Wal::wait`], [`Wal::close`] and dropping it blocks or does I/O on the caller's thread.
///
/// Dropping it without [`Wal::close`] is like a crash: what is not yet durable may be lost, and every callback that still
/// waits is called with [`SyncError::Closed`].
pub struct Wal {
    shared: Arc<Shared>,
    view: Arc<Mutex<View>>,
    encoder: Encoder,
    reader: Reader,
    metadata: Metadata,
    entry_bytes_max: usize,
    pending_bytes_max: usize,
    /// Reused by every append.
    locations: Vec<Location>,
    flusher: Option<JoinHandle<()>>,
    /// Released last, when nobody writes any more.
    _lock: Box<dyn DirLock>,
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("encoder", &self.encoder).finish_non_exhaustive()
    }
}

impl Wal {
    /// Whether the directory holds a log.
    ///
    /// # Errors
    /// If the directory exists and cannot be listed.
    pub fn exists(fs: &dyn Fs, dir: &Path) -> Result<bool, OpenError> {
        open::exists(fs, dir)
    }

    /// Opens the log in `dir`, or creates it there if there is none and `config.metadata` says for whom.
    ///
    /// Reads every segment once. Cuts off an unfinished write at the end and reports it in [`Recovered::torn`]; what it
    /// returns is durable, including what had not been when the last run ended.
    ///
    /// # Errors
    /// Any other damage, another identity, a newer format, a log in use: see [`OpenError`]. Nothing is changed then.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path, config: Config) -> Result<(Wal, Recovered), OpenError> {
        let Opened { lock, recovered, encoder, flusher } = open::open(&fs, dir, &config)?;
        let (shared, view) = (Arc::clone(&flusher.shared), Arc::clone(&flusher.view));
        let metadata = recovered.metadata;
        let reader = Reader::new(Arc::clone(&view), dir.to_owned(), metadata.directory_uuid, config.segment_bytes);
        let thread = std::thread::Builder::new()
            .name("wal-flusher".to_owned())
            .spawn(move || flusher.run())
            .map_err(OpenError::io("start the flusher thread of", dir))?;
        let mut wal = Wal {
            shared,
            view,
            encoder,
            reader,
            metadata,
            entry_bytes_max: config.entry_bytes_max,
            pending_bytes_max: config.pending_bytes_max,
            locations: Vec::new(),
            flusher: Some(thread),
            _lock: lock,
        };
        // What was recovered counts as acknowledged from now on. A record behind it says so on disk: without one, damage
        // to the last group would pass for an unfinished write.
        let ticket = wal.save_state(recovered.state.clone()).map_err(open::first_write)?;
        wal.wait(ticket)?;
        Ok((wal, recovered))
    }

    /// Whose log it is.
    pub fn metadata(&self) -> Metadata {
        self.metadata
    }

    /// Adds entries to the end of the log. They can be read at once. They are durable once [`Wal::flush`] or
    /// [`Wal::wait`] says so for the ticket; **somebody has to call one of these**, appending alone does not start a
    /// write before a whole group has come together.
    ///
    /// The first entry of an empty log may have any index; after a purge it must be the one after the purge point.
    ///
    /// # Errors
    /// All or nothing is taken. See [`AppendError`]; after [`AppendError::Overloaded`] the same call can be tried again.
    pub fn append(&mut self, entries: &[Entry]) -> Result<Ticket, AppendError> {
        let bytes = self.check(entries)?;
        let mut queue = self.shared.lock();
        queue.admit(bytes, self.pending_bytes_max)?;
        let mut ticket = queue.newest();
        self.locations.clear();
        for entry in entries {
            let (location, issued) = self.encoder.entry(&mut queue, entry);
            self.locations.push(location);
            ticket = issued;
        }
        self.shared.ring(&mut queue);
        drop(queue);
        let mut view = lock(&self.view);
        for (entry, location) in entries.iter().zip(&self.locations) {
            view.push(entry, *location);
        }
        Ok(ticket)
    }

    /// Checks that the entries continue the log and are not too large; returns how many bytes they take.
    fn check(&self, entries: &[Entry]) -> Result<usize, AppendError> {
        let mut expected = self.encoder.next;
        let mut total = 0_usize;
        for Entry { index, payload, .. } in entries {
            if *index > LogIndex::MAX {
                return Err(AppendError::IndexTooLarge { index: *index });
            }
            if let Some(expected) = expected
                && index.get() != expected
            {
                return Err(AppendError::Gap { expected: LogIndex::new(expected), found: *index });
            }
            if payload.len() > self.entry_bytes_max {
                let (bytes, limit) = (payload.len(), self.entry_bytes_max);
                return Err(AppendError::EntryTooLarge { index: *index, bytes, limit });
            }
            expected = Some(index.next().get());
            total = total.saturating_add(framed_entry(payload.len()));
        }
        Ok(total)
    }

    /// Remembers the state. Durable once [`Wal::flush`] or [`Wal::wait`] says so for the ticket, with everything before
    /// it. Without either it rides along with the next write, so saving a committed position costs no sync of its own.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub fn save_state(&mut self, state: State) -> Result<Ticket, AppendError> {
        if state.vote.len() > State::VOTE_BYTES_MAX {
            return Err(AppendError::VoteTooLarge { bytes: state.vote.len() });
        }
        if let Some(LogPosition { index, .. }) = state.committed
            && index > LogIndex::MAX
        {
            return Err(AppendError::IndexTooLarge { index });
        }
        let mut queue = self.shared.lock();
        queue.admit(SMALL_RECORD, self.pending_bytes_max)?;
        let ticket = self.encoder.state(&mut queue, state);
        self.shared.ring(&mut queue);
        Ok(ticket)
    }

    /// Drops the entries after `after`, or all if it is `None`. They cannot be read any more at once, and [`Durable`]
    /// goes back at once; that they are gone is durable in ticket order like everything else.
    ///
    /// # Errors
    /// See [`AppendError`]; in particular if `after` is before the purge point.
    pub fn truncate_after(&mut self, after: Option<LogIndex>) -> Result<Ticket, AppendError> {
        if let (Some(after), Some(purged)) = (after, self.encoder.purged)
            && after < purged.index
        {
            return Err(AppendError::Purged { after, purged: purged.index });
        }
        let mut queue = self.shared.lock();
        queue.admit(SMALL_RECORD, self.pending_bytes_max)?;
        let beyond = match (after, self.encoder.next) {
            (_, None) => true,
            (Some(after), Some(next)) => after.next().get() >= next,
            (None, Some(_)) => false,
        };
        if beyond {
            return Ok(queue.newest());
        }
        let ticket = self.encoder.truncate(&mut queue, after);
        let log_end = self.encoder.next.unwrap_or(0);
        self.shared.truncate(&mut queue, log_end);
        self.shared.ring(&mut queue);
        drop(queue);
        lock(&self.view).truncate_after(after);
        Ok(ticket)
    }

    /// Drops the entries up to `position`, which may be beyond the end: the log then goes on after it. Once the record of
    /// it is durable, segments that hold nothing else are recycled or removed. A position that is already purged changes
    /// nothing.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub fn purge_upto(&mut self, position: LogPosition) -> Result<Ticket, AppendError> {
        if position.index > LogIndex::MAX {
            return Err(AppendError::IndexTooLarge { index: position.index });
        }
        let mut queue = self.shared.lock();
        queue.admit(SMALL_RECORD, self.pending_bytes_max)?;
        if self.encoder.purged.is_some_and(|purged| purged.index >= position.index) {
            return Ok(queue.newest());
        }
        let ticket = self.encoder.snapshot(&mut queue, position);
        let oldest = {
            let mut view = lock(&self.view);
            view.purge(position);
            view.oldest_segment()
        };
        queue.keep_from(oldest.unwrap_or(self.encoder.sequence()));
        self.shared.ring(&mut queue);
        Ok(ticket)
    }

    /// Calls `done` once everything up to `ticket` is durable, or can no longer become so. Callbacks are called in ticket
    /// order, on the flusher thread or, if the outcome is already known, on this one. They must not take long: the log writes
    /// nothing meanwhile. None is ever dropped without being called.
    pub fn flush(&self, ticket: Ticket, done: impl FnOnce(Result<(), SyncError>) + Send + 'static) {
        self.shared.flush(ticket, Box::new(done));
    }

    /// Blocks until everything up to `ticket` is durable. Not to be called from a callback.
    ///
    /// # Errors
    /// If it can no longer become durable.
    pub fn wait(&self, ticket: Ticket) -> Result<(), SyncError> {
        self.shared.wait(ticket)
    }

    /// A handle that tells how far the log is durable.
    pub fn durable(&self) -> Durable {
        self.shared.durable()
    }

    /// A handle that reads the log.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Makes everything durable, waits for every callback, and closes the log.
    ///
    /// # Errors
    /// If something is not durable.
    pub fn close(mut self) -> Result<(), SyncError> {
        // A last record behind everything else: from here on any damage to what was acknowledged can be told apart from
        // an unfinished write.
        let newest = self.shared.lock().newest();
        let sealed = self.wait(newest).and_then(|()| match self.save_state(self.encoder.state.clone()) {
            Ok(ticket) => self.wait(ticket),
            Err(AppendError::Failed(error)) => Err(error),
            Err(other) => unreachable!("an empty queue takes the current state again: {other}"),
        });
        self.shared.close();
        self.join();
        sealed
    }

    fn join(&mut self) {
        if let Some(flusher) = self.flusher.take() {
            // The flusher catches its panics and reports them as a failed log.
            let _ = flusher.join();
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.shared.fail(SyncError::Closed);
        self.join();
        self.shared.deliver();
        lock(&self.view).close();
    }
}
