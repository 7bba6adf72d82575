//! From a command to its outcome, whoever leads.

mod batcher;
mod forwarded;
mod forwarder;
mod waiting;

pub use batcher::ProposeError;
pub(crate) use batcher::{Parts, Proposals, batcher};
pub(crate) use forwarded::Forwarded;
pub(crate) use waiting::{Unsent, Waiting};
