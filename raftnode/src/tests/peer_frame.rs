//! Frames and bodies: golden bytes, wherever the stream is cut, and whatever is done to it.

use bytes::{BufMut, Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, TransferLeaderRequest, VoteRequest, VoteResponse};

use super::super::body::{self, Append, Input, Stopping, decode_append, decode_appended, put_appended};
use super::super::frame::{Address, Decoder, Frame, FrameError, HEADER_BYTES, Kind, Limits, VERSION, encode};
use super::super::hello::{Hello, Verdict, reject};
use super::super::messages;
use super::{hello, put, some_view};
use crate::barrier::BarrierError;
use crate::config::COMMAND_BYTES_MAX;
use crate::member::{MemberChange, MemberError};
use crate::types::{RaftEntry, RaftVote, TypeConfig, log_id};

const ADDRESS: Address = Address { cluster: 0xc1, from: 2, to: 3 };

fn limits() -> Limits {
    Limits::MEMBER
}

fn decoded(bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = Decoder::new(limits());
    decoder.push(Bytes::copy_from_slice(bytes));
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next()? {
        frames.push(frame);
    }
    decoder.finish().map(|()| frames)
}

fn append() -> AppendEntriesRequest<TypeConfig> {
    let entry = |index, payload| RaftEntry { log_id: log_id(index, 4).unwrap(), payload };
    AppendEntriesRequest {
        vote: RaftVote::new_committed(4, 2),
        prev_log_id: log_id(7, 3),
        leader_commit: log_id(6, 3),
        entries: vec![entry(8, EntryPayload::Blank), entry(9, EntryPayload::Normal(put("k", "v", 5, 4)))],
    }
}

fn append_frame() -> Bytes {
    let append = Append::new(11, append());
    encode(ADDRESS, Kind::Append, append.bytes(), |out| append.encode(out))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_frames() {
    let frames = [
        hello(2, 9).frame(ADDRESS),
        reject(ADDRESS, Verdict::Behind { acked: 9, found: 4 }),
        append_frame(),
        encode(ADDRESS, Kind::Appended, 0, |out| put_appended(out, 11, &Ok(Ok(log_id(9, 4))))),
        encode(ADDRESS, Kind::Ask, 0, |out| {
            out.put_u64(7);
            messages::put_ask(out, 3, b"question");
        }),
        encode(ADDRESS, Kind::Answer, 0, |out| {
            out.put_u64(7);
            messages::put_answer(out, Some(&Bytes::from_static(b"answer")));
        }),
    ];
    let found: Vec<String> = frames.iter().map(|frame| hex(frame)).collect();
    let golden = include_str!("golden/peer-frames-1.hex");
    assert_eq!(found, golden.lines().collect::<Vec<_>>(), "the frames of version {VERSION} are fixed");
}

#[test]
fn whatever_is_cut_where_the_same_frames_come_out() {
    let frames =
        [hello(2, 9).frame(ADDRESS), append_frame(), encode(ADDRESS, Kind::ReadIndex, 0, |_| {}), append_frame()];
    let stream: Vec<u8> = frames.concat();
    let whole = decoded(&stream).unwrap();
    assert_eq!(whole.len(), 4);
    let mut random = Random(7);
    for size in (1..=stream.len()).chain([0; 300]) {
        let mut decoder = Decoder::new(limits());
        let (mut rest, mut found) = (Bytes::copy_from_slice(&stream), Vec::new());
        while !rest.is_empty() {
            let size = if size == 0 { 1 + random.below(90) } else { size };
            decoder.push(rest.split_to(size.min(rest.len())));
            while let Some(frame) = decoder.next().unwrap() {
                found.push(frame);
            }
        }
        decoder.finish().unwrap();
        assert_eq!(found, whole);
    }
}

#[test]
fn a_frame_in_one_piece_is_not_copied() {
    let bytes = append_frame();
    let range = bytes.as_ptr_range();
    let mut decoder = Decoder::new(limits());
    decoder.push(bytes.clone());
    let frame = decoder.next().unwrap().unwrap();
    let (_, request) = decode_append(frame.body).unwrap();
    let EntryPayload::Normal(command) = &request.entries[1].payload else { panic!("a command") };
    assert!(range.contains(&command.as_bytes().as_ptr()), "the payload of the log is a slice of what was received");
}

#[test]
fn what_is_behind_the_last_frame_is_kept() {
    for cut in [0, 5, HEADER_BYTES] {
        let mut decoder = Decoder::new(limits());
        let bytes = [append_frame().as_ref(), b"the rest"].concat();
        let at = bytes.len() - 8 - cut;
        decoder.push(Bytes::copy_from_slice(&bytes[..at]));
        let mut frames = decoder.next().unwrap().into_iter().count();
        decoder.push(Bytes::copy_from_slice(&bytes[at..]));
        frames += decoder.next().unwrap().into_iter().count();
        assert_eq!((frames, decoder.into_rest()), (1, Bytes::from_static(b"the rest")), "{cut}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let frame = append_frame();
    let changed = |at: usize, to: u8| {
        let mut bytes = frame.to_vec();
        bytes[at] = to;
        decoded(&bytes).unwrap_err()
    };
    assert_eq!(changed(4, 2), FrameError::Version { found: 2 });
    assert_eq!(changed(5, 99), FrameError::Kind { found: 99 });
    assert_eq!(changed(5, 0), FrameError::Kind { found: 0 });
    assert_eq!(changed(6, 1), FrameError::Reserved);
    assert_eq!(changed(15, 9), FrameError::Checksum, "another cluster");
    assert_eq!(changed(frame.len() - 1, b'x'), FrameError::Checksum);
    assert!(matches!(changed(0, 0xff), FrameError::TooLarge { kind: Kind::Append, .. }));
    assert_eq!(decoded(&frame[..frame.len() - 1]).unwrap_err(), FrameError::Truncated);
    assert_eq!(decoded(&frame[..3]).unwrap_err(), FrameError::Truncated);
    // A greeting of another version is read, so that it can be answered.
    let mut greeting = BytesMut::from(&hello(2, 9).frame(ADDRESS)[..]);
    greeting[4] = 7;
    assert_eq!(decoded(&greeting).unwrap_err(), FrameError::Checksum);
}

/// The header of an append with a body of so many bytes.
fn head_of(bytes: usize) -> Bytes {
    let mut head = BytesMut::from(&append_frame()[..HEADER_BYTES]);
    head[..4].copy_from_slice(&u32::try_from(bytes).unwrap().to_be_bytes());
    head.freeze()
}

/// Whatever this member may propose itself: a leader with a higher limit could not replicate to it any more.
#[test]
fn the_largest_entry_of_any_member_is_taken_but_not_of_a_stranger() {
    // What stands in front of one entry's payload is far less.
    let largest = COMMAND_BYTES_MAX + 1_024;
    let read = |limits: Limits, bytes: usize| {
        let mut decoder = Decoder::new(limits);
        decoder.push(head_of(bytes));
        decoder.next()
    };
    assert_eq!(read(Limits::MEMBER, largest).unwrap(), None);
    assert!(matches!(read(Limits::MEMBER, 2 * largest), Err(FrameError::TooLarge { kind: Kind::Append, .. })));
    assert!(matches!(read(Limits::STRANGER, 1), Err(FrameError::TooLarge { kind: Kind::Append, .. })));
    let mut decoder = Decoder::new(Limits::STRANGER);
    decoder.push(hello(2, 9).frame(ADDRESS));
    assert_eq!(decoder.next().unwrap().unwrap().kind, Kind::Hello);
    decoder.admit();
    decoder.push(head_of(largest));
    assert_eq!(decoder.next().unwrap(), None);
}

#[test]
fn nothing_is_allocated_for_what_is_only_promised() {
    let mut decoder = Decoder::new(limits());
    decoder.push(head_of(COMMAND_BYTES_MAX));
    assert_eq!(decoder.next().unwrap(), None);
    assert!(decoder.into_rest().len() == HEADER_BYTES);
    // Counts are checked against what can follow.
    let mut body = BytesMut::new();
    body.put_u64(1);
    body::put_vote(&mut body, &RaftVote::new_committed(1, 1));
    body.put_bytes(0, 32);
    body.put_u32(u32::MAX);
    decode_append(body.freeze()).unwrap_err();
}

#[test]
fn bodies_are_read_back() {
    let (session, request) = decode_append(decoded(&append_frame()).unwrap().remove(0).body).unwrap();
    let sent = append();
    assert_eq!((session, request.vote, request.prev_log_id), (11, sent.vote, sent.prev_log_id));
    assert_eq!((request.leader_commit, &request.entries), (sent.leader_commit, &sent.entries));
    let results = [
        Ok(Ok(None)),
        Ok(Ok(log_id(3, 2))),
        Ok(Err(StreamAppendError::Conflict(log_id(3, 2).unwrap()))),
        Ok(Err(StreamAppendError::HigherVote(RaftVote::new(9, 3)))),
        Err(Stopping),
    ];
    for result in results {
        let mut out = BytesMut::new();
        put_appended(&mut out, 5, &result);
        assert_eq!(decode_appended(out.freeze()).unwrap(), (5, result));
    }
    let hello = hello(2, 9);
    assert_eq!(Hello::decode(decoded(&hello.frame(ADDRESS)).unwrap().remove(0).body).unwrap(), hello);
    for verdict in [
        Verdict::WrongCluster { cluster: 1 },
        Verdict::WrongReceiver { member: 2 },
        Verdict::Removed,
        Verdict::DirectoryReplaced,
        Verdict::Behind { acked: 3, found: 2 },
        Verdict::Version { supported: 1 },
    ] {
        let frame = decoded(&reject(ADDRESS, verdict)).unwrap().remove(0);
        assert_eq!(Verdict::decode(frame.body).unwrap(), verdict);
    }
}

fn written(write: impl FnOnce(&mut BytesMut)) -> Input {
    let mut out = BytesMut::new();
    write(&mut out);
    Input::new("test", out.freeze())
}

#[test]
fn messages_are_read_back() {
    let request = VoteRequest { vote: RaftVote::new(3, 1), last_log_id: log_id(5, 2), leadership_transfer: true };
    assert_eq!(messages::vote_request(written(|out| messages::put_vote_request(out, &request))).unwrap(), request);
    let response = VoteResponse { vote: RaftVote::new(3, 1), vote_granted: true, last_log_id: None };
    assert_eq!(messages::vote_response(written(|out| messages::put_vote_response(out, &response))).unwrap(), response);
    let transfer = TransferLeaderRequest::new(RaftVote::new_committed(3, 1), 2, log_id(5, 2));
    assert_eq!(messages::transfer(written(|out| messages::put_transfer(out, &transfer))).unwrap(), transfer);
    let urls = vec!["http://a:1".to_owned(), "http://b:2".to_owned()];
    for change in [
        MemberChange::Add { id: 3, peer_urls: urls.clone(), is_learner: true },
        MemberChange::Remove { id: 3 },
        MemberChange::Update { id: 3, peer_urls: urls },
        MemberChange::Promote { id: 3 },
    ] {
        assert_eq!(messages::change(written(|out| messages::put_change(out, &change))).unwrap(), change);
    }
    let asked = messages::ask(written(|out| messages::put_ask(out, 3, b"question"))).unwrap();
    assert_eq!(asked, (3, Bytes::from_static(b"question")));
    for answer in [None, Some(Bytes::new()), Some(Bytes::from_static(b"answer"))] {
        assert_eq!(messages::answer(written(|out| messages::put_answer(out, answer.as_ref()))).unwrap(), answer);
    }
    let view = some_view();
    let mut out = BytesMut::new();
    messages::put_view(&mut out, &view);
    assert_eq!(messages::view(out.freeze()).unwrap(), view);
    for error in [
        MemberError::NotFound { id: 1 },
        MemberError::IdExists { id: 2 },
        MemberError::PeerUrlExists { url: "http://a:1".to_owned() },
        MemberError::TooManyLearners { limit: 1 },
        MemberError::NotLearner { id: 3 },
        MemberError::LearnerNotReady { id: 4 },
        MemberError::NotEnoughStarted,
        MemberError::Unhealthy,
        MemberError::Busy,
        MemberError::NoLeader,
        MemberError::Unclear,
    ] {
        let text = error.to_string();
        let read = messages::changed(written(|out| messages::put_changed(out, &Err(error)))).unwrap();
        assert_eq!(read.unwrap_err().to_string(), text);
    }
    let stopped = messages::changed(written(|out| messages::put_changed(out, &Err(MemberError::Stopped)))).unwrap();
    assert!(matches!(stopped, Err(MemberError::Unclear)), "a leader that stops does not know");
    let read = messages::read_at(written(|out| messages::put_read_at(out, &Err(BarrierError::Stopped)))).unwrap();
    assert!(matches!(read, Err(BarrierError::NoLeader)));
}

#[test]
fn appends_that_no_leader_sends_are_refused() {
    let body = |change: fn(&mut AppendEntriesRequest<TypeConfig>)| {
        let mut request = append();
        change(&mut request);
        let append = Append::new(1, request);
        let mut out = BytesMut::new();
        append.encode(&mut out);
        decode_append(out.freeze())
    };
    body(|_| {}).unwrap();
    body(|request| request.vote = RaftVote::new(4, 2)).unwrap_err();
    body(|request| request.prev_log_id = log_id(6, 3)).unwrap_err();
    body(|request| request.prev_log_id = None).unwrap_err();
    body(|request| request.vote = RaftVote::new_committed(3, 2)).unwrap_err();
    body(|request| request.leader_commit = log_id(6, 5)).unwrap_err();
    body(|request| request.entries.swap(0, 1)).unwrap_err();
    let last = body(|request| {
        request.entries.clear();
        request.prev_log_id = log_id(u64::MAX, 3);
    });
    last.unwrap_err();
}

/// xorshift: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Everything that can be made of a body; none of it may panic.
fn read_as_everything(body: &Bytes) {
    let input = || Input::new("fuzz", body.clone());
    drop(decode_append(body.clone()));
    drop(decode_appended(body.clone()));
    drop(Hello::decode(body.clone()));
    drop(Verdict::decode(body.clone()));
    drop(messages::vote_request(input()));
    drop(messages::vote_response(input()));
    drop(messages::transfer(input()));
    drop(messages::transferred(input()));
    drop(messages::read_at(input()));
    drop(messages::ask(input()));
    drop(messages::answer(input()));
    drop(messages::change(input()));
    drop(messages::changed(input()));
    drop(messages::view(body.clone()));
}

#[test]
fn fuzzed_streams_give_true_frames_or_none() {
    let frames =
        [hello(2, 9).frame(ADDRESS), append_frame(), encode(ADDRESS, Kind::ReadIndex, 0, |_| {}), append_frame()];
    let stream: Vec<u8> = frames.concat();
    let originals = decoded(&stream).unwrap();
    let mut random = Random(0x5eed);
    for _ in 0..20_000 {
        let mut bytes = stream.clone();
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
        if random.below(4) == 0 {
            let (from, to) = (random.below(bytes.len()), random.below(bytes.len()));
            let size = random.below(64).min(bytes.len() - from).min(bytes.len() - to);
            bytes.copy_within(from..from + size, to);
        }
        bytes.truncate(1 + random.below(bytes.len()));
        let mut decoder = Decoder::new(limits());
        let (mut rest, mut found) = (Bytes::from(bytes), Vec::new());
        'stream: while !rest.is_empty() {
            decoder.push(rest.split_to((1 + random.below(200)).min(rest.len())));
            loop {
                match decoder.next() {
                    Ok(Some(frame)) => found.push(frame),
                    Ok(None) => break,
                    Err(_) => break 'stream,
                }
            }
        }
        // Whatever was done, what comes out was put in; at the same place, unless whole frames were moved.
        for frame in &found {
            assert!(originals.contains(frame), "{frame:?}");
        }
    }
}

#[test]
fn fuzzed_bodies_are_read_without_a_panic() {
    let mut seeds: Vec<Bytes> =
        vec![append_frame().slice(HEADER_BYTES..), hello(2, 9).frame(ADDRESS).slice(HEADER_BYTES..)];
    let mut view = BytesMut::new();
    messages::put_view(&mut view, &some_view());
    seeds.push(view.freeze());
    seeds.push(Bytes::from_static(b"\x03\0\0\0\x08question"));
    let mut change = BytesMut::new();
    messages::put_change(&mut change, &MemberChange::Update { id: 1, peer_urls: vec!["http://a:1".to_owned()] });
    seeds.push(change.freeze());
    let mut random = Random(0xb0d1);
    for round in 0..40_000 {
        let mut bytes = match round % 3 {
            0 => (0..random.below(120)).map(|_| random.next() as u8).collect(),
            _ => seeds[random.below(seeds.len())].to_vec(),
        };
        for _ in 0..random.below(5) {
            if !bytes.is_empty() {
                let at = random.below(bytes.len());
                bytes[at] = [0, 1, 0x7f, 0xff, random.next() as u8][random.below(5)];
            }
        }
        bytes.truncate(random.below(bytes.len() + 1));
        read_as_everything(&bytes.into());
    }
}

#[test]
fn terms_that_no_election_can_have_are_malformed() {
    for (term, fits) in [(0, true), (1 << 62, true), ((1 << 62) + 1, false), (u64::MAX, false)] {
        let vote = [&u64::to_be_bytes(term)[..], &7_u64.to_be_bytes(), &[1]].concat();
        assert_eq!(Input::new("vote", vote.into()).vote().is_ok(), fits, "{term}");
        let position = [5_u64.to_be_bytes(), u64::to_be_bytes(term)].concat();
        assert_eq!(Input::new("position", position.into()).position().is_ok(), fits, "{term}");
    }
}
