//! A small seeded generator (SplitMix64): the same seed gives the same run everywhere.

/// A seeded stream of numbers.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    /// A stream of its own for this seed.
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound` (0 if the bound is 0); the bias is below `bound` / 2^64.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Fills a buffer.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// Scatters the bits of a number, one to one.
pub(crate) fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A 128-bit fingerprint of some texts, for telling them apart (not against an adversary).
pub(crate) fn hash(texts: &[&[u8]]) -> u128 {
    let mut halves = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344_u64];
    for text in texts {
        for chunk in text.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            let word = u64::from_le_bytes(bytes);
            halves = [mix(halves[0] ^ word), mix(halves[1].rotate_left(23) ^ word).wrapping_add(halves[0])];
        }
        // The length keeps "ab" + "c" from being "a" + "bc".
        halves = [mix(halves[0] ^ text.len() as u64), mix(halves[1].wrapping_add(text.len() as u64))];
    }
    u128::from(halves[0]) << 64 | u128::from(halves[1])
}
