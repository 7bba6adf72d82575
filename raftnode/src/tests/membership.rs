//! Changes of the membership that were begun and not finished, under a leader that stays: as if the second entry of a
//! change of voters had been refused, which takes a moment without an answer of a majority that no test can choose.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::EntryPayload;
use openraft::errors::{ClientWriteError, RaftError};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::Node;
use crate::config::{Config, Founder};
use crate::member::{MemberChange, MemberError};
use crate::storage::{StorageOptions, open_storage};
use crate::types::{Membership, Peer};

const CLUSTER: u64 = 0xc1;
/// Far longer than anything here takes.
const SOON: Duration = Duration::from_secs(60);
/// Between two looks at something that can only be asked for.
const LOOK: Duration = Duration::from_millis(5);

async fn within<F: Future>(what: &str, future: F) -> F::Output {
    timeout(SOON, future).await.unwrap_or_else(|_| panic!("not in {SOON:?}: {what}"))
}

/// A node that is served on a port of its own.
struct Member {
    node: Node,
    url: String,
    serving: JoinHandle<()>,
    _dir: TempDir,
}

impl Member {
    /// Member 1 founds a cluster of its own, others wait to be contacted.
    async fn start(id: u64) -> Member {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let mut options = StorageOptions::new(dir.path(), CLUSTER, id, [id as u8; 16]);
        options.wal.segment_bytes = 1 << 20;
        options.backend.memtable_bytes = 4 << 20;
        let founders = if id == 1 { vec![Founder { id, peer_urls: vec![url.clone()] }] } else { Vec::new() };
        let config = Config { cluster_id: CLUSTER, member_id: id, founders, ..Config::default() };
        let node = Node::start(config, open_storage(options).unwrap()).await.unwrap();
        let router = node.peer_router();
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Member { node, url, serving, _dir: dir }
    }

    async fn stop(self) {
        // Whether one that was removed stops cleanly is not the question here.
        drop(within("it stops", self.node.shutdown()).await);
        self.serving.abort();
    }
}

fn voters(ids: &[u64]) -> BTreeSet<u64> {
    ids.iter().copied().collect()
}

/// Member 1, which leads, and member 2.
struct Pair {
    one: Member,
    two: Member,
}

impl Pair {
    /// Both vote. Member 2 was added by a change whose second half nobody wrote but the leader that found it so.
    async fn start() -> Pair {
        let (one, two) = (Member::start(1).await, Member::start(2).await);
        within("it leads", one.node.ready()).await.unwrap();
        let pair = Pair { one, two };
        pair.half_changed(&[1], &[1, 2]).await;
        pair.finished(&[1, 2]).await;
        pair
    }

    /// Writes the first entry of a change, which both members have to take, and not the second one.
    async fn half_changed(&self, from: &[u64], to: &[u64]) {
        let peer = |member: &Member| Peer { urls: vec![member.url.clone()] };
        let nodes = BTreeMap::from([(1, peer(&self.one)), (2, peer(&self.two))]);
        let joint = Membership::new(vec![voters(from), voters(to)], nodes).unwrap();
        let writing = async {
            loop {
                match self.one.node.inner.raft.append_membership(joint.clone(), EntryPayload::Blank, []).await {
                    Ok(_) => return,
                    // It has not heard of a majority lately.
                    Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => sleep(LOOK).await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        within("it is committed", writing).await;
    }

    /// Waits until these are the voters, without any doubt.
    async fn finished(&self, ids: &[u64]) {
        let looking = async {
            loop {
                let found = self.one.node.inner.raft.with_raft_state(|state| {
                    let (effective, committed) =
                        (state.membership_state.effective(), state.membership_state.committed());
                    let is_committed = effective.log_id() == committed.log_id();
                    is_committed.then(|| effective.membership().get_joint_config().clone())
                });
                if found.await.unwrap() == Some(vec![voters(ids)]) {
                    return;
                }
                sleep(LOOK).await;
            }
        };
        within("the change is finished", looking).await;
    }

    fn is_buried(&self, id: u64) -> bool {
        self.one.node.reads().removed_members().contains(&id)
    }

    async fn stop(self) {
        self.one.stop().await;
        self.two.stop().await;
    }
}

/// The first change may be found by the look with which a leadership begins, or begins again when a second voter is
/// there and not heard of yet. At the second one there is nothing new, and the leader has to find it all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_finishes_what_is_half_done_as_long_as_it_leads_and_buries_who_has_left() {
    let pair = Pair::start().await;
    assert!(!pair.is_buried(2));
    pair.half_changed(&[1, 2], &[1]).await;
    pair.finished(&[1]).await;
    let burying = async {
        while !pair.is_buried(2) {
            sleep(LOOK).await;
        }
    };
    within("who has left with it is buried", burying).await;
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_again_for_a_removal_that_was_half_done_finds_the_member_buried() {
    let pair = Pair::start().await;
    let leader = &pair.one.node;
    // So that nobody else finishes it before.
    let turn = within("its turn", Arc::clone(&leader.inner.changes.turn).lock_owned()).await;
    pair.half_changed(&[1, 2], &[1]).await;
    drop(turn);
    let again = within("it is asked again", leader.change_members(MemberChange::Remove { id: 2 })).await;
    assert!(matches!(again, Err(MemberError::NotFound { id: 2 })), "{again:?}");
    assert!(pair.is_buried(2));
    pair.stop().await;
}
