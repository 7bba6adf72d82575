//! Opening: creation that survives a crash at every step, and every directory that must be refused, with the reason.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use common::*;
use tally_backend::{Backend, Bucket, Failpoints, Identity, OpenError, Step, StorageError};

const DIRECTORY: &str = "TALLY_BACKEND_TEST_DIRECTORY";

fn refused(path: &Path) -> OpenError {
    Backend::open(small(path)).expect_err("it must be refused")
}

/// Replaces text in a sealed file and seals it again.
fn rewrite(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    let body = &text[..text.rfind("crc32c").unwrap()];
    assert!(body.contains(from));
    let body = body.replace(from, to);
    let sum = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(body.as_bytes());
    fs::write(path, format!("{body}crc32c {sum:08x}\n")).unwrap();
}

#[test]
fn what_was_closed_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/er");
    assert!(!Backend::exists(&path).unwrap());
    let backend = open(&path);
    assert!(Backend::exists(&path).unwrap());
    (1..=100).for_each(|index| commit(&backend, index, 100));
    let before = dump(&backend);
    backend.close().unwrap();
    let backend = open(&path);
    assert_eq!(check(&backend, 100), 100);
    assert_eq!(backend.durable(), at(100));
    assert_eq!(dump(&backend), before);
}

#[test]
fn another_identity_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    for change in 0..3 {
        let mut config = small(dir.path());
        match change {
            0 => config.identity.cluster_id += 1,
            1 => config.identity.member_id += 1,
            _ => config.identity.directory_uuid[0] += 1,
        }
        let expected_now = config.identity;
        match Backend::open(config).unwrap_err() {
            OpenError::Identity { found, expected, .. } => assert_eq!((found, expected), (IDENTITY, expected_now)),
            other => panic!("{other}"),
        }
    }
    assert_eq!(check(&open(dir.path()), 8), 0);
}

#[test]
fn a_newer_format_is_refused_by_number() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    rewrite(&dir.path().join("LIVE"), "format 1\n", "format 3\n");
    let error = refused(dir.path());
    assert!(matches!(error, OpenError::Format { found: 3, supported: 1, .. }), "{error}");
    assert!(error.to_string().contains("format 3, this program reads up to 1"), "{error}");
    assert_eq!(generations(dir.path()).len(), 1, "refusing must not delete");
}

#[test]
fn a_damaged_pointer_is_refused_and_nothing_deleted() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let live = dir.path().join("LIVE");
    let good = fs::read(&live).unwrap();
    for (at, damage) in [(20, b'x'), (good.len() - 2, b'x')] {
        let mut bad = good.clone();
        bad[at] = damage;
        fs::write(&live, bad).unwrap();
        assert!(matches!(refused(dir.path()), OpenError::Corrupt { path, .. } if path == live));
    }
    fs::write(&live, b"").unwrap();
    assert!(matches!(refused(dir.path()), OpenError::Corrupt { path, .. } if path == live));
    fs::write(&live, good).unwrap();
    assert_eq!(check(&open(dir.path()), 8), 0);
}

#[test]
fn data_without_a_pointer_is_never_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    commit(&backend, 1, 8);
    backend.close().unwrap();
    let live = dir.path().join("LIVE");
    let pointer = fs::read(&live).unwrap();
    fs::remove_file(&live).unwrap();
    assert!(!Backend::exists(dir.path()).unwrap());
    assert!(matches!(refused(dir.path()), OpenError::PointerMissing { .. }));
    // A marker speaks for the generation that it names, not for any other.
    fs::write(dir.path().join("CREATING"), "db-00000000deadbeef").unwrap();
    assert!(matches!(refused(dir.path()), OpenError::PointerMissing { .. }));
    fs::write(&live, pointer).unwrap();
    assert_eq!(check(&open(dir.path()), 8), 1);
}

#[test]
fn leftovers_are_deleted_and_other_files_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    commit(&backend, 1, 8);
    backend.close().unwrap();
    let stale = dir.path().join("db-00000000deadbeef");
    copy_tree(&generations(dir.path())[0], &stale);
    fs::write(dir.path().join("LIVE.tmp"), b"half").unwrap();
    fs::write(dir.path().join("db-notes.txt"), b"an operator's own").unwrap();
    assert_eq!(check(&open(dir.path()), 8), 1);
    assert!(!stale.exists() && !dir.path().join("LIVE.tmp").exists());
    assert!(dir.path().join("db-notes.txt").exists());
}

#[test]
fn a_second_opener_is_told_that_it_is_locked() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    assert!(matches!(refused(dir.path()), OpenError::Locked { .. }));
    let clone = backend.clone();
    drop(backend);
    assert!(matches!(refused(dir.path()), OpenError::Locked { .. }));
    drop(clone);
    open(dir.path());
}

#[test]
fn a_bucket_of_a_newer_program_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let generation = generations(dir.path()).remove(0);
    let options = rocksdb::Options::default();
    let names = rocksdb::DB::list_cf(&options, &generation).unwrap();
    let mut db = rocksdb::DB::open_cf(&options, &generation, names).unwrap();
    db.create_cf("quantum", &options).unwrap();
    drop(db);
    assert!(matches!(refused(dir.path()), OpenError::UnknownBucket { name, .. } if name == "quantum"));
}

#[test]
fn a_damaged_position_is_refused() {
    for (key, expected) in [("applied", "checksum"), ("membership", "belong")] {
        let dir = tempfile::tempdir().unwrap();
        let backend = open(dir.path());
        commit(&backend, 1, 8);
        backend.close().unwrap();
        let generation = generations(dir.path()).remove(0);
        let names = rocksdb::DB::list_cf(&rocksdb::Options::default(), &generation).unwrap();
        let db = rocksdb::DB::open_cf(&rocksdb::Options::default(), &generation, names).unwrap();
        let mut record = db.get(key).unwrap().unwrap();
        record[5] ^= 1;
        db.put(key, record).unwrap();
        drop(db);
        let error = refused(dir.path());
        assert!(matches!(&error, OpenError::Corrupt { detail, .. } if detail.contains(expected)), "{error}");
    }
}

#[test]
fn limits_that_cannot_work_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = small(dir.path());
    config.memtable_bytes = 10;
    assert!(matches!(Backend::open(config), Err(OpenError::Config { field: "memtable_bytes", .. })));
    let mut config = small(dir.path());
    config.open_files_max = 3;
    assert!(matches!(Backend::open(config), Err(OpenError::Config { field: "open_files_max", .. })));
    assert!(!dir.path().join("LOCK").exists(), "refused before anything was touched");
}

/// Every table of the live generation that holds records of the history.
fn tables(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(&generations(path)[0])
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sst"))
        .collect();
    found.sort_by_key(|path| fs::metadata(path).unwrap().len());
    found
}

#[test]
fn a_flipped_bit_in_a_table_is_found_and_the_file_named() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    (1..=300).for_each(|index| commit(&backend, index, 1000));
    backend.close().unwrap();
    let table = tables(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&table).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&table, bytes).unwrap();
    // What is read of the table at open is not the middle of its data.
    let backend = open(dir.path());
    let error = backend.scrub().unwrap_err();
    let StorageError::Corrupt { bucket: "kv", .. } = &error else { panic!("{error}") };
    assert!(chain(&error).contains(table.file_name().unwrap().to_str().unwrap()), "{}", chain(&error));
    let read = |index| backend.get(Bucket::Kv, &revision(index));
    let failed: Vec<u64> = (1..=300).filter(|index| read(*index).is_err()).collect();
    assert!(!failed.is_empty() && failed.len() < 20, "{failed:?}");
    for index in (1..=300).filter(|index| !failed.contains(index)) {
        assert_eq!(read(index).unwrap().unwrap(), value(index, 1000));
    }
    let scan: Vec<_> = backend.read().scan(Bucket::Kv, &[], None).collect();
    assert!(scan.last().unwrap().is_err() && scan.iter().filter(|record| record.is_err()).count() == 1);
}

#[test]
fn a_missing_table_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    (1..=10).for_each(|index| commit(&backend, index, 1000));
    backend.close().unwrap();
    let table = tables(dir.path()).pop().unwrap();
    fs::remove_file(&table).unwrap();
    let error = refused(dir.path());
    assert!(chain(&error).contains(table.file_name().unwrap().to_str().unwrap()), "{}", chain(&error));
}

#[test]
fn creation_survives_a_crash_and_an_error_at_every_step() {
    let passed = Arc::new(Mutex::new(Vec::new()));
    for failing in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let (path, crashed) = (dir.path().join("data"), dir.path().join("crashed"));
        let (steps, data, image) = (Arc::clone(&passed), path.clone(), crashed.clone());
        steps.lock().unwrap().clear();
        let mut config = small(&path);
        config.failpoints = Failpoints::new(move |step, _| {
            let mut steps = steps.lock().unwrap();
            steps.push(step);
            if steps.len() == failing + 1 {
                copy_tree(&data, &image);
                return Err(io::Error::other("planted"));
            }
            Ok(())
        });
        let result = Backend::open(config);
        if passed.lock().unwrap().len() <= failing {
            result.unwrap();
            let steps = passed.lock().unwrap().clone();
            let all = [
                Step::Marked,
                Step::DirectoryMade,
                Step::EngineMade,
                Step::PointerWritten,
                Step::PointerSwitched,
                Step::Unmarked,
            ];
            assert_eq!(steps, all);
            return;
        }
        assert!(chain(&result.unwrap_err()).contains("planted"));
        for path in [crashed, path] {
            let backend = open(&path);
            commit(&backend, 1, 8);
            backend.close().unwrap();
            assert_eq!(check(&open(&path), 8), 1);
            assert_eq!(generations(&path).len(), 1, "a half-made generation was kept");
            assert!(!path.join("CREATING").exists());
        }
    }
}

/// The body of child processes: opens, commits a lot, and says how that ended.
#[test]
#[ignore = "run by the tests of this file, in a process of its own"]
fn child_opens_and_fills() {
    let Ok(path) = std::env::var(DIRECTORY) else { return };
    let backend = match Backend::open(small(Path::new(&path))) {
        Ok(backend) => backend,
        Err(error) => return println!("open: {error:?}"),
    };
    for index in 1..=4000 {
        let mut batch = backend.batch();
        batch.put(Bucket::Kv, &revision(index), &value(index, 4096));
        if let Err(error) = batch.commit(&at(index)) {
            assert_eq!(backend.batch().commit(&at(index)), Err(error.clone()), "not final");
            assert_eq!(backend.sync(), Err(error.clone()), "not final");
            println!("commit: {error:?}");
            // As a server that stops at once.
            std::process::exit(0);
        }
    }
    println!("nothing failed");
}

const CHILD_ARGS: [&str; 4] = ["child_opens_and_fills", "--exact", "--ignored", "--nocapture"];

#[test]
fn a_disk_that_takes_no_more_ends_the_writing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    drop(open(&path));
    // A limit of 64 KiB per file: the first flush fails as it would on a full disk.
    let script = "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", script]).arg(std::env::current_exe().unwrap()).args(CHILD_ARGS).env(DIRECTORY, &path);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("commit: Io") || text.contains("commit: Full"), "{text}");
    assert!(text.contains("File too large") || text.contains("LOG"), "{text}");
    let backend = open(&path);
    assert!(backend.applied().index < 4000);
}

/// From now on every new table of the live generation is written to a device that is always full.
fn fill_the_disk(path: &Path) -> Vec<PathBuf> {
    let generation = generations(path).remove(0);
    let number =
        |path: PathBuf| path.file_stem().unwrap().to_string_lossy().rsplit('-').next().unwrap().parse::<u64>().ok();
    let used = fs::read_dir(&generation).unwrap().filter_map(|entry| number(entry.unwrap().path()));
    let first: u64 = used.max().unwrap() + 1;
    let full: Vec<PathBuf> = (first..first + 100).map(|number| generation.join(format!("{number:06}.sst"))).collect();
    for table in &full {
        std::os::unix::fs::symlink("/dev/full", table).unwrap();
    }
    full
}

#[test]
fn a_full_disk_ends_the_writing_and_nothing_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    for first_to_notice in ["commit", "sync", "export", "size", "housekeeping"] {
        let path = dir.path().join(first_to_notice);
        let backend = open(&path);
        (1..=10).for_each(|index| commit(&backend, index, 1000));
        backend.sync().unwrap();
        let full = fill_the_disk(&path);
        commit(&backend, 11, 1000);
        let put = |index| {
            let mut batch = backend.batch();
            batch.put(Bucket::Kv, &revision(index), &value(index, 1000));
            batch
        };
        let error = match first_to_notice {
            "commit" => (12..).find_map(|index| put(index).commit(&at(index)).err()).unwrap(),
            "housekeeping" => (12..).find_map(|index| put(index).commit_housekeeping().err()).unwrap(),
            "sync" => backend.sync().unwrap_err(),
            "export" => match backend.export(&dir.path().join("exports")).unwrap_err() {
                tally_backend::ExportError::Storage(error) => error,
                other => panic!("{other}"),
            },
            _ => {
                assert!(backend.sync().is_err());
                backend.size().unwrap_err()
            }
        };
        assert!(matches!(error, StorageError::Full { .. }), "{first_to_notice}: {error:?}");
        assert!(error.to_string().contains("no space left"), "{error}");
        assert_eq!(backend.batch().commit(&at(9000)), Err(error.clone()), "{first_to_notice}");
        assert_eq!(backend.sync(), Err(error), "{first_to_notice}");
        assert_eq!(backend.durable(), at(10));
        assert_eq!(backend.get(Bucket::Kv, &revision(11)).unwrap().unwrap(), value(11, 1000), "reads go on");
        drop(backend);
        full.iter().for_each(|table| drop(fs::remove_file(table)));
        assert_eq!(check(&open(&path), 1000), 10, "{first_to_notice}");
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    drop(open(&path));
    // Permissions do not stop root, so the child is somebody else, with a copy of this program that it can reach.
    let program = dir.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mode = |path: &Path, mode| {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(path, permissions).unwrap();
    };
    mode(dir.path(), 0o755);
    mode(&path, 0o555);
    let mut command = Command::new(&program);
    command.args(CHILD_ARGS).env(DIRECTORY, &path).current_dir("/");
    if Command::new("id").arg("-u").output().unwrap().stdout == b"0\n" {
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    mode(&path, 0o755);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("open: ReadOnly"), "{text} {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(check(&open(&path), 8), 0);
}

#[test]
fn errors_name_the_identity_in_full() {
    let identity = Identity { cluster_id: 0xabc, member_id: 0xdef, directory_uuid: [1; 16] };
    assert_eq!(identity.to_string(), "cluster abc, member def, directory 01010101010101010101010101010101");
}
