//! How the hub reaches a stream: the groups that have news, and whom to wake.

use std::sync::Mutex;
use std::task::Waker;

use crate::shared::lock;

/// One stream's bell. It outlives neither the stream nor its attachment to a store.
pub(super) struct Signal {
    /// The stream's number with the hub.
    number: i64,
    /// Whether the stream is one of those in the figures.
    is_counted: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Groups with news, each once.
    dirty: Vec<u32>,
    /// Whether a group is in `dirty`.
    marked: Bits,
    /// The revision of the oldest of the news, if there are any.
    since: i64,
    waker: Option<Waker>,
    closed: bool,
}

/// A set of small numbers.
#[derive(Default)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// Puts a number in; false if it was in.
    pub(super) fn set(&mut self, number: u32) -> bool {
        let (word, bit) = (number as usize / 64, 1u64 << (number % 64));
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    pub(super) fn has(&self, number: u32) -> bool {
        self.0.get(number as usize / 64).is_some_and(|word| word & (1u64 << (number % 64)) != 0)
    }

    /// Takes a number out.
    pub(super) fn clear(&mut self, number: u32) {
        if let Some(word) = self.0.get_mut(number as usize / 64) {
            *word &= !(1u64 << (number % 64));
        }
    }
}

/// What a stream finds when it looks.
pub(super) enum News {
    /// Groups were added to the caller's list. Since the stream looked before, none had an event below this revision.
    Groups(i64),
    /// The store is not written any more, and another may have taken its place.
    Closed,
    /// Nothing; the waker given will be called.
    None,
}

impl Signal {
    pub(super) fn new(number: i64, is_counted: bool) -> Signal {
        Signal { number, is_counted, state: Mutex::default() }
    }

    pub(super) fn number(&self) -> i64 {
        self.number
    }

    pub(super) fn is_counted(&self) -> bool {
        self.is_counted
    }

    /// Whether there is something for the stream to look at.
    pub(super) fn has_news(&self) -> bool {
        let state = lock(&self.state);
        state.closed || !state.dirty.is_empty()
    }

    /// Notes that a group has news, from `revision` on. Returns whom to wake, if the stream sleeps.
    pub(super) fn mark(&self, group: u32, revision: i64) -> Option<Waker> {
        let mut state = lock(&self.state);
        state.since = if state.dirty.is_empty() { revision } else { state.since.min(revision) };
        if state.marked.set(group) {
            state.dirty.push(group);
        }
        state.waker.take()
    }

    /// Whom to wake, if the stream sleeps, although there may be no news.
    pub(super) fn ring(&self) -> Option<Waker> {
        lock(&self.state).waker.take()
    }

    /// Notes that the store is closed.
    pub(super) fn close(&self) -> Option<Waker> {
        let mut state = lock(&self.state);
        state.closed = true;
        state.waker.take()
    }

    /// Moves the marked groups into `groups`; if there is nothing to tell, `waker` is called when there is.
    pub(super) fn look(&self, groups: &mut impl Extend<u32>, waker: Option<&Waker>) -> News {
        let mut state = lock(&self.state);
        if state.closed {
            return News::Closed;
        }
        if let Some(since) = state.give(groups) {
            return News::Groups(since);
        }
        if let Some(waker) = waker
            && !state.waker.as_ref().is_some_and(|known| known.will_wake(waker))
        {
            state.waker = Some(waker.clone());
        }
        News::None
    }

    /// Moves the marked groups into `groups`, also if the store is closed. The oldest news are of the revision returned.
    pub(super) fn unmark(&self, groups: &mut impl Extend<u32>) -> Option<i64> {
        lock(&self.state).give(groups)
    }
}

impl State {
    fn give(&mut self, groups: &mut impl Extend<u32>) -> Option<i64> {
        if self.dirty.is_empty() {
            return None;
        }
        let State { dirty, marked, .. } = self;
        dirty.iter().for_each(|group| marked.clear(*group));
        groups.extend(dirty.drain(..));
        // A burst should not be paid for as long as the stream lives.
        dirty.shrink_to(16);
        Some(self.since)
    }
}
