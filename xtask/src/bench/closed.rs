//! Measuring a closed-loop row on one server.

use std::time::Duration;

use super::load::{self, Length, Measured};
use super::rows::{Row, Sample};
use super::work::{FILL_KEYS, Kind, Work};
use crate::error::{Error, Result};
use crate::http::Client;
use crate::node::{Node, Plan};
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

/// Starts a server on fresh data, measures one row, and stops it.
pub(crate) fn measure(row: &Row, plan: &Plan, times: Times, seed: u64) -> Result<Sample> {
    let mut node = plan.start()?;
    node.wait_ready()?;
    if row.preload > 0 {
        fill(plan, row.preload, seed)?;
    }
    let mut work = Work::new(row.work, row.keys, seed ^ 0xa5a5);
    let syncs_before = wal_syncs(plan)?;
    let (measured, cpu, own) =
        with_cpu(&node, times, |edge| load::run(plan.client, row.clients, times.length(), &mut work, edge))?;
    let syncs = wal_syncs(plan)? - syncs_before;
    let mut sample = latencies(&measured);
    let per_op = |cpu: Duration| cpu.as_secs_f64() * 1e6 / measured.latency.count().max(1) as f64;
    sample.push(("cpu", per_op(cpu)));
    sample.push(("client_cpu", per_op(own)));
    sample.push(("rss_mib", mebibytes(procfs::rss_bytes(node.pid())?)));
    if matches!(row.work, Kind::Put | Kind::Txn) {
        sample.push(("fsyncs", syncs / measured.answered.max(1) as f64));
    }
    node.stop()?;
    Ok(sample)
}

/// Rate and latencies as numbers.
pub(crate) fn latencies(measured: &Measured) -> Sample {
    let micros = |share| measured.latency.quantile(share).as_secs_f64() * 1e6;
    vec![("rate", measured.rate()), ("p50", micros(0.5)), ("p99", micros(0.99)), ("p999", micros(0.999))]
}

/// Puts `keys` keys in transactions.
fn fill(plan: &Plan, keys: u32, seed: u64) -> Result<()> {
    let mut work = Work::new(Kind::Fill, keys, seed);
    let requests = Length::Requests(u64::from(keys.div_ceil(FILL_KEYS)));
    load::run(plan.client, FILL_CLIENTS, requests, &mut work, || Ok(()))?;
    Ok(())
}

/// Runs a measurement and gives the CPU time that the server and this process took between its two edges.
fn with_cpu(
    node: &Node,
    times: Times,
    run: impl FnOnce(&mut dyn FnMut() -> Result<()>) -> Result<Measured>,
) -> Result<(Measured, Duration, Duration)> {
    let mut seen = Vec::new();
    let mut edge = || {
        let now = |pid| procfs::cpu_time(pid, times.ticks_per_second);
        seen.push((now(node.pid())?, now(std::process::id())?));
        Ok(())
    };
    let measured = run(&mut edge)?;
    match seen[..] {
        [first, last] => Ok((measured, last.0.saturating_sub(first.0), last.1.saturating_sub(first.1))),
        _ => Err(Error::Answer("the measurement has no beginning or no end".to_owned())),
    }
}

/// How often the server has synced its WAL since it started.
fn wal_syncs(plan: &Plan) -> Result<f64> {
    const NAME: &str = "etcd_disk_wal_fsync_duration_seconds_count";
    let mut client = Client::new(plan.client, Duration::from_secs(10));
    let (status, body) = client.get("/metrics").map_err(Error::network("read /metrics"))?;
    let text = String::from_utf8_lossy(body);
    let value = text.lines().find_map(|line| line.strip_prefix(NAME)).and_then(|rest| rest.trim().parse().ok());
    value.ok_or_else(|| Error::Answer(format!("/metrics ({status}) has no {NAME}")))
}

/// Bytes in MiB.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
