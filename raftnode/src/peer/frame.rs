//! Frames: what goes over every channel between two members.
//!
//! ```text
//! frame   body length u32 | version u8 = 1 | kind u8 | 0 u16 | cluster u64 | from u64 | to u64 | crc u32 | body
//! ```
//! All numbers are big-endian. The checksum is the CRC-32C of everything else in the frame. The header, and the kinds
//! Hello and Reject, are the same in every version, so that any two programs can tell each other who they are.

use bytes::{BufMut, Bytes, BytesMut};
use crc::{CRC_32_ISCSI, Crc, Table};

use crate::ask::ASK_BYTES_MAX;
use crate::config::COMMAND_BYTES_MAX;

/// The version of the frames that this program writes, and the only one it reads.
pub(super) const VERSION: u8 = 1;
/// Bytes in front of the body.
pub(super) const HEADER_BYTES: usize = 36;
/// Where the checksum is, in the header.
const CRC_AT: usize = 32;

/// Bytes of the body of a small frame.
const SMALL_BYTES_MAX: usize = 1 << 10;
/// Bytes of a change of the membership: a few URLs.
const CHANGE_BYTES_MAX: usize = 64 << 10;
/// Bytes of the view of a whole cluster.
const VIEW_BYTES_MAX: usize = 1 << 20;
/// Bytes of a list of proposals that were given up.
const GIVEN_UP_BYTES_MAX: usize = 128 << 10;
/// Bytes around the payloads of the entries of one frame, and around one command in its payload.
const OVERHEAD_BYTES_MAX: usize = 64 << 10;
/// Bytes of a frame of entries or proposals: those of the largest command, which is more than is ever sent together.
const ENTRIES_BYTES_MAX: usize = COMMAND_BYTES_MAX + OVERHEAD_BYTES_MAX;
const _: () = assert!(ENTRIES_BYTES_MAX <= u32::MAX as usize, "the length of a frame has 32 bits");

/// Sixteen bytes at a time.
const CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);
/// The same table behind a reference, so that it exists once.
const TABLE: &Crc<u32, Table<16>> = &CRC32C;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Who speaks; the first frame in each direction.
    Hello = 1,
    /// Why the other side is refused; the last frame.
    Reject = 2,
    /// Entries, or a heartbeat.
    Append = 3,
    /// The result of one append.
    Appended = 4,
    /// A vote is asked for.
    Vote = 5,
    /// Whether a vote would be granted.
    PreVote = 6,
    /// The answer to either.
    Voted = 7,
    /// Leadership is handed over.
    Transfer = 8,
    /// Whether it was taken.
    Transferred = 9,
    /// A read index is asked for.
    ReadIndex = 10,
    /// The read index.
    ReadAt = 11,
    /// The membership is to be changed.
    Change = 12,
    /// Whether it was.
    Changed = 13,
    /// A batch of proposals.
    Forward = 14,
    /// Whether the batch was taken.
    Forwarded = 15,
    /// Proposals that were taken and given up.
    GivenUp = 16,
    /// A snapshot is offered.
    Offer = 17,
    /// It may be sent; what follows on the sender's side is no frame but the stream of the snapshot.
    Go = 18,
    /// The snapshot is in force, or not.
    Installed = 19,
    /// The cluster, for somebody who is not a member.
    Members = 20,
    /// A question to the leader.
    Ask = 21,
    /// Its answer.
    Answer = 22,
}

impl Kind {
    const ALL: [Kind; 22] = [
        Kind::Hello,
        Kind::Reject,
        Kind::Append,
        Kind::Appended,
        Kind::Vote,
        Kind::PreVote,
        Kind::Voted,
        Kind::Transfer,
        Kind::Transferred,
        Kind::ReadIndex,
        Kind::ReadAt,
        Kind::Change,
        Kind::Changed,
        Kind::Forward,
        Kind::Forwarded,
        Kind::GivenUp,
        Kind::Offer,
        Kind::Go,
        Kind::Installed,
        Kind::Members,
        Kind::Ask,
        Kind::Answer,
    ];

    fn of(code: u8) -> Option<Kind> {
        Kind::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }
}

/// What a frame's body may take.
///
/// The same on every member, whatever its settings: see [`COMMAND_BYTES_MAX`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    entries_bytes_max: usize,
}

impl Limits {
    /// For whoever has not said yet who it is: it has nothing large to send.
    pub(super) const STRANGER: Limits = Limits { entries_bytes_max: 0 };
    /// For a member.
    pub(super) const MEMBER: Limits = Limits { entries_bytes_max: ENTRIES_BYTES_MAX };

    /// Bytes of the largest body of this kind.
    pub(super) fn body_bytes_max(self, kind: Kind) -> usize {
        match kind {
            Kind::Append | Kind::Forward => self.entries_bytes_max,
            Kind::Change | Kind::Changed => CHANGE_BYTES_MAX,
            Kind::Members => VIEW_BYTES_MAX,
            Kind::Ask | Kind::Answer => ASK_BYTES_MAX + SMALL_BYTES_MAX,
            Kind::GivenUp => GIVEN_UP_BYTES_MAX,
            Kind::Hello
            | Kind::Reject
            | Kind::Appended
            | Kind::Vote
            | Kind::PreVote
            | Kind::Voted
            | Kind::Transfer
            | Kind::Transferred
            | Kind::ReadIndex
            | Kind::ReadAt
            | Kind::Forwarded
            | Kind::Offer
            | Kind::Go
            | Kind::Installed => SMALL_BYTES_MAX,
        }
    }
}

/// Who speaks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) cluster: u64,
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Address {
    /// The address of the answer.
    pub(super) fn reversed(self) -> Address {
        Address { from: self.to, to: self.from, ..self }
    }
}

/// A frame whose checksum is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Other than [`VERSION`] only in a Hello or a Reject.
    pub(super) version: u8,
    pub(super) address: Address,
    pub(super) kind: Kind,
    /// A slice of what was received, not a copy.
    pub(super) body: Bytes,
}

impl Frame {
    /// Bytes it took.
    pub(super) fn bytes(&self) -> u64 {
        (HEADER_BYTES + self.body.len()) as u64
    }
}

/// Why bytes are no frame. What follows them cannot be told apart any more: the channel has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a frame of version {found}, this program speaks {VERSION}")]
    Version { found: u8 },
    #[error("a frame of the unknown kind {found}")]
    Kind { found: u8 },
    #[error("a frame whose reserved bytes are not 0")]
    Reserved,
    #[error("a frame of kind {kind:?} with {length} bytes, the limit is {limit}")]
    TooLarge { kind: Kind, length: u32, limit: usize },
    #[error("a frame with a wrong checksum")]
    Checksum,
    #[error("a frame that ends too early")]
    Truncated,
    #[error("a frame of cluster {:x} from {:x} to {:x} on a channel of others", found.cluster, found.from, found.to)]
    Address { found: Address },
}

/// Builds a frame. `body_bytes` is a guess at the size of what `body` writes.
pub(super) fn encode(address: Address, kind: Kind, body_bytes: usize, body: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_BYTES + body_bytes);
    out.put_u32(0);
    out.put_u8(VERSION);
    out.put_u8(kind as u8);
    out.put_u16(0);
    out.put_u64(address.cluster);
    out.put_u64(address.from);
    out.put_u64(address.to);
    out.put_u32(0);
    body(&mut out);
    let length = u32::try_from(out.len() - HEADER_BYTES).expect("every body is limited to less than 4 GiB");
    out[..4].copy_from_slice(&length.to_be_bytes());
    let crc = checksum(&out);
    out[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
    out.freeze()
}

/// The checksum of a whole frame, the bytes that hold it aside.
fn checksum(frame: &[u8]) -> u32 {
    let mut digest = TABLE.digest();
    digest.update(&frame[..CRC_AT]);
    digest.update(&frame[HEADER_BYTES..]);
    digest.finalize()
}

/// Takes frames out of a sequence of chunks, wherever these were cut.
///
/// Invariant: memory grows only with bytes that have come, never by what a header promises.
pub(super) struct Decoder {
    limits: Limits,
    /// A frame that has begun.
    partial: BytesMut,
    /// What has come behind it.
    chunk: Bytes,
}

/// A header that has passed what can be checked without the body.
struct Head {
    version: u8,
    kind: Kind,
    address: Address,
    total: usize,
    crc: u32,
}

impl Decoder {
    pub(super) fn new(limits: Limits) -> Decoder {
        Decoder { limits, partial: BytesMut::new(), chunk: Bytes::new() }
    }

    /// What follows comes from a member.
    pub(super) fn admit(&mut self) {
        self.limits = Limits::MEMBER;
    }

    /// Adds what has come. To be called when [`Decoder::next`] has nothing more.
    pub(super) fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty());
        self.chunk = chunk;
    }

    /// The next whole frame.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.partial.is_empty() {
            match self.head(&self.chunk)? {
                Some(head) if head.total <= self.chunk.len() => {
                    let frame = self.chunk.split_to(head.total);
                    return checked(head, frame).map(Some);
                }
                Some(_) | None => self.take(self.chunk.len()),
            }
            return Ok(None);
        }
        if self.partial.len() < HEADER_BYTES {
            self.take(HEADER_BYTES - self.partial.len());
        }
        let Some(head) = self.head(&self.partial)? else { return Ok(None) };
        self.take(head.total - self.partial.len());
        if self.partial.len() < head.total {
            return Ok(None);
        }
        let frame = self.partial.split().freeze();
        checked(head, frame).map(Some)
    }

    /// Whether the sequence may end here.
    pub(super) fn finish(&self) -> Result<(), FrameError> {
        if self.partial.is_empty() && self.chunk.is_empty() { Ok(()) } else { Err(FrameError::Truncated) }
    }

    /// What has come and is in no frame yet: from here on something else than frames comes.
    pub(super) fn into_rest(self) -> Bytes {
        match self.partial.is_empty() {
            true => self.chunk,
            false => {
                let mut rest = self.partial;
                rest.extend_from_slice(&self.chunk);
                rest.freeze()
            }
        }
    }

    /// Moves up to `count` bytes from the chunk to the frame that has begun.
    fn take(&mut self, count: usize) {
        let taken = self.chunk.split_to(count.min(self.chunk.len()));
        self.partial.extend_from_slice(&taken);
    }

    fn head(&self, bytes: &[u8]) -> Result<Option<Head>, FrameError> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let number = |at: usize, size: usize| {
            header[at..at + size].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let (version, code) = (header[4], header[5]);
        // Programs of any version can greet and refuse each other.
        let greeting = code == Kind::Hello as u8 || code == Kind::Reject as u8;
        if version != VERSION && !(greeting && version != 0) {
            return Err(FrameError::Version { found: version });
        }
        let kind = Kind::of(code).ok_or(FrameError::Kind { found: code })?;
        if number(6, 2) != 0 {
            return Err(FrameError::Reserved);
        }
        let (length, limit) = (number(0, 4) as u32, self.limits.body_bytes_max(kind));
        if length as usize > limit {
            return Err(FrameError::TooLarge { kind, length, limit });
        }
        let address = Address { cluster: number(8, 8), from: number(16, 8), to: number(24, 8) };
        let (total, crc) = (HEADER_BYTES + length as usize, number(CRC_AT, 4) as u32);
        Ok(Some(Head { version, kind, address, total, crc }))
    }
}

fn checked(head: Head, frame: Bytes) -> Result<Frame, FrameError> {
    if checksum(&frame) != head.crc {
        return Err(FrameError::Checksum);
    }
    let Head { version, kind, address, .. } = head;
    Ok(Frame { version, address, kind, body: frame.slice(HEADER_BYTES..) })
}
