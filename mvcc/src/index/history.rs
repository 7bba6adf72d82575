//! `History`: the older revisions of one key, persistent and append-only.
//!
//! ```text
//!  up to 16:  Short  [ r r r r r ]                                       one array, copied to append
//!  beyond:    Long   full [4096+] [4096+] .. | tail [2048] [512] [64] [3]
//!                    shared as a whole         each at least twice the next after an append
//! ```
//!
//! Appending copies the list of tail runs (at most a dozen or so) and merges the youngest runs; a revision is copied
//! O(log 4096) times in its life and the longest merge is some 8,192 revisions, however long the history. The list of
//! full
//! runs is copied once per 4,096 revisions. A version that somebody still reads is never touched.
//!
//! **Invariant**: runs are never empty, and revisions ascend strictly through `full`, then `tail`.

use std::sync::Arc;

use super::revision::Rev;

type Run = Arc<[Rev]>;

/// Up to this many revisions are kept in one plain array.
const SHORT_MAX: usize = 16;
/// A run of this length is not merged any more.
const FULL_RUN: usize = 4096;

/// The older revisions of one key; never empty.
#[derive(Clone, Debug)]
pub(super) enum History {
    Short(Run),
    Long(Arc<Runs>),
}

#[derive(Clone, Debug)]
pub(super) struct Runs {
    full: Arc<Vec<Run>>,
    tail: Vec<Run>,
    len: usize,
    sum: u128,
}

/// The sum of the fingerprints of `revs`.
pub(super) fn sum_of<'r>(revs: impl IntoIterator<Item = &'r Rev>) -> u128 {
    revs.into_iter().fold(0, |sum, rev| sum.wrapping_add(rev.print))
}

/// The newest revision in `run` with main <= `main`.
fn newest_upto(run: &[Rev], main: i64) -> Option<Rev> {
    let above = run.partition_point(|rev| rev.at.main() <= main);
    above.checked_sub(1).map(|at| run[at])
}

impl History {
    /// `older`, then `newer`, which must not be empty.
    pub(super) fn append(older: Option<&Self>, newer: &[Rev]) -> Self {
        debug_assert!(!newer.is_empty(), "a history is never empty");
        match older {
            None if newer.len() <= SHORT_MAX => Self::Short(newer.into()),
            None => Self::Long(Arc::new(Runs::of(newer.into()))),
            Some(Self::Short(run)) => {
                let all: Run = [run, newer].concat().into();
                if all.len() <= SHORT_MAX { Self::Short(all) } else { Self::Long(Arc::new(Runs::of(all))) }
            }
            Some(Self::Long(runs)) => {
                let mut runs = Runs::clone(runs);
                runs.push(newer);
                Self::Long(Arc::new(runs))
            }
        }
    }

    /// What is left without the first `count` revisions; `None` if nothing is. O(what is left of the run that is cut,
    /// and the number of runs).
    pub(super) fn without_first(&self, count: usize) -> Option<Self> {
        if count >= self.len() {
            return None;
        }
        match self {
            _ if count == 0 => Some(self.clone()),
            Self::Short(run) => Some(Self::Short(run[count..].into())),
            Self::Long(runs) if runs.len - count <= SHORT_MAX => {
                let rest = self.iter().skip(count).copied().collect::<Vec<_>>();
                Some(Self::Short(rest.into()))
            }
            Self::Long(runs) => Some(Self::Long(Arc::new(runs.without_first(count)))),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Short(run) => run.len(),
            Self::Long(runs) => runs.len,
        }
    }

    /// The sum of the fingerprints. O(1).
    pub(super) fn sum(&self) -> u128 {
        match self {
            Self::Short(run) => sum_of(run.iter()),
            Self::Long(runs) => runs.sum,
        }
    }

    /// The newest revision with main <= `main`. O(log n).
    pub(super) fn at(&self, main: i64) -> Option<Rev> {
        match self {
            Self::Short(run) => newest_upto(run, main),
            Self::Long(runs) => runs.at(main),
        }
    }

    /// All revisions, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Rev> {
        let (short, full, tail) = match self {
            Self::Short(run) => (&run[..], &[][..], &[][..]),
            Self::Long(runs) => (&[][..], &runs.full[..], &runs.tail[..]),
        };
        short.iter().chain(full.iter().chain(tail).flat_map(|run| run.iter()))
    }

    /// The revisions with main >= `main`, the oldest first. O(length of a run) to begin.
    pub(super) fn since(&self, main: i64) -> impl Iterator<Item = &Rev> {
        let (short, full, tail) = match self {
            Self::Short(run) => (&run[..], &[][..], &[][..]),
            Self::Long(runs) => (&[][..], &runs.full[..], &runs.tail[..]),
        };
        let ends_before = move |run: &Run| run.last().is_none_or(|rev| rev.at.main() < main);
        let full = &full[full.partition_point(ends_before)..];
        let runs = full.iter().chain(tail.iter().skip_while(move |run| ends_before(run)));
        short.iter().chain(runs.flat_map(|run| run.iter())).skip_while(move |rev| rev.at.main() < main)
    }

    /// The bytes of memory behind this history, shared or not.
    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        self.len() * size_of::<Rev>()
    }
}

impl Runs {
    fn of(run: Run) -> Self {
        let (len, sum) = (run.len(), sum_of(run.iter()));
        let mut runs = Self { full: Arc::default(), tail: vec![run], len, sum };
        runs.retire_full();
        runs
    }

    /// Appends `newer`, merged with the youngest runs that are not at least twice as long as what follows them.
    fn push(&mut self, newer: &[Rev]) {
        self.len += newer.len();
        self.sum = self.sum.wrapping_add(sum_of(newer));
        let (mut merged, mut keep) = (newer.len(), self.tail.len());
        while keep > 0 && self.tail[keep - 1].len() < 2 * merged {
            keep -= 1;
            merged += self.tail[keep].len();
        }
        let mut run = Vec::with_capacity(merged);
        for part in self.tail.drain(keep..) {
            run.extend_from_slice(&part);
        }
        run.extend_from_slice(newer);
        self.tail.push(run.into());
        self.retire_full();
    }

    /// Moves a run that has become long enough over to `full`. It is the only one in the tail then: shorter ones
    /// before it
    /// would have been merged into it, and longer ones would be in `full` already.
    fn retire_full(&mut self) {
        if self.tail.first().is_some_and(|run| run.len() >= FULL_RUN) {
            Arc::make_mut(&mut self.full).append(&mut self.tail);
        }
    }

    fn without_first(&self, count: usize) -> Self {
        let mut left = count;
        let mut dropped_sum = 0u128;
        let mut cut = |runs: &[Run]| {
            let mut kept = Vec::new();
            for run in runs {
                let here = left.min(run.len());
                left -= here;
                dropped_sum = dropped_sum.wrapping_add(sum_of(&run[..here]));
                if here == 0 {
                    kept.push(Arc::clone(run));
                } else if here < run.len() {
                    kept.push(run[here..].into());
                }
            }
            kept
        };
        let full = Arc::new(cut(&self.full));
        let tail = cut(&self.tail);
        Self { full, tail, len: self.len - count, sum: self.sum.wrapping_sub(dropped_sum) }
    }

    fn at(&self, main: i64) -> Option<Rev> {
        let starts_in_time = |run: &Run| run.first().is_some_and(|rev| rev.at.main() <= main);
        let in_tail = self.tail.iter().rev().find(|run| starts_in_time(run));
        let run = in_tail.or_else(|| self.full[..self.full.partition_point(starts_in_time)].last())?;
        newest_upto(run, main)
    }

    #[cfg(test)]
    pub(super) fn tail_runs(&self) -> usize {
        self.tail.len()
    }
}
