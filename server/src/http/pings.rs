//! Clients that ping too much: `--grpc-keepalive-min-time`, as grpc-go enforces it.
//!
//! The HTTP/2 library answers pings without telling anybody, so the frames are counted on the socket, by their heads alone;
//! and the farewell is put between two frames of what the library writes.

use std::time::{Duration, Instant};

/// Bytes before the first frame of a client.
const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
/// The frames that an answer is made of.
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
const PING: u8 = 6;
const ACK: u8 = 1;
/// So many pings may come too early; the next one ends the connection.
const STRIKES_MAX: u32 = 2;
/// What a client without any request under way has to wait between two pings.
const IDLE_INTERVAL: Duration = Duration::from_secs(2 * 60 * 60);

/// GOAWAY for all streams (last stream 2^31 - 1), ENHANCE_YOUR_CALM, and the words that gRPC clients look for.
pub(super) const FAREWELL: &[u8] = b"\0\0\x16\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\x0btoo_many_pings";

/// Where in a sequence of frames one is.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Bytes of the frame's content that are still to come.
    skip: usize,
    head: [u8; HEAD_BYTES],
    /// How much of the head is there.
    got: usize,
}

impl Frames {
    /// What a client sends, from its first byte on.
    pub(super) fn of_client() -> Frames {
        Frames { skip: PREFACE_BYTES, ..Frames::default() }
    }

    /// Goes on over these bytes; `on_head` is told type and flags of every frame that begins in them.
    pub(super) fn pass(&mut self, mut bytes: &[u8], mut on_head: impl FnMut(u8, u8)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (HEAD_BYTES - self.got).min(bytes.len());
            self.head[self.got..self.got + taken].copy_from_slice(&bytes[..taken]);
            self.got += taken;
            bytes = &bytes[taken..];
            if self.got == HEAD_BYTES {
                let [a, b, c, kind, flags, ..] = self.head;
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.got = 0;
                on_head(kind, flags);
            }
        }
    }

    /// Bytes of the frame's content that are still to come.
    pub(super) fn left(&self) -> usize {
        self.skip
    }

    /// Whether the next byte begins a frame.
    pub(super) fn is_between(&self) -> bool {
        self.skip == 0 && self.got == 0
    }
}

/// True for a ping that wants an answer.
pub(super) fn is_ping(kind: u8, flags: u8) -> bool {
    kind == PING && flags & ACK == 0
}

/// Judges the pings of one connection.
#[derive(Debug)]
pub(super) struct Judge {
    interval_min: Duration,
    last: Option<Instant>,
    strikes: u32,
}

impl Judge {
    pub(super) fn new(interval_min: Duration) -> Judge {
        Judge { interval_min, last: None, strikes: 0 }
    }

    /// Whether this ping is one too many. A client that is `answered` since its last one may ping: it measures how long
    /// that takes.
    pub(super) fn is_too_much(&mut self, now: Instant, answered: bool, is_idle: bool) -> bool {
        let last = self.last.replace(now);
        if answered {
            self.strikes = 0;
            return false;
        }
        let interval = if is_idle { IDLE_INTERVAL } else { self.interval_min };
        if last.is_some_and(|last| now < last + interval) {
            self.strikes += 1;
        }
        self.strikes > STRIKES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, content: usize) -> Vec<u8> {
        let length = u32::try_from(content).unwrap_or(0).to_be_bytes();
        let mut out = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        out.resize(HEAD_BYTES + content, 0xAA);
        out
    }

    #[test]
    fn frames_are_told_however_they_are_cut() {
        let mut bytes = vec![b'P'; PREFACE_BYTES];
        for (kind, flags, content) in [(4, 0, 0), (PING, 0, 8), (0, 1, 70_000), (PING, ACK, 8), (1, 4, 3)] {
            bytes.extend(frame(kind, flags, content));
        }
        for size in [1, 7, 24, 33, 1_000, bytes.len()] {
            let (mut frames, mut seen) = (Frames::of_client(), Vec::new());
            for piece in bytes.chunks(size) {
                frames.pass(piece, |kind, flags| seen.push((kind, flags)));
            }
            assert_eq!(seen, [(4, 0), (PING, 0), (0, 1), (PING, ACK), (1, 4)], "{size}");
            assert!(frames.is_between());
            frames.pass(&[0], |_, _| ());
            assert!(!frames.is_between());
        }
        assert!(is_ping(PING, 0) && !is_ping(PING, ACK) && !is_ping(0, 0));
    }

    #[test]
    fn the_third_strike_is_one_too_many() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut judge = Judge::new(Duration::from_secs(5));
        assert!(!judge.is_too_much(at(0), false, false));
        assert!(!judge.is_too_much(at(5), false, false));
        assert!(!judge.is_too_much(at(9), false, false));
        assert!(!judge.is_too_much(at(10), false, false));
        // Answers wipe the slate.
        assert!(!judge.is_too_much(at(10), true, false));
        assert!(!judge.is_too_much(at(11), false, false));
        assert!(!judge.is_too_much(at(12), false, false));
        assert!(judge.is_too_much(at(13), false, false));
    }

    #[test]
    fn who_asks_nothing_pings_every_two_hours() {
        let begin = Instant::now();
        let mut judge = Judge::new(Duration::from_secs(5));
        assert!((0..3).all(|hours| !judge.is_too_much(begin + Duration::from_secs(hours * 3_600), false, true)));
        assert!(judge.is_too_much(begin + Duration::from_secs(3 * 3_600), false, true));
    }

    #[test]
    fn the_farewell_is_a_frame() {
        let (mut frames, mut seen) = (Frames::default(), Vec::new());
        frames.pass(FAREWELL, |kind, flags| seen.push((kind, flags)));
        assert_eq!((seen, frames.is_between()), (vec![(7, 0)], true));
    }
}
