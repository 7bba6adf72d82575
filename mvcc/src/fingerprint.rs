//! The fingerprint of a revision: its share of the state root.
//!
//! xxh3-128 (seed 0) over this encoding, integers little-endian; **it must never change**, or replicas of two versions
//! would disagree about equal states:
//!
//! ```text
//!  "tallykv1" | main 8 | sub 4 | create 8 | version 8 | lease 8 | key length 8 | value length 8 | key | value
//! ```
//!
//! Every field has a fixed length or its length before it, so two different revisions never have one encoding. A
//! tombstone has
//! version 0, create revision 0, lease 0 and an empty value.

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::index::Revision;

/// Sets these hashes apart from all others, and says which version of the encoding they are of.
const DOMAIN: [u8; 8] = *b"tallykv1";
const HEAD_BYTES: usize = 60;
/// Up to this size the encoding is put together on the stack, which is faster than feeding it in pieces.
const STACK_BYTES: usize = 1024;

/// The fingerprint of one revision of `key`. Does not allocate.
pub(crate) fn fingerprint(key: &[u8], at: Revision, create: i64, version: i64, lease: i64, value: &[u8]) -> u128 {
    let head = head(key.len(), at, create, version, lease, value.len());
    let len = HEAD_BYTES + key.len() + value.len();
    if len <= STACK_BYTES {
        let mut encoding = [0; STACK_BYTES];
        encoding[..HEAD_BYTES].copy_from_slice(&head);
        encoding[HEAD_BYTES..HEAD_BYTES + key.len()].copy_from_slice(key);
        encoding[HEAD_BYTES + key.len()..len].copy_from_slice(value);
        xxh3_128(&encoding[..len])
    } else {
        let mut hash = Xxh3::new();
        hash.update(&head);
        hash.update(key);
        hash.update(value);
        hash.digest128()
    }
}

fn head(key_len: usize, at: Revision, create: i64, version: i64, lease: i64, value_len: usize) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[0..8].copy_from_slice(&DOMAIN);
    head[8..16].copy_from_slice(&at.main().to_le_bytes());
    head[16..20].copy_from_slice(&at.sub().to_le_bytes());
    head[20..28].copy_from_slice(&create.to_le_bytes());
    head[28..36].copy_from_slice(&version.to_le_bytes());
    head[36..44].copy_from_slice(&lease.to_le_bytes());
    head[44..52].copy_from_slice(&(key_len as u64).to_le_bytes());
    head[52..60].copy_from_slice(&(value_len as u64).to_le_bytes());
    head
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_128;

    use super::{HEAD_BYTES, Revision, STACK_BYTES, fingerprint, head};

    /// The format is for ever: these numbers were written down once.
    #[test]
    fn golden() {
        let put = fingerprint(b"key", Revision::new(2, 0), 2, 1, 0, b"value");
        let leased = fingerprint(b"key", Revision::new(7, 3), 2, 6, 0x1122_3344_5566_7788, b"other");
        let tombstone = fingerprint(b"key", Revision::new(8, 0), 0, 0, 0, b"");
        let long = fingerprint(b"key", Revision::new(9, 1), 9, 1, 0, &[0xab; 5000]);
        let empty_key = fingerprint(b"", Revision::new(1, 0), 1, 1, -1, b"v");
        assert_eq!(
            [put, leased, tombstone, long, empty_key],
            GOLDEN.map(|hex| u128::from_str_radix(hex, 16).expect("hex"))
        );
    }

    /// Computed with another implementation of xxh3-128 too.
    const GOLDEN: [&str; 5] = [
        "7efd3c408379a3eae8e4223c48d4014a",
        "0fb99e81d0a0cb9dee4a54575104ad7a",
        "5fd3b4265efcc08e3be12a70adcaa58d",
        "51fb1c2f961533d23b38cde19744332a",
        "4f3d57084658861ab00d65e26bd098a6",
    ];

    #[test]
    fn encoding_is_as_described_at_every_length() {
        for value_len in (0..300).chain(STACK_BYTES - HEAD_BYTES - 6..STACK_BYTES + 6).chain([4096, 70_000]) {
            let value = vec![7; value_len];
            let at = Revision::new(-1, u32::MAX);
            let mut whole = b"tallykv1".to_vec();
            whole.extend((-1i64).to_le_bytes());
            whole.extend(u32::MAX.to_le_bytes());
            whole.extend([2i64, 3, 4, 3, value_len as i64].map(i64::to_le_bytes).concat());
            assert_eq!(whole, head(3, at, 2, 3, 4, value_len));
            whole.extend(b"key");
            whole.extend(&value);
            assert_eq!(fingerprint(b"key", at, 2, 3, 4, &value), xxh3_128(&whole), "value of {value_len} bytes");
        }
    }

    #[test]
    fn every_field_counts() {
        let at = Revision::new(5, 1);
        let prints = [
            fingerprint(b"ab", at, 3, 2, 1, b"c"),
            fingerprint(b"a", at, 3, 2, 1, b"bc"),
            fingerprint(b"abc", at, 3, 2, 1, b""),
            fingerprint(b"ab", Revision::new(6, 1), 3, 2, 1, b"c"),
            fingerprint(b"ab", Revision::new(5, 2), 3, 2, 1, b"c"),
            fingerprint(b"ab", at, 4, 2, 1, b"c"),
            fingerprint(b"ab", at, 3, 3, 1, b"c"),
            fingerprint(b"ab", at, 3, 2, 2, b"c"),
            fingerprint(b"ab", at, 3, 2, 1, b"d"),
        ];
        for (nth, print) in prints.iter().enumerate() {
            assert!(!prints[..nth].contains(print), "variant {nth} has the fingerprint of another");
        }
    }
}
