//! Whether a recorded history could have been produced by one store that does one thing at a time.
//!
//! *Is* three checks of the same history, each able to fail alone. *Is not* a client: it sees only what was recorded.
//!
//! | check | trusts | finds |
//! |---|---|---|
//! | [`facts`] | nothing but the answers | two writes with one revision, stale or backward reads, invented or doubled values |
//! | [`search`] | nothing but the answers | per key: no order of the operations explains all answers |
//! | [`timeline`] | the store's own past, read back at the end | lost writes, gaps, reads that are no snapshot of a revision |
//!
//! An operation without an answer may have taken effect at any time after it began, or never.

mod facts;
mod history;
mod search;
#[cfg(test)]
mod tests;
mod timeline;

pub(crate) use facts::{Facts, Violation};
pub(crate) use history::{Action, Condition, Key, Op, Outcome, Stored, Write};
pub(crate) use search::Searched;
pub(crate) use timeline::Timeline;

/// Checks a history by its answers alone: the facts first, then the search of every key.
pub(crate) fn check(history: &[Op]) -> Result<(Facts, Searched), Violation> {
    let facts = facts::check(history)?;
    let searched = search::check(history, &facts, search::STATES_MAX)?;
    Ok((facts, searched))
}
