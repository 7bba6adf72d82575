//! The end of a run: everything that was answered against the store's own past, and the nodes against each other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::api::{self, number, records};
use super::clients::Shared;
use super::crew::Recorded;
use super::fleet::Fleet;
use super::observer::{self, Seen};
use super::rpc::Rpc;
use super::watchers::{EVENTS_MAX, Watch};
use super::{epilogue, lessees};
use crate::error::{Error, Result};
use crate::linear::leases::{self, Ask, LeaseOp, Leased, Rules};
use crate::linear::watches::{self, Watched};
use crate::linear::{self, Key, Lease, Op, Searched, Stored, Timeline, Times, Write};
use crate::node::Kind;

/// How long one answer may take.
const LIMIT: Duration = Duration::from_secs(20);
/// How long the nodes may take until they stand still at one index.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing may change before they count as standing still; longer than proposals wait for a leader.
const STILL: Duration = Duration::from_secs(2);

/// The longest time to live of leases that are to run out, in seconds.
const SHORT_SECONDS: i64 = 60;
/// How long after its time a lease may still be there once nothing is broken: the wait for the next round of expiries, some
/// hundred of them at once, and one more try.
const LATE: Duration = Duration::from_secs(5);
/// How many seconds a time to live may grow by without a renewal: what a new leader adds to make up for the election.
const GROWTH_SECONDS: i64 = 1;

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
    pub(crate) leased: Leased,
    pub(crate) watched: Watched,
}

/// What one revision changed, as far as the recorder knows.
type Change = (i64, Vec<(Key, Write)>);

/// Checks a healed, idle cluster against what its clients saw.
pub(crate) fn run(fleet: &mut Fleet, seen: &Mutex<Seen>, recorded: &Recorded) -> Result<Audited> {
    // What can be told from the answers alone comes first: it does not depend on what the servers say now.
    linear::facts(&recorded.history).map_err(check)?;
    let (revision, applied) = recorded.last;
    let past = past(fleet, &recorded.history, revision)?;
    let times = Times::new(&recorded.history, arrivals(recorded));
    let rules = Rules {
        healed: recorded.healed,
        late_max: LATE.as_nanos() as u64,
        growth_max: GROWTH_SECONDS,
        elections: !recorded.done.faults.is_empty(),
    };
    let (ends, leased) = leases::check(&recorded.leases, &recorded.history, &past, &times, rules).map_err(check)?;
    let history = [recorded.history.clone(), ends].concat();
    let (facts, searched) = linear::check(&history).map_err(check)?;
    let explained = past.check(&history, &facts).map_err(check)?;
    let mut watched = Watched::default();
    let told = watches::Told::new(&past, &history);
    for segment in recorded.watches.iter().flat_map(|watch| &watch.segments) {
        told.check(segment, &mut watched).map_err(check)?;
    }
    // The watchers of the epilogue count as followed to the end, too, and show nothing of the run.
    followed(&recorded.watches, watched.complete).map_err(Error::Check)?;
    same_hash(fleet, revision)?;
    if fleet.kind == Kind::Tally {
        let nodes: Vec<_> = fleet.members().into_iter().map(|slot| (slot, fleet.client(slot))).collect();
        let compared = observer::compare_now(fleet.kind, seen, &nodes)?;
        if compared as usize != nodes.len() {
            let why = format!("only {compared} of {} nodes gave a root at the same last index", nodes.len());
            return Err(Error::Check(why));
        }
        same_root(fleet)?;
    }
    let (after, _) = stand_still(fleet)?;
    if after != revision {
        return Err(Error::Check(format!("the revision moved from {revision} to {after} though nobody writes")));
    }
    if !recorded.watches.is_empty() {
        epilogue::run(fleet, &told, revision, &mut watched)?;
        same_hash(fleet, revision)?;
    }
    let (unanswered, compared) = (explained.unanswered as u64, explained.compared as u64);
    Ok(Audited { searched, revision, unanswered, compared, applied, leased, watched })
}

/// Some watcher must have been there to the end.
fn followed(watches: &[Watch], complete: u64) -> std::result::Result<(), String> {
    if watches.is_empty() || complete > 0 {
        return Ok(());
    }
    let (all, capped) = (watches.len(), watches.iter().filter(|watch| watch.capped).count());
    Err(format!("no watcher was followed to the end; {capped} of {all} streams reached the cap of {EVENTS_MAX} events"))
}

fn check(found: impl std::error::Error) -> Error {
    Error::Check(found.to_string())
}

/// When the first event of every revision arrived that only deletes.
fn arrivals(recorded: &Recorded) -> HashMap<i64, u64> {
    let mut arrived: HashMap<i64, u64> = HashMap::new();
    let segments = recorded.watches.iter().flat_map(|watch| &watch.segments);
    for event in segments.flat_map(|segment| &segment.events).filter(|event| event.deletion) {
        let (revision, time) = (i64::from(event.revision), u64::from(event.arrived_ms) * 1_000_000);
        arrived.entry(revision).and_modify(|first| *first = time.min(*first)).or_insert(time);
    }
    arrived
}

/// Waits until all leases have ended but the long ones, looking at every one that is still there, and at all of them in the
/// end; all nodes must list the same.
pub(crate) fn run_out(fleet: &mut Fleet, shared: &Shared, leases: &mut Vec<LeaseOp>) -> Result<()> {
    let granted: BTreeMap<Lease, bool> = (leases.iter())
        .filter_map(|op| if let Ask::Grant(ttl) = op.ask { Some((op.lease, ttl > SHORT_SECONDS)) } else { None })
        .collect();
    let begun = Instant::now();
    let members = fleet.members();
    let mut look = |slot: usize, lease: Lease| -> Result<()> {
        let (mut rpc, who) = (Rpc::new(fleet.kind, fleet.client(slot)), (u32::MAX, slot as u32));
        leases.extend(lessees::request(shared, &mut rpc, who, lease, Ask::Look { keys: true }, LIMIT)?);
        Ok(())
    };
    while begun.elapsed() < PATIENCE && !granted.is_empty() {
        let listed = listed(fleet, members[0])?;
        let short: Vec<Lease> = listed.into_iter().filter(|lease| granted.get(lease) != Some(&true)).collect();
        if short.is_empty() {
            break;
        }
        short.into_iter().try_for_each(|lease| look(members[0], lease))?;
        thread::sleep(Duration::from_millis(100));
    }
    for (place, lease) in granted.keys().enumerate() {
        look(members[place % members.len()], *lease)?;
    }
    let there: Option<BTreeSet<Lease>> = match granted.is_empty() {
        true => None,
        false => Some(listed(fleet, members[0])?),
    };
    for slot in members.iter().filter(|_| there.is_some()) {
        let other = listed(fleet, *slot)?;
        if Some(&other) != there.as_ref() {
            return Err(Error::Check(format!("n{slot} lists leases {other:?}, and n{} {there:?}", members[0])));
        }
    }
    Ok(())
}

/// The leases that a node lists.
fn listed(fleet: &Fleet, slot: usize) -> Result<BTreeSet<Lease>> {
    let answer = Rpc::new(fleet.kind, fleet.client(slot)).ask("/v3/lease/leases", "{}", LIMIT)?;
    let listed = answer["leases"].as_array().map_or(&[][..], Vec::as_slice);
    let leases = listed.iter().map(|lease| number(&lease["ID"])).collect::<Option<BTreeSet<Lease>>>();
    leases.ok_or_else(|| Error::Answer(format!("a strange list of leases: {}", api::shown(&answer))))
}

/// Waits until all nodes have one revision and one applied index for a while; gives both.
pub(crate) fn stand_still(fleet: &mut Fleet) -> Result<(i64, u64)> {
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
    let members = fleet.members();
    let share = changes.len().div_ceil(members.len().max(1)).max(1);
    let mut past = Timeline::new(last);
    thread::scope(|scope| {
        let readers: Vec<_> = changes
            .chunks(share)
            .zip(&members)
            .map(|(part, slot)| {
                let mut rpc = Rpc::new(fleet.kind, fleet.client(*slot));
                scope.spawn(move || read_back(&mut rpc, part))
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
fn read_back(rpc: &mut Rpc, part: &[Change]) -> Result<Vec<(Key, i64, Option<Stored>)>> {
    let mut found = Vec::new();
    for (revision, writes) in part {
        if writes.is_empty() {
            found.extend(unanswered(rpc, *revision)?);
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

/// What a revision changed that nobody was told of: an operation without an answer, or the end of a lease.
fn unanswered(rpc: &mut Rpc, revision: i64) -> Result<Vec<(Key, i64, Option<Stored>)>> {
    let only = format!(r#","min_mod_revision":"{revision}","max_mod_revision":"{revision}""#);
    let put = pages(rpc, revision, &only, |kv| records(kv).map_err(Error::Answer))?;
    if !put.is_empty() {
        return Ok(put.into_iter().map(|(key, stored)| (key, revision, Some(stored))).collect());
    }
    let names = |kvs: &Value| {
        let key = |kv: &Value| api::key_number(&base64_simd::STANDARD.decode_to_vec(kv["key"].as_str()?).ok()?);
        let keys = kvs.as_array().map_or(&[][..], Vec::as_slice).iter().map(|kv| Some((key(kv)?, ())));
        keys.collect::<Option<Vec<(Key, ())>>>().ok_or_else(|| Error::Answer("a record without a key".to_owned()))
    };
    let only = r#","keys_only":true"#;
    let after: BTreeSet<Key> = pages(rpc, revision, only, names)?.into_iter().map(|(key, ())| key).collect();
    let before = pages(rpc, revision - 1, only, names)?.into_iter().map(|(key, ())| key);
    Ok(before.filter(|key| !after.contains(key)).map(|key| (key, revision, None)).collect())
}

/// All keys as of a revision, a page at a time; a revision before the first has none.
fn pages<T>(
    rpc: &mut Rpc,
    revision: i64,
    only: &str,
    take: impl Fn(&Value) -> Result<Vec<(Key, T)>>,
) -> Result<Vec<(Key, T)>> {
    let mut from = api::PREFIX.as_bytes().to_vec();
    let to = api::base64(b"t0");
    let mut found = Vec::new();
    if revision < 1 {
        return Ok(found);
    }
    loop {
        let key = api::base64(&from);
        let body = format!(r#"{{"key":"{key}","range_end":"{to}","revision":"{revision}","limit":"500"{only}}}"#);
        let answer = rpc.ask("/v3/kv/range", &body, LIMIT)?;
        let page = take(&answer["kvs"])?;
        let Some((last, _)) = page.last() else { break };
        from = [api::key_name(*last).as_bytes(), b"\0"].concat();
        let more = answer["more"].as_bool() == Some(true);
        found.extend(page);
        if !more {
            break;
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

/// The roots of everything that is applied now, when nobody writes: those of checkpoints may be a hundred entries older, and a
/// `hashkv` knows of keys alone.
fn same_root(fleet: &mut Fleet) -> Result<()> {
    let begun = Instant::now();
    loop {
        let before = stand_still(fleet)?;
        let mut roots = Vec::new();
        for slot in fleet.members() {
            let answer = Rpc::new(fleet.kind, fleet.client(slot)).ask("/v3/maintenance/hash", "{}", LIMIT)?;
            let root = number(&answer["hash"]);
            roots.push((slot, root.ok_or_else(|| Error::Answer(format!("a strange hash: {}", api::shown(&answer))))?));
        }
        // What leases have left is noted from time to time.
        if stand_still(fleet)? != before {
            if begun.elapsed() > PATIENCE {
                return Err(Error::Check(format!("the nodes apply something all the time, for {PATIENCE:?}")));
            }
            continue;
        }
        return match roots.windows(2).find(|pair| pair[0].1 != pair[1].1) {
            None => Ok(()),
            Some(pair) => Err(Error::Check(format!("at applied index {} the folded roots differ: {pair:?}", before.1))),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::{Watch, followed};

    #[test]
    fn a_run_that_followed_no_watcher_to_the_end_shows_nothing() {
        let watches = [Watch { capped: true, ..Watch::default() }, Watch::default()];
        assert_eq!(followed(&[], 0), Ok(()));
        assert_eq!(followed(&watches, 1), Ok(()));
        let found = followed(&watches, 0).err().unwrap_or_default();
        assert!(found.contains("1 of 2 streams reached the cap"), "{found}");
    }
}
