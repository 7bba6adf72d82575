//! Format 1, for ever: what is written equals the golden files byte for byte, and the golden files are read.
//!
//! The files are the used part of each segment of one scripted log. If this fails, the format has changed: give it a new
//! number and new golden files, and keep reading these.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::{DIR, at, dir, entry, index, small};
use tally_wal::dump::{RecordView, ScanOptions, scan_on};
use tally_wal::memfs::MemFs;
use tally_wal::{Config, Fs, State, Ticket, Wal};

const GOLDEN: [(&str, &[u8]); 2] = [
    ("0000000000000001-0000000000000000.wal", include_bytes!("golden/format-1-segment-1.bin")),
    ("0000000000000002-000000000000000b.wal", include_bytes!("golden/format-1-segment-2.bin")),
];

fn config() -> Config {
    Config { group_bytes_max: 1 << 20, recycled_segments: 0, ..small() }
}

/// Every record type, groups of one record and of several, an empty payload, a truncation to nothing, two segments.
fn write(fs: &MemFs) {
    let (mut wal, _) = Wal::open(Arc::new(fs.clone()), dir(), config()).unwrap();
    let sync = |wal: &Wal, ticket: Ticket| wal.wait(ticket).unwrap();
    let ticket = wal.append(&[entry(3, 1, 5), entry(4, 1, 0)]).unwrap();
    sync(&wal, ticket);
    let ticket = wal.truncate_after(None).unwrap();
    sync(&wal, ticket);
    wal.append(&[entry(7, 2, 17), entry(8, 2, 24), entry(9, 3, 1)]).unwrap();
    wal.save_state(State { vote: Bytes::from_static(b"vote"), committed: Some(at(7, 2)) }).unwrap();
    let ticket = wal.truncate_after(Some(index(8))).unwrap();
    sync(&wal, ticket);
    wal.purge_upto(at(7, 2)).unwrap();
    wal.append(&[entry(9, 4, 100), entry(10, 4, 7)]).unwrap();
    let ticket = wal.append(&[entry(11, 4, 300)]).unwrap();
    sync(&wal, ticket);
    wal.close().unwrap();
}

/// The records, without what was never used behind them.
fn used(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &bytes[..end.next_multiple_of(8)]
}

#[test]
fn what_is_written_equals_the_golden_files() {
    let fs = MemFs::new(1);
    write(&fs);
    let mut names = fs.list(dir()).unwrap();
    names.retain(|name| name.ends_with(".wal"));
    assert_eq!(names, GOLDEN.map(|(name, _)| name));
    for (name, golden) in GOLDEN {
        assert!(used(&fs.contents(&dir().join(name)).unwrap()) == golden, "{name} has changed");
    }
}

#[test]
fn the_golden_files_are_read() {
    let fs = MemFs::new(2);
    for (name, golden) in GOLDEN {
        let mut file = golden.to_vec();
        file.resize(1024, 0);
        fs.set_contents(&dir().join(name), &file);
    }
    let records = scan_on(Arc::new(fs.clone()), dir(), ScanOptions::default()).unwrap();
    let records = records.collect::<Result<Vec<_>, _>>().unwrap();
    let truncations = records.iter().filter(|record| matches!(record.view, RecordView::Truncate { .. })).count();
    assert_eq!((records.len(), truncations), (21, 2));
    let (wal, recovered) = Wal::open(Arc::new(fs), dir(), Config { metadata: None, ..config() }).unwrap();
    assert_eq!(recovered.metadata, common::identity());
    assert_eq!(recovered.state, State { vote: Bytes::from_static(b"vote"), committed: Some(at(7, 2)) });
    assert_eq!((recovered.purged, recovered.last), (Some(at(7, 2)), Some(at(11, 4))));
    let entries = wal.reader().read(index(8)..index(99), usize::MAX).unwrap();
    assert_eq!(entries, [entry(8, 2, 24), entry(9, 4, 100), entry(10, 4, 7), entry(11, 4, 300)]);
}

#[test]
#[ignore = "writes the golden files of a new format; never run it to make a failing test pass"]
#[allow(clippy::disallowed_methods)]
fn write_golden_files() {
    let fs = MemFs::new(1);
    write(&fs);
    let target = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut names = fs.list(dir()).unwrap();
    names.retain(|name| name.ends_with(".wal"));
    for (number, name) in names.iter().enumerate() {
        let bytes = fs.contents(&std::path::Path::new(DIR).join(name)).unwrap();
        println!("{name}");
        std::fs::write(target.join(format!("format-1-segment-{}.bin", number + 1)), used(&bytes)).unwrap();
    }
}
