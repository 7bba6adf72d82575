//! Streams that wait for the same, and are told of it together.
//!
//! A change that a thousand streams wait for with one watcher each is the same line for all of them. Where each is woken and
//! asked what there is, its task, its connection, its session and its cursor are gone through for that, which are some twenty
//! small objects that nobody has touched since the last change, and takes as long as half of the sending. So a stream of
//! lines that comes to rest looks how many, itself among them, wait for the same range. If they are many, it steps aside ([`Substitute`]) and
//! joins the crowd of its watcher, which has a stream of its own, makes one chunk of each batch, and puts that into the
//! sockets of its members ([`Outlet`]).
//!
//! ```text
//!   session ── rests: steps aside, joins ──► Member: cursor, outlet, waker ◄── one chunk for all ── Crowd ◄── relay stream
//!      ▲                                       │
//!      └──── woken, for whatever reason: recalled, goes on by itself from the cursor
//! ```
//!
//! - **Invariant**: a change is handed to a client by its crowd or by its own session, once. The cursor of a member moves, under
//!   its lock, when the outlet takes the chunk, and no more once the member has been recalled.
//! - **Invariant**: whoever joins is not behind its crowd: what that has begun to hand out, the stream has handed out itself.
//! - **Invariant**: a crowd waits for no member. One whose outlet does not take a chunk at once goes on by itself.
//! - **Invariant**: when a crowd ends, for whatever reason, its members are woken.

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tally_mvcc::{Delivery, Filters, KeyRange, Step, StoreId, Substitute, WatchLimits, WatchSpec, WatchStream};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::yield_now;

use super::lines::write;
use super::session::{Response, read_history};
use crate::api::{Route, State};
use crate::http::{Framed, Outlet};

/// Streams that make a crowd. Of fewer, each for itself is not much slower.
pub(super) const CROWD_MIN: usize = 16;
/// Members that are told before others go first: a fraction of a millisecond, where lines are short.
const AT_ONCE: usize = 32;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is one assignment or one of a map's own.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All crowds of a server.
pub(super) struct Crowds {
    /// Where changes come from.
    home: Handle,
    by_watch: Arc<Mutex<HashMap<Watch, Arc<Crowd>>>>,
}

/// What is the same for all members, and with it what they are told.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Watch {
    store: StoreId,
    range: KeyRange,
    id: i64,
    prev_kv: bool,
}

struct Crowd {
    watch: Watch,
    all: Arc<Mutex<HashMap<Watch, Arc<Crowd>>>>,
    members: Mutex<Members>,
    /// Nobody is left.
    abandoned: Notify,
}

struct Members {
    /// Everything before this revision has been handed to those who were there, or is about to be.
    next: i64,
    by_number: BTreeMap<u64, Arc<Member>>,
    next_number: u64,
    ended: bool,
}

/// A stream that is aside.
struct Member {
    crowd: Arc<Crowd>,
    number: u64,
    at: Mutex<At>,
}

struct At {
    /// Everything before has been handed to the client.
    next: i64,
    /// `None` once it goes on by itself.
    outlet: Option<Outlet>,
    waker: Waker,
}

impl Crowds {
    /// # Panics
    /// Outside of a runtime; that one is home.
    pub(super) fn here() -> Crowds {
        Crowds { home: Handle::current(), by_watch: Arc::default() }
    }

    /// A place in the crowd of those who have the same watcher of the same store. None if there cannot be one, or if the crowd
    /// has begun to hand out what the stream has not.
    pub(super) fn join(
        &self,
        state: &Arc<State>,
        store: StoreId,
        spec: WatchSpec,
        outlet: &Outlet,
        waker: &Waker,
    ) -> Option<Arc<dyn Substitute>> {
        if spec.filters != Filters::default() || spec.progress_notify || spec.mark {
            return None;
        }
        let at = At { next: spec.start, outlet: Some(outlet.clone()), waker: waker.clone() };
        let watch = Watch { store, range: spec.range, id: spec.id, prev_kv: spec.prev_kv };
        let mut crowds = lock(&self.by_watch);
        let known = crowds.get(&watch).map(Arc::clone);
        let (crowd, new) = match known {
            Some(crowd) => (crowd, None),
            None => {
                let (crowd, stream) = self.open(state, &watch)?;
                crowds.insert(watch, Arc::clone(&crowd));
                (crowd, Some(stream))
            }
        };
        // Before the task begins: at a stop it ends at once, and takes the crowd out.
        drop(crowds);
        if let Some(stream) = new {
            self.home.spawn(tell(Arc::clone(state), stream, Ending(Arc::clone(&crowd))));
        }
        let member: Arc<dyn Substitute> = crowd.join(at)?;
        Some(member)
    }

    fn open(&self, state: &Arc<State>, watch: &Watch) -> Option<(Arc<Crowd>, WatchStream)> {
        let mut stream = state.reads().kv().relay(WatchLimits::default());
        let Watch { store, range, id, prev_kv } = watch.clone();
        // Another has just taken its place.
        if stream.store() != store {
            return None;
        }
        let created = stream.create(WatchSpec { id, prev_kv, ..WatchSpec::new(range) }).ok()?;
        let members = Members { next: created.revision + 1, by_number: BTreeMap::new(), next_number: 0, ended: false };
        let crowd = Arc::new(Crowd {
            watch: watch.clone(),
            all: Arc::clone(&self.by_watch),
            members: Mutex::new(members),
            abandoned: Notify::new(),
        });
        Some((crowd, stream))
    }
}

impl Crowd {
    fn join(self: &Arc<Self>, at: At) -> Option<Arc<Member>> {
        let mut members = lock(&self.members);
        if members.ended || at.next < members.next {
            let is_empty = members.by_number.is_empty();
            members.ended |= is_empty;
            drop(members);
            if is_empty {
                self.abandon();
            }
            return None;
        }
        let number = members.next_number;
        members.next_number += 1;
        let member = Arc::new(Member { crowd: Arc::clone(self), number, at: Mutex::new(at) });
        members.by_number.insert(number, Arc::clone(&member));
        Some(member)
    }

    fn leave(&self, number: u64) {
        let is_last = {
            let mut members = lock(&self.members);
            members.by_number.remove(&number);
            members.ended |= members.by_number.is_empty();
            members.ended
        };
        if is_last {
            self.abandon();
        }
    }

    /// Nobody is there, and nobody can join.
    fn abandon(&self) {
        self.forget();
        self.abandoned.notify_one();
    }

    /// Takes it out of the list of all.
    fn forget(&self) {
        let mut all = lock(&self.all);
        if all.get(&self.watch).is_some_and(|crowd| std::ptr::eq(&**crowd, self)) {
            all.remove(&self.watch);
        }
    }

    /// Notes that there was nothing before this revision that has not been handed out. A member whose cursor stayed behind while
    /// its keys were quiet would otherwise read it all again when it is recalled, or find it compacted.
    fn note(&self, next: i64) {
        for member in lock(&self.members).by_number.values() {
            let mut at = lock(&member.at);
            if at.outlet.is_some() {
                at.next = at.next.max(next);
            }
        }
    }

    /// Hands changes to all who are there, from the first of these revisions to the last. To how many.
    async fn hand_on(&self, first: i64, last: i64, chunk: &Framed) -> u64 {
        lock(&self.members).next = last + 1;
        let (mut from, mut count) = (0, 0);
        let mut some = Vec::with_capacity(AT_ONCE);
        loop {
            some.extend(
                lock(&self.members).by_number.range(from..).take(AT_ONCE).map(|(_, member)| Arc::clone(member)),
            );
            let Some(end) = some.last() else { return count };
            from = end.number + 1;
            count += some.drain(..).filter(|member| member.hand_on(first, last, chunk)).count() as u64;
            yield_now().await;
        }
    }
}

impl Member {
    /// Whether it has been given the changes.
    fn hand_on(&self, first: i64, last: i64, chunk: &Framed) -> bool {
        let mut at = lock(&self.at);
        let Some(outlet) = &at.outlet else { return false };
        if at.next > last {
            return false;
        }
        // Not a part of them to one who is in between.
        if at.next <= first && outlet.send(chunk, &at.waker) {
            at.next = last + 1;
            return true;
        }
        at.outlet = None;
        at.waker.wake_by_ref();
        false
    }
}

impl Substitute for Member {
    fn recall(&self) -> i64 {
        let next = {
            let mut at = lock(&self.at);
            at.outlet = None;
            at.next
        };
        self.crowd.leave(self.number);
        next
    }
}

/// Tells the members of changes until there are no members, or this cannot go on: then each goes on by itself.
async fn tell(state: Arc<State>, mut stream: WatchStream, crowd: Ending) {
    let crowd = &crowd.0;
    loop {
        let step = tokio::select! {
            biased;
            () = crowd.abandoned.notified() => return,
            step = poll_fn(|cx| stream.poll_next(cx)) => step,
        };
        match step {
            // Once replicas are known to differ, nothing of theirs is handed out.
            Step::Deliver(_) if state.refuse_if_corrupt().is_err() => return,
            Step::Deliver(Delivery::Events(batch)) => {
                let Some(first) = batch.events.first().map(|event| event.revision()) else { continue };
                let (last, events) = (batch.revision, batch.events.len() as u64);
                let mut line = Vec::new();
                write(&mut line, &state, &Response::whole(batch));
                let count = crowd.hand_on(first, last, &Framed::new(&line)).await;
                state.metrics.sent_to_many(Route::Watch, line.len(), count);
                stream.count_handed_on(events * count);
            }
            Step::Deliver(Delivery::Progress { .. }) => {}
            Step::Read(history) => {
                crowd.note(history.start());
                match read_history(Arc::clone(&state), history).await {
                    Ok(read) => stream.absorb(read),
                    Err(_) => return,
                }
            }
            // Another store has taken the place of this one, or what comes next cannot be had. Each stream finds out by itself.
            Step::Deliver(Delivery::Canceled { .. } | Delivery::Failed(_)) | Step::Closed => return,
        }
    }
}

/// Ends a crowd when it is dropped, also by a panic.
struct Ending(Arc<Crowd>);

impl Drop for Ending {
    fn drop(&mut self) {
        let left = {
            let mut members = lock(&self.0.members);
            members.ended = true;
            std::mem::take(&mut members.by_number)
        };
        self.0.forget();
        for member in left.into_values() {
            let waker = {
                let mut at = lock(&member.at);
                at.outlet = None;
                at.waker.clone()
            };
            waker.wake();
        }
    }
}
