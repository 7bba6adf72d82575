//! Random operations, compared with ordered maps.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::*;
use proptest::prelude::*;
use tally_backend::Bucket;

#[derive(Clone, Debug)]
enum Write {
    Put(Bucket, Vec<u8>, Vec<u8>),
    Delete(Bucket, Vec<u8>),
    DeleteRange(Bucket, Vec<u8>, Vec<u8>),
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Write>),
    Housekeeping(Vec<Write>),
    Abandon(Vec<Write>),
    Sync,
    Reopen,
    ExportAndReplace,
    Scan(Bucket, Vec<u8>, Option<Vec<u8>>),
    GetMany(Bucket, Vec<Vec<u8>>),
}

fn bucket() -> impl Strategy<Value = Bucket> {
    proptest::sample::select(&Bucket::ALL[..])
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => proptest::collection::vec(0u8..4, 0..3),
        1 => Just(vec![0xff; 3]),
        1 => proptest::collection::vec(any::<u8>(), 0..20),
    ]
}

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        4 => (bucket(), key(), proptest::collection::vec(any::<u8>(), 0..50)).prop_map(|(b, k, v)| Write::Put(b, k, v)),
        2 => (bucket(), key()).prop_map(|(b, k)| Write::Delete(b, k)),
        1 => (bucket(), key(), key()).prop_map(|(b, s, e)| Write::DeleteRange(b, s, e)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let writes = || proptest::collection::vec(write(), 0..8);
    prop_oneof![
        8 => writes().prop_map(Step::Commit),
        2 => writes().prop_map(Step::Housekeeping),
        1 => writes().prop_map(Step::Abandon),
        1 => Just(Step::Sync),
        1 => Just(Step::Reopen),
        1 => Just(Step::ExportAndReplace),
        4 => (bucket(), key(), proptest::option::of(key())).prop_map(|(b, s, e)| Step::Scan(b, s, e)),
        2 => (bucket(), proptest::collection::vec(key(), 0..6)).prop_map(|(b, k)| Step::GetMany(b, k)),
    ]
}

type Model = BTreeMap<(Bucket, Bytes), Bytes>;

fn apply(model: &mut Model, write: &Write) {
    match write {
        Write::Put(bucket, key, value) => {
            model.insert((*bucket, key.clone().into()), value.clone().into());
        }
        Write::Delete(bucket, key) => {
            model.remove(&(*bucket, key.clone().into()));
        }
        Write::DeleteRange(bucket, start, end) => {
            model.retain(|(b, key), _| b != bucket || key < start || key >= end);
        }
    }
}

fn stage(batch: &mut tally_backend::WriteBatch, write: &Write) {
    match write {
        Write::Put(bucket, key, value) => batch.put(*bucket, key, value),
        Write::Delete(bucket, key) => batch.delete(*bucket, key),
        Write::DeleteRange(bucket, start, end) => batch.delete_range(*bucket, start, end),
    }
}

fn run(steps: &[Step]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let mut backend = open(&path);
    let (mut model, mut index) = (Model::new(), 0);
    for step in steps {
        match step {
            Step::Commit(writes) | Step::Housekeeping(writes) | Step::Abandon(writes) => {
                let mut batch = backend.batch();
                writes.iter().for_each(|write| stage(&mut batch, write));
                match step {
                    Step::Commit(_) => {
                        index += 1;
                        batch.commit(&at(index)).unwrap();
                    }
                    Step::Housekeeping(_) => batch.commit_housekeeping().unwrap(),
                    _ => continue,
                }
                writes.iter().for_each(|write| apply(&mut model, write));
            }
            Step::Sync => assert_eq!(backend.sync().unwrap().index, index),
            Step::Reopen => {
                backend.close().unwrap();
                backend = open(&path);
            }
            Step::ExportAndReplace => {
                let export = backend.export(&dir.path().join("exports")).unwrap();
                backend = backend.stage_received(&export).unwrap().switch().unwrap();
                export.remove().unwrap();
            }
            Step::Scan(bucket, start, end) => {
                let found: Vec<(Bytes, Bytes)> =
                    backend.read().scan(*bucket, start, end.as_deref()).map(Result::unwrap).collect();
                let inside = |key: &Bytes| key >= start && end.as_ref().is_none_or(|end| key < end);
                let expected: Vec<(Bytes, Bytes)> = model
                    .iter()
                    .filter(|((b, key), _)| b == bucket && inside(key))
                    .map(|((_, key), value)| (key.clone(), value.clone()))
                    .collect();
                assert_eq!(found, expected);
            }
            Step::GetMany(bucket, keys) => {
                let found = backend.get_many(*bucket, keys).unwrap();
                let expected = keys.iter().map(|key| model.get(&(*bucket, key.clone().into())).cloned());
                assert_eq!(found, expected.collect::<Vec<_>>());
            }
        }
    }
    assert_eq!(dump(&backend), model);
    assert_eq!(backend.applied().index, index);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_ordered_maps_do(steps in proptest::collection::vec(step(), 1..40)) {
        run(&steps);
    }
}
