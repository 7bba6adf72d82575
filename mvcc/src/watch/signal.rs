//! How the hub reaches a stream: the groups that have news, and whom to wake.

use std::sync::Mutex;
use std::task::Waker;

use crate::shared::lock;

/// One stream's bell. It outlives neither the stream nor its attachment to a store.
pub(super) struct Signal {
    /// The stream's number with the hub.
    number: i64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Groups with news, each once.
    dirty: Vec<u32>,
    /// Whether a group is in `dirty`.
    marked: Bits,
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

    /// Takes a number out.
    pub(super) fn clear(&mut self, number: u32) {
        if let Some(word) = self.0.get_mut(number as usize / 64) {
            *word &= !(1u64 << (number % 64));
        }
    }
}

/// What a stream finds when it looks.
pub(super) enum News {
    /// Groups were added to the caller's list.
    Groups,
    /// The store is not written any more, and another may have taken its place.
    Closed,
    /// Nothing; the waker given will be called.
    None,
}

impl Signal {
    pub(super) fn new(number: i64) -> Signal {
        Signal { number, state: Mutex::default() }
    }

    pub(super) fn number(&self) -> i64 {
        self.number
    }

    /// Notes that a group has news. Returns whom to wake, if the stream sleeps.
    pub(super) fn mark(&self, group: u32) -> Option<Waker> {
        let mut state = lock(&self.state);
        if state.marked.set(group) {
            state.dirty.push(group);
        }
        state.waker.take()
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
        if state.dirty.is_empty() {
            if let Some(waker) = waker
                && !state.waker.as_ref().is_some_and(|known| known.will_wake(waker))
            {
                state.waker = Some(waker.clone());
            }
            return News::None;
        }
        let State { dirty, marked, .. } = &mut *state;
        dirty.iter().for_each(|group| marked.clear(*group));
        groups.extend(dirty.drain(..));
        // A burst should not be paid for as long as the stream lives.
        dirty.shrink_to(16);
        News::Groups
    }
}
