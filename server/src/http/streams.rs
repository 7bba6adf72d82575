//! Who runs the requests of an HTTP/2 connection.
//!
//! Requests of clients are run by the task of their connection, not by tasks of their own: it reads a packet, runs every
//! request in it as far as it gets, and then writes what has been answered, once. With a task for each request every
//! answer would wake the connection and be written by itself, and writing is the dearest part of a small request.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::task::unconstrained;

type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes the requests of connections.
#[derive(Clone)]
pub(super) enum Executor {
    /// A task for each: what other members ask may take long.
    Tasks,
    /// The connection that this queue belongs to.
    Connection(Arc<Mutex<Vec<Stream>>>),
}

impl Executor {
    /// For one connection, with what is to be polled by it.
    pub(super) fn for_connection() -> (Executor, Streams) {
        let begun = Arc::new(Mutex::default());
        (Executor::Connection(Arc::clone(&begun)), Streams { begun, running: FuturesUnordered::new() })
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

/// The requests of a connection.
pub(super) struct Streams {
    begun: Arc<Mutex<Vec<Stream>>>,
    running: FuturesUnordered<Stream>,
}

impl Streams {
    /// Runs every request that can go on. True if any did, so that there may be something to write.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let begun = std::mem::take(&mut *self.begun.lock().unwrap_or_else(PoisonError::into_inner));
        let mut moved = !begun.is_empty();
        self.running.extend(begun);
        while let Poll::Ready(Some(())) = self.running.poll_next_unpin(cx) {
            moved = true;
        }
        moved
    }
}
