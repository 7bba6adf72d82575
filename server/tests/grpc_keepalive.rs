//! Pings over HTTP/2: what clients may send, and what the server sends.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;

use common::{PATIENCE, directory, launch};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
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
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 0];
        frame.extend_from_slice(content);
        // The server may have closed the connection already.
        let _ = self.0.write_all(&frame);
    }

    /// The next frame of this kind.
    fn wait_for(&mut self, wanted: u8) -> (u8, Vec<u8>) {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).unwrap();
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let mut content = vec![0; length];
            self.0.read_exact(&mut content).unwrap();
            if head[3] == wanted {
                return (head[4], content);
            }
        }
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
