//! The applier: committed entries in, outcomes out; one batch and one commit for everything that was handed over together.

mod leases;

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tally_backend::{Applied, Backend, Bucket, StorageError, WriteBatch};
use tally_lease::Leases;
use tally_mvcc::{Answers, CheckError, Options as KvOptions, WriteError, Writer};

use crate::alarm::{AlarmCommand, Alarms};
use crate::aside::{Aside, InPlace};
use crate::checkpoints::{self, Checkpoints};
use crate::command::{Command, DecodeError};
use crate::gate;
use crate::lease_feed::{LeaseChange, LeaseFeed};
use crate::member::Members;
use crate::outcome::{Outcome, Rejection, Reply};
use crate::reads::{Reads, Shared};
use crate::root;

/// The feature level of a new store, and the highest that this program knows.
pub const FEATURE_LEVEL: u32 = 1;
/// The level of a store in which none is written down, whatever this program knows: it was made at this one, and is at it until
/// the log says otherwise.
const FIRST_LEVEL: u32 = 1;

/// What is read for the answer to one request at most, in bytes of records: no message is longer in etcd.
pub const ANSWER_BYTES_MAX: usize = i32::MAX as usize;

/// A command that touches more keys than this takes longer than a chunk of small ones.
const LONG_KEYS: u64 = 1_024;

const LEVEL_KEY: &[u8] = b"apply.level";

/// How much is written, and read, at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Once a batch has so many bytes, it is committed before the next entry. Default 64 MiB. Changes no answer.
    pub batch_bytes: u64,
    /// What a command of a client may write by deleting, in bytes: keys and 64 bytes for each. Default 2 GiB, or some twenty
    /// million keys. It decides what is refused, so **it must be the same on all replicas**: only tests set it.
    pub removed_bytes: u64,
    /// What may be read for the reply to one command, in bytes of records. Default [`ANSWER_BYTES_MAX`]. What needs
    /// more is done all the same, and answered with [`Reply::AnswerTooLarge`]. Changes that reply alone, and only where
    /// it was asked.
    pub answer_bytes: usize,
    /// The same for all commands that are handed over together. Default [`ANSWER_BYTES_MAX`], too.
    pub answers_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            batch_bytes: 64 << 20,
            removed_bytes: 2 << 30,
            answer_bytes: ANSWER_BYTES_MAX,
            answers_bytes: ANSWER_BYTES_MAX,
        }
    }
}

/// One committed log entry, in log order.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Its index in the log.
    pub index: u64,
    /// The term it was proposed in.
    pub term: u64,
    /// What it carries.
    pub body: Body,
    /// Whether somebody here waits for the answer: if not, what a command reads is left out of its outcome, and not read.
    pub asked: bool,
}

/// What a log entry carries.
#[derive(Clone, Debug)]
pub enum Body {
    /// Nothing: a new leader's first entry.
    Blank,
    /// An encoded [`Command`].
    Command(Bytes),
    /// The consensus membership in force from here, opaque to this crate.
    Membership(Bytes),
}

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The backend failed.
    #[error("cannot read the store")]
    Storage(#[from] StorageError),
    /// The key-value store does not open.
    #[error("cannot open the key-value store")]
    Kv(#[from] tally_mvcc::OpenError),
    /// The leases do not open.
    #[error("cannot open the leases")]
    Leases(#[from] tally_lease::OpenError),
    /// A record does not decode.
    #[error("the {what} under key {key:02x?} is damaged: restore this member from a snapshot or a backup")]
    Corrupt {
        /// Which kind of record.
        what: &'static str,
        /// Its key.
        key: Vec<u8>,
    },
    /// A member's record does not decode.
    #[error("the member record under key {key:02x?} is damaged")]
    Member {
        /// Its key.
        key: Vec<u8>,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The state found is not the one that was written with the applied index.
    #[error(
        "the state on disk at index {index} has root {found:032x}, but {stored:032x} was stored with it: the data was \
         changed outside of Tally or the disk returned other bytes; restore this member from a snapshot or a backup"
    )]
    Root {
        /// The applied index.
        index: u64,
        /// The root over what was read.
        found: u128,
        /// The root stored with the index.
        stored: u128,
    },
    /// The cluster has moved to a feature level that this program does not know.
    #[error("the store is at feature level {found}, this program knows up to {FEATURE_LEVEL}: run a newer version")]
    FeatureLevel {
        /// The level found.
        found: u32,
    },
}

/// Why applying must stop: not a refusal but a replica that can no longer follow its log. The process has to end.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// A committed entry does not decode.
    #[error("committed entry {index} cannot be decoded")]
    Decode {
        /// The entry's index.
        index: u64,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// Entries did not come in log order without holes.
    #[error("entry {index} was handed over after {applied} was applied")]
    Order {
        /// The entry's index.
        index: u64,
        /// The last index applied.
        applied: u64,
    },
    /// An entry moved the cluster to a feature level that this program does not know.
    #[error("committed entry {index} needs feature level {level}, this program knows up to {FEATURE_LEVEL}")]
    FeatureLevel {
        /// The entry's index.
        index: u64,
        /// The level it sets.
        level: u32,
    },
    /// The backend failed.
    #[error("the store failed while applying entry {index}")]
    Storage {
        /// The entry's index, or the last of the chunk.
        index: u64,
        /// What failed.
        source: StorageError,
    },
    /// A check could not be made: stored data is unreadable or contradicts the index.
    #[error("the store could not check entry {index}")]
    Check {
        /// The entry's index.
        index: u64,
        /// What was found.
        source: CheckError,
    },
    /// A checked entry could not be carried out: stored data is unreadable or contradicts the index.
    #[error("the store could not carry out entry {index}")]
    Write {
        /// The entry's index.
        index: u64,
        /// What was found.
        source: WriteError,
    },
    /// An earlier call was fatal.
    #[error("applying stopped at an earlier error")]
    Stopped,
}

/// The single writer of a replica's state.
pub struct Applier {
    backend: Backend,
    kv: Writer,
    alarms: Alarms,
    members: Members,
    leases: Leases,
    /// What the chunk does to the leases, for those who follow them.
    lease_changes: Vec<LeaseChange>,
    lease_feed: Arc<LeaseFeed>,
    level: u32,
    applied: Applied,
    shared: Arc<ArcSwap<Shared>>,
    checkpoints: Arc<Checkpoints>,
    limits: Limits,
    /// What the answers to the rest of the chunk may hold: all of them are kept until its end.
    answers_left: usize,
    stopped: bool,
}

/// Entries that are applied and not committed yet.
struct Open {
    batch: WriteBatch,
    membership: Option<Bytes>,
    roots: Vec<(u64, u128)>,
    small_state_changed: bool,
    any_long: bool,
}

impl Open {
    fn new(batch: WriteBatch) -> Open {
        Open { batch, membership: None, roots: Vec::new(), small_state_changed: false, any_long: false }
    }
}

impl Applier {
    /// Opens the state kept in `backend`, rebuilds what is derived and proves the root.
    ///
    /// # Errors
    /// [`OpenError`]: what cannot be read, or a root that differs from the one stored with the applied index.
    pub fn open(backend: Backend, options: KvOptions) -> Result<(Self, Reads), OpenError> {
        let tx = backend.read();
        let mut leases = Leases::load(&tx)?;
        let mut dangling = None;
        let (kv, reader) = tally_mvcc::open_with_leases(&backend, options, |key, lease| {
            if let Err(error) = leases.restore(key, lease) {
                dangling = Some(error);
            }
        })?;
        if let Some(error) = dangling {
            return Err(error.into());
        }
        let level = match tx.get(Bucket::Meta, LEVEL_KEY)? {
            None => FIRST_LEVEL,
            Some(value) => {
                let bytes: [u8; 4] = value[..]
                    .try_into()
                    .map_err(|_| OpenError::Corrupt { what: "feature level", key: LEVEL_KEY.to_vec() })?;
                u32::from_be_bytes(bytes)
            }
        };
        if level > FEATURE_LEVEL {
            return Err(OpenError::FeatureLevel { found: level });
        }
        let alarms = Alarms::load(&tx)?;
        let (members, members_as_stored) = Members::load(&tx)?;
        drop(tx);
        let mut applied = backend.applied();
        let found = root::combine(kv.root(), alarms.sum(), members.sum(), &leases, level);
        // Old data: its root was formed over records that still held what is dropped today. From here on it is as today's.
        let found_as_stored = root::combine(kv.root(), alarms.sum(), members_as_stored, &leases, level);
        if applied.index > 0 {
            if applied.root != found && applied.root != found_as_stored {
                return Err(OpenError::Root { index: applied.index, found, stored: applied.root });
            }
            applied.root = found;
        }
        let shared = Arc::new(ArcSwap::from_pointee(Shared {
            applied: applied.clone(),
            alarms: alarms.list().into(),
            members: members.list().into(),
            removed_members: members.removed().into(),
            leases: leases.view(),
            level,
        }));
        let checkpoints = Arc::new(Checkpoints::default());
        let lease_feed = Arc::new(LeaseFeed::default());
        let reads = Reads {
            kv: reader,
            shared: Arc::clone(&shared),
            checkpoints: Arc::clone(&checkpoints),
            lease_feed: Arc::clone(&lease_feed),
            lease_metrics: leases.metrics(),
        };
        let applier = Self {
            backend,
            kv,
            alarms,
            members,
            leases,
            lease_changes: Vec::new(),
            lease_feed,
            level,
            applied,
            shared,
            checkpoints,
            limits: Limits::default(),
            answers_left: 0,
            stopped: false,
        };
        Ok((applier, reads))
    }

    /// The same with other limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The last entry applied, with the root after it.
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    /// Applies consecutive entries with one atomic commit, then shows them to readers; with several, one after the other,
    /// where they write much ([`Limits::batch_bytes`]). The outcomes are in entry order.
    ///
    /// Cost: O(log n) per key touched; a delete of a range or a compaction costs what it removes.
    ///
    /// # Errors
    /// [`Fatal`]: the replica cannot follow its log. Nothing is visible or kept from the last commit on, and every later call
    /// fails.
    pub fn apply(&mut self, entries: &[Committed]) -> Result<Vec<Outcome>, Fatal> {
        self.apply_aside(entries, &InPlace)
    }

    /// As [`Applier::apply`]; commands that touch thousands of keys, and the commit of what they did, are carried out
    /// `aside`.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub fn apply_aside(&mut self, entries: &[Committed], aside: &impl Aside) -> Result<Vec<Outcome>, Fatal> {
        if self.stopped {
            return Err(Fatal::Stopped);
        }
        let result = self.apply_chunk(entries, aside);
        self.stopped = result.is_err();
        result
    }

    fn apply_chunk(&mut self, entries: &[Committed], aside: &impl Aside) -> Result<Vec<Outcome>, Fatal> {
        let mut outcomes = Vec::with_capacity(entries.len());
        self.answers_left = self.limits.answers_bytes;
        let mut open = Open::new(self.backend.batch());
        let mut at = self.applied.index;
        for (entry, left) in entries.iter().zip((0..entries.len()).rev()) {
            if entry.index != at + 1 {
                return Err(Fatal::Order { index: entry.index, applied: at });
            }
            at = entry.index;
            let result = match &entry.body {
                Body::Blank => Ok(Reply::Done),
                Body::Membership(voters) => {
                    open.membership = Some(voters.clone());
                    Ok(Reply::Done)
                }
                Body::Command(encoded) => {
                    let command =
                        Command::decode(encoded).map_err(|source| Fatal::Decode { index: entry.index, source })?;
                    open.small_state_changed |= command.changes_small_state();
                    if self.takes_long(&command) {
                        open.any_long = true;
                        aside.run(|| self.apply_command(entry, command, &mut open.batch))?
                    } else {
                        self.apply_command(entry, command, &mut open.batch)?
                    }
                }
            };
            outcomes.push(Outcome { revision: self.kv.revision(), result });
            if checkpoints::is_at(entry.index) {
                open.roots.push((entry.index, self.root()));
            }
            if left == 0 || open.batch.bytes() >= self.limits.batch_bytes {
                let next = Open::new(self.backend.batch());
                self.close(std::mem::replace(&mut open, next), entry, aside)?;
            }
        }
        Ok(outcomes)
    }

    /// Commits what was applied up to and with `last`.
    fn close(&mut self, open: Open, last: &Committed, aside: &impl Aside) -> Result<(), Fatal> {
        let Open { batch, membership, roots, small_state_changed, any_long } = open;
        let applied = Applied {
            index: last.index,
            term: last.term,
            root: self.root(),
            membership: membership.unwrap_or_else(|| self.applied.membership.clone()),
        };
        if any_long {
            aside.run(|| self.commit(batch, applied, small_state_changed))?;
        } else {
            self.commit(batch, applied, small_state_changed)?;
        }
        if !roots.is_empty() {
            self.checkpoints.extend(roots);
        }
        Ok(())
    }

    /// Whether a command touches so many keys that others should not have to wait for it.
    fn takes_long(&self, command: &Command) -> bool {
        let keys = match command {
            Command::DeleteRange(request) => self.kv.extent_of_delete(request),
            Command::Txn(request) => self.kv.extent_of_txn(request),
            Command::LeaseRevoke { id } => self.leases.keys_up_to(*id, LONG_KEYS + 1),
            Command::LeaseExpire { ids, .. } => ids.iter().map(|id| self.leases.keys_up_to(*id, LONG_KEYS + 1)).sum(),
            // Every key with a history may have something to drop.
            Command::Compact { .. } => return true,
            Command::Put(_)
            | Command::Alarm(_)
            | Command::SetFeatureLevel { .. }
            | Command::SetMember(_)
            | Command::RemoveMember { .. }
            | Command::LeaseGrant { .. }
            | Command::LeaseCheckpoint { .. } => return false,
        };
        keys > LONG_KEYS
    }

    /// The root of everything that is replicated, staged changes included.
    fn root(&self) -> u128 {
        root::combine(self.kv.root(), self.alarms.sum(), self.members.sum(), &self.leases, self.level)
    }

    /// Durable order: effects and index in one write, and only then anything that a reader can see.
    fn commit(&mut self, mut batch: WriteBatch, applied: Applied, small_state_changed: bool) -> Result<(), Fatal> {
        self.kv.stage_meta(&mut batch);
        batch.commit(&applied).map_err(|source| Fatal::Storage { index: applied.index, source })?;
        self.kv.publish();
        self.applied = applied;
        let shared = self.shared.load();
        let (alarms, members, removed_members) = if small_state_changed {
            (self.alarms.list().into(), self.members.list().into(), self.members.removed().into())
        } else {
            (Arc::clone(&shared.alarms), Arc::clone(&shared.members), Arc::clone(&shared.removed_members))
        };
        let (applied, leases) = (self.applied.clone(), self.leases.view());
        self.shared.store(Arc::new(Shared { applied, alarms, members, removed_members, leases, level: self.level }));
        self.lease_feed.tell(&mut self.lease_changes);
        Ok(())
    }

    fn apply_command(
        &mut self,
        entry: &Committed,
        command: Command,
        batch: &mut WriteBatch,
    ) -> Result<Result<Reply, Rejection>, Fatal> {
        let index = entry.index;
        if let Err(rejection) = gate::check(&self.alarms, &command) {
            return Ok(Err(rejection));
        }
        let write = |source| Fatal::Write { index, source };
        let checked = |error| match error {
            CheckError::Rejected(rejection) => Ok(Rejection::Kv(rejection)),
            source => Err(Fatal::Check { index, source }),
        };
        if let Some(meant) = command.only_in_term().filter(|term| *term != entry.term) {
            return Ok(Err(Rejection::OtherTerm { meant, found: entry.term }));
        }
        let limit = self.limits.answer_bytes;
        let left = self.answers_left;
        self.kv.answer(if entry.asked { Answers::UpTo(limit.min(left)) } else { Answers::LeftOut });
        let staged = self.kv.staged().len();
        let lease_exists = |lease| self.leases.contains(lease);
        let reply = match command {
            Command::Put(request) => match self.kv.check_put_with_leases(&request, &lease_exists) {
                Ok(()) => Reply::Put(self.kv.put(&request, batch).map_err(write)?),
                Err(error) => return checked(error).map(Err),
            },
            Command::DeleteRange(request) => {
                match self.check_removal(self.kv.removed_bytes(&request, self.limits.removed_bytes)) {
                    Ok(()) => Reply::DeleteRange(self.kv.delete_range(&request, batch).map_err(write)?),
                    Err(rejection) => return Ok(Err(rejection)),
                }
            }
            Command::Txn(request) => match self.kv.check_with_leases(&request, &lease_exists) {
                Ok(plan) => {
                    match self.check_removal(self.kv.removed_bytes_of_txn(&request, &plan, self.limits.removed_bytes)) {
                        Ok(()) => Reply::Txn(self.kv.act(plan, &request, batch).map_err(write)?),
                        Err(rejection) => return Ok(Err(rejection)),
                    }
                }
                Err(error) => return checked(error).map(Err),
            },
            Command::Compact { revision } => match self.kv.check_compact(revision) {
                Ok(()) => {
                    self.kv.compact(revision, batch).map_err(write)?;
                    Reply::Compact
                }
                Err(rejection) => return Ok(Err(rejection.into())),
            },
            Command::Alarm(command) => self.alarm(command, batch),
            Command::SetFeatureLevel { level } => return self.set_level(index, level, batch),
            Command::SetMember(member) => match self.members.check_set(&member) {
                Ok(()) => {
                    self.members.set(member, batch);
                    Reply::Done
                }
                Err(rejection) => return Ok(Err(rejection)),
            },
            Command::RemoveMember { id } => {
                self.members.remove(id, batch);
                Reply::Done
            }
            Command::LeaseGrant { id, ttl_s } => return Ok(self.grant(id, ttl_s, batch)),
            Command::LeaseRevoke { id } => return self.revoke(index, id, batch),
            Command::LeaseCheckpoint { remaining, .. } => self.checkpoint(&remaining, batch),
            Command::LeaseExpire { ids, .. } => return self.expire(index, &ids, batch).map(Ok),
        };
        self.follow(staged);
        if self.kv.answer_was_cut() {
            let wrote = self.kv.staged().len() > staged;
            return Ok(Ok(Reply::AnswerTooLarge { limit, wrote }));
        }
        self.answers_left = left - self.kv.answered_bytes();
        Ok(Ok(reply))
    }

    /// All that a command does is one atomic write, and of what it may delete the command itself says nothing.
    fn check_removal(&self, bytes: u64) -> Result<(), Rejection> {
        let limit = self.limits.removed_bytes;
        if bytes > limit { Err(Rejection::RemovesTooMuch { limit }) } else { Ok(()) }
    }

    fn alarm(&mut self, command: AlarmCommand, batch: &mut WriteBatch) -> Reply {
        Reply::Alarm(self.alarms.act(command, batch))
    }

    fn set_level(&mut self, index: u64, level: u32, batch: &mut WriteBatch) -> Result<Result<Reply, Rejection>, Fatal> {
        if level > FEATURE_LEVEL {
            return Err(Fatal::FeatureLevel { index, level });
        }
        if level < self.level {
            return Ok(Err(Rejection::FeatureLevel { requested: level, current: self.level }));
        }
        self.level = level;
        batch.put(Bucket::Meta, LEVEL_KEY, &level.to_be_bytes());
        Ok(Ok(Reply::Done))
    }
}
