//! Random operations, checked against a plain vector, with clean closes, kills and power cuts between them.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{Ack, Driver, Model, Op, dir, index, small};
use proptest::prelude::*;
use tally_wal::memfs::MemFs;
use tally_wal::{Config, ReadError, Wal};

#[derive(Clone, Debug)]
enum Step {
    Do(Op, Ack),
    Read { from: usize, count: u64, bytes_max: usize },
    Close,
    Kill,
    PowerCut,
}

fn step() -> impl Strategy<Value = Step> {
    let ack = prop_oneof![Just(Ack::Wait), Just(Ack::Callback), Just(Ack::None)];
    let op = prop_oneof![
        8 => (1..6_usize, 0..400_usize, any::<bool>()).prop_map(|(count, size, new_term)| Op::Append { count, size, new_term }),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(vote, committed)| Op::State { vote, committed }),
        2 => (0..8_usize).prop_map(|drop| Op::Truncate { drop }),
        2 => (0..12_usize).prop_map(|keep| Op::Purge { keep }),
        1 => (0..5_u64).prop_map(|by| Op::Skip { by }),
    ];
    prop_oneof![
        12 => (op, ack).prop_map(|(op, ack)| Step::Do(op, ack)),
        4 => (0..40_usize, 0..20_u64, 0..2000_usize).prop_map(|(from, count, bytes_max)| Step::Read { from, count, bytes_max }),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
        1 => Just(Step::PowerCut),
    ]
}

fn check_read(wal: &Wal, model: &Model, from: usize, count: u64, bytes_max: usize) {
    let reader = wal.reader();
    let Some(first) = model.entries.get(from).or(model.entries.first()) else {
        let (start, end) = (index(model.next()), index(model.next() + count));
        assert_eq!(reader.read(start..end, bytes_max).unwrap(), []);
        return;
    };
    let start = first.index.get();
    let found = reader.read(index(start)..index(start + count), bytes_max).unwrap();
    let skip = usize::try_from(start - model.entries[0].index.get()).unwrap();
    let expected = model.entries[skip..].iter().take(usize::try_from(count).unwrap()).cloned().collect::<Vec<_>>();
    assert_eq!(found[..], expected[..found.len()]);
    assert_eq!(found.is_empty(), expected.is_empty());
    let bytes = found.iter().map(|entry| entry.payload.len()).sum::<usize>();
    assert!(found.len() <= 1 || bytes <= bytes_max);
    let all = reader.read(index(start)..index(start + count), usize::MAX).unwrap();
    assert_eq!(all, expected);
    if let Some(purged) = model.purged {
        let below = reader.read(purged.index..index(start + 1), bytes_max);
        assert!(matches!(below, Err(ReadError::BelowFirst { first, .. }) if first == model.entries[0].index));
        assert_eq!(reader.term_of(purged.index), Some(purged.term));
    }
}

fn check(steps: &[Step], seed: u64, config: &Config) {
    let mut fs = MemFs::new(seed);
    let mut driver = Driver::from(Model::default());
    let open = |fs: &MemFs| Wal::open(Arc::new(fs.clone()), dir(), config.clone()).unwrap();
    let (mut wal, _) = open(&fs);
    for step in steps {
        match step {
            Step::Do(op, ack) => {
                let ticket = driver.apply(&mut wal, op).unwrap();
                assert!(driver.acknowledge(&wal, ticket, *ack));
                assert!(wal.durable().index().is_none_or(|durable| durable.get() < driver.now().next()));
                continue;
            }
            Step::Read { from, count, bytes_max } => {
                check_read(&wal, driver.now(), *from, *count, *bytes_max);
                continue;
            }
            Step::Close => {
                wal.close().unwrap();
                let last = driver.history.len() - 1;
                driver.acknowledged.store(last, std::sync::atomic::Ordering::SeqCst);
                fs = fs.reopen();
            }
            Step::Kill => {
                drop(wal);
                fs = fs.restart();
            }
            Step::PowerCut => {
                fs.crash();
                drop(wal);
                fs = fs.reopen();
            }
        }
        driver.check_callbacks();
        let (opened, recovered) = open(&fs);
        wal = opened;
        let found = Model::of(&wal, &recovered);
        driver.check_recovered(&found);
        assert_eq!(wal.durable().index().map_or(1, |last| last.get() + 1), found.next());
        driver = Driver::from(found);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_log_agrees_with_a_vector(steps in prop::collection::vec(step(), 1..60), seed in any::<u64>()) {
        check(&steps, seed, &small());
    }

    #[test]
    fn also_with_everything_read_from_disk(steps in prop::collection::vec(step(), 1..40), seed in any::<u64>()) {
        check(&steps, seed, &Config { tail_bytes_max: 0, group_bytes_max: 1, recycled_segments: 0, ..small() });
    }
}
