//! The lessees: clients that grant leases, attach keys to them, and keep them alive, let them expire, revoke them or forget
//! them, recording everything that they are told.
//!
//! Other clients attach keys to the same leases, and lessees renew and look at each other's, so that every race there can be
//! between a renewal, an attachment, a revocation and an expiry happens all the time.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::api::{self, KEYS, number};
use super::clients::{Client, Shared};
use super::rpc::{NO_LEASE, Reply, Rpc};
use crate::error::{Error, Result};
use crate::linear::leases::{Ask, LeaseOp, Told};
use crate::linear::{Key, Lease, Op};

/// How long a lessee waits for an answer: usually longer than the server does, sometimes hardly at all.
const LIMIT: Duration = Duration::from_secs(8);
const LIMIT_SHORT: Duration = Duration::from_millis(200);
/// Time to live of the lease that every lessee has from the beginning to the end, in seconds.
const LONG: i64 = 600;
/// Time to live of the leases whose remainder is looked at, and that are never renewed, in seconds.
const WANING: i64 = 40;
/// The longest pause between two requests, in microseconds.
const THINK_US: u64 = 250_000;
/// How long a lessee stays with one lease after it could have ended.
const LINGER: Duration = Duration::from_millis(1500);

/// What is to become of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Never renewed, and looked at until it is gone.
    Expired,
    /// Renewed in time for a while, then revoked.
    Kept,
    /// Renewed at the last moment, when it may be too late.
    Late,
    Revoked,
}

/// What a lessee did.
#[derive(Debug, Default)]
pub(crate) struct Lived {
    pub(crate) history: Vec<Op>,
    pub(crate) leases: Vec<LeaseOp>,
}

/// One lessee.
struct Lessee<'run> {
    client: Client<'run>,
    leases: Vec<LeaseOp>,
    granted: i64,
}

/// One lessee's life; gives everything that it did.
pub(crate) fn run(shared: &Shared, number: u32, node: u32, address: SocketAddr, seed: u64) -> Result<Lived> {
    let client = Client::new(shared, number, node, address, seed);
    let mut lessee = Lessee { client, leases: Vec::new(), granted: 0 };
    lessee.live().inspect_err(|_| shared.failed.store(true, Ordering::Relaxed))?;
    Ok(Lived { history: lessee.client.history, leases: lessee.leases })
}

impl Lessee<'_> {
    fn live(&mut self) -> Result<()> {
        let (mut long, mut waning) = (None, None);
        while !self.client.shared.ending() {
            for (kept, ttl) in [(&mut long, LONG), (&mut waning, WANING)] {
                let Some((lease, first)) = *kept else {
                    *kept = self.grant(ttl)?;
                    continue;
                };
                self.attach(lease, first, 1)?;
                if self.look(lease)? == Told::Gone {
                    *kept = None;
                }
            }
            let ttl = 1 + self.client.rng.below(3) as i64;
            if let Some((lease, first)) = self.grant(ttl)? {
                let keys = 1 + self.client.rng.below(u64::from(KEYS)) as Key;
                self.attach(lease, first, keys)?;
                self.meet(lease, first, ttl)?;
            }
            // And some that nobody thinks of any more.
            if let Some((lease, first)) = self.grant(1)? {
                self.attach(lease, first, 2)?;
            }
            self.client.think(THINK_US);
        }
        if let Some((lease, _)) = waning {
            self.ask(lease, Ask::Revoke)?;
        }
        Ok(())
    }

    /// Grants a lease; gives it and the first of its keys if the server said so.
    fn grant(&mut self, ttl: i64) -> Result<Option<(Lease, Key)>> {
        self.granted += 1;
        let lease = (i64::from(self.client.number) + 1) << 24 | self.granted;
        let told = self.ask(lease, Ask::Grant(ttl))?;
        Ok(matches!(told, Told::Granted(_)).then(|| (lease, self.client.shared.lend(lease))))
    }

    fn attach(&mut self, lease: Lease, first: Key, keys: Key) -> Result<()> {
        for key in first..first + keys {
            self.client.put(key, lease)?;
        }
        Ok(())
    }

    /// One lease's life from its grant on.
    fn meet(&mut self, lease: Lease, first: Key, ttl: i64) -> Result<()> {
        let fate = match self.client.rng.below(10) {
            0..4 => Fate::Expired,
            4..6 => Fate::Kept,
            6..8 => Fate::Late,
            8 => Fate::Revoked,
            // Nobody thinks of it any more.
            _ => return Ok(()),
        };
        let begun = Instant::now();
        let ttl = Duration::from_secs(ttl.unsigned_abs());
        let span = if fate == Fate::Kept { ttl * 3 } else { ttl + LINGER };
        while begun.elapsed() < span && !self.client.shared.ending() {
            if self.fate(lease, fate, ttl)? == Told::Gone {
                return Ok(());
            }
            match self.client.rng.below(4) {
                0 => _ = self.look(lease)?,
                1 => self.other()?,
                2 => {
                    let key = first + self.client.rng.below(u64::from(KEYS)) as Key;
                    self.client.put(key, lease)?;
                }
                _ => {}
            }
            self.client.think(THINK_US);
        }
        if fate == Fate::Kept {
            self.ask(lease, Ask::Revoke)?;
        }
        Ok(())
    }

    /// What a lease's fate asks for at this moment.
    fn fate(&mut self, lease: Lease, fate: Fate, ttl: Duration) -> Result<Told> {
        match fate {
            Fate::Expired => self.look(lease),
            Fate::Kept => self.ask(lease, Ask::Renew),
            Fate::Late => {
                let spare = Duration::from_millis(self.client.rng.below(60));
                std::thread::sleep(ttl.saturating_sub(spare));
                self.ask(lease, Ask::Renew)
            }
            Fate::Revoked => {
                self.client.think(THINK_US * 4);
                self.ask(lease, Ask::Revoke)
            }
        }
    }

    /// Something about somebody else's lease.
    fn other(&mut self) -> Result<()> {
        let Some((lease, _)) = self.client.shared.a_lease(&mut self.client.rng) else { return Ok(()) };
        let told = if self.client.rng.below(3) == 0 { self.ask(lease, Ask::Renew) } else { self.look(lease) };
        told.map(|_| ())
    }

    fn look(&mut self, lease: Lease) -> Result<Told> {
        let keys = self.client.rng.below(2) == 0;
        self.ask(lease, Ask::Look { keys })
    }

    fn ask(&mut self, lease: Lease, ask: Ask) -> Result<Told> {
        let limit = if self.client.rng.below(10) == 0 { LIMIT_SHORT } else { LIMIT };
        let (shared, who) = (self.client.shared, (self.client.number, self.client.node));
        let op = request(shared, &mut self.client.rpc, who, lease, ask, limit)?;
        let told = op.as_ref().map_or(Told::Unknown, |op| op.told.clone());
        self.leases.extend(op);
        Ok(told)
    }
}

/// Asks something about a lease; nothing if the request never left.
pub(crate) fn request(
    shared: &Shared,
    rpc: &mut Rpc,
    (client, node): (u32, u32),
    lease: Lease,
    ask: Ask,
    limit: Duration,
) -> Result<Option<LeaseOp>> {
    let (path, body) = match ask {
        Ask::Grant(ttl) => ("/v3/lease/grant", format!(r#"{{"ID":"{lease}","TTL":"{ttl}"}}"#)),
        Ask::Renew => ("/v3/lease/keepalive", format!(r#"{{"ID":"{lease}"}}"#)),
        Ask::Look { keys } => ("/v3/lease/timetolive", format!(r#"{{"ID":"{lease}","keys":{keys}}}"#)),
        Ask::Revoke => ("/v3/lease/revoke", format!(r#"{{"ID":"{lease}"}}"#)),
    };
    let invoked = shared.now();
    let reply = rpc.call(path, &body, limit);
    let completed = shared.now();
    let told = match reply {
        Reply::Done(answer) => match told(ask, lease, &answer) {
            Ok(told) => told,
            Err(odd) => match answer["error"]["message"].as_str() {
                // A stream says at its end what went wrong.
                Some(why) => {
                    shared.failure(format!("keepalive: {why}"));
                    Told::Unknown
                }
                None => return Err(Error::Answer(odd)),
            },
        },
        Reply::Refused(why) if why.ends_with(NO_LEASE) => Told::Gone,
        Reply::Refused(why) if why.starts_with("400") && !why.ends_with("for learner") => {
            return Err(Error::Answer(format!("{ask:?} of lease {lease}: {why}")));
        }
        Reply::Refused(why) => {
            shared.failure(format!("{why} (nothing done)"));
            Told::Refused
        }
        Reply::Unknown(why) => {
            shared.failure(why);
            Told::Unknown
        }
        Reply::Unsent => {
            shared.failure("no connection".to_owned());
            std::thread::sleep(Duration::from_millis(30));
            return Ok(None);
        }
    };
    Ok(Some(LeaseOp { lease, client, node, invoked, completed, ask, told }))
}

/// What an answer says; one that cannot be understood is an error.
fn told(ask: Ask, lease: Lease, answer: &Value) -> std::result::Result<Told, String> {
    let odd = || format!("{ask:?} of lease {lease} was answered with {}", api::shown(answer));
    let answer = if ask == Ask::Renew { &answer["result"] } else { answer };
    number(&answer["header"]["revision"]).ok_or_else(odd)?;
    let figure = |field: &str| if answer[field].is_null() { Some(0) } else { number(&answer[field]) };
    let ttl = figure("TTL").ok_or_else(odd)?;
    if ask != Ask::Revoke && number(&answer["ID"]) != Some(lease) {
        return Err(odd());
    }
    match ask {
        Ask::Revoke => Ok(Told::Revoked),
        Ask::Grant(_) if ttl > 0 => Ok(Told::Granted(ttl)),
        Ask::Grant(_) => Err(odd()),
        Ask::Renew if ttl > 0 => Ok(Told::Renewed(ttl)),
        Ask::Renew => Ok(Told::Gone),
        Ask::Look { keys } => {
            let granted = figure("grantedTTL").ok_or_else(odd)?;
            if granted == 0 {
                return if ttl == -1 { Ok(Told::Gone) } else { Err(odd()) };
            }
            let listed = answer["keys"].as_array().map_or(&[][..], Vec::as_slice);
            let attached: Option<Vec<Key>> = listed.iter().map(key).collect();
            Ok(Told::Seen { remaining: ttl, granted, keys: keys.then(|| attached.ok_or_else(odd)).transpose()? })
        }
    }
}

fn key(name: &Value) -> Option<Key> {
    api::key_number(&base64_simd::STANDARD.decode_to_vec(name.as_str()?).ok()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::{Ask, Told, api, told};

    #[test]
    fn answers_are_taken_apart() {
        let header = json!({"revision": "5"});
        let granted = json!({"header": header, "ID": "7", "TTL": "3"});
        assert_eq!(told(Ask::Grant(3), 7, &granted), Ok(Told::Granted(3)));
        assert!(told(Ask::Grant(3), 8, &granted).is_err(), "another lease");
        assert_eq!(told(Ask::Renew, 7, &json!({ "result": granted })), Ok(Told::Renewed(3)));
        let gone = json!({"header": header, "ID": "7"});
        assert_eq!(told(Ask::Renew, 7, &json!({ "result": gone })), Ok(Told::Gone));
        assert_eq!(told(Ask::Revoke, 7, &json!({"header": header})), Ok(Told::Revoked));
        assert!(told(Ask::Revoke, 7, &json!({})).is_err());
        let seen = json!({"header": header, "ID": "7", "grantedTTL": "3", "TTL": "2",
            "keys": [api::key_base64(3)]});
        let wanted = Told::Seen { remaining: 2, granted: 3, keys: Some(vec![3]) };
        assert_eq!(told(Ask::Look { keys: true }, 7, &seen), Ok(wanted));
        let gone = json!({"header": header, "ID": "7", "TTL": "-1"});
        assert_eq!(told(Ask::Look { keys: true }, 7, &gone), Ok(Told::Gone));
    }
}
