//! A slow disk for one node: its process is in a control group whose writes per second the kernel limits.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};

/// Writes per second that a slow disk takes.
const WRITES_PER_SECOND: u32 = 25;

/// Which generation of control groups limits the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Generation {
    First,
    Second,
}

/// A control group for every slot. Dropping it removes them.
#[derive(Debug)]
pub(crate) struct Disks {
    generation: Generation,
    /// Major and minor number of the disk that holds the data.
    device: String,
    groups: Vec<PathBuf>,
}

impl Disks {
    /// Control groups for so many slots whose data is below `dir`; nothing where this user may not make them.
    pub(crate) fn new(dir: &Path, slots: usize) -> Option<Disks> {
        let device = device(dir)?;
        let first = Path::new("/sys/fs/cgroup/blkio");
        let second = Path::new("/sys/fs/cgroup");
        let (generation, parent) = if first.join("blkio.throttle.write_iops_device").exists() {
            (Generation::First, first)
        } else if second.join("cgroup.subtree_control").exists() {
            // Only where the controller is not given out yet; a refusal shows below, when the limit cannot be set.
            let _ = fs::write(second.join("cgroup.subtree_control"), "+io");
            (Generation::Second, second)
        } else {
            return None;
        };
        let mut disks = Disks { generation, device, groups: Vec::new() };
        for slot in 0..slots {
            let group = parent.join(format!("tally-torture-{}-{slot}", std::process::id()));
            fs::create_dir(&group).ok()?;
            disks.groups.push(group);
            disks.limit(slot, Some(WRITES_PER_SECOND)).ok()?;
            disks.limit(slot, None).ok()?;
        }
        Some(disks)
    }

    /// Puts a slot's new process into its group.
    pub(crate) fn adopt(&self, slot: usize, pid: u32) -> Result<()> {
        let file = self.groups[slot].join("cgroup.procs");
        fs::write(&file, pid.to_string()).map_err(Error::file("write", &file))
    }

    /// Makes a slot's disk slow.
    pub(crate) fn slow(&self, slot: usize) -> Result<()> {
        self.limit(slot, Some(WRITES_PER_SECOND))
    }

    /// Makes all disks fast again.
    pub(crate) fn hasten(&self) -> Result<()> {
        (0..self.groups.len()).try_for_each(|slot| self.limit(slot, None))
    }

    fn limit(&self, slot: usize, writes: Option<u32>) -> Result<()> {
        let (name, text) = match (self.generation, writes) {
            (Generation::First, _) => {
                ("blkio.throttle.write_iops_device", format!("{} {}", self.device, writes.unwrap_or(0)))
            }
            (Generation::Second, Some(writes)) => ("io.max", format!("{} wiops={writes}", self.device)),
            (Generation::Second, None) => ("io.max", format!("{} wiops=max", self.device)),
        };
        let file = self.groups[slot].join(name);
        fs::write(&file, text).map_err(Error::file("write", &file))
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        // A group can be removed once its processes, killed just before, are gone for good.
        for group in &self.groups {
            for _ in 0..100 {
                if fs::remove_dir(group).is_ok() {
                    break;
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// The whole disk that holds a directory, as `major:minor`; nothing if no disk does.
fn device(dir: &Path) -> Option<String> {
    let number = fs::metadata(dir).ok()?.dev();
    let (major, minor) = ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xfff00));
    let node = PathBuf::from(format!("/sys/dev/block/{major}:{minor}")).canonicalize().ok()?;
    // Limits are per disk; a partition is a directory in its disk's.
    let disk = if node.join("partition").exists() { node.parent()?.to_path_buf() } else { node };
    Some(fs::read_to_string(disk.join("dev")).ok()?.trim().to_owned())
}
