//! Whether a recorded history could have been produced by one store that does one thing at a time.
//!
//! *Is* checks of the same history, each able to fail alone. *Is not* a client: it sees only what was recorded.
//!
//! | check | trusts | finds |
//! |---|---|---|
//! | [`mod@facts`] | nothing but the answers | two writes with one revision, stale or backward reads, invented or doubled values |
//! | [`search`] | nothing but the answers | per key: no order of the operations explains all answers |
//! | [`timeline`] | the store's own past, read back at the end | lost writes, gaps, reads that are no snapshot of a revision |
//! | [`leases`] | the past, and one clock | early and late ends, leases that come back, keys left behind, times to live that grow |
//! | [`watches`] | the past | lost, doubled, disordered, torn and wrong events, progress told too soon |
//!
//! An operation without an answer may have taken effect at any time after it began, or never.

mod facts;
mod history;
#[cfg(test)]
mod lease_tests;
pub(crate) mod leases;
mod search;
#[cfg(test)]
mod tests;
mod timeline;
mod times;
#[cfg(test)]
mod watch_tests;
pub(crate) mod watches;

pub(crate) use facts::{Facts, Violation};
pub(crate) use history::{Action, Condition, Key, Lease, Op, Outcome, Stored, Write};
pub(crate) use search::Searched;
pub(crate) use timeline::Timeline;
pub(crate) use times::Times;

/// Checks a history by its answers alone.
pub(crate) fn facts(history: &[Op]) -> Result<Facts, Violation> {
    facts::check(history)
}

/// Checks the facts again, with what ended without a request, and then searches every key.
pub(crate) fn check(history: &[Op]) -> Result<(Facts, Searched), Violation> {
    let facts = facts::check(history)?;
    let searched = search::check(history, &facts, search::STATES_MAX)?;
    Ok((facts, searched))
}
