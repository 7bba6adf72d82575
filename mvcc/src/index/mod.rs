//! The index: a copy-on-write B+tree from keys to their revisions that also counts and adds up.
//!
//! One writer owns a [`Tree`] and changes it; a reader takes a clone, which costs one reference count, and keeps it as
//! long
//! as it likes. The writer changes nodes in place that no clone shares, and copies those that one does.
//!
//! ```text
//!  Tree ── Inner ─┬─ Inner ─┬─ Leaf   keys, newest revision of each, histories of those that have older ones
//!                 │         └─ Leaf
//!                 └─ Inner ── ...     per child: live keys, keys, due, sum of fingerprints
//! ```
//!
//! **Invariant**: what a clone answers never changes.
//! **Invariant**: counts and sums are those of all revisions inserted and not dropped by a logical compaction; the
//! shape of the
//! tree, which depends on the order of operations, has no part in them.
//! **Invariant**: histories are not empty and ascend strictly.

mod bulk;
mod compact;
mod history;
mod insert;
mod keys;
mod leaf;
mod node;
mod range;
mod revision;
mod summary;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use keys::Key;
pub(crate) use revision::Rev;
pub use revision::Revision;
pub(crate) use tree::{KeyHistory, Tree};
