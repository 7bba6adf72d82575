//! Damage to what was acknowledged is refused and named; an unfinished write is cut and reported; nothing else happens.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Model, at, dir, entry, identity, small};
use tally_wal::dump::{ScanOptions, scan_on, verify_on};
use tally_wal::memfs::{Fault, MemFs};
use tally_wal::{Config, Damage, Fs, Metadata, OpenError, State, Wal};

/// A few segments, the first of them recycled ones, ending in a group of three entries.
fn log(seed: u64) -> (MemFs, Wal, Model) {
    let fs = MemFs::new(seed);
    let (mut wal, _) = Wal::open(Arc::new(fs.clone()), dir(), small()).unwrap();
    for i in 1..=40 {
        let ticket = wal.append(&[entry(i, 1, 80)]).unwrap();
        wal.wait(ticket).unwrap();
        if i == 20 {
            let ticket = wal.purge_upto(at(15, 1)).unwrap();
            wal.wait(ticket).unwrap();
        }
    }
    wal.save_state(State { vote: "v".into(), committed: Some(at(40, 1)) }).unwrap();
    let ticket = wal.append(&[entry(41, 2, 30), entry(42, 2, 30), entry(43, 2, 30)]).unwrap();
    wal.wait(ticket).unwrap();
    let entries = (16..=40).map(|i| entry(i, 1, 80)).chain((41..=43).map(|i| entry(i, 2, 30))).collect();
    let state = State { vote: "v".into(), committed: Some(at(40, 1)) };
    (fs, wal, Model { entries, purged: Some(at(15, 1)), state })
}

fn segments(fs: &MemFs) -> Vec<PathBuf> {
    let mut names = fs.list(dir()).unwrap();
    names.retain(|name| name.ends_with(".wal"));
    names.sort();
    names.iter().map(|name| dir().join(name)).collect()
}

/// The same files on a disk of their own. What is renamed or removed meanwhile is left out.
fn copy(fs: &MemFs) -> MemFs {
    let copy = MemFs::new(1);
    for name in fs.list(dir()).unwrap() {
        if let Some(bytes) = fs.contents(&dir().join(&name)) {
            copy.set_contents(&dir().join(&name), &bytes);
        }
    }
    copy
}

fn open(fs: &MemFs) -> Result<Model, OpenError> {
    let (wal, recovered) = Wal::open(Arc::new(fs.clone()), dir(), Config { metadata: None, ..small() })?;
    Ok(Model::of(&wal, &recovered))
}

/// Where the records of a segment end.
fn used(fs: &MemFs, file: &Path) -> usize {
    let bytes = fs.contents(file).unwrap();
    let parsed = tally_wal::dump::parse_segment(&bytes, |_, _| {});
    usize::try_from(parsed.end).unwrap()
}

#[test]
fn after_a_clean_close_no_flipped_bit_goes_unnoticed_or_loses_anything() {
    let (fs, wal, expected) = log(1);
    wal.close().unwrap();
    let files = segments(&fs);
    assert!(files.len() >= 3);
    let mut refused = 0;
    for file in &files {
        let original = fs.contents(file).unwrap();
        for at in 0..used(&fs, file) {
            let copy = copy(&fs);
            let mut damaged = original.clone();
            damaged[at] ^= 1 << (at % 8);
            copy.set_contents(file, &damaged);
            match open(&copy) {
                Err(OpenError::Damaged { file: named, offset, .. }) => {
                    assert_eq!(&named, file);
                    assert!(offset <= at as u64, "byte {at}: named {offset}");
                    assert!(at as u64 - offset < 200, "byte {at}: named {offset}");
                    assert_eq!(copy.contents(file).unwrap(), damaged, "a refused log was changed");
                    refused += 1;
                }
                // Padding, or the record that closing put behind everything.
                Ok(found) => assert_eq!(found, expected, "byte {at} of {file:?}"),
                Err(other) => panic!("byte {at} of {file:?}: {other}"),
            }
        }
    }
    assert!(refused > 2500, "{refused}");
}

#[test]
fn after_a_crash_only_the_last_group_can_be_taken_for_unfinished() {
    let (fs, wal, expected) = log(2);
    drop(wal);
    let file = segments(&fs).pop().unwrap();
    let original = fs.contents(&file).unwrap();
    let end = used(&fs, &file);
    let (mut refused, mut cut) = (0, 0);
    for at in 0..end {
        let copy = copy(&fs);
        let mut damaged = original.clone();
        damaged[at] ^= 0x40;
        copy.set_contents(&file, &damaged);
        match open(&copy) {
            Ok(found) if found == expected => {}
            Ok(found) => {
                let lost = expected.entries.len() - found.entries.len();
                assert!(lost <= 3, "byte {at}: {lost} entries lost");
                assert_eq!(found.entries[..], expected.entries[..found.entries.len()]);
                cut += 1;
            }
            Err(OpenError::Damaged { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 100 && cut > 100, "{refused} {cut}");
}

#[test]
fn a_torn_tail_is_cut_reported_and_does_not_come_back() {
    let (fs, wal, expected) = log(3);
    drop(wal);
    let file = segments(&fs).pop().unwrap();
    let mut bytes = fs.contents(&file).unwrap();
    // The middle one of the last three entries.
    let middle = bytes.windows(16).rposition(|w| w[..8] == 42_u64.to_le_bytes() && w[8..] == 2_u64.to_le_bytes());
    bytes[middle.unwrap() + 20] ^= 1;
    fs.set_contents(&file, &bytes);
    let fs = fs.restart();

    let report = verify_on(Arc::new(fs.clone()), dir()).unwrap();
    assert!(report.is_sound() && report.torn.is_some(), "{report}");
    assert_eq!(fs.contents(&file).unwrap(), bytes, "verifying changes nothing");

    let (mut wal, recovered) = Wal::open(Arc::new(fs.clone()), dir(), small()).unwrap();
    let torn = recovered.torn.clone().unwrap();
    assert_eq!(torn.file, file.file_name().unwrap().to_str().unwrap());
    assert_eq!(torn.offset + 24, middle.unwrap() as u64);
    assert_eq!(recovered.last, Some(at(41, 2)));
    // The same entry again: the old one behind it would chain to it.
    let ticket = wal.append(&[entry(42, 2, 30)]).unwrap();
    wal.wait(ticket).unwrap();
    drop(wal);
    let found = open(&fs.restart()).unwrap();
    assert_eq!(found.entries[..], expected.entries[..expected.entries.len() - 1]);
}

/// Of the last group a record without its data, and one without its header: the end of the second is not known from any header.
#[test]
fn of_a_torn_tail_nothing_is_left() {
    let (fs, config) = (MemFs::new(7), small());
    let (mut wal, _) = Wal::open(Arc::new(fs.clone()), dir(), config.clone()).unwrap();
    let ticket = wal.append(&[entry(1, 1, 100), entry(2, 1, 100)]).unwrap();
    wal.wait(ticket).unwrap();
    drop(wal);
    let file = segments(&fs).remove(0);
    let mut bytes = fs.contents(&file).unwrap();
    let record = |index: u64| {
        let (index, term) = (index.to_le_bytes(), 1_u64.to_le_bytes());
        bytes.windows(16).rposition(|found| found[..8] == index && found[8..] == term).unwrap() - 24
    };
    let (first, second) = (record(1), record(2));
    bytes[first + 60] ^= 1;
    bytes[second..second + 24].fill(0);
    fs.set_contents(&file, &bytes);

    let fs = fs.restart();
    let (wal, recovered) = Wal::open(Arc::new(fs.clone()), dir(), config.clone()).unwrap();
    assert_eq!(recovered.torn.unwrap().offset, first as u64);
    wal.close().unwrap();
    let (_, recovered) = Wal::open(Arc::new(fs.restart()), dir(), config).unwrap();
    assert_eq!((recovered.last, recovered.torn), (None, None), "the log was closed");
}

#[test]
fn records_behind_a_cut_do_not_come_back() {
    // Opening puts the recovered state behind what it keeps. If the unfinished write began with that same state, all that
    // came after it would chain to it again.
    let (fs, config) = (MemFs::new(8), small());
    let (mut log, _) = Wal::open(Arc::new(fs.clone()), dir(), config.clone()).unwrap();
    let state = State { vote: "same".into(), committed: None };
    let ticket = log.save_state(state.clone()).unwrap();
    log.wait(ticket).unwrap();
    log.save_state(state.clone()).unwrap();
    let ticket = log.append(&[entry(1, 1, 20)]).unwrap();
    log.wait(ticket).unwrap();
    drop(log);
    let file = segments(&fs).remove(0);
    let mut bytes = fs.contents(&file).unwrap();
    let second = bytes.windows(4).rposition(|window| window == b"same").unwrap();
    bytes[second] ^= 1;
    fs.set_contents(&file, &bytes);

    let fs = fs.restart();
    let (log, recovered) = Wal::open(Arc::new(fs.clone()), dir(), config.clone()).unwrap();
    assert!(recovered.torn.is_some());
    assert_eq!((recovered.state, recovered.last), (state, None));
    drop(log);
    let (_, recovered) = Wal::open(Arc::new(fs.restart()), dir(), config).unwrap();
    assert_eq!((recovered.last, recovered.torn), (None, None));
}

#[test]
fn a_segment_without_a_head_is_removed_with_all_that_is_in_it() {
    let (fs, config) = (MemFs::new(9), small());
    let (mut wal, _) = Wal::open(Arc::new(fs.clone()), dir(), config.clone()).unwrap();
    let state = State { vote: "same".into(), committed: None };
    let ticket = wal.save_state(state.clone()).unwrap();
    wal.wait(ticket).unwrap();
    // Until the next state needs a new segment.
    let mut last = 0;
    while used(&fs, &segments(&fs)[0]) + 112 <= 1024 - 8 {
        last += 1;
        let ticket = wal.append(&[entry(last, 1, 20)]).unwrap();
        wal.wait(ticket).unwrap();
    }
    wal.save_state(state).unwrap();
    let ticket = wal.append(&[entry(last + 1, 1, 20)]).unwrap();
    wal.wait(ticket).unwrap();
    drop(wal);
    assert_eq!(segments(&fs).len(), 2);
    let file = segments(&fs).remove(1);
    let mut bytes = fs.contents(&file).unwrap();
    bytes[30] ^= 1;
    fs.set_contents(&file, &bytes);

    // The same segment begins with the same records again; those that followed them must not.
    let fs = fs.restart();
    let (wal, recovered) = Wal::open(Arc::new(fs.clone()), dir(), config.clone()).unwrap();
    assert_eq!(recovered.torn.unwrap().offset, 0);
    assert_eq!(recovered.last, Some(at(last, 1)));
    drop(wal);
    assert_eq!(segments(&fs).remove(1), file);
    let (_, recovered) = Wal::open(Arc::new(fs.restart()), dir(), config).unwrap();
    assert_eq!((recovered.last, recovered.torn), (Some(at(last, 1)), None));
}

#[test]
fn old_records_of_a_recycled_segment_are_never_taken_for_new_ones() {
    // Entries of one size, so that every old record starts where a new one could.
    let fs = MemFs::new(4);
    let config = Config { recycled_segments: 4, ..small() };
    let (mut wal, _) = Wal::open(Arc::new(fs.clone()), dir(), config.clone()).unwrap();
    let mut checked = 0;
    for i in 1..=60 {
        let ticket = wal.append(&[entry(i, 1, 56)]).unwrap();
        wal.wait(ticket).unwrap();
        if i % 10 == 0 {
            let ticket = wal.purge_upto(at(i - 2, 1)).unwrap();
            wal.wait(ticket).unwrap();
        }
        let copy = copy(&fs);
        let file = segments(&copy).pop().unwrap();
        let bytes = copy.contents(&file).unwrap();
        let end = used(&copy, &file);
        if bytes.ends_with(b"RECYCLED") && end + 24 < bytes.len() && bytes[end + 4] != 0 {
            checked += 1;
        }
        let (_, recovered) = Wal::open(Arc::new(copy), dir(), config.clone()).unwrap();
        assert_eq!((recovered.last, recovered.torn), (Some(at(i, 1)), None));
    }
    assert!(checked >= 10, "only {checked} times there was an old record behind the last new one");
}

#[test]
fn shortened_missing_and_swapped_files_are_refused() {
    let (fs, mut wal, _) = log(5);
    // So that the newest segment has several groups.
    for i in 44..=47 {
        let ticket = wal.append(&[entry(i, 2, 30)]).unwrap();
        wal.wait(ticket).unwrap();
    }
    wal.close().unwrap();
    let files = segments(&fs);
    let damage = |what: &str, change: &dyn Fn(&MemFs)| {
        let copy = copy(&fs);
        change(&copy);
        match open(&copy) {
            Err(OpenError::Damaged { file, offset, record, damage }) => (file, offset, record, damage),
            other => panic!("{what}: {other:?}"),
        }
    };
    for file in &files {
        let (named, .., what) = damage("shortened", &|fs| fs.set_contents(file, &fs.contents(file).unwrap()[..700]));
        let shortened = Damage::Shortened { length: 700, allocated: 1024 };
        assert!(what == shortened || what == Damage::NotLast { flaw: Box::new(shortened) }, "{what}");
        assert_eq!(&named, file);
        damage("emptied", &|fs| fs.set_contents(file, &[]));
        if file != files.last().unwrap() {
            damage("zeroed", &|fs| fs.set_contents(file, &[0; 1024]));
        }
    }
    let (.., what) = damage("a middle segment removed", &|fs| fs.remove(&files[1]).unwrap());
    assert!(matches!(what, Damage::MissingSegment { .. }), "{what}");
    let (.., what) = damage("the oldest segment removed", &|fs| fs.remove(&files[0]).unwrap());
    assert!(matches!(what, Damage::MissingEntries { .. }), "{what}");
    let (.., what) = damage("two segments swapped", &|fs| {
        let (a, b) = (fs.contents(&files[0]).unwrap(), fs.contents(&files[1]).unwrap());
        fs.set_contents(&files[0], &b);
        fs.set_contents(&files[1], &a);
    });
    assert!(matches!(what, Damage::Name { .. } | Damage::NotLast { .. }), "{what}");
    // A hole in the middle of a segment, as a lying disk leaves it.
    let (.., record, what) = damage("a hole", &|fs| {
        let last = files.last().unwrap();
        let mut bytes = fs.contents(last).unwrap();
        bytes[100..180].fill(0);
        fs.set_contents(last, &bytes);
    });
    assert!(matches!(what, Damage::Acknowledged { .. }) && record > 0, "{what}");
}

#[test]
fn the_message_names_file_offset_and_record() {
    let (fs, wal, _) = log(6);
    wal.close().unwrap();
    let file = segments(&fs).remove(0);
    let mut bytes = fs.contents(&file).unwrap();
    bytes[600] ^= 1;
    fs.set_contents(&file, &bytes);
    let message = open(&fs.restart()).unwrap_err().to_string();
    for part in [file.to_str().unwrap(), "offset ", "record ", "checksum", "restore"] {
        assert!(message.contains(part), "{message}");
    }
    let scanned = scan_on(Arc::new(fs.restart()), dir(), ScanOptions::default());
    assert!(scanned.is_err() || scanned.unwrap().any(|record| record.is_err()));
}

#[test]
fn another_identity_and_a_newer_format_are_refused() {
    let (fs, wal, _) = log(7);
    wal.close().unwrap();
    let other = Metadata { member_id: 99, ..identity() };
    let config = Config { metadata: Some(other), ..small() };
    let error = Wal::open(Arc::new(fs.clone()), dir(), config).unwrap_err();
    assert!(
        matches!(&error, OpenError::Identity { expected, found, .. } if **expected == other && **found == identity())
    );
    let message = error.to_string();
    assert!(message.contains("0000000000000063") && message.contains("000000000000003e"), "{message}");

    let newer = MemFs::new(1);
    let bytes = include_bytes!("golden/newer-format.bin");
    newer.set_contents(&dir().join("0000000000000001-0000000000000000.wal"), bytes);
    let message = open(&newer).unwrap_err().to_string();
    assert!(message.contains("format 2, this program reads up to 1"), "{message}");
}

#[test]
fn unusable_directories_are_refused_with_their_path() {
    let fs = MemFs::new(1);
    let none = Wal::open(Arc::new(fs.clone()), dir(), Config::default()).unwrap_err();
    assert!(matches!(none, OpenError::NoLog { .. }), "{none}");
    assert!(!Wal::exists(&fs, dir()).unwrap());
    for (fault, words) in [(Fault::ReadOnly, "read-only"), (Fault::NoSpace, "no space")] {
        // Whatever fails while a log is created, the next attempt succeeds.
        for n in 0..200 {
            let fs = MemFs::new(n);
            fs.fail_nth(n, fault);
            let Err(error) = Wal::open(Arc::new(fs.clone()), dir(), small()) else { break };
            let message = error.to_string();
            assert!(message.contains(words) && message.contains("/data"), "{n}: {message}");
            let (_, recovered) = Wal::open(Arc::new(fs.restart()), dir(), small()).unwrap();
            assert_eq!(recovered.last, None);
        }
    }
    let (first, _) = Wal::open(Arc::new(fs.clone()), dir(), small()).unwrap();
    let second = Wal::open(Arc::new(fs.clone()), dir(), small()).unwrap_err();
    assert!(matches!(second, OpenError::Locked { .. }), "{second}");
    drop(first);
    Wal::open(Arc::new(fs), dir(), small()).unwrap();
}
