//! Everybody who is not a member: refused, and at no great cost.

use axum::http::{Method, Request, StatusCode, Version};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::connect::connect;
use super::super::frame::{Address, Kind, encode};
use super::super::outgoing::outgoing;
use super::super::serve;
use super::{CLUSTER, Member, Raw, SOON, eventually, hello, introduce, member};
use crate::peer::NetworkEvent;

fn address() -> Address {
    Address { cluster: CLUSTER, from: 1, to: 2 }
}

/// What the port answers to bytes that are written to it.
async fn spoken(to: &Member, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(to.url.trim_start_matches("http://")).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(SOON, socket.read(&mut answer)).await.unwrap().unwrap_or(0);
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

/// The member still serves its peers.
async fn is_well(two: &Member) {
    let one = member(1).await;
    introduce(&[&one, two]);
    *two.host.read_index.lock().unwrap() = Some(Ok(7));
    assert_eq!(one.net.read_index(2).await.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn clients_and_etcd_members_get_an_http_status() {
    let two = member(2).await;
    let put = b"POST /v3/kv/put HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}";
    let answer = spoken(&two, put).await;
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("clients use"), "{answer}");
    let etcd = b"GET /raft/stream/msgappv2/1 HTTP/1.1\r\nhost: x\r\nx-server-from: 1\r\n\r\n";
    assert!(spoken(&two, etcd).await.starts_with("HTTP/1.1 404"));
    let old = format!("POST {} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", serve::APPEND);
    assert!(spoken(&two, old.as_bytes()).await.starts_with("HTTP/1.1 505"));
    let get = format!("GET {} HTTP/1.1\r\nhost: x\r\n\r\n", serve::APPEND);
    assert!(spoken(&two, get.as_bytes()).await.starts_with("HTTP/1.1 404"));
    spoken(&two, b"\x16\x03\x01 this is TLS, or noise\r\n\r\n").await;
    is_well(&two).await;
}

#[tokio::test]
async fn garbage_in_place_of_a_greeting_ends_the_channel() {
    let two = member(2).await;
    let right = hello(1, 0).frame(address());
    let mut damaged = BytesMut::from(&right[..]);
    damaged[40] ^= 1;
    let mut huge = BytesMut::from(&right[..]);
    huge[..4].copy_from_slice(&u32::MAX.to_be_bytes());
    let firsts = [
        Bytes::from_static(b"GET / HTTP/1.1 in the middle of a body, which is long enough to be a header"),
        damaged.freeze(),
        huge.freeze(),
        encode(address(), Kind::ReadIndex, 8, |out| out.extend_from_slice(&[0; 8])),
        encode(address(), Kind::Hello, 3, |out| out.extend_from_slice(b"abc")),
        Bytes::from(vec![0; 1 << 20]),
    ];
    for path in [serve::APPEND, serve::CONTROL, serve::FORWARD, serve::SNAPSHOT] {
        for first in &firsts {
            let mut raw = Raw::open(&two.url, path, first.clone()).await;
            assert!(raw.try_next().await.is_none(), "{path}: {first:?}");
        }
    }
    is_well(&two).await;
}

#[tokio::test]
async fn a_bad_frame_after_the_greeting_ends_the_channel_and_is_counted() {
    let two = member(2).await;
    let mut expected = 0;
    for path in [serve::APPEND, serve::CONTROL, serve::FORWARD, serve::SNAPSHOT] {
        let kind = if path == serve::APPEND { Kind::Append } else { Kind::Vote };
        let bad = [
            Bytes::from(vec![0xff; 64]),
            encode(address(), kind, 0, |_| {}),
            encode(address(), Kind::Installed, 0, |_| {}),
        ];
        for frame in bad {
            let mut raw = Raw::greeted(&two, 1, path).await;
            raw.out.send(frame).await.unwrap();
            assert!(raw.try_next().await.is_none(), "{path}");
            expected += 1;
            let failures = || two.events.count(|event| matches!(event, NetworkEvent::ReceiveFailed { from: 1 }));
            eventually("it is counted", || failures() == expected).await;
        }
    }
    is_well(&two).await;
}

#[tokio::test]
async fn a_call_in_somebody_elses_name_is_not_answered() {
    let two = member(2).await;
    *two.host.read_index.lock().unwrap() = Some(Ok(7));
    let call = |address| encode(address, Kind::ReadIndex, 8, |out| out.extend_from_slice(&[0; 8]));
    let others =
        [Address { cluster: 0xbad, ..address() }, Address { from: 9, ..address() }, Address { to: 9, ..address() }];
    for other in others {
        let mut raw = Raw::greeted(&two, 1, serve::CONTROL).await;
        raw.out.send(call(address())).await.unwrap();
        assert_eq!(raw.next().await.kind, Kind::ReadAt);
        raw.out.send(call(other)).await.unwrap();
        assert!(raw.try_next().await.is_none(), "{other:?}");
    }
}

#[tokio::test]
async fn a_frame_cut_off_by_the_end_of_the_body_is_noticed() {
    let two = member(2).await;
    let mut raw = Raw::greeted(&two, 1, serve::CONTROL).await;
    let call = encode(address(), Kind::ReadIndex, 8, |out| out.extend_from_slice(&[0; 8]));
    raw.out.send(call.slice(..20)).await.unwrap();
    let Raw { out, .. } = &mut raw;
    *out = tokio::sync::mpsc::channel(1).0;
    eventually("it is counted", || {
        two.events.count(|event| matches!(event, NetworkEvent::ReceiveFailed { from: 1 })) == 1
    })
    .await;
}

#[tokio::test]
async fn nobody_is_served_before_there_is_a_host_or_after_the_end() {
    let two = member(2).await;
    two.net.close();
    let mut connection = connect(&two.url, SOON).await.unwrap();
    for path in [serve::APPEND, serve::CONTROL, serve::FORWARD, serve::SNAPSHOT, serve::MEMBERS] {
        let (_out, body) = outgoing();
        let uri = format!("{}{path}", two.url);
        let request = Request::builder().method(Method::POST).version(Version::HTTP_2).uri(uri).body(body).unwrap();
        let response = connection.requests.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
    }
}

#[tokio::test]
async fn channels_are_limited_and_their_places_are_given_back() {
    let two = member(2).await;
    let free = two.net.inner.places.available_permits();
    let mut channels = Vec::new();
    for _ in 0..20 {
        channels.push(Raw::greeted(&two, 1, serve::APPEND).await);
    }
    assert_eq!(two.net.inner.places.available_permits(), free - 20);
    drop(channels);
    eventually("they are free again", || two.net.inner.places.available_permits() == free).await;
    let taken = std::sync::Arc::clone(&two.net.inner.places).acquire_many_owned(free as u32).await.unwrap();
    let mut connection = connect(&two.url, SOON).await.unwrap();
    let (_out, body) = outgoing();
    let uri = format!("{}{}", two.url, serve::APPEND);
    let request = Request::builder().method(Method::POST).version(Version::HTTP_2).uri(uri).body(body).unwrap();
    assert_eq!(connection.requests.send_request(request).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(taken);
    is_well(&two).await;
}

#[tokio::test]
async fn members_that_do_not_exist_do_not_fill_the_memory() {
    let two = member(2).await;
    for from in 1_000..1_400 {
        two.net.caller(from);
    }
    let remembered =
        (1_000..1_400).filter(|from| std::sync::Arc::ptr_eq(&two.net.caller(*from), &two.net.caller(*from)));
    assert!(remembered.count() <= 128);
}
