//! A bounded cache of records by revision. A record never changes, so nothing is ever stale.
//!
//! Reading a range looks up hundreds of records that are anywhere in memory, so what it costs is waiting for memory.
//! Hence [`RecordCache::get_many`]: it finds all of them before it takes any, without an atomic operation in between, so
//! that the processor waits for many at a time.
//!
//! What is dropped when the cache is full is decided as by a clock with a few chances: records leave in the order in
//! which they came, but one that was read meanwhile goes round again, once for each time it was read, up to
//! [`CHANCES_MAX`]. So one pass over many records does not drive out those that are in use.

#![allow(
    clippy::disallowed_types,
    reason = "the map is never iterated over: what is answered does not depend on its order"
)]

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::hint::black_box;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::index::Revision;
use crate::record::Record;

/// Records larger than this are not cached: they would push out hundreds of small ones.
const LARGEST_CACHED_BYTES: usize = 64 << 10;
/// What an entry costs beside its bytes: its share of the table and the queue, the handle, the allocator's rounding.
const ENTRY_OVERHEAD_BYTES: usize = 128;
/// One lock per shard; more than any machine has threads reading.
const SHARDS: usize = 16;
/// Records that are looked up under one taking of the locks: enough to wait for many at a time, few enough that no writer
/// waits long.
const TOGETHER: usize = 64;
/// How often a record can be spared in a row without being read again.
const CHANCES_MAX: u8 = 3;
/// Records that may be spared for each one inserted, and what may be saved up of that for a run of records in use. Then
/// records are dropped whatever they are: this bounds what an insertion costs.
const SPARED: usize = 16;
const SPARED_MAX: usize = 256;
/// Places in the queue whose records are gone already are cleared out when there are this many more than records.
const EMPTY_PLACES_MAX: usize = 1024;

/// The cache. Shared by readers and the writer.
pub(crate) struct RecordCache {
    shards: [RwLock<Shard>; SHARDS],
    shard_capacity_bytes: usize,
}

#[derive(Default)]
struct Shard {
    slots: HashMap<Revision, Slot, BuildHasherDefault<RevisionHasher>>,
    /// The revisions in `slots`, each at least once, in the order in which they came or were spared; and some that were
    /// removed.
    queue: VecDeque<Revision>,
    /// The sum of [`weight`] over `slots`.
    bytes: usize,
    /// How many records may be spared now.
    spare: usize,
}

struct Slot {
    record: Record,
    /// How often the record will be spared.
    chances: AtomicU8,
}

impl RecordCache {
    pub(crate) fn new(capacity_bytes: u64) -> RecordCache {
        let shard_capacity_bytes = usize::try_from(capacity_bytes).unwrap_or(usize::MAX) / SHARDS;
        RecordCache { shards: std::array::from_fn(|_| RwLock::default()), shard_capacity_bytes }
    }

    pub(crate) fn get(&self, at: Revision) -> Option<Record> {
        self.read(shard_of(at)).slots.get(&at).map(Slot::take)
    }

    /// What [`RecordCache::get`] gives for each of them, in that order.
    pub(crate) fn get_many(&self, revisions: &[Revision]) -> Vec<Option<Record>> {
        let mut found = Vec::with_capacity(revisions.len());
        for together in revisions.chunks(TOGETHER) {
            let mut wanted = [false; SHARDS];
            together.iter().for_each(|at| wanted[shard_of(*at)] = true);
            // Always in this order, and who writes holds one lock at a time: nobody waits for each other in a circle.
            let shards: [_; SHARDS] = std::array::from_fn(|shard| wanted[shard].then(|| self.read(shard)));
            let mut slots = [None; TOGETHER];
            for (slot, at) in slots.iter_mut().zip(together) {
                *slot = shards[shard_of(*at)].as_ref().and_then(|shard| shard.slots.get(at));
            }
            // To take a record is an atomic operation on its count of owners, and nothing is read ahead across one.
            black_box(slots.iter().flatten().filter(|slot| slot.is_at_hand()).count());
            found.extend(slots[..together.len()].iter().map(|slot| slot.map(Slot::take)));
        }
        found
    }

    pub(crate) fn insert(&self, at: Revision, record: &Record) {
        if record.bytes().len() <= LARGEST_CACHED_BYTES {
            self.write(shard_of(at)).insert(at, record, self.shard_capacity_bytes);
        }
    }

    pub(crate) fn remove(&self, at: Revision) {
        self.write(shard_of(at)).remove(at);
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        (0..SHARDS).map(|shard| self.read(shard).bytes as u64).sum()
    }

    // A panic ends the process; one in a test leaves a shard as whole as it was.
    fn read(&self, shard: usize) -> RwLockReadGuard<'_, Shard> {
        self.shards[shard].read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, shard: usize) -> RwLockWriteGuard<'_, Shard> {
        self.shards[shard].write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn insert(&mut self, at: Revision, record: &Record, capacity_bytes: usize) {
        let slot = Slot { record: record.clone(), chances: AtomicU8::new(0) };
        if let Some(before) = self.slots.insert(at, slot) {
            // The same record, read from the backend by two at once: it has its place in the queue.
            self.bytes -= weight(&before.record);
        } else {
            self.queue.push_back(at);
        }
        self.bytes += weight(record);
        self.spare = (self.spare + SPARED).min(SPARED_MAX);
        self.make_room(capacity_bytes);
    }

    fn remove(&mut self, at: Revision) {
        if let Some(slot) = self.slots.remove(&at) {
            self.bytes -= weight(&slot.record);
        }
        if self.queue.len() > 2 * self.slots.len() + EMPTY_PLACES_MAX {
            let slots = &self.slots;
            self.queue.retain(|at| slots.contains_key(at));
        }
    }

    fn make_room(&mut self, capacity_bytes: usize) {
        while self.bytes > capacity_bytes {
            let Some(at) = self.queue.pop_front() else { return };
            let Some(slot) = self.slots.get_mut(&at) else { continue };
            let chances = slot.chances.get_mut();
            if *chances > 0 && self.spare > 0 {
                *chances -= 1;
                self.spare -= 1;
                self.queue.push_back(at);
            } else {
                self.bytes -= weight(&slot.record);
                self.slots.remove(&at);
            }
        }
    }
}

impl Slot {
    fn take(&self) -> Record {
        let chances = self.chances.load(Ordering::Relaxed);
        if chances < CHANCES_MAX {
            // Two at once may count as one: it is a guess at what will be wanted.
            self.chances.store(chances + 1, Ordering::Relaxed);
        }
        self.record.clone()
    }

    /// Reads what taking the record and copying it will read first.
    fn is_at_hand(&self) -> bool {
        let bytes = self.record.bytes();
        bytes.is_unique() ^ (bytes.first() == Some(&0))
    }
}

fn weight(record: &Record) -> usize {
    record.bytes().len() + ENTRY_OVERHEAD_BYTES
}

/// By bits that the maps do not use: they take the lowest and the highest ones.
fn shard_of(at: Revision) -> usize {
    (BuildHasherDefault::<RevisionHasher>::default().hash_one(at) >> 40) as usize % SHARDS
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
    #![allow(clippy::unwrap_used)]

    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(main: i64) -> Revision {
        Revision::new(main, 0)
    }

    /// A record of about 115 bytes.
    fn record(main: i64) -> Record {
        Record::tombstone(&[b'k'; 100], main)
    }

    fn queued(cache: &RecordCache) -> usize {
        (0..SHARDS).map(|shard| cache.read(shard).queue.len()).sum()
    }

    #[test]
    fn stays_within_its_bytes_and_leaves_out_large_records() {
        let cache = RecordCache::new(MIB);
        for main in 1..20_000 {
            cache.insert(at(main), &record(main));
        }
        assert!(cache.used_bytes() <= MIB, "{} bytes", cache.used_bytes());
        assert!(cache.used_bytes() > MIB * 9 / 10, "hardly used: {} bytes", cache.used_bytes());
        assert!(cache.get(at(19_999)).is_some() && cache.get(at(1)).is_none());
        cache.insert(at(30_000), &Record::tombstone(&[b'k'; LARGEST_CACHED_BYTES], 30_000));
        assert!(cache.get(at(30_000)).is_none());
    }

    #[test]
    fn many_are_given_in_the_order_in_which_they_are_asked_for() {
        let cache = RecordCache::new(MIB);
        (1..1_000).step_by(2).for_each(|main| cache.insert(at(main), &record(main)));
        for count in [0, 1, 2, TOGETHER - 1, TOGETHER, TOGETHER + 1, 500] {
            let asked: Vec<Revision> = (0..count as i64).map(|place| at(place * 7919 % 1_000)).collect();
            let found = cache.get_many(&asked);
            assert_eq!(found.len(), count);
            for (found, asked) in found.iter().zip(&asked) {
                assert_eq!(found.as_ref().map(Record::mod_revision), (asked.main() % 2 == 1).then_some(asked.main()));
            }
        }
    }

    #[test]
    fn what_is_read_outlasts_a_pass_over_many() {
        let cache = RecordCache::new(MIB);
        // Some hundred in use, of the four thousand that there is room for.
        let used: Vec<Revision> = (1..=300).map(at).collect();
        used.iter().for_each(|at| cache.insert(*at, &record(at.main())));
        for main in 1_000..50_000 {
            cache.insert(at(main), &record(main));
            if main % 2_000 == 0 {
                assert!(cache.get_many(&used).iter().all(Option::is_some), "before {main}");
            }
        }
        // Without being read, they go too.
        (50_000..100_000).for_each(|main| cache.insert(at(main), &record(main)));
        assert!(cache.get_many(&used).iter().all(Option::is_none));
    }

    #[test]
    fn there_is_room_for_a_new_record_although_every_other_is_in_use() {
        let cache = RecordCache::new(MIB);
        for main in 1..20_000 {
            cache.insert(at(main), &record(main));
            (0..=CHANCES_MAX).for_each(|_| drop(cache.get(at(main))));
        }
        assert!(cache.used_bytes() <= MIB);
    }

    #[test]
    fn nothing_is_left_of_what_is_removed_or_inserted_twice() {
        let cache = RecordCache::new(MIB);
        for main in 1..1_000_000 {
            cache.insert(at(main), &record(main));
            cache.insert(at(main), &record(main));
            cache.remove(at(main));
            cache.remove(at(main));
        }
        assert_eq!(cache.used_bytes(), 0);
        assert!(queued(&cache) <= SHARDS * (EMPTY_PLACES_MAX + 1), "{} places", queued(&cache));
    }
}
