//! The physical side of compaction: deletes, piece by piece, the records that the index no longer names.
//!
//! Works in rounds, one per compaction revision, each in ascending order of revisions, noting its progress in the same
//! write as the deletions. If this process did the compaction it knows what was dropped and deletes just that; after a
//! restart, or if too much was dropped to remember, the round looks at every record up to the compaction revision.
//!
//! **Invariant**: of one key, older records are deleted before newer ones; so however far a round came, what is left
//! never shows an old value again. **Invariant**: only records that the published index does not name are deleted, and
//! they are never named again; so sweeping changes no answer and no root.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use tally_backend::Bucket;

use crate::error::{Corruption, SweepError};
use crate::index::{Revision, Tree};
use crate::meta::{self, Swept};
use crate::record;
use crate::shared::{Dropped, MAX_DROPPED, Published, Shared, lock};

/// How much one call of [`Reader::sweep`](crate::Reader::sweep) may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepLimits {
    /// Records looked at, or deleted where they are known. Default 1,000.
    pub records: usize,
    /// Wait for views from before the compaction to be dropped. Without it they meet
    /// [`ReadError::Overtaken`](crate::ReadError::Overtaken) where a record is gone. Default true; a caller gives up
    /// waiting after a time of its own choice. They are not waited for again, unless there is another compaction.
    pub wait_for_views: bool,
}

impl Default for SweepLimits {
    fn default() -> SweepLimits {
        SweepLimits { records: 1_000, wait_for_views: true }
    }
}

/// How the sweep stands after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepProgress {
    /// Everything that compactions dropped is deleted.
    Done,
    /// Nothing was done: views older than the compaction are in use.
    Waiting {
        /// In how many periods between compactions.
        epochs: usize,
    },
    /// A piece was done; call again.
    More {
        /// Records looked at.
        examined: u64,
        /// Records deleted.
        deleted: u64,
    },
}

/// Told when the sweep of a compaction begins and ends, for those who measure it: this crate has no clock. Called on the
/// thread that sweeps, and in its turn: must be quick.
pub trait SweepObserver: std::fmt::Debug + Send + Sync {
    /// A compaction's sweep begins.
    fn on_begin(&self);
    /// A sweep has deleted all that it had to. It has no beginning here if another process began it.
    fn on_end(&self);
}

/// Where the sweep is, and what it knows of what is to be deleted.
#[derive(Debug)]
pub(crate) struct Sweeper {
    swept: Swept,
    /// In a round over known revisions: what is left of them, ascending.
    left: Option<VecDeque<Revision>>,
    observer: Option<Arc<dyn SweepObserver>>,
}

/// What published compactions dropped and no round has taken up yet. Apart from the [`Sweeper`], so that the writer
/// never waits for a piece of the sweep.
#[derive(Debug, Default)]
pub(crate) struct Backlog(VecDeque<Upcoming>);

#[derive(Debug)]
struct Upcoming {
    /// The compaction revision before.
    from: i64,
    /// The compaction revision.
    to: i64,
    dropped: Dropped,
}

/// The records to delete, and where the round stands afterwards.
struct Piece {
    examined: u64,
    dead: Vec<Revision>,
    next: Revision,
}

impl Backlog {
    /// Takes note of what the compactions between two published states dropped.
    pub(crate) fn add(&mut self, from: i64, to: i64, dropped: Dropped) {
        self.0.push_back(Upcoming { from, to, dropped });
        if self.0.iter().map(|upcoming| upcoming.dropped.known()).sum::<usize>() > MAX_DROPPED {
            // The sweep is far behind: forget what is known and let it look.
            self.0 = VecDeque::from([Upcoming { from, to, dropped: Dropped::Unknown }]);
        }
    }

    /// Everything dropped after the compaction at `from` up to the one at `to`, ascending; `None` if that is not known.
    fn take(&mut self, from: i64, to: i64) -> Option<VecDeque<Revision>> {
        let (mut reached, mut complete, mut all) = (from, true, Vec::new());
        while let Some(upcoming) = self.0.pop_front_if(|upcoming| upcoming.to <= to) {
            match upcoming.dropped {
                Dropped::Known(revisions) if upcoming.from == reached => all.extend(revisions),
                Dropped::Known(_) | Dropped::Unknown => complete = false,
            }
            reached = upcoming.to;
        }
        all.sort_unstable();
        (complete && reached == to).then(|| all.into())
    }
}

impl Sweeper {
    pub(crate) fn new(swept: Swept, observer: Option<Arc<dyn SweepObserver>>) -> Sweeper {
        Sweeper { swept, left: None, observer }
    }

    /// Begins the round for `compact`: over what is known to be dropped if that is complete, else over everything.
    fn begin(&mut self, compact: i64, backlog: &mut Backlog) {
        self.left = backlog.take(self.swept.target, compact);
        self.swept = Swept { target: compact, next: Revision::new(0, 0) };
        if let Some(observer) = &self.observer {
            observer.on_begin();
        }
    }

    /// The round stands at `swept`, on disk too.
    fn reach(&mut self, swept: Swept) {
        self.swept = swept;
        if let Some(observer) = self.observer.as_ref().filter(|_| swept.is_finished()) {
            observer.on_end();
        }
    }
}

impl Shared {
    pub(crate) fn sweep(&self, limits: SweepLimits) -> Result<SweepProgress, SweepError> {
        let mut sweeper = lock(&self.sweeper);
        let seen = self.published.load_full();
        if sweeper.swept.is_finished() {
            if sweeper.swept.target >= seen.compact {
                return Ok(SweepProgress::Done);
            }
            sweeper.begin(seen.compact, &mut lock(&self.backlog));
        }
        match self.older_epochs_in_use(&seen) {
            0 => {}
            // Those who were not waited for once have lost what they read: there is nothing to wait for in the next piece.
            epochs if limits.wait_for_views && self.overrun_by() < seen.compact => {
                return Ok(SweepProgress::Waiting { epochs });
            }
            _ => self.overrun(seen.compact),
        }
        let piece = match &sweeper.left {
            Some(left) => known_piece(left, sweeper.swept.target, limits.records),
            None => self.found_piece(sweeper.swept, &seen, limits.records)?,
        };
        let swept = Swept { next: piece.next, ..sweeper.swept };
        let mut batch = self.records.backend.batch();
        for revision in &piece.dead {
            batch.delete(Bucket::Kv, &revision.to_key());
            self.records.cache.remove(*revision);
        }
        meta::put_swept(&mut batch, swept);
        batch.commit_housekeeping()?;
        if let Some(left) = &mut sweeper.left {
            left.drain(..piece.dead.len());
        }
        let deleted = piece.dead.len() as u64;
        self.metrics.swept_records.add(deleted);
        sweeper.reach(swept);
        Ok(SweepProgress::More { examined: piece.examined, deleted })
    }

    /// Looks at the next records of the round. A record up to the compaction revision is needed only if it is what
    /// its key had at that revision. O(log n) for each.
    fn found_piece(&self, swept: Swept, seen: &Arc<Published>, limit: usize) -> Result<Piece, SweepError> {
        let end = Revision::new(swept.target + 1, 0);
        let mut piece = Piece { examined: 0, dead: Vec::new(), next: end };
        let mut corrupt = None;
        let (start, end) = (swept.next.to_key(), end.to_key());
        self.records.backend.read().for_each(Bucket::Kv, &start, Some(&end), |key, value| {
            let Some(at) = Revision::from_key(key) else {
                corrupt = Some(Corruption::BadRevisionKey { length: key.len() });
                return ControlFlow::Break(());
            };
            if piece.examined >= limit.max(1) as u64 {
                piece.next = at;
                return ControlFlow::Break(());
            }
            piece.examined += 1;
            match record::parse(value) {
                Ok(parts) if names(&seen.tree, parts.key, at, seen.compact) => ControlFlow::Continue(()),
                Ok(_) => {
                    piece.dead.push(at);
                    ControlFlow::Continue(())
                }
                Err(source) => {
                    corrupt = Some(Corruption::Undecodable { main: at.main(), sub: at.sub(), source });
                    ControlFlow::Break(())
                }
            }
        })?;
        match corrupt {
            Some(corruption) => Err(corruption.into()),
            None => Ok(piece),
        }
    }
}

/// True if the index, compacted at `compact`, names the record of `key` at `at`, where `at` is not after `compact`.
fn names(tree: &Tree, key: &[u8], at: Revision, compact: i64) -> bool {
    tree.get(key).and_then(|history| history.at(compact)).is_some_and(|rev| rev.at == at)
}

fn known_piece(left: &VecDeque<Revision>, target: i64, limit: usize) -> Piece {
    let dead: Vec<Revision> = left.iter().take(limit.max(1)).copied().collect();
    let next = left.get(dead.len()).copied().unwrap_or(Revision::new(target + 1, 0));
    Piece { examined: dead.len() as u64, dead, next }
}
