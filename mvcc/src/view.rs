//! Reading: a [`Reader`] gives out [`View`]s, each a state of the store that never changes.

use std::sync::Arc;

use crate::error::{Corruption, ReadError, Rejection, SweepError};
use crate::keyrange::{KeyRange, RangeEnd};
use crate::metrics::Metrics;
use crate::records::FetchError;
use crate::reply::{OpReply, RangeResult, TxnReply};
use crate::request::{Op, RangeRequest, TxnRequest};
use crate::shared::{Published, Shared, root};
use crate::state::State;
use crate::sweep::{SweepLimits, SweepProgress};
use crate::txn::next_on;

/// How often [`Reader::range`] takes a new view if the sweep overtakes it.
const READ_ATTEMPTS: usize = 3;

/// Reads what the writer published. Cheap to clone; never blocks the writer, nor is blocked by it.
#[derive(Clone)]
pub struct Reader {
    pub(crate) shared: Arc<Shared>,
}

/// One published state of the store. Cheap to clone; keeps the index of that state alive for as long as it is held,
/// and keeps the sweep waiting if a compaction has happened since.
#[derive(Clone)]
pub struct View {
    pub(crate) shared: Arc<Shared>,
    pub(crate) at: Arc<Published>,
}

/// The root of a range of keys: equal on two replicas if and only if (but for chance) they hold the same history of
/// the same keys there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeRoot {
    /// How many keys have a history, deleted ones included.
    pub keys: u64,
    /// The sum, modulo 2^128, of the fingerprints of all their revisions.
    pub sum: u128,
}

impl Reader {
    /// The newest published state.
    pub fn view(&self) -> View {
        View { shared: Arc::clone(&self.shared), at: self.shared.published.load_full() }
    }

    /// The newest published revision.
    pub fn revision(&self) -> i64 {
        self.shared.published.load().revision
    }

    /// The compaction revision: the oldest that can be read. [`NEVER_COMPACTED`](crate::NEVER_COMPACTED) at first.
    pub fn compact_revision(&self) -> i64 {
        self.shared.published.load().compact
    }

    /// How many keys there are.
    pub fn keys_live(&self) -> u64 {
        self.shared.published.load().tree.live()
    }

    /// The root of the newest published state.
    pub fn root(&self) -> u128 {
        self.shared.published.load().root()
    }

    /// Reads a range from the newest state; takes a new view if the sweep overtakes the read.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResult, ReadError> {
        let mut attempt = 1;
        loop {
            match self.view().range(request) {
                Err(ReadError::Overtaken { .. }) if attempt < READ_ATTEMPTS => attempt += 1,
                answer => return answer,
            }
        }
    }

    /// Deletes a bounded piece of what compactions dropped. Call it again and again, from one thread that may block,
    /// until it says [`SweepProgress::Done`]; pauses between the calls are the caller's.
    pub fn sweep(&self, limits: SweepLimits) -> Result<SweepProgress, SweepError> {
        self.shared.sweep(limits)
    }

    /// What was counted since the store was opened.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Bytes that the record cache uses now.
    pub fn record_cache_bytes(&self) -> u64 {
        self.shared.records.cache.used_bytes()
    }
}

impl View {
    /// The revision of this state.
    pub fn revision(&self) -> i64 {
        self.at.revision
    }

    /// The oldest revision that can be read in this state.
    pub fn compact_revision(&self) -> i64 {
        self.at.compact
    }

    /// How many keys there are.
    pub fn keys_live(&self) -> u64 {
        self.at.tree.live()
    }

    /// How many keys there are or were, since the last compaction: what a read at an older revision may have to walk over. O(1).
    pub fn keys_known(&self) -> u64 {
        self.at.tree.keys()
    }

    /// What the keys take in memory at most, in bytes: all that have a history, whole. O(1).
    pub fn key_bytes(&self) -> u64 {
        self.at.tree.key_bytes()
    }

    /// The root of this state: equal on two replicas if and only if (but for chance) their states are.
    pub fn root(&self) -> u128 {
        self.at.root()
    }

    /// The root of a range of keys. O(log n).
    pub fn root_of(&self, range: &KeyRange) -> RangeRoot {
        let (keys, sum) = match range.end() {
            RangeEnd::Single => {
                let after = [range.start(), b"\0"].concat();
                self.at.tree.sum_range(range.start(), Some(&after))
            }
            RangeEnd::Before(_) | RangeEnd::Unbounded => self.at.tree.sum_range(range.start(), range.upper()),
        };
        RangeRoot { keys, sum }
    }

    /// Answers a range. See [`RangeOptions`](crate::RangeOptions) for the forms it takes.
    ///
    /// O(log n + records answered) in key order at this state's own revision; linear in the keys of the range for
    /// older revisions, filters and sorting. The whole answer is built in memory: use [`View::scan`] for large ones.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResult, ReadError> {
        let state = self.state();
        let at = state.resolve(request.revision)?;
        state.range(request, at).map_err(|error| self.explain(error, at))
    }

    /// Answers a transaction that only reads.
    pub fn txn(&self, txn: &TxnRequest) -> Result<TxnReply, ReadError> {
        if !txn.is_read_only() {
            return Err(ReadError::NotReadOnly);
        }
        let state = self.state();
        let plan = state.check_txn(txn, &|_| true).map_err(|error| match error {
            crate::CheckError::Rejected(rejection) => ReadError::Rejected(rejection),
            crate::CheckError::Storage(error) => ReadError::Storage(error),
            crate::CheckError::Corrupt(error) => self.explain(FetchError::Corrupt(error), self.at.revision),
        })?;
        if plan.path.len() > 1 || txn.branch(plan.path[0]).len() > 1 {
            self.shared.metrics.txns.add(1);
        }
        self.run(txn, &mut plan.path.iter().copied())
    }

    fn run(&self, txn: &TxnRequest, path: &mut dyn Iterator<Item = bool>) -> Result<TxnReply, ReadError> {
        let succeeded = next_on(path);
        let mut replies = Vec::new();
        for op in txn.branch(succeeded) {
            replies.push(match op {
                Op::Range(range) => OpReply::Range(self.range(range)?),
                Op::Txn(nested) => OpReply::Txn(self.run(nested, path)?),
                Op::Put(_) | Op::Delete(_) => return Err(ReadError::NotReadOnly),
            });
        }
        Ok(TxnReply { succeeded, replies, revision: self.at.revision })
    }

    pub(crate) fn state(&self) -> State<'_> {
        State {
            tree: &self.at.tree,
            revision: self.at.revision,
            compact: self.at.compact,
            records: &self.shared.records,
            staged: &[],
            metrics: &self.shared.metrics,
        }
    }

    /// Tells a record that the sweep took from one that is lost. A record in force at revision `at` is needed by every
    /// compaction up to `at`, so only the sweep of a later one can have taken it.
    pub(crate) fn explain(&self, error: FetchError, at: i64) -> ReadError {
        match error {
            FetchError::Storage(error) => ReadError::Storage(error),
            FetchError::Corrupt(Corruption::Missing { .. }) if at < self.shared.overrun_by() => {
                let swept = self.shared.overrun_by();
                match at < self.at.revision {
                    true => Rejection::Compacted { requested: at, compacted: swept }.into(),
                    false => ReadError::Overtaken { revision: at, swept },
                }
            }
            FetchError::Corrupt(corruption) => ReadError::Corrupt(corruption),
        }
    }
}

impl Published {
    pub(crate) fn root(&self) -> u128 {
        root(self.tree.sum(), self.revision, self.compact)
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("View").field("revision", &self.at.revision).field("compact", &self.at.compact).finish()
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Reader").field("published", &self.view()).finish()
    }
}
