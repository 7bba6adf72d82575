//! One watch stream, whatever its wire form.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tally_mvcc::{
    Batch, CreateError, Created, Delivery, Event, Filters, HistoryRead, KeyRange, Step, WatchLimits, WatchSpec,
    WatchStream,
};
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep};

use super::crowd::CROWD_MIN;
use super::streams::Place;
use crate::api::state::State;
use crate::error::{ApiError, Effect};
use crate::http::Outlet;
use crate::preflight::MESSAGE_OVERHEAD_BYTES;
use crate::wire::{WatchCreateMessage, WatchMessage};

/// The id in answers that are about no watcher of the stream.
const NO_WATCHER: i64 = -1;
/// What an event takes in protobuf beside its records, at most.
const EVENT_BYTES: usize = 16;
/// Requests that are taken before others go first: a client can send thousands in one packet.
pub(super) const REQUESTS_AT_ONCE_MAX: usize = 128;
/// The parts of a notify interval that are added by chance, so that streams do not speak all at once.
const JITTER_PARTS: u32 = 10;

/// A watch stream.
pub(crate) struct Session {
    state: Arc<State>,
    stream: WatchStream,
    place: Place,
    requires_leader: bool,
    /// Answers to requests, and the rest of a response that is sent in fragments.
    said: VecDeque<Response>,
    history: Option<Reading>,
    ticker: Option<Pin<Box<Sleep>>>,
    /// The client will ask nothing any more.
    closed: bool,
    /// None of its watchers was of a kind that no crowd is of.
    is_plain: bool,
    /// Requests taken since others went first, or there was none.
    taken: usize,
}

/// How a session stands after [`Session::fill`].
pub(crate) enum Filled {
    Open,
    /// What was put together is the last of it.
    Ended(Option<ApiError>),
}

type Reading = Pin<Box<dyn Future<Output = Result<HistoryRead, ApiError>> + Send>>;

/// One response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) revision: i64,
    pub(crate) watch_id: i64,
    pub(crate) created: bool,
    pub(crate) canceled: bool,
    pub(crate) compact_revision: i64,
    pub(crate) cancel_reason: &'static str,
    pub(crate) fragment: bool,
    events: Option<Events>,
}

/// The changes in a response.
#[derive(Debug)]
struct Events {
    all: Arc<[Arc<Event>]>,
    part: Range<usize>,
    prev_kv: bool,
}

impl Response {
    fn about(watch_id: i64, revision: i64) -> Response {
        Response {
            revision,
            watch_id,
            created: false,
            canceled: false,
            compact_revision: 0,
            cancel_reason: "",
            fragment: false,
            events: None,
        }
    }

    /// All changes of a batch.
    pub(super) fn whole(batch: Batch) -> Response {
        let Batch { id, revision, events: all, prev_kv, .. } = batch;
        let events = Events { part: 0..all.len(), all, prev_kv };
        Response { events: Some(events), ..Response::about(id, revision) }
    }

    /// The changes, each as `encode` makes it for the first who asks; `slot` is for events without the previous record.
    pub(crate) fn events(&self, slot: usize, encode: fn(&Event, bool) -> Bytes) -> impl Iterator<Item = &Bytes> {
        let events = self.events.as_ref().map_or(&[][..], |events| &events.all[events.part.clone()]);
        let prev_kv = self.events.as_ref().is_some_and(|events| events.prev_kv);
        events.iter().map(move |event| event.encoding(slot + usize::from(prev_kv), |event| encode(event, prev_kv)))
    }

    /// Bytes of the records in it, found without encoding any of them. In every form it takes more than that.
    pub(crate) fn record_bytes(&self) -> usize {
        let Some(Events { all, part, prev_kv }) = &self.events else { return 0 };
        all[part.clone()].iter().map(|event| record_bytes(event, *prev_kv)).sum()
    }
}

impl Session {
    /// A stream without watchers.
    ///
    /// # Errors
    /// [`ApiError`]: this member serves no watches at the moment, or has too many.
    pub(crate) fn open(state: &Arc<State>, requires_leader: bool) -> Result<Session, ApiError> {
        state.refuse_if_learner()?;
        state.refuse_if_corrupt()?;
        if requires_leader && !state.has_leader() {
            return Err(ApiError::NoLeader);
        }
        Ok(Session {
            state: Arc::clone(state),
            stream: state.reads().kv().watch_stream(WatchLimits::default()),
            place: state.watches.admit()?,
            requires_leader,
            said: VecDeque::new(),
            history: None,
            ticker: None,
            closed: false,
            is_plain: true,
            taken: 0,
        })
    }

    pub(crate) fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// True if a request may be given to [`Session::accept`].
    pub(crate) fn is_ready(&self) -> bool {
        !self.closed && self.said.is_empty() && self.stream.is_drained()
    }

    /// The client will ask nothing any more. Its watchers go on.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Does what the client asks for; the answer comes with the responses.
    pub(crate) fn accept(&mut self, message: WatchMessage) {
        match message {
            // As etcd does: an unknown request is none.
            WatchMessage::Empty => {}
            WatchMessage::Create(create) => {
                let response = self.create(create);
                self.said.push_back(response);
            }
            WatchMessage::Cancel { watch_id } => {
                if self.stream.cancel(watch_id) {
                    let response = Response::about(watch_id, self.stream.revision());
                    self.said.push_back(Response { canceled: true, ..response });
                }
            }
            WatchMessage::Progress => self.stream.request_progress(),
        }
    }

    fn create(&mut self, message: WatchCreateMessage) -> Response {
        // The empty key is below every other.
        let key = if message.key.is_empty() { Bytes::from_static(b"\0") } else { message.key };
        let filtered = |filter| message.filters.contains(&filter);
        self.is_plain &= message.filters.is_empty() && !message.fragment && !message.progress_notify;
        let spec = KeyRange::new(key, message.range_end).map(|range| WatchSpec {
            range,
            start: message.start_revision,
            id: message.watch_id,
            filters: Filters { no_put: filtered(0), no_delete: filtered(1) },
            prev_kv: message.prev_kv,
            progress_notify: message.progress_notify,
            mark: message.fragment,
        });
        let created = match spec {
            Ok(spec) => self.stream.create(spec),
            Err(_) => Err(CreateError::EmptyRange),
        };
        match created {
            Ok(Created { id, revision }) => {
                if message.progress_notify && self.ticker.is_none() {
                    self.ticker = Some(Box::pin(sleep(jittered(self.state.watches.progress_interval))));
                }
                Response { created: true, ..Response::about(id, revision) }
            }
            Err(error) => Response {
                created: true,
                canceled: true,
                cancel_reason: reason(error),
                ..Response::about(NO_WATCHER, self.stream.revision())
            },
        }
    }

    /// The next response. `None` if there will be none any more, because nothing is watched and nothing can be asked; an
    /// error ends the stream.
    pub(crate) fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Response, ApiError>>> {
        loop {
            if let Some(response) = self.said.pop_front() {
                return Poll::Ready(Some(Ok(response)));
            }
            let is_corrupt = || self.state.refuse_if_corrupt().is_err();
            if let Some(error) = self.place.ending(self.requires_leader, is_corrupt, cx.waker()) {
                return Poll::Ready(Some(Err(error)));
            }
            if let Err(error) = self.poll_history(cx) {
                return Poll::Ready(Some(Err(error)));
            }
            self.poll_ticker(cx);
            match self.stream.poll_next(cx) {
                Poll::Pending if self.closed && self.stream.watchers() == 0 => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Step::Deliver(delivery)) => match self.response(delivery) {
                    Ok(response) => return Poll::Ready(Some(Ok(response))),
                    Err(error) => return Poll::Ready(Some(Err(error))),
                },
                Poll::Ready(Step::Read(history)) => {
                    self.history = Some(Box::pin(read_history(Arc::clone(&self.state), history)))
                }
                Poll::Ready(Step::Closed) => {
                    // A state that was received from the leader has taken its place; or the node has stopped.
                    if !self.stream.attach(self.state.reads().kv()) {
                        return Poll::Ready(Some(Err(ApiError::Stopped(Effect::None))));
                    }
                }
            }
        }
    }

    fn poll_history(&mut self, cx: &mut Context<'_>) -> Result<(), ApiError> {
        let Some(reading) = &mut self.history else { return Ok(()) };
        let Poll::Ready(read) = reading.as_mut().poll(cx) else { return Ok(()) };
        self.history = None;
        self.stream.absorb(read?);
        Ok(())
    }

    fn poll_ticker(&mut self, cx: &mut Context<'_>) {
        while let Some(ticker) = &mut self.ticker {
            let Poll::Ready(()) = ticker.as_mut().poll(cx) else { return };
            self.stream.tick();
            if self.stream.wants_ticks() {
                ticker.as_mut().reset(Instant::now() + jittered(self.state.watches.progress_interval));
            } else {
                self.ticker = None;
            }
        }
    }

    /// Puts what is ready into `out`, and takes requests as long as there is nothing to say, until `chunk_bytes` are
    /// together, both sides wait, or there have been many. A response that cannot be written ends the session.
    pub(crate) fn fill(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<u8>,
        chunk_bytes: usize,
        mut request: impl FnMut(&mut Context<'_>) -> Poll<Option<Result<WatchMessage, ApiError>>>,
        mut write: impl FnMut(&mut Vec<u8>, &State, &Response) -> Result<(), ApiError>,
    ) -> Filled {
        // Once replicas are known to differ, nothing of theirs is handed out.
        if let Err(error) = self.state.refuse_if_corrupt() {
            return Filled::Ended(Some(error));
        }
        loop {
            while out.len() < chunk_bytes {
                match self.poll_response(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Some(Ok(response))) => {
                        if let Err(error) = write(out, &self.state, &response) {
                            return Filled::Ended(Some(error));
                        }
                    }
                    Poll::Ready(Some(Err(error))) => return Filled::Ended(Some(error)),
                    Poll::Ready(None) => return Filled::Ended(None),
                }
            }
            if out.len() >= chunk_bytes || !self.is_ready() {
                return Filled::Open;
            }
            if self.taken >= REQUESTS_AT_ONCE_MAX {
                // Whoever gets something to send comes back at once.
                if out.is_empty() {
                    self.taken = 0;
                    wake_after_others(cx);
                }
                return Filled::Open;
            }
            match request(cx) {
                Poll::Pending => {
                    self.taken = 0;
                    return Filled::Open;
                }
                Poll::Ready(Some(Ok(message))) => {
                    self.taken += 1;
                    self.accept(message);
                }
                Poll::Ready(Some(Err(error))) => return Filled::Ended(Some(error)),
                Poll::Ready(None) => self.close(),
            }
        }
    }

    /// Has a crowd tell the client of changes from now on, if there is nothing else to tell it and many wait for the same.
    /// `waker` is called when something else comes up.
    pub(super) fn join_crowd(&mut self, outlet: &Outlet, waker: &Waker) {
        if self.is_plain && self.said.is_empty() && self.history.is_none() {
            let Session { state, stream, .. } = self;
            let store = stream.store();
            stream.step_aside(CROWD_MIN, |spec| state.watches.crowds.join(state, store, spec, outlet, waker));
        }
    }

    /// The opposite; also whatever else is asked of the session comes after it.
    pub(super) fn leave_crowd(&mut self) {
        self.stream.come_back();
    }

    fn response(&mut self, delivery: Delivery) -> Result<Response, ApiError> {
        match delivery {
            Delivery::Events(batch) => Ok(self.changes(batch)),
            Delivery::Progress { id, revision } => Ok(Response::about(id.unwrap_or(NO_WATCHER), revision)),
            // As in etcd, this header has no revision: nothing has been delivered up to any.
            Delivery::Canceled { id, compact_revision, .. } => {
                Ok(Response { canceled: true, compact_revision, ..Response::about(id, 0) })
            }
            Delivery::Failed(error) => Err(error.into()),
        }
    }

    /// A batch as one response, or as fragments if its watcher takes them and it is large.
    fn changes(&mut self, batch: Batch) -> Response {
        let Batch { id, revision, events: all, prev_kv, mark, .. } = batch;
        let limit = self.state.request_bytes_max.saturating_add(MESSAGE_OVERHEAD_BYTES);
        let parts = fragments(&all, prev_kv, if mark { limit } else { usize::MAX });
        let last = parts.len() - 1;
        let mut responses = parts.into_iter().enumerate().map(|(number, part)| Response {
            fragment: number < last,
            events: Some(Events { all: Arc::clone(&all), part, prev_kv }),
            ..Response::about(id, revision)
        });
        let first = responses.next().unwrap_or_else(|| Response::about(id, revision));
        self.said.extend(responses);
        first
    }
}

/// Has whoever polls this woken once others have had their turn. Waking at once would not do: a connection goes on with
/// what has been woken before it lets others go first.
fn wake_after_others(cx: &mut Context<'_>) {
    let _pending = pin!(yield_now()).poll(cx);
}

/// Reads a piece of history on a thread that may block. So many are read at a time; the others wait.
pub(crate) async fn read_history(state: Arc<State>, history: tally_mvcc::History) -> Result<HistoryRead, ApiError> {
    let permit = Arc::clone(&state.watches.history_reads).acquire_owned().await;
    let permit = permit.map_err(|_| ApiError::Stopped(Effect::None))?;
    let read = move || {
        let _permit = permit;
        history.read()
    };
    tokio::task::spawn_blocking(read).await.map_err(|_| ApiError::Defect { what: "reading history panicked" })
}

/// Cuts events into runs whose responses stay below `bytes_max`, where single events allow it.
fn fragments(events: &[Arc<Event>], prev_kv: bool, bytes_max: usize) -> Vec<Range<usize>> {
    let (mut parts, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (at, event) in events.iter().enumerate() {
        let more = record_bytes(event, prev_kv) + EVENT_BYTES;
        if at > start && bytes + more >= bytes_max {
            parts.push(start..at);
            (start, bytes) = (at, 0);
        }
        bytes += more;
    }
    parts.push(start..events.len());
    parts
}

/// Bytes of an event's record, and of the one before it if that is wanted.
fn record_bytes(event: &Event, prev_kv: bool) -> usize {
    let prev = event.prev_kv().filter(|_| prev_kv).map_or(0, |prev| prev.bytes().len());
    event.record().bytes().len() + prev
}

/// What etcd's clients are told of a watch that was not created.
fn reason(error: CreateError) -> &'static str {
    match error {
        CreateError::EmptyRange => "mvcc: watcher range is empty",
        CreateError::DuplicateId(_) => "mvcc: duplicate watch ID provided on the WatchStream",
        CreateError::BadStart(_) => "etcdserver: mvcc: required revision has been compacted",
        CreateError::TooMany { .. } => "etcdserver: too many requests",
    }
}

#[cfg(test)]
impl Response {
    /// A response with the same change so many times.
    pub(crate) fn repeating(event: &Arc<Event>, times: usize) -> Response {
        let events = Events { all: vec![Arc::clone(event); times].into(), part: 0..times, prev_kv: false };
        Response { events: Some(events), ..Response::about(1, event.revision()) }
    }
}

fn jittered(interval: Duration) -> Duration {
    use std::hash::{BuildHasher as _, RandomState};
    let chance = RandomState::new().hash_one(()) % 1_000;
    interval + interval / JITTER_PARTS * (chance as u32) / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_lengthened_by_a_tenth_at_most() {
        let interval = Duration::from_secs(600);
        for _ in 0..1_000 {
            let jittered = jittered(interval);
            assert!(jittered >= interval && jittered <= interval * 11 / 10, "{jittered:?}");
        }
    }
}
