//! A crash at any step of the installation of a snapshot: the next start finds the old state or the new one, and a log
//! that fits it.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tally_backend::{Applied, Failpoints, Step};
use tally_wal::{LogIndex, RealFs, Wal};

use super::{CLUSTER, directory_of, put, storage_options};
use crate::snapshot::{OwnedExport, Prepared, finish_install, incoming_dir, install};
use crate::storage::{OpenError, Storage, open_storage};
use tally_apply::{Body, Committed};

/// A store with entries in it, and a log without.
fn filled(dir: &Path, id: u64, entries: u64, term: u64) -> (Storage, Applied) {
    let mut storage = open_storage(storage_options(dir, id)).unwrap();
    let committed: Vec<Committed> = (1..=entries)
        .map(|index| {
            let body = Body::Command(put(&format!("key-{index}"), "value", index, term).command());
            Committed { index, term, body, asked: false }
        })
        .collect();
    storage.applier.apply(&committed).unwrap();
    let applied = storage.backend.sync().unwrap();
    (storage, applied)
}

/// Opens log and store as a start does; where they stand.
fn reopened(dir: &Path) -> (Applied, Option<u64>) {
    let options = storage_options(dir, 2);
    let (mut wal, mut recovered) = Wal::open(Arc::new(RealFs), &options.wal_path(), options.wal.clone()).unwrap();
    let mut config = options.backend;
    config.path = dir.join("member").join("db");
    config.identity = tally_backend::Identity { cluster_id: CLUSTER, member_id: 2, directory_uuid: directory_of(2) };
    let backend = tally_backend::Backend::open(config).unwrap();
    finish_install(backend.path(), &backend.applied(), &mut wal, &mut recovered).unwrap();
    wal.close().unwrap();
    assert!(!backend.path().with_file_name("installing").exists());
    (backend.applied(), recovered.last.max(recovered.purged).map(|position| position.index.get()))
}

/// Copies a directory as a crash would leave it, except that what is not synced is there as well.
fn photographed(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            photographed(&entry.path(), &target);
        } else {
            // The log's allocator may be giving a spare segment its name at this moment; a crash before that has none.
            match std::fs::copy(entry.path(), target) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                copied => drop(copied.unwrap()),
            }
        }
    }
}

#[test]
fn a_crash_at_any_step_leaves_the_old_state_or_the_new_one() {
    let source = tempfile::tempdir().unwrap();
    let (from, sent) = filled(source.path(), 1, 200, 1);
    let pictures = tempfile::tempdir().unwrap();
    let taken = Arc::new(Mutex::new(Vec::new()));

    let target = tempfile::tempdir().unwrap();
    {
        let mut options = storage_options(target.path(), 2);
        let (live, place, kept) = (target.path().to_path_buf(), pictures.path().to_path_buf(), Arc::clone(&taken));
        options.backend.failpoints = Failpoints::new(move |step: Step, _path| -> io::Result<()> {
            let mut kept = kept.lock().unwrap();
            let picture = place.join(kept.len().to_string());
            photographed(&live, &picture);
            kept.push((step, picture));
            Ok(())
        });
        let storage = open_storage(options).unwrap();
        taken.lock().unwrap().clear();
        let export = from.backend.export(&incoming_dir(storage.backend.path())).unwrap();
        let kv = tally_mvcc::Options::default();
        let prepared = Prepared::new(&storage.backend, &OwnedExport::new(export), kv.clone()).unwrap();
        assert_eq!(storage.backend.applied(), Applied::default());
        let (backend, ..) = install(&storage.backend, &prepared.received(), sent.index, kv).unwrap();
        assert_eq!(backend.applied(), sent);
    }
    let taken = taken.lock().unwrap();
    let steps: Vec<Step> = taken.iter().map(|(step, _)| *step).collect();
    assert!(steps.contains(&Step::FileStaged) && steps.contains(&Step::PointerSwitched), "{steps:?}");
    let mut found_new = 0;
    for (step, picture) in taken.iter() {
        let (applied, end) = reopened(picture);
        let is_new = applied == sent;
        assert!(is_new || applied == Applied::default(), "after {step:?}: {applied:?}");
        assert_eq!(end, is_new.then_some(sent.index), "after {step:?} the log fits the store");
        assert_eq!(is_new, *step >= Step::PointerSwitched && *step <= Step::Unmarked, "after {step:?}");
        found_new += usize::from(is_new);
        // And again: nothing is left to be done.
        assert_eq!(reopened(picture), (applied, end));
    }
    assert!(found_new > 0);
    // The crash after the switch and before the log was told.
    assert_eq!(reopened(target.path()), (sent.clone(), Some(sent.index)));
}

#[test]
fn a_mark_that_does_not_fit_means_nothing() {
    let source = tempfile::tempdir().unwrap();
    let (storage, sent) = filled(source.path(), 2, 20, 1);
    drop(storage);
    // The log is not told anything that the mark does not say about this very state.
    std::fs::write(source.path().join("member").join("installing"), b"nonsense").unwrap();
    assert_eq!(reopened(source.path()), (sent, None));
}

/// A log of 250 entries of term 1 whose store jumps to entry 200 of term 2, and a crash before the log says anything of it:
/// the truncation that consensus asked for is not durable. Whether it is put right at the next start.
fn crashed_before_the_truncation(marked: bool) -> Result<(), OpenError> {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, sent) = filled(source.path(), 1, 200, 2);
    let mut storage = open_storage(storage_options(target.path(), 2)).unwrap();
    let entries: Vec<_> = (1..=250)
        .map(|index| tally_wal::Entry {
            index: LogIndex::new(index),
            term: 1,
            payload: vec![crate::codec::KIND_BLANK].into(),
        })
        .collect();
    let ticket = storage.wal.append(&entries).unwrap();
    storage.wal.wait(ticket).unwrap();
    let export = OwnedExport::new(from.backend.export(&incoming_dir(storage.backend.path())).unwrap());
    let prepared = Prepared::new(&storage.backend, &export, tally_mvcc::Options::default()).unwrap();
    install(&storage.backend, &prepared.received(), sent.index, tally_mvcc::Options::default()).unwrap();
    drop((export, storage));
    if !marked {
        std::fs::remove_file(target.path().join("member").join("installing")).unwrap();
    }
    let storage = open_storage(storage_options(target.path(), 2))?;
    assert_eq!(storage.backend.applied(), sent);
    let purged = storage.recovered.purged.map(|position| (position.index.get(), position.term));
    assert_eq!((purged, storage.recovered.last), (Some((200, 2)), None));
    drop(storage);
    // The log goes on behind the snapshot, and nothing of the old term comes back.
    let mut storage = open_storage(storage_options(target.path(), 2))?;
    let next = tally_wal::Entry { index: LogIndex::new(201), term: 2, payload: vec![crate::codec::KIND_BLANK].into() };
    let ticket = storage.wal.append(&[next]).unwrap();
    storage.wal.wait(ticket).unwrap();
    drop(storage);
    let last = open_storage(storage_options(target.path(), 2))?.recovered.last.unwrap();
    assert_eq!((last.index.get(), last.term), (201, 2));
    Ok(())
}

#[test]
fn a_truncation_that_a_crash_undid_is_done_again_with_the_snapshot_that_asked_for_it() {
    crashed_before_the_truncation(true).unwrap();
    let refused = crashed_before_the_truncation(false).unwrap_err();
    assert!(matches!(refused, OpenError::Diverged { index: 200, applied_term: 2, log_term: 1, .. }), "{refused}");
}
