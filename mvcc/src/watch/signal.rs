//! How the hub reaches a stream: the groups that have news, and whom to wake.

use std::sync::Mutex;
use std::task::Waker;

use crate::shared::lock;

/// One stream's bell. It outlives neither the stream nor its attachment to a store.
#[derive(Default)]
pub(super) struct Signal(Mutex<State>);

#[derive(Default)]
struct State {
    /// Groups with news, each once.
    dirty: Vec<u32>,
    /// One bit per group: whether it is in `dirty`.
    marked: Vec<u64>,
    waker: Option<Waker>,
    closed: bool,
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
    /// Notes that a group has news. Returns whom to wake, if the stream sleeps.
    pub(super) fn mark(&self, group: u32) -> Option<Waker> {
        let mut state = lock(&self.0);
        let (word, bit) = (group as usize / 64, 1u64 << (group % 64));
        if state.marked.len() <= word {
            state.marked.resize(word + 1, 0);
        }
        if state.marked[word] & bit == 0 {
            state.marked[word] |= bit;
            state.dirty.push(group);
        }
        state.waker.take()
    }

    /// Notes that the store is closed.
    pub(super) fn close(&self) -> Option<Waker> {
        let mut state = lock(&self.0);
        state.closed = true;
        state.waker.take()
    }

    /// Moves the marked groups into `groups`; if there is nothing to tell, `waker` is called when there is.
    pub(super) fn look(&self, groups: &mut impl Extend<u32>, waker: Option<&Waker>) -> News {
        let mut state = lock(&self.0);
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
        for group in dirty.iter() {
            marked[*group as usize / 64] &= !(1u64 << (group % 64));
        }
        groups.extend(dirty.drain(..));
        // A burst should not be paid for as long as the stream lives.
        dirty.shrink_to(16);
        News::Groups
    }
}
