//! All open connections: their number is bounded, and those that make no progress are closed.
//!
//! **Invariant**: no clock is read on the path of a request. A connection only counts its events; the reaper looks at the
//! counters every [`TICK`] and closes a connection whose phase and counter have not changed for that phase's time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// Time between two looks at the connections.
const TICK: Duration = Duration::from_secs(2);
/// How long a client over HTTP/1.1 has to send its last request, be answered it, and be told that it was the last one.
const FAREWELL: Duration = Duration::from_millis(200);
/// How long connections that were told to close may take.
const CLOSING: Duration = Duration::from_secs(5);

/// What connections may cost. The times are kept to within [`TICK`].
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Open connections on all listeners together; further ones are closed at once.
    pub(crate) connections_max: usize,
    /// From the connection, or the first byte of a request, until its head is complete.
    pub(crate) head_timeout: Duration,
    /// From the complete head until the response begins: reading the body, and handling.
    pub(crate) handler_timeout: Duration,
    /// Bodies are streams that may go on for long: [`Limits::handler_timeout`] counts from the last byte received.
    pub(crate) streamed_bodies: bool,
    /// For the client to take any byte of a response.
    pub(crate) stall_timeout: Duration,
    /// Without any request.
    pub(crate) idle_timeout: Duration,
    /// Size of a request's head, and of the buffer that a connection reads into.
    pub(crate) head_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 20_000,
            head_timeout: Duration::from_secs(10),
            handler_timeout: Duration::from_secs(60),
            streamed_bodies: false,
            stall_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(600),
            head_bytes_max: 64 * 1024,
        }
    }
}

impl Limits {
    /// For other members: few connections, which carry streams without an end and whole states.
    pub(crate) fn for_peers() -> Limits {
        Limits {
            connections_max: 1_000,
            // A state that has been received is checked and put in place before it is answered.
            handler_timeout: Duration::from_secs(15 * 60),
            streamed_bodies: true,
            ..Limits::default()
        }
    }

    /// The same, with connections bounded by the file descriptors that this process may open.
    pub(crate) fn within_descriptors(mut self) -> Limits {
        /// Descriptors kept for the database, the log and everything else.
        const RESERVED: usize = 1_100;
        if let Some(limit) = descriptor_limit() {
            let available = limit.saturating_sub(RESERVED).max(limit / 2);
            self.connections_max = self.connections_max.min(available);
        }
        self
    }
}

/// How many files this process may open.
pub(crate) fn descriptor_limit() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// What a connection is told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    Continue,
    /// Answer what still comes, saying that it was the last answer.
    Finish,
    /// Finish the requests under way, then close.
    Drain,
    Close,
}

/// One connection, as seen by its own task and by the reaper.
#[derive(Debug, Default)]
pub(super) struct Connection {
    order: AtomicU8,
    pub(super) wake: Notify,
    reads: AtomicU32,
    writes: AtomicU32,
    write_blocked: AtomicBool,
    http2: AtomicBool,
    /// Bytes have come that belong to no request yet.
    partial: AtomicBool,
    requests: AtomicU32,
    handling: AtomicU32,
    open: AtomicU32,
    /// Something has been sent to the client since it was last asked.
    answered: AtomicBool,
    /// What has been read in HTTP's turn takes so much memory.
    turn_bytes: AtomicUsize,
    /// What is written over HTTP/2 is kept, to be sent together.
    gathering: AtomicBool,
    /// So much has been kept that it is to be sent.
    kept: AtomicBool,
    /// What is sent from here on comes when something happens, not when the client asks.
    listens: AtomicBool,
    /// It is served elsewhere than where its socket was opened.
    moved: AtomicBool,
    streamed_bodies: bool,
}

impl Connection {
    pub(super) fn order(&self) -> Order {
        match self.order.load(Relaxed) {
            0 => Order::Continue,
            1 => Order::Finish,
            2 => Order::Drain,
            _ => Order::Close,
        }
    }

    fn command(&self, order: Order) {
        self.order.fetch_max(order as u8, Relaxed);
        self.wake.notify_one();
    }

    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Relaxed)
    }

    pub(super) fn on_read(&self, is_http2: bool) {
        self.reads.fetch_add(1, Relaxed);
        if is_http2 {
            self.http2.store(true, Relaxed);
        } else if self.open.load(Relaxed) == 0 {
            self.partial.store(true, Relaxed);
        }
    }

    /// HTTP has a turn, in which a client over HTTP/2 is read so far and no farther, and sent nothing before its end.
    pub(super) fn begin_turn(&self) {
        self.turn_bytes.store(0, Relaxed);
        self.gathering.store(true, Relaxed);
    }

    /// The turn ends; whether something has been kept, which is sent when HTTP flushes the next time.
    pub(super) fn end_turn(&self) -> bool {
        self.gathering.store(false, Relaxed);
        self.kept.load(Relaxed) && self.kept.swap(false, Relaxed)
    }

    /// Whether what is written is kept until the turn ends.
    pub(super) fn gathers(&self) -> bool {
        self.gathering.load(Relaxed)
    }

    /// Something has been kept.
    pub(super) fn keep(&self) {
        self.kept.store(true, Relaxed);
    }

    /// Only the task that reads the connection does this.
    pub(super) fn add_to_turn(&self, bytes: usize) {
        self.turn_bytes.store(self.turn_bytes() + bytes, Relaxed);
    }

    pub(super) fn turn_bytes(&self) -> usize {
        self.turn_bytes.load(Relaxed)
    }

    pub(super) fn on_write(&self, progressed: bool) {
        if progressed {
            self.writes.fetch_add(1, Relaxed);
        }
        if self.write_blocked.load(Relaxed) == progressed {
            self.write_blocked.store(!progressed, Relaxed);
        }
    }

    /// A part of a response has been made.
    pub(super) fn on_answer(&self) {
        if !self.answered.load(Relaxed) {
            self.answered.store(true, Relaxed);
        }
    }

    /// Whether anything has been answered since this was last asked.
    pub(super) fn was_answered(&self) -> bool {
        self.answered.swap(false, Relaxed)
    }

    /// The client has asked to be told of what happens.
    pub(super) fn listen(&self) {
        self.listens.store(true, Relaxed);
    }

    pub(super) fn listens(&self) -> bool {
        self.listens.load(Relaxed)
    }

    /// It is served elsewhere from now on.
    pub(super) fn move_on(&self) {
        self.moved.store(true, Relaxed);
        self.wake.notify_one();
    }

    /// Whether it was moved since this was last asked.
    pub(super) fn was_moved(&self) -> bool {
        self.moved.load(Relaxed) && self.moved.swap(false, Relaxed)
    }

    /// Whether no request is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.open.load(Relaxed) == 0
    }

    /// A request's head is complete. The guard ends the request.
    pub(super) fn begin(self: &Arc<Self>) -> Request {
        self.partial.store(false, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        self.handling.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
        Request { connection: Arc::clone(self), handling: true }
    }

    fn phase(&self) -> (Phase, u32) {
        let activity = || self.reads.load(Relaxed).wrapping_add(self.requests.load(Relaxed));
        if self.write_blocked.load(Relaxed) {
            (Phase::Stalled, self.writes.load(Relaxed))
        } else if self.handling.load(Relaxed) > 0 {
            (Phase::Handling, if self.streamed_bodies { activity() } else { self.requests.load(Relaxed) })
        } else if self.open.load(Relaxed) > 0 {
            (Phase::Responding, 0)
        } else if self.http2.load(Relaxed) {
            (Phase::Idle, activity())
        } else if self.partial.load(Relaxed) || self.requests.load(Relaxed) == 0 {
            (Phase::Head, self.requests.load(Relaxed))
        } else {
            (Phase::Idle, activity())
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Head,
    Handling,
    /// Has a limit only while the client does not read: then it is [`Phase::Stalled`].
    Responding,
    Stalled,
    Idle,
}

impl Phase {
    fn limit(self, limits: &Limits) -> Option<Duration> {
        match self {
            Phase::Head => Some(limits.head_timeout),
            Phase::Handling => Some(limits.handler_timeout),
            Phase::Responding => None,
            Phase::Stalled => Some(limits.stall_timeout),
            Phase::Idle => Some(limits.idle_timeout),
        }
    }
}

/// A request under way, until its response has been sent.
pub(super) struct Request {
    connection: Arc<Connection>,
    handling: bool,
}

impl Request {
    /// A part of the response has been made.
    pub(super) fn answer(&self) {
        self.connection.on_answer();
    }

    /// The response begins.
    pub(super) fn respond(&mut self) {
        self.answer();
        if std::mem::take(&mut self.handling) {
            self.connection.handling.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.respond();
        self.connection.open.fetch_sub(1, Relaxed);
    }
}

struct Watched {
    connection: Arc<Connection>,
    seen: (Phase, u32),
    unchanged: Duration,
}

/// The connections of all listeners of a server.
#[derive(Default)]
pub(crate) struct Connections {
    limits: Limits,
    open: Mutex<HashMap<u64, Watched>>,
    next: AtomicU64,
    draining: AtomicBool,
    emptied: Notify,
    accepted: AtomicU64,
    refused: AtomicU64,
    timed_out: AtomicU64,
}

impl Connections {
    pub(crate) fn new(limits: Limits) -> Connections {
        Connections { limits, ..Connections::default() }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Open now.
    pub(crate) fn open(&self) -> usize {
        self.lock().len()
    }

    /// Accepted since the start.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Closed at once because too many were open.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Closed because they made no progress.
    pub(crate) fn timed_out(&self) -> u64 {
        self.timed_out.load(Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Watched>> {
        // Every change of the map is a single insertion or removal, so a panic leaves it whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection, unless too many are open or the server stops.
    pub(super) fn admit(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.lock();
        if self.draining.load(Relaxed) || open.len() >= self.limits.connections_max {
            self.refused.fetch_add(1, Relaxed);
            return None;
        }
        self.accepted.fetch_add(1, Relaxed);
        let id = self.next.fetch_add(1, Relaxed);
        let streamed_bodies = self.limits.streamed_bodies;
        let connection = Arc::new(Connection { streamed_bodies, ..Connection::default() });
        let seen = connection.phase();
        open.insert(id, Watched { connection: Arc::clone(&connection), seen, unchanged: Duration::ZERO });
        Some(Place { all: Arc::clone(self), id, connection })
    }

    /// Closes connections without progress, for ever.
    pub(crate) async fn reap(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            self.tick(TICK);
        }
    }

    fn tick(&self, elapsed: Duration) {
        for watched in self.lock().values_mut() {
            let now = watched.connection.phase();
            if now != watched.seen {
                watched.seen = now;
                watched.unchanged = Duration::ZERO;
                continue;
            }
            watched.unchanged += elapsed;
            let (phase, connection) = (now.0, &watched.connection);
            if phase.limit(&self.limits).is_none_or(|limit| watched.unchanged < limit) {
                continue;
            }
            // A client over HTTP/2 that may be about to ask for something is told before; if it is gone, that ends nothing.
            let order = match phase {
                Phase::Idle if connection.is_http2() && connection.order() < Order::Drain => Order::Drain,
                _ => Order::Close,
            };
            if connection.order() < order {
                if order == Order::Drain || connection.order() < Order::Drain {
                    self.timed_out.fetch_add(1, Relaxed);
                }
                connection.command(order);
                watched.unchanged = Duration::ZERO;
            }
        }
    }

    /// Admits nobody any more and waits until the requests under way are answered, or `patience` is over: then closes all.
    /// A client that has nothing under way is told with its next answer, or cut off if it asks for none for a while.
    pub(crate) async fn drain(&self, patience: Duration) {
        self.draining.store(true, Relaxed);
        self.command_all(Order::Finish);
        if tokio::time::timeout(FAREWELL, self.empty()).await.is_ok() {
            return;
        }
        self.command_all(Order::Drain);
        if tokio::time::timeout(patience, self.empty()).await.is_err() {
            tracing::warn!(open_connections = self.open(), "closing connections whose requests did not end in time");
            self.close().await;
        }
    }

    /// Admits nobody any more and closes all at once.
    pub(crate) async fn close(&self) {
        self.draining.store(true, Relaxed);
        self.command_all(Order::Close);
        // Their tasks end when they run next. One that does not is a defect, and must not keep the process from ending.
        if tokio::time::timeout(CLOSING, self.empty()).await.is_err() {
            tracing::error!(open_connections = self.open(), "connections do not end although they were told to");
        }
    }

    fn command_all(&self, order: Order) {
        self.lock().values().for_each(|watched| watched.connection.command(order));
    }

    async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.open() == 0 {
                return;
            }
            emptied.await;
        }
    }
}

/// A connection's place among all; dropping it makes room.
pub(super) struct Place {
    all: Arc<Connections>,
    id: u64,
    pub(super) connection: Arc<Connection>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.all.lock();
        open.remove(&self.id);
        if open.is_empty() {
            self.all.emptied.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn all(connections_max: usize) -> Arc<Connections> {
        Arc::new(Connections::new(Limits { connections_max, ..Limits::default() }))
    }

    /// Ticks of 5 s until the connection is told to close; `None` if it is not within an hour.
    fn closed_after(all: &Connections, connection: &Connection, mut each: impl FnMut()) -> Option<u64> {
        (1..=720).find_map(|ticks| {
            each();
            all.tick(Duration::from_secs(5));
            (connection.order() == Order::Close).then_some(ticks * 5)
        })
    }

    #[test]
    fn the_number_of_connections_is_bounded() {
        let all = all(2);
        let first = all.admit().unwrap();
        let _second = all.admit().unwrap();
        assert!(all.admit().is_none());
        assert_eq!((all.open(), all.refused()), (2, 1));
        drop(first);
        assert!(all.admit().is_some());
    }

    #[test]
    fn a_connection_that_says_nothing_or_drips_a_head_is_closed() {
        let all = all(9);
        let silent = all.admit().unwrap();
        assert_eq!(closed_after(&all, &silent.connection, || ()), Some(10));
        let dripping = all.admit().unwrap();
        let connection = Arc::clone(&dripping.connection);
        assert_eq!(closed_after(&all, &connection, || connection.on_read(false)), Some(10));
        assert_eq!(all.timed_out(), 2);
    }

    #[test]
    fn an_idle_connection_is_kept_for_long_and_a_busy_one_for_ever() {
        let all = all(9);
        let place = all.admit().unwrap();
        let connection = Arc::clone(&place.connection);
        assert_eq!(closed_after(&all, &connection, || connection.begin().respond()), None);
        assert_eq!(closed_after(&all, &connection, || ()), Some(600));
    }

    #[test]
    fn an_idle_client_over_http2_is_told_before_it_is_closed() {
        let all = all(9);
        let place = all.admit().unwrap();
        let connection = Arc::clone(&place.connection);
        connection.on_read(true);
        let mut told_after = 0;
        let closed =
            closed_after(&all, &connection, || told_after += u64::from(connection.order() == Order::Continue) * 5);
        assert_eq!((told_after, closed), (605, Some(1_205)));
        assert_eq!(all.timed_out(), 1);
    }

    #[test]
    fn a_body_that_never_ends_is_closed_and_a_long_response_is_not() {
        let all = all(9);
        let place = all.admit().unwrap();
        let connection = Arc::clone(&place.connection);
        let mut request = connection.begin();
        request.respond();
        assert_eq!(closed_after(&all, &connection, || connection.on_write(true)), None);
        drop(request);
        let _request = connection.begin();
        assert_eq!(closed_after(&all, &connection, || connection.on_read(false)), Some(65));
    }

    #[test]
    fn a_stream_between_members_lives_as_long_as_it_moves() {
        let all = Arc::new(Connections::new(Limits::for_peers()));
        let place = all.admit().unwrap();
        let connection = Arc::clone(&place.connection);
        connection.on_read(true);
        // A state that is being received: its request is not answered before the end.
        let request = connection.begin();
        assert_eq!(closed_after(&all, &connection, || connection.on_read(true)), None);
        drop(request);
        // A stream whose answer has begun may be silent for as long as it likes.
        let mut duplex = connection.begin();
        duplex.respond();
        assert_eq!(closed_after(&all, &connection, || ()), None);
        drop(duplex);
        let _silent = connection.begin();
        assert_eq!(closed_after(&all, &connection, || ()), Some(905));
    }

    #[test]
    fn a_client_that_does_not_read_is_closed() {
        let all = all(9);
        let place = all.admit().unwrap();
        let connection = Arc::clone(&place.connection);
        let mut request = connection.begin();
        request.respond();
        connection.on_write(false);
        assert_eq!(closed_after(&all, &connection, || ()), Some(65));
    }

    #[test]
    fn bytes_behind_a_running_request_do_not_count_as_a_late_head() {
        let all = all(9);
        let place = all.admit().unwrap();
        let connection = Arc::clone(&place.connection);
        let request = connection.begin();
        connection.on_read(false);
        drop(request);
        assert_eq!(connection.phase().0, Phase::Idle);
    }
}
