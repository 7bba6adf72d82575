//! `/tally/roots`: state roots that can be compared between members while they go on.
//!
//! One line each, oldest first: the applied index, and the root of the whole state after it, in hexadecimal. There is one
//! for every so many entries, at the same indexes on all members, and one for what is applied now.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use tally_raftnode::Node;

/// The route.
pub(crate) fn routes(node: Node) -> Router {
    Router::new().route("/tally/roots", get(serve)).with_state(node)
}

async fn serve(State(node): State<Node>) -> Response {
    let reads = node.reads();
    // Asked for first, so that what is applied meanwhile is not missing between the two.
    let applied = reads.applied();
    let mut roots = reads.checkpoints();
    roots.retain(|(index, _)| *index < applied.index);
    roots.push((applied.index, applied.root));
    let mut response = Response::new(Body::from(lines(&roots)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn lines(roots: &[(u64, u128)]) -> String {
    roots.iter().map(|(index, root)| format!("{index} {root:032x}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::lines;

    #[test]
    fn roots_are_lines_of_a_fixed_form() {
        let text = lines(&[(100, 0xab), (103, u128::MAX)]);
        assert_eq!(text, "100 000000000000000000000000000000ab\n103 ffffffffffffffffffffffffffffffff\n");
    }
}
