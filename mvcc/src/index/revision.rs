//! `Revision`: the position of one change in the history of the store, and `Rev`: what the index knows about it.

/// Where in the history of the store one change to one key stands.
///
/// `main` counts transactions, `sub` the changes within one transaction. The order is that of (`main`, `sub`).
///
/// **Invariant**: for revisions that are not negative, the order of [`Revision::to_key`] as bytes is the order of
/// revisions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Revision {
    main: i64,
    sub: u32,
}

impl Revision {
    /// The length of [`Revision::to_key`] in bytes.
    pub const KEY_BYTES: usize = 12;

    /// The `sub`th change of transaction `main`.
    #[must_use]
    pub const fn new(main: i64, sub: u32) -> Self {
        Self { main, sub }
    }

    /// The number of the transaction: what etcd calls *the* revision.
    #[must_use]
    pub const fn main(self) -> i64 {
        self.main
    }

    /// The number of the change within its transaction, from 0.
    #[must_use]
    pub const fn sub(self) -> u32 {
        self.sub
    }

    /// The stored form: `main` (8 bytes), then `sub` (4 bytes), both big-endian.
    #[must_use]
    pub fn to_key(self) -> [u8; Self::KEY_BYTES] {
        let mut key = [0; Self::KEY_BYTES];
        key[..8].copy_from_slice(&self.main.to_be_bytes());
        key[8..].copy_from_slice(&self.sub.to_be_bytes());
        key
    }

    /// Reads what [`Revision::to_key`] wrote; `None` if `key` has another length.
    #[must_use]
    pub fn from_key(key: &[u8]) -> Option<Self> {
        let (main, sub) = key.split_first_chunk::<8>()?;
        Some(Self { main: i64::from_be_bytes(*main), sub: u32::from_be_bytes(sub.try_into().ok()?) })
    }
}

/// One revision of one key, as the index keeps it: everything but the value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rev {
    /// Where it stands in the history of the store.
    pub(crate) at: Revision,
    /// The create revision of the generation it belongs to; 0 for a tombstone.
    pub(crate) create: i64,
    /// The number of puts since the key was created; 0 for a tombstone.
    pub(crate) version: i64,
    /// Its share of the state root.
    pub(crate) print: u128,
}

impl Rev {
    /// Whether this revision deleted the key.
    pub(crate) const fn is_tombstone(&self) -> bool {
        self.version == 0
    }
}
