//! The state root: one 128-bit figure over the whole logical state, equal on two replicas only if their states are.
//!
//! The key-value part comes from `mvcc`, where it is kept per tree node. The other buckets are small: each keeps the wrapping
//! sum of the fingerprints of its records. The whole is a hash over the parts in fixed order, under a version of its own.

use tally_lease::Leases;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Changes when anything about how the root is formed changes, so that roots of two forms never compare equal by chance.
const ROOT_VERSION: u64 = 1;

/// Which bucket a fingerprint belongs to: the same bytes in two buckets must not cancel out.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    Alarm = 1,
    Member = 2,
}

/// The fingerprint of one record of a small bucket.
pub(crate) fn print(part: Part, key: &[u8], value: &[u8]) -> u128 {
    let mut hash = Xxh3::with_seed(part as u64);
    hash.update(&(key.len() as u64).to_le_bytes());
    hash.update(key);
    hash.update(value);
    hash.digest128()
}

/// The root over all parts. Without leases it is what it was before there were any, so that older data keeps its root.
pub(crate) fn combine(kv: u128, alarms: u128, members: u128, leases: &Leases, level: u32) -> u128 {
    let mut parts = [0u8; 76];
    parts[..8].copy_from_slice(&ROOT_VERSION.to_le_bytes());
    parts[8..24].copy_from_slice(&kv.to_le_bytes());
    parts[24..40].copy_from_slice(&alarms.to_le_bytes());
    parts[40..56].copy_from_slice(&members.to_le_bytes());
    parts[56..60].copy_from_slice(&level.to_le_bytes());
    if leases.is_empty() {
        return xxh3_128(&parts[..60]);
    }
    parts[60..].copy_from_slice(&leases.sum().to_le_bytes());
    xxh3_128(&parts)
}
