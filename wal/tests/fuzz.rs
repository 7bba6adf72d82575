//! Bounded fuzzing of the decoder: arbitrary and mutated bytes are decoded without panic, and only true records come out.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::dir;
use proptest::prelude::*;
use tally_wal::dump::{RecordView, parse_segment, verify_on};
use tally_wal::memfs::MemFs;
use tally_wal::{Config, Wal};

const SEED: &[u8] = include_bytes!("golden/format-1-segment-2.bin");

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let parsed = parse_segment(&bytes, |_, _| panic!("random bytes are no record"));
        prop_assert_eq!(parsed.records, 0);
    }

    #[test]
    fn mutated_segments(
        flips in prop::collection::vec((0..SEED.len(), 1..=255_u8), 1..6),
        cut in 0..=SEED.len(),
        copy in prop::option::of((0..SEED.len(), 0..SEED.len(), 0..256_usize)),
    ) {
        let mut originals = Vec::new();
        parse_segment(SEED, |offset, view| originals.push((offset, view.clone())));
        let mut bytes = SEED.to_vec();
        if let Some((from, to, size)) = copy {
            let size = size.min(SEED.len() - from).min(SEED.len() - to);
            bytes.copy_within(from..from + size, to);
        }
        for (at, flip) in flips {
            bytes[at] ^= flip;
        }
        bytes.truncate(cut);
        let mut found: Vec<(u64, RecordView)> = Vec::new();
        parse_segment(&bytes, |offset, view| found.push((offset, view.clone())));
        // Whatever was done, what comes out is a prefix of what was written.
        prop_assert_eq!(&found[..], &originals[..found.len()]);
    }

    #[test]
    fn opening_a_mutated_log_never_panics(at in 0..SEED.len(), flip in 1..=255_u8, name in 0..3_usize) {
        let names = ["0000000000000002-000000000000000b", "0000000000000001-0000000000000000", "ffffffffffffffff-0000000000000000"];
        let mut bytes = SEED.to_vec();
        bytes[at] ^= flip;
        bytes.resize(1024, 0);
        let fs = MemFs::new(0);
        fs.set_contents(&dir().join(format!("{}.wal", names[name])), &bytes);
        let report = verify_on(Arc::new(fs.clone()), dir()).unwrap();
        let opened = Wal::open(Arc::new(fs), dir(), Config { segment_bytes: 1024, ..Config::default() });
        prop_assert_eq!(report.is_sound(), opened.is_ok(), "{}", report);
    }
}
