//! Floods of slow, half-open and too many connections: bounded, and others are served meanwhile.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::cluster::eventually;
use common::{Client, PATIENCE, directory, frames, start};

const PUT: &str = "POST /v3/kv/put HTTP/1.1\r\nhost: x\r\n";

fn closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

#[test]
fn silent_and_dripping_connections_are_closed_while_others_are_served() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    let mut idle = tally.connect();
    assert_eq!(idle.request("GET", "/health", "").status, 200);
    let mut flood: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(&tally.address).unwrap()).collect();
    // A third says nothing, a third stops within a head, a third goes on with one byte at a time: of a path, so that the
    // server sees nothing wrong with it however much of it comes at once.
    for stream in &mut flood[100..] {
        stream.write_all(b"POST /v3/k").unwrap();
    }
    for stream in &flood {
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    let mut puts = 0;
    while !flood.is_empty() {
        assert!(Instant::now() < deadline, "{} connections are still open", flood.len());
        puts += 1;
        tally.put("served", &format!("{puts}"));
        let dripping = flood.len().saturating_sub(100);
        flood.iter_mut().skip(dripping).for_each(|stream| drop(stream.write_all(b"x")));
        flood.retain_mut(|stream| !closed(stream));
    }
    assert_eq!(tally.metric("tally_connections_timed_out_total"), 300.0);
    assert_eq!(tally.value("served"), Some(puts.to_string()));
    assert_eq!(idle.request("GET", "/health", "").status, 200, "an idle connection must be kept");
    tally.stop();
}

#[test]
fn more_connections_than_allowed_are_closed_at_once() {
    let root = directory();
    // Half of the descriptors may be connections, and a quarter of those other members'.
    let tally = common::limited(&root.path().join("d"), 400).start();
    let mut before = tally.connect();
    assert_eq!(before.request("GET", "/health", "").status, 200);
    let mut flood: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(&tally.address).unwrap()).collect();
    let last = flood.last_mut().unwrap();
    last.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(closed(last), "a connection beyond the limit was kept");
    let answer = before.request("GET", "/metrics", "").body;
    assert_eq!(common::metric(&answer, "tally_connections_open"), Some(150.0));
    assert_eq!(common::metric(&answer, "tally_connections_refused_total"), Some(151.0));
    drop(flood);
    // The server notices that they are gone, and there is room again.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut client = Client::connect(&tally.address);
        client.stream.get_mut().write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        if client.answer(false).is_some_and(|answer| answer.status == 200) {
            break;
        }
        assert!(Instant::now() < deadline, "there is no room again");
    }
    tally.stop();
}

#[test]
fn as_many_files_are_opened_as_the_administrator_allows() {
    let root = directory();
    let tally = common::under(&root.path().join("d"), "-Sn 300").start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", tally.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let [soft, hard] = [3, 4].map(|column| line.split_whitespace().nth(column).unwrap());
    assert_eq!(soft, hard);
    assert_eq!(tally.metric("os_fd_limit"), hard.parse().unwrap_or(0.0));
    assert_ne!(hard, "300", "there is nothing to be raised here");
    tally.stop();
}

#[test]
fn nonsense_is_answered_or_closed_and_never_fatal() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    let headers = format!("GET /health HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(20_000));
    for bytes in
        [&b"\0\0\0\0"[..], b"HELLO\r\n\r\n", b"GET /health HTTP/9.9\r\n\r\n", long.as_bytes(), headers.as_bytes()]
    {
        let mut client = tally.connect();
        // It may be closed before all is sent.
        let _ = client.stream.get_mut().write_all(bytes);
        let answer = String::from_utf8_lossy(&client.closed()).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    // An announced body that never comes, abandoned.
    let mut client = tally.connect();
    client.send(format!("{PUT}content-length: 1000000\r\n\r\n{{").as_bytes());
    drop(client);
    assert_eq!(tally.put("still", "there"), 2);
    tally.stop();
}

#[test]
fn a_connection_carries_many_requests() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    let mut client = tally.connect();
    let get = "GET /version HTTP/1.1\r\nhost: x\r\n\r\n";
    client.send(get.repeat(50).as_bytes());
    for _ in 0..50 {
        assert_eq!(client.answer(false).unwrap().status, 200);
    }
    assert_eq!(tally.metric("tally_connections_accepted_total"), 2.0);
    tally.stop();
}

/// Calls that the server has read, and has not begun when it reads that their client is gone.
#[test]
fn clients_that_call_and_vanish_leave_nothing_behind() {
    const CLIENTS: usize = 1_000;
    let root = directory();
    let tally = start(&root.path().join("d"));
    let calls: Vec<u8> = (0..40).flat_map(|call| frames::call(2 * call + 1, "/etcdserverpb.Watch/Watch")).collect();
    for _ in 0..CLIENTS {
        let mut client = TcpStream::connect(&tally.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(&frames::hello()).unwrap();
        // What the server has sent and nobody has read makes the end of the connection a reset.
        client.peek(&mut [0]).unwrap();
        client.write_all(&calls).unwrap();
    }
    // Those clients, and those that have asked how many there are.
    eventually("all are accepted", || {
        (tally.metric("tally_connections_accepted_total") > CLIENTS as f64).then_some(())
    });
    eventually("only who asks has a connection", || (tally.metric("tally_connections_open") == 1.0).then_some(()));
    tally.stop();
}

/// As gRPC's client of Node does, whose calls end with a frame of their own. Answered before that frame, the calls would be
/// mistakes of the client, and the connection at its end after a thousand of them.
#[test]
fn calls_whose_half_is_closed_by_a_frame_of_its_own_do_not_end_the_connection() {
    const CALLS: u32 = 1_200;
    const HEADERS: u8 = 1;
    const GOAWAY: u8 = 7;
    const END_STREAM: u8 = 1;
    const CHECK: &str = "/grpc.health.v1.Health/Check";
    let root = directory();
    let tally = start(&root.path().join("d"));
    let mut client = TcpStream::connect(&tally.address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let answered = |client: &mut TcpStream| {
        loop {
            let mut head = [0; 9];
            client.read_exact(&mut head).unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            client.read_exact(&mut vec![0; length]).unwrap();
            assert_ne!(head[3], GOAWAY, "the connection is ended");
            if head[3] == HEADERS && head[4] & END_STREAM != 0 {
                return u32::from_be_bytes(head[5..].try_into().unwrap());
            }
        }
    };
    let whole = |stream| [frames::call(stream, CHECK), frames::last_message(stream, &[0; 5])].concat();
    let calls: Vec<u32> = (0..CALLS).map(|call| 2 * call + 1).collect();
    let begun = calls.iter().flat_map(|stream| [frames::call(*stream, CHECK), frames::message(*stream, &[0; 5])]);
    client.write_all(&[frames::hello(), begun.collect::<Vec<_>>().concat()].concat()).unwrap();
    // When a later one is answered, the others could have been.
    let mut left: std::collections::BTreeSet<u32> = calls.iter().copied().collect();
    client.write_all(&whole(2 * CALLS + 1)).unwrap();
    loop {
        let stream = answered(&mut client);
        if stream == 2 * CALLS + 1 {
            break;
        }
        left.remove(&stream);
    }
    let ends: Vec<u8> = calls.iter().flat_map(|stream| frames::last_message(*stream, &[])).collect();
    client.write_all(&ends).unwrap();
    while !left.is_empty() {
        left.remove(&answered(&mut client));
    }
    client.write_all(&whole(2 * CALLS + 3)).unwrap();
    assert_eq!(answered(&mut client), 2 * CALLS + 3);
    tally.stop();
}
