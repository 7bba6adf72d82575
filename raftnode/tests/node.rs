//! A node as its user sees it: proposals, reads, restarts.
#![allow(clippy::unwrap_used)]

mod common;

use common::{all, config, put, put_many, revision, started, stopped, storage};
use tally_raftnode::{Config, Node, ProposeError};

#[tokio::test]
async fn ten_thousand_concurrent_proposals_survive_a_restart_with_dense_revisions() {
    const PUTS: u64 = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), Config { queue_entries_max: PUTS as usize, ..config() }).await;
    let key = |number: u64| format!("key/{number:05}");
    let revisions = put_many(&node, key, PUTS).await;
    let mut sorted = revisions.clone();
    sorted.sort_unstable();
    let dense: Vec<i64> = (2..2 + PUTS as i64).collect();
    assert_eq!(sorted, dense, "every put has a revision of its own and none is left out");
    stopped(node).await;

    let node = started(dir.path(), config()).await;
    let found = all(&node.reads());
    assert_eq!(found.len(), PUTS as usize);
    for (number, (name, _, at)) in found.into_iter().enumerate() {
        assert_eq!((name, at), (key(number as u64), revisions[number]));
    }
    let next = revision(&node.propose(put("next", "")).await.unwrap());
    assert_eq!(next, 2 + PUTS as i64);
    stopped(node).await;
}

#[tokio::test]
async fn what_was_answered_is_visible_at_once_and_a_barrier_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), config()).await;
    for number in 0..50 {
        let key = format!("k{number}");
        let before = node.read_barrier().await.unwrap();
        node.propose(put(&key, "v")).await.unwrap();
        assert!(all(&node.reads()).iter().any(|(name, _, _)| *name == key));
        assert_eq!(node.read_barrier().await.unwrap(), before + 1);
    }
    stopped(node).await;
}

#[tokio::test]
async fn a_proposal_whose_asker_has_gone_before_a_leader_had_it_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), config()).await;
    drop(node.propose(put("left", "behind")));
    assert_eq!(revision(&node.propose(put("after", "")).await.unwrap()), 2);
    assert_eq!(all(&node.reads()).len(), 1);
    assert_eq!(node.progress().proposals_pending, 0);
    stopped(node).await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_takes_again_later() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), Config { queue_entries_max: 4, ..config() }).await;
    // Nothing else runs between these on a current-thread runtime, so the batcher cannot take any away.
    let under_way: Vec<_> = (0..5).map(|number| node.propose(put(&format!("k{number}"), ""))).collect();
    let mut refused = 0;
    for proposal in under_way {
        match proposal.await {
            Ok(outcome) => drop(revision(&outcome)),
            Err(ProposeError::TooManyRequests { queued: 4, .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(refused, 1);
    revision(&node.propose(put("later", "")).await.unwrap());
    assert_eq!(node.progress().proposals_pending, 0);
    stopped(node).await;
}

#[tokio::test]
async fn bytes_waiting_are_bounded_too_and_a_huge_command_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Config { queue_bytes_max: 4_000, command_bytes_max: 2_000, ..config() };
    let node = started(dir.path(), limits).await;
    let value = "v".repeat(1_500);
    let (first, second, third) =
        (node.propose(put("a", &value)), node.propose(put("b", &value)), node.propose(put("c", &value)));
    assert!(matches!(third.await, Err(ProposeError::TooManyRequests { .. })));
    revision(&first.await.unwrap());
    revision(&second.await.unwrap());
    let huge = node.propose(put("d", &"v".repeat(3_000))).await;
    assert!(matches!(huge, Err(ProposeError::TooLarge { limit: 2_000, .. })));
    stopped(node).await;
}

#[tokio::test]
async fn batches_may_overlap_and_are_cut_by_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let overlap = Config { batches_in_flight_max: 4, batch_entries_max: 16, batch_bytes_max: 300, ..config() };
    let node = started(dir.path(), overlap).await;
    let mut revisions = put_many(&node, |number| format!("k{number}"), 2_000).await;
    revisions.sort_unstable();
    assert_eq!(revisions, (2..2_002).collect::<Vec<i64>>());
    stopped(node).await;
}

#[tokio::test]
async fn a_shutdown_answers_what_was_accepted_and_refuses_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), config()).await;
    let accepted: Vec<_> = (0..100).map(|number| node.propose(put(&format!("k{number}"), ""))).collect();
    let (first, second) = tokio::join!(node.shutdown(), node.shutdown());
    first.unwrap();
    second.unwrap();
    for proposal in accepted {
        revision(&proposal.await.unwrap());
    }
    assert!(matches!(node.propose(put("late", "")).await, Err(ProposeError::Stopped)));
    assert!(node.read_barrier().await.is_err());
    node.shutdown().await.unwrap();
    drop(node);
    let found = storage(dir.path());
    assert_eq!(found.backend.applied(), found.backend.durable());
    assert_eq!(all(&found.reads).len(), 100);
}

#[tokio::test]
async fn status_tells_who_leads_and_how_far_things_are() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), config()).await;
    node.propose(put("k", "v")).await.unwrap();
    let mut status = node.status();
    let status = status.wait_for(|status| status.is_leader && status.progress.applied >= 3).await.unwrap().clone();
    assert_eq!(status.leader, Some(common::MEMBER));
    assert!(!status.is_learner);
    assert_eq!(status.leader_changes, 1);
    assert_eq!(status.membership.voters, vec![vec![common::MEMBER]]);
    assert_eq!(status.membership.members[0].1, vec!["http://127.0.0.1:2380".to_owned()]);
    assert_eq!(status.progress.committed, status.progress.applied);
    assert_eq!(node.apply_gap(), 0);
    let term = status.term;
    stopped(node).await;
    let node = started(dir.path(), config()).await;
    assert!(node.status().borrow().term > term, "a restarted leader leads only after an election");
    stopped(node).await;
}

#[tokio::test]
async fn a_configuration_of_another_member_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let started = Node::start(Config { member_id: 9, ..config() }, storage(dir.path())).await;
    assert!(matches!(started, Err(tally_raftnode::StartError::Identity { expected_member: 9, .. })));
}

#[tokio::test]
async fn a_node_that_is_alone_asks_nobody_once_it_has_caught_up_with_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    for life in 1..=3 {
        let node = Node::start(config(), storage(dir.path())).await.unwrap();
        let alone = node.leads_alone();
        assert!(alone.is_none() || node.reads().applied().index >= last, "before everything is applied");
        node.ready().await.unwrap();
        let term = node.leads_alone().expect("it is alone");
        assert_eq!(term, node.status().borrow().term);
        put_many(&node, |key| format!("{life}-{key}"), 100).await;
        last = node.read_barrier().await.unwrap();
        assert_eq!(all(&node.reads()).len(), life * 100);
        stopped(node.clone()).await;
        assert_eq!(node.leads_alone(), None, "it does not lead any more");
        assert!(node.read_barrier().await.is_err());
    }
}

#[tokio::test]
async fn a_task_that_reads_in_a_loop_lets_others_run() {
    const READS_MAX: u64 = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), config()).await;
    // All on one thread, and none of these reads has to wait.
    assert!(node.leads_alone().is_some());
    let other = tokio::spawn(async {});
    let mut reads = 0;
    while !other.is_finished() {
        assert!(reads < READS_MAX, "nobody else had a turn");
        node.read_barrier().await.unwrap();
        reads += 1;
    }
    stopped(node).await;
}
