//! Clients that ask for much: thousands of streams, none of which may cost anything while nothing happens, and clients
//! that do not read.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;

use common::cluster::eventually;
use common::grpc::{block_on, pb};
use common::watch::JsonWatch;
use common::{PATIENCE, Tally, base64, directory, frames, launch, start};
use serde_json::json;
use tokio_stream::StreamExt as _;

const STREAMS: usize = 10_000;
const CONNECTIONS: usize = 10;

fn resident_bytes(tally: &Tally) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", tally.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn memory_is_taken_in_small_pages() {
    let directory = directory();
    let tally = start(directory.path());
    let status = std::fs::read_to_string(format!("/proc/{}/status", tally.pid())).unwrap();
    // Kernels before 5.0 do not say it.
    let huge = status.lines().find_map(|line| line.strip_prefix("THP_enabled:"));
    assert!(huge.is_none_or(|enabled| enabled.trim() == "0"), "{huge:?}");
}

#[test]
fn ten_thousand_idle_streams_cost_little_memory_and_nothing_per_put() {
    let directory = directory();
    let tally = start(directory.path());
    tally.put("warm", "up");
    let before = resident_bytes(&tally);
    block_on(async {
        let mut streams = Vec::new();
        for connection in 0..CONNECTIONS {
            let client = pb::watch_client::WatchClient::new(tally.channel());
            for number in 0..STREAMS / CONNECTIONS {
                let key = format!("idle/{connection}/{number}");
                let create = pb::WatchCreateRequest { key: key.into(), ..Default::default() };
                let union = pb::watch_request::RequestUnion::CreateRequest(create);
                let request = pb::WatchRequest { request_union: Some(union) };
                let requests = tokio_stream::once(request).chain(tokio_stream::pending());
                let mut responses = client.clone().watch(requests).await.unwrap().into_inner();
                assert!(responses.message().await.unwrap().unwrap().created);
                streams.push(responses);
            }
        }
        let each = resident_bytes(&tally).saturating_sub(before) / STREAMS as u64;
        println!("{each} bytes for each idle stream");
        assert!(each < 16 * 1024, "{each} bytes for each stream");
        assert_eq!(tally.metric("etcd_debugging_mvcc_watch_stream_total"), STREAMS as f64);
        for number in 0..100 {
            tally.put("other", &number.to_string());
        }
        assert_eq!(tally.metric("etcd_debugging_mvcc_events_total"), 0.0);
        // Each is there all the same.
        tally.put("idle/3/7", "1");
        let event = streams[3 * STREAMS / CONNECTIONS + 7].message().await.unwrap().unwrap();
        assert_eq!(event.events.len(), 1);
        drop(streams);
    });
    eventually("the streams are gone", || {
        (tally.metric("etcd_debugging_mvcc_watch_stream_total") == 0.0).then_some(())
    });
}

#[test]
fn a_client_that_never_reads_costs_bounded_memory_and_disturbs_nobody() {
    let directory = directory();
    let tally = start(directory.path());
    // Watches everything, and reads nothing of it.
    let mut deaf = TcpStream::connect(&tally.address).unwrap();
    let body = json!({"create_request": {"key": base64("\0"), "range_end": base64("\0")}}).to_string();
    let head = format!("POST /v3/watch HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    deaf.write_all(head.as_bytes()).unwrap();
    eventually("it watches", || (tally.metric("etcd_debugging_mvcc_watcher_total") == 1.0).then_some(()));
    let mut reads = JsonWatch::on(&tally.address, json!({"key": base64("k"), "range_end": base64("l")}));
    let value = "v".repeat(32 * 1024);
    let mut put = |from: usize, count: usize| {
        for number in from..from + count {
            tally.put(&format!("k{}", number % 10), &value);
            assert_eq!(reads.changes(1).len(), 1);
        }
    };
    put(0, 1_000);
    let before = resident_bytes(&tally);
    put(1_000, 3_000);
    let grown = resident_bytes(&tally).saturating_sub(before);
    // 94 MiB went by. The database itself takes some.
    assert!(grown < 160 << 20, "{} MiB more", grown >> 20);
    drop(deaf);
    eventually("it is gone", || (tally.metric("etcd_debugging_mvcc_watcher_total") == 1.0).then_some(()));
}

#[test]
fn a_client_that_asks_and_never_reads_is_not_listened_to_any_more() {
    let directory = directory();
    let tally = start(directory.path());
    let mut asks = TcpStream::connect(&tally.address).unwrap();
    asks.set_write_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
    asks.write_all(b"POST /v3/watch HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    let request = json!({"create_request": {"key": base64("k"), "range_end": base64("a")}}).to_string().repeat(1_000);
    let chunk = format!("{:x}\r\n{request}\r\n", request.len());
    // What it can send is what the buffers on the way hold, not what the server remembers.
    let sent = (0..100_000).take_while(|_| asks.write_all(chunk.as_bytes()).is_ok()).count();
    assert!(sent < 100_000);
    assert!(resident_bytes(&tally) < 512 << 20);
    assert_eq!(tally.put("k", "1"), 2);
}

#[test]
fn thousands_of_watchers_can_be_asked_for_at_once() {
    // As many as the window of a stream has room for before the server has said that there is more.
    const WATCHERS: usize = 9_000;
    let create = b"\0\0\0\0\x02\x0a\0";
    let sent =
        [frames::hello(), frames::call(1, "/etcdserverpb.Watch/Watch"), frames::message(1, create).repeat(WATCHERS)];
    // Whether the server counts pings or not.
    for min_time in ["5s", "0s"] {
        let directory = directory();
        let tally = launch(directory.path()).arg(&format!("--grpc-keepalive-min-time={min_time}")).start();
        let mut client = TcpStream::connect(&tally.address).unwrap();
        let mut answers = client.try_clone().unwrap();
        let reads = std::thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
        client.write_all(&sent.concat()).unwrap();
        eventually("all are there", || {
            (tally.metric("etcd_debugging_mvcc_watcher_total") == WATCHERS as f64).then_some(())
        });
        client.shutdown(std::net::Shutdown::Both).unwrap();
        reads.join().unwrap().unwrap();
    }
}

/// A stream that asks for much in one packet, and a call behind it.
#[test]
fn who_asks_for_much_at_once_lets_others_go_first() {
    const WATCHERS: usize = 1_000;
    const DATA: u8 = 0;
    const SETTINGS: u8 = 4;
    let directory = directory();
    let tally = start(directory.path());
    let create = b"\0\0\0\0\x02\x0a\0";
    let sent = [
        frames::hello(),
        // Frames may be so large that none is sent before the answers of a turn are together.
        frames::frame(SETTINGS, 0, 0, &[0, 5, 0, 0x0f, 0xff, 0xff]),
        frames::call(1, "/etcdserverpb.Watch/Watch"),
        frames::message(1, &create.repeat(WATCHERS)),
        frames::call(3, "/grpc.health.v1.Health/Check"),
        frames::last_message(3, &[0; 5]),
    ];
    let mut client = TcpStream::connect(&tally.address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(&sent.concat()).unwrap();
    let (mut answers, mut answered_before) = (Vec::new(), None);
    let count = |answers: &[u8]| {
        let (mut rest, mut count) = (answers, 0);
        while let Some(length) = rest.first_chunk::<5>() {
            let bytes = 5 + u32::from_be_bytes(length[1..].try_into().unwrap()) as usize;
            rest = rest.get(bytes..).unwrap_or_default();
            count += 1;
        }
        count
    };
    while answered_before.is_none() || count(&answers) < WATCHERS {
        let mut head = [0; 9];
        client.read_exact(&mut head).unwrap();
        let mut content = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        client.read_exact(&mut content).unwrap();
        match (head[3], head[8]) {
            (DATA, 1) => answers.extend_from_slice(&content),
            (DATA, 3) => answered_before = Some(count(&answers)),
            _ => {}
        }
    }
    // 128 are taken at a time; a few times so many may be before the call has been read.
    assert!(answered_before.is_some_and(|before| before < WATCHERS / 2), "{answered_before:?}");
}
