//! Files that become durable while they are written: a thread beside the one that writes syncs them.
//!
//! A disk and a processor that take turns are each idle half of the time. Here a large piece is synced while the next ones are
//! written, of which a few may wait, so that neither side waits for the other as soon as that is a little slower. But whoever
//! shares the disk waits behind these pieces, so where others are busy, which the thread that writes sees by having to wait
//! for a processor itself, pieces are small, with a pause after each.
//!
//! **Invariant**: when [`syncing`] returns without an error, everything that was finished is durable, names aside.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{ExportError, FileError};

/// Bytes of a file that are written before they are synced, and where others are busy.
const PIECE_BYTES: u64 = 4 << 20;
const SMALL_PIECE_BYTES: u64 = 512 << 10;
/// Pieces that wait while one is synced. With none the disk waited for the processor at every one that took a little longer.
const PIECES_WAITING: usize = 3;
/// The longest pause after a small piece.
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// Others are busy if a thread has to wait for a processor for so much of the time in which it wants to run. On two cores that
/// was 0.4 for the thread that receives a snapshot with nothing else to be done, and 0.75 beside 64 clients (decision 13).
const BUSY_SHARE: f32 = 0.5;
/// How much the newest look at that counts.
const NEWEST_SHARE: f32 = 0.1;

/// Where files are created that become durable.
pub(crate) struct Durable {
    queue: SyncSender<Order>,
    waits: Waits,
}

/// What the other thread does when everything before has been done.
enum Order {
    Sync(Piece),
    Tell(SyncSender<()>),
}

struct Piece {
    file: Arc<File>,
    path: Arc<Path>,
    is_last: bool,
}

/// Has `write` write files into `directory`, and waits until they are durable. If a sync failed, that is the error: then the
/// writing cannot have gone on.
pub(crate) fn syncing<T>(
    directory: &Path,
    write: impl FnOnce(&Durable) -> Result<T, ExportError>,
) -> Result<T, ExportError> {
    thread::scope(|scope| {
        let (queue, orders) = sync_channel(PIECES_WAITING);
        let syncer = thread::Builder::new().name("tally-sync".to_owned()).spawn_scoped(scope, move || sync(&orders));
        let syncer = syncer.map_err(FileError::on("start a thread that syncs", directory))?;
        let durable = Durable { queue, waits: Waits::new() };
        let written = write(&durable);
        drop(durable);
        syncer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        written
    })
}

fn sync(orders: &Receiver<Order>) -> Result<(), FileError> {
    for order in orders {
        match order {
            Order::Sync(Piece { file, path, is_last }) => {
                let synced = if is_last { file.sync_all() } else { file.sync_data() };
                synced.map_err(FileError::on("sync", &path))?;
            }
            Order::Tell(waits) => drop(waits.send(())),
        }
    }
    Ok(())
}

impl Durable {
    /// Creates a file that is not there yet.
    pub(crate) fn create(&self, path: &Path) -> Result<DurableFile<'_>, FileError> {
        let file = File::create_new(path).map_err(FileError::on("create", path))?;
        Ok(DurableFile { durable: self, file: Arc::new(file), path: path.into(), unsynced: 0 })
    }
}

/// A file that becomes durable while it is written.
pub(crate) struct DurableFile<'a> {
    durable: &'a Durable,
    file: Arc<File>,
    path: Arc<Path>,
    unsynced: u64,
}

impl DurableFile<'_> {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        (&*self.file).write_all(bytes).map_err(FileError::on("write", &self.path))?;
        self.unsynced += bytes.len() as u64;
        let busy = self.durable.waits.are_long();
        if self.unsynced < if busy { SMALL_PIECE_BYTES } else { PIECE_BYTES } {
            return Ok(());
        }
        self.unsynced = 0;
        self.sync(false)?;
        if busy {
            let began = Instant::now();
            self.wait()?;
            // As long again, the disk is for the others.
            thread::sleep(began.elapsed().min(PAUSE_MAX));
        }
        self.durable.waits.look();
        Ok(())
    }

    /// Nothing more will be written.
    pub(crate) fn finish(self) -> Result<(), FileError> {
        self.sync(true)
    }

    fn sync(&self, is_last: bool) -> Result<(), FileError> {
        self.order(Order::Sync(Piece { file: Arc::clone(&self.file), path: Arc::clone(&self.path), is_last }))
    }

    /// Until everything has been synced.
    fn wait(&self) -> Result<(), FileError> {
        let (tells, told) = sync_channel(1);
        self.order(Order::Tell(tells))?;
        told.recv().map_err(|_| self.ended())
    }

    fn order(&self, order: Order) -> Result<(), FileError> {
        self.durable.queue.send(order).map_err(|_| self.ended())
    }

    fn ended(&self) -> FileError {
        FileError::on("sync", &self.path)(io::Error::other("an earlier sync failed"))
    }
}

/// For how much of the time in which this thread wanted to run lately it had to wait for a processor.
struct Waits {
    last: Cell<Option<Ran>>,
    /// Just so much that others count as busy, as long as nothing is known.
    share: Cell<f32>,
}

/// How long a thread has run and waited since it began.
#[derive(Clone, Copy)]
struct Ran {
    ran: Duration,
    waited: Duration,
}

impl Waits {
    fn new() -> Waits {
        Waits { last: Cell::new(None), share: Cell::new(BUSY_SHARE) }
    }

    fn are_long(&self) -> bool {
        self.share.get() >= BUSY_SHARE
    }

    fn look(&self) {
        let now = Ran::look();
        if let (Some(then), Some(now)) = (self.last.get(), now) {
            self.add(now.ran.saturating_sub(then.ran), now.waited.saturating_sub(then.waited));
        }
        self.last.set(now);
    }

    fn add(&self, ran: Duration, waited: Duration) {
        let share = waited.as_secs_f32() / (ran + waited).as_secs_f32().max(f32::MIN_POSITIVE);
        self.share.set(share * NEWEST_SHARE + self.share.get() * (1.0 - NEWEST_SHARE));
    }
}

impl Ran {
    /// Of this thread, where the system says so
    /// ([`sched-stats`](https://docs.kernel.org/scheduler/sched-stats.html): run and wait in nanoseconds, slices).
    fn look() -> Option<Ran> {
        let figures = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        let mut figures = figures.split_ascii_whitespace().map(|figure| figure.parse().ok().map(Duration::from_nanos));
        let (ran, waited) = (figures.next()??, figures.next()??);
        // Where it is not counted there are zeros.
        (!ran.is_zero()).then_some(Ran { ran, waited })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_finished_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..5 << 20).map(|at: u32| (at >> 7) as u8).collect();
        let written = syncing(dir.path(), |durable| {
            for name in ["a", "b", "c"] {
                let mut file = durable.create(&dir.path().join(name))?;
                bytes.chunks(700_000).try_for_each(|chunk| file.write(chunk))?;
                file.finish()?;
            }
            assert!(durable.create(&dir.path().join("a")).is_err(), "it is there already");
            Ok(7)
        });
        assert_eq!(written.unwrap(), 7);
        for name in ["a", "b", "c"] {
            assert!(std::fs::read(dir.path().join(name)).unwrap() == bytes, "{name}");
        }
    }

    #[test]
    fn others_are_busy_until_it_is_seen_that_they_are_not() {
        let waits = Waits::new();
        let second = Duration::from_secs(1);
        assert!(waits.are_long());
        for _ in 0..30 {
            waits.add(second, second / 2);
        }
        assert!(!waits.are_long());
        // One long wait is chance, several are not.
        waits.add(second, second * 4);
        assert!(!waits.are_long());
        for _ in 0..20 {
            waits.add(second, second * 4);
        }
        assert!(waits.are_long());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_thread_has_waited_only_grows() {
        // Not on every kernel: then pieces are small.
        if let Some(before) = Ran::look() {
            assert!(Ran::look().is_some_and(|now| now.waited >= before.waited && now.ran >= before.ran));
        }
    }

    /// A device that takes everything and cannot be synced stands for a disk whose sync fails.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_sync_that_fails_ends_the_writing_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let device = Path::new("/dev/null");
        let mut pieces = 0;
        let written = syncing::<()>(dir.path(), |durable| {
            let file = std::fs::OpenOptions::new().write(true).open(device).unwrap();
            let mut file = DurableFile { durable, file: Arc::new(file), path: device.into(), unsynced: 0 };
            loop {
                file.write(&[0; PIECE_BYTES as usize])?;
                pieces += 1;
                assert!(pieces < 3 + PIECES_WAITING, "nothing tells the writer");
            }
        });
        let error = written.unwrap_err();
        assert!(matches!(&error, ExportError::File(FileError { action: "sync", .. })), "{error}");
        assert!(!format!("{error:?}").contains("an earlier sync failed"), "{error:?}");
    }
}
