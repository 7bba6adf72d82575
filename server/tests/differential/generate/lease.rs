//! Requests about leases, locks, elections and alarms.
//!
//! Lease ids are chosen here, so that both servers have the same; times are long enough that nothing expires by itself
//! during a run. A lock or an election is only ever wanted for one lease, so that no request waits for another.

use super::Generator;
use crate::http::Request;

/// Leases that come and go; the first [`LOCKERS`] are also used for locks, the next as many for elections.
const LEASES: i64 = 12;
const LOCKERS: i64 = 3;
/// Ids that are odd, or of no lease.
const ODD: [i64; 4] = [777, -7, i64::MAX, 0];
const TTLS: [i64; 7] = [600, 601, 1000, 3600, 86_400, 9_000_000_000, 9_000_000_001];
/// Granted and revoked at once, so that its short time does not matter.
const SHORT: i64 = 13;

impl Generator {
    pub(super) fn lease_id(&mut self) -> i64 {
        if self.rng.chance(8) { *self.rng.pick(&ODD) } else { 1 + self.rng.below(LEASES as u64) as i64 }
    }

    fn request(&mut self, path: &str, fields: Vec<(&str, String)>) -> Request {
        let body = self.object(fields);
        Request::post(format!("/v3{path}"), body)
    }

    pub(super) fn lease(&mut self) -> Request {
        let id = self.lease_id();
        let text = self.integer(id);
        match self.rng.below(20) {
            0..8 => {
                let ttl = *self.rng.pick(&TTLS);
                let ttl = self.integer(ttl);
                // Without an id each server makes one up; such a lease is revoked again by the caller.
                self.request("/lease/grant", vec![("TTL", ttl), ("ID", text)])
            }
            8..10 => {
                let ttl = *self.rng.pick(&[0, -1, 1]);
                let (ttl, text) = (self.integer(ttl), self.integer(SHORT));
                let revoke = self.request("/lease/revoke", vec![("ID", text.clone())]);
                self.queue.push_back(revoke);
                self.request("/lease/grant", vec![("TTL", ttl), ("ID", text)])
            }
            10..13 => {
                let path = *self.rng.pick(&["/lease/revoke", "/kv/lease/revoke"]);
                self.request(path, vec![("ID", text)])
            }
            13..16 => {
                let path = *self.rng.pick(&["/lease/timetolive", "/kv/lease/timetolive"]);
                let mut fields = vec![("ID", text)];
                self.flag(&mut fields, "keys", 60);
                self.request(path, fields)
            }
            16..18 => {
                let path = *self.rng.pick(&["/lease/leases", "/kv/lease/leases"]);
                self.request(path, vec![])
            }
            _ => {
                let bodies: Vec<String> = (0..1 + self.rng.below(3))
                    .map(|_| {
                        let id = self.lease_id();
                        let id = self.integer(id);
                        self.object(vec![("ID", id)])
                    })
                    .collect();
                Request::post("/v3/lease/keepalive".to_owned(), bodies.join(" "))
            }
        }
    }

    pub(super) fn lock(&mut self) -> Request {
        let lease = 1 + self.rng.below(LOCKERS as u64) as i64;
        let name = format!("lock{lease}");
        if self.rng.chance(40) {
            let key = if self.rng.chance(90) { format!("{name}/{lease:x}") } else { name };
            let key = self.bytes(key.as_bytes());
            return self.request("/lock/unlock", vec![("key", key)]);
        }
        let (name, lease) = (self.bytes(name.as_bytes()), self.integer(lease));
        self.request("/lock/lock", vec![("name", name), ("lease", lease)])
    }

    pub(super) fn election(&mut self) -> Request {
        let lease = LOCKERS + 1 + self.rng.below(LOCKERS as u64) as i64;
        let name = self.bytes(format!("election{lease}").as_bytes());
        let leader = self.leaders.get(&lease).cloned();
        match (self.rng.below(10), leader) {
            (0..4, _) => {
                let (id, value) = (self.integer(lease), self.value());
                self.request("/election/campaign", vec![("name", name), ("lease", id), ("value", value)])
            }
            (4..6, _) => self.request("/election/leader", vec![("name", name)]),
            (6..8, Some(leader)) => {
                let value = self.value();
                self.request("/election/proclaim", vec![("leader", leader), ("value", value)])
            }
            (8, Some(leader)) => self.request("/election/resign", vec![("leader", leader)]),
            (_, leader) => {
                // A leader key of nobody, with a lease so that no server makes one up; or none at all.
                let path = *self.rng.pick(&["/election/proclaim", "/election/resign"]);
                let key = format!(r#"{{"name":{name},"key":{name},"rev":"1","lease":"{lease}"}}"#);
                let fields = if leader.is_some() { vec![("leader", key)] } else { vec![] };
                self.request(path, fields)
            }
        }
    }

    /// An alarm with a few requests under it.
    pub(super) fn alarm(&mut self) -> Request {
        let alarm = *self.rng.pick(&["\"NOSPACE\"", "\"CORRUPT\"", "1", "2"]);
        let corrupt = alarm == "\"CORRUPT\"" || alarm == "2";
        let ask = |generator: &mut Self, action: &str, alarm: &str| {
            let fields = vec![("action", action.to_owned()), ("alarm", alarm.to_owned())];
            generator.request("/maintenance/alarm", fields)
        };
        if self.rng.chance(30) {
            let alarm = *self.rng.pick(&["\"NONE\"", alarm]);
            return ask(self, "\"GET\"", alarm);
        }
        for _ in 0..2 + self.rng.below(4) {
            let request = match self.rng.below(10) {
                0..8 => match self.key_value() {
                    // Watchers could not be put in step before it.
                    request if request.path.ends_with("/compaction") => continue,
                    request => request,
                },
                8 => self.lease(),
                _ => ask(self, "\"GET\"", "\"NONE\""),
            };
            self.queue.push_back(Request { corrupt, ..request });
        }
        if self.rng.chance(20) {
            let again = ask(self, "\"ACTIVATE\"", alarm);
            self.queue.push_back(again);
        }
        let clear = ask(self, "\"DEACTIVATE\"", alarm);
        self.queue.push_back(clear);
        Request { corrupt, ..ask(self, "\"ACTIVATE\"", alarm) }
    }

    /// Remembers the leader key that a campaign has given.
    pub(super) fn learn_leader(&mut self, body: &serde_json::Value) {
        let leader = &body["leader"];
        if let Some(lease) = leader["lease"].as_str().and_then(|lease| lease.parse().ok()) {
            self.leaders.insert(lease, leader.to_string());
        }
    }
}
