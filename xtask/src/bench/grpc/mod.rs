//! The suite over gRPC: closed loops on few connections, watchers, leases; one node, and one row on three.

mod calls;
mod leases;
mod lines;
pub(crate) mod load;
mod watchers;

use std::time::Duration;

pub(crate) use calls::Calls;
pub(crate) use leases::{expire, keep_alive};

use super::closed::{self, Times};
use super::rows::{Event, Goal, Line, Row, Suite, Target, row, target};
use super::sample::Sample;
use super::work::Kind;
use crate::error::Result;
use crate::group::Group;
use crate::node::Plan;
use crate::procfs;
use watchers::Watchers;

/// gRPC, one node of each, but for the row that says otherwise.
pub(crate) const SUITE: Suite = Suite {
    rows: ROWS,
    events: EVENTS,
    targets: TARGETS,
    out: "docs/benchmarks-grpc.md",
    title: "Benchmarks over gRPC",
};

/// The row in which leases are kept alive.
pub(crate) const KEEP_ALIVE: &str = "keepalive";
/// The row in which one put goes to many watchers over gRPC.
pub(crate) const FAN_OUT: &str = "fanout";
/// The same over streams of JSON.
pub(crate) const FAN_OUT_JSON: &str = "fanout-json";
/// The row about the memory of watchers for whom nothing happens.
pub(crate) const IDLE: &str = "idle";
/// The row in which very many leases expire.
pub(crate) const EXPIRY: &str = "expiry";

const ROWS: &[Row] = &[
    row("put-64", "put, 64 clients on 8 connections", Kind::Put, 64, 0, 1_000_000).over(8),
    row("put-1000", "put, 1,000 clients on 100 connections", Kind::Put, 1000, 0, 1_000_000).over(100),
    row("get-64", "linearizable get, 64 clients on 8 connections", Kind::Get, 64, 100_000, 100_000).over(8),
    row("range-64", "range of 100 keys, 64 clients on 8 connections", Kind::Range, 64, 100_000, 100_000).over(8),
    row("txn-64", "txn (compare + put), 64 clients on 8 connections", Kind::Txn, 64, 100_000, 100_000).over(8),
    row("put-64-3", "three nodes: put, 64 clients on 9 connections to all of them", Kind::Put, 64, 0, 1_000_000)
        .over(9)
        .on(3),
];

const EVENTS: &[Event] = &[
    Event {
        name: FAN_OUT,
        title: "one put to 1,000 watchers of its key: 10 connections, one stream of 100 each",
        lines: FAN_OUT_LINES,
    },
    Event { name: FAN_OUT_JSON, title: "the same over 1,000 JSON streams", lines: FAN_OUT_LINES },
    Event {
        name: IDLE,
        title: "memory of idle watchers",
        lines: &[
            Line("watcher_kib", "10,000 watchers on 10 streams, RSS per watcher", " KiB"),
            Line("stream_kib", "10,000 streams on 100 connections, one watcher each, RSS per stream", " KiB"),
        ],
    },
    Event {
        name: KEEP_ALIVE,
        title: "1,000 leases kept alive, 64 streams on 8 connections",
        lines: &[
            Line("rate", "keepalives", "/s"),
            Line("p50", "— p50", " µs"),
            Line("p99", "— p99", " µs"),
            Line("cpu", "— server CPU per keepalive", " µs"),
            Line("client_cpu", "— client CPU per keepalive", " µs"),
        ],
    },
    Event {
        name: EXPIRY,
        title: "100,000 leases with a key each expire within a minute",
        lines: &[
            Line("put_rate", "puts before, 64 clients on 8 connections", "/s"),
            Line("put_rate_expiring", "puts meanwhile", "/s"),
            Line("put_p99", "put p99 before", " µs"),
            Line("put_p99_expiring", "put p99 meanwhile", " µs"),
            Line("put_p99_ratio", "the latter over the former", ""),
            Line("gone", "leases gone when the minute is over", ""),
            Line("late_s", "from then until the last is gone", " s"),
        ],
    },
];

const FAN_OUT_LINES: &[Line] = &[
    Line("rate", "puts, each when all have heard of the last", "/s"),
    Line("p50", "from the put to its last watcher, p50", " µs"),
    Line("p99", "— p99", " µs"),
    Line("event_cpu", "server CPU per event", " µs"),
    Line("event_client_cpu", "client CPU per event", " µs"),
];

const TARGETS: &[Target] = &[
    target("put-64", "rate", "put, 64 clients on 8 connections", "/s", Goal::TimesEtcd(1.7)),
    target("put-64", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(0.45)),
    target("put-1000", "rate", "put, 1,000 clients on 100 connections", "/s", Goal::TimesEtcd(1.5)),
    target("put-1000", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(2.0 / 3.0)),
    target("get-64", "rate", "linearizable get, 64 clients on 8 connections", "/s", Goal::TimesEtcd(1.1)),
    target("get-64", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(0.85)),
    target("range-64", "rate", "range of 100 keys, 64 clients on 8 connections", "/s", Goal::TimesEtcd(3.0)),
    target("range-64", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(1.0 / 3.0)),
    target("txn-64", "rate", "txn (compare + put), 64 clients on 8 connections", "/s", Goal::TimesEtcd(1.7)),
    target("txn-64", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(0.45)),
    target(FAN_OUT, "p50", "one put to the last of 1,000 watchers, p50", " µs", Goal::ShareOfEtcd(0.5)),
    target(FAN_OUT, "event_cpu", "— server CPU per event", " µs", Goal::ShareOfEtcd(0.5)),
    target(FAN_OUT_JSON, "p50", "the same over 1,000 JSON streams, p50", " µs", Goal::ShareOfEtcd(1.0 / 3.0)),
    target(FAN_OUT_JSON, "event_cpu", "— server CPU per event", " µs", Goal::ShareOfEtcd(0.25)),
    target("put-64-3", "rate", "three nodes: put, 64 clients", "/s", Goal::TimesEtcd(1.7)),
    target("put-64-3", "cpu", "— server CPU per op, all nodes", " µs", Goal::ShareOfEtcd(0.5)),
    target(IDLE, "watcher_kib", "memory per idle watcher, 1,000 on a stream", " KiB", Goal::ShareOfEtcd(0.25)),
    target(IDLE, "stream_kib", "memory per idle watcher on a stream of its own", " KiB", Goal::ShareOfEtcd(0.25)),
    target(KEEP_ALIVE, "rate", "lease keepalives, 64 streams on 8 connections", "/s", Goal::TimesEtcd(2.0)),
    target(EXPIRY, "put_p99_ratio", "put p99 while 100,000 leases expire ÷ before", "", Goal::AtMost(1.5)),
    target(EXPIRY, "late_s", "— the last is gone after its time by", " s", Goal::AtMost(2.0)),
];

/// Watchers of one key, over gRPC or over JSON.
const FAN: Watchers = Watchers { connections: 10, streams: 1, each: 100 };
/// Many watchers on few streams, and a stream for each.
const FEW_STREAMS: Watchers = Watchers { connections: 10, streams: 1, each: 1000 };
const MANY_STREAMS: Watchers = Watchers { connections: 100, streams: 100, each: 1 };
/// Keys in the store before memory is looked at, so that it is not the first use of anything that is seen; few, because
/// what a garbage collector has not given back would hide what comes after.
const IDLE_KEYS: u32 = 100;
/// How long a server may tidy up before its memory is looked at.
const SETTLING: Duration = Duration::from_secs(2);

/// One put to many watchers, again and again.
pub(crate) fn fan_out(plan: Plan, json: bool, times: Times) -> Result<Sample> {
    let group = Group::start(vec![plan])?;
    let address = group.addresses()[0];
    let run = |edge: &mut dyn FnMut() -> Result<()>| {
        if json {
            lines::fan_out(address, FAN.count(), times, edge)
        } else {
            load::block_on(watchers::fan_out(address, FAN, times, edge))
        }
    };
    let (measured, cpu, own) = closed::with_cpu(&group.pids(), times, run)?;
    let mut sample = Sample::default();
    sample.add_load(&measured);
    let per_event =
        |cpu: Duration| cpu.as_secs_f64() * 1e6 / (measured.latency.count().max(1) * FAN.count() as u64) as f64;
    sample.add("event_cpu", per_event(cpu));
    sample.add("event_client_cpu", per_event(own));
    group.stop_all()?;
    Ok(sample)
}

/// What idle watchers cost.
pub(crate) fn idle(plan: Plan, seed: u64) -> Result<Sample> {
    let mut sample = Sample::default();
    for (metric, watchers) in [("watcher_kib", FEW_STREAMS), ("stream_kib", MANY_STREAMS)] {
        let group = Group::start(vec![plan.clone()])?;
        let address = group.addresses()[0];
        closed::fill(&[address], IDLE_KEYS, seed)?;
        let memory = || procfs::rss_bytes(group.pids()[0]);
        let grown = load::block_on(async {
            let one = Watchers { connections: 1, streams: 1, each: 1 };
            let first = one.open(address, |_| b"first".to_vec()).await?;
            tokio::time::sleep(SETTLING).await;
            let before = memory()?;
            let streams = watchers.open(address, |watcher| format!("idle/{watcher}").into_bytes()).await?;
            tokio::time::sleep(SETTLING).await;
            let after = memory()?;
            drop((first, streams));
            Ok(after.saturating_sub(before))
        })?;
        sample.add(metric, grown as f64 / 1024.0 / watchers.count() as f64);
        group.stop_all()?;
    }
    Ok(sample)
}
