//! Three members with nothing but the transport between them: elections, replication, snapshots, restarts of channels.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::interval;

use super::super::outgoing::Task;
use super::{Member, SOON, eventually, introduce, member, member_with, put};
use crate::config::Config;
use crate::laggards::Laggards;
use crate::peer::{NetConfig, NetworkEvent};
use crate::types::Peer;

/// Founds a cluster of the members and waits for its leader.
pub(super) async fn founded(members: &[&Member]) -> u64 {
    introduce(members);
    let nodes: BTreeMap<u64, Peer> =
        members.iter().map(|member| (member.id, Peer { urls: vec![member.url.clone()] })).collect();
    members[0].raft.initialize(nodes).await.unwrap();
    leader(members).await
}

/// The leader that every one of the members knows.
pub(super) async fn leader(members: &[&Member]) -> u64 {
    for member in members {
        let wait = member.raft.wait(Some(SOON));
        wait.metrics(|metrics| metrics.current_leader.is_some(), "a leader").await.unwrap();
    }
    members[0].raft.metrics().borrow_watched().current_leader.unwrap()
}

pub(super) fn by_id<'a>(members: &[&'a Member], id: u64) -> &'a Member {
    members.iter().find(|member| member.id == id).unwrap()
}

/// Writes on the leader; the raft index of the last one.
pub(super) async fn write(leader: &Member, count: u64) -> u64 {
    let mut last = 0;
    for seq in 0..count {
        let term = leader.raft.metrics().borrow_watched().current_term;
        last = loop {
            match leader.raft.client_write(put(&format!("key-{seq:05}"), "value", seq, term)).await {
                Ok(written) => break written.log_id.index,
                // It has just been elected and has not heard of a majority yet.
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        };
    }
    last
}

pub(super) async fn applied(member: &Member, index: u64) {
    member.raft.wait(Some(SOON)).applied_index_at_least(Some(index), "applied").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_elect_replicate_and_agree() {
    let (one, two, three) = (member(1).await, member(2).await, member(3).await);
    let members = [&one, &two, &three];
    let leads = founded(&members).await;
    let last = write(by_id(&members, leads), 200).await;
    let mut roots = Vec::new();
    for member in members {
        applied(member, last).await;
        roots.push(member.live.load().reads.applied().root);
    }
    assert!(roots.windows(2).all(|pair| pair[0] == pair[1]), "{roots:?}");
    let leader = by_id(&members, leads);
    for other in members.iter().filter(|other| other.id != leads) {
        assert!(leader.net.last_contact(other.id).unwrap().elapsed() < SOON);
        let to = other.id;
        assert!(leader.events.count(|event| matches!(event, NetworkEvent::Sent { to: found, .. } if *found == to)) > 0);
        assert_eq!(leader.events.count(|event| *event == NetworkEvent::Connected { to }), 1, "one peer, many channels");
    }
    let round_trips = leader.events.count(|event| matches!(event, NetworkEvent::RoundTrip { .. }));
    assert!(round_trips > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_and_votes_travel() {
    let (one, two, three) = (member(1).await, member(2).await, member(3).await);
    let members = [&one, &two, &three];
    let leads = founded(&members).await;
    write(by_id(&members, leads), 10).await;
    let to = if leads == 3 { 1 } else { 3 };
    by_id(&members, leads).raft.trigger().transfer_leader(to).await.unwrap();
    by_id(&members, to).raft.wait(Some(SOON)).state(ServerState::Leader, "took over").await.unwrap();
    let last = write(by_id(&members, to), 10).await;
    for member in members {
        applied(member, last).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_too_far_behind_gets_a_snapshot_and_then_entries() {
    let (one, two, three) = (member(1).await, member(2).await, member(3).await);
    let members = [&one, &two];
    let leads = founded(&members).await;
    let leader = by_id(&members, leads);
    let last = write(leader, 300).await;
    // Everything but the newest entries is dropped from the leader's log.
    leader.raft.trigger().snapshot().await.unwrap();
    let purged = |metrics: &openraft::RaftMetrics<_>| metrics.purged.as_ref().is_some_and(|id| id.index + 20 > last);
    leader.raft.wait(Some(SOON)).metrics(purged, "the log is purged behind a snapshot").await.unwrap();
    introduce(&[&one, &two, &three]);
    leader.raft.add_learner(3, Peer { urls: vec![three.url.clone()] }, true).await.unwrap();
    let last = write(leader, 50).await;
    applied(&three, last).await;
    assert_eq!(leader.events.count(|event| matches!(event, NetworkEvent::SnapshotSent { to: 3, .. })), 1);
    assert_eq!(three.events.count(|event| matches!(event, NetworkEvent::SnapshotReceived { .. })), 1);
    assert_eq!(three.live.load().reads.applied().root, leader.live.load().reads.applied().root);
    let incoming = crate::snapshot::incoming_dir(three.live.load().backend.path());
    assert_eq!(std::fs::read_dir(incoming).unwrap().count(), 0, "what was received is deleted once it is in force");
}

/// A link to `url` that lets so many bytes a second through to it while it is `slow`, and everything back.
async fn slow_link(url: &str, bytes_per_s: usize, slow: Arc<AtomicBool>) -> (String, Task<()>) {
    const PIECES_PER_S: u64 = 50;
    let address = url.strip_prefix("http://").unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let accepting = async move {
        let mut links = JoinSet::new();
        while let Ok((from, _)) = listener.accept().await {
            let to = TcpStream::connect(&address).await.unwrap();
            let ((mut from, mut back), (mut answers, mut to)) = (from.into_split(), to.into_split());
            links.spawn(async move { drop(tokio::io::copy(&mut answers, &mut back).await) });
            let slow = Arc::clone(&slow);
            links.spawn(async move {
                let mut piece = vec![0; bytes_per_s / PIECES_PER_S as usize];
                let mut ticks = interval(Duration::from_millis(1_000 / PIECES_PER_S));
                while let Ok(bytes @ 1..) = from.read(&mut piece).await {
                    if slow.load(Ordering::Relaxed) {
                        ticks.tick().await;
                    }
                    if to.write_all(&piece[..bytes]).await.is_err() {
                        return;
                    }
                }
            });
        }
    };
    (url, Task::spawn(accepting))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_takes_less_than_is_written_gets_a_snapshot_and_the_log_is_purged() {
    // However slow the link is: a stream that ends for want of an answer would not have to be given up.
    let patient = |_: &mut Config, limits: &mut NetConfig| {
        (limits.read_timeout, limits.write_timeout, limits.ping_timeout) = (10 * SOON, 10 * SOON, 10 * SOON);
    };
    let (one, two, three) = (member_with(1, patient).await, member_with(2, patient).await, member(3).await);
    let members = [&one, &two];
    let leads = founded(&members).await;
    let leader = by_id(&members, leads);
    write(leader, 10).await;
    let is_slow = Arc::new(AtomicBool::new(true));
    let (slow, _link) = slow_link(&three.url, 64 << 10, Arc::clone(&is_slow)).await;
    leader.net.set_addresses(3, std::slice::from_ref(&slow));
    three.net.set_addresses(leads, std::slice::from_ref(&leader.url));
    leader.raft.add_learner(3, Peer { urls: vec![slow.clone()] }, true).await.unwrap();
    let term = leader.raft.metrics().borrow_watched().current_term;
    let mut last = 0;
    for seq in 0..200 {
        // Much in the log, and little in a snapshot.
        let long = put("key", &"v".repeat(16 << 10), seq, term);
        last = leader.raft.client_write(long).await.unwrap().log_id.index;
    }
    leader.raft.trigger().snapshot().await.unwrap();
    let made = |metrics: &openraft::RaftMetrics<_>| metrics.snapshot.as_ref().is_some_and(|id| id.index >= last);
    leader.raft.wait(Some(SOON)).metrics(made, "a snapshot is made").await.unwrap();
    let sent = || leader.events.count(|event| matches!(event, NetworkEvent::SnapshotSent { to: 3, .. }));
    let purged = || leader.raft.metrics().borrow_watched().purged.map_or(0, |id| id.index);
    let laggards = |lag_bytes_max| Laggards {
        raft: leader.raft.clone(),
        net: leader.net.clone(),
        log: leader.log.clone(),
        catchup_entries: 10,
        lag_bytes_max,
    };
    // As long as it lacks no more than it may, the log is kept for it.
    laggards(1 << 30).give_up().await.unwrap();
    assert!(purged() + 100 < last, "purged up to {} of {last}", purged());
    assert_eq!(sent(), 0);
    laggards(64 << 10).give_up().await.unwrap();
    eventually("the log is purged", || purged() + 20 > last).await;
    is_slow.store(false, Ordering::Relaxed);
    applied(&three, last).await;
    eventually("the leader hears that it is in force", || sent() == 1).await;
    let last = write(leader, 50).await;
    applied(&three, last).await;
    assert_eq!(sent(), 1);
    assert_eq!(three.live.load().reads.applied().root, leader.live.load().reads.applied().root);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_comes_back_under_another_address_is_found() {
    let (one, two, three) = (member(1).await, member(2).await, member(3).await);
    let members = [&one, &two, &three];
    let leads = founded(&members).await;
    let leader = by_id(&members, leads);
    let follower = by_id(&members, if leads == 2 { 3 } else { 2 });
    // Its port closes, with everything on it.
    let (moved, _serving) = super::listen(follower.net.router()).await;
    for member in members.iter().filter(|member| member.id != follower.id) {
        member.net.set_addresses(follower.id, &["http://127.0.0.1:1".to_owned(), moved.clone()]);
    }
    let last = write(leader, 20).await;
    applied(follower, last).await;
}
