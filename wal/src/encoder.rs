//! The appender's side of the format: which record goes where, and when a new segment begins.

use crate::queue::{Group, Queue};
use crate::record::{
    Chain, SegmentHead, encode_crc, encode_entry, encode_metadata, encode_snapshot, encode_state, encode_truncate,
    framed, framed_entry, salt,
};
use crate::segment::{SegmentName, TRAILER};
use crate::types::{Entry, LogIndex, LogPosition, Metadata, State, Ticket};
use crate::view::Location;

/// A state with the largest vote, framed: what any record but an entry fits into.
pub(crate) const SMALL_RECORD: usize = framed(24 + State::VOTE_BYTES_MAX);

/// Where the log ends, as of everything encoded so far, and what a new segment must repeat.
#[derive(Debug)]
pub(crate) struct Encoder {
    metadata: Metadata,
    segment_bytes: u64,
    group_bytes_max: usize,
    sequence: u32,
    /// Where the next record goes.
    offset: u64,
    /// Where the head of the segment ends.
    head_end: u64,
    chain: Chain,
    pub(crate) state: State,
    pub(crate) purged: Option<LogPosition>,
    /// The index the next entry must have.
    pub(crate) next: Option<u64>,
}

/// Where an encoder starts.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) metadata: Metadata,
    pub(crate) sequence: u32,
    pub(crate) offset: u64,
    pub(crate) chain: u32,
    pub(crate) state: State,
    pub(crate) purged: Option<LogPosition>,
    pub(crate) next: Option<u64>,
}

impl Encoder {
    pub(crate) fn new(origin: Origin, segment_bytes: u64, group_bytes_max: usize) -> Encoder {
        let Origin { metadata, sequence, offset, chain, state, purged, next } = origin;
        let salt = salt(&metadata.directory_uuid, u64::from(sequence));
        let chain = Chain { value: chain, salt };
        // A segment that was read back may be cut at once: opening has already put a record behind its head.
        let head_end = 0;
        Encoder { metadata, segment_bytes, group_bytes_max, sequence, offset, head_end, chain, state, purged, next }
    }

    /// The bytes of the first segment of a new log: its head alone.
    pub(crate) fn first_segment(metadata: Metadata, segment_bytes: u64) -> (Vec<u8>, SegmentName) {
        let origin =
            Origin { metadata, sequence: 0, offset: 0, chain: 0, state: State::default(), purged: None, next: None };
        let mut out = Vec::new();
        let name = Encoder::new(origin, segment_bytes, 1).begin_segment(&mut out);
        (out, name)
    }

    /// One past the last entry, 0 for none: what a group that ends here makes durable.
    fn log_end(&self) -> u64 {
        self.next.unwrap_or(0)
    }

    pub(crate) const fn sequence(&self) -> u32 {
        self.sequence
    }

    /// Encodes an entry and says where it will be.
    pub(crate) fn entry(&mut self, queue: &mut Queue, entry: &Entry) -> (Location, Ticket) {
        let group = self.room(queue, framed_entry(entry.payload.len()));
        let start = group_start(group);
        let before = group.bytes.len();
        encode_entry(&mut group.bytes, &mut self.chain, start, entry.position(), &entry.payload);
        let encoded = group.bytes.len() - before;
        let location = Location { sequence: self.sequence, offset: narrow(self.offset) };
        self.next = Some(entry.index.next().get());
        (location, self.issue(queue, encoded, 1))
    }

    /// Encodes a state; a later segment repeats it.
    pub(crate) fn state(&mut self, queue: &mut Queue, state: State) -> Ticket {
        let ticket = self.small(queue, |out, chain, start| encode_state(out, chain, start, &state));
        self.state = state;
        ticket
    }

    /// Encodes a truncation.
    pub(crate) fn truncate(&mut self, queue: &mut Queue, after: Option<LogIndex>) -> Ticket {
        self.small_then(
            queue,
            |out, chain, start| encode_truncate(out, chain, start, after),
            |encoder| {
                let purged = encoder.purged.map(|purged| purged.index.next().get());
                encoder.next = after.map(|after| after.next().get()).or(purged);
            },
        )
    }

    /// Encodes a purge point; a later segment repeats it.
    pub(crate) fn snapshot(&mut self, queue: &mut Queue, position: LogPosition) -> Ticket {
        self.small_then(
            queue,
            |out, chain, start| encode_snapshot(out, chain, start, position),
            |encoder| {
                encoder.purged = Some(position);
                encoder.next = Some(encoder.log_end().max(position.index.next().get()));
            },
        )
    }

    fn small(&mut self, queue: &mut Queue, encode: impl FnOnce(&mut Vec<u8>, &mut Chain, u32)) -> Ticket {
        self.small_then(queue, encode, |_| {})
    }

    /// Encodes one record, then applies what it means. In this order: a segment begun for the record says what was true
    /// before it.
    fn small_then(
        &mut self,
        queue: &mut Queue,
        encode: impl FnOnce(&mut Vec<u8>, &mut Chain, u32),
        then: impl FnOnce(&mut Encoder),
    ) -> Ticket {
        let group = self.room(queue, SMALL_RECORD);
        let (start, before) = (group_start(group), group.bytes.len());
        encode(&mut group.bytes, &mut self.chain, start);
        let encoded = group.bytes.len() - before;
        then(self);
        self.issue(queue, encoded, 0)
    }

    fn issue(&mut self, queue: &mut Queue, encoded: usize, entries: u64) -> Ticket {
        self.offset += encoded as u64;
        queue.issue(encoded, entries, self.log_end())
    }

    /// The group that takes a record of `bytes` bytes: the open one, a new one, or one that begins a new segment.
    fn room<'q>(&mut self, queue: &'q mut Queue, bytes: usize) -> &'q mut Group {
        let full = self.offset + bytes as u64 > self.segment_bytes - TRAILER;
        // A record that is larger than a segment gets one of its own: a segment takes at least one after its head.
        if full && self.offset > self.head_end {
            let log_end = self.log_end();
            let mut head = Vec::new();
            let name = self.begin_segment(&mut head);
            let group = queue.push_group(Some(name), 0, log_end);
            group.bytes.extend_from_slice(&head);
            queue.charge(head.len());
            return queue.back();
        }
        if queue.open_group(self.group_bytes_max).is_none() {
            queue.push_group(None, self.offset, self.log_end());
        }
        queue.back()
    }

    /// Encodes the head of the next segment and moves there.
    fn begin_segment(&mut self, out: &mut Vec<u8>) -> SegmentName {
        let sequence = u64::from(self.sequence) + 1;
        let head = SegmentHead {
            sequence,
            first_index: self.log_end(),
            previous_end: self.offset,
            allocated: self.segment_bytes,
            directory_uuid: self.metadata.directory_uuid,
            head_records: if self.purged.is_some() { 4 } else { 3 },
        };
        self.sequence += 1;
        self.chain.salt = salt(&self.metadata.directory_uuid, sequence);
        encode_crc(out, &mut self.chain, &head);
        encode_metadata(out, &mut self.chain, 0, &self.metadata);
        encode_state(out, &mut self.chain, 0, &self.state);
        if let Some(purged) = self.purged {
            encode_snapshot(out, &mut self.chain, 0, purged);
        }
        self.offset = out.len() as u64;
        self.head_end = self.offset;
        SegmentName { sequence, first_index: head.first_index }
    }
}

fn group_start(group: &Group) -> u32 {
    narrow(group.offset)
}

/// Segments are at most 1 GiB and one record more than that at most another.
fn narrow(offset: u64) -> u32 {
    u32::try_from(offset).expect("limits keep offsets below 4 GiB")
}
