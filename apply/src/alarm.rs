//! Alarms: replicated flags that close the gate on writes, and their place in the backend.
//!
//! An alarm is one record in the alarm bucket: the member's id (8 bytes big-endian) and the kind (1 byte), with an empty value.

use std::collections::BTreeSet;

use tally_backend::{Bucket, ReadTx, WriteBatch};

use crate::applier::OpenError;
use crate::root::{self, Part};

/// What an alarm says is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmKind {
    /// A member's store is over its quota: writes that add data are refused.
    NoSpace,
    /// Replicas differ: every request is refused, reads too.
    Corrupt,
}

impl AlarmKind {
    /// etcd's number of the kind.
    pub fn number(self) -> u8 {
        match self {
            Self::NoSpace => 1,
            Self::Corrupt => 2,
        }
    }

    /// The kind with etcd's number.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::NoSpace),
            2 => Some(Self::Corrupt),
            _ => None,
        }
    }

    /// etcd's name of the kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoSpace => "NOSPACE",
            Self::Corrupt => "CORRUPT",
        }
    }
}

/// What to do with an alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlarmAction {
    /// Raise it; raising it twice is once.
    Activate,
    /// Clear it; clearing what is not raised changes nothing.
    Deactivate,
}

impl AlarmAction {
    pub(crate) fn number(self) -> i64 {
        match self {
            Self::Activate => 1,
            Self::Deactivate => 2,
        }
    }

    pub(crate) fn from_number(number: i64) -> Option<Self> {
        match number {
            1 => Some(Self::Activate),
            2 => Some(Self::Deactivate),
            _ => None,
        }
    }
}

/// One raised alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    /// The member that it is about.
    pub member_id: u64,
    /// What is wrong there.
    pub kind: AlarmKind,
}

/// Raises or clears one alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlarmCommand {
    /// Raise or clear.
    pub action: AlarmAction,
    /// The member that it is about.
    pub member_id: u64,
    /// What is wrong there.
    pub kind: AlarmKind,
}

/// The alarms raised now, in order, with their part of the state root.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alarms {
    raised: BTreeSet<Alarm>,
    sum: u128,
}

impl Alarms {
    pub(crate) fn load(tx: &ReadTx) -> Result<Self, OpenError> {
        let mut alarms = Self::default();
        for item in tx.scan(Bucket::Alarm, &[], None) {
            let (key, _) = item?;
            let alarm = decode(&key).ok_or_else(|| OpenError::Corrupt { what: "alarm record", key: key.to_vec() })?;
            alarms.insert(alarm);
        }
        Ok(alarms)
    }

    pub(crate) fn any(&self, kind: AlarmKind) -> bool {
        self.raised.iter().any(|alarm| alarm.kind == kind)
    }

    pub(crate) fn list(&self) -> Vec<Alarm> {
        self.raised.iter().copied().collect()
    }

    pub(crate) fn sum(&self) -> u128 {
        self.sum
    }

    /// Carries out the command; it cannot be refused. Returns the alarm if it is raised now, or was cleared by this.
    pub(crate) fn act(&mut self, command: AlarmCommand, batch: &mut WriteBatch) -> Option<Alarm> {
        let alarm = Alarm { member_id: command.member_id, kind: command.kind };
        match command.action {
            AlarmAction::Activate => {
                if self.insert(alarm) {
                    batch.put(Bucket::Alarm, &encode(alarm), &[]);
                }
            }
            AlarmAction::Deactivate if self.remove(alarm) => batch.delete(Bucket::Alarm, &encode(alarm)),
            AlarmAction::Deactivate => return None,
        }
        Some(alarm)
    }

    fn insert(&mut self, alarm: Alarm) -> bool {
        let new = self.raised.insert(alarm);
        if new {
            self.sum = self.sum.wrapping_add(root::print(Part::Alarm, &encode(alarm), &[]));
        }
        new
    }

    fn remove(&mut self, alarm: Alarm) -> bool {
        let was = self.raised.remove(&alarm);
        if was {
            self.sum = self.sum.wrapping_sub(root::print(Part::Alarm, &encode(alarm), &[]));
        }
        was
    }
}

fn encode(alarm: Alarm) -> [u8; 9] {
    let mut key = [0; 9];
    key[..8].copy_from_slice(&alarm.member_id.to_be_bytes());
    key[8] = alarm.kind.number();
    key
}

fn decode(key: &[u8]) -> Option<Alarm> {
    let key: &[u8; 9] = key.try_into().ok()?;
    let (id, kind) = key.split_first_chunk::<8>()?;
    Some(Alarm { member_id: u64::from_be_bytes(*id), kind: AlarmKind::from_number(kind[0])? })
}
