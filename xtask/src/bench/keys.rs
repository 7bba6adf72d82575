//! The keys and values that are written and read: 8 to 64 bytes, and 256 (or 4,096) bytes that do not compress.

use crate::rng::{Rng, mix};

/// Bytes of a value.
pub(crate) const VALUE_BYTES: usize = 256;
/// Bytes of a value where the point is how much data there is.
pub(crate) const LARGE_VALUE_BYTES: usize = 4096;
/// Different values; they are encoded once.
const VALUES: usize = 256;

/// Appends key number `index`: 8 to 64 bytes, 36 on average, in scattered order, different for every index.
pub(crate) fn key(index: u32, out: &mut Vec<u8>) {
    // Multiplication by an odd number and the shift are one to one, so no two keys begin alike.
    let scattered = (index ^ (index >> 15)).wrapping_mul(0x9e37_79b1);
    let mut bits = mix(u64::from(index) + 1);
    let length = 8 + (bits % 57) as usize;
    let begun = out.len();
    for shift in (0..8).rev() {
        out.push(b"0123456789abcdef"[(scattered >> (shift * 4)) as usize & 15]);
    }
    while out.len() - begun < length {
        bits = mix(bits);
        for byte in bits.to_le_bytes() {
            if out.len() - begun < length {
                out.push(b'a' + byte % 26);
            }
        }
    }
}

/// Appends bytes in base64.
pub(crate) fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    base64_simd::STANDARD.encode_append(bytes, out);
}

/// Keys 0 to `keys` in order.
pub(crate) fn sorted_keys(keys: u32) -> Vec<Vec<u8>> {
    let mut sorted: Vec<Vec<u8>> = (0..keys)
        .map(|index| {
            let mut out = Vec::new();
            key(index, &mut out);
            out
        })
        .collect();
    sorted.sort_unstable();
    sorted
}

/// A pool of values, ready to be sent.
#[derive(Debug)]
pub(crate) struct Values(Vec<Vec<u8>>);

impl Values {
    /// The same pool for the same seed, of values of that many bytes, in base64.
    pub(crate) fn new(seed: u64, bytes: usize) -> Values {
        let encode = |value: Vec<u8>| {
            let mut out = Vec::new();
            base64(&value, &mut out);
            out
        };
        Values(Values::raw(seed, bytes).0.into_iter().map(encode).collect())
    }

    /// The same values as they are.
    pub(crate) fn raw(seed: u64, bytes: usize) -> Values {
        let mut rng = Rng::new(seed);
        let random = |_| {
            let mut value = vec![0; bytes];
            rng.fill(&mut value);
            value
        };
        Values((0..VALUES).map(random).collect())
    }

    /// Any of them.
    pub(crate) fn any(&self, rng: &mut Rng) -> &[u8] {
        &self.0[rng.below(VALUES as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::sorted_keys;

    #[test]
    fn keys_differ_and_have_their_lengths() {
        let mut keys = sorted_keys(100_000);
        assert!(keys.iter().all(|key| (8..=64).contains(&key.len())));
        assert!(keys.iter().any(|key| key.len() == 8) && keys.iter().any(|key| key.len() == 64));
        keys.dedup();
        assert_eq!(keys.len(), 100_000);
    }
}
