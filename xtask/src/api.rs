//! The calls of etcd's JSON API that drive a cluster: status, membership, leadership.

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::http::Client;

/// What a member says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) member: String,
    /// The leader it knows; none during an election.
    pub(crate) leader: Option<String>,
    pub(crate) applied: u64,
}

/// Asks a member how it is.
pub(crate) fn status(client: &mut Client) -> Result<Status> {
    let answer = call(client, "/v3/maintenance/status", &json!({}))?;
    parse_status(&answer).ok_or_else(|| Error::Answer(format!("no status of a member: {answer}")))
}

fn parse_status(answer: &Value) -> Option<Status> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Some(Status {
        member: text(&answer["header"]["member_id"])?,
        leader: text(&answer["leader"]).filter(|id| id != "0"),
        applied: answer["raftAppliedIndex"].as_str()?.parse().ok()?,
    })
}

/// Adds a learner with this peer URL; gives its id.
pub(crate) fn add_learner(client: &mut Client, peer_url: &str) -> Result<String> {
    let answer = call(client, "/v3/cluster/member/add", &json!({"peerURLs": [peer_url], "isLearner": true}))?;
    let id = answer["member"]["ID"].as_str().map(str::to_owned);
    id.ok_or_else(|| Error::Answer(format!("a member without an id was added: {answer}")))
}

/// Removes a member.
pub(crate) fn remove_member(client: &mut Client, id: &str) -> Result<()> {
    call(client, "/v3/cluster/member/remove", &json!({ "ID": id })).map(|_| ())
}

/// Asks the leader to hand over to another member; it has when this returns.
pub(crate) fn transfer_leadership(client: &mut Client, to: &str) -> Result<()> {
    call(client, "/v3/maintenance/transfer-leadership", &json!({ "targetID": to })).map(|_| ())
}

/// How many keys a member holds, by its own knowledge (which a learner may tell).
pub(crate) fn count(client: &mut Client) -> Result<u64> {
    let body = json!({"key": "AA==", "range_end": "AA==", "count_only": true, "serializable": true});
    let answer = call(client, "/v3/kv/range", &body)?;
    // An empty store's count is omitted.
    let Some(count) = answer["count"].as_str() else { return Ok(0) };
    count.parse().map_err(|_| Error::Answer(format!("a count that is no number: {answer}")))
}

fn call(client: &mut Client, path: &str, body: &Value) -> Result<Value> {
    let sent = client.post(path, body.to_string().as_bytes());
    let (code, answer) = sent.map_err(Error::network(format!("POST {path}")))?;
    let shown = || Error::Answer(format!("{path} was answered with {code}: {}", String::from_utf8_lossy(answer)));
    if code == 200 { serde_json::from_slice(answer).map_err(|_| shown()) } else { Err(shown()) }
}

#[cfg(test)]
mod tests {
    use super::{Status, parse_status};
    use serde_json::json;

    #[test]
    fn a_status_with_and_without_a_leader() {
        let status =
            |leader: Option<&str>| Status { member: "7".to_owned(), leader: leader.map(str::to_owned), applied: 12 };
        let with = json!({"header":{"member_id":"7"},"leader":"9","raftAppliedIndex":"12"});
        assert_eq!(parse_status(&with), Some(status(Some("9"))));
        let without = json!({"header":{"member_id":"7"},"raftAppliedIndex":"12"});
        assert_eq!(parse_status(&without), Some(status(None)));
        let zero = json!({"header":{"member_id":"7"},"leader":"0","raftAppliedIndex":"12"});
        assert_eq!(parse_status(&zero), Some(status(None)));
        assert_eq!(parse_status(&json!({"leader":"9"})), None);
    }
}
