//! The table against a model: commands and writes in any order, reopened at any moment; and the bytes of its records.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use tally_backend::{Applied, Backend, Bucket, Config, Identity};
use tally_lease::{Lease, Leases, OpenError, Rejection, TTL_MAX_S};

#[derive(Clone, Debug)]
enum Step {
    Grant(i64, i64),
    Revoke(i64),
    Checkpoint(i64, i64),
    Set(u8, i64),
    Reopen,
}

#[derive(Default)]
struct Model {
    leases: BTreeMap<i64, Lease>,
    attached: BTreeMap<Bytes, i64>,
}

fn step() -> impl Strategy<Value = Step> {
    let id = || -2i64..4;
    prop_oneof![
        4 => (id(), prop_oneof![-1i64..9, Just(TTL_MAX_S), Just(TTL_MAX_S + 1)]).prop_map(|(id, ttl)| Step::Grant(id, ttl)),
        2 => id().prop_map(Step::Revoke),
        3 => (id(), -1i64..12).prop_map(|(id, seconds)| Step::Checkpoint(id, seconds)),
        8 => (0u8..10, id()).prop_map(|(key, id)| Step::Set(key, id)),
        1 => Just(Step::Reopen),
    ]
}

fn open(dir: &std::path::Path) -> Backend {
    Backend::open(Config::new(dir, Identity::default())).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn agrees_with_a_model(steps in prop::collection::vec(step(), 1..120)) {
        let dir = tempfile::tempdir().unwrap();
        let backend = open(dir.path());
        let mut leases = Leases::load(&backend.read()).unwrap();
        let (mut model, mut views) = (Model::default(), Vec::new());
        for (index, step) in (1..).zip(steps) {
            let mut batch = backend.batch();
            match step {
                Step::Grant(id, ttl) => {
                    let refused = match () {
                        () if id == 0 => Some(Rejection::NotFound(0)),
                        () if ttl > TTL_MAX_S => Some(Rejection::TtlTooLarge { asked_s: ttl }),
                        () if model.leases.contains_key(&id) => Some(Rejection::Exists(id)),
                        () => None,
                    };
                    prop_assert_eq!(leases.check_grant(id, ttl).err(), refused);
                    if refused.is_none() {
                        model.leases.insert(id, leases.grant(id, ttl, &mut batch));
                        prop_assert_eq!(leases.get(id), Some(Lease { granted_s: ttl.max(1), remaining_s: 0 }));
                    }
                }
                Step::Revoke(id) => {
                    let known = model.leases.remove(&id).is_some();
                    prop_assert_eq!(leases.check_revoke(id), if known { Ok(()) } else { Err(Rejection::NotFound(id)) });
                    let keys: Vec<Bytes> =
                        model.attached.iter().filter(|(_, lease)| **lease == id).map(|(key, _)| key.clone()).collect();
                    prop_assert_eq!(leases.keys(id), keys, "ascending");
                    model.attached.retain(|_, lease| *lease != id);
                    leases.revoke(id, &mut batch);
                }
                Step::Checkpoint(id, seconds) => {
                    let before = model.leases.get(&id).copied();
                    if let Some(lease) = model.leases.get_mut(&id) {
                        lease.remaining_s = seconds.clamp(0, lease.granted_s);
                    }
                    let changed = before != model.leases.get(&id).copied();
                    prop_assert_eq!(leases.checkpoint(id, seconds, &mut batch), changed);
                }
                Step::Set(key, id) => {
                    let key = Bytes::from(vec![b'k', key]);
                    if id == 0 {
                        model.attached.remove(&key);
                        leases.set(&key, 0);
                    } else if leases.contains(id) {
                        model.attached.insert(key.clone(), id);
                        leases.set(&key, id);
                    }
                }
                Step::Reopen => {
                    let (sum, view) = (leases.sum(), leases.view());
                    leases = Leases::load(&backend.read()).unwrap();
                    model.attached.iter().for_each(|(key, id)| leases.restore(key, *id).unwrap());
                    prop_assert_eq!(leases.sum(), sum);
                    views.push((view, model.leases.clone(), model.attached.clone()));
                }
            }
            batch.commit(&Applied { index, term: 1, ..Applied::default() }).unwrap();
            views.push((leases.view(), model.leases.clone(), model.attached.clone()));
        }
        // Views taken on the way still show their moment.
        for (view, leases, attached) in views {
            prop_assert_eq!((view.len(), view.is_empty()), (leases.len(), leases.is_empty()));
            prop_assert_eq!(view.iter().collect::<BTreeMap<_, _>>(), leases);
            for id in -2..4 {
                let keys = attached.iter().filter(|(_, lease)| **lease == id).map(|(key, _)| key.clone());
                prop_assert_eq!(view.keys(id).collect::<Vec<_>>(), keys.collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn equal_tables_have_equal_sums_whatever_led_there() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let mut batch = backend.batch();
    let (mut one, mut other) = (Leases::default(), Leases::default());
    one.grant(1, 10, &mut batch);
    one.grant(2, 20, &mut batch);
    one.checkpoint(2, 5, &mut batch);
    one.revoke(1, &mut batch);
    other.grant(2, 20, &mut batch);
    assert_ne!(one.sum(), other.sum(), "the remainder counts");
    other.checkpoint(2, 5, &mut batch);
    assert_eq!(one.sum(), other.sum());
    assert_ne!(other.sum(), 0);
    other.revoke(2, &mut batch);
    assert_eq!(other.sum(), 0);
}

#[test]
fn tables_whose_leases_have_changed_places_have_other_sums() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let mut batch = backend.batch();
    let [one, other] = [(10, 20), (20, 10)].map(|(first, second)| {
        let mut leases = Leases::default();
        leases.grant(1, first, &mut batch);
        leases.grant(2, second, &mut batch);
        leases.sum()
    });
    assert_ne!(one, other);
}

#[test]
fn times_to_live_are_counted_up_to_powers_of_two() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let mut batch = backend.batch();
    let mut leases = Leases::default();
    for (id, ttl_s) in (1..).zip([1, 2, 3, 4, 1 << 23, (1 << 23) + 1, TTL_MAX_S]) {
        leases.grant(id, ttl_s, &mut batch);
    }
    let mut expected = [0; 25];
    for (bucket, count) in [(0, 1), (1, 1), (2, 2), (23, 1), (24, 2)] {
        expected[bucket] = count;
    }
    assert_eq!(leases.metrics().ttl_buckets(), expected);
    assert_eq!(leases.metrics().granted_total(), 7);
}

/// The bytes must never change: stores written by every version stay readable, and replicas of two versions agree.
#[test]
fn golden_records_of_version_1() {
    let leases = [
        Lease { granted_s: 1, remaining_s: 0 },
        Lease { granted_s: 0x0102_0304, remaining_s: 0x0102 },
        Lease { granted_s: TTL_MAX_S, remaining_s: TTL_MAX_S },
    ];
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let golden = include_str!("golden/leases-1.hex");
    assert_eq!(leases.map(|lease| hex(&lease.encode())).join("\n") + "\n", golden);
    assert_eq!(leases.map(|lease| Lease::decode(&lease.encode())), leases.map(Some));
}

#[test]
fn other_bytes_are_no_record() {
    let good = Lease { granted_s: 9, remaining_s: 3 }.encode();
    for (at, byte) in [(0, 2), (1, 0xff), (8, 0), (16, 10), (9, 0x80)] {
        let mut bad = good;
        bad[at] = byte;
        assert_eq!(Lease::decode(&bad), None, "byte {at}");
    }
    assert_eq!(Lease::decode(&good[..16]), None);
    assert_eq!(Lease::decode(&[&good[..], &[0]].concat()), None);
}

#[test]
fn damaged_records_and_dangling_attachments_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let mut leases = Leases::default();
    assert!(matches!(leases.restore(b"k", 7), Err(OpenError::Dangling { lease: 7, .. })));
    for (key, value) in [
        (&7i64.to_be_bytes()[..], &b"x"[..]),
        (b"short", &Lease::granted(1).encode()),
        (&[0; 8], &Lease::granted(1).encode()),
    ] {
        let mut batch = backend.batch();
        batch.put(Bucket::Lease, key, value);
        batch.commit_housekeeping().unwrap();
        assert!(matches!(Leases::load(&backend.read()), Err(OpenError::Corrupt { key: found }) if found == key));
        let mut batch = backend.batch();
        batch.delete(Bucket::Lease, key);
        batch.commit_housekeeping().unwrap();
    }
}
