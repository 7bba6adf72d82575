//! Whether what watchers were told is the store's past: ordered, unique, atomic, reliable, resumable, bookmarkable.
//!
//! A watcher that reconnects leaves one [`Segment`] per connection; each begins where the one before had got to, so all are
//! checked alike and resumption needs no check of its own: an event told twice is one from before the segment's start, a
//! lost one is missing in it.
//!
//! **Invariant**: an event takes 32 bytes here, whatever its value: contents are compared by fingerprint.

use std::collections::{BTreeMap, HashMap};

use super::history::{Action, Key, Op, Stored, Write};
use super::timeline::Timeline;
use crate::rng::mix;

/// Which keys are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    Key(Key),
    /// `count` keys from `first` on.
    Keys {
        first: Key,
        count: u32,
    },
    All,
}

/// What a watcher asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) interest: Interest,
    pub(crate) puts: bool,
    pub(crate) deletions: bool,
    /// Whether every event is to carry what it replaced.
    pub(crate) previous: bool,
    /// Whether the store may tell where the watcher stands without being asked.
    pub(crate) notified: bool,
    /// Whether large revisions may come in pieces.
    pub(crate) fragments: bool,
}

/// An event as it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) revision: u32,
    pub(crate) key: Key,
    /// When it arrived, in milliseconds since the run began, rounded up.
    pub(crate) arrived_ms: u32,
    pub(crate) deletion: bool,
    /// Fingerprint of the new record; 0 for a deletion.
    pub(crate) record: u64,
    /// Fingerprint of the record before; 0 for none.
    pub(crate) previous: u64,
}

/// What a message was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// Events, all of their revisions.
    Events,
    /// Events, and more of the last one's revision follow.
    Fragment,
    /// No events: everything up to the revision was told, to all watchers of the stream, who had asked.
    Progress,
    /// The same to one watcher, unasked.
    Notice,
}

/// A message as it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) message: Message,
    /// The header's.
    pub(crate) revision: u32,
    /// The segment's events up to here were in it and those before.
    pub(crate) events_end: u32,
}

/// How a segment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It was still there when the store stood still, and had the time to tell everything.
    Complete,
    /// The connection broke, was closed, or the watcher was cancelled by its client.
    Broken,
    /// Cancelled by the store, which no longer has what is before this revision.
    Compacted(i64),
}

/// What one watcher was told on one connection.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) spec: Spec,
    /// Which watcher on which node, for people.
    pub(crate) who: String,
    /// The revision that was asked to begin with; 0 to begin with what comes next.
    pub(crate) start: i64,
    /// The revision of the header that said that it was created.
    pub(crate) created: i64,
    pub(crate) events: Vec<Event>,
    pub(crate) responses: Vec<Response>,
    pub(crate) end: End,
}

/// How a watcher betrays that it was not told the store's past.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Untrue {
    /// An event from before its start, or after a later one.
    #[error("{who}: went back to revision {revision} after {before}")]
    WentBack { who: String, revision: i64, before: i64 },
    /// An event twice.
    #[error("{who}: was told twice of key {key} at revision {revision}")]
    Twice { who: String, key: Key, revision: i64 },
    /// An event that it asked for and was never told.
    #[error("{who}: never heard of key {key} at revision {revision}, and was told {told}")]
    Lost { who: String, key: Key, revision: i64, told: String },
    /// An event that is not in the past, or that it did not ask for.
    #[error("{who}: was told of key {key} at revision {revision}, which is nothing that it should hear of")]
    Invented { who: String, key: Key, revision: i64 },
    /// Events of one revision in another order than they happened.
    #[error("{who}: at revision {revision} key {key} came before key {first}")]
    Disordered { who: String, revision: i64, key: Key, first: Key },
    /// One revision in two messages.
    #[error("{who}: revision {revision} came in two messages that were no fragments")]
    Split { who: String, revision: i64 },
    /// An event at or below a revision that everything had been told up to.
    #[error("{who}: heard of revision {revision} after it had been told to have all up to {progress}")]
    AfterProgress { who: String, revision: i64, progress: i64 },
    /// A message from before the watcher's start or older than its events.
    #[error("{who}: a message of revision {revision} {why}")]
    Header { who: String, revision: i64, why: String },
    /// A kind of message that only those get who want it.
    #[error("{who}: a message of revision {revision} {what}, which it had not asked for")]
    Unasked { who: String, revision: i64, what: &'static str },
    /// An event with another record than the past.
    #[error("{who}: key {key} at revision {revision} came with {what} than {expected}")]
    Contents { who: String, key: Key, revision: i64, what: &'static str, expected: String },
    /// Cancelled for a compaction that was none, or that was not in its way.
    #[error("{who}: cancelled as compacted at {compacted} though it needed nothing before {needed}")]
    Cancelled { who: String, compacted: i64, needed: i64 },
}

/// What was checked.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) segments: u64,
    pub(crate) events: u64,
    /// Events that came with the right record before.
    pub(crate) previous: u64,
    pub(crate) progress: u64,
    pub(crate) fragments: u64,
    /// Revisions of several events that came at once and in order.
    pub(crate) several: u64,
    /// Segments that were still there at the end.
    pub(crate) complete: u64,
    /// Watchers that were cancelled because what they needed was compacted.
    pub(crate) cancelled: u64,
}

/// A record's fingerprint; never 0.
pub(crate) fn fingerprint(stored: &Stored) -> u64 {
    let figures =
        [stored.value, stored.created as u64, stored.modified as u64, stored.version as u64, stored.lease as u64];
    figures.iter().fold(1, |print, figure| mix(print ^ figure).wrapping_add(print << 1)).max(1)
}

/// An event that should have been told.
#[derive(Debug, Clone, Copy)]
struct Due {
    revision: i64,
    key: Key,
    stored: Option<Stored>,
    previous: Option<Stored>,
}

/// The past, in the order of events.
#[derive(Debug)]
pub(crate) struct Told<'run> {
    past: &'run Timeline,
    /// The changes of every revision, in order.
    revisions: BTreeMap<i64, Vec<(Key, Option<Stored>)>>,
}

impl<'run> Told<'run> {
    /// The past with every revision's changes in the order in which its operation makes them: a transaction's in that of
    /// its requests, a lease's in that of the keys.
    pub(crate) fn new(past: &'run Timeline, history: &[Op]) -> Told<'run> {
        let mut revisions = past.revisions();
        let mut orders: HashMap<u64, Vec<Key>> = HashMap::new();
        for op in history.iter().filter(|op| matches!(op.action, Action::Swap { .. })) {
            let writes = op.writes();
            let order: Vec<Key> = writes.iter().map(|(key, _)| *key).collect();
            let put = |(_, write): &(Key, Write)| if let Write::Put(value) = write { Some(*value) } else { None };
            writes.iter().filter_map(put).for_each(|value| _ = orders.insert(value, order.clone()));
        }
        for changes in revisions.values_mut().filter(|changes| changes.len() > 1) {
            let order = changes.iter().find_map(|(_, stored)| orders.get(&stored.as_ref()?.value));
            if let Some(order) = order {
                changes.sort_by_key(|(key, _)| order.iter().position(|other| other == key));
            }
        }
        Told { past, revisions }
    }

    /// Checks one segment.
    pub(crate) fn check(&self, segment: &Segment, watched: &mut Watched) -> Result<(), Untrue> {
        let start = if segment.start == 0 { segment.created + 1 } else { segment.start };
        let last = self.past.last;
        // The past was read when nothing changed any more, so nobody can have been told of more.
        let after = segment.responses.iter().map(|response| i64::from(response.revision)).find(|told| *told > last);
        if let Some(revision) = after.or((segment.created > last).then_some(segment.created)) {
            let why = format!("though the store's last is {last}");
            return Err(Untrue::Header { who: segment.who.clone(), revision, why });
        }
        let reached = messages(segment, start)?;
        let to = match segment.end {
            End::Complete => last.max(reached),
            End::Broken => reached,
            End::Compacted(compacted) if reached + 1 >= compacted => {
                let (who, needed) = (segment.who.clone(), reached + 1);
                return Err(Untrue::Cancelled { who, compacted, needed });
            }
            End::Compacted(_) => reached,
        };
        self.compare(segment, start, to, watched)?;
        watched.segments += 1;
        watched.events += segment.events.len() as u64;
        watched.complete += u64::from(segment.end == End::Complete);
        let many = |wanted| segment.responses.iter().filter(|response| response.message == wanted).count() as u64;
        watched.progress += many(Message::Progress) + many(Message::Notice);
        watched.fragments += many(Message::Fragment);
        watched.several += segment.events.windows(2).filter(|pair| pair[0].revision == pair[1].revision).count() as u64;
        Ok(())
    }

    /// Everything that a watcher should have been told between two revisions, in order.
    fn due(&self, spec: &Spec, from: i64, to: i64) -> Vec<Due> {
        if to < from {
            return Vec::new();
        }
        let due = |revision: i64, key: Key, stored: Option<Stored>| {
            let previous = self.past.as_of(key, revision - 1);
            let wanted = if stored.is_some() { spec.puts } else { spec.deletions };
            wanted.then_some(Due { revision, key, stored, previous })
        };
        let (first, count) = match spec.interest {
            Interest::All => {
                let revisions = self.revisions.range(from..=to);
                let all = revisions.flat_map(|(at, changes)| changes.iter().map(|(key, stored)| (*at, *key, *stored)));
                return all.filter_map(|(at, key, stored)| due(at, key, stored)).collect();
            }
            Interest::Key(key) => (key, 1),
            Interest::Keys { first, count } => (first, count),
        };
        let mut found: Vec<Due> = Vec::new();
        for key in first..first + count {
            let changes = self.past.changes(key).into_iter().flat_map(|changes| changes.range(from..=to));
            found.extend(changes.filter_map(|(at, stored)| due(*at, key, *stored)));
        }
        let place = |due: &Due| {
            let changes = self.revisions.get(&due.revision);
            changes.and_then(|changes| changes.iter().position(|(key, _)| *key == due.key))
        };
        found.sort_by_cached_key(|due| (due.revision, place(due)));
        found
    }

    /// The events are those that were due, with the right contents.
    fn compare(&self, segment: &Segment, from: i64, to: i64, watched: &mut Watched) -> Result<(), Untrue> {
        // Of a revision that broke off only the beginning was told. Nothing else is forgiven for a fragment at the end.
        let last = segment.responses.last().filter(|response| response.message == Message::Fragment);
        let partial = last.filter(|_| segment.end == End::Broken);
        let partial = partial.and_then(|_| segment.events.last()).map(|event| i64::from(event.revision));
        let due = self.due(&segment.spec, from, partial.map_or(to, |partial| partial.max(to)));
        let mut due = due.iter();
        let who = || segment.who.clone();
        for event in &segment.events {
            let (key, revision) = (event.key, i64::from(event.revision));
            let Some(wanted) = due.next() else { return Err(Untrue::Invented { who: who(), key, revision }) };
            if (wanted.revision, wanted.key) != (revision, key) {
                return Err(self.differs(segment, wanted, event));
            }
            let record = wanted.stored.as_ref().map_or(0, fingerprint);
            let previous = wanted.previous.as_ref().filter(|_| segment.spec.previous).map_or(0, fingerprint);
            let wrong = |what, expected: Option<Stored>| {
                let expected = expected.map_or_else(|| "nothing".to_owned(), |stored| format!("{stored:?}"));
                Err(Untrue::Contents { who: who(), key, revision, what, expected })
            };
            if event.deletion != wanted.stored.is_none() || event.record != record {
                return wrong("another record", wanted.stored);
            }
            if event.previous != previous {
                return wrong("another record before it", wanted.previous.filter(|_| segment.spec.previous));
            }
            watched.previous += u64::from(previous != 0);
        }
        match due.next().filter(|missing| partial.is_none_or(|partial| missing.revision < partial)) {
            None => Ok(()),
            Some(Due { revision, key, .. }) => {
                let told = match segment.end {
                    End::Complete => format!("to have everything up to {to}"),
                    End::Broken | End::Compacted(_) => format!("of progress up to {to}"),
                };
                let (Segment { start, created, events, .. }, newest) = (segment, segment.events.last());
                let newest = newest.map_or(0, |event| event.revision);
                let told =
                    format!("{told} (from {start}, created at {created}, {} events up to {newest})", events.len());
                Err(Untrue::Lost { who: who(), key: *key, revision: *revision, told })
            }
        }
    }

    /// What it means that another event came than was due.
    fn differs(&self, segment: &Segment, wanted: &Due, event: &Event) -> Untrue {
        let (who, key, revision) = (segment.who.clone(), event.key, i64::from(event.revision));
        let same = |other: &&Event| (other.revision, other.key) == (event.revision, event.key);
        if segment.events.iter().filter(same).count() > 1 {
            return Untrue::Twice { who, key, revision };
        }
        let real = !self.due(&segment.spec, revision, revision).iter().all(|due| due.key != key);
        if !real {
            return Untrue::Invented { who, key, revision };
        }
        let comes = |other: &Event| (i64::from(other.revision), other.key) == (wanted.revision, wanted.key);
        if wanted.revision == revision && segment.events.iter().any(comes) {
            return Untrue::Disordered { who, revision, key, first: wanted.key };
        }
        let told = format!("of revision {revision} next");
        Untrue::Lost { who, key: wanted.key, revision: wanted.revision, told }
    }
}

/// The order of messages and of the revisions in them; gives up to which revision everything has been told.
fn messages(segment: &Segment, start: i64) -> Result<i64, Untrue> {
    let who = || segment.who.clone();
    let header = |revision: i64, why: String| Err(Untrue::Header { who: who(), revision, why });
    let (mut reached, mut newest, mut progress, mut begun) = (start - 1, start - 1, 0, 0_usize);
    // The revision that further events may belong to: of the same message, or of the fragment after.
    let mut open = None;
    for response in &segment.responses {
        let told = i64::from(response.revision);
        for event in &segment.events[begun..response.events_end as usize] {
            let revision = i64::from(event.revision);
            if revision <= progress {
                return Err(Untrue::AfterProgress { who: who(), revision, progress });
            }
            if open == Some(revision) {
                continue;
            }
            if revision == newest && revision >= start {
                return Err(Untrue::Split { who: who(), revision });
            }
            if revision <= newest {
                return Err(Untrue::WentBack { who: who(), revision, before: newest });
            }
            (newest, open) = (revision, Some(revision));
        }
        begun = response.events_end as usize;
        if told < newest && newest >= start {
            return header(told, format!("came with or after an event of revision {newest}"));
        }
        let unasked = |what| Err(Untrue::Unasked { who: who(), revision: told, what });
        match response.message {
            Message::Fragment if !segment.spec.fragments => return unasked("was a fragment"),
            Message::Notice if !segment.spec.notified => return unasked("told of its progress alone"),
            Message::Fragment => reached = reached.max(newest - 1),
            Message::Events => (reached, open) = (reached.max(newest), None),
            Message::Progress | Message::Notice if told < start - 1 => {
                return header(told, format!("told of progress before the start at {start}"));
            }
            Message::Progress | Message::Notice if told < progress => {
                return header(told, format!("told of progress after one of {progress}"));
            }
            Message::Progress | Message::Notice => (reached, progress) = (reached.max(told), told),
        }
    }
    Ok(reached)
}
