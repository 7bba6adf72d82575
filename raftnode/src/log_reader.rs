//! What openraft reads from the log: for replication as soon as it is appended, for applying only once it is durable
//! here.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, PoisonError};

use futures_util::{Stream, stream};
use openraft::storage::RaftLogReader;
use tally_wal::{Entry as WalEntry, LogIndex, ReadError, Reader};

use crate::entry::from_wal;
use crate::fatal::FatalError;
use crate::log_store::SharedVote;
use crate::progress::Shared;
use crate::types::{RaftEntry, RaftVote, TypeConfig, log_index};

/// Bytes of payload handed to replication or to the state machine in one piece; a single larger entry is one piece. A
/// piece is one append to a peer: small enough that an answer or a heartbeat behind it hardly waits, and that its memory
/// is used again while it is still in the cache.
const PIECE_BYTES_MAX: usize = 512 << 10;

/// A cheap handle; every reading task has its own.
#[derive(Clone)]
pub(crate) struct LogReader {
    reader: Reader,
    vote: SharedVote,
    shared: Arc<Shared>,
}

impl LogReader {
    pub(crate) fn new(reader: Reader, vote: SharedVote, shared: Arc<Shared>) -> LogReader {
        LogReader { reader, vote, shared }
    }

    /// The log's own reader.
    pub(crate) fn log(&self) -> &Reader {
        &self.reader
    }

    /// Reads entries `first..end` as far as they fit into one piece: at least one, if the first is there.
    fn piece(&self, first: u64, end: u64) -> io::Result<Vec<RaftEntry>> {
        self.entries(self.reader.read(LogIndex::new(first)..LogIndex::new(end), PIECE_BYTES_MAX))
    }

    /// What was read, in the form of consensus. That it could not be is the end of the node.
    fn entries(&self, read: Result<Vec<WalEntry>, ReadError>) -> io::Result<Vec<RaftEntry>> {
        let failed = |error| io::Error::other(self.shared.fatal.set(FatalError::LogRead(Arc::new(error))));
        let entries = read.map_err(failed)?;
        let mut piece = Vec::with_capacity(entries.len());
        for entry in entries {
            piece.push(from_wal(entry).map_err(|error| io::Error::other(self.shared.fatal.set(error.into())))?);
        }
        Ok(piece)
    }

    /// The part of `range` that the log holds, in log indexes.
    fn clamp(&self, range: impl RangeBounds<u64>) -> (u64, u64) {
        let start = match range.start_bound() {
            Bound::Included(first) => log_index(*first),
            Bound::Excluded(before) => log_index(*before) + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => log_index(last.saturating_add(1)),
            Bound::Excluded(end) => log_index(*end),
            Bound::Unbounded => u64::MAX,
        };
        let first = self.reader.first().map_or(u64::MAX, LogIndex::get);
        let last = self.reader.last().map_or(0, |position| position.index.get());
        (start.max(first), end.min(last + 1))
    }
}

/// A stream of entries that waits, piece by piece, until this member's own log is durable so far.
struct DurableEntries {
    reader: LogReader,
    buffer: VecDeque<RaftEntry>,
    next: u64,
    end: u64,
}

impl DurableEntries {
    /// Invariant: the state machine never gets an entry that a crash could take out of this member's log. The backend
    /// may become durable at any moment, and one that is ahead of its log looks like one whose log was wiped.
    async fn next(&mut self) -> Option<io::Result<RaftEntry>> {
        if let Some(entry) = self.buffer.pop_front() {
            return Some(Ok(entry));
        }
        if self.next >= self.end {
            return None;
        }
        match self.reader.piece(self.next, self.end) {
            Ok(piece) => self.buffer = piece.into(),
            Err(error) => {
                self.end = self.next;
                return Some(Err(error));
            }
        }
        let last = self.next + self.buffer.len() as u64 - 1;
        if self.buffer.is_empty() || self.reader.shared.logged.mark().reach(last).await.is_err() {
            self.end = self.next;
            self.buffer.clear();
            return Some(Err(io::Error::other("the log failed before these entries were durable")));
        }
        self.next = last + 1;
        self.buffer.pop_front().map(Ok)
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<RaftEntry>, io::Error> {
        let (mut next, end) = self.clamp(range);
        let mut entries = Vec::new();
        while next < end {
            let piece = self.piece(next, end)?;
            if piece.is_empty() {
                break;
            }
            next += piece.len() as u64;
            entries.extend(piece);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<RaftEntry>, io::Error> {
        if start >= end {
            return Ok(Vec::new());
        }
        let entries =
            match self.reader.read(LogIndex::new(log_index(start))..LogIndex::new(log_index(end)), PIECE_BYTES_MAX) {
                // A member that was removed holds up no purge any more, and what sends it entries may not have heard of it yet:
                // an answer without entries is a heartbeat, and then it does.
                Err(ReadError::BelowFirst { .. }) => return Ok(Vec::new()),
                read => self.entries(read)?,
            };
        if entries.is_empty() {
            let missing = format!("log entry {} is not in the log", log_index(start));
            return Err(io::Error::new(io::ErrorKind::NotFound, missing));
        }
        Ok(entries)
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<RaftEntry, io::Error>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (next, end) = self.clamp(range);
        let entries = DurableEntries { reader: self.clone(), buffer: VecDeque::new(), next, end };
        Box::pin(stream::unfold(entries, |mut entries| async { entries.next().await.map(|entry| (entry, entries)) }))
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        Ok(*self.vote.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
