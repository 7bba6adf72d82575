//! What a group's log has for its watchers, and what each of them wants of it.
//!
//! Watchers of a range want the same, mostly: a selection is made once for all that have the same filters and are before
//! the same event, whatever their cursors say. So its cost does not grow with the watchers, and is bounded by the events.

use std::sync::Arc;

use super::event::Event;
use super::spec::Filters;
use super::topic::Topic;
use crate::error::ReadError;
use crate::shared::Shared;

/// Previous records that a stream reads from the store itself, if they are not in memory, until nothing is left to take up.
/// With more, whoever polls it would keep others waiting that share the thread.
pub(super) const PREV_READS_MAX: u16 = 16;

/// Events of a group that are taken up together: whole revisions.
pub(super) struct Taken {
    events: Vec<Arc<Event>>,
    /// Where the group's level watchers are, or are beyond.
    pub(super) cursor: i64,
    /// Where the topic's log begins.
    pub(super) floor: i64,
    /// The last revision; the one before `floor` if there are no events.
    pub(super) last: i64,
    /// The log has more.
    pub(super) more: bool,
    /// What the first who was served wants, and so do most of the others.
    common: Option<(Wanted, Selection)>,
    /// What else is wanted, in its order.
    others: Vec<(Wanted, Selection)>,
}

/// The first event's place, and which changes are left out.
type Wanted = (usize, bool, bool);

/// What some of the watchers get. Never empty when it is given to one.
pub(super) struct Selection {
    pub(super) events: Arc<[Arc<Event>]>,
    /// Of their records.
    pub(super) bytes: u64,
    /// Whether what the keys had before has been found. `None` if nobody has asked.
    prevs: Option<bool>,
}

impl Taken {
    /// What the log of a topic has from `cursor` on, up to the limits of a batch.
    pub(super) fn from(topic: &Topic, cursor: i64, events_max: usize, bytes_max: usize) -> Taken {
        let log = topic.log();
        let floor = log.floor;
        let (events, more) = log.from(cursor.max(floor), events_max, bytes_max);
        drop(log);
        let last = events.last().map_or(floor - 1, |event| event.revision());
        Taken { events, cursor, floor, last, more, common: None, others: Vec::new() }
    }

    /// What a watcher wants whose next revision is `next`. O(log events), once one has wanted the same.
    pub(super) fn select(&mut self, next: i64, filters: Filters) -> &mut Selection {
        let first = self.events.partition_point(|event| event.revision() < next);
        let wanted = (first, filters.no_put, filters.no_delete);
        let events = &self.events[first..];
        let make = || {
            let chosen = match filters == Filters::default() {
                true => events.into(),
                false => events.iter().filter(|event| filters.lets(event.is_delete())).cloned().collect(),
            };
            (wanted, Selection::of(chosen))
        };
        let (common, selection) = self.common.get_or_insert_with(make);
        if *common == wanted {
            return selection;
        }
        let at = match self.others.binary_search_by_key(&wanted, |(wanted, _)| *wanted) {
            Ok(at) => at,
            Err(at) => {
                self.others.insert(at, make());
                at
            }
        };
        &mut self.others[at].1
    }
}

impl Selection {
    pub(super) fn of(events: Arc<[Arc<Event>]>) -> Selection {
        let bytes = events.iter().map(|event| event.record().bytes().len() as u64).sum();
        Selection { events, bytes, prevs: None }
    }

    /// Finds what the keys had before, with at most `reads_left` reads of the store, which it counts. False if it takes more.
    pub(super) fn find_prevs(&mut self, shared: &Arc<Shared>, reads_left: &mut u16) -> Result<bool, ReadError> {
        if let Some(found) = self.prevs {
            return Ok(found);
        }
        let far = self.events.iter().filter(|event| !event.is_prev_at_hand(shared)).count();
        // History gives nothing from before a compaction, though the log has it.
        let is_past = |event: &Arc<Event>| event.revision() < shared.published.load().compact;
        let found = far <= usize::from(*reads_left) || self.events.first().is_some_and(is_past);
        if found {
            *reads_left = reads_left.saturating_sub(u16::try_from(far).unwrap_or(u16::MAX));
            self.events.iter().try_for_each(|event| event.find_prev(shared))?;
        }
        self.prevs = Some(found);
        Ok(found)
    }
}
