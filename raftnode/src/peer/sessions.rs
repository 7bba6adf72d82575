//! The answering side of appends: each session of a channel is one stream of openraft's.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use openraft::raft::AppendEntriesRequest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::body::{Appended, Stopping, decode_append, put_appended};
use super::flow::{PIPELINE_BYTES_MAX, PIPELINE_MAX};
use super::frame::{Address, Kind, encode};
use super::outgoing::Task;
use super::serve::Served;
use crate::node::RaftHandle;
use crate::types::TypeConfig;

/// Bytes that one permit stands for.
const PERMIT_BYTES: usize = 1 << 10;
/// Permits for what may be under way without a result on one channel, however many sessions it belongs to.
const PERMITS: usize = PIPELINE_BYTES_MAX / PERMIT_BYTES;
/// Bytes of a result.
const RESULT_BYTES: usize = 32;

/// A stream of appends under way.
struct Session {
    number: u64,
    requests: mpsc::Sender<AppendEntriesRequest<TypeConfig>>,
    /// The permits of requests without a result, in order.
    unanswered: mpsc::UnboundedSender<OwnedSemaphorePermit>,
    answers: Task<()>,
}

/// Serves appends until the channel ends.
pub(super) async fn serve(mut served: Served) {
    let permits = Arc::new(Semaphore::new(PERMITS));
    let mut current: Option<Session> = None;
    while let Some(frame) = served.next().await {
        if frame.kind != Kind::Append {
            return served.complain(&format_args!("a frame of kind {:?} among appends", frame.kind));
        }
        let bytes = frame.body.len();
        let (number, request) = match decode_append(frame.body) {
            Ok(decoded) => decoded,
            Err(error) => return served.complain(&error),
        };
        let newest = current.as_ref().map_or(0, |session| session.number);
        if number < newest {
            // Its sender has given that session up.
            continue;
        }
        if number > newest {
            // It may have been removed since it said Hello.
            if served.refused() {
                return;
            }
            // The old one first: nothing of it must come after what belongs to the new one.
            drop(current.take());
            current = Some(Session::start(number, served.host.raft(), served.out.clone(), served.address));
        }
        let Some(session) = current.as_mut().filter(|session| !session.answers.is_finished()) else { continue };
        let cost = bytes.div_ceil(PERMIT_BYTES).clamp(1, PERMITS) as u32;
        let Ok(permit) = Arc::clone(&permits).acquire_many_owned(cost).await else { return };
        // Both fail only if the session has ended: then its sender has been told why.
        if session.unanswered.send(permit).is_ok() {
            let _ = session.requests.send(request).await;
        }
    }
}

impl Session {
    fn start(number: u64, raft: RaftHandle, out: mpsc::Sender<Bytes>, address: Address) -> Session {
        let (requests, queue) = mpsc::channel(PIPELINE_MAX);
        let (unanswered, permits) = mpsc::unbounded_channel();
        let answers = Task::spawn(answer(number, raft, queue, permits, out, address));
        Session { number, requests, unanswered, answers }
    }
}

/// Feeds a stream of openraft's and sends its results, until one of them is not a success.
async fn answer(
    number: u64,
    raft: RaftHandle,
    queue: mpsc::Receiver<AppendEntriesRequest<TypeConfig>>,
    mut permits: mpsc::UnboundedReceiver<OwnedSemaphorePermit>,
    out: mpsc::Sender<Bytes>,
    address: Address,
) {
    let requests = stream::unfold(queue, |mut queue| async { queue.recv().await.map(|request| (request, queue)) });
    let results = raft.stream_append(requests);
    tokio::pin!(results);
    while let Some(result) = results.next().await {
        let result: Appended = result.map_err(|_| Stopping);
        let goes_on = matches!(result, Ok(Ok(_)));
        let frame = encode(address, Kind::Appended, RESULT_BYTES, |out| put_appended(out, number, &result));
        if out.send(frame).await.is_err() || !goes_on {
            return;
        }
        drop(permits.recv().await);
    }
}
