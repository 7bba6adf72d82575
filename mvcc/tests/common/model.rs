//! The naive store: every version of every key in a list, every question answered by looking at all of it.
//! Written after etcd's rules, sharing no code with the real one.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use tally_mvcc::{
    Compare, CompareResult, CompareTarget, DeleteRequest, KeyRange, Op, PutRequest, RangeRequest, Record, Rejection,
    SortOrder, SortTarget, TxnRequest,
};

/// One record, all fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kv {
    pub key: Vec<u8>,
    pub create: i64,
    pub modified: i64,
    pub version: i64,
    pub value: Vec<u8>,
    pub lease: i64,
}

impl From<&Record> for Kv {
    fn from(record: &Record) -> Kv {
        let parts = record.parts();
        Kv {
            key: parts.key.to_vec(),
            create: parts.create_revision,
            modified: parts.mod_revision,
            version: parts.version,
            value: parts.value.to_vec(),
            lease: parts.lease,
        }
    }
}

/// The answer to one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Range { kvs: Vec<Kv>, more: bool, count: i64, revision: i64 },
    Put { prev: Option<Kv>, revision: i64 },
    Delete { deleted: i64, prevs: Vec<Kv>, revision: i64 },
    Txn { succeeded: bool, answers: Vec<Answer>, revision: i64 },
}

#[derive(Clone, Debug)]
pub struct Model {
    pub revision: i64,
    pub compact: i64,
    /// Every write there ever was, in order; version 0 is a delete.
    log: Vec<Kv>,
}

impl Model {
    pub fn new() -> Model {
        Model { revision: 1, compact: -1, log: Vec::new() }
    }

    fn at(&self, revision: i64) -> BTreeMap<Vec<u8>, Kv> {
        let mut state = BTreeMap::new();
        for kv in self.log.iter().filter(|kv| kv.modified <= revision) {
            match kv.version {
                0 => state.remove(&kv.key),
                _ => state.insert(kv.key.clone(), kv.clone()),
            };
        }
        state
    }

    fn found(&self, range: &KeyRange, revision: i64) -> Vec<Kv> {
        self.at(revision).into_values().filter(|kv| range.contains(&kv.key)).collect()
    }

    /// How many records a fully swept store holds.
    pub fn records(&self) -> usize {
        let keys: BTreeSet<_> = self.log.iter().map(|kv| &kv.key).collect();
        let kept = |key: &Vec<u8>| {
            let of_key = || self.log.iter().filter(|kv| kv.key == *key);
            let newest = of_key().rfind(|kv| kv.modified <= self.compact);
            let kept = newest.is_some_and(|kv| kv.version > 0 || kv.modified == self.compact);
            of_key().filter(|kv| kv.modified > self.compact).count() + usize::from(kept)
        };
        keys.into_iter().map(kept).sum()
    }

    pub fn range(&self, request: &RangeRequest) -> Result<Answer, Rejection> {
        let requested = request.revision;
        if requested > self.revision {
            return Err(Rejection::FutureRevision { requested, current: self.revision });
        }
        if requested > 0 && requested < self.compact {
            return Err(Rejection::Compacted { requested, compacted: self.compact });
        }
        Ok(self.read(request, self.revision))
    }

    fn read(&self, request: &RangeRequest, current: i64) -> Answer {
        let options = &request.options;
        let mut kvs = self.found(&request.range, if request.revision > 0 { request.revision } else { current });
        let count = kvs.len() as i64;
        if options.count_only {
            return Answer::Range { kvs: vec![], more: false, count, revision: current };
        }
        let filters = [
            options.min_mod_revision,
            options.max_mod_revision,
            options.min_create_revision,
            options.max_create_revision,
        ];
        if options.sort_order == SortOrder::None && filters == [0; 4] && options.limit > 0 {
            kvs.truncate(options.limit as usize + 1);
        }
        kvs.retain(|kv| {
            let pruned = (filters[0] != 0 && kv.modified < filters[0])
                || (filters[1] != 0 && kv.modified > filters[1])
                || (filters[2] != 0 && kv.create < filters[2])
                || (filters[3] != 0 && kv.create > filters[3]);
            !pruned
        });
        let compare = |one: &Kv, other: &Kv| match options.sort_target {
            SortTarget::Key => one.key.cmp(&other.key),
            SortTarget::Version => one.version.cmp(&other.version),
            SortTarget::Create => one.create.cmp(&other.create),
            SortTarget::Mod => one.modified.cmp(&other.modified),
            SortTarget::Value => one.value.cmp(&other.value),
        };
        match options.sort_order {
            SortOrder::Descend => kvs.sort_by(|one, other| compare(other, one)),
            SortOrder::Ascend | SortOrder::None => kvs.sort_by(compare),
        }
        let more = options.limit > 0 && kvs.len() as i64 > options.limit;
        if more {
            kvs.truncate(options.limit as usize);
        }
        if options.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        Answer::Range { kvs, more, count, revision: current }
    }

    pub fn put(&mut self, put: &PutRequest) -> Result<Answer, Rejection> {
        self.txn_ops(&[Op::Put(put.clone())]).map(|mut answers| answers.remove(0))
    }

    pub fn delete(&mut self, delete: &DeleteRequest) -> Answer {
        self.txn_ops(&[Op::Delete(delete.clone())]).expect("nothing refuses a delete").remove(0)
    }

    fn txn_ops(&mut self, ops: &[Op]) -> Result<Vec<Answer>, Rejection> {
        let txn = TxnRequest { success: ops.to_vec(), ..TxnRequest::default() };
        match self.txn(&txn)? {
            Answer::Txn { answers, .. } => Ok(answers),
            other => panic!("{other:?}"),
        }
    }

    pub fn txn(&mut self, txn: &TxnRequest) -> Result<Answer, Rejection> {
        let before = self.at(self.revision);
        self.check(txn, &before)?;
        let (base, writes) = (self.revision, self.log.len());
        let answer = self.run(txn, &before, base, writes);
        if self.log.len() > writes {
            self.revision = base + 1;
        }
        Ok(answer)
    }

    fn check(&self, txn: &TxnRequest, before: &BTreeMap<Vec<u8>, Kv>) -> Result<(), Rejection> {
        let ops = if holds(txn, before) { &txn.success } else { &txn.failure };
        for op in ops {
            match op {
                Op::Txn(nested) => self.check(nested, before)?,
                Op::Put(put) if put.ignore_value || put.ignore_lease => {
                    before.get(&put.key[..]).ok_or(Rejection::KeyNotFound)?;
                }
                Op::Range(range) if range.revision != 0 => {
                    let (requested, current, compacted) = (range.revision, self.revision, self.compact);
                    if requested > current {
                        return Err(Rejection::FutureRevision { requested, current });
                    }
                    if requested < compacted {
                        return Err(Rejection::Compacted { requested, compacted });
                    }
                }
                Op::Put(_) | Op::Range(_) | Op::Delete(_) => {}
            }
        }
        Ok(())
    }

    fn run(&mut self, txn: &TxnRequest, before: &BTreeMap<Vec<u8>, Kv>, base: i64, writes: usize) -> Answer {
        let succeeded = holds(txn, before);
        let mut answers = Vec::new();
        for op in if succeeded { &txn.success } else { &txn.failure } {
            let now = |model: &Model| base + i64::from(model.log.len() > writes);
            answers.push(match op {
                Op::Range(range) => self.read(range, now(self)),
                Op::Txn(nested) => self.run(nested, before, base, writes),
                Op::Put(put) => {
                    let prev = self.at(base + 1).remove(&put.key[..]);
                    let old = prev.clone().unwrap_or_default();
                    self.log.push(Kv {
                        key: put.key.to_vec(),
                        create: if old.version > 0 { old.create } else { base + 1 },
                        modified: base + 1,
                        version: old.version + 1,
                        value: if put.ignore_value { old.value } else { put.value.to_vec() },
                        lease: if put.ignore_lease { old.lease } else { put.lease },
                    });
                    Answer::Put { prev: prev.filter(|_| put.prev_kv), revision: base + 1 }
                }
                Op::Delete(delete) => {
                    let gone = self.found(&delete.range, base + 1);
                    for kv in &gone {
                        self.log.push(Kv { key: kv.key.clone(), modified: base + 1, ..Kv::default() });
                    }
                    let deleted = gone.len() as i64;
                    let prevs = if delete.prev_kv { gone } else { vec![] };
                    Answer::Delete { deleted, prevs, revision: now(self) }
                }
            });
        }
        Answer::Txn { succeeded, answers, revision: base + i64::from(self.log.len() > writes) }
    }

    pub fn compact(&mut self, revision: i64) -> Result<(), Rejection> {
        if revision <= self.compact {
            return Err(Rejection::Compacted { requested: revision, compacted: self.compact });
        }
        if revision > self.revision {
            return Err(Rejection::FutureRevision { requested: revision, current: self.revision });
        }
        self.compact = revision;
        Ok(())
    }
}

fn holds(txn: &TxnRequest, before: &BTreeMap<Vec<u8>, Kv>) -> bool {
    txn.compares.iter().all(|compare| {
        let found: Vec<&Kv> = before.values().filter(|kv| compare.range.contains(&kv.key)).collect();
        match (found.is_empty(), &compare.target) {
            (true, CompareTarget::Value(_)) => false,
            (true, _) => holds_for(compare, &Kv::default()),
            (false, _) => found.into_iter().all(|kv| holds_for(compare, kv)),
        }
    })
}

fn holds_for(compare: &Compare, kv: &Kv) -> bool {
    let found = match &compare.target {
        CompareTarget::Version(target) => kv.version.cmp(target),
        CompareTarget::Create(target) => kv.create.cmp(target),
        CompareTarget::Mod(target) => kv.modified.cmp(target),
        CompareTarget::Value(target) => kv.value[..].cmp(target),
        CompareTarget::Lease(target) => kv.lease.cmp(target),
    };
    match compare.result {
        CompareResult::Equal => found == Ordering::Equal,
        CompareResult::NotEqual => found != Ordering::Equal,
        CompareResult::Greater => found == Ordering::Greater,
        CompareResult::Less => found == Ordering::Less,
    }
}
