//! Questions to the leader: answered by whoever leads, through every member, across changes of the leader, and by nobody else.
#![allow(clippy::unwrap_used)]

#[path = "common/cluster.rs"]
mod cluster;
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use cluster::{Cluster, Member, within};
use common::put;
use tally_raftnode::{AskError, BarrierError, BoxFuture, Config, LeaderHandler, MemberChange, Node};

/// Answers with its member's id and the question.
struct Echo {
    id: u64,
    node: Node,
    asked: AtomicUsize,
}

impl LeaderHandler for Echo {
    fn answer(self: Arc<Self>, kind: u8, question: Bytes) -> BoxFuture<Option<Bytes>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.node.confirm_leadership().await.ok()??;
            Some([&[self.id as u8, kind][..], &question].concat().into())
        })
    }
}

fn echo(member: &Member) -> Arc<Echo> {
    let echo = Arc::new(Echo { id: member.id, node: member.node().clone(), asked: AtomicUsize::new(0) });
    member.node().answer_as_leader(&echo);
    echo
}

async fn ask(member: &Member, kind: u8) -> Bytes {
    within("an answer", member.node().ask_leader(kind, Bytes::from_static(b"who?"))).await.unwrap()
}

#[tokio::test]
async fn every_member_is_answered_by_the_leader_of_the_moment() {
    let cluster = Cluster::start(|_, _| {}).await;
    let echoes: Vec<Arc<Echo>> = cluster.0.iter().map(echo).collect();
    for leader in [1, 2, 3, 1] {
        cluster.lead(leader).await;
        for member in &cluster.0 {
            assert_eq!(ask(member, 9).await[1..], b"\x09who?"[..]);
        }
        // Those that were told of the new leader ask nobody else.
        let before: Vec<usize> = echoes.iter().map(|echo| echo.asked.load(Ordering::Relaxed)).collect();
        for member in &cluster.0 {
            within("it knows the leader", member.node().status().wait_for(|status| status.leader == Some(leader)))
                .await
                .unwrap();
            assert_eq!(u64::from(ask(member, 9).await[0]), leader);
        }
        for (echo, before) in echoes.iter().zip(before) {
            let asked = echo.asked.load(Ordering::Relaxed) - before;
            assert!(
                if echo.id == leader { asked >= 3 } else { asked == 0 },
                "member {} was asked {asked} times",
                echo.id
            );
        }
    }
    drop(echoes);
    cluster.stop().await;
}

#[tokio::test]
async fn a_question_waits_for_the_next_leader() {
    let mut cluster = Cluster::start(|_, _| {}).await;
    let leader = cluster.leader().await;
    // The leader has nobody who answers, so the question waits until somebody else leads.
    let _echoes: Vec<Arc<Echo>> = cluster.0.iter().filter(|member| member.id != leader).map(echo).collect();
    let asks = if leader == 1 { 2 } else { 1 };
    let node = cluster.member(asks).node().clone();
    let asking = tokio::spawn(async move { node.ask_leader(1, Bytes::new()).await });
    cluster.member_mut(leader).stop().await;
    let answer = within("an answer", asking).await.unwrap().unwrap();
    assert_ne!(u64::from(answer[0]), leader);
    cluster.stop().await;
}

#[tokio::test]
async fn without_anybody_who_answers_the_question_ends() {
    let cluster = Cluster::start(|_, config| config.request_timeout_ms = 300).await;
    let node = cluster.member(1).node();
    assert!(matches!(node.ask_leader(1, Bytes::new()).await, Err(AskError::TimedOut)));
    let large = node.ask_leader(1, Bytes::from(vec![0; 1 << 20])).await;
    assert!(matches!(large, Err(AskError::TooLarge { bytes: 1_048_576 })), "{large:?}");
    cluster.stop().await;
}

#[tokio::test]
async fn leadership_is_confirmed_only_where_it_is() {
    let mut cluster = Cluster::start(|_, config| config.request_timeout_ms = 2_000).await;
    let leader = cluster.leader().await;
    for member in &cluster.0 {
        let confirmed = within("a confirmation", member.node().confirm_leadership()).await.unwrap();
        assert_eq!(confirmed.is_some(), member.id == leader);
        assert!(confirmed.is_none_or(|term| term == member.node().status().borrow().term));
    }
    // Alone, it cannot confirm anything.
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.member_mut(id).stop().await;
    }
    let confirmed = within("it gives up", cluster.member(leader).node().confirm_leadership()).await;
    assert!(!matches!(confirmed, Ok(Some(_))), "{confirmed:?}");
}

/// Whether a read, and what depends on leading, needs nobody else is found out by a read, and ends with the next membership.
#[tokio::test]
async fn only_the_only_member_leads_alone() {
    let settings = |_, config: &mut Config| (config.request_timeout_ms, config.strict_reconfig) = (2_000, false);
    let cluster = Cluster::start(settings).await;
    let leader = cluster.leader().await;
    let (node, others) = (cluster.member(leader).node(), (1..=3).filter(|id| *id != leader));
    for member in &cluster.0 {
        member.propose(put("key", "value")).await;
        within("a read", member.node().read_barrier()).await.unwrap();
        assert_eq!(member.node().leads_alone(), None);
    }
    for id in others {
        assert_eq!(node.leads_alone(), None);
        within("a member leaves", node.change_members(MemberChange::Remove { id })).await.unwrap();
    }
    within("a read", node.read_barrier()).await.unwrap();
    let term = node.leads_alone().expect("nobody else is left");
    assert_eq!(term, node.status().borrow().term);
    let applied = cluster.member(leader).applied().index;
    assert!(within("a read", node.read_barrier()).await.unwrap() >= applied);

    // A learner may have applied, and shown, what is committed and not applied here yet.
    let peer_urls = || vec!["http://127.0.0.1:1".to_owned()];
    let learner = MemberChange::Add { id: 8, peer_urls: peer_urls(), is_learner: true };
    within("a learner joins", node.change_members(learner)).await.unwrap();
    within("a read", node.read_barrier()).await.unwrap();
    assert_eq!(node.leads_alone(), None);
    within("it leaves", node.change_members(MemberChange::Remove { id: 8 })).await.unwrap();
    within("a read", node.read_barrier()).await.unwrap();
    assert_eq!(node.leads_alone(), Some(term));

    // A second voter that never answers: without it nothing can be known any more.
    let node = node.clone();
    let added = node.change_members(MemberChange::Add { id: 9, peer_urls: peer_urls(), is_learner: false });
    // In the log it is in force already, committed or not.
    let _ = within("it is answered", added).await;
    assert_eq!(node.leads_alone(), None);
    let read = within("a read gives up", node.read_barrier()).await;
    assert!(matches!(read, Err(BarrierError::NoQuorum | BarrierError::NoLeader)), "{read:?}");
}
