//! A bounded cache of records by revision. A record never changes, so nothing is ever stale.

use std::hash::{BuildHasherDefault, Hasher};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use crate::index::Revision;
use crate::record::Record;

/// Records larger than this are not cached: they would push out hundreds of small ones.
const LARGEST_CACHED_BYTES: usize = 64 << 10;
/// What an entry costs beside its bytes: its share of the table, the handle, the allocator's rounding.
const ENTRY_OVERHEAD_BYTES: u64 = 128;
/// The size of record that the table is laid out for; it grows if records are smaller.
const TYPICAL_ENTRY_BYTES: u64 = 512;
/// One lock per shard; more than any machine has threads reading.
const SHARDS: usize = 16;

pub(crate) struct RecordCache {
    cache: Cache<Revision, Record, ByBytes, BuildHasherDefault<RevisionHasher>>,
}

impl RecordCache {
    pub(crate) fn new(capacity_bytes: u64) -> RecordCache {
        let options = OptionsBuilder::new()
            .estimated_items_capacity((capacity_bytes / TYPICAL_ENTRY_BYTES) as usize)
            .weight_capacity(capacity_bytes)
            .shards(SHARDS)
            .build()
            .expect("both capacities are given, which is all that is required");
        let cache = Cache::with_options(options, ByBytes, BuildHasherDefault::default(), DefaultLifecycle::default());
        RecordCache { cache }
    }

    pub(crate) fn get(&self, at: Revision) -> Option<Record> {
        self.cache.get(&at)
    }

    pub(crate) fn insert(&self, at: Revision, record: &Record) {
        if record.bytes().len() <= LARGEST_CACHED_BYTES {
            self.cache.insert(at, record.clone());
        }
    }

    pub(crate) fn remove(&self, at: Revision) {
        self.cache.remove(&at);
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.cache.weight()
    }
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Revision, Record> for ByBytes {
    fn weight(&self, _: &Revision, record: &Record) -> u64 {
        record.bytes().len() as u64 + ENTRY_OVERHEAD_BYTES
    }
}

/// Mixes the few integers of a revision. Revisions are given out by the store, so nobody can make them collide.
#[derive(Default)]
struct RevisionHasher(u64);

impl RevisionHasher {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Hasher for RevisionHasher {
    fn finish(&self) -> u64 {
        // The low bits choose the bucket and a multiplication carries only upwards.
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.mix(u64::from(*byte)));
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_i64(&mut self, word: i64) {
        self.mix(word.cast_unsigned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_its_bytes_and_leaves_out_large_records() {
        let cache = RecordCache::new(1 << 20);
        for main in 1..20_000 {
            cache.insert(Revision::new(main, 0), &Record::tombstone(&[b'k'; 100], main));
        }
        assert!(cache.used_bytes() <= 1 << 20, "{} bytes", cache.used_bytes());
        assert!(cache.used_bytes() > 1 << 19, "hardly used: {} bytes", cache.used_bytes());
        assert!(cache.get(Revision::new(19_999, 0)).is_some());
        let large = Revision::new(30_000, 0);
        cache.insert(large, &Record::tombstone(&[b'k'; LARGEST_CACHED_BYTES], 30_000));
        assert!(cache.get(large).is_none());
    }
}
