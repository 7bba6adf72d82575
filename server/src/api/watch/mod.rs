//! The watch service: one implementation behind JSON lines, WebSocket and gRPC.
//!
//! ```text
//!  requests ──► Session::accept ──► mvcc::WatchStream (watchers, cursors)        Watches: how many streams there may be,
//!                                       │ poll_next                                        why all of them have to end
//!  responses ◄── wire form ◄── Session::poll_response ◄── history, on a thread that may block
//! ```
//!
//! There is no task and no queue per stream: whoever sends asks for the next response when there is room for it. A client
//! that does not read costs what is being sent, and its watchers go on from history once it does. Many streams of JSON lines
//! that wait for the same form a [`crowd`], which is told of it together.
//!
//! **Invariant**: a request is taken only after everything before has been handed on, so answers come in the order of
//! requests, and a client that asks without reading is not listened to.
//! **Invariant**: an event is encoded once for each wire form, with and without what the key had before.

mod crowd;
mod lines;
mod session;
mod socket;
mod streams;

pub(crate) use lines::watch;
pub(crate) use session::{Filled, Response, Session, read_history};
pub(crate) use socket::socket;
pub(crate) use streams::{Place, Watches, monitor};

/// Where an event keeps its encodings.
pub(crate) mod slot {
    const _: () = assert!(PROTO + 1 < tally_mvcc::ENCODINGS);

    /// JSON; with the previous record, the next one.
    pub(crate) const JSON: usize = 0;
    /// Protobuf; with the previous record, the next one.
    pub(crate) const PROTO: usize = 2;
}
