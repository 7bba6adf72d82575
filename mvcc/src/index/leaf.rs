//! `Leaf`: up to 64 keys with their newest revisions inline, and the older ones behind one pointer.
//!
//! ```text
//!  keys    [ a | b | c | d ]                one buffer
//!  slots   [ 9 | 7'| 4 | 8"]                the newest revision of each key; ' and " are tags 1 and 2
//!  recent  [ 5' 6' 7" ]                     up to 32 older revisions, in the order in which they were replaced
//!  table   -> [ ' History | " History ]     the revisions older than those, by tag
//! ```
//!
//! A leaf under load is copied for nearly every put, because the version before it has been published. So everything in
//! it is plain memory: a copy is four memcpys and *one* reference count, not one per key. Only when `recent` is full
//! (once in 33 overwrites) or the leaf is rebuilt, the histories themselves are touched.
//!
//! **Invariant**: a key has a tag if and only if it has older revisions. **Invariant**: all revisions of a tag in
//! `recent` are
//! newer than those in `table`. **Invariant**: a leaf is cut in parts when it would exceed [`LEAF_KEYS`] keys, or
//! [`LEAF_BYTES`]
//! bytes of keys while it has more than one.

use std::ops::Range;
use std::sync::Arc;

use super::history::History;
use super::keys::{Key, Keys, reserve_stepwise};
use super::revision::{Rev, Revision};
use super::summary::{Summary, due};

/// The most keys in a leaf.
pub(super) const LEAF_KEYS: usize = 64;
/// The most bytes of keys in a leaf with more than one key.
pub(super) const LEAF_BYTES: usize = 8 * 1024;
/// The most older revisions in a leaf that are not in its table.
const RECENT_REVS: usize = 32;

/// A revision and the tag of its key, in 48 bytes.
#[derive(Clone, Copy, Debug)]
struct Slot {
    main: i64,
    create: i64,
    version: i64,
    print: [u64; 2],
    sub: u32,
    /// The position of the key's history in the table plus 1; 0 if there is none.
    tag: u32,
}

impl Slot {
    #[allow(clippy::cast_possible_truncation)] // the two halves of a u128
    const fn new(rev: &Rev, tag: u32) -> Self {
        let print = [(rev.print >> 64) as u64, rev.print as u64];
        Self { main: rev.at.main(), create: rev.create, version: rev.version, print, sub: rev.at.sub(), tag }
    }

    const fn rev(&self) -> Rev {
        let print = ((self.print[0] as u128) << 64) | self.print[1] as u128;
        Rev { at: Revision::new(self.main, self.sub), create: self.create, version: self.version, print }
    }
}

/// See the head of the file.
#[derive(Clone, Default, Debug)]
pub(super) struct Leaf {
    keys: Keys,
    slots: Vec<Slot>,
    recent: Vec<Slot>,
    table: Option<Arc<[History]>>,
    /// The highest tag in use.
    tags: u32,
}

/// One key on its way from leaf to leaf.
#[derive(Clone, Debug)]
pub(super) struct Entry<'k> {
    pub(super) key: Key<'k>,
    pub(super) newest: Rev,
    pub(super) older: Option<History>,
}

impl Leaf {
    /// A leaf of `entries`, which must be in the order of their keys.
    pub(super) fn build(entries: Vec<Entry<'_>>) -> Self {
        let keys = Keys::build(entries.iter().map(|entry| entry.key));
        let mut slots = Vec::with_capacity(entries.len());
        let mut table = Vec::new();
        let mut tags = 0;
        for Entry { newest, older, .. } in entries {
            let tag = older.map_or(0, |history| {
                table.push(history);
                tags += 1;
                tags
            });
            slots.push(Slot::new(&newest, tag));
        }
        let table = if table.is_empty() { None } else { Some(table.into()) };
        Self { keys, slots, recent: Vec::new(), table, tags }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn key(&self, at: usize) -> Key<'_> {
        self.keys.get(at)
    }

    /// Where `key` is (`Ok`), or where it would be (`Err`).
    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        self.keys.search(key)
    }

    /// The index of the first key at or above `key`.
    pub(super) fn lower_bound(&self, key: &[u8]) -> usize {
        match self.search(key) {
            Ok(at) | Err(at) => at,
        }
    }

    /// The bytes of keys stored.
    #[cfg(test)]
    pub(super) fn key_bytes(&self) -> usize {
        self.keys.byte_len()
    }

    /// Whether this leaf has to be cut when `key`, which is not in it, comes in.
    pub(super) fn overflows_with(&self, key: &[u8]) -> bool {
        self.len() > 0 && (self.len() >= LEAF_KEYS || self.keys.byte_len_with(key) > LEAF_BYTES)
    }

    /// Whether there is so little in it that it should be joined with a neighbour.
    pub(super) fn is_sparse(&self) -> bool {
        self.len() < LEAF_KEYS / 4 && self.keys.byte_len() < LEAF_BYTES / 4
    }

    /// A copy to put `key` into, with just the room for it; `found` is whether the key is in it already.
    pub(super) fn copy_for(&self, key: &[u8], found: bool) -> Self {
        let (more_slots, more_recent) = if found { (0, 1) } else { (1, 0) };
        let with_room = |from: &[Slot], extra| {
            let mut copy = Vec::with_capacity(from.len() + extra);
            copy.extend_from_slice(from);
            copy
        };
        Self {
            keys: if found { self.keys.clone() } else { self.keys.copy_with_room(key.len()) },
            slots: with_room(&self.slots, more_slots),
            recent: with_room(&self.recent, more_recent),
            table: self.table.clone(),
            tags: self.tags,
        }
    }

    /// Adds a revision of the key at `place`, which is what [`Leaf::search`] gave for `key`. Says how the summary
    /// changes.
    pub(super) fn put(&mut self, place: Result<usize, usize>, key: &[u8], rev: Rev) -> Summary {
        match place {
            Ok(at) => self.put_newer(at, rev),
            Err(at) => {
                self.keys.insert(at, key);
                reserve_stepwise(&mut self.slots, 1, 4);
                self.slots.insert(at, Slot::new(&rev, 0));
                new_key(key, &rev)
            }
        }
    }

    fn put_newer(&mut self, at: usize, rev: Rev) -> Summary {
        let old = self.slots[at];
        let old_rev = old.rev();
        debug_assert!(rev.at > old_rev.at, "revisions of a key arrive in order: {:?} after {:?}", rev.at, old_rev.at);
        let tag = if old.tag == 0 {
            self.tags += 1;
            self.tags
        } else {
            old.tag
        };
        reserve_stepwise(&mut self.recent, 1, 8);
        self.recent.push(Slot { tag, ..old });
        self.slots[at] = Slot::new(&rev, tag);
        if self.recent.len() > RECENT_REVS {
            self.settle_recent();
        }
        // The two oldest revisions decide what is due: they change only if this is the second.
        let due = if old.tag == 0 { due(&old_rev, Some(&rev)) } else { i64::MAX };
        let live = u64::from(!rev.is_tombstone()).wrapping_sub(u64::from(!old_rev.is_tombstone()));
        Summary { live, keys: 0, bytes: 0, due, sum: rev.print }
    }

    /// Moves the recent revisions into the histories.
    fn settle_recent(&mut self) {
        let mut recent = std::mem::take(&mut self.recent);
        recent.sort_by_key(|slot| slot.tag); // stable: revisions of a tag stay in order
        let mut groups = recent.chunk_by(|a, b| a.tag == b.tag).peekable();
        let mut table = Vec::with_capacity(self.tags as usize);
        let mut newer = Vec::with_capacity(recent.len());
        for tag in 1..=self.tags {
            let older = self.settled(tag);
            match groups.next_if(|group| group[0].tag == tag) {
                Some(group) => {
                    newer.clear();
                    newer.extend(group.iter().map(Slot::rev));
                    table.push(History::append(older, &newer));
                }
                None => table.extend(older.cloned()),
            }
        }
        debug_assert_eq!(table.len(), self.tags as usize, "every tag has older revisions");
        self.table = Some(table.into());
    }

    /// The part of a history that is in the table.
    fn settled(&self, tag: u32) -> Option<&History> {
        let at = tag.checked_sub(1)?;
        self.table.as_deref()?.get(at as usize)
    }

    /// The part of a history that is not in the table, the oldest first.
    fn unsettled(&self, tag: u32) -> impl DoubleEndedIterator<Item = &Slot> {
        let recent = if tag == 0 { &[][..] } else { &self.recent[..] };
        recent.iter().filter(move |slot| slot.tag == tag)
    }

    pub(super) fn newest(&self, at: usize) -> Rev {
        self.slots[at].rev()
    }

    /// All revisions of the key at index `at`, the oldest first.
    pub(super) fn revs(&self, at: usize) -> impl Iterator<Item = Rev> {
        let slot = &self.slots[at];
        let settled = self.settled(slot.tag).into_iter().flat_map(History::iter).copied();
        settled.chain(self.unsettled(slot.tag).chain(std::iter::once(slot)).map(Slot::rev))
    }

    /// The revisions with main >= `main` of the key at index `at`, the oldest first.
    pub(super) fn revs_since(&self, at: usize, main: i64) -> impl Iterator<Item = Rev> {
        let slot = &self.slots[at];
        let settled = self.settled(slot.tag).into_iter().flat_map(move |history| history.since(main)).copied();
        let unsettled = self.unsettled(slot.tag).chain(std::iter::once(slot)).map(Slot::rev);
        settled.chain(unsettled.filter(move |rev| rev.at.main() >= main))
    }

    pub(super) fn rev_count(&self, at: usize) -> usize {
        let tag = self.slots[at].tag;
        1 + self.settled(tag).map_or(0, History::len) + self.unsettled(tag).count()
    }

    /// The newest revision with main <= `main` of the key at index `at`. O(log n) in the number of its revisions.
    pub(super) fn rev_at(&self, at: usize, main: i64) -> Option<Rev> {
        let slot = &self.slots[at];
        if slot.main <= main {
            return Some(slot.rev());
        }
        match self.unsettled(slot.tag).rev().find(|older| older.main <= main) {
            Some(older) => Some(older.rev()),
            None => self.settled(slot.tag)?.at(main),
        }
    }

    /// The key at index `at` with all its revisions.
    pub(super) fn entry(&self, at: usize) -> Entry<'_> {
        let tag = self.slots[at].tag;
        let recent = self.unsettled(tag).map(Slot::rev).collect::<Vec<_>>();
        let settled = self.settled(tag);
        let older = if recent.is_empty() { settled.cloned() } else { Some(History::append(settled, &recent)) };
        Entry { key: self.key(at), newest: self.newest(at), older }
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        (0..self.len()).map(|at| self.entry(at))
    }

    /// A leaf with the keys of this one and those of its right neighbour; `None` if they do not fit.
    pub(super) fn joined_with(&self, right: &Self) -> Option<Self> {
        if self.len() + right.len() > LEAF_KEYS {
            return None;
        }
        let entries = self.entries().chain(right.entries()).collect::<Vec<_>>();
        (bytes_of(&entries) <= LEAF_BYTES).then(|| Self::build(entries))
    }

    /// The smallest compaction revision that drops something of the key at index `at`.
    pub(super) fn due(&self, at: usize) -> i64 {
        let slot = &self.slots[at];
        if slot.tag == 0 {
            return due(&slot.rev(), None);
        }
        let mut revs = self.revs(at);
        revs.next().map_or(i64::MAX, |first| due(&first, revs.next().as_ref()))
    }

    /// How many of the keys in `range` are live.
    pub(super) fn live_in(&self, range: Range<usize>) -> u64 {
        self.slots[range].iter().map(|slot| u64::from(slot.version != 0)).sum()
    }

    /// The sum of the fingerprints of all revisions of the keys in `range`.
    pub(super) fn sum_in(&self, range: Range<usize>) -> u128 {
        range.fold(0u128, |sum, at| {
            let slot = &self.slots[at];
            let settled = self.settled(slot.tag).map_or(0, History::sum);
            let unsettled = self.unsettled(slot.tag).fold(0u128, |sum, older| sum.wrapping_add(older.rev().print));
            sum.wrapping_add(slot.rev().print).wrapping_add(settled).wrapping_add(unsettled)
        })
    }

    pub(super) fn summary(&self) -> Summary {
        Summary {
            live: self.live_in(0..self.len()),
            keys: self.len() as u64,
            bytes: (0..self.len()).map(|at| self.key(at).len() as u64).sum(),
            due: (0..self.len()).map(|at| self.due(at)).min().unwrap_or(i64::MAX),
            sum: self.sum_in(0..self.len()),
        }
    }

    /// The bytes of memory held beyond the struct itself, histories not included.
    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        let table = self.table.as_deref().map_or(0, size_of_val);
        self.keys.heap_bytes() + (self.slots.capacity() + self.recent.capacity()) * size_of::<Slot>() + table
    }

    /// Whether the limit of older revisions outside the table is kept.
    #[cfg(test)]
    pub(super) fn recent_is_bounded(&self) -> bool {
        self.recent.len() <= RECENT_REVS
    }
}

/// What a key that comes in with `rev` adds to the summary.
pub(super) fn new_key(key: &[u8], rev: &Rev) -> Summary {
    let live = u64::from(!rev.is_tombstone());
    Summary { live, keys: 1, bytes: key.len() as u64, due: due(rev, None), sum: rev.print }
}

/// The bytes of keys that a leaf of `entries` stores: what their keys, in order, all begin with is stored once.
pub(super) fn bytes_of(entries: &[Entry<'_>]) -> usize {
    let [first, .., last] = entries else { return entries.iter().map(|entry| entry.key.len()).sum() };
    let shared = first.key.shared_with(&last.key);
    shared + entries.iter().map(|entry| entry.key.len() - shared).sum::<usize>()
}
