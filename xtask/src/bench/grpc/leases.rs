//! Rows about leases: how fast they are kept alive, and whether puts notice that very many expire.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::calls::{Call, Calls};
use super::load::{self, Clients, Source};
use crate::bench::closed::{self, Times};
use crate::bench::load::{Length, Measured};
use crate::bench::sample::Sample;
use crate::bench::work::Kind;
use crate::error::{Error, Result};
use crate::group::Group;
use crate::grpc::{self, Channel, Fields, Value, frame, method, number};
use crate::node::Plan;

/// Leases that are kept alive.
const KEPT: u64 = 1000;
/// Leases that expire.
const EXPIRING: u64 = 100_000;
/// The time in which they do, evenly.
const MINUTE: Duration = Duration::from_secs(60);
/// Granting them, and putting a key with each, may take so many times as long as as many puts.
const GRANTING: f64 = 2.0;
/// How long after their minute there may be leases left.
const LATE: Duration = Duration::from_secs(120);
/// Keys of the put load.
const KEYS: u32 = 100_000;

const CLIENTS: Clients = Clients { clients: 64, connections: 8, streams: false };

/// Keeps [`KEPT`] leases alive, in turn, by closed loops on a stream each.
pub(crate) fn keep_alive(plan: Plan, times: Times) -> Result<Sample> {
    let group = Group::start(vec![plan])?;
    let addresses = group.addresses();
    grant(&addresses, KEPT, |_| 3600)?;
    let mut next = 0;
    let source: Source = Box::new(move || {
        next = next % KEPT + 1;
        let message = frame(|out| number(out, 1, next));
        Call { path: method::LEASE_KEEP_ALIVE, message, right: lives }
    });
    let streams = Clients { streams: true, ..CLIENTS };
    let run = |edge: &mut dyn FnMut() -> Result<()>| load::run(&addresses, streams, times.length(), source, edge);
    let (measured, cpu, own) = closed::with_cpu(&group.pids(), times, run)?;
    let mut sample = Sample::default();
    sample.add_load(&measured);
    sample.add_cpu(&measured, cpu, own);
    group.stop_all()?;
    Ok(sample)
}

/// Puts before, and while [`EXPIRING`] leases with a key each expire within a [`MINUTE`].
pub(crate) fn expire(plan: Plan, times: Times, seed: u64) -> Result<Sample> {
    let group = Group::start(vec![plan])?;
    let addresses = group.addresses();
    let before = put(&addresses, times.length(), seed)?;
    let granting = Duration::from_secs_f64(GRANTING * 2.0 * EXPIRING as f64 / before.rate().max(1.0));
    let due = Instant::now() + granting;
    let expiry = move |lease: u64| due + MINUTE.mul_f64(lease as f64 / EXPIRING as f64);
    grant(&addresses, EXPIRING, move |lease| {
        expiry(lease).saturating_duration_since(Instant::now()).as_secs_f64().ceil() as u64
    })?;
    attach(&addresses)?;
    let left = due.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::Answer(format!("granting {EXPIRING} leases took more than {granting:?}")));
    }
    std::thread::sleep(left);
    let during = put(&addresses, Length::Time { warmup: Duration::ZERO, window: MINUTE }, seed ^ 1)?;
    let ended = Instant::now();
    let remaining = count(&addresses)?;
    while count(&addresses)? > 0 {
        if ended.elapsed() > LATE {
            return Err(Error::Answer(format!("{} leases are left {LATE:?} after their time", count(&addresses)?)));
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    let mut sample = Sample::default();
    let p99 = |measured: &Measured| measured.latency.quantile(0.99).as_secs_f64() * 1e6;
    sample.add("put_rate", before.rate());
    sample.add("put_rate_expiring", during.rate());
    sample.add("put_p99", p99(&before));
    sample.add("put_p99_expiring", p99(&during));
    sample.add("put_p99_ratio", p99(&during) / p99(&before).max(1e-9));
    sample.add("gone", (EXPIRING - remaining) as f64);
    sample.add("late_s", ended.elapsed().as_secs_f64());
    group.stop_all()?;
    Ok(sample)
}

/// Grants leases 1 to `leases`.
fn grant(addresses: &[SocketAddr], leases: u64, ttl_s: impl Fn(u64) -> u64 + 'static) -> Result<()> {
    let mut lease = 0;
    let source: Source = Box::new(move || {
        lease += 1;
        let message = frame(|out| {
            number(out, 1, ttl_s(lease));
            number(out, 2, lease);
        });
        Call { path: method::LEASE_GRANT, message, right: lives }
    });
    load::run(addresses, CLIENTS, Length::Requests(leases), source, || Ok(())).map(|_| ())
}

/// Puts a key with each of the leases that expire.
fn attach(addresses: &[SocketAddr]) -> Result<()> {
    let mut lease = 0_u64;
    let source: Source = Box::new(move || {
        lease += 1;
        let message = frame(|out| {
            grpc::bytes(out, 1, format!("leased/{lease}").as_bytes());
            grpc::bytes(out, 2, b"gone soon");
            number(out, 3, lease);
        });
        Call { path: method::PUT, message, right: |answer| grpc::find(answer, 1).is_some() }
    });
    load::run(addresses, CLIENTS, Length::Requests(EXPIRING), source, || Ok(())).map(|_| ())
}

fn put(addresses: &[SocketAddr], length: Length, seed: u64) -> Result<Measured> {
    let mut calls = Calls::new(Kind::Put, KEYS, seed);
    load::run(addresses, CLIENTS, length, Box::new(move || calls.next()), || Ok(()))
}

/// How many leases there are.
fn count(addresses: &[SocketAddr]) -> Result<u64> {
    load::block_on(async {
        let mut answer = Vec::new();
        Channel::connect(addresses[0]).await?.call(method::LEASE_LEASES, frame(|_| {}), &mut answer).await?;
        Ok(Fields(&answer).filter(|(field, _)| *field == 2).count() as u64)
    })
}

/// Whether an answer about a lease tells that it has time left.
fn lives(answer: &[u8]) -> bool {
    matches!(grpc::find(answer, 3), Some(Value::Number(1..=0x7fff_ffff)))
}
