//! The gRPC form: HTTP/2 requests whose content type is `application/grpc`, on the port that also serves JSON.
//!
//! ```text
//!   http::front ──► head (metadata) ──► Route ──► unary: one message ──► convert ──► api::rpc ──► write ──► Reply
//!                                          └────► stream: Messages ──► stream of messages ───────────────► Reply
//! ```
//!
//! This *is* gRPC over the HTTP/2 that hyper speaks: framing of messages, metadata, deadlines, status and trailers, in a few
//! hundred lines that know nothing of any service's meaning. It *is not* a second server: connections, their limits and the
//! functions behind the RPCs are those of JSON. `docs/decisions/0007` says why it is written out here.
//!
//! - **Invariant**: a request message is never copied if it came in one piece and is not compressed; a stored record is
//!   copied once, into the response.
//! - **Invariant**: no more is kept of a message than its limit and one frame; of a compressed one, twice the limit.
//! - **Invariant**: every call ends with a status; if it ends before its first message, the status is all there is.

mod concurrency;
mod convert;
mod error;
mod head;
mod health;
mod lease;
mod messages;
mod range_stream;
mod reply;
mod stream;
mod unary;
mod watch;
mod write;

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};
use tokio::time::Instant;

use crate::api::{Exchange, Route, Running, State, admit};
use crate::error::{ApiError, Effect};
use crate::http::Patience;
use crate::preflight::MESSAGE_OVERHEAD_BYTES;
pub(crate) use error::ProtocolError;
use head::Head;
use messages::GZIP;
pub(crate) use messages::Messages;
pub(crate) use reply::Reply;

const CONTENT: &str = "application/grpc";

/// The services of a server over gRPC.
pub(crate) struct Grpc {
    state: Arc<State>,
    /// The longest message that is read.
    message_bytes_max: usize,
}

/// True if the request belongs here and not to the JSON form.
pub(crate) fn is_grpc(request: &Request<Incoming>) -> bool {
    request.version() == Version::HTTP_2
        && request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(CONTENT.as_bytes()))
}

impl Grpc {
    pub(crate) fn new(state: Arc<State>) -> Grpc {
        let message_bytes_max = state.request_bytes_max.saturating_add(MESSAGE_OVERHEAD_BYTES);
        Grpc { state, message_bytes_max }
    }

    /// Answers a request; the status of the call is in the answer, whatever it is.
    pub(crate) async fn call(&self, request: Request<Incoming>) -> Response<Reply> {
        let (call, kind) = match self.begin(request) {
            Ok(begun) => begun,
            Err(refusal) => return *refusal,
        };
        let mut response = match call.route.exchange() {
            Exchange::Unary => unary::answer(&self.state, call).await,
            // Rarer, longer-lived and larger.
            Exchange::ServerStream | Exchange::BidiStream => Box::pin(stream::answer(&self.state, call)).await,
        };
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }

    /// Reads the head of a call, of which little is kept; or refuses it.
    fn begin(&self, request: Request<Incoming>) -> Result<(Call, HeaderValue), Box<Response<Reply>>> {
        let (mut parts, body) = request.into_parts();
        // Whatever is wrong with the head is wrong with HTTP, too, as grpc-go has it.
        let refuse = |status, error: ApiError| Box::new(with_status(reply::refusal(&error), status));
        let (head, client_version) =
            Head::read(&parts.headers).map_err(|error| refuse(StatusCode::BAD_REQUEST, error.into()))?;
        let given = parts.headers.get(CONTENT_TYPE);
        let kind = content_type(given).ok_or_else(|| {
            let found = given.map(|kind| String::from_utf8_lossy(kind.as_bytes()).into_owned()).unwrap_or_default();
            refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, ProtocolError::ContentType { found }.into())
        })?;
        if parts.method != Method::POST {
            let found = parts.method.to_string();
            return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, ProtocolError::WrongMethod { found }.into()));
        }
        if head.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(refuse(StatusCode::OK, ApiError::DeadlineExceeded(Effect::None)));
        }
        let path = parts.uri.path();
        let route = Route::of_grpc(path).ok_or_else(|| refuse(StatusCode::OK, unknown(path).into()))?;
        let running = self.state.metrics.begin(route, client_version);
        let messages = Messages::new(body, self.message_bytes_max, head.encoding.clone());
        let patience = parts.extensions.remove::<Patience>();
        Ok((Call { route, head, messages, running, patience }, kind))
    }
}

/// A call whose head is fine.
struct Call {
    route: Route,
    head: Head,
    messages: Messages,
    running: Running,
    /// Of a call that may take long, from when its message has been read.
    patience: Option<Patience>,
}

impl Call {
    /// What is refused before a call's meaning is looked at.
    fn admit(&self, state: &State) -> Result<(), ApiError> {
        if let Some(encoding) = self.head.encoding.as_deref().filter(|encoding| *encoding != GZIP) {
            return Err(ProtocolError::Encoding { found: encoding.to_string() }.into());
        }
        admit(state, self.route, self.head.requires_leader)?;
        if self.head.bad_client_version { Err(ApiError::BadClientVersion) } else { Ok(()) }
    }
}

fn with_status(mut response: Response<Reply>, status: StatusCode) -> Response<Reply> {
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(CONTENT));
    response
}

/// The content type to answer with: the one of the request, if it is one of gRPC's.
fn content_type(given: Option<&HeaderValue>) -> Option<HeaderValue> {
    let given = given?;
    match given.as_bytes().strip_prefix(CONTENT.as_bytes())? {
        [] => Some(HeaderValue::from_static(CONTENT)),
        [b'+' | b';', ..] => Some(given.clone()),
        _ => None,
    }
}

/// Why nothing is found under a path, in grpc-go's order.
fn unknown(path: &str) -> ProtocolError {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.rsplit_once('/')) else {
        return ProtocolError::MalformedMethod { path: path.to_owned() };
    };
    let service = service.to_owned();
    if Route::ALL.iter().any(|route| route.service() == service) {
        return ProtocolError::UnknownMethod { method: method.to_owned(), service };
    }
    ProtocolError::UnknownService { service }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_not_found_is_named_as_grpc_names_it() {
        for (path, text) in [
            ("/etcdserverpb.KV/Nope", "unknown method Nope for service etcdserverpb.KV"),
            ("/grpc.health.v1.Health/Nope", "unknown method Nope for service grpc.health.v1.Health"),
            ("/etcdserverpb.Nope/Range", "unknown service etcdserverpb.Nope"),
            ("/a/b/c", "unknown service a/b"),
            ("/etcdserverpb.KV", "malformed method name: \"/etcdserverpb.KV\""),
        ] {
            assert_eq!(unknown(path).to_string(), text);
        }
    }

    #[test]
    fn subtypes_are_answered_with_themselves() {
        let answer = |given: &'static str| content_type(Some(&HeaderValue::from_static(given)));
        assert_eq!(answer("application/grpc").unwrap(), "application/grpc");
        assert_eq!(answer("application/grpc+proto").unwrap(), "application/grpc+proto");
        assert_eq!(answer("application/grpc;x=1").unwrap(), "application/grpc;x=1");
        assert!(answer("application/grpc-web").is_none());
        assert!(content_type(None).is_none());
    }
}
