//! When a revision came to be, and which revisions there were at a time, as far as the answers tell.
//!
//! *Is* bounds only, from the harness's one clock: an answer proves that its revision existed when it arrived; a
//! linearizable answer with an older revision proves that a newer one did not exist yet when it was asked for.

use std::collections::HashMap;

use super::history::Op;

/// The bounds.
#[derive(Debug, Default)]
pub(crate) struct Times {
    /// By time of arrival: the highest revision that was known by then. Both rise.
    known: Vec<(u64, i64)>,
    /// By time of asking: the lowest revision of any linearizable answer asked for then or later.
    asked: Vec<(u64, i64)>,
    /// When the first event of a revision arrived at a watcher.
    arrived: HashMap<i64, u64>,
}

impl Times {
    /// What a history and the arrival of events tell; times are nanoseconds since the run began.
    pub(crate) fn new(history: &[Op], arrived: HashMap<i64, u64>) -> Times {
        let mut known: Vec<(u64, i64)> = history.iter().filter_map(|op| Some((op.completed, op.revision()?))).collect();
        known.sort_unstable();
        let mut most = 0;
        known.retain(|(_, revision)| {
            let rises = *revision > most;
            most = most.max(*revision);
            rises
        });
        let fresh = history.iter().filter(|op| !op.serializable());
        let mut asked: Vec<(u64, i64)> = fresh.filter_map(|op| Some((op.invoked, op.revision()?))).collect();
        asked.sort_unstable();
        let mut least = i64::MAX;
        for (_, revision) in asked.iter_mut().rev() {
            least = least.min(*revision);
            *revision = least;
        }
        Times { known, asked, arrived }
    }

    /// A time at which the revision existed for certain; `u64::MAX` if nobody was told of it.
    pub(crate) fn latest(&self, revision: i64) -> u64 {
        let place = self.known.partition_point(|(_, known)| *known < revision);
        let told = self.known.get(place).map_or(u64::MAX, |(time, _)| *time);
        told.min(self.arrived.get(&revision).copied().unwrap_or(u64::MAX))
    }

    /// The highest revision that certainly existed at a time.
    pub(crate) fn at_least(&self, time: u64) -> i64 {
        let place = self.known.partition_point(|(known, _)| *known < time);
        place.checked_sub(1).map_or(1, |place| self.known[place].1)
    }

    /// A revision that was certainly not exceeded at a time.
    pub(crate) fn at_most(&self, time: u64) -> i64 {
        let place = self.asked.partition_point(|(asked, _)| *asked <= time);
        self.asked.get(place).map_or(i64::MAX, |(_, revision)| *revision)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::Times;
    use crate::linear::{Action, Op, Outcome};

    #[test]
    fn answers_bound_the_time_of_a_revision() {
        let read = |invoked, completed, serializable, revision| Op {
            client: 0,
            connection: 0,
            node: 0,
            invoked,
            completed,
            action: Action::Get { key: 0, serializable },
            outcome: Outcome::Got { revision, stored: None },
        };
        let history = [read(10, 20, false, 3), read(30, 60, false, 7), read(40, 50, false, 5), read(70, 80, true, 2)];
        let times = Times::new(&history, HashMap::from([(6, 55)]));
        assert_eq!([1, 3, 4, 5, 6, 7].map(|revision| times.latest(revision)), [20, 20, 50, 50, 55, 60]);
        assert_eq!(times.latest(8), u64::MAX);
        assert_eq!([5, 21, 51, 100].map(|time| times.at_least(time)), [1, 3, 5, 7]);
        assert_eq!([5, 10, 30, 40].map(|time| times.at_most(time)), [3, 5, 5, i64::MAX]);
    }
}
