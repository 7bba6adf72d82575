//! Watching: every change to a range of keys, in order, once, and all changes of a revision together.
//!
//! It *is* the way from published revisions to streams of watchers. It *is not* a wire form, a task or a timer: a
//! [`WatchStream`] is polled, reads history when its caller says where that may block, and is told when a notify interval
//! is over.
//!
//! ```text
//!   Writer::publish ──> hub: which topics does this key touch?      topic: a watched range, its newest events
//!                        exact keys: sorted set                       │  log from `floor` on ── subscribers
//!                        ranges: interval tree                        ▼
//!                        window: what the logs keep, bounded       signal of each stream: marked groups, waker
//!                                                                     │
//!   WatchStream::poll_next <──────────── groups (a topic, and this stream's watchers of it), cursors
//!        │ watcher behind the floor                                   ▲
//!        └──> History::read (any thread): index or records by revision ┘ absorb
//! ```
//!
//! Watchers of one range share a topic, whatever stream they are on. A watcher is a cursor: the next revision that it has
//! not been given. Nothing is queued for it. What it has not taken stands in its topic's log as long as the window has
//! room, and in the store's history after that; so a watcher that does not keep up costs nothing, loses nothing, and is
//! level again as soon as its cursor has reached the floor of its topic's log. Where very many streams wait for the same,
//! they may step aside, and another one hands on what comes (see [`aside`]).
//!
//! **Invariant**: a topic's log holds every event of its range from `floor` to the last revision that the hub was told of.
//! **Invariant**: a watcher is given the events from its cursor on, whole revisions at a time, and its cursor never goes
//! back: not at the hand-over between history and log, and not when the store is replaced by another.
//! **Invariant**: revision R is told as progress only after every event up to R has been handed out.
//! **Invariant**: what a client may ask for without end (how far the stream is, to end a watcher) looks at no other watcher.
//! **Invariant**: publishing costs one lock when nobody watches, and is otherwise in proportion to the topics that are
//! touched and the streams that watch them; watchers of other keys cost a lookup together, not each.

mod aside;
mod event;
mod figures;
mod history;
mod hub;
mod intervals;
mod poll;
mod progress;
mod roster;
mod signal;
mod spec;
mod stream;
mod taken;
mod topic;
mod watcher;
#[cfg(test)]
mod work_tests;

pub use aside::Substitute;
pub use event::{ENCODINGS, Event};
pub use figures::WatchFigures;
pub use history::{History, HistoryRead};
pub(crate) use hub::{Hub, Window};
pub use spec::{CreateError, Filters, WatchLimits, WatchSpec};
pub use stream::{Batch, Created, Delivery, PROGRESS_REQUESTS_MAX, Step, StoreId, WatchStream};
