//! Judges two answers: the same, different in a way that `docs/differences.md` explains, or different.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::http::{Request, Response};
use crate::peer::GRPC;

/// Seconds by which two clocks of the same lease may differ: one, and the time between the two requests.
const SECONDS_APART: i64 = 2;

/// The judgement.
pub(crate) enum Verdict {
    Same,
    Explained,
    Different(String),
}

/// Compares status, content type and every field of the body.
pub(crate) fn judge(request: &Request, etcd: &Response, tally: &Response) -> Verdict {
    if generations_apart(request, etcd, tally) {
        return Verdict::Explained;
    }
    if corrupt_stops_reads(request, etcd, tally) {
        return Verdict::Explained;
    }
    if etcd.status != tally.status {
        return Verdict::Different("status".to_owned());
    }
    if media_type(&etcd.content_type) != media_type(&tally.content_type) {
        return Verdict::Different(format!("content type {:?} and {:?}", etcd.content_type, tally.content_type));
    }
    let parsed = (lines(&etcd.body), lines(&tally.body));
    let (mut left, mut right) = match parsed {
        (Ok(left), Ok(right)) => (left, right),
        (Err(_), Err(_)) if etcd.body == tally.body => return Verdict::Same,
        _ => return Verdict::Different("one body is JSON, or the texts differ".to_owned()),
    };
    if etcd.status >= 400 {
        return match judge_error(&left, &right) {
            // Nobody parses texts on the way here, so they can be equal.
            Verdict::Explained if etcd.content_type == GRPC => Verdict::Different("message".to_owned()),
            verdict => verdict,
        };
    }
    forget_terms(&mut left);
    forget_terms(&mut right);
    let mut explained = false;
    if request.path.ends_with("/maintenance/status") {
        explained = true;
        left = shape(&left);
        right = shape(&right);
    }
    explained |= settle_leases(request, &mut left, &mut right);
    explained |= settle_keys_only(request, &mut left, &mut right);
    explained |= settle_ties(&request.body, &mut left, &mut right);
    match first_difference("", &left, &right) {
        None if explained => Verdict::Explained,
        None => Verdict::Same,
        Some(difference) => Verdict::Different(difference),
    }
}

/// Differences, "Generations of etcd": what releases of etcd themselves answer differently.
fn generations_apart(request: &Request, etcd: &Response, tally: &Response) -> bool {
    let hash_kv_path_is_new = request.path.ends_with("/hashkv") && etcd.status == 404;
    let enum_names_are_not_checked = etcd.status == 200
        && tally.status == 400
        && [&b"\"UP\""[..], b"\"SIZE\""].iter().any(|name| contains(&request.body, name));
    let plain_text_for_unknown_routes = matches!((etcd.status, tally.status), (404, 404) | (405, 501))
        && media_type(&etcd.content_type) == "text/plain";
    let null_is_an_empty_message = request.body == b"null" && etcd.status == 400 && tally.status == 400;
    let hash_kept_from_a_compaction = request.path.ends_with("/hashkv")
        && etcd.status == 200
        && contains(&tally.body, b"required revision has been compacted");
    let range_stream_is_new =
        request.path.ends_with("/rangestream") && contains(&etcd.body, b"unknown method RangeStream");
    hash_kept_from_a_compaction
        || range_stream_is_new
        || hash_kv_path_is_new
        || enum_names_are_not_checked
        || plain_text_for_unknown_routes
        || null_is_an_empty_message
}

/// Differences, "CORRUPT stops reads too".
fn corrupt_stops_reads(request: &Request, etcd: &Response, tally: &Response) -> bool {
    // Of what etcd refuses, too, the alarm is the first reason here.
    request.corrupt
        && !contains(&etcd.body, b"etcdserver: corrupt cluster")
        && tally.status >= 400
        && contains(&tally.body, b"etcdserver: corrupt cluster")
}

/// A body of one value, or one value by the line.
fn lines(body: &[u8]) -> serde_json::Result<Value> {
    let values: serde_json::Result<Vec<Value>> = serde_json::Deserializer::from_slice(body).into_iter().collect();
    let mut values = values?;
    if values.len() == 1 { Ok(values.remove(0)) } else { Ok(Value::from(values)) }
}

/// What is a matter of time or chance about leases: the id that a server makes up, seconds that have begun meanwhile, and the
/// order in which etcd's maps give keys. Returns whether anything had to be settled.
fn settle_leases(request: &Request, left: &mut Value, right: &mut Value) -> bool {
    let before = (left.clone(), right.clone());
    if request.path.ends_with("/lease/grant") && grants_any(request) {
        left["ID"] = Value::from("made up");
        right["ID"] = Value::from("made up");
    }
    if request.path.ends_with("/lease/leases") {
        // Differences, "Order of leases".
        for value in [&mut *left, &mut *right] {
            if let Some(leases) = value.get_mut("leases").and_then(Value::as_array_mut) {
                leases.sort_by_key(Value::to_string);
            }
        }
    }
    if request.path.ends_with("/lease/timetolive") {
        // Differences, "Keys of a lease".
        for value in [&mut *left, &mut *right] {
            if let Some(keys) = value.get_mut("keys").and_then(Value::as_array_mut) {
                keys.sort_by_key(Value::to_string);
            }
        }
        // Differences, "Seconds left".
        let seconds = |value: &Value| value["TTL"].as_str().and_then(|text| text.parse::<i64>().ok());
        if let (Some(a), Some(b)) = (seconds(left), seconds(right))
            && a > 0
            && b > 0
            && (a - b).abs() <= SECONDS_APART
        {
            right["TTL"] = left["TTL"].clone();
        }
    }
    if request.path.ends_with("/member/list") {
        // Each listens on a port of its own.
        for member in [&mut *left, &mut *right].into_iter().filter_map(|value| value["members"].get_mut(0)) {
            member["clientURLs"] = Value::from("its own");
        }
    }
    before != (left.clone(), right.clone())
}

/// Differences, "Generations of etcd": 3.7 leaves out the leases of keys that are read without values; 3.6 and Tally tell them.
fn settle_keys_only(request: &Request, left: &mut Value, right: &mut Value) -> bool {
    fn forget(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                let record = fields.contains_key("mod_revision") && !fields.contains_key("value");
                if record {
                    fields.remove("lease");
                }
                fields.values_mut().for_each(forget);
            }
            Value::Array(items) => items.iter_mut().for_each(forget),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    if left == right || ![&b"keys_only"[..], b"keysOnly"].iter().any(|name| contains(&request.body, name)) {
        return false;
    }
    forget(left);
    forget(right);
    true
}

/// Whether a lease is wanted whose id the server makes up.
pub(crate) fn grants_any(request: &Request) -> bool {
    let Ok(body) = serde_json::from_slice::<Value>(&request.body) else { return false };
    matches!(&body["ID"], Value::Null) || body["ID"] == 0 || body["ID"] == "0"
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Differences, "Texts of malformed requests": what a JSON parser says about bad JSON is its own; codes must agree, and so must
/// every message that clients match on.
fn judge_error(left: &Value, right: &Value) -> Verdict {
    let mut right = right.clone();
    // "Error bodies": etcd's newer gateway leaves `error` out.
    if let (None, Some(fields)) = (left.get("error"), right.as_object_mut()) {
        fields.remove("error");
    }
    let right = &right;
    if left["code"] != right["code"] {
        return Verdict::Different("code".to_owned());
    }
    let (expected, found) =
        (left["message"].as_str().unwrap_or_default(), right["message"].as_str().unwrap_or_default());
    if expected == found {
        return match first_difference("", left, right) {
            None => Verdict::Same,
            Some(difference) => Verdict::Different(difference),
        };
    }
    if expected.starts_with("etcdserver:") || found.starts_with("etcdserver:") || found.is_empty() {
        return Verdict::Different("message".to_owned());
    }
    Verdict::Explained
}

/// Differences, "Terms": the two elect their first leader in different terms.
fn forget_terms(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("raft_term");
            fields.values_mut().for_each(forget_terms);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_terms),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Differences, "Status": sizes, indexes and versions are each server's own; the fields and their types must agree.
fn shape(value: &Value) -> Value {
    const OPTIONAL: [&str; 6] =
        ["dbSizeQuota", "storageVersion", "downgradeInfo", "errors", "isLearner", "dbSizeInUse"];
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .filter(|(name, _)| !OPTIONAL.contains(&name.as_str()))
                .map(|(name, field)| (name.clone(), shape(field)))
                .collect(),
        ),
        Value::String(_) => Value::from("text"),
        other => other.clone(),
    }
}

/// Differences, "Order of equals": etcd sorts by version, revision or value with an unstable sort, so records that are equal
/// in it may come in any order, and a limit may keep any of them. Returns whether anything had to be settled.
fn settle_ties(body: &[u8], left: &mut Value, right: &mut Value) -> bool {
    let text = String::from_utf8_lossy(body);
    if !text.contains("sort_target") && !text.contains("sortTarget") || left == right {
        return false;
    }
    let before = (left.clone(), right.clone());
    settle(left, right);
    before != (left.clone(), right.clone())
}

fn settle(left: &mut Value, right: &mut Value) {
    match (left, right) {
        (Value::Object(left), Value::Object(right)) => {
            if let (Some(Value::Array(a)), Some(Value::Array(b))) = (left.get_mut("kvs"), right.get_mut("kvs"))
                && a != b
                && a.len() == b.len()
                && let Some(target) = sorted_by(a)
                && sorted_by(b).is_some()
                && a.iter().zip(b.iter()).all(|(a, b)| a[target] == b[target])
            {
                let groups = |items: &[Value]| {
                    let mut groups: BTreeMap<String, usize> = BTreeMap::new();
                    items.iter().for_each(|item| *groups.entry(item[target].to_string()).or_default() += 1);
                    groups
                };
                if groups(a) == groups(b) {
                    *b = a.clone();
                }
            }
            for (name, field) in left.iter_mut() {
                if let Some(other) = right.get_mut(name) {
                    settle(field, other);
                }
            }
        }
        (Value::Array(left), Value::Array(right)) => left.iter_mut().zip(right).for_each(|(a, b)| settle(a, b)),
        _ => {}
    }
}

/// The field other than the key by which the records are in order with ties, if there is one.
fn sorted_by(items: &[Value]) -> Option<&'static str> {
    ["version", "create_revision", "mod_revision", "value"].into_iter().find(|target| {
        let figures: Vec<_> = items
            .iter()
            .map(|item| {
                let text = item[*target].as_str().unwrap_or("");
                if *target == "value" {
                    (0, text.to_owned())
                } else {
                    (text.parse::<i64>().unwrap_or(0), String::new())
                }
            })
            .collect();
        let ties = figures.windows(2).any(|pair| pair[0] == pair[1]);
        ties && (*target == "value" || figures.is_sorted() || figures.iter().rev().is_sorted())
    })
}

fn first_difference(at: &str, left: &Value, right: &Value) -> Option<String> {
    match (left, right) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            names.into_iter().find_map(|name| match (a.get(name), b.get(name)) {
                (Some(a), Some(b)) => first_difference(&format!("{at}.{name}"), a, b),
                (Some(_), None) => Some(format!("{at}.{name} is missing")),
                (None, _) => Some(format!("{at}.{name} is extra")),
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(n, (a, b))| first_difference(&format!("{at}[{n}]"), a, b))
        }
        (a, b) if a == b => None,
        (a, b) => Some(format!("{at}: {a} and {b}")),
    }
}
