//! What goes back: messages, then trailers with the status; or, if there is no message, the status in the head.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::Response;
use hyper::body::{Body, Frame};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::OwnedSemaphorePermit;

use crate::api::{Metrics, Route, Running, deadline};
use crate::error::ApiError;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Messages with their prefixes; an error is the status of the call, and the end.
pub(crate) type Answers = deadline::Answers<Bytes>;

/// The body of an answer.
pub(crate) enum Reply {
    /// The status is in the head.
    Empty,
    /// One message, which is `None` once it is sent; then trailers.
    Message(Option<Bytes>),
    /// A message that is made in pieces as they are taken.
    Large(Large),
    /// Messages as they come.
    Stream(Box<Streamed>),
}

/// One message in pieces, with the right to keep so much.
pub(crate) struct Large {
    pieces: Box<dyn Iterator<Item = Bytes> + Send>,
    permit: Option<OwnedSemaphorePermit>,
}

/// A stream with its books.
pub(crate) struct Streamed {
    answers: Answers,
    metrics: Arc<Metrics>,
    route: Route,
    running: Option<Running>,
}

/// An answer of one message, which has its prefix.
pub(super) fn message(message: Bytes) -> Response<Reply> {
    Response::new(Reply::Message(Some(message)))
}

/// An answer of one message in pieces, prefix included.
pub(super) fn large(
    pieces: Box<dyn Iterator<Item = Bytes> + Send>,
    permit: Option<OwnedSemaphorePermit>,
) -> Response<Reply> {
    Response::new(Reply::Large(Large { pieces, permit }))
}

/// An answer of many messages, each with its prefix.
pub(super) fn stream(answers: Answers, metrics: Arc<Metrics>, route: Route, running: Running) -> Response<Reply> {
    Response::new(Reply::Stream(Box::new(Streamed { answers, metrics, route, running: Some(running) })))
}

/// An answer without any message.
pub(super) fn refusal(error: &ApiError) -> Response<Reply> {
    let mut response = Response::new(Reply::Empty);
    *response.headers_mut() = status(error);
    response
}

fn ok() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    trailers
}

fn status(error: &ApiError) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(3);
    trailers.insert(STATUS, HeaderValue::from(error.code() as u16));
    if let Ok(text) = HeaderValue::from_str(&encoded(&error.to_string())) {
        trailers.insert(MESSAGE, text);
    }
    trailers
}

/// The form of a text in `grpc-message`: printable ASCII, everything else and the percent sign as `%XX`.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

impl Body for Reply {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        let reply = self.get_mut();
        let trailers = match reply {
            Reply::Empty => return Poll::Ready(None),
            Reply::Message(message) => match message.take() {
                Some(message) => return Poll::Ready(Some(Ok(Frame::data(message)))),
                None => ok(),
            },
            Reply::Large(large) => match large.pieces.next() {
                Some(piece) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                None => {
                    large.permit = None;
                    ok()
                }
            },
            Reply::Stream(streamed) => match ready!(streamed.answers.as_mut().poll_next(cx)) {
                Some(Ok(message)) => {
                    streamed.metrics.sent(streamed.route, message.len());
                    return Poll::Ready(Some(Ok(Frame::data(message))));
                }
                ended => {
                    let error = ended.and_then(Result::err);
                    if let Some(running) = streamed.running.take() {
                        running.end(error.as_ref());
                    }
                    error.map_or_else(ok, |error| status(&error))
                }
            },
        };
        *reply = Reply::Empty;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Reply::Empty)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn texts_travel_as_printable_ascii() {
        assert_eq!(encoded("etcdserver: key is not provided"), "etcdserver: key is not provided");
        assert_eq!(encoded("100% \u{e4}\n"), "100%25 %C3%A4%0A");
    }

    #[test]
    fn a_refusal_is_a_head_and_nothing_else() {
        let response = refusal(&ApiError::LeaseNotFound);
        assert_eq!(response.headers()[STATUS], "5");
        assert_eq!(response.headers()[MESSAGE], "etcdserver: requested lease not found");
        assert!(response.body().is_end_stream());
    }

    #[test]
    fn trailers_follow_the_message() {
        let mut reply = Reply::Message(Some(Bytes::from_static(b"m")));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut next = || match Pin::new(&mut reply).poll_frame(&mut cx) {
            Poll::Ready(frame) => frame.map(|frame| frame.unwrap()),
            Poll::Pending => panic!("the message is there"),
        };
        assert_eq!(next().unwrap().into_data().unwrap(), "m");
        assert_eq!(next().unwrap().into_trailers().unwrap()[STATUS], "0");
        assert!(next().is_none());
    }
}
