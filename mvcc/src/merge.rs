//! From records in the order of revisions to an index in the order of keys: sort each thread's part, merge, compact.

use std::cmp::Ordering;

use crate::error::Corruption;
use crate::index::{Rev, Revision, Tree};

/// What one thread loaded: keys in one buffer, and an entry per record.
#[derive(Default)]
pub(crate) struct Part {
    keys: Vec<u8>,
    entries: Vec<Entry>,
    /// The records with a lease.
    leased: Vec<Leased>,
    /// What all keys of this part begin with.
    common: usize,
}

/// One record. Ordered by the bytes of its key behind the common prefix, most of which are beside it in memory.
struct Entry {
    head: u128,
    key_at: usize,
    key_length: u32,
    rev: Rev,
}

/// One record with a lease.
struct Leased {
    key_at: usize,
    key_length: u32,
    at: Revision,
    lease: i64,
}

impl Part {
    pub(crate) fn push(&mut self, key: &[u8], rev: Rev, lease: i64) {
        let key_at = self.keys.len();
        self.keys.extend_from_slice(key);
        self.common = match self.entries.first() {
            None => key.len(),
            Some(first) => {
                let first = &self.keys[first.key_at..][..self.common];
                first.iter().zip(key).take_while(|(one, other)| one == other).count()
            }
        };
        // Keys are far below 4 GiB: requests are bounded, and so are records in RocksDB.
        if lease != 0 {
            self.leased.push(Leased { key_at, key_length: key.len() as u32, at: rev.at, lease });
        }
        self.entries.push(Entry { head: 0, key_at, key_length: key.len() as u32, rev });
    }

    fn key(&self, entry: &Entry) -> &[u8] {
        &self.keys[entry.key_at..][..entry.key_length as usize]
    }

    /// Sorts by key, then revision.
    pub(crate) fn sort(&mut self) {
        let Part { keys, entries, common, leased: _ } = self;
        let key = |entry: &Entry| &keys[entry.key_at..][..entry.key_length as usize];
        for entry in entries.iter_mut() {
            let rest = &key(entry)[*common..];
            let mut head = [0; 16];
            let length = rest.len().min(16);
            head[..length].copy_from_slice(&rest[..length]);
            entry.head = u128::from_be_bytes(head);
        }
        entries.sort_unstable_by(|one, other| {
            let by_key = || key(one).cmp(key(other));
            one.head.cmp(&other.head).then_with(by_key).then_with(|| one.rev.at.cmp(&other.rev.at))
        });
    }
}

/// Builds the index from sorted parts, leaving out what the compaction at `compact` drops.
pub(crate) fn merge(parts: &[Part], compact: i64) -> Result<Tree, Corruption> {
    let mut merged = Merged { parts, places: vec![0; parts.len()] };
    let mut broken = None;
    let histories = std::iter::from_fn(|| {
        let (key, mut revs) = merged.next_key()?;
        drop_compacted(&mut revs, compact);
        if let Err(corruption) = check_history(revs.as_ref()) {
            broken = Some(corruption);
            return None;
        }
        Some((key, revs))
    });
    let tree = Tree::bulk(histories);
    broken.map_or(Ok(tree), Err)
}

/// Shows each record with a lease that is the newest of its key in `tree`.
pub(crate) fn show_leases(parts: &[Part], tree: &Tree, mut show: impl FnMut(&[u8], i64)) {
    for part in parts {
        for leased in &part.leased {
            let key = &part.keys[leased.key_at..][..leased.key_length as usize];
            if tree.get(key).is_some_and(|history| history.newest().at == leased.at) {
                show(key, leased.lease);
            }
        }
    }
}

struct Merged<'a> {
    parts: &'a [Part],
    /// Per part, the first entry not taken yet.
    places: Vec<usize>,
}

/// The revisions of one key; most keys have one.
enum Revs {
    None,
    One([Rev; 1]),
    Many(Vec<Rev>),
}

impl AsRef<[Rev]> for Revs {
    fn as_ref(&self) -> &[Rev] {
        match self {
            Revs::None => &[],
            Revs::One(rev) => rev,
            Revs::Many(revs) => revs,
        }
    }
}

impl Revs {
    fn push(&mut self, rev: Rev) {
        match self {
            Revs::None => *self = Revs::One([rev]),
            Revs::One([first]) => *self = Revs::Many(vec![*first, rev]),
            Revs::Many(revs) => revs.push(rev),
        }
    }
}

impl<'a> Merged<'a> {
    /// The next key with all its revisions.
    fn next_key(&mut self) -> Option<(&'a [u8], Revs)> {
        let (key, first) = self.next_if(|_| true)?;
        let mut revs = Revs::One([first]);
        while let Some((_, rev)) = self.next_if(|next| next == key) {
            revs.push(rev);
        }
        Some((key, revs))
    }

    /// The next record by key and revision over all parts, if its key is wanted.
    fn next_if(&mut self, wanted: impl FnOnce(&[u8]) -> bool) -> Option<(&'a [u8], Rev)> {
        let heads = self.parts.iter().zip(&self.places).enumerate();
        let heads = heads.filter_map(|(at, (part, place))| part.entries.get(*place).map(|entry| (at, part, entry)));
        let (at, part, entry) = heads.min_by(|(_, one_part, one), (_, other_part, other)| {
            one_part.key(one).cmp(other_part.key(other)).then_with(|| one.rev.at.cmp(&other.rev.at))
        })?;
        let key = part.key(entry);
        wanted(key).then(|| {
            self.places[at] += 1;
            (key, entry.rev)
        })
    }
}

/// The compaction rule for one key: of what is not after `compact` only the newest stays, and if that is a tombstone,
/// only if it is of `compact` itself.
fn drop_compacted(revs: &mut Revs, compact: i64) {
    let all = revs.as_ref();
    let old = all.partition_point(|rev| rev.at.main() <= compact);
    let Some(newest) = old.checked_sub(1).map(|at| all[at]) else { return };
    let keeps_newest = !newest.is_tombstone() || newest.at.main() == compact;
    let dropped = if keeps_newest { old - 1 } else { old };
    match revs {
        Revs::Many(revs) => drop(revs.drain(..dropped)),
        Revs::None | Revs::One(_) if dropped > 0 => *revs = Revs::None,
        Revs::None | Revs::One(_) => {}
    }
}

/// Checks that each revision continues the one before. The oldest may continue one that was compacted.
fn check_history(revs: &[Rev]) -> Result<(), Corruption> {
    let begins = |rev: &Rev| rev.version == 1 && rev.create == rev.at.main();
    let follows = |one: &Rev, next: &Rev| match (one.is_tombstone(), next.is_tombstone()) {
        (true, true) => false,
        (false, true) => true,
        (true, false) => begins(next),
        (false, false) => next.create == one.create && next.version == one.version + 1,
    };
    let broken =
        revs.windows(2).find(|pair| pair[0].at.cmp(&pair[1].at) != Ordering::Less || !follows(&pair[0], &pair[1]));
    match broken {
        Some(pair) => Err(Corruption::BrokenHistory { main: pair[1].at.main(), sub: pair[1].at.sub() }),
        None => Ok(()),
    }
}
