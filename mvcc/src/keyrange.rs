//! Key ranges: the one place that knows etcd's `range_end` rules.

use bytes::Bytes;

/// The byte that, alone in `range_end`, means "every key from the start on".
const OPEN_END: &[u8] = b"\0";

/// A set of neighbouring keys, given the way etcd requests give it: a key and a `range_end`.
///
/// - an empty `range_end` names the single key;
/// - `"\0"` names every key greater than or equal to `key`;
/// - anything else names the keys in `key..range_end`, which is nothing if `key >= range_end`.
///
/// ```
/// # use tally_mvcc::{KeyRange, RangeEnd};
/// let users = KeyRange::new("user/".into(), "user0".into())?;
/// assert!(users.contains(b"user/7") && !users.contains(b"user0"));
/// assert_eq!(KeyRange::single("a".into())?.end(), RangeEnd::Single);
/// # Ok::<(), tally_mvcc::EmptyKey>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    key: Bytes,
    range_end: Bytes,
}

/// Where a [`KeyRange`] stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeEnd<'a> {
    /// The range is its start key alone.
    Single,
    /// The range stops before this key.
    Before(&'a [u8]),
    /// The range holds every key from its start on.
    Unbounded,
}

/// A request named a key of zero bytes, which no key can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key is empty; every key has at least one byte")]
pub struct EmptyKey;

impl KeyRange {
    /// Builds a range from the two fields of a request.
    pub fn new(key: Bytes, range_end: Bytes) -> Result<KeyRange, EmptyKey> {
        if key.is_empty() { Err(EmptyKey) } else { Ok(KeyRange { key, range_end }) }
    }

    /// The range of one key.
    pub fn single(key: Bytes) -> Result<KeyRange, EmptyKey> {
        KeyRange::new(key, Bytes::new())
    }

    /// The range of every key there can be.
    pub fn all() -> KeyRange {
        KeyRange { key: Bytes::from_static(b"\0"), range_end: Bytes::from_static(OPEN_END) }
    }

    /// True if the range names exactly one key by its name (it may still be absent from the store).
    pub fn is_single(&self) -> bool {
        self.range_end.is_empty()
    }

    /// The smallest key that can be in the range.
    pub fn start(&self) -> &[u8] {
        &self.key
    }

    /// Where the range stops.
    pub fn end(&self) -> RangeEnd<'_> {
        match &*self.range_end {
            [] => RangeEnd::Single,
            OPEN_END => RangeEnd::Unbounded,
            end => RangeEnd::Before(end),
        }
    }

    /// The request field `key`, as it came.
    pub fn key(&self) -> &Bytes {
        &self.key
    }

    /// The request field `range_end`, as it came.
    pub fn range_end(&self) -> &Bytes {
        &self.range_end
    }

    /// True if no key can be in the range, because it ends at or before its start.
    pub fn is_empty(&self) -> bool {
        match self.end() {
            RangeEnd::Single | RangeEnd::Unbounded => false,
            RangeEnd::Before(end) => self.start() >= end,
        }
    }

    /// True if `key` is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self.end() {
            RangeEnd::Single => key == self.start(),
            RangeEnd::Before(end) => key >= self.start() && key < end,
            RangeEnd::Unbounded => key >= self.start(),
        }
    }

    /// The exclusive upper bound of a range of several keys; `None` is unbounded. Not for single keys.
    pub(crate) fn upper(&self) -> Option<&[u8]> {
        match self.end() {
            RangeEnd::Before(end) => Some(end),
            RangeEnd::Single | RangeEnd::Unbounded => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(key.into(), end.into()).unwrap()
    }

    #[test]
    fn the_three_forms_of_range_end() {
        assert!(range("b", "").contains(b"b") && !range("b", "").contains(b"ba"));
        assert!(range("b", "\0").contains(b"b") && range("b", "\0").contains(b"\xff\xff"));
        assert!(!range("b", "\0").contains(b"a"));
        assert!(range("b", "d").contains(b"c") && !range("b", "d").contains(b"d"));
        assert!(KeyRange::all().contains(b"\0"));
    }

    #[test]
    fn inverted_ranges_are_empty_and_empty_keys_refused() {
        assert!(range("b", "b").is_empty() && range("b", "a").is_empty() && !range("b", "").is_empty());
        assert!(!range("b", "a").contains(b"b") && !range("b", "b").contains(b"b"));
        assert_eq!(KeyRange::new(Bytes::new(), "a".into()), Err(EmptyKey));
    }
}
