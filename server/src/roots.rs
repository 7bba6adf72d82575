//! `/tally/roots`: state roots at the same places of the log on every member, for whoever wants to compare them.

use std::fmt::Write as _;

use axum::Router;
use axum::routing::get;
use tally_raftnode::Node;

/// One line for each of the last checkpoints and one for the state as it is now: applied index, and root in hex.
/// Members that have lines of the same index and different roots have different states.
pub(crate) fn routes(node: &Node) -> Router {
    let node = node.clone();
    Router::new().route("/tally/roots", get(move || async move { roots(&node) }))
}

fn roots(node: &Node) -> String {
    let reads = node.reads();
    let now = reads.applied();
    let mut lines = String::new();
    for (index, root) in reads.checkpoints().into_iter().chain([(now.index, now.root)]) {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "{index} {root:032x}");
    }
    lines
}
