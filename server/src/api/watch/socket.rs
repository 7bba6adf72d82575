//! Watching over a WebSocket on the path of the JSON form: each message is a request, each response a text message.

use std::future::poll_fn;
use std::sync::Arc;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts as _, Request};
use axum::response::{IntoResponse as _, Response as HttpResponse};
use bytes::Bytes;
use tokio::task::yield_now;

use super::lines;
use super::session::{REQUESTS_AT_ONCE_MAX, Session};
use crate::api::{Route, Running, State};
use crate::error::ApiError;
use crate::http::Takeover;
use crate::wire::{self, Objects, WatchMessage};

/// Takes a WebSocket over, if the request asks for one.
pub(crate) async fn socket(
    state: &Arc<State>,
    requires_leader: bool,
    request: Request,
) -> Result<HttpResponse, ApiError> {
    let running = state.metrics.begin(Route::Watch, None);
    let session = match Session::open(state, requires_leader) {
        Ok(session) => session,
        Err(error) => {
            running.end(Some(&error));
            return Err(error);
        }
    };
    let (mut parts, _) = request.into_parts();
    let connection = parts.extensions.remove::<Takeover>();
    let upgrade = match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade,
        Err(rejection) => {
            running.end(Some(&ApiError::WrongMethod));
            return Ok(rejection.into_response());
        }
    };
    let limit = state.body_bytes_max;
    let upgrade = upgrade.max_message_size(limit).max_frame_size(limit);
    Ok(upgrade.on_upgrade(move |socket| async move {
        let serve = serve(session, socket, running);
        match connection {
            Some(connection) => connection.run(serve).await,
            None => serve.await,
        }
    }))
}

async fn serve(mut session: Session, mut socket: WebSocket, running: Running) {
    let mut objects = Objects::default();
    let ended = exchange(&mut session, &mut socket, &mut objects).await;
    running.end(ended.as_ref());
    if let Some(error) = ended {
        let mut line = Vec::new();
        wire::response::stream_error(&mut line, &error);
        send(&mut socket, line).await;
    }
    // A client that is gone does not hear it.
    let _ = socket.send(Message::Close(None)).await;
}

/// Serves until either side ends it; the error is for the client.
async fn exchange(session: &mut Session, socket: &mut WebSocket, objects: &mut Objects) -> Option<ApiError> {
    let mut taken = 0;
    loop {
        // One after the other, each with what it has to say: a message may hold any number of them.
        while session.is_ready() {
            match objects.next::<WatchMessage>() {
                Ok(None) if objects.pending() > session.state().body_bytes_max => {
                    return Some(ApiError::BodyTooLarge { limit: session.state().body_bytes_max });
                }
                Ok(None) => break,
                Ok(Some(request)) => {
                    session.state().metrics.received(Route::Watch, 0);
                    session.accept(request);
                    taken += 1;
                    if taken % REQUESTS_AT_ONCE_MAX == 0 {
                        yield_now().await;
                    }
                }
                Err(error) => return Some(error.into()),
            }
        }
        let message = tokio::select! {
            biased;
            response = poll_fn(|cx| session.poll_response(cx)) => match response {
                None => return None,
                Some(Err(error)) => return Some(error),
                Some(Ok(response)) => {
                    let state = session.state();
                    if let Err(error) = state.refuse_if_corrupt() {
                        return Some(error);
                    }
                    let mut line = Vec::new();
                    lines::write(&mut line, state, &response);
                    state.metrics.sent(Route::Watch, line.len());
                    if send(socket, line).await {
                        continue;
                    }
                    return None;
                }
            },
            // Nothing is ready to be said, so a request may be taken.
            message = socket.recv() => message,
        };
        match message {
            // The client is gone, or speaks no WebSocket.
            None | Some(Err(_)) => return None,
            Some(Ok(Message::Close(_))) => {
                // Sends the farewell's answer, which the library has made.
                let _ = socket.recv().await;
                return None;
            }
            Some(Ok(Message::Text(text))) => objects.extend(&Bytes::from(text)),
            Some(Ok(Message::Binary(bytes))) => objects.extend(&bytes),
            // Answered by the library.
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
        }
    }
}

/// Sends a line as a text message. False if the client is gone.
async fn send(socket: &mut WebSocket, mut line: Vec<u8>) -> bool {
    line.truncate(line.trim_ascii_end().len());
    let text = String::from_utf8_lossy(&line).into_owned();
    socket.send(Message::Text(text.into())).await.is_ok()
}
