//! Watching over plain HTTP: JSON objects come with the request's body, and one line goes out for each response.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use tokio::time::{Sleep, sleep_until, timeout};

use super::session::{Filled, Response, Session};
use super::slot;
use crate::api::{Asked, Metrics, Route, Running, State};
use crate::error::{ApiError, Effect};
use crate::http::Outlet;
use crate::wire::{self, Objects, WatchFields, WatchMessage};

/// Clients take each chunk of the body for one message, as etcd's gateway sends them. hyper puts chunks that are ready
/// together into one write.
const ONE_LINE: usize = 1;
/// How long the answer's head waits for the first request, so that one that makes no sense can be answered as an error.
const FIRST_REQUEST: Duration = Duration::from_millis(100);

/// A line takes little more than that beside its events, unless it is canceled.
const BESIDE_EVENTS_BYTES: usize = 256;

/// Opens a watch stream over the body of a request.
pub(crate) async fn watch(
    state: &Arc<State>,
    asked: Asked,
    body: Body,
    outlet: Option<Outlet>,
) -> Result<Body, ApiError> {
    let running = state.metrics.begin(Route::Watch, None);
    let session = match Session::open(state, asked.requires_leader) {
        Ok(session) => session,
        Err(error) => {
            running.end(Some(&error));
            return Err(error);
        }
    };
    let requests = Requests { body: Some(body), objects: Objects::default(), limit: state.body_bytes_max };
    let metrics = Arc::clone(&state.metrics);
    let deadline = asked.deadline.map(|deadline| Box::pin(sleep_until(deadline)));
    let mut lines = Lines { session: Some(session), requests, metrics, running: Some(running), deadline, outlet };
    match timeout(FIRST_REQUEST, std::future::poll_fn(|cx| lines.poll_first(cx))).await {
        Ok(Err(error)) => {
            if let Some(running) = lines.running.take() {
                running.end(Some(&error));
            }
            Err(error)
        }
        Ok(Ok(())) | Err(_) => Ok(Body::new(lines)),
    }
}

/// The requests in a body.
struct Requests {
    /// `None` once it has ended.
    body: Option<Body>,
    objects: Objects,
    /// The longest request, in bytes.
    limit: usize,
}

impl Requests {
    /// The next request; `None` at the end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WatchMessage, ApiError>>> {
        loop {
            match self.objects.next() {
                Ok(None) => {}
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
            if self.objects.pending() > self.limit {
                return Poll::Ready(Some(Err(ApiError::BodyTooLarge { limit: self.limit })));
            }
            let Some(body) = &mut self.body else { return Poll::Ready(None) };
            match pin!(body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    self.body = None;
                    if let Err(error) = self.objects.finish() {
                        return Poll::Ready(Some(Err(error.into())));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Some(Err(ApiError::BodyBroken { detail: error.to_string() })));
                }
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.objects.extend(&data);
                    }
                }
            }
        }
    }
}

/// The body of the answer.
struct Lines {
    /// `None` once the last line has been sent.
    session: Option<Session>,
    requests: Requests,
    metrics: Arc<Metrics>,
    running: Option<Running>,
    /// When the client waits no longer.
    deadline: Option<Pin<Box<Sleep>>>,
    /// The way to the client, if it can be lent.
    outlet: Option<Outlet>,
}

impl Lines {
    /// Waits for the first request.
    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ApiError>> {
        let Some(session) = &mut self.session else { return Poll::Ready(Ok(())) };
        match self.requests.poll_next(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(message))) => {
                self.metrics.received(Route::Watch, 0);
                session.accept(message);
            }
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
            Poll::Ready(None) => session.close(),
        }
        Poll::Ready(Ok(()))
    }

    /// Puts together what is to be sent. False if it is the last.
    fn fill(&mut self, out: &mut Vec<u8>, cx: &mut Context<'_>) -> bool {
        if self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
            self.end(out, Some(&ApiError::DeadlineExceeded(Effect::None)));
            return false;
        }
        let Lines { session: Some(session), requests, metrics, .. } = self else { return false };
        let request = |cx: &mut Context<'_>| {
            let request = requests.poll_next(cx);
            if let Poll::Ready(Some(Ok(_))) = &request {
                metrics.received(Route::Watch, 0);
            }
            request
        };
        let filled = session.fill(cx, out, ONE_LINE, request, |out, state, response| {
            let before = out.len();
            write(out, state, response);
            metrics.sent(Route::Watch, out.len() - before);
            Ok(())
        });
        let Filled::Ended(error) = filled else { return true };
        self.end(out, error.as_ref());
        false
    }

    fn end(&mut self, out: &mut Vec<u8>, error: Option<&ApiError>) {
        if let Some(error) = error {
            wire::response::stream_error(out, error);
        }
        if let Some(running) = self.running.take() {
            running.end(error);
        }
    }
}

/// Appends a response.
pub(super) fn write(out: &mut Vec<u8>, state: &State, response: &Response) {
    let fields = WatchFields {
        watch_id: response.watch_id,
        created: response.created,
        canceled: response.canceled,
        compact_revision: response.compact_revision,
        cancel_reason: response.cancel_reason,
        fragment: response.fragment,
    };
    let events = || response.events(slot::JSON, wire::watch::event);
    out.reserve(events().map(|event| event.len() + 1).sum::<usize>() + BESIDE_EVENTS_BYTES);
    wire::watch::watch(out, &state.header(response.revision), &fields, events());
}

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(session) = &mut self.session else { return Poll::Ready(None) };
        session.leave_crowd();
        let mut out = Vec::new();
        if !self.fill(&mut out, cx) {
            self.session = None;
        }
        if !out.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(out.into()))));
        }
        let Lines { session, outlet, .. } = &mut *self;
        let Some(session) = session else { return Poll::Ready(None) };
        if let Some(outlet) = outlet {
            session.join_crowd(outlet, cx.waker());
        }
        Poll::Pending
    }
}
