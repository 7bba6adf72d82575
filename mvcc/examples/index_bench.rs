//! Measures the index alone: memory per key, and time per operation with 1,000,000 keys.
//!
//! `cargo run --release -p tally-mvcc --example index_bench [-- KEYS]`
//!
//! The index is private to the crate, so its files are compiled into this program. Keys have 8 to 64 bytes and arrive
//! in random
//! order. *Publish* means what the store does: hand out a clone and drop the one before it. Every phase runs in a
//! process of its own,
//! so that memory freed by one does not hide what another needs. Times are processor time where the system tells it.
#![allow(dead_code, unused_imports, unreachable_pub)] // the index, seen from here, is not used in full
#![allow(clippy::disallowed_types, clippy::disallowed_methods)] // a benchmark looks at the clock

#[path = "../src/index/mod.rs"]
mod index;

use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use index::{Rev, Revision, Tree};

const OVERWRITES: usize = 300_000;

/// A small generator with a seed, so that every run has the same keys.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }
}

/// Resident memory of this process in bytes; 0 where the system does not say.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn keys(count: usize) -> Vec<Box<[u8]>> {
    let mut rng = Rng(1);
    let key = |_| {
        let mut key = rng.next().to_be_bytes().to_vec();
        let len = 8 + rng.below(57);
        while key.len() < len {
            key.extend(rng.next().to_be_bytes());
        }
        key.truncate(len);
        key.into_boxed_slice()
    };
    (0..count).map(key).collect()
}

fn rev(main: usize, version: i64) -> Rev {
    let main = i64::try_from(main).unwrap_or(i64::MAX);
    Rev { at: Revision::new(main, 0), create: 1, version, print: main as u128 * 0x9e37_79b9_7f4a_7c15_9e37_79b9 }
}

/// Processor time of this process, or the time of day where the system does not tell.
struct Clock {
    wall: Instant,
    cpu: Option<u64>,
}

impl Clock {
    fn start() -> Self {
        Self { wall: Instant::now(), cpu: Self::cpu_ns() }
    }

    fn cpu_ns() -> Option<u64> {
        std::fs::read_to_string("/proc/self/schedstat").ok()?.split_whitespace().next()?.parse().ok()
    }

    fn report(&self, what: &str, count: usize) {
        let wall = u64::try_from(self.wall.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let ns = self.cpu.and_then(|start| Some(Self::cpu_ns()? - start)).unwrap_or(wall);
        println!("{what:<55} {:>8.0} ns", ns as f64 / count as f64);
    }
}

/// Inserts `keys`, publishing after every `every`.
fn fill(keys: &[Box<[u8]>], every: usize) -> Tree {
    let mut tree = Tree::new();
    let (before, started) = (resident(), Clock::start());
    let mut published = tree.clone();
    for (nth, key) in keys.iter().enumerate() {
        tree.insert(key, rev(nth + 1, 1));
        if (nth + 1) % every == 0 {
            published = tree.clone();
        }
    }
    started.report(&format!("random insert of a new key, publish every {every}"), keys.len());
    drop(published);
    let bytes = resident().saturating_sub(before) as f64 / keys.len() as f64;
    println!("{:<55} {bytes:>8.1} bytes", "  resident per key");
    tree
}

/// Overwrites random ones of the first `hot` keys of a full tree.
/// `first` must be above all revisions in it.
fn overwrite(tree: &mut Tree, keys: &[Box<[u8]>], first: usize, every: usize, hot: usize) {
    let mut rng = Rng(2);
    let started = Clock::start();
    let mut published = tree.clone();
    for nth in 0..OVERWRITES {
        let main = first + nth;
        tree.insert(&keys[rng.below(hot)], rev(main, 2));
        if nth % every == 0 {
            published = tree.clone();
        }
    }
    started.report(&format!("overwrite of {hot} random keys, publish every {every}"), OVERWRITES);
    drop(published);
}

fn read(tree: &Tree, keys: &[Box<[u8]>]) {
    let mut rng = Rng(3);
    let started = Clock::start();
    for _ in 0..keys.len() {
        black_box(tree.get(&keys[rng.below(keys.len())]).map(|history| history.newest()));
    }
    started.report("get of a random key", keys.len());
    let count = keys.len() / 10;
    let started = Clock::start();
    for _ in 0..count {
        let (a, b) = (&keys[rng.below(keys.len())], &keys[rng.below(keys.len())]);
        black_box(tree.count_live(a.min(b), Some(a.max(b))));
    }
    started.report("count_live of a random range", count);
    let started = Clock::start();
    for _ in 0..count {
        let (a, b) = (&keys[rng.below(keys.len())], &keys[rng.below(keys.len())]);
        black_box(tree.sum_range(a.min(b), Some(a.max(b))));
    }
    started.report("sum_range of a random range", count);
    let started = Clock::start();
    let mut bytes = 0;
    for (key, history) in tree.range(b"", None) {
        bytes += key.len() + usize::from(history.newest().version == 0);
    }
    black_box(bytes);
    started.report("one key of a scan over all", keys.len());
}

fn compact(tree: &mut Tree) {
    let started = Clock::start();
    let mut dropped = 0;
    tree.compact(i64::MAX, |_, revs| dropped += revs.len());
    started.report("compaction, per revision dropped", dropped);
}

fn bulk(mut keys: Vec<Box<[u8]>>) {
    keys.sort_unstable();
    let (before, started) = (resident(), Clock::start());
    let tree = Tree::bulk(keys.iter().enumerate().map(|(nth, key)| (key, [rev(nth + 1, 1)])));
    started.report("bulk, per key", keys.len());
    println!("{:<55} {:>8.1} bytes", "  resident per key", (resident() - before) as f64 / keys.len() as f64);
    read(&tree, &keys);
}

fn phase(name: &str, keys: Vec<Box<[u8]>>) {
    match name {
        "publish-64" => drop(fill(&keys, 64)),
        "bulk" => bulk(keys),
        _ => {
            let mut tree = fill(&keys, 1);
            read(&tree, &keys);
            let mut first = keys.len() + 1;
            for hot in [keys.len(), keys.len().min(1000), 1] {
                for every in [1, 64] {
                    overwrite(&mut tree, &keys, first, every, hot);
                    first += OVERWRITES;
                }
            }
            compact(&mut tree);
        }
    }
}

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let count = args.next().and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let keys = keys(count);
    if let Some(name) = args.next() {
        phase(&name, keys);
        return Ok(());
    }
    let key_bytes = keys.iter().map(|key| key.len()).sum::<usize>() as f64 / count as f64;
    println!("{count} keys of {key_bytes:.1} bytes on average");
    drop(keys);
    for name in ["publish-1", "publish-64", "bulk"] {
        Command::new(std::env::current_exe()?).args([&count.to_string(), name]).status()?;
    }
    Ok(())
}
