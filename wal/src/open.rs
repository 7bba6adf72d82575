//! Opening: lock, read back, refuse or repair, make durable, go on.
//!
//! Nothing is changed before everything has been read and found sound. Every repair can be interrupted at any point and
//! is done again by the next opening.

use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::allocator::{Allocator, Spare, zero_filled};
use crate::config::Config;
use crate::encoder::{Encoder, Origin};
use crate::error::{AppendError, OpenError};
use crate::flusher::Flusher;
use crate::fs::{Access, DirLock, Fs, FsFile};
use crate::queue::Shared;
use crate::replay::{Replay, replay};
use crate::scan::{End, list, segments};
use crate::segment::{LOCK, NEW_LOG, parse_spare};
use crate::types::{LogIndex, LogPosition, Metadata, State, TornTail};
use crate::view::{SegmentFile, View};

/// What an opened log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Whose log it is.
    pub metadata: Metadata,
    /// The state saved last; the default if none ever was.
    pub state: State,
    /// The purge point, if there is one.
    pub purged: Option<LogPosition>,
    /// The first entry; `None` if there are none.
    pub first: Option<LogIndex>,
    /// The last entry; `None` if there are none, also after everything was purged.
    pub last: Option<LogPosition>,
    /// What was cut off the end, if the last run ended in the middle of a write.
    pub torn: Option<TornTail>,
    /// Whether the log was created by this call.
    pub created: bool,
}

/// The parts of a log that has been opened, not yet running.
pub(crate) struct Opened {
    pub(crate) lock: Box<dyn DirLock>,
    pub(crate) recovered: Recovered,
    pub(crate) encoder: Encoder,
    pub(crate) flusher: Flusher,
}

pub(crate) fn exists(fs: &dyn Fs, dir: &Path) -> Result<bool, OpenError> {
    Ok(!segments(fs, dir)?.is_empty())
}

pub(crate) fn open(fs: &Arc<dyn Fs>, dir: &Path, config: &Config) -> Result<Opened, OpenError> {
    config.validate()?;
    let exists = exists(&**fs, dir)?;
    if !exists {
        if config.metadata.is_none() {
            return Err(OpenError::NoLog { dir: dir.to_owned() });
        }
        create_dir(&**fs, dir)?;
    }
    let lock = lock_dir(&**fs, dir)?;
    let mut created = false;
    let replay = match (replay(fs, dir)?, config.metadata) {
        (Some(replay), _) => replay,
        (None, None) => return Err(OpenError::NoLog { dir: dir.to_owned() }),
        (None, Some(metadata)) => {
            created = true;
            create(&**fs, dir, metadata, config.segment_bytes)?;
            replay(fs, dir)?.ok_or_else(|| OpenError::NoLog { dir: dir.to_owned() })?
        }
    };
    check_identity(dir, config, &replay.metadata)?;
    let current = repair(&**fs, dir, &replay.end)?;
    assemble(fs, dir, config, replay, current, lock, created)
}

fn create_dir(fs: &dyn Fs, dir: &Path) -> Result<(), OpenError> {
    fs.create_dir_all(dir).map_err(OpenError::io("create directory", dir))?;
    match dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => fs.sync_dir(parent).map_err(OpenError::io("sync directory", parent)),
        None => Ok(()),
    }
}

fn lock_dir(fs: &dyn Fs, dir: &Path) -> Result<Box<dyn DirLock>, OpenError> {
    let path = dir.join(LOCK);
    fs.lock(&path).map_err(|source| match source.kind() {
        std::io::ErrorKind::WouldBlock => OpenError::Locked { path },
        _ => OpenError::Io { operation: "lock", path, source },
    })
}

fn check_identity(dir: &Path, config: &Config, found: &Metadata) -> Result<(), OpenError> {
    match config.metadata {
        Some(expected) if Metadata { format: found.format, ..expected } != *found => {
            Err(OpenError::Identity { dir: dir.to_owned(), expected: expected.into(), found: (*found).into() })
        }
        Some(_) | None => Ok(()),
    }
}

/// Makes the first segment under another name, so that a segment that is there has a whole head: a log with one damaged
/// segment must never be taken for a log that is just being created.
fn create(fs: &dyn Fs, dir: &Path, metadata: Metadata, segment_bytes: u64) -> Result<(), OpenError> {
    // Spares of another life of this directory must not be used in this one, where numbers start again.
    let leftover = |name: &String| name == NEW_LOG || parse_spare(name).is_some();
    for name in list(fs, dir)?.iter().filter(|name| leftover(name)) {
        let path = dir.join(name);
        fs.remove(&path).map_err(OpenError::io("remove", &path))?;
    }
    let (head, name) = Encoder::first_segment(metadata, segment_bytes);
    let temporary = dir.join(NEW_LOG);
    let file = zero_filled(fs, &temporary, segment_bytes)?;
    file.write_at(&head, 0).map_err(OpenError::io("write", &temporary))?;
    file.sync_data().map_err(OpenError::io("sync", &temporary))?;
    let path = dir.join(name.to_string());
    fs.rename(&temporary, &path).map_err(OpenError::io("rename", &temporary))?;
    fs.sync_dir(dir).map_err(OpenError::io("sync directory", dir))
}

/// Removes what was never acknowledged, and makes durable what was found. Returns the segment that goes on.
fn repair(fs: &dyn Fs, dir: &Path, end: &End) -> Result<Arc<dyn FsFile>, OpenError> {
    if let Some(unused) = &end.unused {
        // Removed and not reused: what is in it could pass for records of the segment that will have its number.
        let path = dir.join(unused);
        fs.remove(&path).map_err(OpenError::io("remove", &path))?;
    }
    let path = dir.join(end.name.to_string());
    let file = fs.open(&path, Access::Write).map_err(OpenError::io("open for writing", &path))?;
    if let Some(traces_end) = end.traces_end {
        // Records behind the cut chain to the ones before it; if the caller appends the same entries again, they would
        // come back to life. So they are erased.
        erase(&*file, end.offset, traces_end).map_err(OpenError::io("erase an unfinished write in", &path))?;
    }
    // What was read may have been in the page cache only, and if a sync failed before, another one would succeed without
    // writing anything. So what is not known to be durable is written again: the last group, by the rule of groups.
    let (start, bytes) = &end.last_group;
    file.write_at(bytes, *start).map_err(OpenError::io("write", &path))?;
    file.sync_data().map_err(OpenError::io("sync", &path))?;
    fs.sync_dir(dir).map_err(OpenError::io("sync directory", dir))?;
    Ok(file)
}

fn erase(file: &dyn FsFile, from: u64, to: u64) -> std::io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut at = from;
    while at < to {
        let size = usize::try_from(to - at).unwrap_or(zeros.len()).min(zeros.len());
        file.write_at(&zeros[..size], at)?;
        at += size as u64;
    }
    Ok(())
}

fn assemble(
    fs: &Arc<dyn Fs>,
    dir: &Path,
    config: &Config,
    mut replay: Replay,
    current: Arc<dyn FsFile>,
    lock: Box<dyn DirLock>,
    created: bool,
) -> Result<Opened, OpenError> {
    let recovered = Recovered {
        metadata: replay.metadata,
        state: replay.state.clone(),
        purged: replay.view.purged(),
        first: replay.view.first(),
        last: replay.view.last(),
        torn: replay.end.torn.clone(),
        created,
    };
    open_segments(&**fs, dir, &mut replay, &current)?;
    let sequence = u32_sequence(replay.end.name.sequence);
    let origin = Origin {
        metadata: replay.metadata,
        sequence,
        offset: replay.end.offset,
        chain: replay.end.chain.value,
        state: replay.state,
        purged: replay.view.purged(),
        next: replay.next,
    };
    let encoder = Encoder::new(origin, config.segment_bytes, config.group_bytes_max);
    let (spares, next_name) = spares(&**fs, dir, config)?;
    let kept = config.recycled_segments;
    let allocator = Allocator::start(Arc::clone(fs), dir, config.segment_bytes, kept, spares, next_name)
        .map_err(OpenError::io("start the allocator thread of", dir))?;
    let flusher = Flusher {
        fs: Arc::clone(fs),
        dir: dir.to_owned(),
        shared: Arc::new(Shared::new(replay.next.unwrap_or(0))),
        view: Arc::new(Mutex::new(replay.view)),
        allocator,
        path: dir.join(replay.end.name.to_string()),
        file: current,
        segment_bytes: config.segment_bytes,
        tail_bytes_max: config.tail_bytes_max,
        sync: config.sync,
        observer: config.observer.clone(),
    };
    Ok(Opened { lock, recovered, encoder, flusher })
}

fn u32_sequence(sequence: u64) -> u32 {
    u32::try_from(sequence).expect("replay refuses larger sequence numbers")
}

fn open_segments(fs: &dyn Fs, dir: &Path, replay: &mut Replay, current: &Arc<dyn FsFile>) -> Result<(), OpenError> {
    let names = replay.names().collect::<Vec<_>>();
    let view: &mut View = &mut replay.view;
    for name in names {
        let path = dir.join(name.to_string());
        let file = if name == replay.end.name {
            Arc::clone(current)
        } else {
            // For writing too: a purged segment is marked before it is reused.
            fs.open(&path, Access::Write).map_err(OpenError::io("open for writing", &path))?
        };
        let sequence = u32_sequence(name.sequence);
        view.add_segment(SegmentFile { sequence, name: name.to_string().into(), file });
    }
    Ok(())
}

/// The spares that can be used, and a number above all of them. Others are removed.
fn spares(fs: &dyn Fs, dir: &Path, config: &Config) -> Result<(Vec<Spare>, u64), OpenError> {
    let mut names = list(fs, dir)?;
    names.sort_unstable();
    let (mut spares, mut next_name) = (Vec::new(), 1);
    for name in names {
        let path = dir.join(&name);
        if let Some(number) = parse_spare(&name) {
            next_name = number.saturating_add(1).max(next_name);
            let file = fs.open(&path, Access::Write).map_err(OpenError::io("open for writing", &path))?;
            let length = file.len().map_err(OpenError::io("measure", &path))?;
            if length == config.segment_bytes && spares.len() < config.recycled_segments {
                // A process that was killed while it made this one may have left it written but not durable. Used like
                // that, it could be a segment without its length after a power cut.
                file.sync_data().map_err(OpenError::io("sync", &path))?;
                spares.push(Spare { path, file });
                continue;
            }
        } else if name != NEW_LOG {
            continue;
        }
        fs.remove(&path).map_err(OpenError::io("remove", &path))?;
    }
    Ok((spares, next_name))
}

/// The first write to an opened log could not be queued or failed.
pub(crate) fn first_write(error: AppendError) -> OpenError {
    match error {
        AppendError::Failed(error) => OpenError::Sync(error),
        // A new queue is empty, and the state was in a record before.
        other => unreachable!("saving the recovered state cannot be refused: {other}"),
    }
}
