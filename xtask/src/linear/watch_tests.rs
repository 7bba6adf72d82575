//! Correct recordings pass, whatever was watched from when; planted lies are caught, each as what it is.

#![allow(clippy::unwrap_used)]

use super::history::{Action, Condition, Key, Op, Outcome, Stored, Write};
use super::timeline::Timeline;
use super::watches::{End, Event, Interest, Message, Response, Segment, Spec, Told, Untrue, Watched, fingerprint};
use crate::rng::Rng;

const ALL: Spec =
    Spec { interest: Interest::All, puts: true, deletions: true, previous: true, notified: false, fragments: false };

/// A past of 40 revisions of four keys; every fifth changes two keys, the higher one first.
fn past() -> (Timeline, Vec<Op>) {
    let (mut past, mut history, mut rng) = (Timeline::new(40), Vec::new(), Rng::new(7));
    let mut held: [Option<Stored>; 5] = [None; 5];
    for revision in 2..=40_i64 {
        let key = rng.below(4) as usize;
        let changed = if revision % 5 == 0 { vec![key + 1, key] } else { vec![key] };
        let mut writes = Vec::new();
        for key in changed {
            let value = revision as u64 * 10 + key as u64;
            let new = match held[key] {
                Some(_) if revision % 3 == 0 && revision % 5 != 0 => None,
                Some(old) => Some(Stored { value, modified: revision, version: old.version + 1, ..old }),
                None => Some(Stored { value, created: revision, modified: revision, version: 1, lease: 0 }),
            };
            held[key] = new;
            past.add(key as Key, revision, new);
            writes.push((key as Key, new.map_or(Write::Delete, |new| Write::Put(new.value))));
        }
        let condition = Condition::Modified(0);
        history.push(Op {
            client: 0,
            connection: 0,
            node: 0,
            invoked: 0,
            completed: 0,
            action: Action::Swap { key: writes[0].0, condition, writes },
            outcome: Outcome::Swapped { revision },
        });
    }
    (past, history)
}

/// What a correct store tells: every revision's events in one message, and its progress after every tenth revision.
fn told(past: &Timeline, history: &[Op], spec: Spec, start: i64, to: i64) -> Segment {
    let who = "watcher 1 on node 0".to_owned();
    let (events, responses) = (Vec::new(), Vec::new());
    let mut segment = Segment { spec, who, start, created: 40, events, responses, end: End::Complete };
    for op in history {
        let Outcome::Swapped { revision } = op.outcome else { continue };
        if !(start..=to).contains(&revision) {
            continue;
        }
        let before = segment.events.len();
        for (key, _) in op.writes() {
            let (new, old) = (past.as_of(key, revision), past.as_of(key, revision - 1));
            let wanted = if new.is_some() { spec.puts } else { spec.deletions };
            let watched = match spec.interest {
                Interest::All => true,
                Interest::Key(only) => key == only,
                Interest::Keys { first, count } => (first..first + count).contains(&key),
            };
            if wanted && watched {
                segment.events.push(Event {
                    revision: revision as u32,
                    key,
                    arrived_ms: 0,
                    deletion: new.is_none(),
                    record: new.as_ref().map_or(0, fingerprint),
                    previous: old.as_ref().filter(|_| spec.previous).map_or(0, fingerprint),
                });
            }
        }
        if segment.events.len() > before {
            push(&mut segment, Message::Events, revision);
        }
        if revision % 10 == 0 {
            push(&mut segment, Message::Progress, revision);
        }
    }
    segment
}

fn push(segment: &mut Segment, message: Message, revision: i64) {
    let events_end = segment.events.len() as u32;
    segment.responses.push(Response { message, revision: revision as u32, events_end });
}

fn check(segment: &Segment) -> Result<Watched, Untrue> {
    let (past, history) = past();
    let mut watched = Watched::default();
    Told::new(&past, &history).check(segment, &mut watched).map(|()| watched)
}

fn whole() -> Segment {
    let (past, history) = past();
    told(&past, &history, ALL, 2, 40)
}

/// Where the event of a revision with one event is.
fn index(segment: &Segment, revision: u32) -> usize {
    segment.events.iter().position(|event| event.revision == revision).unwrap()
}

/// Takes an event out, and its message if nothing else was in it.
fn remove(segment: &mut Segment, at: usize) -> Event {
    let event = segment.events.remove(at);
    let mut begun = 0;
    segment.responses.retain_mut(|response| {
        let emptied = response.message == Message::Events && (begun, response.events_end as usize) == (at, at + 1);
        begun = response.events_end as usize;
        response.events_end -= u32::from(response.events_end as usize > at);
        !emptied
    });
    event
}

#[test]
fn what_a_correct_store_tells_passes() {
    let (past, history) = past();
    let interests = [Interest::All, Interest::Key(1), Interest::Keys { first: 1, count: 2 }, Interest::Key(77)];
    for interest in interests {
        for (puts, deletions, previous) in [(true, true, false), (true, false, true), (false, true, true)] {
            for start in [1, 2, 5, 17, 41] {
                let spec = Spec { interest, puts, deletions, previous, ..ALL };
                let segment = told(&past, &history, spec, start, 40);
                check(&segment).unwrap_or_else(|found| panic!("{spec:?} from {start}: {found}"));
            }
        }
    }
    let watched = check(&whole()).unwrap();
    assert!(watched.previous > 10 && watched.several == 8 && watched.progress == 4, "{watched:?}");
}

#[test]
fn a_connection_may_break_anywhere_and_be_resumed() {
    let (past, history) = past();
    let mut segment = whole();
    for cut in (0..segment.responses.len()).rev() {
        segment.responses.truncate(cut);
        segment.events.truncate(segment.responses.last().map_or(0, |last| last.events_end as usize));
        segment.end = End::Broken;
        check(&segment).unwrap();
        let next = segment.responses.last().map_or(2, |last| i64::from(last.revision) + 1);
        check(&told(&past, &history, ALL, next, 40)).unwrap();
    }
}

#[test]
fn a_lost_event_is_caught() {
    for revision in [2, 13, 14, 40] {
        let mut segment = whole();
        let at = index(&segment, revision);
        remove(&mut segment, at);
        let found = check(&segment).unwrap_err();
        assert!(matches!(found, Untrue::Lost { .. }), "revision {revision}: {found}");
    }
    // The last one before the connection broke, if progress had been told after it.
    let mut segment = whole();
    segment.end = End::Broken;
    for _ in 0..2 {
        let last = segment.events.len() - 1;
        remove(&mut segment, last);
        assert!(matches!(check(&segment).unwrap_err(), Untrue::Lost { revision: 40, .. }));
    }
    // Without that it may have been under way.
    segment.responses.pop();
    check(&segment).unwrap();
}

#[test]
fn a_doubled_event_is_caught() {
    let mut segment = whole();
    let at = index(&segment, 13);
    let event = segment.events[at];
    segment.events.insert(at + 1, event);
    let message = segment.responses.iter().position(|response| response.events_end as usize == at + 1).unwrap();
    segment.responses[message..].iter_mut().for_each(|response| response.events_end += 1);
    assert!(matches!(check(&segment).unwrap_err(), Untrue::Twice { revision: 13, .. }));
    // In a message of its own.
    let again = Response { events_end: at as u32 + 1, ..segment.responses[message] };
    segment.responses.insert(message, again);
    assert!(matches!(check(&segment).unwrap_err(), Untrue::Split { revision: 13, .. }));
}

#[test]
fn reordered_events_are_caught() {
    let mut segment = whole();
    let at = index(&segment, 13);
    segment.events.swap(at, at + 1);
    let events = segment.responses.iter_mut().filter(|response| response.message == Message::Events);
    events.for_each(|response| response.revision = 40);
    let found = check(&segment).unwrap_err();
    assert!(matches!(found, Untrue::WentBack { .. }), "{found}");
    // Within one revision.
    let mut segment = whole();
    let at = index(&segment, 15);
    segment.events.swap(at, at + 1);
    assert!(matches!(check(&segment).unwrap_err(), Untrue::Disordered { revision: 15, .. }));
}

#[test]
fn a_split_revision_is_caught_unless_it_came_in_fragments() {
    let mut segment = whole();
    let at = index(&segment, 15);
    let message = segment.responses.iter().position(|response| response.events_end as usize == at + 2).unwrap();
    let first = Response { events_end: at as u32 + 1, ..segment.responses[message] };
    segment.responses.insert(message, first);
    assert!(matches!(check(&segment).unwrap_err(), Untrue::Split { revision: 15, .. }));
    segment.responses[message].message = Message::Fragment;
    assert!(matches!(check(&segment).unwrap_err(), Untrue::Unasked { revision: 15, .. }));
    segment.spec.fragments = true;
    assert_eq!(check(&segment).unwrap().fragments, 1);
    // A connection that breaks between two fragments.
    segment.responses.truncate(message + 1);
    segment.events.truncate(at + 1);
    segment.end = End::Broken;
    check(&segment).unwrap();
    // One that did not break owes the rest, and all that came after.
    segment.end = End::Complete;
    let found = check(&segment).unwrap_err();
    assert!(matches!(found, Untrue::Lost { revision: 15, .. }), "{found}");
}

#[test]
fn time_travel_after_a_reconnection_is_caught() {
    let (past, history) = past();
    let mut segment = told(&past, &history, ALL, 20, 40);
    // It had everything up to 22 from another node, and asked to go on after it.
    segment.start = 23;
    let found = check(&segment).unwrap_err();
    assert!(matches!(found, Untrue::WentBack { revision: 20, before: 22, .. }), "{found}");
    // From now on means from after the revision at which it was created.
    (segment.start, segment.created) = (0, 21);
    assert!(matches!(check(&segment).unwrap_err(), Untrue::WentBack { revision: 20, before: 21, .. }));
}

#[test]
fn progress_told_too_soon_is_caught() {
    let mut segment = whole();
    let place = segment.responses.iter().position(|response| response.revision == 12).unwrap();
    let early = Response { message: Message::Progress, revision: 13, ..segment.responses[place] };
    segment.responses.insert(place + 1, early);
    let found = check(&segment).unwrap_err();
    assert!(matches!(found, Untrue::AfterProgress { revision: 13, progress: 13, .. }), "{found}");
    // Below a start in the future.
    let (past, history) = past();
    let mut segment = told(&past, &history, ALL, 50, 40);
    push(&mut segment, Message::Progress, 40);
    assert!(matches!(check(&segment).unwrap_err(), Untrue::Header { revision: 40, .. }));
}

#[test]
fn notices_are_for_those_who_want_them() {
    let mut segment = whole();
    push(&mut segment, Message::Notice, 40);
    let found = check(&segment).unwrap_err();
    assert!(matches!(found, Untrue::Unasked { revision: 40, .. }), "{found}");
    segment.spec.notified = true;
    assert_eq!(check(&segment).unwrap().progress, 5);
    // They promise as much as an answer to a question.
    let last = segment.events.len() - 1;
    segment.end = End::Broken;
    remove(&mut segment, last);
    assert!(matches!(check(&segment).unwrap_err(), Untrue::Lost { revision: 40, .. }));
}

#[test]
fn revisions_that_the_store_never_had_are_caught() {
    for message in [Message::Progress, Message::Events] {
        let mut segment = whole();
        push(&mut segment, message, 41);
        let found = check(&segment).unwrap_err();
        assert!(matches!(found, Untrue::Header { revision: 41, .. }), "{found}");
    }
    let segment = Segment { created: 41, ..whole() };
    assert!(matches!(check(&segment).unwrap_err(), Untrue::Header { revision: 41, .. }));
}

#[test]
fn wrong_contents_and_unwanted_events_are_caught() {
    let mut segment = whole();
    let at = index(&segment, 21);
    segment.events[at].record ^= 1;
    assert!(matches!(check(&segment).unwrap_err(), Untrue::Contents { revision: 21, what: "another record", .. }));
    let mut segment = whole();
    let at = segment.events.iter().position(|event| event.previous != 0).unwrap();
    segment.events[at].previous = 0;
    assert!(matches!(check(&segment).unwrap_err(), Untrue::Contents { what: "another record before it", .. }));
    let mut segment = whole();
    segment.spec.deletions = false;
    assert!(matches!(check(&segment).unwrap_err(), Untrue::Invented { .. }));
    segment.spec = Spec { interest: Interest::Key(1), ..ALL };
    assert!(matches!(check(&segment).unwrap_err(), Untrue::Invented { .. }));
    let mut segment = whole();
    let at = segment.responses.iter().position(|response| response.message == Message::Events).unwrap();
    segment.responses[at].revision = 1;
    assert!(matches!(check(&segment).unwrap_err(), Untrue::Header { revision: 1, .. }));
}

#[test]
fn a_cancellation_needs_a_compaction_in_the_way() {
    let mut segment = whole();
    let keep = index(&segment, 13);
    segment.events.truncate(keep);
    segment.responses.retain(|response| response.events_end as usize <= keep);
    segment.end = End::Compacted(14);
    check(&segment).unwrap();
    segment.end = End::Compacted(13);
    assert!(matches!(check(&segment).unwrap_err(), Untrue::Cancelled { compacted: 13, needed: 13, .. }));
}
