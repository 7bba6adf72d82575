//! Streams of appends: sessions, pipelining, and results that come too late or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use openraft::errors::RPCError;
use openraft::network::RPCOption;
use openraft::raft::{AppendEntriesRequest, StreamAppendError};
use openraft::{EntryPayload, RaftNetworkFactory, RaftNetworkV2};
use tokio::sync::{mpsc, oneshot};

use super::super::body::{Append, decode_append, decode_appended, put_appended};
use super::super::frame::{Address, Frame, Kind, encode};
use super::super::link::{Channel, PeerLink};
use super::super::serve;
use super::calls::scripted;
use super::{CLUSTER, Member, Raw, SOON, eventually, introduce, member, member_with, put};
use crate::peer::NetworkEvent;
use crate::types::{Peer, RaftEntry, RaftVote, TypeConfig, log_id};

type Request = AppendEntriesRequest<TypeConfig>;

const OPTION: Duration = SOON;

/// An append of member 1, which leads in term 1, of the entries after `prev`.
fn request(prev: u64, count: u64) -> Request {
    let entry = |index| RaftEntry {
        log_id: log_id(index, 1).unwrap(),
        payload: EntryPayload::Normal(put(&format!("key-{index}"), "value", index, 1)),
    };
    AppendEntriesRequest {
        vote: RaftVote::new_committed(1, 1),
        prev_log_id: log_id(prev, 1),
        leader_commit: None,
        entries: (prev + 1..=prev + count).map(entry).collect(),
    }
}

fn frame(session: u64, request: Request) -> Bytes {
    let append = Append::new(session, request);
    encode(Address { cluster: CLUSTER, from: 1, to: 2 }, Kind::Append, append.bytes(), |out| append.encode(out))
}

fn result(session: u64, index: u64) -> Bytes {
    let address = Address { cluster: CLUSTER, from: 2, to: 1 };
    encode(address, Kind::Appended, 32, |out| put_appended(out, session, &Ok(Ok(log_id(index, 1)))))
}

async fn link(from: &Member, url: &str) -> PeerLink {
    from.net.transport().new_client(2, &Peer { urls: vec![url.to_owned()] }).await
}

#[tokio::test]
async fn requests_are_pipelined_and_answered_in_order() {
    let (one, two) = (member(1).await, member(2).await);
    let mut link = link(&one, &two.url).await;
    let requests: Vec<Request> = (0..200).map(|n| request(n * 3, 3)).collect();
    let results: Vec<_> =
        link.stream_append(stream::iter(requests), RPCOption::new(OPTION)).await.unwrap().collect().await;
    let found: Vec<_> = results.into_iter().map(|result| result.unwrap().unwrap()).collect();
    let expected: Vec<_> = (1..=200).map(|n| log_id(n * 3, 1)).collect();
    assert_eq!(found, expected);
    assert_eq!(two.shared.last.load(Ordering::Acquire), 600);
    // The channel is kept for the next stream.
    let single = link.append_entries(request(600, 1), RPCOption::new(OPTION)).await.unwrap();
    assert!(single.is_success());
    assert_eq!(one.events.count(|event| matches!(event, NetworkEvent::Connected { .. })), 1);
}

/// Consensus takes what it has handed over for sent: it would not send that again.
#[tokio::test]
async fn a_request_that_finds_the_connection_lost_goes_over_the_next_one() {
    let (one, two) = (member(1).await, member(2).await);
    let mut link = link(&one, &two.url).await;
    assert!(link.append_entries(request(0, 1), RPCOption::new(OPTION)).await.unwrap().is_success());
    let Channel::Open(live) = &mut link.channel else { panic!("it is open") };
    live.duplex.lose_sending();
    assert!(link.append_entries(request(1, 1), RPCOption::new(OPTION)).await.unwrap().is_success());
    assert_eq!(two.shared.last.load(Ordering::Acquire), 2);
    assert_eq!(one.events.count(|event| matches!(event, NetworkEvent::Connected { .. })), 2);
}

#[tokio::test]
async fn a_session_ends_with_a_conflict_and_what_was_under_way_is_dropped() {
    let two = member(2).await;
    let mut raw = Raw::greeted(&two, 1, serve::APPEND).await;
    // Nothing before entry 6 is there; what follows would fit if the conflict were ignored.
    for append in [request(5, 1), request(0, 1), request(1, 1)] {
        raw.out.send(frame(7, append)).await.unwrap();
    }
    let (session, refused) = decode_appended(raw.next().await.body).unwrap();
    assert!(matches!(refused, Ok(Err(StreamAppendError::Conflict(_)))));
    assert_eq!(session, 7);
    raw.out.send(frame(8, request(0, 2))).await.unwrap();
    // A replay of an earlier session is not carried out either.
    raw.out.send(frame(7, request(2, 5))).await.unwrap();
    raw.out.send(frame(8, request(2, 1))).await.unwrap();
    for expected in [2, 3] {
        let (session, result) = decode_appended(raw.next().await.body).unwrap();
        assert_eq!((session, result.unwrap().unwrap()), (8, log_id(expected, 1)));
    }
    assert_eq!(two.shared.last.load(Ordering::Acquire), 3);
}

#[tokio::test]
async fn results_of_a_stream_that_was_given_up_are_never_taken_for_those_of_the_next() {
    let one = member(1).await;
    let held = Arc::new(AtomicU64::new(0));
    let holding = Arc::clone(&held);
    // Holds its answer to the first session back until the second one has begun, and then gives it first.
    let (url, _serving) = scripted(serve::APPEND, move |frame: Frame, out: &mpsc::Sender<Bytes>| {
        let (session, _) = decode_append(frame.body).unwrap();
        if session == 1 {
            holding.fetch_add(1, Ordering::SeqCst);
            return;
        }
        out.try_send(result(1, 99)).unwrap();
        out.try_send(result(session, 1)).unwrap();
    })
    .await;
    let mut link = link(&one, &url).await;
    {
        let mut first = link.stream_append(stream::iter([request(0, 1)]), RPCOption::new(OPTION)).await.unwrap();
        let waiting = async {
            eventually("the request is there", || held.load(Ordering::SeqCst) == 1).await;
        };
        tokio::select! {
            result = first.next() => panic!("{result:?}"),
            () = waiting => {}
        }
    }
    let mut second = link.stream_append(stream::iter([request(0, 1)]), RPCOption::new(OPTION)).await.unwrap();
    assert_eq!(second.next().await.unwrap().unwrap(), Ok(log_id(1, 1)));
    assert!(second.next().await.is_none());
}

/// Consensus would take both requests for answered, and the follower for heard of since the second was sent.
#[tokio::test]
async fn a_result_waits_for_the_request_behind_it_that_reaches_no_further() {
    let one = member(1).await;
    let asked = Arc::new(AtomicU64::new(0));
    // Answers the first once the second is there, so that both are under way then; and the third at once.
    let (url, _serving) = scripted(serve::APPEND, move |frame: Frame, out: &mpsc::Sender<Bytes>| {
        let (session, _) = decode_append(frame.body).unwrap();
        let answers: &[u64] = match asked.fetch_add(1, Ordering::SeqCst) {
            0 => &[],
            1 => &[1, 1],
            _ => &[2],
        };
        answers.iter().for_each(|index| out.try_send(result(session, *index)).unwrap());
    })
    .await;
    let mut link = link(&one, &url).await;
    let (ask, mut asks) = mpsc::unbounded_channel();
    let requests = Box::pin(stream::poll_fn(move |cx| asks.poll_recv(cx)));
    let mut results = link.stream_append(requests, RPCOption::new(OPTION)).await.unwrap();
    [request(0, 1), request(1, 0)].into_iter().for_each(|request| ask.send(request).unwrap());
    assert_eq!(results.next().await.unwrap().unwrap(), Ok(log_id(1, 1)));
    ask.send(request(1, 1)).unwrap();
    drop(ask);
    assert_eq!(results.next().await.unwrap().unwrap(), Ok(log_id(2, 1)), "the second was answered with the first");
    assert!(results.next().await.is_none());
}

#[tokio::test]
async fn a_result_that_nothing_was_asked_for_ends_the_channel() {
    let one = member(1).await;
    let (url, _serving) = scripted(serve::APPEND, move |frame: Frame, out: &mpsc::Sender<Bytes>| {
        let (session, _) = decode_append(frame.body).unwrap();
        out.try_send(result(session, 1)).unwrap();
        out.try_send(result(session, 2)).unwrap();
    })
    .await;
    let mut link = link(&one, &url).await;
    let (hold, released) = oneshot::channel::<()>();
    let requests = stream::iter([request(0, 1)]).chain(stream::once(async {
        drop(released.await);
        request(1, 1)
    }));
    let mut results = link.stream_append(Box::pin(requests), RPCOption::new(OPTION)).await.unwrap();
    assert_eq!(results.next().await.unwrap().unwrap(), Ok(log_id(1, 1)));
    assert!(matches!(results.next().await, Some(Err(RPCError::Network(_)))));
    assert!(results.next().await.is_none());
    drop(hold);
}

#[tokio::test]
async fn a_peer_that_does_not_answer_is_given_up_and_reached_again() {
    let one = member_with(1, |_, limits| limits.read_timeout = Duration::from_millis(200)).await;
    let asked = Arc::new(AtomicU64::new(0));
    let asking = Arc::clone(&asked);
    let (url, _serving) = scripted(serve::APPEND, move |frame: Frame, out: &mpsc::Sender<Bytes>| {
        let (session, _) = decode_append(frame.body).unwrap();
        if asking.fetch_add(1, Ordering::SeqCst) > 0 {
            out.try_send(result(session, 1)).unwrap();
        }
    })
    .await;
    let mut link = link(&one, &url).await;
    let silent = link.append_entries(request(0, 1), RPCOption::new(OPTION)).await;
    assert!(matches!(silent, Err(RPCError::Unreachable(_))), "{silent:?}");
    assert!(link.append_entries(request(0, 1), RPCOption::new(OPTION)).await.unwrap().is_success());
}

#[tokio::test]
async fn a_heartbeat_that_is_given_up_is_counted_and_opening_goes_on_meanwhile() {
    let (one, two) = (member(1).await, member(2).await);
    let mut transport = one.net.transport();
    let nobody = Peer { urls: vec!["http://127.0.0.1:1".to_owned()] };
    let mut link = transport.new_heartbeat_client(2, &nobody).await;
    let failed =
        |member: &Member| member.events.count(|event| matches!(event, NetworkEvent::HeartbeatFailed { to: 2 }));
    assert!(matches!(link.append_entries(request(0, 0), RPCOption::new(OPTION)).await, Err(RPCError::Unreachable(_))));
    assert_eq!(failed(&one), 1);
    // The peer is back. The first heartbeat is given up before the channel is open; the channel opens all the same.
    introduce(&[&one, &two]);
    let given_up = tokio::time::timeout(Duration::ZERO, link.append_entries(request(0, 0), RPCOption::new(OPTION)));
    assert!(given_up.await.is_err());
    assert_eq!(failed(&one), 2);
    assert!(link.append_entries(request(0, 0), RPCOption::new(OPTION)).await.unwrap().is_success());
    assert_eq!(failed(&one), 2);
    assert_eq!(one.events.count(|event| matches!(event, NetworkEvent::RoundTrip { to: 2, .. })), 1);
}

#[tokio::test]
async fn large_entries_pass_and_what_is_under_way_is_bounded() {
    let (one, two) = (member(1).await, member(2).await);
    let mut link = link(&one, &two.url).await;
    let value = "x".repeat(3 << 20);
    let large = move |index: u64| {
        let payload = EntryPayload::Normal(put("large", &value, index, 1));
        let mut request = request(index - 1, 0);
        request.entries = vec![RaftEntry { log_id: log_id(index, 1).unwrap(), payload }];
        request
    };
    let results: Vec<_> = link
        .stream_append(Box::pin(stream::iter((1..=12).map(large))), RPCOption::new(OPTION))
        .await
        .unwrap()
        .collect()
        .await;
    assert_eq!(results.len(), 12);
    assert_eq!(results.into_iter().last().unwrap().unwrap().unwrap(), log_id(12, 1));
}
