//! The clients: closed loops with a little thinking between operations, each on one node, recording everything.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::api::{self, KEYS, LARGE};
use super::rpc::{NO_LEASE, Reply, Rpc};
use crate::error::{Error, Result};
use crate::linear::{Action, Condition, Key, Lease, Op, Outcome, Stored, Write};
use crate::node::Kind;
use crate::rng::Rng;

/// Operations until new keys are used: what is searched per key stays short.
const OPERATIONS_PER_GENERATION: u64 = 4000;
/// What a client waits for an answer: usually longer than the server does, sometimes hardly at all.
const LIMIT: Duration = Duration::from_secs(8);
const LIMIT_SHORT: Duration = Duration::from_millis(150);
/// The longest pause between two operations.
const THINK_US: u64 = 14_000;
/// The pause after an operation that was refused or could not be sent.
const PAUSE: Duration = Duration::from_millis(30);

/// Leases that any client may attach keys to: the newest ones, some of which have ended.
const LEASES_KNOWN: usize = 24;
/// The first generation of keys that belong to leases.
const LEASED_GENERATION: Key = 800_000;

/// What all clients of a run share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) kind: Kind,
    pub(crate) begun: Instant,
    /// Operations begun so far.
    pub(crate) issued: AtomicU64,
    /// Changes acknowledged so far.
    pub(crate) acknowledged: AtomicU64,
    /// Set while puts are to be large, so that the log grows quickly.
    pub(crate) flood: AtomicBool,
    /// Set when the clients are to end.
    pub(crate) stop: AtomicBool,
    /// The store's last revision, once it stands still for good; 0 before. Watchers end when they have been told of it.
    pub(crate) last: AtomicI64,
    /// Events that all watchers have recorded.
    pub(crate) events: AtomicU64,
    /// Set by whoever has found something wrong; everybody ends.
    pub(crate) failed: AtomicBool,
    /// How often requests failed, by reason.
    pub(crate) failures: Mutex<BTreeMap<String, u64>>,
    /// Leases, each with the first of the keys that were made for it.
    leases: Mutex<VecDeque<(Lease, Key)>>,
    /// Generations of keys made for leases.
    groups: AtomicU64,
}

impl Shared {
    /// What a run begins with.
    pub(crate) fn new(kind: Kind) -> Shared {
        Shared {
            kind,
            begun: Instant::now(),
            issued: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            flood: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            last: AtomicI64::new(0),
            events: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            failures: Mutex::new(BTreeMap::new()),
            leases: Mutex::new(VecDeque::new()),
            groups: AtomicU64::new(0),
        }
    }

    /// Whether somebody has found something wrong.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Whether the clients are to end.
    pub(crate) fn ending(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.has_failed()
    }

    /// Nanoseconds since the run began.
    pub(crate) fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// Counts a request that failed.
    pub(crate) fn failure(&self, why: String) {
        // A poisoned counter is still a counter.
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        *failures.entry(why).or_default() += 1;
    }

    /// The first of the keys that all clients use at present.
    pub(crate) fn first_key(&self) -> Key {
        (self.issued.load(Ordering::Relaxed) / OPERATIONS_PER_GENERATION) as Key * KEYS
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<(Lease, Key)>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a lease known to all clients, and gives the first of its keys.
    pub(crate) fn lend(&self, lease: Lease) -> Key {
        let first = (LEASED_GENERATION + self.groups.fetch_add(1, Ordering::Relaxed) as Key) * KEYS;
        let mut known = self.known();
        known.push_back((lease, first));
        if known.len() > LEASES_KNOWN {
            known.pop_front();
        }
        first
    }

    /// One of the leases that are known, and the first of its keys.
    pub(crate) fn a_lease(&self, rng: &mut Rng) -> Option<(Lease, Key)> {
        let known = self.known();
        known.get(rng.below(known.len() as u64) as usize).copied()
    }
}

/// One client.
pub(crate) struct Client<'run> {
    pub(crate) shared: &'run Shared,
    pub(crate) number: u32,
    pub(crate) node: u32,
    pub(crate) rpc: Rpc,
    pub(crate) rng: Rng,
    values: u64,
    pub(crate) history: Vec<Op>,
}

/// One client's life; gives everything that it did.
pub(crate) fn run(shared: &Shared, number: u32, node: u32, address: SocketAddr, seed: u64) -> Result<Vec<Op>> {
    let mut client = Client::new(shared, number, node, address, seed);
    while !shared.ending() {
        if let Err(error) = client.step() {
            shared.failed.store(true, Ordering::Relaxed);
            return Err(error);
        }
        client.think(THINK_US);
    }
    Ok(client.history)
}

impl<'run> Client<'run> {
    /// A client of one node; its number and the seed fix what it does.
    pub(crate) fn new(shared: &'run Shared, number: u32, node: u32, address: SocketAddr, seed: u64) -> Client<'run> {
        let rpc = Rpc::new(shared.kind, address);
        let rng = Rng::new(crate::rng::mix(seed ^ (u64::from(number) << 32)));
        Client { shared, number, node, rpc, rng, values: 0, history: Vec::new() }
    }

    /// Does nothing for a while.
    pub(crate) fn think(&mut self, at_most_us: u64) {
        thread::sleep(Duration::from_micros(self.rng.below(at_most_us)));
    }

    /// One operation, or a read and the swap that follows from it.
    fn step(&mut self) -> Result<()> {
        let issued = self.shared.issued.fetch_add(1, Ordering::Relaxed);
        let mut first = (issued / OPERATIONS_PER_GENERATION) as Key * KEYS;
        let leased = self.shared.a_lease(&mut self.rng);
        if let Some((_, its)) = leased.filter(|_| self.rng.below(8) == 0) {
            first = its;
        }
        let key = first + self.rng.below(u64::from(KEYS)) as Key;
        let serializable = self.rng.below(2) == 0;
        match self.rng.below(100) {
            0..28 => {
                let lease = leased.filter(|_| self.rng.below(5) == 0).map_or(0, |(lease, _)| lease);
                self.put(key, lease)?;
            }
            28..58 => _ = self.perform(Action::Get { key, serializable })?,
            58..66 => _ = self.perform(Action::Range { first, count: KEYS, serializable })?,
            66..72 => _ = self.perform(Action::Delete { key })?,
            _ => {
                // Half of the time from a read that may be old, so that some swaps are refused.
                let read = self.perform(Action::Get { key, serializable })?;
                if let Some(Outcome::Got { stored, .. }) = read {
                    let swap = self.swap(first, key, stored);
                    self.perform(swap)?;
                }
            }
        }
        Ok(())
    }

    /// A put of a new value, attached to a lease or to none.
    pub(crate) fn put(&mut self, key: Key, lease: Lease) -> Result<Option<Outcome>> {
        let value = self.value();
        self.perform(Action::Put { key, value, lease })
    }

    fn value(&mut self) -> u64 {
        self.values += 1;
        let large = if self.shared.flood.load(Ordering::Relaxed) { LARGE } else { 0 };
        (u64::from(self.number) + 1) << 40 | large | self.values
    }

    /// A swap that follows from what was read.
    fn swap(&mut self, first: Key, key: Key, stored: Option<Stored>) -> Action {
        let condition = match (stored, self.rng.below(8)) {
            (Some(stored), 0) => Condition::Value(stored.value),
            (Some(stored), 1) => Condition::Version(stored.version),
            (Some(stored), 2) => Condition::Created(stored.created),
            (Some(stored), _) => Condition::Modified(stored.modified),
            (None, 0) => Condition::Version(0),
            (None, 1) => Condition::Modified(0),
            (None, _) => Condition::Created(0),
        };
        if stored.is_some() && self.rng.below(8) == 0 {
            return Action::Swap { key, condition, writes: vec![(key, Write::Delete)] };
        }
        let mut writes = vec![(key, Write::Put(self.value()))];
        if self.rng.below(3) == 0 {
            let other = first + (key - first + 1 + self.rng.below(u64::from(KEYS) - 1) as Key) % KEYS;
            writes.push((other, Write::Put(self.value())));
        }
        Action::Swap { key, condition, writes }
    }

    /// Sends an operation and records what became of it.
    pub(crate) fn perform(&mut self, action: Action) -> Result<Option<Outcome>> {
        let Some((path, body)) = api::request(&action) else { return Ok(None) };
        let limit = if self.rng.below(10) == 0 { LIMIT_SHORT } else { LIMIT };
        let writes = !matches!(action, Action::Get { .. } | Action::Range { .. });
        let invoked = self.shared.now();
        let reply = self.rpc.call(path, &body, limit);
        let completed = self.shared.now();
        let outcome = match reply {
            Reply::Done(answer) => api::outcome(&action, &answer).map_err(Error::Answer)?,
            Reply::Refused(why) if why.ends_with(NO_LEASE) => Outcome::NoLease,
            // The request itself is at fault, which none of these is; a learner says it of every request.
            Reply::Refused(why) if why.starts_with("400") && !why.ends_with("for learner") => {
                return Err(Error::Answer(format!("{action:?}: {why}")));
            }
            Reply::Refused(why) => {
                self.shared.failure(format!("{why} (nothing done)"));
                thread::sleep(PAUSE);
                Outcome::Refused
            }
            Reply::Unknown(why) => {
                self.shared.failure(why);
                Outcome::Unknown
            }
            Reply::Unsent => {
                self.shared.failure("no connection".to_owned());
                thread::sleep(PAUSE);
                return Ok(None);
            }
        };
        let missing = matches!(outcome, Outcome::Refused | Outcome::NoLease | Outcome::Unknown);
        if missing && !writes {
            return Ok(None);
        }
        let (client, connection, node) = (self.number, self.rpc.connection, self.node);
        let op = Op { client, connection, node, invoked, completed, action, outcome: outcome.clone() };
        if op.made().is_some() {
            self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        self.history.push(op);
        Ok((!missing).then_some(outcome))
    }
}
