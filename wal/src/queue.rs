//! What stands between the appender and the flusher: encoded groups, tickets, callbacks, and the first failure.
//!
//! The appender encodes into the group at the back under the lock, without I/O. The flusher takes the group at the
//! front, whole; what is appended meanwhile is the next group. So groups grow by themselves while a sync runs.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{AppendError, SyncError};
use crate::segment::SegmentName;
use crate::types::{LogIndex, Ticket};

/// Called once what it waits for is durable, or never will be.
pub(crate) type Done = Box<dyn FnOnce(Result<(), SyncError>) + Send>;

/// Buffers above this are not kept for reuse.
const SPARE_BUFFER_BYTES_MAX: usize = 4 << 20;
const SPARE_BUFFERS_MAX: usize = 2;

/// The records of one write and one sync.
#[derive(Debug)]
pub(crate) struct Group {
    /// The segment to begin with this group, if it does not go on in the current one.
    pub(crate) segment: Option<SegmentName>,
    /// Where in the segment the group starts.
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) entries: u64,
    /// The last operation in it.
    pub(crate) ticket: u64,
    /// One past the last entry of the log as of this group, lowered by truncations made since; 0 for none.
    pub(crate) log_end: u64,
    /// Segments before this one hold nothing that is needed once the group is durable.
    pub(crate) keep_from: Option<u32>,
}

#[derive(Default)]
pub(crate) struct Queue {
    groups: VecDeque<Group>,
    in_flight: Option<InFlight>,
    pending_bytes: usize,
    /// The newest operation, the newest one somebody wants durable, and the newest one that is.
    issued: u64,
    wanted: u64,
    synced: u64,
    waiting: VecDeque<(u64, Done)>,
    /// The flusher is calling callbacks: nobody else may, or order would be lost.
    delivering: bool,
    sleeping: bool,
    waiters: usize,
    closing: bool,
    failed: Option<SyncError>,
    buffers: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct InFlight {
    ticket: u64,
    log_end: u64,
    bytes: usize,
}

/// The queue and the bells around it.
pub(crate) struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    synced: Condvar,
    /// One past the last durable entry; 0 for none. Written under the queue's lock only.
    durable_end: Arc<AtomicU64>,
}

/// A cheap handle that tells how far the log is durable.
#[derive(Clone, Debug)]
pub struct Durable(Arc<AtomicU64>);

impl Durable {
    /// The highest index up to which every entry of the log is durable (or purged durably). Goes back when entries are
    /// truncated, at the moment of truncation.
    pub fn index(&self) -> Option<LogIndex> {
        self.0.load(Ordering::Acquire).checked_sub(1).map(LogIndex::new)
    }
}

/// What the flusher does next.
pub(crate) enum Work {
    Write(Group),
    Stop,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under one of our locks has already been turned into a failed log; the data is still sound to read.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(durable_end: u64) -> Shared {
        Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            synced: Condvar::new(),
            durable_end: Arc::new(AtomicU64::new(durable_end)),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    pub(crate) fn durable(&self) -> Durable {
        Durable(Arc::clone(&self.durable_end))
    }

    pub(crate) fn durable_end(&self) -> u64 {
        self.durable_end.load(Ordering::Acquire)
    }

    /// Lowers every watermark that is or will be above the entries that are left.
    pub(crate) fn truncate(&self, queue: &mut Queue, log_end: u64) {
        for group in &mut queue.groups {
            group.log_end = group.log_end.min(log_end);
        }
        if let Some(flight) = &mut queue.in_flight {
            flight.log_end = flight.log_end.min(log_end);
        }
        self.durable_end.fetch_min(log_end, Ordering::AcqRel);
    }

    /// Rings for the flusher if it sleeps.
    pub(crate) fn want(&self, queue: &mut Queue, ticket: u64) {
        queue.wanted = queue.wanted.max(ticket);
        self.ring(queue);
    }

    /// Wakes the flusher if it sleeps and has something to do.
    pub(crate) fn ring(&self, queue: &mut Queue) {
        if queue.sleeping && queue.runnable() {
            queue.sleeping = false;
            self.wake.notify_one();
        }
    }

    pub(crate) fn flush(&self, ticket: Ticket, done: Done) {
        let mut queue = self.lock();
        let settled = queue.settled(ticket.0);
        match settled {
            Some(result) if !queue.delivering => {
                drop(queue);
                done(result);
            }
            Some(_) | None => {
                queue.park(ticket.0, done);
                self.want(&mut queue, ticket.0);
            }
        }
    }

    pub(crate) fn wait(&self, ticket: Ticket) -> Result<(), SyncError> {
        let mut queue = self.lock();
        self.want(&mut queue, ticket.0);
        queue.waiters += 1;
        let result = loop {
            if let Some(result) = queue.settled(ticket.0) {
                break result;
            }
            queue = self.synced.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        queue.waiters -= 1;
        result
    }

    /// Blocks until there is something to write.
    pub(crate) fn next_work(&self) -> Work {
        let mut queue = self.lock();
        loop {
            if queue.failed.is_some() {
                return Work::Stop;
            }
            if queue.runnable()
                && let Some(group) = queue.groups.pop_front()
            {
                queue.in_flight =
                    Some(InFlight { ticket: group.ticket, log_end: group.log_end, bytes: group.bytes.len() });
                return Work::Write(group);
            }
            if queue.closing {
                return Work::Stop;
            }
            queue.sleeping = true;
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.sleeping = false;
        }
    }

    /// The group in flight is durable. Call [`Shared::deliver`] next.
    pub(crate) fn completed(&self, mut buffer: Vec<u8>) {
        let mut queue = self.lock();
        if let Some(flight) = queue.in_flight.take() {
            queue.pending_bytes = queue.pending_bytes.saturating_sub(flight.bytes);
            queue.synced = flight.ticket;
            self.durable_end.store(flight.log_end, Ordering::Release);
        }
        if buffer.capacity() <= SPARE_BUFFER_BYTES_MAX && queue.buffers.len() < SPARE_BUFFERS_MAX {
            buffer.clear();
            queue.buffers.push(buffer);
        }
        queue.delivering = true;
        if queue.waiters > 0 {
            self.synced.notify_all();
        }
    }

    /// Nothing is written any more after the group in flight. The first failure is the one that stays. The flusher calls
    /// [`Shared::deliver`] when it stops.
    pub(crate) fn fail(&self, error: SyncError) {
        let mut queue = self.lock();
        queue.failed.get_or_insert(error);
        queue.groups.clear();
        queue.pending_bytes = 0;
        queue.delivering = true;
        self.synced.notify_all();
        self.wake.notify_one();
    }

    /// Calls the callbacks whose time has come, in ticket order, without holding the lock.
    pub(crate) fn deliver(&self) {
        let mut ready = Vec::new();
        loop {
            let mut queue = self.lock();
            while let Some((ticket, _)) = queue.waiting.front()
                && let Some(result) = queue.settled(*ticket)
                && let Some((_, done)) = queue.waiting.pop_front()
            {
                ready.push((done, result));
            }
            if ready.is_empty() {
                queue.delivering = false;
                return;
            }
            drop(queue);
            for (done, result) in ready.drain(..) {
                // The callbacks behind a panicking one must still be called.
                if catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
                    self.fail(SyncError::Panicked);
                }
            }
        }
    }

    /// Lets the flusher write what was asked for, then stop.
    pub(crate) fn close(&self) {
        let mut queue = self.lock();
        queue.closing = true;
        self.wake.notify_one();
    }
}

impl Queue {
    /// Refuses what a failed or overloaded log cannot take.
    pub(crate) fn admit(&self, bytes: usize, limit: usize) -> Result<(), AppendError> {
        if let Some(error) = &self.failed {
            return Err(error.clone().into());
        }
        // One call always fits into an empty queue, whatever the limit.
        if self.pending_bytes > 0 && self.pending_bytes.saturating_add(bytes) > limit {
            return Err(AppendError::Overloaded { pending: self.pending_bytes, bytes, limit });
        }
        Ok(())
    }

    /// The group that takes the next record, if there is one with room.
    pub(crate) fn open_group(&mut self, bytes_max: usize) -> Option<&mut Group> {
        self.groups.back_mut().filter(|group| group.bytes.len() < bytes_max)
    }

    /// Starts a group; the one before it is complete.
    pub(crate) fn push_group(&mut self, segment: Option<SegmentName>, offset: u64, log_end: u64) -> &mut Group {
        let bytes = self.buffers.pop().unwrap_or_default();
        let ticket = self.issued;
        self.groups.push_back(Group { segment, offset, bytes, entries: 0, ticket, log_end, keep_from: None });
        self.back()
    }

    /// The group pushed last.
    pub(crate) fn back(&mut self) -> &mut Group {
        self.groups.back_mut().expect("called only after a group was found or pushed, under the same lock")
    }

    /// Counts bytes that belong to no operation: the head of a segment.
    pub(crate) fn charge(&mut self, bytes: usize) {
        self.pending_bytes += bytes;
    }

    /// Numbers the record that has just been encoded into the group at the back.
    pub(crate) fn issue(&mut self, encoded: usize, entries: u64, log_end: u64) -> Ticket {
        self.issued += 1;
        self.pending_bytes += encoded;
        if let Some(group) = self.groups.back_mut() {
            group.ticket = self.issued;
            group.entries += entries;
            group.log_end = log_end;
        }
        Ticket(self.issued)
    }

    /// Remembers which segments the operation just issued makes superfluous.
    pub(crate) fn keep_from(&mut self, sequence: u32) {
        if let Some(group) = self.groups.back_mut() {
            group.keep_from = Some(sequence);
        }
    }

    /// The newest operation.
    pub(crate) fn newest(&self) -> Ticket {
        Ticket(self.issued)
    }

    fn runnable(&self) -> bool {
        self.groups.len() > 1 || self.groups.front().is_some_and(|_| self.wanted > self.synced)
    }

    /// What has become of an operation; `None` if that is still open.
    fn settled(&self, ticket: u64) -> Option<Result<(), SyncError>> {
        if ticket <= self.synced { Some(Ok(())) } else { self.failed.clone().map(Err) }
    }

    fn park(&mut self, ticket: u64, done: Done) {
        let at = self.waiting.partition_point(|(other, _)| *other <= ticket);
        self.waiting.insert(at, (ticket, done));
    }
}
