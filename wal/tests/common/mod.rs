//! A model of the log, and a driver that does the same to a log and to the model and remembers what was acknowledged.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tally_wal::{
    AppendError, Config, Entry, LogIndex, LogPosition, Metadata, ReadError, Recovered, State, Ticket, Wal,
};

pub const DIR: &str = "/data/wal";

pub fn dir() -> &'static Path {
    Path::new(DIR)
}

pub fn identity() -> Metadata {
    Metadata { format: 1, cluster_id: 0xc1, member_id: 0x3e, directory_uuid: *b"0123456789abcdef" }
}

/// Small enough that a few entries fill a segment and a group.
pub fn small() -> Config {
    Config {
        metadata: Some(identity()),
        segment_bytes: 1024,
        group_bytes_max: 400,
        tail_bytes_max: 500,
        ..Config::default()
    }
}

pub fn index(value: u64) -> LogIndex {
    LogIndex::new(value)
}

pub fn at(value: u64, term: u64) -> LogPosition {
    LogPosition { index: index(value), term }
}

pub fn entry(value: u64, term: u64, size: usize) -> Entry {
    let byte = u8::try_from((value * 31 + term * 7) % 251).unwrap();
    Entry { index: index(value), term, payload: Bytes::from(vec![byte; size]) }
}

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub entries: Vec<Entry>,
    pub purged: Option<LogPosition>,
    pub state: State,
}

impl Model {
    pub fn next(&self) -> u64 {
        let purged = self.purged.map_or(1, |purged| purged.index.get() + 1);
        self.entries.last().map_or(purged, |last| last.index.get() + 1)
    }

    /// Reads everything a log holds.
    pub fn of(wal: &Wal, recovered: &Recovered) -> Model {
        Model::try_of(wal, recovered).unwrap()
    }

    /// Reads everything a log holds, if the disk lets it.
    pub fn try_of(wal: &Wal, recovered: &Recovered) -> Result<Model, ReadError> {
        let reader = wal.reader();
        let entries = match (reader.first(), reader.last()) {
            (Some(first), Some(last)) => reader.read(first..last.index.next(), usize::MAX)?,
            (None, None) => Vec::new(),
            other => panic!("{other:?}"),
        };
        assert_eq!(reader.first(), entries.first().map(|entry| entry.index));
        assert_eq!(reader.last(), entries.last().map(Entry::position));
        for entry in &entries {
            assert_eq!(reader.term_of(entry.index), Some(entry.term));
        }
        Ok(Model { entries, purged: reader.purged(), state: recovered.state.clone() })
    }
}

/// One thing to do; amounts are reduced to what is possible.
#[derive(Clone, Debug)]
pub enum Op {
    Append {
        count: usize,
        size: usize,
        new_term: bool,
    },
    State {
        vote: u8,
        committed: bool,
    },
    Truncate {
        drop: usize,
    },
    Purge {
        keep: usize,
    },
    /// Purges beyond the end, as after a snapshot was received.
    Skip {
        by: u64,
    },
}

/// How an operation is waited for.
#[derive(Clone, Copy, Debug)]
pub enum Ack {
    Wait,
    Callback,
    None,
}

/// Does things to a log. `history[i]` is what the log holds after its i-th record.
pub struct Driver {
    pub history: Vec<Model>,
    term: u64,
    /// The newest state that somebody was told is durable.
    pub acknowledged: Arc<AtomicUsize>,
    /// What callbacks were told, in the order they were called.
    pub told: Arc<Mutex<Vec<(usize, bool)>>>,
    pub asked: usize,
}

impl Driver {
    pub fn from(model: Model) -> Driver {
        let term = model.entries.iter().map(|entry| entry.term).chain(model.purged.map(|p| p.term)).max().unwrap_or(1);
        Driver { history: vec![model], term, acknowledged: Arc::default(), told: Arc::default(), asked: 0 }
    }

    pub fn now(&self) -> &Model {
        self.history.last().unwrap()
    }

    fn push(&mut self, change: impl FnOnce(&mut Model)) {
        let mut model = self.now().clone();
        change(&mut model);
        self.history.push(model);
    }

    pub fn apply(&mut self, wal: &mut Wal, op: &Op) -> Result<Ticket, AppendError> {
        match op {
            Op::Append { count, size, new_term } => {
                self.term += u64::from(*new_term);
                let first = self.now().next();
                let entries = (first..first + *count as u64)
                    .map(|i| entry(i, self.term, size + i as usize % 3))
                    .collect::<Vec<_>>();
                let ticket = wal.append(&entries)?;
                for entry in entries {
                    self.push(|model| model.entries.push(entry));
                }
                Ok(ticket)
            }
            Op::State { vote, committed } => {
                let committed = committed.then(|| self.now().entries.last().map(Entry::position)).flatten();
                let state = State { vote: vec![*vote; usize::from(vote % 65)].into(), committed };
                let ticket = wal.save_state(state.clone())?;
                self.push(|model| model.state = state);
                Ok(ticket)
            }
            Op::Truncate { drop } => {
                let keep = self.now().entries.len().saturating_sub(*drop);
                let after = match keep {
                    0 => self.now().purged.map(|purged| purged.index),
                    keep => Some(self.now().entries[keep - 1].index),
                };
                let ticket = wal.truncate_after(after)?;
                // Entries may have another term after a truncation.
                self.term += 1;
                self.push(|model| model.entries.truncate(keep));
                Ok(ticket)
            }
            Op::Purge { keep } => {
                let gone = self.now().entries.len().saturating_sub(*keep);
                let Some(position) = gone.checked_sub(1).map(|last| self.now().entries[last].position()) else {
                    return wal.append(&[]);
                };
                let ticket = wal.purge_upto(position)?;
                self.push(|model| {
                    model.entries.drain(..gone);
                    model.purged = Some(position);
                });
                Ok(ticket)
            }
            Op::Skip { by } => {
                let position = at(self.now().next() + by, self.term);
                let ticket = wal.purge_upto(position)?;
                self.push(|model| {
                    model.entries.clear();
                    model.purged = Some(position);
                });
                Ok(ticket)
            }
        }
    }

    /// False if the log has failed.
    pub fn acknowledge(&mut self, wal: &Wal, ticket: Ticket, ack: Ack) -> bool {
        let version = self.history.len() - 1;
        match ack {
            Ack::None => true,
            Ack::Wait => {
                let durable = wal.wait(ticket).is_ok();
                if durable {
                    self.acknowledged.fetch_max(version, Ordering::SeqCst);
                }
                durable
            }
            Ack::Callback => {
                self.asked += 1;
                let (acknowledged, told) = (Arc::clone(&self.acknowledged), Arc::clone(&self.told));
                wal.flush(ticket, move |result| {
                    told.lock().unwrap().push((version, result.is_ok()));
                    if result.is_ok() {
                        acknowledged.fetch_max(version, Ordering::SeqCst);
                    }
                });
                true
            }
        }
    }

    /// Once the log is gone: every callback was called, in order, and none after a failure was told of success.
    pub fn check_callbacks(&self) {
        let told = self.told.lock().unwrap();
        assert_eq!(told.len(), self.asked, "a callback was dropped");
        assert!(told.is_sorted_by_key(|(version, _)| *version), "callbacks out of order: {told:?}");
        assert!(told.is_sorted_by_key(|(_, ok)| !*ok), "acknowledged after a failure: {told:?}");
    }

    /// The recovered log must be one of the states since the last acknowledged one.
    pub fn check_recovered(&self, found: &Model) {
        let acknowledged = self.acknowledged.load(Ordering::SeqCst);
        let allowed = &self.history[acknowledged..];
        assert!(
            allowed.contains(found),
            "found {found:#?}\nwhich is none of the {} states since the acknowledged one: {:#?}",
            allowed.len(),
            allowed[0]
        );
    }
}
