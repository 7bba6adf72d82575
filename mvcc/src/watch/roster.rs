//! The watchers of a stream or of a group by their ids, and the streams of a topic by their numbers: a map for what mostly
//! comes in ascending order, and stays.
//!
//! Entries stand in the order of their ids, in chunks. A chunk that is filled in that order gets full, where the node of a
//! B-tree stays half empty, and a stream with one watcher has room for a few, not for eleven.
//!
//! **Invariant**: no chunk is empty, each holds at most [`CHUNK_MAX`] entries in ascending order, and those of a chunk come
//! before those of the next.

/// Entries of a chunk. Adding and removing move so many at most, besides the list of chunks.
const CHUNK_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Roster<T> {
    chunks: Vec<Vec<(i64, T)>>,
    len: usize,
    /// How many entries have been looked at one after the other.
    #[cfg(test)]
    pub(super) walked: std::cell::Cell<usize>,
}

impl<T> Roster<T> {
    pub(super) const fn new() -> Roster<T> {
        Roster {
            chunks: Vec::new(),
            len: 0,
            #[cfg(test)]
            walked: std::cell::Cell::new(0),
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The chunk that `id` belongs into, if there is any.
    fn chunk_of(&self, id: i64) -> usize {
        self.chunks.partition_point(|chunk| chunk[0].0 <= id).saturating_sub(1)
    }

    fn find(&self, id: i64) -> Option<(usize, usize)> {
        let at = self.chunk_of(id);
        Some((at, place(self.chunks.get(at)?, id).ok()?))
    }

    pub(super) fn contains(&self, id: i64) -> bool {
        self.find(id).is_some()
    }

    pub(super) fn get(&self, id: i64) -> Option<&T> {
        let (at, place) = self.find(id)?;
        Some(&self.chunks[at][place].1)
    }

    pub(super) fn get_mut(&mut self, id: i64) -> Option<&mut T> {
        let (at, place) = self.find(id)?;
        Some(&mut self.chunks[at][place].1)
    }

    /// Adds an entry, or takes the place of the one with this id.
    pub(super) fn insert(&mut self, id: i64, entry: T) {
        let at = self.chunk_of(id);
        let Some(chunk) = self.chunks.get_mut(at) else {
            self.chunks.push(vec![(id, entry)]);
            self.len = 1;
            return;
        };
        let place = match place(chunk, id) {
            Ok(known) => {
                chunk[known].1 = entry;
                return;
            }
            Err(place) => place,
        };
        self.len += 1;
        if chunk.len() < CHUNK_MAX {
            chunk.insert(place, (id, entry));
        } else if place == CHUNK_MAX {
            // Behind all of it: so it stays full.
            self.chunks.insert(at + 1, vec![(id, entry)]);
        } else {
            let mut upper = chunk.split_off(CHUNK_MAX / 2);
            match place.checked_sub(CHUNK_MAX / 2) {
                Some(place) => upper.insert(place, (id, entry)),
                None => chunk.insert(place, (id, entry)),
            }
            self.chunks.insert(at + 1, upper);
        }
    }

    pub(super) fn remove(&mut self, id: i64) -> Option<T> {
        let (at, place) = self.find(id)?;
        let chunk = &mut self.chunks[at];
        let (_, entry) = chunk.remove(place);
        self.len -= 1;
        if chunk.is_empty() {
            self.chunks.remove(at);
        } else if chunk.len() <= chunk.capacity() / 4 {
            chunk.shrink_to(2 * chunk.len());
        }
        Some(entry)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (i64, &T)> {
        self.chunks.iter().flatten().map(|(id, entry)| {
            self.note_walked();
            (*id, entry)
        })
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.iter().map(|(_, entry)| entry)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (i64, &mut T)> {
        #[cfg(test)]
        self.walked.set(self.walked.get() + self.len);
        self.chunks.iter_mut().flatten().map(|(id, entry)| (*id, entry))
    }

    fn note_walked(&self) {
        #[cfg(test)]
        self.walked.set(self.walked.get() + 1);
    }
}

/// Where `id` is in a chunk, or would be.
fn place<T>(chunk: &[(i64, T)], id: i64) -> Result<usize, usize> {
    chunk.binary_search_by_key(&id, |(id, _)| *id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl<T> Roster<T> {
        fn check(&self) {
            let ids: Vec<i64> = self.chunks.iter().flatten().map(|(id, _)| *id).collect();
            assert!(ids.is_sorted_by(|one, next| one < next));
            assert!(self.chunks.iter().all(|chunk| (1..=CHUNK_MAX).contains(&chunk.len())));
            assert_eq!(ids.len(), self.len());
        }
    }

    #[test]
    fn what_comes_in_order_stands_close() {
        let mut roster = Roster::new();
        (0..1_000).for_each(|id| roster.insert(id, ()));
        roster.check();
        assert_eq!(roster.chunks.len(), 1_000_usize.div_ceil(CHUNK_MAX));
        assert!(roster.chunks.iter().all(|chunk| chunk.capacity() <= CHUNK_MAX));
        // What is left of many takes the room of few.
        (0..1_000).filter(|id| id % 100 != 7).for_each(|id| assert!(roster.remove(id).is_some()));
        roster.check();
        assert_eq!((roster.len(), roster.chunks.iter().map(Vec::capacity).max()), (10, Some(2)));
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((-200_i64..200, any::<bool>()), 0..2_000)) {
            let (mut roster, mut model) = (Roster::new(), BTreeMap::new());
            for (step, (id, adds)) in steps.into_iter().enumerate() {
                prop_assert_eq!(roster.contains(id), model.contains_key(&id));
                if adds {
                    roster.insert(id, step);
                    model.insert(id, step);
                } else {
                    prop_assert_eq!(roster.remove(id), model.remove(&id));
                }
                prop_assert_eq!(roster.get(id).copied(), model.get(&id).copied());
                prop_assert_eq!(roster.get_mut(id).copied(), model.get(&id).copied());
            }
            roster.check();
            prop_assert!(roster.values().eq(model.values()));
            prop_assert!(roster.iter().eq(model.iter().map(|(id, entry)| (*id, entry))));
            prop_assert!(roster.iter_mut().map(|(id, entry)| (id, *entry)).eq(model.iter().map(|(id, entry)| (*id, *entry))));
            prop_assert_eq!((roster.len(), roster.is_empty()), (model.len(), model.is_empty()));
        }
    }
}
