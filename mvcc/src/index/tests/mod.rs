//! Tests of the index: an invariant checker, a model, and what both have in common.
#![allow(clippy::unwrap_used)]

mod check;
mod histories;
mod model;
mod property;
mod revisions;
mod shapes;
mod snapshots;

use super::{Rev, Revision};

/// A small generator with a seed, so that every run is the same.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}

/// A fingerprint that uses all 128 bits, so that sums wrap.
fn print(main: i64, sub: u32) -> u128 {
    let half = |seed: u64| u128::from(Rng::new(seed).next());
    half(main as u64 * 31 + u64::from(sub)) << 64 | half(!(main as u64) ^ u64::from(sub) << 40)
}

/// The put number `version` of a generation.
pub(super) fn put_rev(main: i64, create: i64, version: i64) -> Rev {
    Rev { at: Revision::new(main, 0), create, version, print: print(main, 0) }
}

/// The first put of a key.
pub(super) fn new_rev(main: i64) -> Rev {
    put_rev(main, main, 1)
}

pub(super) fn tombstone(main: i64) -> Rev {
    Rev { at: Revision::new(main, 0), create: 0, version: 0, print: print(main, 0) }
}
