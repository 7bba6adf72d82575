//! What must hold afterwards, read back from the server: every revision exactly once, every acknowledgement kept.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::packages::Load;
use super::writers::{Attempt, header_revision};
use crate::error::{Error, Result};
use crate::http::Client;
use crate::rng::hash;

/// Keys per page while listing.
const PAGE_KEYS: usize = 500;
/// Clients that read histories.
const READERS: usize = 8;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) keys: u64,
    pub(crate) revision: i64,
    /// Puts that took effect without having been acknowledged, which is allowed.
    pub(crate) unacknowledged: u64,
}

/// A key with its value at some revision. Of the value only a fingerprint is kept: all of them are in memory at once.
#[derive(Debug, Clone)]
struct Stored {
    key: Vec<u8>,
    value: u128,
    created: i64,
    modified: i64,
    version: i64,
}

/// Everything that was tried on one key.
#[derive(Debug, Default)]
struct Tried {
    items: Vec<u64>,
    attempts: i64,
    acknowledged: HashMap<i64, u64>,
}

/// Reads the whole store with its history and compares it with the attempts.
pub(crate) fn run(address: SocketAddr, load: &Load, attempts: &[Attempt]) -> Result<Found> {
    let tried = by_key(load, attempts)?;
    let (revision, latest) = list(address)?;
    let histories = histories(address, &latest)?;
    let mut seen = vec![false; usize::try_from(revision).unwrap_or(0) + 1];
    for stored in histories.iter().flatten() {
        match seen.get_mut(usize::try_from(stored.modified).unwrap_or(usize::MAX)) {
            Some(slot) if !*slot && stored.modified >= 2 => *slot = true,
            _ => return wrong(stored, "its revision is given twice, or is not one of the store's"),
        }
    }
    if let Some(hole) = seen.iter().skip(2).position(|seen| !seen) {
        let (hole, all) = (hole + 2, seen.len() - 1);
        return Err(Error::Check(format!("revision {hole} of {all} belongs to no put: revisions are not dense")));
    }
    let mut kept = 0;
    for history in &histories {
        kept += check_key(load, &tried, history)?;
    }
    let acknowledged = attempts.iter().filter(|attempt| attempt.acknowledged.is_some()).count() as u64;
    if kept != acknowledged {
        let lost = find_lost(&tried, &latest, &histories);
        return Err(Error::Check(format!("{} acknowledged puts are gone; {lost}", acknowledged - kept)));
    }
    let keys = latest.len() as u64;
    if keys != tried.len() as u64 {
        return Err(Error::Check(format!("{keys} keys are stored, but {} were acknowledged", tried.len())));
    }
    let effective = u64::try_from(revision - 1).unwrap_or(0);
    Ok(Found { keys, revision, unacknowledged: effective - acknowledged })
}

fn by_key<'run>(load: &'run Load, attempts: &[Attempt]) -> Result<HashMap<&'run [u8], Tried>> {
    let mut tried: HashMap<&[u8], Tried> = HashMap::new();
    for attempt in attempts {
        let key = load.key(attempt.item);
        let entry = tried.entry(key.as_bytes()).or_default();
        entry.attempts += 1;
        if !entry.items.contains(&attempt.item) {
            entry.items.push(attempt.item);
        }
        if let Some(revision) = attempt.acknowledged
            && entry.acknowledged.insert(revision, attempt.item).is_some()
        {
            return Err(Error::Check(format!("revision {revision} was acknowledged twice for {key}")));
        }
    }
    Ok(tried)
}

/// Checks one key's history, newest first; gives how many of its acknowledged puts are in it.
fn check_key(load: &Load, tried: &HashMap<&[u8], Tried>, history: &[Stored]) -> Result<u64> {
    let Some(newest) = history.first() else { return Ok(0) };
    let Some(tried) = tried.get(newest.key.as_slice()) else { return wrong(newest, "nobody put this key") };
    if newest.version > tried.attempts {
        return wrong(newest, &format!("only {} puts of it were tried", tried.attempts));
    }
    let mut kept = 0;
    let mut wanted = Vec::new();
    for stored in history {
        let acknowledged = tried.acknowledged.get(&stored.modified);
        let candidates = acknowledged.map_or(&tried.items[..], std::slice::from_ref);
        let given = candidates.iter().any(|item| {
            wanted.clear();
            load.value(*item, &mut wanted);
            hash(&[&wanted]) == stored.value
        });
        if !given {
            return wrong(stored, "its value is not the one that was put");
        }
        kept += u64::from(acknowledged.is_some());
    }
    Ok(kept)
}

fn find_lost(tried: &HashMap<&[u8], Tried>, latest: &[Stored], histories: &[Vec<Stored>]) -> String {
    let stored: HashMap<&[u8], &Vec<Stored>> =
        latest.iter().zip(histories).map(|(stored, history)| (stored.key.as_slice(), history)).collect();
    for (key, tried) in tried {
        let kept: Vec<i64> =
            stored.get(key).map_or_else(Vec::new, |all| all.iter().map(|stored| stored.modified).collect());
        if let Some(revision) = tried.acknowledged.keys().find(|revision| !kept.contains(revision)) {
            let key = String::from_utf8_lossy(key);
            return format!("{key} was acknowledged with revision {revision}, and is stored with {kept:?}");
        }
    }
    "none can be named".to_owned()
}

fn wrong<T>(stored: &Stored, why: &str) -> Result<T> {
    Err(Error::Check(format!(
        "{} at revision {} (created {}, version {}): {why}",
        String::from_utf8_lossy(&stored.key),
        stored.modified,
        stored.created,
        stored.version
    )))
}

/// The current revision, and every key of the whole store with its latest value.
fn list(address: SocketAddr) -> Result<(i64, Vec<Stored>)> {
    let mut client = Client::new(address, Duration::from_secs(60));
    let (mut from, mut all, mut revision) = (b"\0".to_vec(), Vec::new(), None);
    loop {
        let mut body = br#"{"key":""#.to_vec();
        base64_simd::STANDARD.encode_append(&from, &mut body);
        body.extend_from_slice(format!(r#"","range_end":"AA==","limit":{PAGE_KEYS}}}"#).as_bytes());
        let (found, page) = range(&mut client, &body)?;
        if revision.is_some_and(|known| known != found) {
            return Err(Error::Check("the revision moved though nobody writes".to_owned()));
        }
        revision = Some(found);
        let Some(last) = page.last() else { return Ok((found, all)) };
        from.clone_from(&last.key);
        from.push(0);
        all.extend(page);
    }
}

/// Every key's history, newest first, walked backwards by reading before each revision.
fn histories(address: SocketAddr, latest: &[Stored]) -> Result<Vec<Vec<Stored>>> {
    let part = latest.len().div_ceil(READERS).max(1);
    thread::scope(|scope| {
        let readers: Vec<_> = latest
            .chunks(part)
            .map(|part| {
                scope.spawn(move || {
                    let mut client = Client::new(address, Duration::from_secs(60));
                    part.iter().map(|stored| history(&mut client, stored)).collect::<Result<Vec<_>>>()
                })
            })
            .collect();
        let mut all = Vec::with_capacity(latest.len());
        for reader in readers {
            all.extend(reader.join().map_err(|_| Error::Check("a reader panicked".to_owned()))??);
        }
        Ok(all)
    })
}

fn history(client: &mut Client, newest: &Stored) -> Result<Vec<Stored>> {
    let mut history = vec![newest.clone()];
    let mut current = newest.clone();
    while current.version > 1 {
        let mut body = br#"{"key":""#.to_vec();
        base64_simd::STANDARD.encode_append(&current.key, &mut body);
        body.extend_from_slice(format!(r#"","revision":"{}"}}"#, current.modified - 1).as_bytes());
        let (_, mut found) = range(client, &body)?;
        let Some(before) = found.pop() else { return wrong(&current, "the version before it is gone") };
        let follows = before.version == current.version - 1
            && before.created == current.created
            && before.modified < current.modified
            && before.key == current.key;
        if !follows {
            return wrong(&before, &format!("version {} at {} follows", current.version, current.modified));
        }
        history.push(before.clone());
        current = before;
    }
    // Nothing is ever deleted here, so a history begins with the key's creation.
    if current.created != current.modified { wrong(&current, "its history does not begin") } else { Ok(history) }
}

fn range(client: &mut Client, body: &[u8]) -> Result<(i64, Vec<Stored>)> {
    let (status, answer) = client.post("/v3/kv/range", body).map_err(Error::network("read"))?;
    let odd = || {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(300)]).into_owned();
        Error::Answer(format!("a range was answered with {status}: {shown}"))
    };
    let revision = header_revision(answer).filter(|_| status == 200).ok_or_else(odd)?;
    let value: Value = serde_json::from_slice(answer).map_err(|_| odd())?;
    let kvs = value["kvs"].as_array().map_or(&[][..], Vec::as_slice);
    let stored = kvs.iter().map(stored).collect::<Option<Vec<Stored>>>().ok_or_else(odd)?;
    Ok((revision, stored))
}

fn stored(kv: &Value) -> Option<Stored> {
    let bytes = |field: &str| base64_simd::STANDARD.decode_to_vec(kv[field].as_str().unwrap_or_default()).ok();
    let number = |field: &str| kv[field].as_str()?.parse().ok();
    Some(Stored {
        key: bytes("key")?,
        value: hash(&[&bytes("value")?]),
        created: number("create_revision")?,
        modified: number("mod_revision")?,
        version: number("version")?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{Attempt, Load, Stored, by_key, check_key, hash};
    use crate::torture::packages::Record;

    fn load() -> Load {
        Load::new(vec![Record { key: "pkg/a".to_owned(), paragraph: "one".to_owned() }], 0)
    }

    fn stored(value: &str, modified: i64, version: i64) -> Stored {
        Stored { key: b"pkg/a".to_vec(), value: hash(&[value.as_bytes()]), created: 2, modified, version }
    }

    #[test]
    fn a_retry_may_have_taken_effect_twice() {
        let attempts = [Attempt { item: 0, acknowledged: None }, Attempt { item: 0, acknowledged: Some(5) }];
        let load = load();
        let tried = by_key(&load, &attempts).unwrap();
        assert_eq!(check_key(&load, &tried, &[stored("one", 5, 2), stored("one", 2, 1)]).unwrap(), 1);
        assert_eq!(check_key(&load, &tried, &[stored("one", 5, 1)]).unwrap(), 1);
        assert_eq!(check_key(&load, &tried, &[stored("one", 4, 1)]).unwrap(), 0, "the acknowledged one is gone");
    }

    #[test]
    fn strange_versions_values_and_keys_are_found() {
        let attempts = [Attempt { item: 0, acknowledged: Some(2) }];
        let load = load();
        let tried = by_key(&load, &attempts).unwrap();
        assert!(check_key(&load, &tried, &[stored("two", 2, 1)]).is_err());
        assert!(check_key(&load, &tried, &[stored("one", 3, 2), stored("one", 2, 1)]).is_err());
        let mut strange = stored("one", 2, 1);
        strange.key = b"pkg/b".to_vec();
        assert!(check_key(&load, &tried, &[strange]).is_err());
    }

    #[test]
    fn one_revision_for_two_puts_is_found() {
        let attempts = [Attempt { item: 0, acknowledged: Some(2) }, Attempt { item: 1, acknowledged: Some(2) }];
        assert!(by_key(&load(), &attempts).is_err());
    }
}
