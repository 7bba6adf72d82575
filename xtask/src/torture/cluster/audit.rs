//! The end of a run: everything that was answered against the store's own past, and the nodes against each other.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::api::{self, number, records};
use super::fleet::Fleet;
use super::observer::{self, Seen};
use super::rpc::Rpc;
use crate::error::{Error, Result};
use crate::linear::{self, Key, Op, Outcome, Searched, Stored, Timeline, Write};
use crate::node::Kind;

/// How long one answer may take.
const LIMIT: Duration = Duration::from_secs(20);
/// How long the nodes may take until they stand still at one index.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing may change before they count as standing still; longer than proposals wait for a leader.
const STILL: Duration = Duration::from_secs(2);

/// What the checks went through.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Audited {
    pub(crate) searched: Searched,
    pub(crate) revision: i64,
    /// Revisions that were made without an answer.
    pub(crate) unanswered: u64,
    /// Records in answers that were compared with the store's past.
    pub(crate) compared: u64,
    /// Applied index at which all nodes stood at the end.
    pub(crate) applied: u64,
}

/// What one revision changed, as far as the recorder knows.
type Change = (i64, Vec<(Key, Write)>);

/// Checks a healed, idle cluster against what its clients saw.
pub(crate) fn run(fleet: &mut Fleet, seen: &Mutex<Seen>, history: &[Op]) -> Result<Audited> {
    // What can be told from the answers alone comes first: it does not depend on what the servers say now.
    let (facts, searched) = linear::check(history).map_err(|found| Error::Check(found.to_string()))?;
    let (revision, applied) = stand_still(fleet)?;
    let past = past(fleet, history, revision)?;
    let explained = past.check(history, &facts).map_err(|found| Error::Check(found.to_string()))?;
    same_hash(fleet, revision)?;
    if fleet.kind == Kind::Tally {
        let nodes: Vec<_> = fleet.members().into_iter().map(|slot| (slot, fleet.client(slot))).collect();
        let compared = observer::compare_now(fleet.kind, seen, &nodes)?;
        if compared as usize != nodes.len() {
            let why = format!("only {compared} of {} nodes gave a root at the same last index", nodes.len());
            return Err(Error::Check(why));
        }
    }
    let (after, _) = stand_still(fleet)?;
    if after != revision {
        return Err(Error::Check(format!("the revision moved from {revision} to {after} though nobody writes")));
    }
    let (unanswered, compared) = (explained.unanswered as u64, explained.compared as u64);
    Ok(Audited { searched, revision, unanswered, compared, applied })
}

/// Waits until all nodes have one revision and one applied index for a while; gives both.
fn stand_still(fleet: &mut Fleet) -> Result<(i64, u64)> {
    let begun = Instant::now();
    let mut last: Option<(Vec<(i64, u64)>, Instant)> = None;
    loop {
        let positions = positions(fleet)?;
        let equal = positions.windows(2).all(|pair| pair[0] == pair[1]);
        match &last {
            Some((before, since)) if *before == positions && equal => {
                if since.elapsed() > STILL {
                    return positions.first().copied().ok_or_else(|| Error::Check("no members".to_owned()));
                }
            }
            _ => last = Some((positions.clone(), Instant::now())),
        }
        if begun.elapsed() > PATIENCE {
            return Err(Error::Check(format!(
                "the nodes do not come to one revision and applied index in {PATIENCE:?}: {positions:?}"
            )));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn positions(fleet: &mut Fleet) -> Result<Vec<(i64, u64)>> {
    fleet.all_alive()?;
    let mut positions = Vec::new();
    for slot in fleet.members() {
        let mut rpc = Rpc::new(fleet.kind, fleet.client(slot));
        let read = rpc.ask("/v3/kv/range", r#"{"key":"AA==","serializable":true}"#, LIMIT)?;
        let revision = number(&read["header"]["revision"]);
        let revision = revision.ok_or_else(|| Error::Answer(format!("a strange read: {}", api::shown(&read))))?;
        positions.push((revision, fleet.status(slot)?.applied));
    }
    Ok(positions)
}

/// Reads back what every revision changed, a part from every node.
fn past(fleet: &Fleet, history: &[Op], last: i64) -> Result<Timeline> {
    let made: HashMap<i64, Vec<(Key, Write)>> =
        history.iter().filter_map(|op| Some((op.made()?, op.writes()))).collect();
    let changes: Vec<Change> =
        (2..=last).map(|revision| (revision, made.get(&revision).cloned().unwrap_or_default())).collect();
    let unknown = |op: &&Op| op.outcome == Outcome::Unknown;
    let deleted = history.iter().filter(unknown).flat_map(Op::writes).filter(|(_, write)| *write == Write::Delete);
    let deleted: BTreeSet<Key> = deleted.map(|(key, _)| key).collect();
    let members = fleet.members();
    let share = changes.len().div_ceil(members.len().max(1)).max(1);
    let mut past = Timeline::new(last);
    thread::scope(|scope| {
        let readers: Vec<_> = changes
            .chunks(share)
            .zip(&members)
            .map(|(part, slot)| {
                let (mut rpc, deleted) = (Rpc::new(fleet.kind, fleet.client(*slot)), &deleted);
                scope.spawn(move || read_back(&mut rpc, part, deleted))
            })
            .collect();
        for reader in readers {
            let found = reader.join().map_err(|_| Error::Check("a reader panicked".to_owned()))??;
            found.into_iter().for_each(|(key, revision, stored)| past.add(key, revision, stored));
        }
        Ok(past)
    })
}

/// What some revisions changed. Deletions leave no record, so each is where a key has just gone.
fn read_back(rpc: &mut Rpc, part: &[Change], deleted: &BTreeSet<Key>) -> Result<Vec<(Key, i64, Option<Stored>)>> {
    let mut found = Vec::new();
    for (revision, writes) in part {
        if writes.is_empty() {
            found.extend(unanswered(rpc, *revision, deleted)?);
        }
        for (key, write) in writes {
            let stored = get(rpc, *key, *revision)?;
            let changed = match (write, &stored) {
                (Write::Put(_), Some(stored)) => stored.modified == *revision,
                (Write::Delete, None) => true,
                (Write::Put(_), None) | (Write::Delete, Some(_)) => false,
            };
            // What is not there as it should be is left out; the check then names the operation that lost it.
            if changed {
                found.push((*key, *revision, stored));
            }
        }
    }
    Ok(found)
}

/// What a revision changed that nobody was told of.
fn unanswered(rpc: &mut Rpc, revision: i64, deleted: &BTreeSet<Key>) -> Result<Vec<(Key, i64, Option<Stored>)>> {
    let mut from = api::PREFIX.as_bytes().to_vec();
    let to = base64_simd::STANDARD.encode_to_string(b"t0");
    let mut found = Vec::new();
    // A page at a time: all keys that were last changed by this revision.
    loop {
        let body = format!(
            r#"{{"key":"{}","range_end":"{to}","revision":"{revision}","min_mod_revision":"{revision}","max_mod_revision":"{revision}","limit":"100"}}"#,
            base64_simd::STANDARD.encode_to_string(&from)
        );
        let answer = rpc.ask("/v3/kv/range", &body, LIMIT)?;
        let page = records(&answer["kvs"]).map_err(Error::Answer)?;
        let Some((key, _)) = page.last() else { break };
        from = [api::key_name(*key).as_bytes(), b"\0"].concat();
        found.extend(page.into_iter().map(|(key, stored)| (key, revision, Some(stored))));
    }
    if found.is_empty() {
        for key in deleted {
            if get(rpc, *key, revision)?.is_none() && get(rpc, *key, revision - 1)?.is_some() {
                found.push((*key, revision, None));
            }
        }
    }
    Ok(found)
}

fn get(rpc: &mut Rpc, key: Key, revision: i64) -> Result<Option<Stored>> {
    if revision < 1 {
        return Ok(None);
    }
    let name = base64_simd::STANDARD.encode_to_string(api::key_name(key).as_bytes());
    let answer = rpc.ask("/v3/kv/range", &format!(r#"{{"key":"{name}","revision":"{revision}"}}"#), LIMIT)?;
    let found = records(&answer["kvs"]).map_err(Error::Answer)?;
    Ok(found.first().map(|(_, stored)| *stored))
}

/// All nodes hash their whole history alike.
fn same_hash(fleet: &Fleet, revision: i64) -> Result<()> {
    let mut first: Option<(usize, i64)> = None;
    for slot in fleet.members() {
        let body = format!(r#"{{"revision":"{revision}"}}"#);
        let mut rpc = Rpc::new(fleet.kind, fleet.client(slot));
        let mut answer = rpc.ask("/v3/maintenance/hashkv", &body, LIMIT);
        if fleet.kind == Kind::Etcd && answer.is_err() {
            // What it is called there before 3.6.
            answer = rpc.ask("/v3/maintenance/hash", &body, LIMIT);
        }
        let answer = answer?;
        let hash = number(&answer["hash"]);
        let hash = hash.ok_or_else(|| Error::Answer(format!("a strange hashkv: {}", api::shown(&answer))))?;
        match first {
            None => first = Some((slot, hash)),
            Some((_, known)) if known == hash => {}
            Some((other, known)) => {
                let why = format!("hashkv at revision {revision} is {hash} on n{slot} and {known} on n{other}");
                return Err(Error::Check(why));
            }
        }
    }
    Ok(())
}
