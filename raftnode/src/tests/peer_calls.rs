//! Calls and forwarded batches: answers that come, that come late, that do not come, and that are somebody else's.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::post;
use bytes::{BufMut, Bytes};
use tokio::sync::mpsc;

use super::super::frame::{Address, Frame, Kind, Limits, encode};
use super::super::inbound::Inbound;
use super::super::outgoing::outgoing;
use super::super::{messages, serve};
use super::{CLUSTER, SOON, eventually, hello, introduce, listen, member, member_with, some_view};
use crate::ask::ASK_BYTES_MAX;
use crate::barrier::BarrierError;
use crate::member::{MemberChange, MemberError};
use crate::peer::{CallError, DiscoverError, ForwardRefusal, ForwardReply, Net, NetworkEvent, discover};

/// A peer that greets as member 2, and then does what the test wants with every frame.
pub(super) async fn scripted(
    path: &'static str,
    script: impl Fn(Frame, &mpsc::Sender<Bytes>) + Clone + Send + Sync + 'static,
) -> (String, impl Sized) {
    let router = Router::new().route(
        path,
        post(move |request: Request| async move {
            let (out, body) = outgoing();
            let mut inbound = Inbound::new(request.into_body(), Limits::MEMBER);
            tokio::spawn(async move {
                let first = inbound.next().await.unwrap();
                assert_eq!(first.kind, Kind::Hello);
                out.send(hello(2, 0).frame(first.address.reversed())).await.unwrap();
                while let Ok(frame) = inbound.next().await {
                    script(frame, &out);
                }
            });
            Response::new(Body::new(body))
        }),
    );
    listen(router).await
}

fn read_at(address: Address, id: u64, index: u64) -> Bytes {
    encode(address, Kind::ReadAt, 32, |out| {
        out.put_u64(id);
        messages::put_read_at(out, &Ok(index));
    })
}

fn id_of(frame: &Frame) -> u64 {
    u64::from_be_bytes(*frame.body.first_chunk().unwrap())
}

async fn quick() -> super::Member {
    member_with(1, |_, limits| limits.read_timeout = Duration::from_millis(300)).await
}

#[tokio::test]
async fn calls_are_answered_by_the_host() {
    let (one, two) = (member(1).await, member(2).await);
    introduce(&[&one, &two]);
    *two.host.read_index.lock().unwrap() = Some(Ok(77));
    assert_eq!(one.net.read_index(2).await.unwrap().unwrap(), 77);
    *two.host.read_index.lock().unwrap() = Some(Err(BarrierError::NoQuorum));
    assert!(matches!(one.net.read_index(2).await.unwrap(), Err(BarrierError::NoQuorum)));
    *two.host.changed.lock().unwrap() = Some(Err(MemberError::LearnerNotReady { id: 9 }));
    let changed = one.net.change_members(2, &MemberChange::Promote { id: 9 }).await.unwrap();
    assert!(matches!(changed, Err(MemberError::LearnerNotReady { id: 9 })));
    *two.host.changed.lock().unwrap() = Some(Ok(()));
    one.net.change_members(2, &MemberChange::Promote { id: 9 }).await.unwrap().unwrap();
}

/// Also one that was only called, and is not called again.
#[tokio::test]
async fn a_peer_that_is_gone_is_not_connected() {
    let (one, two) = (member(1).await, member(2).await);
    introduce(&[&one, &two]);
    *two.host.read_index.lock().unwrap() = Some(Ok(77));
    assert_eq!(one.net.read_index(2).await.unwrap().unwrap(), 77);
    assert!(one.net.is_heard(2, SOON));
    assert!(!one.net.is_heard(2, Duration::ZERO));
    two.net.close();
    eventually("it is gone", || !one.net.is_heard(2, SOON)).await;
    assert_eq!(one.events.count(|event| *event == NetworkEvent::Disconnected { to: 2 }), 1);
    one.net.close();
    assert_eq!(one.events.count(|event| *event == NetworkEvent::Disconnected { to: 2 }), 1);
}

#[tokio::test]
async fn questions_are_put_to_the_host_and_bounded() {
    let (one, two) = (member(1).await, member(2).await);
    introduce(&[&one, &two]);
    let ask = |kind, question: &'static [u8]| one.net.ask(2, kind, Bytes::from_static(question));
    assert_eq!(ask(5, b"abc").await.unwrap().unwrap(), b"\x05abc"[..]);
    assert_eq!(ask(0, b"abc").await.unwrap(), None, "it does not lead");
    let large = one.net.ask(2, 1, Bytes::from(vec![0; ASK_BYTES_MAX])).await.unwrap().unwrap();
    assert_eq!(large.len(), ASK_BYTES_MAX + 1);
    let (first, second) = tokio::join!(ask(1, b"one"), ask(2, b"two"));
    assert_eq!((&first.unwrap().unwrap()[..], &second.unwrap().unwrap()[..]), (&b"\x01one"[..], &b"\x02two"[..]));
}

#[tokio::test]
async fn a_call_that_is_not_answered_is_unclear_and_one_that_did_not_leave_is_not_sent() {
    let (one, two) = (quick().await, member(2).await);
    assert!(matches!(one.net.read_index(2).await, Err(CallError::NotSent { peer: 2, .. })), "no address");
    one.net.set_addresses(2, &["http://127.0.0.1:1".to_owned()]);
    assert!(matches!(one.net.read_index(2).await, Err(CallError::NotSent { peer: 2, .. })), "nobody there");
    introduce(&[&one, &two]);
    // The double never answers.
    assert!(matches!(one.net.read_index(2).await, Err(CallError::Unclear { peer: 2, .. })));
    // The channel lives on.
    *two.host.read_index.lock().unwrap() = Some(Ok(5));
    assert_eq!(one.net.read_index(2).await.unwrap().unwrap(), 5);
    *two.host.read_index.lock().unwrap() = None;
    let (asking, net) = (one.net.read_index(2), two.net.clone());
    let before = two.host.asked.load(Ordering::Relaxed);
    let closing = async {
        eventually("it is asked", || two.host.asked.load(Ordering::Relaxed) > before).await;
        net.close();
    };
    let (asked, ()) = tokio::join!(asking, closing);
    assert!(matches!(asked, Err(CallError::Unclear { .. })), "it may have been carried out: {asked:?}");
}

#[tokio::test]
async fn an_answer_to_another_call_is_never_taken() {
    let one = quick().await;
    // Answers every call with what an earlier one would have wanted, then, after the third, properly.
    let (url, _serving) = scripted(serve::CONTROL, |frame, out| {
        let (address, id) = (frame.address.reversed(), id_of(&frame));
        let wrong = if id < 3 { id + 1_000 } else { id };
        out.try_send(read_at(address, id.saturating_sub(1), 666)).unwrap();
        out.try_send(read_at(address, wrong, 42)).unwrap();
    })
    .await;
    one.net.set_addresses(2, std::slice::from_ref(&url));
    assert!(matches!(one.net.read_index(2).await, Err(CallError::Unclear { .. })));
    assert!(matches!(one.net.read_index(2).await, Err(CallError::Unclear { .. })));
    assert_eq!(one.net.read_index(2).await.unwrap().unwrap(), 42);
}

#[tokio::test]
async fn an_answer_of_another_kind_ends_the_channel() {
    let one = quick().await;
    let (url, _serving) = scripted(serve::CONTROL, |frame, out| {
        let answer = encode(frame.address.reversed(), Kind::Voted, 16, |body| body.put_u64(id_of(&frame)));
        out.try_send(answer).unwrap();
    })
    .await;
    one.net.set_addresses(2, std::slice::from_ref(&url));
    assert!(matches!(one.net.read_index(2).await, Err(CallError::Unclear { .. })));
}

#[tokio::test]
async fn batches_are_forwarded_in_order_and_refused_or_given_up() {
    let (one, two) = (member(1).await, member(2).await);
    introduce(&[&one, &two]);
    let (sender, mut receiver) = one.net.open_forward(2).await.unwrap();
    for batch in 0..20_u64 {
        let payloads: Vec<Bytes> = (0..3).map(|n| Bytes::from(format!("{batch}-{n}"))).collect();
        sender.send(batch, &payloads).await.unwrap();
    }
    for batch in 0..20 {
        assert_eq!(receiver.recv().await, Some(ForwardReply::Accepted { batch }));
    }
    let taken: Vec<Vec<Bytes>> = two
        .host
        .forwarded
        .lock()
        .unwrap()
        .iter()
        .map(|(from, batch, _)| (*from == 1).then(|| batch.clone()).unwrap())
        .collect();
    assert_eq!(taken.len(), 20);
    assert_eq!(taken[7], [Bytes::from("7-0"), Bytes::from("7-1"), Bytes::from("7-2")]);
    for reason in [ForwardRefusal::NotLeader, ForwardRefusal::Malformed, ForwardRefusal::TooLarge { limit: 5 << 32 }] {
        *two.host.forward_refusal.lock().unwrap() = Some(reason);
        sender.send(99, &[Bytes::from_static(b"x")]).await.unwrap();
        assert_eq!(receiver.recv().await, Some(ForwardReply::Refused { batch: 99, reason }));
    }
    let refuse = two.host.forwarded.lock().unwrap()[0].2.clone();
    let seqs: Vec<u64> = (0..10_000).collect();
    refuse.send(&seqs);
    let mut given_up = Vec::new();
    while given_up.len() < seqs.len() {
        let Some(ForwardReply::GivenUp { seqs }) = receiver.recv().await else { panic!("they are named") };
        given_up.extend(seqs);
    }
    assert_eq!(given_up, seqs);
    // Nobody reads them any more: the channel is closed instead of forgetting some.
    for _ in 0..1_000 {
        refuse.send(&seqs);
    }
    drop(refuse);
    eventually("the sender learns that the channel has ended", || sender_is_closed(&one.net, &sender)).await;
    let mut left = 0;
    while receiver.recv().await.is_some() {
        left += 1;
    }
    assert!(left < 3_000);
}

fn sender_is_closed(_net: &Net, sender: &crate::peer::ForwardSender) -> bool {
    use futures_util::FutureExt;
    matches!(sender.send(1, &[]).now_or_never(), Some(Err(CallError::NotSent { .. })))
}

#[tokio::test]
async fn a_forward_channel_that_is_lost_ends() {
    let (one, two) = (member(1).await, member(2).await);
    introduce(&[&one, &two]);
    let (_sender, mut receiver) = one.net.open_forward(2).await.unwrap();
    two.net.close();
    assert_eq!(tokio::time::timeout(SOON, receiver.recv()).await.unwrap(), None);
    assert!(matches!(one.net.open_forward(2).await, Err(CallError::NotSent { .. })));
}

#[tokio::test]
async fn anybody_may_ask_who_is_in_the_cluster() {
    let (one, two) = (member(1).await, member(2).await);
    *two.host.view.lock().unwrap() = some_view();
    let nobody = "http://127.0.0.1:1".to_owned();
    let urls = [nobody.clone(), one.url.clone(), two.url.clone()];
    assert_eq!(discover(&urls, SOON).await.unwrap(), some_view(), "of those who know members");
    let newcomer = discover(std::slice::from_ref(&one.url), SOON).await.unwrap();
    assert_eq!((newcomer.cluster_id, newcomer.members.len()), (CLUSTER, 0));
    one.net.close();
    let error = discover(&[nobody.clone(), one.url.clone()], SOON).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&nobody) && text.contains("503"), "{text}");
    assert!(matches!(discover(&[], SOON).await, Err(DiscoverError::NoUrls)));
}
