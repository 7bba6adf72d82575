//! Renewals over plain HTTP: JSON objects come with the request's body, and one line goes out for each of them.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream::unfold;
use http_body_util::BodyExt as _;
use tokio::time::{timeout, timeout_at};

use crate::api::lease::{keep_alive, stream_ends};
use crate::api::{Asked, Route, Running, State, admit};
use crate::error::{ApiError, Effect};
use crate::wire::{self, LeaseMessage, Objects, response};

/// How long the answer's head waits for the first request, so that one that makes no sense can be answered as an error.
const FIRST_REQUEST: Duration = Duration::from_millis(100);

struct Lines {
    state: Arc<State>,
    /// `None` once it has ended.
    body: Option<Body>,
    objects: Objects,
    /// A request that was read and is not answered yet.
    read: Option<LeaseMessage>,
    ends: Pin<Box<dyn Future<Output = ApiError> + Send>>,
    running: Option<Running>,
}

/// Renews what the body asks for, one after the other, until it ends.
pub(crate) async fn lines(state: &Arc<State>, asked: Asked, body: Body) -> Result<Body, ApiError> {
    admit(state, Route::LeaseKeepAlive, asked.requires_leader)?;
    let stream_ends = stream_ends(Arc::clone(state), asked.requires_leader);
    let mut lines = Lines {
        state: Arc::clone(state),
        body: Some(body),
        objects: Objects::default(),
        read: None,
        ends: match asked.deadline {
            None => Box::pin(stream_ends),
            Some(deadline) => Box::pin(async move {
                timeout_at(deadline, stream_ends).await.unwrap_or(ApiError::DeadlineExceeded(Effect::None))
            }),
        },
        running: Some(state.metrics.begin(Route::LeaseKeepAlive, None)),
    };
    let Lines { body, objects, .. } = &mut lines;
    match timeout(FIRST_REQUEST, next_request(state, body, objects)).await {
        Ok(Err(error)) => {
            lines.end(Some(&error));
            return Err(error);
        }
        Ok(Ok(request)) => lines.read = request,
        // It comes when it comes.
        Err(_) => {}
    }
    let rest = unfold(lines, |mut lines| async move {
        lines.running.as_ref()?;
        match lines.next().await {
            Ok(Some(line)) => Some((Ok::<_, Infallible>(line), lines)),
            Ok(None) => {
                lines.end(None);
                None
            }
            Err(error) => {
                lines.end(Some(&error));
                let mut line = Vec::new();
                response::stream_error(&mut line, &error);
                Some((Ok(line.into()), lines))
            }
        }
    });
    Ok(Body::from_stream(rest))
}

impl Lines {
    fn end(&mut self, error: Option<&ApiError>) {
        if let Some(running) = self.running.take() {
            running.end(error);
        }
    }

    /// The next line; none at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let Lines { state, body, objects, read, ends, .. } = self;
        let line = async {
            let request = match read.take() {
                Some(request) => Some(request),
                None => next_request(state, body, objects).await?,
            };
            let Some(message) = request else { return Ok(None) };
            state.metrics.received(Route::LeaseKeepAlive, 0);
            let kept = keep_alive(state, message).await?;
            let line = wire::lease::kept_alive(&state.header(kept.revision), &kept);
            state.metrics.sent(Route::LeaseKeepAlive, line.len());
            Ok(Some(Bytes::from(line)))
        };
        tokio::select! {
            biased;
            error = ends => Err(error),
            line = line => line,
        }
    }
}

/// The next object of the body; none at its end. Cancel safe.
async fn next_request(
    state: &State,
    body: &mut Option<Body>,
    objects: &mut Objects,
) -> Result<Option<LeaseMessage>, ApiError> {
    loop {
        if let Some(message) = objects.next()? {
            return Ok(Some(message));
        }
        if objects.pending() > state.body_bytes_max {
            return Err(ApiError::BodyTooLarge { limit: state.body_bytes_max });
        }
        let Some(open) = body else { return Ok(None) };
        match open.frame().await {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    objects.extend(&data);
                }
            }
            Some(Err(error)) => return Err(ApiError::BodyBroken { detail: error.to_string() }),
            None => {
                *body = None;
                objects.finish()?;
            }
        }
    }
}
