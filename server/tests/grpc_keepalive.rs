//! HTTP/2, frame by frame: the pings of clients and of the server, and how many streams a connection may have.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::{PATIENCE, directory, frames, launch};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;

struct Frames(TcpStream);

impl Frames {
    fn connect(address: &str) -> Frames {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(PREFACE).unwrap();
        let mut frames = Frames(stream);
        frames.send(SETTINGS, 0, &[]);
        frames
    }

    fn send(&mut self, kind: u8, flags: u8, content: &[u8]) {
        // The server may have closed the connection already.
        let _ = self.0.write_all(&frames::frame(kind, flags, 0, content));
    }

    /// Opens a watch that goes on.
    fn watch(&mut self, stream: u32) {
        let create = b"\0\0\0\0\x05\x0a\x03\x0a\x01k";
        self.0.write_all(&frames::call(stream, WATCH)).unwrap();
        self.0.write_all(&frames::message(stream, create)).unwrap();
    }

    /// The next frame of one of these kinds: which, its flags, its stream, its content.
    fn next(&mut self, wanted: &[u8]) -> (u8, u8, u32, Vec<u8>) {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).unwrap();
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let mut content = vec![0; length];
            self.0.read_exact(&mut content).unwrap();
            if wanted.contains(&head[3]) {
                return (head[3], head[4], u32::from_be_bytes(head[5..].try_into().unwrap()), content);
            }
        }
    }

    /// The next frame of this kind.
    fn wait_for(&mut self, wanted: u8) -> (u8, Vec<u8>) {
        let (_, flags, _, content) = self.next(&[wanted]);
        (flags, content)
    }

    /// Pings so many times, with a pause before each; the kinds of the answers.
    fn ping(&mut self, times: usize, pause: Duration) -> Vec<u8> {
        let ping = |_| {
            std::thread::sleep(pause);
            self.send(PING, 0, &[0; 8]);
            self.next(&[PING, GOAWAY]).0
        };
        (0..times).map(ping).collect()
    }
}

#[test]
fn a_client_that_pings_too_often_is_told_to_calm_down() {
    let root = directory();
    let tally = launch(&root.path().join("d")).start();
    let mut frames = Frames::connect(&tally.address);
    for number in 0..3 {
        frames.send(PING, 0, &[number; 8]);
        assert_eq!(frames.wait_for(PING), (ACK, vec![number; 8]));
    }
    frames.send(PING, 0, &[3; 8]);
    let (_, farewell) = frames.wait_for(GOAWAY);
    assert_eq!(farewell[4..8], [0, 0, 0, 11], "ENHANCE_YOUR_CALM");
    assert_eq!(&farewell[8..], b"too_many_pings");
    assert_eq!(frames.0.read(&mut [0]).unwrap_or(0), 0, "the connection is closed");
}

#[test]
fn a_client_without_a_call_may_not_ping_as_often_as_one_with_a_call() {
    let root = directory();
    let tally = launch(&root.path().join("d")).arg("--grpc-keepalive-min-time=50ms").start();
    // Long enough for who waits for something; others would have to pause for two hours.
    let pause = Duration::from_millis(100);
    let mut busy = Frames::connect(&tally.address);
    busy.watch(1);
    busy.wait_for(DATA);
    assert_eq!(busy.ping(6, pause), [PING; 6]);
    let mut idle = Frames::connect(&tally.address);
    assert_eq!(idle.ping(4, pause), [PING, PING, PING, GOAWAY]);
}

#[test]
fn a_connection_has_no_more_streams_than_are_allowed() {
    let root = directory();
    let tally = launch(&root.path().join("d")).arg("--max-concurrent-streams=2").start();
    let mut frames = Frames::connect(&tally.address);
    let (_, settings) = frames.wait_for(SETTINGS);
    assert!(settings.chunks(6).any(|setting| setting == [0, 3, 0, 0, 0, 2]), "{settings:?}");
    for stream in [1, 3] {
        frames.watch(stream);
        assert_eq!(frames.next(&[DATA, RST_STREAM]).2, stream);
    }
    // Without a message, which would be refused by itself.
    frames.0.write_all(&frames::call(5, WATCH)).unwrap();
    let refused = frames.next(&[DATA, RST_STREAM]);
    assert_eq!(refused, (RST_STREAM, 0, 5, vec![0, 0, 0, 7]), "REFUSED_STREAM");
    // There is room again once one of them has ended.
    frames.0.write_all(&frames::frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])).unwrap();
    frames.watch(7);
    let (kind, _, stream, _) = frames.next(&[DATA, RST_STREAM]);
    assert_eq!((kind, stream), (DATA, 7));
}

#[test]
fn pings_are_free_where_they_are_allowed() {
    let root = directory();
    let tally = launch(&root.path().join("d")).arg("--grpc-keepalive-min-time=0s").start();
    let mut frames = Frames::connect(&tally.address);
    for number in 0..50 {
        frames.send(PING, 0, &[number; 8]);
        assert_eq!(frames.wait_for(PING), (ACK, vec![number; 8]));
    }
}

#[test]
fn without_a_time_to_answer_idle_clients_are_pinged_as_if_nothing_were_said() {
    let root = directory();
    let flags = ["--grpc-keepalive-interval=50ms", "--grpc-keepalive-timeout=0s"];
    let tally = flags.iter().fold(launch(&root.path().join("d")), |launch, flag| launch.arg(flag)).start();
    let mut frames = Frames::connect(&tally.address);
    // Taken literally, the flags would have the server ping by now and end the connection at once.
    std::thread::sleep(Duration::from_millis(500));
    frames.send(PING, 0, &[7; 8]);
    assert_eq!(frames.wait_for(PING), (ACK, vec![7; 8]));
}

#[test]
fn the_server_pings_idle_clients_and_gives_up_those_who_do_not_answer() {
    let root = directory();
    let flags = ["--grpc-keepalive-interval=1s", "--grpc-keepalive-timeout=1s"];
    let tally = flags.iter().fold(launch(&root.path().join("d")), |launch, flag| launch.arg(flag)).start();
    let mut frames = Frames::connect(&tally.address);
    let (flags, content) = frames.wait_for(PING);
    assert_eq!(flags, 0);
    frames.send(PING, ACK, &content);
    // This one is not answered.
    assert_eq!(frames.wait_for(PING).0, 0);
    let mut rest = Vec::new();
    let _ = frames.0.read_to_end(&mut rest);
}
