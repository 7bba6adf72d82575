//! `tally check`: is the state in a stopped server's database the one that its log says?
//!
//! The database proves its own root when it is opened, and has to stand on the log, as it has to for a server that starts.
//! If the log begins at its first entry, a fresh store is built from it in a temporary directory, up to the index that the
//! database has applied, and the two roots must be equal. Where the log was purged there is nothing to build it from, and
//! only the places are compared.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Value, json};
use tally_apply::{Applier, Body, Committed};
use tally_backend::{Applied, Backend, Identity};
use tally_raftnode::{EntryView, OpenError, describe_entry};
use tally_wal::dump::{RecordType, RecordView, Report, ScanOptions, scan, verify};
use tally_wal::{LogIndex, LogPosition, Metadata, ScanError};
use thiserror::Error;

/// Entries applied together when the log is replayed.
const CHUNK_ENTRIES: usize = 1024;
/// Bytes of entries at which no more are added to those.
const CHUNK_BYTES: usize = 64 << 20;

/// Why nothing can be compared.
#[derive(Debug, Error)]
pub(super) enum CheckError {
    #[error("cannot read the log")]
    Scan(#[from] ScanError),
    #[error("the log is not sound")]
    Log(#[source] ScanError),
    #[error("there is no log in {}; if it has a directory of its own, name it with --wal-dir", .0.display())]
    NoLog(PathBuf),
    #[error("there is no database in {}", .0.display())]
    NoDatabase(PathBuf),
    #[error("cannot open the database in {}", path.display())]
    Database { path: PathBuf, source: Box<tally_backend::OpenError> },
    #[error("a server does not start on this")]
    Refused(#[source] Box<OpenError>),
    #[error(
        "a snapshot was being put in force in {} when the server ended: start it, which finishes that or says what is \
         wrong, then stop it and check again", .0.display()
    )]
    Installing(PathBuf),
    #[error("the state in the database does not open")]
    State(#[source] tally_apply::OpenError),
    #[error("cannot close the database")]
    Close(#[source] tally_backend::StorageError),
    #[error("cannot make the temporary directory {}; $TMPDIR chooses another place", path.display())]
    Temporary { path: PathBuf, source: io::Error },
    #[error("cannot open a fresh store")]
    Fresh(#[source] Box<tally_backend::OpenError>),
    #[error("cannot apply the entries of the log before index {before}")]
    Replay { before: u64, source: tally_apply::Fatal },
}

/// What was found.
pub(super) struct CheckReport {
    applied: Applied,
    revision: i64,
    /// The root of the log's entries, or why they cannot be replayed.
    replayed: Result<u128, String>,
    log: Report,
}

impl CheckReport {
    /// The roots are equal, or the log was purged, so that they cannot be compared.
    pub(super) fn is_good(&self) -> bool {
        match &self.replayed {
            Ok(root) => *root == self.applied.root,
            Err(_purged) => true,
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let Report { first, last, purged, state, segments, torn, .. } = &self.log;
        let position = |position: &LogPosition| json!({"index": position.index.get(), "term": position.term});
        let root = |root: u128| format!("{root:032x}");
        json!({
            "applied": self.applied.index,
            "term": self.applied.term,
            "revision": self.revision,
            "root": root(self.applied.root),
            "replayed_root": self.replayed.as_ref().ok().map(|found| root(*found)),
            "not_replayed_because": self.replayed.as_ref().err(),
            "equal": self.replayed.as_ref().ok().map(|found| *found == self.applied.root),
            "wal": {
                "segments": segments.len(),
                "first": first.map(LogIndex::get),
                "last": last.as_ref().map(position),
                "committed": state.committed.as_ref().map(position),
                "purged": purged.as_ref().map(position),
                "torn_tail": torn.as_ref().map(ToString::to_string),
            },
        })
    }
}

/// Looks into a data directory that no server uses.
pub(super) fn check(data_dir: &Path, wal_dir: Option<PathBuf>) -> Result<CheckReport, CheckError> {
    let member = data_dir.join("member");
    let wal = wal_dir.unwrap_or_else(|| member.join("wal"));
    let database = member.join("db");
    if !wal.exists() {
        return Err(CheckError::NoLog(wal));
    }
    let mut log = verify(&wal)?;
    if let Some(problem) = log.problem.take() {
        return Err(CheckError::Log(problem));
    }
    let Some(metadata) = log.metadata else { return Err(CheckError::NoLog(wal)) };
    let unseen = |source| CheckError::Database { path: database.clone(), source: Box::new(source) };
    if !Backend::exists(&database).map_err(unseen)? {
        return Err(CheckError::NoDatabase(database));
    }
    let (applied, revision) = read(&database, &metadata)?;
    if let Err(refused) = stands_on(&wal, &log, &applied, term_in_log(&wal, &log, applied.index)?) {
        let installing = database.with_file_name("installing");
        let unfinished = installing.exists();
        return Err(if unfinished { CheckError::Installing(database) } else { CheckError::Refused(refused) });
    }
    let replayed = match log.purged {
        Some(purged) => Err(format!(
            "the log was purged up to {purged}, so the state cannot be built from it: only the places of log and \
             database were compared"
        )),
        None => Ok(replay(&wal, &metadata, applied.index)?),
    };
    Ok(CheckReport { applied, revision, replayed, log })
}

fn identity(metadata: &Metadata) -> Identity {
    let Metadata { cluster_id, member_id, directory_uuid, .. } = *metadata;
    Identity { cluster_id, member_id, directory_uuid }
}

/// What the database has applied. Opening it proves that its root is that of its contents.
fn read(database: &Path, metadata: &Metadata) -> Result<(Applied, i64), CheckError> {
    let backend = Backend::open(tally_backend::Config::new(database, identity(metadata)))
        .map_err(|source| CheckError::Database { path: database.to_owned(), source: Box::new(source) })?;
    let (applier, reads) = Applier::open(backend.clone(), tally_mvcc::Options::default()).map_err(CheckError::State)?;
    let found = (applier.applied().clone(), reads.kv().revision());
    drop((applier, reads));
    backend.close().map_err(CheckError::Close)?;
    Ok(found)
}

/// The term of the entry at `index` in the log, if it is there or is the last one that was purged.
fn term_in_log(wal: &Path, log: &Report, index: u64) -> Result<Option<u64>, ScanError> {
    if let Some(purged) = log.purged.filter(|purged| purged.index.get() == index) {
        return Ok(Some(purged.term));
    }
    // The last version counts: what a later leader wrote.
    entries(wal, Some(index), index)?.last().transpose().map(|found| found.map(|(position, _)| position.term))
}

/// What a server asks before it starts, in its words: the database stands somewhere in the log, on the same entry.
fn stands_on(wal: &Path, log: &Report, applied: &Applied, log_term: Option<u64>) -> Result<(), Box<OpenError>> {
    let wal = wal.to_path_buf();
    let last = log.last.max(log.purged).map_or(0, |position| position.index.get());
    let purged = log.purged.map_or(0, |position| position.index.get());
    let &Applied { index, term, .. } = applied;
    let refused = match log_term {
        _ if index > last => OpenError::StoreAhead { wal, applied: index, last },
        _ if index < purged => OpenError::StoreBehind { wal, applied: index, purged },
        Some(log_term) if log_term != term => OpenError::Diverged { wal, index, applied_term: term, log_term },
        Some(_) | None => return Ok(()),
    };
    Err(Box::new(refused))
}

/// The root of a fresh store built from the entries up to `upto`.
fn replay(wal: &Path, metadata: &Metadata, upto: u64) -> Result<u128, CheckError> {
    let last = last_versions(wal, upto)?;
    let temporary = Temporary::create()?;
    let backend = Backend::open(tally_backend::Config::new(temporary.0.join("db"), identity(metadata)))
        .map_err(|source| CheckError::Fresh(Box::new(source)))?;
    let (mut applier, reads) =
        Applier::open(backend.clone(), tally_mvcc::Options::default()).map_err(CheckError::State)?;
    let (mut chunk, mut chunk_bytes) = (Vec::with_capacity(CHUNK_ENTRIES), 0);
    let mut apply = |chunk: &mut Vec<Committed>| {
        let before = chunk.last().map_or(0, |entry| entry.index + 1);
        applier.apply(chunk).map_err(|source| CheckError::Replay { before, source })?;
        chunk.clear();
        Ok::<_, CheckError>(())
    };
    for (number, record) in entries(wal, None, upto)?.enumerate() {
        let (position, payload) = record?;
        let slot = usize::try_from(position.index.get()).unwrap_or(usize::MAX);
        if last.get(slot) != Some(&(number as u64)) {
            continue;
        }
        chunk_bytes += payload.len();
        chunk.push(Committed {
            index: position.index.get(),
            term: position.term,
            body: body(position.term, payload),
            asked: false,
        });
        if chunk.len() == CHUNK_ENTRIES || chunk_bytes >= CHUNK_BYTES {
            apply(&mut chunk)?;
            chunk_bytes = 0;
        }
    }
    if !chunk.is_empty() {
        apply(&mut chunk)?;
    }
    let root = applier.applied().root;
    drop((applier, reads));
    backend.close().map_err(CheckError::Close)?;
    Ok(root)
}

fn body(entry_term: u64, payload: Bytes) -> Body {
    match describe_entry(&payload) {
        // Meant for another leader than the one who wrote it: it does nothing, on every member alike.
        EntryView::Proposal { term, .. } if term != entry_term => Body::Blank,
        EntryView::Proposal { command, .. } => Body::Command(payload.slice_ref(command)),
        EntryView::Command(command) => Body::Command(payload.slice_ref(command)),
        EntryView::Membership(_) => Body::Membership(payload),
        EntryView::Blank => Body::Blank,
        // Applying it fails and says what is wrong with it.
        EntryView::Unreadable(_) => Body::Command(payload),
    }
}

type Found = Result<(LogPosition, Bytes), ScanError>;

/// The entries from one index up to another as they were written, those that were dropped again included.
fn entries(wal: &Path, from: Option<u64>, upto: u64) -> Result<impl Iterator<Item = Found>, ScanError> {
    let (from, to) = (from.map(LogIndex::new), Some(LogIndex::new(upto)));
    let options = ScanOptions { from, to, types: vec![RecordType::Entry] };
    Ok(scan(wal, options)?.filter_map(|record| match record {
        Ok(record) => match record.view {
            RecordView::Entry { position, payload } => Some(Ok((position, payload))),
            RecordView::Crc(_)
            | RecordView::Metadata(_)
            | RecordView::State(_)
            | RecordView::Truncate { .. }
            | RecordView::Snapshot(_) => None,
        },
        Err(error) => Some(Err(error)),
    }))
}

/// For each index, the number of the record that holds its last version: what a later leader wrote counts. 8 bytes per
/// entry.
fn last_versions(wal: &Path, upto: u64) -> Result<Vec<u64>, ScanError> {
    let mut last = Vec::new();
    for (number, record) in entries(wal, None, upto)?.enumerate() {
        let (position, _) = record?;
        let slot = usize::try_from(position.index.get()).unwrap_or(usize::MAX);
        if last.len() <= slot {
            last.resize(slot + 1, u64::MAX);
        }
        last[slot] = number as u64;
    }
    Ok(last)
}

/// A directory that is removed when dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn create() -> Result<Temporary, CheckError> {
        let path = std::env::temp_dir().join(format!("tally-check-{}", uuid::Uuid::new_v4()));
        // A copy of all data comes into it.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|source| CheckError::Temporary { path: path.clone(), source })?;
        Ok(Temporary(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(index: u64, term: u64) -> Option<LogPosition> {
        Some(LogPosition { index: LogIndex::new(index), term })
    }

    /// Looks at a database that has applied this index of this term.
    fn judge(purged: Option<LogPosition>, last: Option<LogPosition>, index: u64, term: u64) -> Option<OpenError> {
        let log = Report {
            dir: PathBuf::from("wal"),
            metadata: None,
            segments: Vec::new(),
            state: tally_wal::State::default(),
            purged,
            first: None,
            last,
            torn: None,
            problem: None,
        };
        let applied = Applied { index, term, ..Applied::default() };
        let log_term = purged.filter(|purged| purged.index.get() == index).map_or(2, |purged| purged.term);
        stands_on(Path::new("wal"), &log, &applied, Some(log_term)).err().map(|refused| *refused)
    }

    #[test]
    fn a_database_must_stand_on_its_log() {
        let (purged, last) = (position(10, 1), position(20, 2));
        assert!(judge(purged, last, 15, 2).is_none());
        assert!(judge(purged, last, 10, 1).is_none());
        assert!(judge(purged, None, 10, 1).is_none());
        let ahead = judge(purged, last, 21, 2);
        assert!(matches!(ahead, Some(OpenError::StoreAhead { applied: 21, last: 20, .. })), "{ahead:?}");
        let emptied = judge(purged, None, 11, 2);
        assert!(matches!(emptied, Some(OpenError::StoreAhead { applied: 11, last: 10, .. })), "{emptied:?}");
        let behind = judge(purged, last, 9, 1);
        assert!(matches!(behind, Some(OpenError::StoreBehind { applied: 9, purged: 10, .. })), "{behind:?}");
        for (index, term, expected) in [(10, 2, 1), (15, 1, 2)] {
            match judge(purged, last, index, term) {
                Some(OpenError::Diverged { log_term, .. }) => assert_eq!(log_term, expected),
                other => panic!("{other:?}"),
            }
        }
    }
}
