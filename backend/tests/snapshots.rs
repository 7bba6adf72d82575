//! Exports, streams and installs: what arrives is what left, or nothing changes.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::*;
use tally_backend::{
    Backend, Bucket, Config, Export, ExportError, ExportReader, Failpoints, InstallError, Step, StorageError,
};

/// A backend with this many commits and an export of it.
fn exported(dir: &Path, commits: u64) -> (Backend, Export) {
    let backend = open(&dir.join("source"));
    (1..=commits).for_each(|index| commit(&backend, index, 3000));
    let export = backend.export(&dir.join("exports")).unwrap();
    (backend, export)
}

/// The configuration of another member of the same cluster.
fn member(path: &Path) -> Config {
    let mut config = small(path);
    config.identity.member_id = 0x77;
    config.identity.directory_uuid = [7; 16];
    config
}

fn stream(export: &Export) -> Vec<u8> {
    let mut bytes = Vec::new();
    assert_eq!(export.write_to(&mut bytes).unwrap(), bytes.len() as u64);
    assert_eq!(export.stream_bytes(), bytes.len() as u64);
    bytes
}

#[test]
fn a_state_travels_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (source, export) = exported(dir.path(), 700);
    assert_eq!(export.applied(), &at(700));
    export.verify().unwrap();
    // What is committed later is not in it.
    commit(&source, 701, 3000);
    let sent = stream(&export);
    let mut piecewise = Vec::new();
    export.reader().read_to_end(&mut piecewise).unwrap();
    assert!(sent == piecewise);
    let received = Export::receive(&mut &sent[..], &dir.path().join("received")).unwrap();
    assert_eq!((received.applied(), received.files()), (export.applied(), export.files()));
    received.verify().unwrap();
    let config = member(&dir.path().join("target"));
    let target = Backend::install(config.clone(), received.path()).unwrap();
    assert_eq!(check(&target, 3000), 700);
    assert_eq!(target.durable(), at(700));
    commit(&target, 701, 3000);
    assert_eq!(dump(&target), dump(&source));
    target.close().unwrap();
    // The export was not consumed, nor changed by its use.
    received.verify().unwrap();
    assert_eq!(check(&Backend::open(config).unwrap(), 3000), 701);
}

/// Everything that a reader has, piece by piece.
fn pieces(mut reader: ExportReader<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next_piece().unwrap() {
        assert!(!piece.is_empty());
        bytes.extend_from_slice(&piece);
    }
    bytes
}

#[test]
fn a_frozen_state_travels_whole_and_gets_its_checksums_where_it_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let source = open(&dir.path().join("source"));
    (1..=700).for_each(|index| commit(&source, index, 3000));
    let exports = dir.path().join("exports");
    let frozen = source.freeze(&exports).unwrap();
    assert_eq!(frozen.applied(), &at(700));
    commit(&source, 701, 3000);
    let sent = pieces(frozen.reader());
    // As much of it may be read as wanted, in whatever way.
    let mut reader = frozen.reader();
    let mut start = [0; 1000];
    reader.read_exact(&mut start).unwrap();
    assert!(sent == [&start[..], &pieces(reader)].concat());
    // It is not an export, and is gone with its handle.
    assert!(Export::list(&exports).unwrap().is_empty());
    drop(frozen);
    assert_eq!(fs::read_dir(&exports).unwrap().count(), 0);
    source.freeze(&exports).unwrap().remove().unwrap();
    assert_eq!(fs::read_dir(&exports).unwrap().count(), 0);

    let received = Export::receive(&mut &sent[..], &dir.path().join("received")).unwrap();
    assert_eq!(received.applied(), &at(700));
    received.verify().unwrap();
    // What is kept says what every file has to be, and reading it again says the same.
    let reopened = Export::open(received.path()).unwrap();
    assert_eq!(reopened.files(), received.files());
    reopened.verify().unwrap();
    let target = Backend::install(member(&dir.path().join("target")), received.path()).unwrap();
    assert_eq!(check(&target, 3000), 700);

    let small = open(&dir.path().join("small"));
    (1..=20).for_each(|index| commit(&small, index, 3000));
    let sent = pieces(small.freeze(&exports).unwrap().reader());
    let received = dir.path().join("damaged");
    for byte in (0..sent.len()).step_by(sent.len() / 300) {
        let mut flipped = sent.clone();
        flipped[byte] ^= 0x40;
        Export::receive(&mut &flipped[..], &received).expect_err("flipped");
        assert_eq!(fs::read_dir(&received).unwrap().count(), 0, "something was left behind");
    }
}

#[test]
fn a_manifest_without_checksums_is_no_export() {
    let text = refusal(|bad, _| {
        let path = bad.join("MANIFEST.tally");
        let text = fs::read_to_string(&path).unwrap();
        let body = text[..text.rfind("crc32c").unwrap()].replace("\nformat 1\n", "\nformat 2\n");
        let line = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
            ["file", bytes, _, name] => format!("file {bytes} {name}\n"),
            _ => format!("{line}\n"),
        };
        let body: String = body.lines().map(line).collect();
        let sum = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(body.as_bytes());
        fs::write(path, format!("{body}crc32c {sum:08x}\n")).unwrap();
    });
    assert!(text.contains("MANIFEST.tally") && text.contains("no checksums"), "{text}");
}

#[test]
fn an_export_sees_one_state_while_commits_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let source = open(&dir.path().join("source"));
    commit(&source, 1, 500);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (2..4000).for_each(|index| commit(&source, index, 500)));
        let mut round = 0;
        while !writer.is_finished() || round == 0 {
            let before = source.applied().index;
            // Two in quick succession must not get in each other's way.
            let first = source.export(&dir.path().join("exports")).unwrap();
            let second = source.export(&dir.path().join("exports")).unwrap();
            assert!(first.applied().index >= before && second.applied().index >= first.applied().index);
            let target = Backend::install(member(&dir.path().join(format!("target{round}"))), first.path()).unwrap();
            assert_eq!(check(&target, 500), first.applied().index);
            second.verify().unwrap();
            first.remove().unwrap();
            second.remove().unwrap();
            round += 1;
        }
        writer.join().unwrap();
    });
    assert!(Export::list(&dir.path().join("exports")).unwrap().is_empty());
}

#[test]
fn a_live_switch_ends_the_old_handle_but_not_its_readers() {
    let dir = tempfile::tempdir().unwrap();
    let (_source, export) = exported(dir.path(), 50);
    let path = dir.path().join("target");
    let old = Backend::open(member(&path)).unwrap();
    commit(&old, 1, 3000);
    let view = old.read();
    let staged = old.stage(export.path()).unwrap();
    assert!(matches!(old.stage(export.path()), Err(InstallError::Busy { .. })));
    assert_eq!(check(staged.backend(), 3000), 50);
    commit(&old, 2, 3000);
    let new = staged.switch().unwrap();
    assert_eq!(check(&new, 3000), 50);
    assert!(matches!(old.batch().commit(&at(3)), Err(StorageError::Replaced { .. })));
    assert_eq!(view.applied().unwrap(), at(1));
    assert_eq!(view.get(Bucket::Kv, &revision(1)).unwrap().unwrap(), value(1, 3000));
    commit(&new, 51, 3000);
    assert_eq!(generations(&path).len(), 2);
    drop(view);
    drop(old);
    assert_eq!(generations(&path).len(), 1, "the replaced generation must go with its last reader");
    new.close().unwrap();
    assert_eq!(check(&Backend::open(member(&path)).unwrap(), 3000), 51);
}

#[test]
fn a_staged_snapshot_that_is_given_up_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (_source, export) = exported(dir.path(), 5);
    let target = Backend::open(member(&dir.path().join("target"))).unwrap();
    drop(target.stage(export.path()).unwrap());
    assert_eq!(generations(&dir.path().join("target")).len(), 1);
    commit(&target, 1, 3000);
    drop(target.stage(export.path()).unwrap());
    // Also where there was nothing before.
    drop(tally_backend::Staged::prepare(member(&dir.path().join("fresh")), export.path()).unwrap());
    assert!(!Backend::exists(dir.path().join("fresh")).unwrap());
    assert_eq!(check(&Backend::open(member(&dir.path().join("fresh"))).unwrap(), 3000), 0);
}

#[test]
fn older_snapshots_and_other_clusters_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (source, export) = exported(dir.path(), 5);
    commit(&source, 6, 3000);
    assert!(matches!(source.stage(export.path()), Err(InstallError::Older { found: 5, current: 6 })));
    // It was the newest when it was staged, and no longer when it should be switched in.
    let target = Backend::open(member(&dir.path().join("target"))).unwrap();
    let staged = target.stage(export.path()).unwrap();
    (1..=6).for_each(|index| commit(&target, index, 3000));
    assert!(matches!(staged.switch(), Err(InstallError::Older { found: 5, current: 6 })));
    commit(&target, 7, 3000);
    let mut config = member(&dir.path().join("foreign"));
    config.identity.cluster_id = 1;
    assert!(matches!(Backend::install(config, export.path()), Err(InstallError::Cluster { found: 0xc1, expected: 1 })));
    assert!(!Backend::exists(dir.path().join("foreign")).unwrap());
    let mut config = member(&dir.path().join("target"));
    drop(target);
    config.identity.member_id = 1;
    let error = Backend::install(config, export.path()).unwrap_err();
    assert!(matches!(error, InstallError::Open(tally_backend::OpenError::Identity { .. })), "{error}");
}

/// Changes a copy of the export, tries to install it beside a state in force, and returns why it was refused.
fn refusal(change: impl FnOnce(&Path, &Export)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (_source, export) = exported(dir.path(), 300);
    let bad = dir.path().join("bad");
    copy_tree(export.path(), &bad);
    change(&bad, &export);
    let target = Backend::open(member(&dir.path().join("target"))).unwrap();
    (1..=3).for_each(|index| commit(&target, index, 3000));
    let error = target.stage(&bad).map(drop).unwrap_err();
    assert_eq!(generations(&dir.path().join("target")).len(), 1, "the refused one was kept");
    commit(&target, 4, 3000);
    assert_eq!(check(&target, 3000), 4);
    let fresh = Backend::install(member(&dir.path().join("fresh")), &bad).unwrap_err();
    assert!(!Backend::exists(dir.path().join("fresh")).unwrap(), "{fresh}");
    Backend::open(member(&dir.path().join("fresh"))).unwrap();
    chain(&error)
}

fn largest(export: &Export) -> String {
    export.files().iter().max_by_key(|file| file.bytes()).unwrap().name().to_owned()
}

#[test]
fn damaged_exports_are_refused_and_the_file_named() {
    let name = Arc::new(Mutex::new(String::new()));
    let remember = |export: &Export| {
        *name.lock().unwrap() = largest(export);
        largest(export)
    };
    let text = refusal(|bad, export| {
        let path = bad.join(remember(export));
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len() / 3;
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    });
    assert!(text.contains(&*name.lock().unwrap()) && text.contains("checksum"), "{text}");
    let text = refusal(|bad, export| {
        let path = bad.join(remember(export));
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
    });
    assert!(text.contains(&*name.lock().unwrap()) && text.contains("bytes instead of"), "{text}");
    let text = refusal(|bad, export| fs::remove_file(bad.join(remember(export))).unwrap());
    assert!(text.contains(&*name.lock().unwrap()) && text.contains("missing"), "{text}");
    let text = refusal(|bad, _| fs::write(bad.join("999999.sst"), b"extra").unwrap());
    assert!(text.contains("999999.sst") && text.contains("does not name it"), "{text}");
    let text = refusal(|bad, _| fs::remove_file(bad.join("MANIFEST.tally")).unwrap());
    assert!(text.contains("MANIFEST.tally"), "{text}");
    let text = refusal(|bad, _| {
        let path = bad.join("MANIFEST.tally");
        let text = fs::read_to_string(&path).unwrap().replace("index 300", "index 301");
        fs::write(path, text).unwrap();
    });
    assert!(text.contains("MANIFEST.tally") && text.contains("checksum"), "{text}");
}

#[test]
fn a_manifest_that_lies_about_the_position_is_refused() {
    let text = refusal(|bad, _| {
        let path = bad.join("MANIFEST.tally");
        let text = fs::read_to_string(&path).unwrap();
        let body = text[..text.rfind("crc32c").unwrap()].replace("index 300\n", "index 301\n");
        let sum = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(body.as_bytes());
        fs::write(path, format!("{body}crc32c {sum:08x}\n")).unwrap();
    });
    assert!(text.contains("index: 300") && text.contains("index: 301"), "{text}");
}

#[test]
fn every_cut_and_many_flips_of_a_stream_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_source, export) = exported(dir.path(), 20);
    let sent = stream(&export);
    let received = dir.path().join("received");
    let refuse = |bytes: &[u8], what: &str| {
        let error = Export::receive(&mut &bytes[..], &received).expect_err(what);
        assert!(!matches!(error, ExportError::Storage(_) | ExportError::Open(_)), "{what}: {error}");
        assert_eq!(fs::read_dir(&received).unwrap().count(), 0, "{what}: something was left behind");
    };
    for length in (0..sent.len()).step_by(sent.len() / 60).chain([sent.len() - 1]) {
        refuse(&sent[..length], "cut");
    }
    for byte in (0..sent.len()).step_by(sent.len() / 400) {
        let mut flipped = sent.clone();
        flipped[byte] ^= 0x40;
        refuse(&flipped, "flipped");
    }
    // It ends where it ends: what follows in the same connection is not touched.
    let mut more = sent.clone();
    more.extend_from_slice(b"next");
    let mut input = &more[..];
    Export::receive(&mut input, &received).unwrap();
    assert_eq!(input, b"next");
}

#[test]
fn frames_that_are_doubled_or_swapped_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_source, export) = exported(dir.path(), 20);
    let sent = stream(&export);
    let mut frames = Vec::new();
    let mut offset = 12;
    while offset < sent.len() {
        let length = u32::from_le_bytes(sent[offset + 4..offset + 8].try_into().unwrap()) as usize + 12;
        frames.push(&sent[offset..offset + length]);
        offset += length;
    }
    assert!(frames.len() > 5);
    let refuse = |frames: &[&[u8]]| {
        let bytes = [&sent[..12], &frames.concat()].concat();
        let error = Export::receive(&mut &bytes[..], &dir.path().join("received")).unwrap_err();
        assert!(matches!(error, ExportError::Stream { .. } | ExportError::Transport { .. }), "{error}");
    };
    for at in 0..frames.len() - 1 {
        let mut doubled = frames.clone();
        doubled.insert(at, frames[at]);
        refuse(&doubled);
        let mut swapped = frames.clone();
        swapped.swap(at, at + 1);
        refuse(&swapped);
        let mut lost = frames.clone();
        lost.remove(at);
        refuse(&lost);
    }
}

#[test]
fn a_stream_of_a_newer_version_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (_source, export) = exported(dir.path(), 1);
    let mut sent = stream(&export);
    sent[8] = 2;
    let error = Export::receive(&mut &sent[..], dir.path()).unwrap_err();
    assert!(matches!(error, ExportError::Format { found: 2, supported: 1, .. }), "{error}");
}

/// Counts steps, and at one of them photographs a directory and fails.
fn failing_at(number: usize, data: &Path, image: &Path) -> (Failpoints, Arc<Mutex<Vec<Step>>>) {
    let passed = Arc::new(Mutex::new(Vec::new()));
    let (steps, data, image) = (Arc::clone(&passed), data.to_path_buf(), image.to_path_buf());
    let failpoints = Failpoints::new(move |step, _| {
        let mut steps = steps.lock().unwrap();
        steps.push(step);
        if steps.len() == number + 1 {
            copy_tree(&data, &image);
            return Err(io::Error::other("planted"));
        }
        Ok(())
    });
    (failpoints, passed)
}

/// Opens what a crash or an error left: it must be the old state or the new one, and work.
fn old_or_new(path: &Path, old: u64, new: u64) -> u64 {
    let backend = Backend::open(member(path)).unwrap();
    let found = check(&backend, 3000);
    assert!(found == old || found == new, "{found}");
    commit(&backend, found + 1, 3000);
    backend.close().unwrap();
    assert_eq!(generations(path).len(), 1, "a leftover was kept");
    assert_eq!(check(&Backend::open(member(path)).unwrap(), 3000), found + 1);
    found
}

#[test]
fn an_offline_install_survives_a_crash_and_an_error_at_every_step() {
    for has_old in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (_source, export) = exported(dir.path(), 40);
        let mut outcomes = Vec::new();
        for number in 0.. {
            let (path, image) = (dir.path().join(format!("target{number}")), dir.path().join(format!("image{number}")));
            if has_old {
                let backend = Backend::open(member(&path)).unwrap();
                (1..=3).for_each(|index| commit(&backend, index, 3000));
                backend.close().unwrap();
            }
            let (failpoints, passed) = failing_at(number, &path, &image);
            let mut config = member(&path);
            config.failpoints = failpoints;
            let result = Backend::install(config, export.path());
            if passed.lock().unwrap().len() <= number {
                assert_eq!(check(&result.unwrap(), 3000), 40);
                assert!(passed.lock().unwrap().contains(&Step::StagedVerified));
                break;
            }
            assert!(chain(&result.unwrap_err()).contains("planted"));
            let old = if has_old { 3 } else { 0 };
            outcomes.push(old_or_new(&image, old, 40));
            assert_eq!(old_or_new(&path, old, 40), outcomes[number]);
        }
        assert!(outcomes.len() > 8 && outcomes.is_sorted(), "{outcomes:?}");
        assert_eq!(outcomes.last(), Some(&40));
    }
}

#[test]
fn a_live_switch_survives_a_crash_and_an_error_at_every_step() {
    let dir = tempfile::tempdir().unwrap();
    let (_source, export) = exported(dir.path(), 40);
    let mut outcomes = Vec::new();
    for number in 0.. {
        let (path, image) = (dir.path().join(format!("target{number}")), dir.path().join(format!("image{number}")));
        let backend = Backend::open(member(&path)).unwrap();
        (1..=3).for_each(|index| commit(&backend, index, 3000));
        backend.close().unwrap();
        let (failpoints, passed) = failing_at(number, &path, &image);
        let mut config = member(&path);
        config.failpoints = failpoints;
        let backend = Backend::open(config).unwrap();
        let result = backend.stage(export.path()).and_then(|staged| staged.switch());
        if passed.lock().unwrap().len() <= number {
            assert_eq!(check(&result.unwrap(), 3000), 40);
            break;
        }
        assert!(chain(&result.unwrap_err()).contains("planted"));
        // Once the pointer may have changed, commits to the old state would be lost: they must be refused.
        let in_switch = matches!(passed.lock().unwrap().last(), Some(Step::PointerWritten | Step::PointerSwitched));
        let after = backend.batch().commit(&at(4)).map_err(|error| error.to_string());
        assert_eq!(after.is_err(), in_switch, "{after:?}");
        drop(backend);
        outcomes.push(old_or_new(&image, 3, 40));
    }
    assert!(outcomes.len() > 6 && outcomes.is_sorted(), "{outcomes:?}");
    assert_eq!(outcomes.last(), Some(&40));
}

#[test]
fn a_failed_export_leaves_nothing_and_a_crashed_one_is_cleaned() {
    let dir = tempfile::tempdir().unwrap();
    let (source, exports) = (dir.path().join("source"), dir.path().join("exports"));
    fs::create_dir(&exports).unwrap();
    for number in 0.. {
        let image = dir.path().join(format!("image{number}"));
        // Opening passes no step once the backend is made, so every step here is one of the export.
        drop(open(&source));
        let (failpoints, passed) = failing_at(number, &exports, &image);
        let mut config = small(&source);
        config.failpoints = failpoints;
        let backend = Backend::open(config).unwrap();
        let index = backend.applied().index + 1;
        commit(&backend, index, 3000);
        let result = backend.export(&exports);
        if passed.lock().unwrap().len() <= number {
            assert_eq!(number, 3);
            result.unwrap();
            break;
        }
        assert!(chain(&result.unwrap_err()).contains("planted"));
        Export::clean(&image).unwrap();
        for path in [&exports, &image] {
            assert!(fs::read_dir(path).unwrap().all(|it| !it.unwrap().path().to_str().unwrap().ends_with(".tmp")));
            for export in Export::list(path).unwrap() {
                export.verify().unwrap();
            }
        }
        commit(&backend, index + 1, 3000);
    }
}

#[test]
fn a_failed_receipt_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (_source, export) = exported(dir.path(), 20);
    let sent = stream(&export);
    let received = dir.path().join("received");
    let failpoints = Failpoints::new(|step, _| match step {
        Step::FrameReceived => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    });
    let error = Export::receive_with(&mut &sent[..], &received, &failpoints).unwrap_err();
    assert!(matches!(error, ExportError::File(_)), "{error}");
    assert_eq!(fs::read_dir(&received).unwrap().count(), 0);
}

#[test]
fn a_stream_stored_by_version_1_is_read_for_ever() {
    let golden = include_bytes!("golden/snapshot-1.stream");
    let dir = tempfile::tempdir().unwrap();
    let export = Export::receive(&mut &golden[..], dir.path()).unwrap();
    assert_eq!(export.applied(), &at(20));
    let target = Backend::install(member(&dir.path().join("target")), export.path()).unwrap();
    assert_eq!(check(&target, 40), 20);
}

/// Writes the golden stream of the present version; to be run by hand when a version is released.
#[test]
#[ignore = "writes tests/golden"]
fn write_the_golden_stream() {
    let dir = tempfile::tempdir().unwrap();
    let source = open(&dir.path().join("source"));
    (1..=20).for_each(|index| commit(&source, index, 40));
    let export = source.export(&dir.path().join("exports")).unwrap();
    fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/snapshot-1.stream"), stream(&export)).unwrap();
}
