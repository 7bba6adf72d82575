//! Measures proposals and read barriers on a real disk: `propose_bench [dir] [seconds]`.
//!
//! For each number of tasks in flight it prints puts (or barriers) per second and the CPU time of the whole process per
//! operation. The tasks live on the node's own runtime, one worker thread, as they do in the server.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tally_apply::Command;
use tally_mvcc::PutRequest;
use tally_raftnode::{Config, EncodedCommand, Founder, Node, StorageOptions, open_storage};

const VALUE_BYTES: usize = 256;
const KEYS: u64 = 100_000;

#[derive(Clone, Copy, Debug)]
enum Work {
    Put,
    Barrier,
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().map_or_else(|| PathBuf::from("propose-bench-data"), PathBuf::from);
    let seconds = args.next().map_or(Ok(3), |text| text.parse())?;
    // One worker, like the server on few cores; everything of the node runs on it, except for the fsyncs.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build()?;
    runtime.block_on(async move { tokio::spawn(run(dir, Duration::from_secs(seconds))).await })?
}

async fn run(dir: PathBuf, time: Duration) -> Result<(), Box<dyn Error + Send + Sync>> {
    let started = Instant::now();
    let node = open(&dir).await?;
    println!("open to ready: {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    println!("{:<8} {:>8} {:>12} {:>12} {:>12}", "work", "tasks", "ops/s", "CPU us/op", "mean ms");
    for (work, tasks) in [1, 64, 256, 1000]
        .map(|tasks| (Work::Put, tasks))
        .into_iter()
        .chain([1, 64, 256].map(|tasks| (Work::Barrier, tasks)))
    {
        let (cpu, begun) = (cpu_time()?, Instant::now());
        let done = drive(&node, work, tasks, time).await?;
        let (cpu, elapsed) = (cpu_time()? - cpu, begun.elapsed().as_secs_f64());
        println!(
            "{:<8} {tasks:>8} {:>12.0} {:>12.2} {:>12.3}",
            format!("{work:?}"),
            done as f64 / elapsed,
            cpu.as_secs_f64() * 1e6 / done as f64,
            elapsed * 1e3 * tasks as f64 / done as f64,
        );
    }
    println!("{:?}", node.progress());
    node.shutdown().await?;
    Ok(())
}

async fn open(dir: &Path) -> Result<Node, Box<dyn Error + Send + Sync>> {
    let storage = open_storage(StorageOptions::new(dir, 1, 1, [1; 16]))?;
    let founders = vec![Founder { id: 1, peer_urls: Vec::new() }];
    let node = Node::start(Config { cluster_id: 1, member_id: 1, founders, ..Config::default() }, storage).await?;
    node.ready().await?;
    Ok(node)
}

async fn drive(node: &Node, work: Work, tasks: u64, time: Duration) -> Result<u64, Box<dyn Error + Send + Sync>> {
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut running = tokio::task::JoinSet::new();
    for task in 0..tasks {
        let (node, stop, done) = (node.clone(), Arc::clone(&stop), Arc::clone(&done));
        running.spawn(async move {
            let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
            let mut number = task * 7_919;
            while !stop.load(Ordering::Relaxed) {
                match work {
                    Work::Put => {
                        let key = Bytes::from(format!("bench/key/{:08}", number % KEYS));
                        let put = PutRequest { key, value: value.clone(), ..PutRequest::default() };
                        node.propose(EncodedCommand::encode(&Command::Put(put))).await?;
                    }
                    Work::Barrier => drop(node.read_barrier().await?),
                }
                number += 1;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Box<dyn Error + Send + Sync>>(())
        });
    }
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(done.load(Ordering::Relaxed))
}

/// CPU time of this process so far, from the operating system.
fn cpu_time() -> Result<Duration, Box<dyn Error + Send + Sync>> {
    const TICKS_PER_SECOND: u64 = 100;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect::<Vec<_>>()).unwrap_or_default();
    let ticks = |field: usize| fields.get(field).map_or(Ok(0), |text| text.parse::<u64>());
    // utime and stime are the 14th and 15th fields; the first two were cut off.
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 1_000 / TICKS_PER_SECOND))
}
