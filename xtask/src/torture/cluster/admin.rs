//! What an operator does: looking at members, adding, promoting and removing them, moving the leader, waiting for health.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::api::{number, shown};
use super::fleet::Fleet;
use super::observer;
use super::rpc::Rpc;
use crate::error::{Error, Result};

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a healed cluster may take until every node answers linearizable reads, and any change of members.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// A member as the cluster lists it.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    /// In decimal, as JSON carries it.
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) peer_url: String,
    pub(crate) learner: bool,
}

/// What a node says about itself.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) member: String,
    /// Nothing if it knows of none.
    pub(crate) leader: Option<String>,
    pub(crate) term: u64,
    pub(crate) applied: u64,
}

/// A node's status from its answer.
pub(crate) fn status_of(answer: &Value) -> Option<Status> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let figure = |value: &Value| number(value).and_then(|figure| u64::try_from(figure).ok());
    Some(Status {
        member: text(&answer["header"]["member_id"])?,
        leader: text(&answer["leader"]).filter(|id| id != "0"),
        term: figure(&answer["raftTerm"])?,
        applied: figure(&answer["raftAppliedIndex"])?,
    })
}

impl Fleet {
    fn ask(&self, slot: usize, path: &str, body: &str) -> Result<Value> {
        Rpc::new(self.kind, self.client(slot)).ask(path, body, LIMIT)
    }

    /// A node's status.
    pub(crate) fn status(&self, slot: usize) -> Result<Status> {
        let answer = self.ask(slot, "/v3/maintenance/status", "{}")?;
        status_of(&answer).ok_or_else(|| Error::Answer(format!("a strange status: {}", shown(&answer))))
    }

    /// Up to which index a node's log is cut.
    pub(crate) fn purged(&self, slot: usize) -> Option<u64> {
        let page = Rpc::new(self.kind, self.client(slot)).page("/metrics", LIMIT)?;
        Some(observer::sum(&page, "tally_log_purged_index"))
    }

    /// The slot that leads, if it can be found out.
    pub(crate) fn leader(&self) -> Option<usize> {
        let mut claims: BTreeMap<u64, usize> = BTreeMap::new();
        for slot in self.members() {
            let mut rpc = Rpc::new(self.kind, self.client(slot));
            let answer = rpc.ask("/v3/maintenance/status", "{}", Duration::from_millis(500)).ok();
            let Some(status) = answer.as_ref().and_then(status_of) else { continue };
            if status.leader.as_ref() == Some(&status.member) {
                claims.insert(status.term, slot);
            }
        }
        claims.last_entry().map(|entry| *entry.get())
    }

    /// Waits until every member answers a linearizable read; gives how long that took.
    pub(crate) fn settle(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        for slot in self.members() {
            let read = |fleet: &mut Fleet| fleet.ask(slot, "/v3/kv/range", r#"{"key":"AA=="}"#);
            self.until(slot, "it does not answer a linearizable read", begun, read)?;
        }
        Ok(begun.elapsed())
    }

    /// Tries until it works; the reason of the last failure goes into the error.
    fn until<T>(
        &mut self,
        slot: usize,
        what: &str,
        begun: Instant,
        mut attempt: impl FnMut(&mut Fleet) -> Result<T>,
    ) -> Result<T> {
        loop {
            let error = match attempt(self) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            self.all_alive()?;
            if begun.elapsed() > PATIENCE {
                return Err(self.wrong(slot, &format!("{what} {PATIENCE:?} after everything was healed: {error}")));
            }
            thread::sleep(PAUSE);
        }
    }

    /// The members, as a node has applied them after a round of consensus.
    pub(crate) fn listed(&self, slot: usize) -> Result<Vec<Listed>> {
        let answer = self.ask(slot, "/v3/cluster/member/list", r#"{"linearizable":true}"#)?;
        let member = |member: &Value| {
            Some(Listed {
                id: member["ID"].as_str()?.to_owned(),
                name: member["name"].as_str().unwrap_or_default().to_owned(),
                peer_url: member["peerURLs"][0].as_str()?.to_owned(),
                learner: member["isLearner"].as_bool().unwrap_or(false),
            })
        };
        let members = answer["members"].as_array().and_then(|list| list.iter().map(member).collect());
        members.ok_or_else(|| Error::Answer(format!("a strange list of members: {}", shown(&answer))))
    }

    fn listed_at(&self, via: usize, slot: usize) -> Result<Option<Listed>> {
        let url = self.peer_url(slot);
        Ok(self.listed(via)?.into_iter().find(|member| member.peer_url == url))
    }

    /// Takes a slot's member out of the cluster and waits until its process has ended by itself.
    pub(crate) fn remove(&mut self, via: usize, slot: usize) -> Result<()> {
        let begun = Instant::now();
        let path = "/v3/cluster/member/remove";
        self.expect_end(slot);
        // The removed member itself may not get to answer, so another one is asked whether it is done.
        let witness = self.members().into_iter().find(|other| *other != slot).unwrap_or(slot);
        self.until(slot, "it cannot be removed", begun, |fleet| {
            let Some(member) = fleet.listed_at(witness, slot)? else { return Ok(()) };
            let body = format!(r#"{{"ID":"{}"}}"#, member.id);
            let removed = fleet.ask(via, path, &body).or_else(|_| fleet.ask(witness, path, &body));
            match fleet.listed_at(witness, slot)? {
                None => Ok(()),
                Some(_) => removed.map(|_| ()),
            }
        })?;
        self.end_removed(slot)
    }

    /// Adds a slot's member; gives the `--initial-cluster` that it has to be started with.
    pub(crate) fn add(&mut self, via: usize, slot: usize, learner: bool) -> Result<String> {
        let begun = Instant::now();
        let url = self.peer_url(slot);
        let members = self.until(slot, "it cannot be added", begun, |fleet| {
            if fleet.listed_at(via, slot)?.is_none() {
                let body = format!(r#"{{"peerURLs":["{url}"],"isLearner":{learner}}}"#);
                fleet.ask(via, "/v3/cluster/member/add", &body)?;
            }
            fleet.listed(via)
        })?;
        let name = |member: &Listed| if member.peer_url == url { Fleet::name(slot) } else { member.name.clone() };
        let cluster = members.iter().map(|member| format!("{}={}", name(member), member.peer_url));
        Ok(cluster.collect::<Vec<_>>().join(","))
    }

    /// Waits until a learner has caught up and is a voter.
    pub(crate) fn promote(&mut self, via: usize, slot: usize) -> Result<()> {
        let begun = Instant::now();
        self.until(slot, "it cannot be promoted", begun, |fleet| {
            let member = fleet.listed_at(via, slot)?;
            let member = member.ok_or_else(|| Error::Answer("the learner is not listed".to_owned()))?;
            if member.learner {
                fleet.ask(via, "/v3/cluster/member/promote", &format!(r#"{{"ID":"{}"}}"#, member.id))?;
            }
            Ok(())
        })
    }

    /// Asks the leader to hand over; whether it did is not told.
    pub(crate) fn transfer(&self, from: usize, to: usize) -> Result<()> {
        let target = self.status(to)?.member;
        self.ask(from, "/v3/maintenance/transfer-leadership", &format!(r#"{{"targetID":"{target}"}}"#)).map(|_| ())
    }
}
