//! Helpers of the integration tests.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tally_backend::{Applied, Backend, Bucket, Config, Identity};

pub(crate) const IDENTITY: Identity = Identity { cluster_id: 0xc1, member_id: 0x3e, directory_uuid: [9; 16] };

/// A position with everything derived from the index.
pub(crate) fn at(index: u64) -> Applied {
    let membership = Bytes::from(format!("membership of {}", index / 10));
    Applied { index, term: 1 + index / 100, root: u128::from(index) << 64 | 5, membership }
}

/// A configuration with so little memory that flushes happen by themselves.
pub(crate) fn small(path: &Path) -> Config {
    let mut config = Config::new(path, IDENTITY);
    config.memtable_bytes = 1 << 20;
    config.block_cache_bytes = 1 << 20;
    config
}

pub(crate) fn open(path: &Path) -> Backend {
    Backend::open(small(path)).unwrap()
}

/// The key that mvcc uses: a revision.
pub(crate) fn revision(main: u64) -> Vec<u8> {
    let mut key = main.to_be_bytes().to_vec();
    key.extend_from_slice(&0u32.to_be_bytes());
    key
}

/// A value that depends on its index and does not compress to nothing.
pub(crate) fn value(index: u64, bytes: usize) -> Vec<u8> {
    let mut state = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// One commit whose effects in three buckets name its index.
pub(crate) fn commit(backend: &Backend, index: u64, value_bytes: usize) {
    let mut batch = backend.batch();
    batch.put(Bucket::Kv, &revision(index), &value(index, value_bytes));
    batch.put(Bucket::Meta, b"last", &index.to_be_bytes());
    batch.put(Bucket::Member, b"last", &index.to_be_bytes());
    batch.commit(&at(index)).unwrap();
}

/// Checks that the state is exactly that of the commits up to its position, and returns that index.
pub(crate) fn check(backend: &Backend, value_bytes: usize) -> u64 {
    let view = backend.read();
    let applied = view.applied().unwrap();
    let index = applied.index;
    let last =
        |bucket| view.get(bucket, b"last").unwrap().map(|value| u64::from_be_bytes(value[..].try_into().unwrap()));
    if index == 0 {
        assert_eq!((last(Bucket::Meta), last(Bucket::Member)), (None, None));
    } else {
        assert_eq!(applied, at(index));
        assert_eq!((last(Bucket::Meta), last(Bucket::Member)), (Some(index), Some(index)));
    }
    let mut expected = 1;
    for record in view.scan(Bucket::Kv, &[], None) {
        let (key, found) = record.unwrap();
        assert_eq!(key, revision(expected));
        assert_eq!(found, value(expected, value_bytes));
        expected += 1;
    }
    assert_eq!(expected, index + 1, "effects and position are apart");
    index
}

/// Everything in all buckets.
pub(crate) fn dump(backend: &Backend) -> BTreeMap<(Bucket, Bytes), Bytes> {
    let view = backend.read();
    let records = Bucket::ALL.into_iter().flat_map(|bucket| {
        view.scan(bucket, &[], None).map(move |record| record.map(|(key, value)| ((bucket, key), value)))
    });
    records.collect::<Result<_, _>>().unwrap()
}

/// Copies a directory as a crash at this moment would leave it (the lock file is not state).
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else if entry.file_name() != "LOCK" {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// The names of generations in a directory.
pub(crate) fn generations(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("db-"))
        .collect();
    found.sort();
    found
}

/// An error with everything it was caused by.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
