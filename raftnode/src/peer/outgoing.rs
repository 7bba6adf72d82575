//! The sending half of a channel: a queue of frames that is the body of a request or of a response.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};

/// Frames that wait in front of a connection. Few: whatever waits here is memory, and is late.
const QUEUE_FRAMES: usize = 16;

/// A body that consists of what is put into its queue, and ends when nobody can put anything there.
pub(super) struct Outgoing {
    queue: mpsc::Receiver<Bytes>,
}

/// A queue and the body that it feeds.
pub(super) fn outgoing() -> (mpsc::Sender<Bytes>, Outgoing) {
    let (sender, queue) = mpsc::channel(QUEUE_FRAMES);
    (sender, Outgoing { queue })
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.queue.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A task that ends when this is dropped.
pub(super) struct Task<T> {
    handle: JoinHandle<T>,
}

impl<T: Send + 'static> Task<T> {
    pub(super) fn spawn(future: impl Future<Output = T> + Send + 'static) -> Task<T> {
        Task { handle: tokio::spawn(future) }
    }

    /// What the task ended with. Cancel safe; not to be awaited again once it has resolved.
    pub(super) async fn result(&mut self) -> Result<T, JoinError> {
        (&mut self.handle).await
    }

    /// Whether it has ended.
    pub(super) fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}
