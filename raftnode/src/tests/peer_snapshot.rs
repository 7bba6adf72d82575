//! Snapshots on their way: a real store streamed, damaged, cut off, refused.

use std::io::Read as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ReplicationClosed, StreamingError};
use openraft::raft::VoteRequest;
use openraft::{RaftNetworkFactory, RaftNetworkV2};
use tally_apply::{Body, Committed};
use tally_backend::{Backend, Failpoints, Step};

use super::super::body::put_vote;
use super::super::frame::{Address, Kind, encode};
use super::super::outgoing::Task;
use super::super::serve;
use super::{CLUSTER, Member, Raw, SOON, eventually, member, member_on, member_with, put, storage_options};
use crate::codec::encode_in_force;
use crate::config::Config;
use crate::peer::{NetConfig, NetworkEvent};
use crate::snapshot::{incoming_dir, snapshot_of};
use crate::storage::open_storage;
use crate::types::{Membership, Peer, RaftVote, Snapshot, StoredMembership, TypeConfig, log_id};

/// A store with this many puts in it, of member 1; its directory must be kept.
fn filled(entries: u64, value_bytes: usize) -> (tempfile::TempDir, Backend, u128) {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open_storage(storage_options(dir.path(), 1)).unwrap();
    let members = Membership::new(
        vec![[1].into()],
        std::collections::BTreeMap::from([(1, Peer { urls: vec!["http://127.0.0.1:1".to_owned()] })]),
    );
    let in_force = encode_in_force(&StoredMembership::new(log_id(1, 1), members.unwrap()));
    let mut committed = vec![Committed { index: 1, term: 1, body: Body::Membership(in_force), asked: false }];
    let mut noise = 1_u64;
    for index in 2..=entries {
        let value: String = (0..value_bytes / 16)
            .map(|_| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                format!("{noise:016x}")
            })
            .collect();
        let body = Body::Command(put(&format!("key-{index:06}"), &value, index, 1).command());
        committed.push(Committed { index, term: 1, body, asked: false });
    }
    for chunk in committed.chunks(500) {
        storage.applier.apply(chunk).unwrap();
    }
    storage.backend.sync().unwrap();
    let root = storage.applier.applied().root;
    (dir, storage.backend.clone(), root)
}

fn snapshot(backend: &Backend) -> Snapshot {
    snapshot_of(backend.clone(), backend.durable()).unwrap()
}

async fn send(
    from: &Member,
    to: &Member,
    snapshot: Snapshot,
    vote: RaftVote,
) -> Result<RaftVote, StreamingError<TypeConfig>> {
    send_until(from, to, snapshot, vote, std::future::pending()).await
}

async fn send_until(
    from: &Member,
    to: &Member,
    snapshot: Snapshot,
    vote: RaftVote,
    cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
) -> Result<RaftVote, StreamingError<TypeConfig>> {
    let mut link = from.net.transport().new_snapshot_client(to.id, &Peer { urls: vec![to.url.clone()] }).await;
    let option = openraft::network::RPCOption::new(SOON);
    link.full_snapshot(vote, snapshot, cancel, option).await.map(|response| response.vote)
}

fn files(member: &Member) -> usize {
    std::fs::read_dir(incoming_dir(member.live.load().backend.path())).map_or(0, |dir| dir.count())
}

const VOTE: fn() -> RaftVote = || RaftVote::new_committed(1, 1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_store_is_streamed_checked_and_put_in_force() {
    let (one, two) = (member(1).await, member(2).await);
    let (_dir, backend, root) = filled(3_000, 4_096);
    assert_eq!(send(&one, &two, snapshot(&backend), VOTE()).await.unwrap(), VOTE());
    let live = two.live.load();
    assert_eq!((live.reads.applied().root, live.backend.applied().index), (root, 3_000));
    assert_eq!(two.raft.metrics().borrow_watched().membership_config.membership().voter_ids().collect::<Vec<_>>(), [1]);
    assert_eq!((files(&one), files(&two)), (0, 0), "neither what was set aside nor what was received is left");
    assert_eq!(one.events.count(|event| matches!(event, NetworkEvent::SnapshotSent { to: 2, .. })), 1);
    assert_eq!(two.events.count(|event| matches!(event, NetworkEvent::SnapshotReceived { from: 1, .. })), 1);
    eventually("the log goes on behind it", || two.shared.purged.load(std::sync::atomic::Ordering::Acquire) == 3_000)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_may_take_longer_than_any_answer() {
    let slowly = |_: &mut Config, limits: &mut NetConfig| {
        (limits.install_timeout, limits.snapshot_rate_bytes_max) = (Duration::from_secs(2), 1 << 20);
    };
    let (one, two) = (member_with(1, slowly).await, member(2).await);
    let (_dir, backend, root) = filled(1_000, 4_096);
    let began = Instant::now();
    assert_eq!(send(&one, &two, snapshot(&backend), VOTE()).await.unwrap(), VOTE());
    assert_eq!(two.live.load().reads.applied().root, root);
    assert!(began.elapsed() > Duration::from_secs(2), "the stream was too small for this test");
}

/// Its disk may take longer for one fsync than an answer may take; to begin again would cost more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_takes_nothing_for_a_while_is_waited_for() {
    let impatient = |_: &mut Config, limits: &mut NetConfig| limits.write_timeout = Duration::from_millis(1);
    let (one, two) = (member_with(1, impatient).await, member(2).await);
    // More than is on its way at once, so that the sender has to wait for the other's disk.
    let (_dir, backend, root) = filled(10_000, 4_096);
    assert_eq!(send(&one, &two, snapshot(&backend), VOTE()).await.unwrap(), VOTE());
    assert_eq!(two.live.load().reads.applied().root, root);
}

/// What a state that was received costs, and its place on the disk, must not keep a cluster without a leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_votes_while_a_snapshot_is_made_ready() {
    let (reached, mut is_reached) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel();
    let may_go_on = std::sync::Mutex::new(may_go_on);
    let failpoints = Failpoints::new(move |step, _| {
        if step == Step::StagedVerified {
            reached.send(()).unwrap();
            may_go_on.lock().unwrap().recv().unwrap();
        }
        Ok(())
    });
    let (one, two) = (member(1).await, member_on(2, failpoints, |_, _| {}).await);
    let (_dir, backend, _root) = filled(300, 1_024);
    let later = RaftVote::new(7, 3);
    let votes = async {
        is_reached.recv().await.unwrap();
        let request = VoteRequest::new(later, log_id(10_000, 6));
        let answer = tokio::time::timeout(SOON, two.raft.vote(request)).await;
        go_on.send(()).unwrap();
        answer.expect("it answers").unwrap()
    };
    let (sent, answer) = tokio::join!(send(&one, &two, snapshot(&backend), VOTE()), votes);
    assert!(answer.vote_granted, "{answer:?}");
    // The one who sent it leads no more.
    assert_eq!(sent.unwrap(), later);
    assert_eq!((two.live.load().backend.applied().index, files(&two)), (0, 0));
}

/// Speaks as the sender of a snapshot, with whatever bytes.
async fn sent_by_hand(to: &Member, stream: &[u8], vote: RaftVote) -> Option<(Kind, Bytes)> {
    let mut raw = Raw::greeted(to, 1, serve::SNAPSHOT).await;
    let address = Address { cluster: CLUSTER, from: 1, to: to.id };
    raw.out.send(encode(address, Kind::Offer, 32, |out| put_vote(out, &vote))).await.unwrap();
    let go = raw.try_next().await?;
    assert_eq!(go.kind, Kind::Go);
    for piece in stream.chunks(64 << 10) {
        if raw.out.send(Bytes::copy_from_slice(piece)).await.is_err() {
            break;
        }
    }
    raw.out = tokio::sync::mpsc::channel(1).0;
    raw.try_next().await.map(|frame| (frame.kind, frame.body))
}

fn streamed(backend: &Backend) -> Vec<u8> {
    let dir = tempfile::tempdir_in(backend.path().parent().unwrap()).unwrap();
    let mut stream = Vec::new();
    backend.freeze(dir.path()).unwrap().reader().read_to_end(&mut stream).unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_or_shortened_stream_changes_nothing_and_leaves_nothing() {
    let two = member(2).await;
    let (_dir, backend, root) = filled(300, 1_024);
    let stream = streamed(&backend);
    for at in [4, 20, 200, stream.len() / 2, stream.len() - 30, stream.len() - 1] {
        let mut damaged = stream.clone();
        damaged[at] ^= 0x10;
        let (kind, body) = sent_by_hand(&two, &damaged, VOTE()).await.unwrap();
        assert_eq!((kind, body[0]), (Kind::Installed, 3), "a flipped bit at {at} of {}", stream.len());
        let (kind, body) = sent_by_hand(&two, &stream[..at], VOTE()).await.unwrap();
        assert_eq!((kind, body[0]), (Kind::Installed, 3), "cut off at {at}");
        assert_eq!((two.live.load().backend.applied().index, files(&two)), (0, 0));
    }
    // A snapshot of a later term than its sender leads in is not this sender's to give.
    assert_eq!(backend.applied().term, 1);
    let (_, body) = sent_by_hand(&two, &stream, RaftVote::new_committed(0, 1)).await.unwrap();
    assert_eq!(body[0], 3);
    // And then it works.
    let (_, body) = sent_by_hand(&two, &stream, VOTE()).await.unwrap();
    assert_eq!(body[0], 1);
    assert_eq!(two.live.load().reads.applied().root, root);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_vanishes_leaves_nothing_and_blocks_nobody() {
    let (one, two) = (member(1).await, member(2).await);
    let (_dir, backend, _) = filled(300, 1_024);
    let stream = streamed(&backend);
    let address = Address { cluster: CLUSTER, from: 3, to: 2 };
    let mut raw = Raw::open(&two.url, serve::SNAPSHOT, super::hello(3, 0).frame(address)).await;
    raw.next().await;
    raw.out.send(encode(address, Kind::Offer, 32, |out| put_vote(out, &VOTE()))).await.unwrap();
    assert_eq!(raw.next().await.kind, Kind::Go);
    raw.out.send(Bytes::copy_from_slice(&stream[..stream.len() / 2])).await.unwrap();
    eventually("it is being written", || files(&two) == 1).await;
    // Only one at a time: another sender is told to come again.
    let busy = send(&one, &two, snapshot(&backend), VOTE()).await.unwrap_err();
    assert!(busy.to_string().contains("receiving another one"), "{busy}");
    drop(raw);
    eventually("nothing is left", || files(&two) == 0).await;
    // The files go a moment before the turn does, and only a sender is told of that.
    let sending = async {
        while send(&one, &two, snapshot(&backend), VOTE()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, sending).await.unwrap();
    assert_eq!(two.live.load().backend.applied().index, 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_snapshot_ends_at_once_on_both_sides() {
    // Slow enough that it cannot be over by itself.
    let one = member_with(1, |_, limits| limits.snapshot_rate_bytes_max = 64 << 10).await;
    let two = member(2).await;
    let (_dir, backend, _) = filled(2_000, 2_048);
    let (cancel, cancelled) = tokio::sync::oneshot::channel::<()>();
    let sending = send_until(&one, &two, snapshot(&backend), VOTE(), async {
        drop(cancelled.await);
        ReplicationClosed::new("the test says so")
    });
    let stopping = async {
        eventually("it is under way", || files(&two) == 1).await;
        drop(cancel);
    };
    let (sent, ()) = tokio::join!(sending, stopping);
    assert!(matches!(sent, Err(StreamingError::Closed(_))), "{sent:?}");
    eventually("nothing is left", || files(&one) + files(&two) == 0).await;
    assert_eq!(two.live.load().backend.applied().index, 0);
    assert_eq!(one.events.count(|event| matches!(event, NetworkEvent::SnapshotSendFailed { to: 2 })), 1);
    eventually("the receiver says so", || {
        two.events.count(|event| matches!(event, NetworkEvent::SnapshotReceiveFailed { from: 1 })) == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_is_kept_to() {
    let one = member_with(1, |_, limits| limits.snapshot_rate_bytes_max = 2 << 20).await;
    let two = member(2).await;
    let (_dir, backend, _) = filled(1_000, 2_048);
    let bytes = streamed(&backend).len();
    let began = std::time::Instant::now();
    send(&one, &two, snapshot(&backend), VOTE()).await.unwrap();
    // Not a measurement: the pauses alone take this long, less the piece that is ahead.
    let least = (bytes as f64 - f64::from(1 << 20)) / f64::from(2 << 20);
    assert!(began.elapsed().as_secs_f64() >= least, "{bytes} bytes in {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_of_an_older_term_is_told_so_and_a_deposed_one_does_not_send() {
    let (one, two) = (member(1).await, member(2).await);
    let (_dir, backend, _) = filled(50, 64);
    let newer = openraft::raft::VoteRequest { vote: RaftVote::new(9, 3), last_log_id: None, leadership_transfer: true };
    assert!(two.raft.vote(newer).await.unwrap().vote_granted);
    let told = send(&one, &two, snapshot(&backend), VOTE()).await.unwrap();
    assert_eq!(told, RaftVote::new(9, 3));
    assert_eq!((two.live.load().backend.applied().index, files(&two)), (0, 0));
    // The state is of term 1: who led in term 0 has no business with it.
    let deposed = send(&one, &two, snapshot(&backend), RaftVote::new_committed(0, 1)).await;
    assert!(matches!(deposed, Err(StreamingError::Closed(_))), "{deposed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_go_on_while_a_snapshot_is_installed() {
    let (one, two) = (member(1).await, member(2).await);
    let (_dir, backend, root) = filled(3_000, 2_048);
    let live = Arc::clone(&two.live);
    let reading = Task::spawn(async move {
        loop {
            // The old state or the new one, never anything between.
            let reads = live.load().reads.clone();
            let applied = reads.applied();
            assert!(applied.index == 0 || (applied.index, applied.root) == (3_000, root));
            tokio::task::yield_now().await;
        }
    });
    send(&one, &two, snapshot(&backend), VOTE()).await.unwrap();
    assert!(!reading.is_finished(), "no assertion has failed");
    drop(reading);
}
