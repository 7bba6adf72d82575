//! One lease, and its record in the bucket.
//!
//! ```text
//! key    id, 8 bytes big-endian
//! value  version u8 = 1 | granted seconds, 8 bytes big-endian | remaining seconds, 8 bytes big-endian
//! ```
//!
//! **Invariant**: a lease has one encoding, so equal tables have equal roots.

/// The longest time to live that may be granted, in seconds; etcd's limit.
pub const TTL_MAX_S: i64 = 9_000_000_000;

/// The version of the record that is written.
const VERSION: u8 = 1;
/// Bytes of a record's value.
const RECORD_BYTES: usize = 17;

/// The seed of fingerprints. Part of the replicated format: never changes.
const SEED: u64 = 0x5441_4C4C_594C_0001;

/// What is replicated of one lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The time to live that it was granted, in seconds; at least 1.
    pub granted_s: i64,
    /// What was left of it at the last checkpoint, in seconds; 0 if it has had none since it was granted or renewed.
    pub remaining_s: i64,
}

impl Lease {
    /// A lease that was just granted.
    pub fn granted(granted_s: i64) -> Lease {
        Lease { granted_s, remaining_s: 0 }
    }

    /// What a new leader grants it, in seconds: the checkpointed remainder, or all of it.
    pub fn start_s(&self) -> i64 {
        if self.remaining_s > 0 { self.remaining_s } else { self.granted_s }
    }

    /// The value of its record.
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut record = [0; RECORD_BYTES];
        record[0] = VERSION;
        record[1..9].copy_from_slice(&self.granted_s.to_be_bytes());
        record[9..].copy_from_slice(&self.remaining_s.to_be_bytes());
        record
    }

    /// Reads the value of a record; `None` if it is not one that [`Lease::encode`] writes for a lease that can be.
    pub fn decode(record: &[u8]) -> Option<Lease> {
        let record: &[u8; RECORD_BYTES] = record.try_into().ok()?;
        let (granted, remaining) = record[1..].split_first_chunk::<8>()?;
        let lease = Lease {
            granted_s: i64::from_be_bytes(*granted),
            remaining_s: i64::from_be_bytes(*remaining.first_chunk::<8>()?),
        };
        let possible = (1..=TTL_MAX_S).contains(&lease.granted_s) && (0..=lease.granted_s).contains(&lease.remaining_s);
        (record[0] == VERSION && possible).then_some(lease)
    }
}

/// The key of a lease's record.
pub(crate) fn record_key(id: i64) -> [u8; 8] {
    id.to_be_bytes()
}

/// The id in the key of a record.
pub(crate) fn id_of(key: &[u8]) -> Option<i64> {
    key.try_into().ok().map(i64::from_be_bytes).filter(|id| *id != 0)
}

/// What one lease adds to the sum over all of them.
pub(crate) fn print(id: i64, lease: &Lease) -> u128 {
    let mut record = [0; 8 + RECORD_BYTES];
    record[..8].copy_from_slice(&record_key(id));
    record[8..].copy_from_slice(&lease.encode());
    xxhash_rust::xxh3::xxh3_128_with_seed(&record, SEED)
}
