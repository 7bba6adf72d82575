//! Answers that are definite, and come in time: of members whose limits differ, and to changes that nobody can commit.
#![allow(clippy::unwrap_used)]

#[path = "common/cluster.rs"]
mod cluster;
mod common;

use cluster::{Cluster, eventually, within};
use common::{put, revision};
use tally_raftnode::{MemberChange, MemberError, ProposeError};

/// An entry that a follower does not take for its size can never be replicated to it, nor anything behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_member_may_propose_the_others_take_and_what_the_leader_may_not_is_refused() {
    const SMALL_LIMIT: usize = 1 << 20;
    // More than a log takes by default, and more than a batch may have.
    let large = "v".repeat(17 << 20);
    let limit = |id: u64| if id == 1 { 20 << 20 } else { SMALL_LIMIT };
    let cluster = Cluster::start(|id, config| config.command_bytes_max = limit(id)).await;
    cluster.lead(1).await;
    revision(&cluster.member(1).propose(put("large", &large)).await);
    cluster.level().await;

    // A leader proposes no more than it may by its own settings, and says so at once, as it would to its own clients.
    cluster.lead(2).await;
    for id in [1, 2] {
        let refused = within("it is refused", cluster.member(id).node().propose(put("larger", &large))).await;
        assert!(matches!(refused, Err(ProposeError::TooLarge { limit: SMALL_LIMIT, .. })), "{refused:?}");
    }
    revision(&cluster.member(1).propose(put("small", "v")).await);
    cluster.level().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_not_committed_in_time_is_unclear_and_the_next_one_is_told_to_wait() {
    let cluster = Cluster::start(|_, config| config.request_timeout_ms = 1_000).await;
    cluster.lead(1).await;
    cluster.level().await;
    let leader = cluster.member(1).node();
    let urls = |at: usize| cluster.0[at].node().members().into_iter().find(|found| found.id == 3).unwrap().peer_urls;
    let own = urls(0)[0].clone();
    let moved = |url: &str| vec![own.clone(), url.to_owned()];
    let change = |peer_urls: Vec<String>| leader.change_members(MemberChange::Update { id: 3, peer_urls });
    // The others still confirm who leads, and take no entries.
    for id in [2, 3] {
        cluster.member(id).gates.entries.close();
    }
    let first = within("it is given up", change(moved("http://127.0.0.1:1"))).await;
    assert!(matches!(first, Err(MemberError::Unclear)), "it was begun, and may happen: {first:?}");
    let second = within("it is refused", change(moved("http://127.0.0.1:2"))).await;
    assert!(matches!(second, Err(MemberError::Busy)), "it was not begun: {second:?}");
    for id in [2, 3] {
        cluster.member(id).gates.entries.open();
    }
    let expected = moved("http://127.0.0.1:1");
    eventually("the first one goes on, though nobody waits for it", || (0..3).all(|at| urls(at) == expected)).await;
    within("there is room for another one", change(moved("http://127.0.0.1:2"))).await.unwrap();
    cluster.stop().await;
}
