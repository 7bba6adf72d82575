//! Work that takes seconds and that nobody waits for in a request: exporting, sending, receiving and installing snapshots.
//!
//! It runs on threads of its own with a low priority, so that where cores are few, requests, appends and heartbeats come
//! first. Threads that such work starts inherit the priority. A pool would not do: an unprivileged process cannot raise a
//! thread's priority again.
//!
//! **Invariant.** Nothing that a quorum may wait for runs here.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

/// How much such a thread gives way, as in `nice`: beside a thread of normal priority it gets a thirtieth of a core.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 15;

/// The work ended without a result: its thread could not be started, or panicked.
#[derive(Debug, thiserror::Error)]
#[error("the thread {name} has ended without a result")]
pub(crate) struct Ended {
    name: &'static str,
}

/// Runs `work` on a thread called `name`. The work goes on if nobody waits for it any more.
pub(crate) async fn run<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Ended> {
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        give_way();
        // If nobody waits any more, nobody misses it.
        let _ = done.send(work());
    });
    match thread {
        Ok(_) => result.await.map_err(|_| Ended { name }),
        Err(_) => Err(Ended { name }),
    }
}

/// Threads that nobody waits for before the node stops.
static LEFT: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());

fn left() -> MutexGuard<'static, Vec<JoinHandle<()>>> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` on a thread called `name`, which nobody waits for until [`settle`]. Where no thread can be started, it is
/// dropped here.
pub(crate) fn leave(name: &'static str, work: impl FnOnce() + Send + 'static) {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        give_way();
        work();
    });
    match started {
        Ok(thread) => {
            let mut left = left();
            left.retain(|thread| !thread.is_finished());
            left.push(thread);
        }
        Err(error) => tracing::warn!(%error, name, "cannot start a thread"),
    }
}

/// Waits for what was left to itself. Blocks.
pub(crate) fn settle() {
    let all = std::mem::take(&mut *left());
    for thread in all {
        // Whatever it did is done, or was given up by a panic that has been reported.
        let _ = thread.join();
    }
}

/// Lowers the priority of this thread. Where that is not possible, the work is done all the same.
#[cfg(target_os = "linux")]
fn give_way() {
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS);
}

/// Elsewhere there is no priority of one thread.
#[cfg(not(target_os = "linux"))]
fn give_way() {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_left_to_itself_is_over_when_all_is_settled() {
        let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
        let done = std::sync::Arc::new(Mutex::new(false));
        let told = std::sync::Arc::clone(&done);
        leave("left", move || {
            may_go_on.recv().unwrap();
            *told.lock().unwrap() = true;
        });
        assert!(!*done.lock().unwrap());
        go_on.send(()).unwrap();
        settle();
        assert!(*done.lock().unwrap());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn only_the_thread_that_works_gives_way() {
        let priority = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        let before = priority();
        assert_eq!(run("background", priority).await.unwrap(), NICENESS.max(before));
        assert_eq!(priority(), before);
        let inherited = run("background", move || std::thread::spawn(priority).join().unwrap()).await.unwrap();
        assert_eq!(inherited, NICENESS.max(before));
    }
}
