//! Who runs the requests of an HTTP/2 connection, and when; and who sends an answer that goes on over HTTP/1.1.
//!
//! Requests of clients are run by the task of their connection, not by tasks of their own: it reads a packet, runs every
//! request in it as far as it gets, and then writes what has been answered, once. With a task for each request every
//! answer would wake the connection and be written by itself, and writing is the dearest part of a small request.
//!
//! ```text
//!                   ┌── a frame came, there is something to write ──► turn of HTTP ────► frames in, answers out
//!   task of the ────┤
//!   connection      ├── a request can go on ───────────────────────► turn of requests ─► each as far as it gets
//!                   └── there is something to tell ────────────────► turn past HTTP ───► what there is: see [`super::direct`]
//! ```
//!
//! - **Invariant**: a part that has been woken gets a turn, and one that has not been gets none. Looking at a connection
//!   in vain costs as much as a small request.
//! - **Invariant**: whoever wakes a part while its task runs does not wake the task: it goes on until no part has a turn.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use futures_util::task::AtomicWaker;
use tokio::task::{coop, unconstrained};

use super::gather::Gather;

type Request = Pin<Box<dyn Future<Output = ()> + Send>>;

/// [`FuturesUnordered`] stops after so many that have woken themselves while they were polled.
const SELF_WOKEN_MAX: usize = 2;

/// Turns that are given before other connections go first.
const TURNS_MAX: u32 = 32;

/// Takes the requests of connections.
#[derive(Clone)]
pub(super) enum Executor {
    /// A task for each: what other members ask may take long.
    Tasks,
    /// The connection that this queue belongs to.
    Connection(Arc<Mutex<Vec<Request>>>),
}

impl Executor {
    /// For one connection, with what is to drive it.
    pub(super) fn for_connection() -> (Executor, Driver) {
        let begun = Arc::new(Mutex::default());
        (Executor::Connection(Arc::clone(&begun)), Driver::new(begun))
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, request: F) {
        match self {
            Executor::Tasks => {
                tokio::spawn(request);
            }
            // The budget of the task is the connection's: a request that finds it used up would only be polled again.
            Executor::Connection(begun) => {
                begun.lock().unwrap_or_else(PoisonError::into_inner).push(Box::pin(unconstrained(request)));
            }
        }
    }
}

/// Gives a connection and its requests their turns.
pub(super) struct Driver {
    begun: Arc<Mutex<Vec<Request>>>,
    running: FuturesUnordered<Request>,
    turns: Arc<Turns>,
    http: Waker,
    requests: Waker,
    direct: Waker,
    gather: Gather,
    /// Something has been answered, and the tasks that were ready go first.
    waits: bool,
}

impl Driver {
    fn new(begun: Arc<Mutex<Vec<Request>>>) -> Driver {
        let turns = Arc::new(Turns { state: AtomicU8::new(HTTP), task: AtomicWaker::new() });
        let http = Arc::new(Turn::<HTTP>(Arc::clone(&turns))).into();
        let requests = Arc::new(Turn::<REQUESTS>(Arc::clone(&turns))).into();
        let direct = Arc::new(Turn::<DIRECT>(Arc::clone(&turns))).into();
        let running = FuturesUnordered::new();
        Driver { begun, running, turns, http, requests, direct, gather: Gather::default(), waits: false }
    }

    /// Gives HTTP a turn the next time: something was said to it.
    pub(super) fn prompt(&self) {
        self.turns.state.fetch_or(HTTP, Ordering::AcqRel);
    }

    /// Goes on until nothing can, or for a while. Ready when the connection has ended.
    pub(super) fn poll<P: Parts>(&mut self, cx: &mut Context<'_>, mut parts: P) -> Poll<P::Ended> {
        self.turns.begin(cx.waker());
        for _ in 0..TURNS_MAX {
            let waited = std::mem::take(&mut self.waits);
            let woken = self.turns.take(REQUESTS);
            if waited {
                self.gather.learn(woken);
            }
            if woken {
                self.run_requests();
                if !waited && self.turns.has(HTTP) && self.gather.waits() {
                    self.waits = true;
                    break;
                }
            }
            if self.turns.take(DIRECT) {
                match parts.poll_direct(&mut Context::from_waker(&self.direct)) {
                    Poll::Pending => {}
                    Poll::Ready(Some(ended)) => return Poll::Ready(ended),
                    Poll::Ready(None) => self.prompt(),
                }
            }
            if self.turns.take(HTTP) {
                if let Poll::Ready(ended) = parts.poll_http(&mut Context::from_waker(&self.http)) {
                    return Poll::Ready(ended);
                }
                if parts.sends_directly() {
                    self.turns.state.fetch_or(DIRECT, Ordering::AcqRel);
                }
                self.accept();
                if !coop::has_budget_remaining() {
                    break;
                }
            } else if self.turns.rest() {
                return Poll::Pending;
            }
        }
        self.turns.pause();
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes over the requests that HTTP has begun.
    fn accept(&mut self) {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if !begun.is_empty() {
            self.running.extend(begun.drain(..));
            self.turns.state.fetch_or(REQUESTS, Ordering::AcqRel);
        }
    }

    /// Runs every request that was woken. The set of them stops after two that have woken themselves, as one does by sending,
    /// and would have what few have answered written by itself: so it is asked to go on, as often as may be needed for all.
    fn run_requests(&mut self) {
        let mut cx = Context::from_waker(&self.requests);
        let mut left = self.running.len() / SELF_WOKEN_MAX;
        loop {
            while let Poll::Ready(Some(())) = self.running.poll_next_unpin(&mut cx) {}
            // A turn that is not given here stays for later.
            if left == 0 || !self.turns.take(REQUESTS) {
                break;
            }
            left -= 1;
        }
    }
}

/// A request holds the executor that it was given to, and so the queue that holds it: with what was begun in the turn in
/// which the connection ended, they would hold one another for ever.
impl Drop for Driver {
    fn drop(&mut self) {
        let begun = std::mem::take(&mut *self.begun.lock().unwrap_or_else(PoisonError::into_inner));
        drop(begun);
    }
}

/// What a driver gives turns to, beside the requests.
pub(super) trait Parts {
    type Ended;

    /// `Ready` when the connection has ended.
    fn poll_http(&mut self, cx: &mut Context<'_>) -> Poll<Self::Ended>;

    /// Whether anything is sent past HTTP. Asked when HTTP has had a turn.
    fn sends_directly(&mut self) -> bool {
        false
    }

    /// Sends it. `Ready` when HTTP is to have a turn, or the connection has ended.
    fn poll_direct(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Self::Ended>> {
        Poll::Pending
    }
}

/// HTTP has a turn.
const HTTP: u8 = 1;
/// The requests have a turn.
const REQUESTS: u8 = 2;
/// The task is at it, and will see what else gets a turn.
const RUNNING: u8 = 4;
/// What is sent past HTTP has a turn.
const DIRECT: u8 = 8;

/// Who has a turn.
///
/// If there is any and the task does not run, the task has been woken.
struct Turns {
    state: AtomicU8,
    task: AtomicWaker,
}

/// Wakes one of the parts.
struct Turn<const WHO: u8>(Arc<Turns>);

impl<const WHO: u8> Wake for Turn<WHO> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.0.state.fetch_or(WHO, Ordering::AcqRel) == 0 {
            self.0.task.wake();
        }
    }
}

impl Turns {
    fn begin(&self, task: &Waker) {
        self.task.register(task);
        self.state.fetch_or(RUNNING, Ordering::AcqRel);
    }

    fn has(&self, who: u8) -> bool {
        self.state.load(Ordering::Acquire) & who != 0
    }

    /// Whether `who` has a turn, which is then taken.
    fn take(&self, who: u8) -> bool {
        self.has(who) && self.state.fetch_and(!who, Ordering::AcqRel) & who != 0
    }

    /// Ends the run if nobody has a turn. Whether it did.
    fn rest(&self) -> bool {
        self.state.compare_exchange(RUNNING, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends the run whoever has a turn; the task must be woken.
    fn pause(&self) {
        self.state.fetch_and(!RUNNING, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::future::{pending, poll_fn};
    use std::pin::pin;
    use std::sync::atomic::AtomicUsize;

    use hyper::rt::Executor as _;
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    /// HTTP alone.
    impl<F: Future> Parts for Pin<&mut F> {
        type Ended = F::Output;

        fn poll_http(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
            self.as_mut().poll(cx)
        }
    }

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_is_not_woken_gets_no_turn() {
        let (executor, mut driver) = Executor::for_connection();
        let (http_turns, request_turns) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
        let (mut first, turns) = (true, Arc::clone(&request_turns));
        let (wake, mut woken) = mpsc::unbounded_channel::<()>();
        let mut http = pin!(poll_fn(|_| {
            http_turns.fetch_add(1, Ordering::Relaxed);
            if std::mem::take(&mut first) {
                let (turns, mut woken) =
                    (Arc::clone(&turns), std::mem::replace(&mut woken, mpsc::unbounded_channel().1));
                executor.execute(async move {
                    while woken.recv().await.is_some() {
                        turns.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            Poll::<()>::Pending
        }));
        let task = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&task));
        let mut poll = |driver: &mut Driver| driver.poll(&mut Context::from_waker(&waker), http.as_mut()).is_ready();
        let turns = || (http_turns.load(Ordering::Relaxed), request_turns.load(Ordering::Relaxed));
        assert!(!poll(&mut driver));
        assert!(!poll(&mut driver));
        assert_eq!((turns(), task.0.load(Ordering::Relaxed)), ((1, 0), 0));
        for count in 1..4 {
            wake.send(()).unwrap();
            assert_eq!(task.0.load(Ordering::Relaxed), count);
            assert!(!poll(&mut driver));
            assert_eq!(turns(), (1, count));
        }
        driver.prompt();
        assert!(!poll(&mut driver));
        assert_eq!(turns(), (2, 3));
    }

    #[test]
    fn what_can_always_go_on_lets_others_go_first() {
        let (_executor, mut driver) = Executor::for_connection();
        let turns = AtomicUsize::new(0);
        let mut http = pin!(poll_fn(|cx| {
            turns.fetch_add(1, Ordering::Relaxed);
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        let task = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&task));
        assert!(driver.poll(&mut Context::from_waker(&waker), http.as_mut()).is_pending());
        assert_eq!((turns.load(Ordering::Relaxed), task.0.load(Ordering::Relaxed)), (TURNS_MAX as usize, 1));
    }

    /// Requests whose answers are ready together: the first has HTTP woken, which waits for the second.
    #[test]
    fn answers_that_are_ready_together_are_one_turn_of_http() {
        let (executor, mut driver) = Executor::for_connection();
        let http_waker = Arc::new(AtomicWaker::new());
        let mut answers = Vec::new();
        for _ in 0..2 {
            let (answer, answered) = oneshot::channel::<()>();
            answers.push(answer);
            let http = Arc::clone(&http_waker);
            executor.execute(async move {
                answered.await.unwrap();
                http.wake();
            });
        }
        let turns = AtomicUsize::new(0);
        let mut http = pin!(poll_fn(|cx| {
            turns.fetch_add(1, Ordering::Relaxed);
            http_waker.register(cx.waker());
            Poll::<()>::Pending
        }));
        let waker = Waker::from(Arc::new(Woken::default()));
        let mut cx = Context::from_waker(&waker);
        assert!(driver.poll(&mut cx, http.as_mut()).is_pending());
        for answer in answers {
            assert_eq!(turns.load(Ordering::Relaxed), 1);
            answer.send(()).unwrap();
            assert!(driver.poll(&mut cx, http.as_mut()).is_pending());
        }
        assert_eq!(turns.load(Ordering::Relaxed), 2);
    }

    /// Requests that wake themselves as they answer: as sending over HTTP/2 does.
    #[test]
    fn answers_of_those_who_wake_themselves_are_one_turn_of_http_too() {
        const ANSWERS: usize = 9;
        let (executor, mut driver) = Executor::for_connection();
        let (http_waker, answered) = (Arc::new(AtomicWaker::new()), Arc::new(AtomicUsize::new(0)));
        let (begin, begun) = tokio::sync::watch::channel(false);
        for _ in 0..ANSWERS {
            let (http, answered, mut begun) = (Arc::clone(&http_waker), Arc::clone(&answered), begun.clone());
            executor.execute(async move {
                begun.changed().await.unwrap();
                answered.fetch_add(1, Ordering::Relaxed);
                http.wake();
                tokio::task::yield_now().await;
                pending::<()>().await;
            });
        }
        let seen = Mutex::new(Vec::new());
        let mut http = pin!(poll_fn(|cx| {
            http_waker.register(cx.waker());
            seen.lock().unwrap().push(answered.load(Ordering::Relaxed));
            Poll::<()>::Pending
        }));
        let waker = Waker::from(Arc::new(Woken::default()));
        let mut cx = Context::from_waker(&waker);
        assert!(driver.poll(&mut cx, http.as_mut()).is_pending());
        begin.send(true).unwrap();
        while answered.load(Ordering::Relaxed) < ANSWERS {
            assert!(driver.poll(&mut cx, http.as_mut()).is_pending());
        }
        assert!(driver.poll(&mut cx, http.as_mut()).is_pending());
        assert_eq!(*seen.lock().unwrap(), [0, ANSWERS]);
    }

    #[test]
    fn requests_go_with_their_connection_wherever_they_are() {
        let alive = Arc::new(());
        let (executor, mut driver) = Executor::for_connection();
        let request = || {
            let held = (executor.clone(), Arc::clone(&alive));
            executor.execute(async move {
                pending::<()>().await;
                drop(held);
            });
        };
        let mut cx = Context::from_waker(Waker::noop());
        request();
        assert!(driver.poll(&mut cx, pin!(pending::<()>())).is_pending());
        driver.prompt();
        let ended = driver.poll(
            &mut cx,
            pin!(poll_fn(|_| {
                request();
                Poll::Ready(())
            })),
        );
        assert!(ended.is_ready());
        assert_eq!(Arc::strong_count(&alive), 3);
        drop((driver, executor));
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    /// From other threads, at any moment.
    #[test]
    fn nobody_who_is_woken_is_forgotten() {
        const REQUESTS: usize = 4;
        const ROUNDS: usize = 20_000;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        runtime.block_on(async {
            let (executor, mut driver) = Executor::for_connection();
            let (ended, mut ends) = mpsc::unbounded_channel();
            for _ in 0..REQUESTS {
                let (ask, mut asked) = mpsc::channel(1);
                let (answer, mut answered) = mpsc::channel(1);
                let ended = ended.clone();
                executor.execute(async move {
                    for round in 0..ROUNDS {
                        ask.send(round).await.unwrap();
                        assert_eq!(answered.recv().await, Some(round));
                    }
                    ended.send(()).unwrap();
                });
                tokio::spawn(async move {
                    while let Some(round) = asked.recv().await {
                        answer.send(round).await.unwrap();
                    }
                });
            }
            let connection = tokio::spawn(async move {
                let mut http = pin!(pending::<()>());
                poll_fn(|cx| driver.poll(cx, http.as_mut())).await;
            });
            for _ in 0..REQUESTS {
                let end = tokio::time::timeout(std::time::Duration::from_secs(60), ends.recv());
                end.await.expect("every request goes on").unwrap();
            }
            connection.abort();
        });
    }
}
