//! Operations as JSON, and answers as what was seen. Keys and values are made from numbers, so that an answer can be
//! checked to the byte.

use serde_json::Value;

use crate::linear::{Action, Condition, Key, Lease, Outcome, Stored, Write};
use crate::rng::{Rng, mix};

/// Keys of one generation: all that are in use at a time.
pub(crate) const KEYS: u32 = 8;
/// What all keys begin with.
pub(crate) const PREFIX: &str = "t/";

/// A key's name: its generation, and its place in it.
pub(crate) fn key_name(key: Key) -> String {
    format!("{PREFIX}{:06}/{}", key / KEYS, key % KEYS)
}

/// The key with this name.
pub(crate) fn key_number(name: &[u8]) -> Option<Key> {
    let (generation, place) = std::str::from_utf8(name).ok()?.strip_prefix(PREFIX)?.split_once('/')?;
    Some(generation.parse::<u32>().ok()? * KEYS + place.parse::<u32>().ok()?)
}

/// The bit of a value's number that makes it a large one.
pub(crate) const LARGE: u64 = 1 << 39;
/// The length of a large value's filling, in bytes.
const LARGE_BYTES: u64 = 128 * 1024;

/// A value's bytes: its number and a filling, mostly short, sometimes pages long, and large if the number says so.
pub(crate) fn value_bytes(value: u64) -> Vec<u8> {
    let mut bytes = format!("{value:016x} ").into_bytes();
    let scattered = mix(value);
    let length = match scattered % 32 {
        _ if value & LARGE != 0 => LARGE_BYTES,
        0 => 8192,
        _ => 16 + (scattered >> 32) % 256,
    };
    let begun = bytes.len();
    bytes.resize(begun + length as usize, 0);
    Rng::new(value).fill(&mut bytes[begun..]);
    bytes
}

fn value_number(bytes: &[u8]) -> Result<u64, String> {
    let number = bytes.get(..16).and_then(|digits| u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
    let damaged = || format!("a value of {} bytes that nobody wrote", bytes.len());
    let number = number.ok_or_else(damaged)?;
    if value_bytes(number) == bytes { Ok(number) } else { Err(damaged()) }
}

/// Bytes as JSON carries them.
pub(crate) fn base64(bytes: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(bytes)
}

/// A key's name as JSON carries it.
pub(crate) fn key_base64(key: Key) -> String {
    base64(key_name(key).as_bytes())
}

/// The path and body of a request; nothing for what nobody requests.
pub(crate) fn request(action: &Action) -> Option<(&'static str, String)> {
    Some(match action {
        Action::Get { key, serializable } => {
            ("/v3/kv/range", format!(r#"{{"key":"{}","serializable":{serializable}}}"#, key_base64(*key)))
        }
        Action::Range { first, serializable, .. } => {
            let (from, to) = generation_range(*first / KEYS);
            let body = format!(
                r#"{{"key":"{}","range_end":"{}","serializable":{serializable}}}"#,
                base64(from.as_bytes()),
                base64(to.as_bytes())
            );
            ("/v3/kv/range", body)
        }
        // Every other value asks for what it replaces.
        Action::Put { key, value, lease } => ("/v3/kv/put", put_body(*key, *value, value.is_multiple_of(2), *lease)),
        Action::Delete { key } => ("/v3/kv/deleterange", format!(r#"{{"key":"{}","prev_kv":true}}"#, key_base64(*key))),
        Action::Swap { key, condition, writes } => {
            let writes: Vec<String> = writes.iter().map(|(key, write)| write_body(*key, *write)).collect();
            let key = key_base64(*key);
            let body = format!(
                r#"{{"compare":[{{"key":"{key}","result":"EQUAL",{}}}],"success":[{}],"failure":[{{"request_range":{{"key":"{key}"}}}}]}}"#,
                condition_body(*condition),
                writes.join(",")
            );
            ("/v3/kv/txn", body)
        }
        Action::End { .. } => return None,
    })
}

/// The keys of a generation: from, and up to.
pub(crate) fn generation_range(generation: u32) -> (String, String) {
    // '0' follows '/'.
    (format!("{PREFIX}{generation:06}/"), format!("{PREFIX}{generation:06}0"))
}

fn put_body(key: Key, value: u64, previous: bool, lease: Lease) -> String {
    let (key, value) = (key_base64(key), base64(&value_bytes(value)));
    let lease = if lease == 0 { String::new() } else { format!(r#","lease":"{lease}""#) };
    format!(r#"{{"key":"{key}","value":"{value}","prev_kv":{previous}{lease}}}"#)
}

fn write_body(key: Key, write: Write) -> String {
    match write {
        Write::Put(value) => format!(r#"{{"request_put":{}}}"#, put_body(key, value, false, 0)),
        Write::Delete => format!(r#"{{"request_delete_range":{{"key":"{}"}}}}"#, key_base64(key)),
    }
}

fn condition_body(condition: Condition) -> String {
    match condition {
        Condition::Modified(wanted) => format!(r#""target":"MOD","mod_revision":"{wanted}""#),
        Condition::Created(wanted) => format!(r#""target":"CREATE","create_revision":"{wanted}""#),
        Condition::Version(wanted) => format!(r#""target":"VERSION","version":"{wanted}""#),
        Condition::Value(wanted) => format!(r#""target":"VALUE","value":"{}""#, base64(&value_bytes(wanted))),
    }
}

/// What an answer says; an answer that cannot be understood is an error.
pub(crate) fn outcome(action: &Action, answer: &Value) -> Result<Outcome, String> {
    let odd = || format!("{action:?} was answered with {}", shown(answer));
    let revision = number(&answer["header"]["revision"]).ok_or_else(odd)?;
    match action {
        Action::Get { key, .. } => Ok(Outcome::Got { revision, stored: only(*key, &answer["kvs"])? }),
        Action::Range { first, count, .. } => {
            let found = records(&answer["kvs"])?;
            let strange = found.iter().any(|(key, _)| !(*first..*first + *count).contains(key));
            if strange { Err(odd()) } else { Ok(Outcome::Ranged { revision, found }) }
        }
        Action::Put { key, value, .. } => {
            let previous = match &answer["prev_kv"] {
                Value::Null => None,
                kv => Some(one(*key, kv)?),
            };
            Ok(Outcome::Put { revision, previous: value.is_multiple_of(2).then_some(previous) })
        }
        Action::Delete { key } => {
            let previous = only(*key, &answer["prev_kvs"])?;
            let deleted = number(&answer["deleted"]).unwrap_or(0);
            if deleted == i64::from(previous.is_some()) {
                Ok(Outcome::Deleted { revision, previous })
            } else {
                Err(odd())
            }
        }
        Action::Swap { key, .. } => {
            if answer["succeeded"].as_bool() == Some(true) {
                return Ok(Outcome::Swapped { revision });
            }
            Ok(Outcome::NotSwapped { revision, stored: only(*key, &answer["responses"][0]["response_range"]["kvs"])? })
        }
        Action::End { .. } => Err(odd()),
    }
}

/// The records of a list.
pub(crate) fn records(kvs: &Value) -> Result<Vec<(Key, Stored)>, String> {
    kvs.as_array().map_or(&[][..], Vec::as_slice).iter().map(record).collect()
}

fn only(key: Key, kvs: &Value) -> Result<Option<Stored>, String> {
    match kvs.as_array().map_or(&[][..], Vec::as_slice) {
        [] => Ok(None),
        [kv] => one(key, kv).map(Some),
        more => Err(format!("{} records for one key", more.len())),
    }
}

fn one(key: Key, kv: &Value) -> Result<Stored, String> {
    let (found, stored) = record(kv)?;
    if found == key { Ok(stored) } else { Err(format!("{} for {}", shown(kv), key_name(key))) }
}

/// A key's record.
pub(crate) fn record(kv: &Value) -> Result<(Key, Stored), String> {
    let bytes = |field: &str| base64_simd::STANDARD.decode_to_vec(kv[field].as_str().unwrap_or_default()).ok();
    let odd = || format!("a strange record: {}", shown(kv));
    let key = bytes("key").and_then(|name| key_number(&name)).ok_or_else(odd)?;
    let value = value_number(&bytes("value").ok_or_else(odd)?)?;
    let figure = |field: &str| number(&kv[field]).ok_or_else(odd);
    let (created, modified) = (figure("create_revision")?, figure("mod_revision")?);
    let lease = if kv["lease"].is_null() { 0 } else { figure("lease")? };
    Ok((key, Stored { value, created, modified, version: figure("version")?, lease }))
}

/// A 64-bit number, which JSON carries as a string.
pub(crate) fn number(value: &Value) -> Option<i64> {
    value.as_str().and_then(|digits| digits.parse().ok()).or_else(|| value.as_i64())
}

/// The beginning of an answer, for error messages.
pub(crate) fn shown(answer: &Value) -> String {
    let text = answer.to_string();
    text.chars().take(400).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::{KEYS, LARGE, base64, key_name, key_number, outcome, request, value_bytes, value_number};
    use crate::linear::{Action, Condition, Outcome, Stored, Write};

    #[test]
    fn keys_and_values_are_numbers() {
        for key in [0, 7, 8, 12345] {
            assert_eq!(key_number(key_name(key).as_bytes()), Some(key));
        }
        assert!(key_name(KEYS - 1) < key_name(KEYS));
        for value in (0..200).chain([LARGE + 1]) {
            assert_eq!(value_number(&value_bytes(value)), Ok(value));
        }
        let mut damaged = value_bytes(7);
        *damaged.last_mut().unwrap() ^= 1;
        assert!(value_number(&damaged).is_err());
        assert!(value_number(b"short").is_err());
    }

    #[test]
    fn answers_are_taken_apart() {
        let kv = json!({"key": base64(key_name(3).as_bytes()), "value": base64(&value_bytes(9)),
            "create_revision": "4", "mod_revision": "5", "version": "2", "lease": "6"});
        let stored = Stored { value: 9, created: 4, modified: 5, version: 2, lease: 6 };
        let get = Action::Get { key: 3, serializable: false };
        let answer = json!({"header": {"revision": "8"}, "kvs": [kv], "count": "1"});
        assert_eq!(outcome(&get, &answer), Ok(Outcome::Got { revision: 8, stored: Some(stored) }));
        assert!(outcome(&Action::Get { key: 2, serializable: false }, &answer).is_err(), "another key's record");
        let writes = vec![(3, Write::Put(9))];
        let swap = Action::Swap { key: 3, condition: Condition::Modified(5), writes };
        let refused = json!({"header": {"revision": "8"}, "responses": [{"response_range": {"kvs": [kv]}}]});
        assert_eq!(outcome(&swap, &refused), Ok(Outcome::NotSwapped { revision: 8, stored: Some(stored) }));
        let done = json!({"header": {"revision": "8"}, "succeeded": true, "responses": []});
        assert_eq!(outcome(&swap, &done), Ok(Outcome::Swapped { revision: 8 }));
        let body: serde_json::Value = serde_json::from_str(&request(&swap).unwrap().1).unwrap();
        assert_eq!(body["compare"][0]["mod_revision"], "5");
        let nothing = json!({"header": {"revision": "8"}});
        assert_eq!(outcome(&Action::Delete { key: 3 }, &nothing), Ok(Outcome::Deleted { revision: 8, previous: None }));
        assert!(outcome(&Action::Delete { key: 3 }, &json!({"header": {"revision": "8"}, "deleted": "1"})).is_err());
        assert!(outcome(&get, &json!({})).is_err());
    }
}
