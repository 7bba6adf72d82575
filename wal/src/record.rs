//! The record: its frame, its five types, and the only description of their layout.
//!
//! # Frame
//! All numbers are little-endian. Every record starts at a multiple of 8 bytes in its segment.
//!
//! ```text
//!  0        4    5      8       12      16     20     24                          multiple of 8
//!  | length | type | 0 0 0 | group | prev | crc  | head | data: `length` bytes | zeros |
//! ```
//!
//! * `group`: the offset in this segment at which the group of this record starts. A group is what one write and one
//!   sync carry, and the next one is written only after that sync. So **whoever reads this record knows that every byte
//!   of the segment before `group` had been made durable**, whether or not it is still intact.
//! * `prev`: the chain value before this record. 0 before the first record of the first segment.
//! * `crc`: the chain value after it: CRC-32C of bytes 0..16 and the data, computed from the initial value `prev ^ salt`.
//! * `head`: CRC-32C of bytes 0..20 from the initial value `salt`. It makes a header recognisable without its data.
//! * `salt`: CRC-32C of the 16 bytes of the directory UUID and the 8 bytes of the sequence number of the segment. It is
//!   not stored in the record. For fixed bytes, a CRC is a bijection of its initial value, and salts of one directory
//!   differ for sequence numbers less than 2^32 apart; so the old content of a recycled segment, whose records are
//!   where they were and as they were, can *never* pass either checksum in its new life. (Initial values are in the
//!   sense of the CRC catalogue, the values stored are finished ones.)
//!
//! # Data
//! ```text
//!  1 crc       magic "TALLYWAL" | sequence u64 | first index u64 | end of the previous segment u64 |
//!              allocated bytes u64 | directory UUID 16 | records in the head u8 | zeros 7
//!  2 metadata  format u32 | zeros 4 | cluster u64 | member u64 | directory UUID 16
//!  3 state     1 u8 | committed? u8 | vote length u8 | zeros 5 | committed index u64 | committed term u64 | vote
//!    state     2 u8 | after? u8 | zeros 6 | after u64                              (a truncation)
//!  4 snapshot  index u64 | term u64                                                (the purge point)
//!  5 entry     index u64 | term u64 | payload
//! ```
//! The frame, the *crc* record and the place of the format number are the same in every format there will be.

use bytes::Bytes;
use crc::{CRC_32_ISCSI, Crc, Table};

use crate::error::Damage;
use crate::types::{LogIndex, LogPosition, Metadata, State};

/// Bytes before the data of a record.
pub(crate) const HEADER: usize = 24;
/// Bytes of an entry record before its payload.
pub(crate) const ENTRY_HEADER: usize = HEADER + 16;
const ALIGN: usize = 8;
const MAGIC: [u8; 8] = *b"TALLYWAL";
const CRC_DATA: usize = 64;
const METADATA_DATA: usize = 40;
const STATE_DATA: usize = 24;

/// A table, computed at compile time; a `const` would be copied wherever it is used.
static CRC: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// The types of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordType {
    /// The first record of a segment: continues the chain of the segment before.
    Crc,
    /// The second: whose log it is.
    Metadata,
    /// Vote and committed position, or a truncation.
    State,
    /// The purge point.
    Snapshot,
    /// An entry.
    Entry,
}

impl RecordType {
    const fn code(self) -> u8 {
        match self {
            RecordType::Crc => 1,
            RecordType::Metadata => 2,
            RecordType::State => 3,
            RecordType::Snapshot => 4,
            RecordType::Entry => 5,
        }
    }

    const fn from_code(code: u8) -> Option<RecordType> {
        match code {
            1 => Some(RecordType::Crc),
            2 => Some(RecordType::Metadata),
            3 => Some(RecordType::State),
            4 => Some(RecordType::Snapshot),
            5 => Some(RecordType::Entry),
            _ => None,
        }
    }

    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            RecordType::Crc => "crc",
            RecordType::Metadata => "metadata",
            RecordType::State => "state",
            RecordType::Snapshot => "snapshot",
            RecordType::Entry => "entry",
        }
    }
}

/// A decoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordView {
    /// Opens a segment.
    Crc(SegmentHead),
    /// Whose log it is.
    Metadata(Metadata),
    /// Vote and committed position.
    State(State),
    /// From here on, entries after the index (all, if there is none) are dropped.
    Truncate {
        /// The last index that stays.
        after: Option<LogIndex>,
    },
    /// From here on, entries up to the position are dropped.
    Snapshot(LogPosition),
    /// An entry.
    Entry {
        /// Where.
        position: LogPosition,
        /// What.
        payload: Bytes,
    },
}

impl RecordView {
    /// The type of the record; a truncation is a state record.
    pub const fn record_type(&self) -> RecordType {
        match self {
            RecordView::Crc(_) => RecordType::Crc,
            RecordView::Metadata(_) => RecordType::Metadata,
            RecordView::State(_) | RecordView::Truncate { .. } => RecordType::State,
            RecordView::Snapshot(_) => RecordType::Snapshot,
            RecordView::Entry { .. } => RecordType::Entry,
        }
    }
}

/// What the first record of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHead {
    /// The number of the segment; consecutive.
    pub sequence: u64,
    /// The index of the first entry written after the head, unless a truncation or purge comes first.
    pub first_index: u64,
    /// Where the segment before ended; 0 in the first.
    pub previous_end: u64,
    /// The length the file had when the segment began.
    pub allocated: u64,
    /// The directory the log was created in.
    pub directory_uuid: [u8; 16],
    /// How many records the head has, this one included.
    pub head_records: u8,
}

/// The salt of a segment; see the head of this file.
pub(crate) fn salt(directory_uuid: &[u8; 16], sequence: u64) -> u32 {
    let mut digest = CRC.digest();
    digest.update(directory_uuid);
    digest.update(&sequence.to_le_bytes());
    digest.finalize()
}

/// The running end of the chain: what the next record of a segment continues.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    pub(crate) value: u32,
    pub(crate) salt: u32,
}

fn chain_crc(prev: u32, salt: u32, header: &[u8], data: &[u8]) -> u32 {
    let mut digest = CRC.digest_with_initial(prev ^ salt);
    digest.update(&header[..16]);
    digest.update(data);
    digest.finalize()
}

fn head_crc(salt: u32, header: &[u8]) -> u32 {
    let mut digest = CRC.digest_with_initial(salt);
    digest.update(&header[..20]);
    digest.finalize()
}

/// The bytes a record with `data` bytes of data takes.
pub(crate) const fn framed(data: usize) -> usize {
    (HEADER + data).next_multiple_of(ALIGN)
}

/// The bytes an entry with such a payload takes.
pub(crate) const fn framed_entry(payload: usize) -> usize {
    framed(16 + payload)
}

/// Appends one record whose data is `fixed` followed by `rest`, and moves the chain on.
fn encode(out: &mut Vec<u8>, chain: &mut Chain, group: u32, kind: RecordType, fixed: &[u8], rest: &[u8]) {
    let length = fixed.len() + rest.len();
    let start = out.len();
    out.reserve(framed(length));
    let mut header = [0_u8; HEADER];
    header[0..4].copy_from_slice(&u32::try_from(length).expect("limits keep data below 4 GiB").to_le_bytes());
    header[4] = kind.code();
    header[8..12].copy_from_slice(&group.to_le_bytes());
    header[12..16].copy_from_slice(&chain.value.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(fixed);
    out.extend_from_slice(rest);
    let (head, data) = out[start..].split_at_mut(HEADER);
    let crc = chain_crc(chain.value, chain.salt, head, data);
    head[16..20].copy_from_slice(&crc.to_le_bytes());
    let check = head_crc(chain.salt, head);
    head[20..24].copy_from_slice(&check.to_le_bytes());
    out.resize(start + framed(length), 0);
    chain.value = crc;
}

pub(crate) fn encode_entry(out: &mut Vec<u8>, chain: &mut Chain, group: u32, at: LogPosition, payload: &[u8]) {
    encode(out, chain, group, RecordType::Entry, &position_bytes(at), payload);
}

pub(crate) fn encode_snapshot(out: &mut Vec<u8>, chain: &mut Chain, group: u32, at: LogPosition) {
    encode(out, chain, group, RecordType::Snapshot, &position_bytes(at), &[]);
}

pub(crate) fn encode_state(out: &mut Vec<u8>, chain: &mut Chain, group: u32, state: &State) {
    let mut data = [0_u8; STATE_DATA];
    data[0] = 1;
    data[2] = u8::try_from(state.vote.len()).expect("votes are at most 64 bytes, checked when saved");
    if let Some(committed) = state.committed {
        data[1] = 1;
        data[8..24].copy_from_slice(&position_bytes(committed));
    }
    encode(out, chain, group, RecordType::State, &data, &state.vote);
}

pub(crate) fn encode_truncate(out: &mut Vec<u8>, chain: &mut Chain, group: u32, after: Option<LogIndex>) {
    let mut data = [0_u8; 16];
    data[0] = 2;
    if let Some(after) = after {
        data[1] = 1;
        data[8..16].copy_from_slice(&after.get().to_le_bytes());
    }
    encode(out, chain, group, RecordType::State, &data, &[]);
}

pub(crate) fn encode_metadata(out: &mut Vec<u8>, chain: &mut Chain, group: u32, metadata: &Metadata) {
    let mut data = [0_u8; METADATA_DATA];
    data[0..4].copy_from_slice(&metadata.format.to_le_bytes());
    data[8..16].copy_from_slice(&metadata.cluster_id.to_le_bytes());
    data[16..24].copy_from_slice(&metadata.member_id.to_le_bytes());
    data[24..40].copy_from_slice(&metadata.directory_uuid);
    encode(out, chain, group, RecordType::Metadata, &data, &[]);
}

pub(crate) fn encode_crc(out: &mut Vec<u8>, chain: &mut Chain, head: &SegmentHead) {
    let mut data = [0_u8; CRC_DATA];
    data[0..8].copy_from_slice(&MAGIC);
    data[8..16].copy_from_slice(&head.sequence.to_le_bytes());
    data[16..24].copy_from_slice(&head.first_index.to_le_bytes());
    data[24..32].copy_from_slice(&head.previous_end.to_le_bytes());
    data[32..40].copy_from_slice(&head.allocated.to_le_bytes());
    data[40..56].copy_from_slice(&head.directory_uuid);
    data[56] = head.head_records;
    encode(out, chain, 0, RecordType::Crc, &data, &[]);
}

fn position_bytes(at: LogPosition) -> [u8; 16] {
    let mut bytes = [0_u8; 16];
    bytes[..8].copy_from_slice(&at.index.get().to_le_bytes());
    bytes[8..].copy_from_slice(&at.term.to_le_bytes());
    bytes
}

/// A header that has passed its own checksum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    length: u32,
    kind: u8,
    pub(crate) group: u32,
    prev: u32,
    crc: u32,
}

impl Header {
    /// The header at `offset`, if there is one that was written into a segment with this salt.
    pub(crate) fn at(bytes: &[u8], offset: usize, salt: u32) -> Option<Header> {
        let header = bytes.get(offset..offset.checked_add(HEADER)?)?;
        // The cheap part first: nearly every position that is not a header fails here.
        let plausible = header[4] != 0 && header[5..8] == [0, 0, 0];
        (plausible && head_crc(salt, header) == u32_at(header, 20)).then(|| Header::fields(header))
    }

    fn fields(header: &[u8]) -> Header {
        Header {
            length: u32_at(header, 0),
            kind: header[4],
            group: u32_at(header, 8),
            prev: u32_at(header, 12),
            crc: u32_at(header, 16),
        }
    }

    /// The bytes the record takes.
    pub(crate) const fn framed(&self) -> usize {
        framed(self.length as usize)
    }
}

/// A record that has passed both its checksums.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) group: u32,
    pub(crate) prev: u32,
    pub(crate) crc: u32,
    pub(crate) end: usize,
    pub(crate) kind: u8,
    pub(crate) data: Bytes,
}

impl Frame {
    /// The record at `offset`.
    pub(crate) fn at(bytes: &Bytes, offset: usize, salt: u32) -> Result<Frame, Damage> {
        let header = Header::at(bytes, offset, salt).ok_or(Damage::Header)?;
        let data = offset + HEADER..offset + HEADER + header.length as usize;
        // With what fills it up: a file is never cut there by itself.
        if bytes.len() - offset < header.framed() {
            return Err(Damage::Short);
        }
        let content = &bytes[data.clone()];
        if chain_crc(header.prev, salt, &bytes[offset..offset + HEADER], content) != header.crc {
            return Err(Damage::Checksum);
        }
        Ok(Frame {
            group: header.group,
            prev: header.prev,
            crc: header.crc,
            end: offset + header.framed(),
            kind: header.kind,
            data: bytes.slice(data),
        })
    }

    /// The first record of a segment. It carries what its own salt is made of, so it is decoded before it is verified.
    pub(crate) fn first(bytes: &Bytes) -> Result<(Frame, SegmentHead), Damage> {
        let data = bytes.get(HEADER..HEADER + CRC_DATA).ok_or(Damage::Short)?;
        let head = decode_crc(data).map_err(|_| Damage::Header)?;
        let frame = Frame::at(bytes, 0, salt(&head.directory_uuid, head.sequence))?;
        match RecordType::from_code(frame.kind) {
            Some(RecordType::Crc) => Ok((frame, head)),
            Some(_) | None => Err(malformed("a segment must start with a crc record")),
        }
    }

    /// What the record says.
    pub(crate) fn decode(&self) -> Result<RecordView, Damage> {
        let data = &self.data[..];
        match RecordType::from_code(self.kind) {
            None => Err(Damage::UnknownType { kind: self.kind }),
            Some(RecordType::Crc) => decode_crc(data).map(RecordView::Crc),
            Some(RecordType::Metadata) => decode_metadata(data).map(RecordView::Metadata),
            Some(RecordType::State) => self.decode_state(),
            Some(RecordType::Snapshot) if data.len() == 16 => position_at(data, 0).map(RecordView::Snapshot),
            Some(RecordType::Snapshot) => Err(malformed("a snapshot record has 16 bytes")),
            Some(RecordType::Entry) if data.len() >= 16 => {
                Ok(RecordView::Entry { position: position_at(data, 0)?, payload: self.data.slice(16..) })
            }
            Some(RecordType::Entry) => Err(malformed("an entry record has at least 16 bytes")),
        }
    }

    fn decode_state(&self) -> Result<RecordView, Damage> {
        let data = &self.data[..];
        match data.first() {
            Some(1) if data.len() >= STATE_DATA && data.len() == STATE_DATA + usize::from(data[2]) => {
                if usize::from(data[2]) > State::VOTE_BYTES_MAX {
                    return Err(malformed("a vote has at most 64 bytes"));
                }
                let committed = if flag(data[1])? { Some(position_at(data, 8)?) } else { None };
                Ok(RecordView::State(State { vote: self.data.slice(STATE_DATA..), committed }))
            }
            Some(2) if data.len() == 16 => {
                let after = if flag(data[1])? { Some(index_at(data, 8)?) } else { None };
                Ok(RecordView::Truncate { after })
            }
            Some(_) | None => Err(malformed("a state record is a state or a truncation")),
        }
    }
}

fn decode_crc(data: &[u8]) -> Result<SegmentHead, Damage> {
    if data.len() != CRC_DATA || data[..8] != MAGIC {
        return Err(malformed("a crc record has 64 bytes that start with TALLYWAL"));
    }
    Ok(SegmentHead {
        sequence: u64_at(data, 8),
        first_index: u64_at(data, 16),
        previous_end: u64_at(data, 24),
        allocated: u64_at(data, 32),
        directory_uuid: uuid_at(data, 40),
        head_records: data[56],
    })
}

fn decode_metadata(data: &[u8]) -> Result<Metadata, Damage> {
    // A newer format may have more after these; the number must be readable whatever comes later.
    if data.len() < METADATA_DATA {
        return Err(malformed("a metadata record has at least 40 bytes"));
    }
    Ok(Metadata {
        format: u32_at(data, 0),
        cluster_id: u64_at(data, 8),
        member_id: u64_at(data, 16),
        directory_uuid: uuid_at(data, 24),
    })
}

const fn malformed(what: &'static str) -> Damage {
    Damage::Malformed { what }
}

fn flag(byte: u8) -> Result<bool, Damage> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(malformed("a flag is 0 or 1")),
    }
}

fn index_at(data: &[u8], at: usize) -> Result<LogIndex, Damage> {
    let index = LogIndex::new(u64_at(data, at));
    if index <= LogIndex::MAX { Ok(index) } else { Err(malformed("an index is at most 2^64 - 2")) }
}

fn position_at(data: &[u8], at: usize) -> Result<LogPosition, Damage> {
    Ok(LogPosition { index: index_at(data, at)?, term: u64_at(data, at + 8) })
}

/// The callers have checked that the bytes are there; indexing states it.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

fn uuid_at(bytes: &[u8], at: usize) -> [u8; 16] {
    array(bytes, at)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const UUID: [u8; 16] = [7; 16];

    fn entry(sequence: u64, prev: u32) -> (Bytes, u32) {
        let mut out = Vec::new();
        let mut chain = Chain { value: prev, salt: salt(&UUID, sequence) };
        let at = LogPosition { index: LogIndex::new(9), term: 4 };
        encode_entry(&mut out, &mut chain, 16, at, b"payload");
        (out.into(), chain.value)
    }

    #[test]
    fn a_record_reads_back_and_any_flipped_bit_is_noticed() {
        let (bytes, _) = entry(3, 77);
        let salt = salt(&UUID, 3);
        let view = Frame::at(&bytes, 0, salt).unwrap().decode().unwrap();
        assert_eq!(
            view,
            RecordView::Entry {
                position: LogPosition { index: LogIndex::new(9), term: 4 },
                payload: Bytes::from_static(b"payload")
            }
        );
        // All but the zero padding at the end is covered.
        for bit in 0..(HEADER + 16 + 7) * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::at(&damaged.into(), 0, salt).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_record_of_one_segment_never_passes_in_another() {
        let (bytes, _) = entry(3, 77);
        for other in (0..20_000).chain([1 << 31, u64::from(u32::MAX)]).filter(|other| *other != 3) {
            assert!(Header::at(&bytes, 0, salt(&UUID, other)).is_none(), "sequence {other}");
            let mut digest_of_other = bytes.to_vec();
            let check = head_crc(salt(&UUID, other), &digest_of_other);
            digest_of_other[20..24].copy_from_slice(&check.to_le_bytes());
            assert!(Frame::at(&digest_of_other.into(), 0, salt(&UUID, other)).is_err(), "sequence {other}");
        }
    }
}
