//! Lets in clients that name a whole URL where HTTP/2 wants an authority.
//!
//! etcd's own Go client up to 3.4, and so Debian's `etcdctl`, sends `:authority: http://host:port` when it asks one endpoint that was given
//! with a scheme: for status, hashes, defragmentation and leadership. Go's HTTP/2 takes that; the one here ends the stream with a
//! PROTOCOL_ERROR before anything of ours sees the request. Nothing here depends on the authority, so the scheme's `://` in it is
//! overwritten with as many bits of letters that are allowed, before the bytes are parsed. No length changes.
//!
//! **Invariant**: only the value of a literal `:authority` that begins with `http://` or `https://` is ever touched. A connection whose first
//! request has none is not looked at again.
//!
//! A head of a request that has come in part is held back until the rest is there.

/// What begins every HTTP/2 connection, before its first frame.
const PREFACE_BYTES: usize = 24;
const FRAME_HEAD_BYTES: usize = 9;
const HEADERS: u8 = 0x1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Bytes of the largest frame with fields that is looked at; clients that were not told otherwise send none that is larger.
const FIELDS_BYTES_MAX: usize = 16 << 10;
/// The place of `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;

/// A letter as HPACK writes it: its bits, and how many.
type Code = (u64, u32);
const HTTP: [Code; 4] = [(0b10_0111, 6), (0b0_1001, 5), (0b0_1001, 5), (0b10_1011, 6)];
const S: Code = (0b0_1000, 5);
/// `://`
const SLASHES: [Code; 3] = [(0b101_1100, 7), (0b01_1000, 6), (0b01_1000, 6)];
/// `x--`, which takes the same room.
const LETTERS: [Code; 3] = [(0b111_1001, 7), (0b01_0110, 6), (0b01_0110, 6)];

/// The frames of one connection, as its bytes come in.
#[derive(Debug)]
pub(super) struct Authority {
    head: [u8; FRAME_HEAD_BYTES],
    head_bytes: usize,
    /// Bytes to pass over before the next frame begins.
    skip: usize,
    /// If those are the fields of a request, the flags of their frame.
    fields: Option<u8>,
    /// Whether an authority was mended on this connection.
    has_mended: bool,
}

/// What is known of a connection after some of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It need not be looked at any more.
    Enough,
    /// The next bytes are wanted, too.
    More,
    /// So many bytes at the end are to be shown again, together with those that follow, before anybody else sees them.
    Part(usize),
}

impl Authority {
    pub(super) fn new() -> Authority {
        Authority { head: [0; FRAME_HEAD_BYTES], head_bytes: 0, skip: PREFACE_BYTES, fields: None, has_mended: false }
    }

    /// Mends what has come in.
    pub(super) fn pass(&mut self, mut bytes: &mut [u8]) -> Seen {
        loop {
            if let Some(flags) = self.fields {
                let Some(frame) = bytes.get_mut(..self.skip) else { return Seen::Part(bytes.len()) };
                self.has_mended |= mend(flags, frame).is_some();
                if !self.has_mended {
                    return Seen::Enough;
                }
                self.fields = None;
            }
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &mut bytes[skipped..];
            let taken = (FRAME_HEAD_BYTES - self.head_bytes).min(bytes.len());
            let (head, rest) = bytes.split_at_mut(taken);
            self.head[self.head_bytes..][..taken].copy_from_slice(head);
            self.head_bytes += taken;
            bytes = rest;
            if self.head_bytes < FRAME_HEAD_BYTES {
                return Seen::More;
            }
            self.head_bytes = 0;
            let [high, middle, low, kind, flags, ..] = self.head;
            self.skip = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            self.fields = (kind == HEADERS && self.skip <= FIELDS_BYTES_MAX).then_some(flags);
        }
    }
}

/// Mends the authority among the fields of a request's head, if it has to be.
fn mend(flags: u8, frame: &mut [u8]) -> Option<()> {
    let mut at = usize::from(flags & PADDED != 0) + if flags & PRIORITY != 0 { 5 } else { 0 };
    loop {
        let first = *frame.get(at)?;
        let prefix_bits = match first {
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let name = integer(frame, &mut at, prefix_bits)?;
        // Fields of the tables, and changes of a table's size, have neither name nor value here.
        if first & 0x80 != 0 || first & 0xe0 == 0x20 {
            continue;
        }
        if name == 0 {
            let (_, length) = string(frame, &mut at)?;
            at = at.checked_add(length)?;
        }
        let (is_huffman, length) = string(frame, &mut at)?;
        let end = at.checked_add(length)?;
        if name == AUTHORITY {
            let value = frame.get_mut(at..end)?;
            return if is_huffman { mend_huffman(value) } else { mend_plain(value) };
        }
        at = end;
    }
}

/// The beginning of a string: whether its letters are in HPACK's code, and how many bytes follow.
fn string(frame: &[u8], at: &mut usize) -> Option<(bool, usize)> {
    let is_huffman = frame.get(*at)? & 0x80 != 0;
    Some((is_huffman, integer(frame, at, 7)?))
}

/// An integer of HPACK that begins with so many bits of a byte.
fn integer(frame: &[u8], at: &mut usize, prefix_bits: u32) -> Option<usize> {
    let mut next = || {
        let byte = usize::from(*frame.get(*at)?);
        *at += 1;
        Some(byte)
    };
    let prefix_max = (1 << prefix_bits) - 1;
    let mut value = next()? & prefix_max;
    if value < prefix_max {
        return Some(value);
    }
    // Nothing that fits into a frame takes more bytes.
    for shift in [0, 7, 14, 21] {
        let byte = next()?;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn mend_plain(value: &mut [u8]) -> Option<()> {
    let scheme = [&b"http"[..], b"https"]
        .into_iter()
        .find(|scheme| value.strip_prefix(*scheme).is_some_and(|rest| rest.starts_with(b"://")))?;
    value[scheme.len()..][..3].copy_from_slice(b"x--");
    Some(())
}

fn mend_huffman(value: &mut [u8]) -> Option<()> {
    let mut beginning = [0; 8];
    let length = value.len().min(8);
    beginning[..length].copy_from_slice(&value[..length]);
    let found = u64::from_be_bytes(beginning);
    for scheme in [&HTTP[..], &[HTTP[0], HTTP[1], HTTP[2], HTTP[3], S]] {
        let (wanted, bits) = written(scheme, &SLASHES);
        let unused = u64::BITS - bits;
        if found >> unused == wanted {
            let (instead, _) = written(scheme, &LETTERS);
            let mended = found ^ (wanted ^ instead) << unused;
            value[..length].copy_from_slice(&mended.to_be_bytes()[..length]);
            return Some(());
        }
    }
    None
}

/// The bits of letters, and how many they are.
fn written(scheme: &[Code], after: &[Code]) -> (u64, u32) {
    scheme.iter().chain(after).fold((0, 0), |(bits, count), (code, length)| (bits << length | code, count + length))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The first frames of etcdctl 3.4.23 for `--endpoints=http://127.0.0.1:36487 endpoint status`, its head of a request shortened.
    pub(in super::super) fn recorded(authority: &[u8]) -> Vec<u8> {
        let mut bytes =
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x04\x01\x00\x00\x00\x00"
                .to_vec();
        let mut block = b"\x83\x86E\x97`\xa9$\x88-\x9d\xcbeq\xaf\xa0f\xa9%\xa8u\x10\xacnH\xd3j?A".to_vec();
        block.extend_from_slice(authority);
        block.extend_from_slice(b"_\x8b\x1du\xd0b\r&=LMedz");
        bytes.extend_from_slice(&[0, 0, u8::try_from(block.len()).unwrap_or(u8::MAX), 1, 4, 0, 0, 0, 1]);
        bytes.extend_from_slice(&block);
        bytes
    }

    pub(in super::super) const RECORDED: &[u8] = b"\x90\x9d)\xae\xe3\x0c\x04N\xae\x05\xc0\xb8n2\xe3O;";

    /// The same with `x--` for `://`: 9d 29 ae, then the last two bits of `x` …
    pub(in super::super) const MENDED: &[u8] = b"\x90\x9d)\xaf\xca\xcb\x04N\xae\x05\xc0\xb8n2\xe3O;";

    #[test]
    fn a_scheme_in_front_of_the_authority_is_overwritten() {
        let mut bytes = recorded(RECORDED);
        assert_eq!(Authority::new().pass(&mut bytes), Seen::More);
        assert_eq!(bytes, recorded(MENDED));
        for (plain, mended) in [
            (b"\x12http://example:379", b"\x12httpx--example:379"),
            (b"\x12https://exampl:379", b"\x12httpsx--exampl:379"),
        ] {
            let mut bytes = recorded(plain);
            assert_eq!(Authority::new().pass(&mut bytes), Seen::More);
            assert_eq!(bytes, recorded(mended));
        }
    }

    #[test]
    fn pieces_make_no_difference() {
        let whole = recorded(RECORDED);
        for cut in 0..whole.len() {
            let (mut before, mut after) = (whole[..cut].to_vec(), whole[cut..].to_vec());
            let mut authority = Authority::new();
            if let Seen::Part(bytes) = authority.pass(&mut before) {
                after.splice(..0, before.drain(cut - bytes..));
            }
            assert_eq!(authority.pass(&mut after), Seen::More, "cut at {cut}");
            assert_eq!([before, after].concat(), recorded(MENDED), "cut at {cut}");
        }
    }

    #[test]
    fn every_other_connection_is_left_alone() {
        for authority in [&b"\x0bexample:379"[..], b"\x12httpx://ample:3791", b"\x00"] {
            let mut bytes = recorded(authority);
            let before = bytes.clone();
            assert_eq!(Authority::new().pass(&mut bytes), Seen::Enough, "{authority:?} is looked at once");
            assert_eq!(bytes, before);
        }
    }

    #[test]
    fn no_bytes_are_too_odd() {
        for seed in 0..2_000_u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut byte = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_be_bytes()[3]
            };
            let mut frame: Vec<u8> = (0..seed % 64).map(|_| byte()).collect();
            let before = frame.len();
            let _ = mend(byte(), &mut frame);
            assert_eq!(frame.len(), before);
        }
    }
}
