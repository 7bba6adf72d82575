//! What a stream keeps of each watcher, which is little: there may be very many, and most of them idle.

use std::sync::Arc;

use super::roster::Roster;
use super::spec::Filters;
use super::topic::Topic;

/// The watchers of one range on one stream.
pub(super) struct Group {
    pub(super) topic: Arc<Topic>,
    pub(super) watchers: Ids,
    /// Whatever the range had before this revision, each level watcher has been given, if it wants it. So a watcher's own
    /// cursor may be left where it was while its keys are quiet.
    pub(super) cursor: i64,
}

/// The watchers of a group; mostly one. Never none while the group exists.
pub(super) enum Ids {
    One(i64),
    /// In a box, so that a group with one watcher takes less.
    Many(Box<Roster<()>>),
}

impl Ids {
    /// In ascending order.
    pub(super) fn iter(&self) -> impl Iterator<Item = i64> {
        let (one, many) = match self {
            Ids::One(id) => (Some(*id), None),
            Ids::Many(ids) => (None, Some(ids)),
        };
        one.into_iter().chain(many.into_iter().flat_map(|ids| ids.iter().map(|(id, ())| id)))
    }

    /// O(log n).
    pub(super) fn add(&mut self, id: i64) {
        match self {
            Ids::One(first) => {
                let mut both = Box::new(Roster::new());
                both.insert(*first, ());
                both.insert(id, ());
                *self = Ids::Many(both);
            }
            Ids::Many(ids) => ids.insert(id, ()),
        }
    }

    /// True if nobody is left. O(log n).
    pub(super) fn remove(&mut self, id: i64) -> bool {
        match self {
            Ids::One(_) => true,
            Ids::Many(ids) => {
                ids.remove(id);
                ids.is_empty()
            }
        }
    }
}

pub(super) struct Watcher {
    /// The first revision that it has not been given; for a level watcher, unless its group's cursor is beyond.
    pub(super) next: i64,
    pub(super) serial: u32,
    pub(super) group: u32,
    pub(super) place: Place,
    pub(super) filters: Filters,
    pub(super) prev_kv: bool,
    pub(super) mark: bool,
    pub(super) notes: Notes,
    /// Its cursor is where it asked to start: the store may not be there yet, or, replaced by one that is behind, no more.
    pub(super) early: bool,
}

/// Whether a watcher is to be told at a tick how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notes {
    /// It did not ask for it.
    Unwanted,
    /// It had an event since the last tick.
    Busy,
    /// It had none.
    Quiet,
    /// A tick found it quiet, and it has not been told yet.
    Due,
}

/// Where a watcher's next events come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Its topic's log.
    Level,
    /// History, when its turn comes.
    Behind,
    /// History that is being read.
    Reading,
}

impl Watcher {
    /// Never less than what it has seen, and not before the revision that it waits for.
    pub(super) fn may_be_told(&self, told: i64) -> bool {
        if self.early { told >= self.next } else { told + 1 >= self.next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There is one of each for every idle watcher.
    #[test]
    fn what_a_watcher_takes_is_small() {
        assert_eq!((size_of::<Watcher>(), size_of::<Option<Group>>(), size_of::<Topic>()), (24, 32, 80));
    }
}
