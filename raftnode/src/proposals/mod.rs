//! From a command to its outcome, whoever leads.

mod batcher;
mod forwarder;
mod waiting;

pub use batcher::ProposeError;
pub(crate) use batcher::{Forwarded, Parts, Proposals, batcher};
pub(crate) use waiting::{Unsent, Waiting};
