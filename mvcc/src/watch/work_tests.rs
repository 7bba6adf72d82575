//! How much is looked at for what clients may ask for again and again: counted, not timed.

use std::sync::Arc;

use super::signal::Signal;
use super::topic::{Subscriber, Subscribers};
use super::watcher::Ids;

const MANY: i64 = 1_000;

#[test]
fn streams_of_a_topic_come_and_go_without_a_look_at_the_others() {
    let signals: Vec<_> = (0..MANY).map(|number| Arc::new(Signal::new(number))).collect();
    let mut subscribers = Subscribers::default();
    for (group, signal) in (0..).zip(&signals) {
        assert_eq!(subscribers.group_of(signal), None);
        subscribers.add(Subscriber { signal: Arc::clone(signal), group });
    }
    assert!(subscribers.iter().map(|one| one.signal.number()).eq(0..MANY));
    let Subscribers::Many(all) = &subscribers else { panic!("there are many") };
    all.walked.set(0);
    // The newest first, as a connection may drop them, then from the other end.
    for (group, signal) in (0..MANY as u32).zip(&signals).rev().take(MANY as usize / 2) {
        assert_eq!(subscribers.group_of(signal), Some(group));
        subscribers.remove(signal);
        assert_eq!(subscribers.group_of(signal), None);
    }
    for signal in &signals[..MANY as usize / 2 - 1] {
        subscribers.remove(signal);
        subscribers.remove(signal);
    }
    let Subscribers::Many(all) = &subscribers else { panic!("one is left") };
    assert_eq!((all.len(), all.walked.get()), (1, 0));
    subscribers.remove(&signals[MANY as usize / 2 - 1]);
    assert!(subscribers.is_empty() && subscribers.iter().next().is_none());
}

#[test]
fn watchers_of_a_range_are_canceled_without_a_look_at_the_others() {
    let mut ids = Ids::One(0);
    (1..MANY).for_each(|id| ids.add(id));
    for id in (1..MANY).rev() {
        assert!(!ids.remove(id));
    }
    let Ids::Many(all) = &ids else { panic!("there were many") };
    assert_eq!((all.len(), all.walked.get()), (1, 0));
    assert!(ids.iter().eq([0]) && ids.remove(0));
}
