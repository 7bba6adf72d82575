//! What the kernel knows about a process and about this machine.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::run;

/// CPU time that all threads of a process took, alive or ended, user and system together.
pub(crate) fn cpu_time(pid: u32, ticks_per_second: u64) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).map_err(Error::file("read", Path::new(&path)))?;
    let ticks = cpu_ticks(&text).ok_or_else(|| Error::Answer(format!("{path}: {text}")))?;
    Ok(Duration::from_nanos(ticks * 1_000_000_000 / ticks_per_second.max(1)))
}

fn cpu_ticks(stat: &str) -> Option<u64> {
    // The program's name is in parentheses and may hold anything, so count fields from the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// How many ticks of `/proc/<pid>/stat` make a second.
pub(crate) fn ticks_per_second() -> u64 {
    let answer = run::captured(Command::new("getconf").arg("CLK_TCK"));
    // 100 on every Linux that does not say otherwise.
    answer.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(100)
}

/// Memory of a process that is in RAM, in bytes.
pub(crate) fn rss_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(Error::file("read", Path::new(&path)))?;
    field(&text, "VmRSS:").map(|kib| kib * 1024).ok_or_else(|| Error::Answer(format!("{path} has no VmRSS")))
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
}

/// This machine in a few lines; `dir` is where the data goes.
pub(crate) fn machine(dir: &Path) -> Result<Vec<String>> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = field(&read("/proc/meminfo"), "MemTotal:").unwrap_or(0);
    let mounts = read("/proc/mounts");
    let sync = sync_latency(dir)?;
    Ok(vec![
        format!("CPU: {}, {cores} cores", model.map_or("unknown", |(_, name)| name)),
        format!("memory: {:.1} GiB", memory as f64 / (1024.0 * 1024.0)),
        format!("kernel: Linux {}", read("/proc/sys/kernel/osrelease").trim()),
        format!("file system of the data: {}", filesystem(&mounts, dir).unwrap_or("unknown")),
        format!("fdatasync of 4 KiB into written blocks: {:.0} µs (median)", sync.as_secs_f64() * 1e6),
    ])
}

/// The type of the file system that holds a directory.
fn filesystem<'text>(mounts: &'text str, dir: &Path) -> Option<&'text str> {
    let dir = dir.canonicalize().ok()?;
    let lines = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?, words.next()?))
    });
    let holding = lines.filter(|(place, _)| dir.starts_with(place));
    holding.max_by_key(|(place, _)| place.len()).map(|(_, kind)| kind)
}

/// How long this disk takes to make 4 KiB durable, in blocks that were written before.
fn sync_latency(dir: &Path) -> Result<Duration> {
    let path = dir.join("sync-probe");
    let failed = |source| Error::File { action: "probe", path: path.clone(), source };
    let mut file = fs::File::create(&path).map_err(failed)?;
    file.write_all(&[0; 256 * 1024]).and_then(|()| file.sync_all()).map_err(failed)?;
    let mut took = Vec::new();
    for round in 0..200_u64 {
        let begun = Instant::now();
        file.write_all_at(&[round as u8; 4096], (round % 64) * 4096).and_then(|()| file.sync_data()).map_err(failed)?;
        took.push(begun.elapsed());
    }
    fs::remove_file(&path).map_err(failed)?;
    took.sort_unstable();
    Ok(took[took.len() / 2])
}

/// How many bytes per second this disk takes from one writer, in one file, the sync at its end included.
pub(crate) fn write_speed(dir: &Path) -> Result<f64> {
    const BYTES: usize = 512 * 1024 * 1024;
    let path = dir.join("write-probe");
    let failed = |source| Error::File { action: "probe", path: path.clone(), source };
    // Bytes that no disk and no file system can make smaller.
    let mut chunk = vec![0; 1024 * 1024];
    Rng::new(1).fill(&mut chunk);
    let begun = Instant::now();
    let mut file = fs::File::create(&path).map_err(failed)?;
    for _ in 0..BYTES / chunk.len() {
        file.write_all(&chunk).map_err(failed)?;
    }
    file.sync_data().map_err(failed)?;
    let took = begun.elapsed();
    fs::remove_file(&path).map_err(failed)?;
    Ok(BYTES as f64 / took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::{cpu_ticks, field, filesystem};
    use std::path::Path;

    #[test]
    fn ticks_of_all_threads_are_fields_14_and_15() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 100 0 0 0 321 45 0 0 20 0 9 0 1 2 3";
        assert_eq!(cpu_ticks(stat), Some(366));
        assert_eq!(cpu_ticks("7 (x) S 1"), None);
    }

    #[test]
    fn fields_and_mounts() {
        assert_eq!(field("VmPeak:\t 9 kB\nVmRSS:\t 123 kB\n", "VmRSS:"), Some(123));
        assert_eq!(filesystem("/dev/a / ext4 rw 0 0\nproc /proc proc rw 0 0\n", Path::new("/")), Some("ext4"));
    }
}
