//! `Keys`: a sorted list of byte strings in one buffer, what they have in common stored once.
//!
//! ```text
//!  bytes  | prefix | suffix 0 | suffix 1 | suffix 2 |      key i = prefix + suffix i
//!         0     prefix     ends[0]    ends[1]    ends[2]
//! ```
//!
//! Copying a list is two memcpys, whatever it holds.
//!
//! **Invariant**: keys are in strictly ascending order. **Invariant**: `prefix` need not be the longest common prefix:
//! it only shrinks while keys are inserted, and is made as long as it can be when a list is built.

use std::cmp::Ordering;

/// One key of the index, in the two pieces in which it is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'t> {
    prefix: &'t [u8],
    suffix: &'t [u8],
}

impl<'t> Key<'t> {
    /// `bytes` as a key.
    pub(super) const fn whole(bytes: &'t [u8]) -> Self {
        Self { prefix: &[], suffix: bytes }
    }

    /// The length of the key in bytes.
    pub(crate) const fn len(&self) -> usize {
        self.prefix.len() + self.suffix.len()
    }

    /// Appends the key to `buffer`.
    pub(crate) fn append_to(&self, buffer: &mut Vec<u8>) {
        self.append_from(0, buffer);
    }

    /// The key in a vector of its own.
    pub(crate) fn to_vec(self) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.len());
        self.append_to(&mut key);
        key
    }

    /// Appends what follows the first `skip` bytes of the key.
    fn append_from(&self, skip: usize, buffer: &mut Vec<u8>) {
        match self.prefix.get(skip..) {
            Some(rest) => {
                buffer.extend_from_slice(rest);
                buffer.extend_from_slice(self.suffix);
            }
            None => buffer.extend_from_slice(&self.suffix[skip - self.prefix.len()..]),
        }
    }

    fn bytes(&self) -> impl Iterator<Item = &'t u8> {
        self.prefix.iter().chain(self.suffix)
    }

    /// The number of bytes that this key and `other` begin with alike.
    pub(super) fn shared_with(&self, other: &Self) -> usize {
        self.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count()
    }

    /// The shortest key above `self` and not above `next`, which must be above `self`: what parts two neighbours.
    pub(super) fn separator(&self, next: &Self) -> Vec<u8> {
        let mut separator = next.to_vec();
        separator.truncate(self.shared_with(next) + 1);
        separator
    }
}

/// A sorted list of keys.
#[derive(Clone, Default, Debug)]
pub(super) struct Keys {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    prefix: u32,
}

/// An offset into a list. Lists are cut at a few KiB or hold one key, and keys are far smaller than 4 GiB.
fn offset(at: usize) -> u32 {
    u32::try_from(at).expect("the keys of one node stay below 4 GiB: nodes are split by bytes and requests are bounded")
}

/// Makes room for `extra` more elements; in small steps, because millions of vectors would otherwise be half empty.
pub(super) fn reserve_stepwise<T>(vec: &mut Vec<T>, extra: usize, step: usize) {
    if vec.capacity() - vec.len() < extra {
        vec.reserve_exact(extra.max(step));
    }
}

/// The length of the common beginning of two byte strings.
fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Keys {
    /// The list of `keys`, which must be ascending, with the longest prefix.
    pub(super) fn build<'k>(keys: impl ExactSizeIterator<Item = Key<'k>> + DoubleEndedIterator + Clone) -> Self {
        let mut ends = keys.clone();
        let prefix = match (ends.next(), ends.next_back()) {
            (Some(first), Some(last)) => first.shared_with(&last),
            (Some(_) | None, None) | (None, Some(_)) => 0,
        };
        let total = keys.clone().map(|key| key.len() - prefix).sum::<usize>() + prefix;
        let mut list =
            Self { bytes: Vec::with_capacity(total), ends: Vec::with_capacity(keys.len()), prefix: offset(prefix) };
        for key in keys {
            if list.ends.is_empty() {
                key.append_to(&mut list.bytes);
            } else {
                key.append_from(prefix, &mut list.bytes);
            }
            list.ends.push(offset(list.bytes.len()));
        }
        list
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The number of bytes stored.
    pub(super) fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// The number of bytes that would be stored if `key` were inserted.
    pub(super) fn byte_len_with(&self, key: &[u8]) -> usize {
        let prefix = self.prefix as usize;
        let shared = common(&self.bytes[..prefix], key);
        self.bytes.len() + (prefix - shared) * self.len().saturating_sub(1) + (key.len() - shared)
    }

    /// The bytes of memory held beyond the struct itself.
    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<u32>()
    }

    fn start(&self, at: usize) -> usize {
        if at == 0 { self.prefix as usize } else { self.ends[at - 1] as usize }
    }

    fn suffix(&self, at: usize) -> &[u8] {
        &self.bytes[self.start(at)..self.ends[at] as usize]
    }

    /// The key at index `at`.
    pub(super) fn get(&self, at: usize) -> Key<'_> {
        Key { prefix: &self.bytes[..self.prefix as usize], suffix: self.suffix(at) }
    }

    /// Where `key` is (`Ok`), or where it would have to be inserted (`Err`).
    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let prefix = &self.bytes[..self.prefix as usize];
        let head = &key[..key.len().min(prefix.len())];
        match head.cmp(prefix) {
            Ordering::Less => return Err(0),
            Ordering::Greater => return Err(self.len()),
            Ordering::Equal => {}
        }
        let rest = &key[prefix.len()..];
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            match self.suffix(middle).cmp(rest) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    /// A copy with room for one more key of `extra` bytes.
    pub(super) fn copy_with_room(&self, extra: usize) -> Self {
        let mut bytes = Vec::with_capacity(self.bytes.len() + extra);
        bytes.extend_from_slice(&self.bytes);
        let mut ends = Vec::with_capacity(self.ends.len() + 1);
        ends.extend_from_slice(&self.ends);
        Self { bytes, ends, prefix: self.prefix }
    }

    /// Inserts `key` at index `at`, which must be the one that [`Keys::search`] gave.
    pub(super) fn insert(&mut self, at: usize, key: &[u8]) {
        let shared = common(&self.bytes[..self.prefix as usize], key);
        if shared < self.prefix as usize {
            self.shorten_prefix(shared);
        }
        let suffix = &key[shared..];
        let (start, len) = (self.start(at), self.bytes.len());
        reserve_stepwise(&mut self.bytes, suffix.len(), 128);
        self.bytes.resize(len + suffix.len(), 0);
        self.bytes.copy_within(start..len, start + suffix.len());
        self.bytes[start..start + suffix.len()].copy_from_slice(suffix);
        let added = offset(suffix.len());
        for end in &mut self.ends[at..] {
            *end += added;
        }
        reserve_stepwise(&mut self.ends, 1, 8);
        self.ends.insert(at, offset(start + suffix.len()));
    }

    /// Moves what the prefix has beyond `shared` bytes into the keys.
    fn shorten_prefix(&mut self, shared: usize) {
        let moved = self.prefix as usize - shared;
        let mut bytes = Vec::with_capacity(self.bytes.len() + moved * self.len().saturating_sub(1));
        bytes.extend_from_slice(&self.bytes[..shared]);
        let mut ends = Vec::with_capacity(self.len() + 1);
        for at in 0..self.len() {
            self.get(at).append_from(shared, &mut bytes);
            ends.push(offset(bytes.len()));
        }
        *self = Self { bytes, ends, prefix: offset(shared) };
    }
}
