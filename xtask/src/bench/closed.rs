//! Measuring a closed-loop row on one server, or on a cluster of them.

use std::net::SocketAddr;
use std::time::Duration;

use super::grpc;
use super::load::{self, Length, Measured};
use super::rows::Row;
use super::sample::Sample;
use super::work::{FILL_KEYS, Kind, Work};
use crate::error::{Error, Result};
use crate::group::Group;
use crate::http::Client;
use crate::node::Plan;
use crate::procfs;

/// Clients that fill a store before a measurement.
const FILL_CLIENTS: usize = 16;

/// How long measurements are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) window: Duration,
    pub(crate) ticks_per_second: u64,
}

impl Times {
    /// A warm-up and then the window.
    pub(crate) fn length(self) -> Length {
        Length::Time { warmup: self.window / 5, window: self.window }
    }
}

/// Starts the servers on fresh data, measures one row over all of them, and stops them. CPU time, memory and syncs are sums
/// over the servers.
pub(crate) fn measure(row: &Row, plans: Vec<Plan>, times: Times, seed: u64) -> Result<Sample> {
    let group = Group::start(plans)?;
    let addresses = group.addresses();
    if row.preload > 0 {
        fill(&addresses, row.preload, seed)?;
    }
    let syncs_before = wal_syncs(&addresses)?;
    let seed = seed ^ 0xa5a5;
    let run = |edge: &mut dyn FnMut() -> Result<()>| match row.grpc {
        None => {
            let mut work = Work::new(row.work, row.keys, seed);
            load::run(&addresses, row.clients, times.length(), &mut work, edge)
        }
        Some(connections) => {
            let mut calls = grpc::Calls::new(row.work, row.keys, seed);
            let clients = grpc::load::Clients { clients: row.clients, connections, streams: false };
            grpc::load::run(&addresses, clients, times.length(), Box::new(move || calls.next()), edge)
        }
    };
    let (measured, cpu, own) = with_cpu(&group.pids(), times, run)?;
    let syncs = wal_syncs(&addresses)? - syncs_before;
    let mut sample = Sample::default();
    sample.add_load(&measured);
    sample.add_cpu(&measured, cpu, own);
    let rss = group.pids().into_iter().map(procfs::rss_bytes).sum::<Result<u64>>()?;
    sample.add("rss_mib", mebibytes(rss));
    if matches!(row.work, Kind::Put | Kind::Txn) {
        sample.add("fsyncs", syncs / measured.answered.max(1) as f64);
    }
    group.stop_all()?;
    Ok(sample)
}

/// Puts `keys` keys in transactions.
pub(crate) fn fill(addresses: &[SocketAddr], keys: u32, seed: u64) -> Result<()> {
    let mut work = Work::new(Kind::Fill, keys, seed);
    let requests = Length::Requests(u64::from(keys.div_ceil(FILL_KEYS)));
    load::run(addresses, FILL_CLIENTS, requests, &mut work, || Ok(()))?;
    Ok(())
}

/// Runs a measurement and gives the CPU time that the servers and this process took between its two edges.
pub(crate) fn with_cpu(
    pids: &[u32],
    times: Times,
    run: impl FnOnce(&mut dyn FnMut() -> Result<()>) -> Result<Measured>,
) -> Result<(Measured, Duration, Duration)> {
    let mut seen = Vec::new();
    let mut edge = || {
        let now = |pid| procfs::cpu_time(pid, times.ticks_per_second);
        let servers = pids.iter().map(|pid| now(*pid)).sum::<Result<Duration>>()?;
        seen.push((servers, now(std::process::id())?));
        Ok(())
    };
    let measured = run(&mut edge)?;
    match seen[..] {
        [first, last] => Ok((measured, last.0.saturating_sub(first.0), last.1.saturating_sub(first.1))),
        _ => Err(Error::Answer("the measurement has no beginning or no end".to_owned())),
    }
}

/// How often the servers have synced their WALs since they started.
fn wal_syncs(addresses: &[SocketAddr]) -> Result<f64> {
    const NAME: &str = "etcd_disk_wal_fsync_duration_seconds_count";
    let syncs = addresses.iter().map(|address| {
        let mut client = Client::new(*address, Duration::from_secs(10));
        let (status, body) = client.get("/metrics").map_err(Error::network("read /metrics"))?;
        let text = String::from_utf8_lossy(body);
        let value = text.lines().find_map(|line| line.strip_prefix(NAME));
        let value = value.and_then(|rest| rest.trim().parse::<f64>().ok());
        value.ok_or_else(|| Error::Answer(format!("/metrics ({status}) has no {NAME}")))
    });
    syncs.sum()
}

/// Bytes in MiB.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
