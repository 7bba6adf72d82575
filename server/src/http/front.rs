//! What every request meets before the routes: the allowed host names, CORS, and the books of its connection.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, CONNECTION, CONTENT_TYPE,
    HOST, HeaderValue, ORIGIN, UPGRADE,
};
use hyper::service::Service as _;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::service::TowerToHyperService;

use super::connections::{Connection, Order, Place, Request as Open};
use super::direct;
use super::takeover::Takeover;
use crate::api::{Route, route};
use crate::config::Allowed;
use crate::grpc::{Grpc, Reply, is_grpc};

/// So much of a response is offered to the client at once. One that does not take that in its time does not read.
const OFFER_BYTES_MAX: usize = 64 * 1024;

/// The routes of a listener with what guards them.
pub(crate) struct Front {
    routes: TowerToHyperService<Router>,
    hosts: Allowed,
    /// `None`: browsers have no business here.
    origins: Option<Allowed>,
    /// Where gRPC is spoken.
    grpc: Option<Grpc>,
}

impl Front {
    pub(crate) fn new(routes: Router, hosts: Allowed, origins: Allowed) -> Front {
        Front { routes: TowerToHyperService::new(routes), hosts, origins: Some(origins), grpc: None }
    }

    /// The same, and gRPC beside them. Host names and origins do not matter to it: no browser speaks it.
    pub(crate) fn with_grpc(self, grpc: Grpc) -> Front {
        Front { grpc: Some(grpc), ..self }
    }

    /// For other members, who come by any name and from no web page.
    pub(crate) fn for_peers(routes: Router) -> Front {
        Front { routes: TowerToHyperService::new(routes), hosts: Allowed::All, origins: None, grpc: None }
    }

    pub(super) async fn call(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        place: Arc<Place>,
    ) -> Result<Response<Answer>, Infallible> {
        let mut open = place.connection.begin();
        let route = route(request.uri().path());
        if route.is_some_and(Route::may_take_long)
            && let Some(patience) = open.patience()
        {
            request.extensions_mut().insert(patience);
        }
        let version = request.version();
        let offers = offers(&place.connection, version, route);
        if version == Version::HTTP_11
            && route == Some(Route::Watch)
            && let Some(outlet) = place.connection.direct.outlet()
        {
            request.extensions_mut().insert(outlet);
        }
        match &self.grpc {
            Some(grpc) if is_grpc(&request) => {
                let response = grpc.call(request).await;
                Ok(response.map(|reply| Answer::Whole(Tracked::new(Form::Grpc(reply), open, offers))))
            }
            _ => {
                let connection = Arc::clone(&place.connection);
                let response = Box::pin(self.plain(request, place)).await?;
                let tells = route.is_some_and(Route::tells) && response.status().is_success();
                if tells {
                    connection.listen();
                }
                Ok(response.map(|body| {
                    let in_chunks = version == Version::HTTP_11 && body.size_hint().exact().is_none();
                    let tracked = Tracked::new(Form::Plain(body), open, offers);
                    if tells && in_chunks {
                        Answer::Direct(connection.direct.share(tracked))
                    } else {
                        Answer::Whole(tracked)
                    }
                }))
            }
        }
    }

    async fn plain(&self, mut request: Request<Incoming>, place: Arc<Place>) -> Result<Response<Body>, Infallible> {
        let connection = &place.connection;
        if request.headers().contains_key(UPGRADE) {
            request.extensions_mut().insert(Takeover::new(&place));
        }
        let is_http1 = request.version() < Version::HTTP_2;
        let mut response = match self.refuse(&request) {
            Some(refusal) => refusal,
            None => self.answer(request).await?,
        };
        // A client that is told so sends nothing more here; one whose connection just vanished could not know whether
        // its next request was carried out.
        if is_http1 && connection.order() != Order::Continue {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let Some(origins) = &self.origins else { return self.routes.call(request).await };
        let origin = allowed_origin(origins, &request);
        if request.method() == Method::OPTIONS {
            return Ok(with_cors(Response::new(Body::empty()), origin));
        }
        let response = self.routes.call(request).await?;
        Ok(if origin.is_some() { with_cors(response, origin) } else { response })
    }

    /// Turned away are a browser that was led here under a foreign name (DNS rebinding), and one that wants a WebSocket
    /// for a page that may not read answers: browsers themselves check that for every other request.
    fn refuse(&self, request: &Request<Incoming>) -> Option<Response<Body>> {
        let (upgrade, origin) = (request.headers().contains_key(UPGRADE), request.headers().get(ORIGIN));
        if let (true, Some(origins), Some(origin)) = (upgrade, &self.origins, origin)
            && allowed_origin(origins, request).is_none()
        {
            let text = format!("origin {origin:?} may not open a WebSocket here; see --cors\n");
            return Some(refusal(StatusCode::FORBIDDEN, text));
        }
        let Allowed::Only(hosts) = &self.hosts else { return None };
        let authority = match request.uri().host() {
            Some(host) => host,
            None => request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or(""),
        };
        let host = host_name(authority);
        if hosts.contains(host) {
            return None;
        }
        let text = format!("host {host:?} is not one that this server answers to; see --host-whitelist\n");
        Some(refusal(StatusCode::MISDIRECTED_REQUEST, text))
    }
}

fn refusal(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// What to answer a browser that asks on behalf of another site. `None` if it is not a browser, or not allowed.
fn allowed_origin(origins: &Allowed, request: &Request<Incoming>) -> Option<HeaderValue> {
    let origin = request.headers().get(ORIGIN);
    match origins {
        Allowed::All if origin.is_some() || request.method() == Method::OPTIONS => Some(HeaderValue::from_static("*")),
        Allowed::All => None,
        Allowed::Only(names) => {
            origin.filter(|origin| origin.to_str().is_ok_and(|origin| names.contains(origin))).cloned()
        }
    }
}

/// A name without its port: `h:1` and `[::1]:1`.
fn host_name(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    }
}

fn with_cors(mut response: Response<Body>, origin: Option<HeaderValue>) -> Response<Body> {
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE"));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("accept, content-type, authorization"));
    }
    response
}

/// Whether a response's parts are offered. Over HTTP/1.1 the socket shows whether the client reads; a stream may wait for its
/// client as long as it likes, and so may another member.
fn offers(connection: &Connection, version: Version, route: Option<Route>) -> bool {
    version == Version::HTTP_2 && !connection.has_streamed_bodies() && !route.is_some_and(Route::goes_on)
}

/// A response's body, as HTTP has it.
pub(super) enum Answer {
    Whole(Tracked),
    /// One that goes on, and is sent past HTTP.
    Direct(direct::Body),
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self.get_mut() {
            Answer::Whole(answer) => Pin::new(answer).poll_frame(cx),
            Answer::Direct(answer) => Pin::new(answer).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::Whole(answer) => answer.is_end_stream(),
            Answer::Direct(answer) => answer.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Whole(answer) => answer.size_hint(),
            Answer::Direct(answer) => answer.size_hint(),
        }
    }
}

/// A response's body that ends its request when it has been sent, or given up.
pub(super) struct Tracked {
    body: Form,
    open: Open,
    /// Whether the client has to take what it is sent. Over HTTP/2 it may stop the stream, and nobody sees it at the socket.
    offers: bool,
    /// What has been made and not been offered yet.
    rest: Bytes,
}

impl Tracked {
    /// The response begins.
    fn new(body: Form, mut open: Open, offers: bool) -> Tracked {
        open.respond();
        Tracked { body, open, offers, rest: Bytes::new() }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut self.body {
            Form::Plain(body) => Pin::new(body).poll_frame(cx),
            Form::Grpc(reply) => Pin::new(reply).poll_frame(cx).map_err(axum::Error::new),
        }
    }

    /// As much of a frame as is offered at once.
    fn offer(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        self.open.offer();
        match frame.into_data() {
            Ok(mut data) if data.len() > OFFER_BYTES_MAX => {
                self.rest = data.split_off(OFFER_BYTES_MAX);
                Frame::data(data)
            }
            Ok(data) => Frame::data(data),
            Err(frame) => frame,
        }
    }
}

enum Form {
    Plain(Body),
    Grpc(Reply),
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = match std::mem::take(&mut self.rest) {
            rest if rest.is_empty() => self.poll_body(cx),
            rest => Poll::Ready(Some(Ok(Frame::data(rest)))),
        };
        if frame.is_ready() {
            self.open.answer();
        }
        match frame {
            Poll::Ready(Some(Ok(frame))) if self.offers => Poll::Ready(Some(Ok(self.offer(frame)))),
            frame => {
                self.open.taken();
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
            && match &self.body {
                Form::Plain(body) => body.is_end_stream(),
                Form::Grpc(reply) => reply.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Form::Plain(body) if self.rest.is_empty() => body.size_hint(),
            // Messages say how long they are themselves, and of what has begun nobody asks.
            Form::Plain(_) | Form::Grpc(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::http::{Connections, Limits};

    /// Every request moves its future several times, so what few requests need has to be boxed.
    #[test]
    fn the_future_of_a_request_is_small() {
        fn bytes<F>(_: fn(Arc<Front>, Request<Incoming>, Arc<Place>) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = bytes(Front::call);
        assert!(bytes <= 2_304, "{bytes} bytes");
    }

    #[test]
    fn only_clients_over_http2_have_to_take_what_they_asked_for() {
        let place = |limits| Arc::new(Connections::new(limits)).admit().unwrap();
        let (client, peer) = (place(Limits::default()), place(Limits::for_peers()));
        let offers = |place: &Place, version, route| offers(&place.connection, version, route);
        for route in [None, Some(Route::Range), Some(Route::RangeStream), Some(Route::Lock)] {
            assert!(offers(&client, Version::HTTP_2, route));
            assert!(!offers(&client, Version::HTTP_11, route));
            assert!(!offers(&peer, Version::HTTP_2, route));
        }
        for route in [Route::Watch, Route::LeaseKeepAlive, Route::Observe, Route::HealthWatch] {
            assert!(!offers(&client, Version::HTTP_2, Some(route)));
        }
    }

    /// An answer in one piece and an answer in pieces.
    #[tokio::test]
    async fn a_large_answer_is_offered_in_parts() {
        use std::convert::Infallible;

        use http_body_util::BodyExt as _;

        let place = Arc::new(Connections::new(Limits::default())).admit().unwrap();
        let text: Bytes = (0..3 * OFFER_BYTES_MAX + 5).map(|at| at as u8).collect::<Vec<_>>().into();
        let pieces = [&text[..7], &text[7..]].map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece)));
        let pieces = Body::from_stream(futures_util::stream::iter(pieces));
        for (body, offers, expected) in [
            (Body::from(text.clone()), true, vec![OFFER_BYTES_MAX, OFFER_BYTES_MAX, OFFER_BYTES_MAX, 5]),
            (Body::from(text.clone()), false, vec![text.len()]),
            (pieces, true, vec![7, OFFER_BYTES_MAX, OFFER_BYTES_MAX, OFFER_BYTES_MAX - 2]),
        ] {
            let mut tracked = Tracked::new(Form::Plain(body), place.connection.begin(), offers);
            let (mut parts, mut all) = (Vec::new(), Vec::new());
            while let Some(frame) = tracked.frame().await {
                let data = frame.unwrap().into_data().unwrap();
                parts.push(data.len());
                all.extend_from_slice(&data);
                assert!(all.len() == text.len() || !tracked.is_end_stream());
            }
            assert!(parts == expected && all == text, "{parts:?}");
        }
    }

    #[test]
    fn ports_are_cut_off_names() {
        assert_eq!(host_name("h:1"), "h");
        assert_eq!(host_name("h"), "h");
        assert_eq!(host_name("[::1]:1"), "::1");
        assert_eq!(host_name("127.0.0.1:2379"), "127.0.0.1");
    }
}
