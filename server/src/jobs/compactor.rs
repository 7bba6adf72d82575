//! Automatic compaction: which revision to compact to, and when.
//!
//! The schedules are plain values that are told the time and the revision, so that tests need no clock.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::AutoCompaction;

/// A periodic compaction happens at most this far apart.
const INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// Looks at the revision per interval; a compaction that failed is tried again at the next one.
const LOOKS_PER_INTERVAL: u32 = 10;

/// When and what to compact.
#[derive(Debug)]
pub(crate) enum Schedule {
    Periodic(Periodic),
    Revision(Revision),
}

impl Schedule {
    /// `None` when automatic compaction is off.
    pub(crate) fn new(keep: AutoCompaction, revision_interval: Duration) -> Option<Schedule> {
        match keep {
            AutoCompaction::Off => None,
            AutoCompaction::Periodic(span) => Some(Schedule::Periodic(Periodic::new(span))),
            AutoCompaction::Revision(keep) => {
                Some(Schedule::Revision(Revision { keep, done: 0, interval: revision_interval }))
            }
        }
    }

    /// Time between two calls of [`Schedule::look`].
    pub(crate) fn interval(&self) -> Duration {
        match self {
            Schedule::Periodic(periodic) => periodic.look_interval,
            Schedule::Revision(revision) => revision.interval,
        }
    }

    /// The revision to compact to now, if any. `now` is the time since the start of the schedule.
    pub(crate) fn look(&mut self, now: Duration, current: i64) -> Option<i64> {
        match self {
            Schedule::Periodic(periodic) => periodic.look(now, current),
            Schedule::Revision(revision) => revision.look(current),
        }
    }

    /// The compaction that [`Schedule::look`] asked for has been done, by whomever.
    pub(crate) fn done(&mut self, now: Duration, revision: i64) {
        match self {
            Schedule::Periodic(periodic) => periodic.done(now, revision),
            Schedule::Revision(by_revision) => by_revision.done = revision,
        }
    }
}

/// Keeps the last `keep` revisions.
#[derive(Debug)]
pub(crate) struct Revision {
    keep: i64,
    done: i64,
    interval: Duration,
}

impl Revision {
    fn look(&mut self, current: i64) -> Option<i64> {
        let target = current.saturating_sub(self.keep);
        (target > 0 && target != self.done).then_some(target)
    }
}

/// Keeps what was current at any moment of the last `span`: remembers the revision at each look, and compacts to the one
/// that is `span` old. The first compaction comes after `span`, the next ones after `span` or an hour, whichever is less.
#[derive(Debug)]
pub(crate) struct Periodic {
    look_interval: Duration,
    interval: Duration,
    /// Revisions at the last looks, the oldest first; one more than fit into the span.
    seen: VecDeque<i64>,
    seen_max: usize,
    due: Duration,
    done: i64,
}

impl Periodic {
    fn new(span: Duration) -> Periodic {
        let interval = span.min(INTERVAL_MAX);
        let look_interval = (interval / LOOKS_PER_INTERVAL).max(Duration::from_millis(1));
        let looks = span.as_nanos() / look_interval.as_nanos();
        Periodic {
            look_interval,
            interval,
            seen: VecDeque::new(),
            seen_max: usize::try_from(looks).unwrap_or(usize::MAX - 1).saturating_add(1),
            due: span,
            done: 0,
        }
    }

    fn look(&mut self, now: Duration, current: i64) -> Option<i64> {
        self.seen.push_back(current);
        if self.seen.len() > self.seen_max {
            self.seen.pop_front();
        }
        let oldest = *self.seen.front()?;
        // A fresh store is at revision 1, which nobody can compact.
        (now >= self.due && oldest > 1 && oldest != self.done).then_some(oldest)
    }

    fn done(&mut self, now: Duration, revision: i64) {
        self.done = revision;
        self.due = now + self.interval;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Looks for `span`, with a revision per minute, and compacts whenever asked: (minute, revision) of each compaction.
    fn simulate(keep: AutoCompaction, span: Duration, fails: impl Fn(u64) -> bool) -> Vec<(u64, i64)> {
        let mut schedule = Schedule::new(keep, 5 * MINUTE).unwrap();
        let mut compactions = Vec::new();
        let mut now = Duration::ZERO;
        while now <= span {
            let minute = now.as_secs() / 60;
            if let Some(revision) = schedule.look(now, 100 + minute as i64) {
                compactions.push((minute, revision));
                if !fails(minute) {
                    schedule.done(now, revision);
                }
            }
            now += schedule.interval();
        }
        compactions
    }

    #[test]
    fn a_short_span_is_kept_and_compacted_each_span() {
        let done = simulate(AutoCompaction::Periodic(10 * MINUTE), 32 * MINUTE, |_| false);
        assert_eq!(done, [(10, 100), (20, 110), (30, 120)]);
    }

    #[test]
    fn a_long_span_is_kept_and_compacted_each_hour() {
        let done = simulate(AutoCompaction::Periodic(180 * MINUTE), 310 * MINUTE, |_| false);
        assert_eq!(done, [(180, 100), (240, 160), (300, 220)]);
    }

    #[test]
    fn a_failure_is_tried_again_at_the_next_look() {
        let done = simulate(AutoCompaction::Periodic(60 * MINUTE), 80 * MINUTE, |minute| minute < 70);
        assert_eq!(done, [(60, 100), (66, 106), (72, 112)]);
    }

    #[test]
    fn an_idle_store_is_not_compacted_twice_and_an_empty_one_never() {
        let mut schedule = Schedule::new(AutoCompaction::Periodic(MINUTE), MINUTE).unwrap();
        let times = |from: u64, to: u64| (from..to).map(|seconds| Duration::from_secs(seconds * 6));
        assert!(times(0, 100).all(|now| schedule.look(now, 1).is_none()));
        let found: Vec<i64> = times(100, 200)
            .filter_map(|now| {
                let revision = schedule.look(now, 7)?;
                schedule.done(now, revision);
                Some(revision)
            })
            .collect();
        assert_eq!(found, [7]);
    }

    #[test]
    fn revisions_are_counted_back_from_the_current_one() {
        let mut schedule = Schedule::new(AutoCompaction::Revision(100), MINUTE).unwrap();
        assert_eq!(schedule.interval(), MINUTE);
        assert_eq!(schedule.look(Duration::ZERO, 100), None);
        assert_eq!(schedule.look(Duration::ZERO, 150), Some(50));
        assert_eq!(schedule.look(Duration::ZERO, 150), Some(50), "what failed is tried again");
        schedule.done(Duration::ZERO, 50);
        assert_eq!(schedule.look(Duration::ZERO, 150), None);
        assert_eq!(schedule.look(Duration::ZERO, 151), Some(51));
    }

    #[test]
    fn the_memory_of_a_long_span_is_bounded() {
        let mut periodic = Periodic::new(Duration::from_secs(10 * 3600));
        for minute in 0..10_000 {
            periodic.look(minute * MINUTE, 5);
        }
        assert_eq!(periodic.seen.len(), 101);
    }
}
