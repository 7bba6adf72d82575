//! All open connections: their number is bounded, and those that make no progress are closed.
//!
//! **Invariant**: no clock is read on the path of a request. A connection only counts its events; the reaper looks at the
//! counters every [`TICK`] and closes a connection whose phase and counter have not changed for that phase's time, or on which
//! one request makes no progress, whatever the others do.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::ages::{Ages, Side};
use super::direct;
use super::limits::Limits;

/// Time between two looks at the connections.
const TICK: Duration = Duration::from_secs(2);
/// How long a client over HTTP/1.1 has to send its last request, be answered it, and be told that it was the last one.
const FAREWELL: Duration = Duration::from_millis(200);
/// How long connections that were told to close may take.
const CLOSING: Duration = Duration::from_secs(5);

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
    /// Requests whose response has not begun.
    handled: Ages,
    /// Parts of responses that the client has not taken yet.
    offered: Ages,
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
    /// The answer that it sends past HTTP.
    pub(super) direct: direct::Slot,
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

    pub(super) fn command(&self, order: Order) {
        self.order.fetch_max(order as u8, Relaxed);
        self.wake.notify_one();
    }

    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Relaxed)
    }

    /// Whether bodies may go on for long: it is another member's.
    pub(super) fn has_streamed_bodies(&self) -> bool {
        self.streamed_bodies
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
        self.open.fetch_add(1, Relaxed);
        let handled = Some(self.handled.begin());
        Request { connection: Arc::clone(self), handled, offered: None, patience: None }
    }

    fn phase(&self) -> (Phase, u32) {
        let activity = || self.reads.load(Relaxed).wrapping_add(self.requests.load(Relaxed));
        if self.write_blocked.load(Relaxed) {
            (Phase::Stalled, self.writes.load(Relaxed))
        } else if self.handled.any() {
            (Phase::Handling, if self.streamed_bodies { activity() } else { 0 })
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
    /// Has a limit only where bodies are streams. Elsewhere the oldest request has one.
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
            Phase::Handling => limits.streamed_bodies.then_some(limits.handler_timeout),
            Phase::Responding => None,
            Phase::Stalled => Some(limits.stall_timeout),
            Phase::Idle => Some(limits.idle_timeout),
        }
    }
}

/// A request under way, until its response has been sent.
pub(super) struct Request {
    connection: Arc<Connection>,
    /// Until the response begins.
    handled: Option<Side>,
    /// While the client has something to take.
    offered: Option<Side>,
    /// In place of `handled`, once the request may be patient.
    patience: Option<Patience>,
}

impl Request {
    /// The right to take as long as it likes, for whoever handles it.
    pub(super) fn patience(&mut self) -> Option<Patience> {
        let side = self.handled.take()?;
        let handled = Handled { connection: Arc::clone(&self.connection), side, ended: AtomicBool::new(false) };
        self.patience = Some(Patience(Arc::new(handled)));
        self.patience.clone()
    }

    /// A part of the response has been made.
    pub(super) fn answer(&self) {
        self.connection.on_answer();
    }

    /// The response begins.
    pub(super) fn respond(&mut self) {
        self.answer();
        if let Some(side) = self.handled.take() {
            self.connection.handled.end(side);
        }
        if let Some(patience) = self.patience.take() {
            patience.begin();
        }
    }

    /// A part of the response is given to the client. It has its time to take it, which it does once it is offered the next,
    /// or this is dropped.
    pub(super) fn offer(&mut self) {
        let offered = &self.connection.offered;
        self.offered = Some(match self.offered {
            Some(side) => offered.renew(side),
            None => offered.begin(),
        });
    }

    /// The client has taken everything that there is as yet.
    pub(super) fn taken(&mut self) {
        if let Some(side) = self.offered.take() {
            self.connection.offered.end(side);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.respond();
        self.taken();
        self.connection.open.fetch_sub(1, Relaxed);
    }
}

/// The right of a request to take as long as it likes. It stands among the extensions of a request that has it, and counts
/// once somebody says so: when the body has been read.
#[derive(Clone)]
pub(crate) struct Patience(Arc<Handled>);

struct Handled {
    connection: Arc<Connection>,
    side: Side,
    ended: AtomicBool,
}

impl Patience {
    /// From now on there is no limit.
    pub(crate) fn begin(&self) {
        let Handled { connection, side, ended } = &*self.0;
        if !ended.swap(true, Relaxed) {
            connection.handled.end(*side);
        }
    }
}

struct Watched {
    connection: Arc<Connection>,
    seen: (Phase, u32),
    unchanged: Duration,
    /// For so long at least a request has been handled.
    handled: Duration,
    /// For so long at least the client has not taken a part of a response.
    offered: Duration,
}

impl Watched {
    fn new(connection: Arc<Connection>) -> Watched {
        let seen = connection.phase();
        let zero = Duration::ZERO;
        Watched { connection, seen, unchanged: zero, handled: zero, offered: zero }
    }

    /// What the connection is to be told after so much more time.
    fn judge(&mut self, elapsed: Duration, limits: &Limits) -> Option<Order> {
        let age = |ages: &Ages, age: Duration| if ages.look() { age + elapsed } else { Duration::ZERO };
        self.handled = age(&self.connection.handled, self.handled);
        self.offered = age(&self.connection.offered, self.offered);
        let one_is_stuck = self.handled >= limits.handler_timeout || self.offered >= limits.stall_timeout;
        if one_is_stuck && !limits.streamed_bodies {
            return Some(Order::Close);
        }
        let now = self.connection.phase();
        if now != self.seen {
            self.seen = now;
            self.unchanged = Duration::ZERO;
            return None;
        }
        self.unchanged += elapsed;
        if now.0.limit(limits).is_none_or(|limit| self.unchanged < limit) {
            return None;
        }
        // A client over HTTP/2 that may be about to ask for something is told before; if it is gone, that ends nothing.
        let told = !self.connection.is_http2() || self.connection.order() >= Order::Drain;
        Some(if now.0 == Phase::Idle && !told { Order::Drain } else { Order::Close })
    }
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
        open.insert(id, Watched::new(Arc::clone(&connection)));
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

    pub(crate) fn tick(&self, elapsed: Duration) {
        for watched in self.lock().values_mut() {
            let Some(order) = watched.judge(elapsed, &self.limits) else { continue };
            let connection = &watched.connection;
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
#[path = "connections_tests.rs"]
mod tests;
