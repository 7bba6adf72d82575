//! The peer port: what is served there, and who is.

use std::fmt::Display;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Version};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::complaints::Complaint;
use super::frame::{Address, Frame, Kind, Limits, encode};
use super::hello::{Greeting, GreetingError, Hello, Verdict, greeting, reject};
use super::inbound::{Inbound, InboundError, next_from, not_understood};
use super::net::Net;
use super::outgoing::outgoing;
use super::peers::Peer;
use super::{Host, calls, forward, messages, sessions, transfer};

/// Streams of appends and heartbeats.
pub(super) const APPEND: &str = "/tally/peer/v1/append";
/// Calls.
pub(super) const CONTROL: &str = "/tally/peer/v1/control";
/// Proposals on their way to the leader.
pub(super) const FORWARD: &str = "/tally/peer/v1/forward";
/// One snapshot.
pub(super) const SNAPSHOT: &str = "/tally/peer/v1/snapshot";
/// The cluster, for anybody.
pub(super) const MEMBERS: &str = "/tally/peer/v1/members";

/// What a channel is for.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Append,
    Control,
    Forward,
    Snapshot,
}

/// The routes of the peer port.
pub(super) fn router(net: Net) -> Router {
    let channel =
        |purpose| post(move |State(net): State<Net>, request: Request| async move { channel(net, request, purpose) });
    Router::new()
        .route(APPEND, channel(Purpose::Append))
        .route(CONTROL, channel(Purpose::Control))
        .route(FORWARD, channel(Purpose::Forward))
        .route(SNAPSHOT, channel(Purpose::Snapshot))
        .route(MEMBERS, post(members))
        .fallback(stranger)
        .method_not_allowed_fallback(stranger)
        .with_state(net)
}

/// A client, or a member of an etcd cluster, or a browser.
async fn stranger(State(net): State<Net>, request: Request) -> Response {
    let path = request.uri().path();
    let path: String = path.chars().take(64).collect();
    let detail = format!("a request for {path:?} on the peer port, which serves members only");
    net.inner.complaints.make(Complaint::NotAPeer, 0, &detail);
    refusal(StatusCode::NOT_FOUND, "this is the peer port of a Tally member: clients use its client port\n")
}

async fn members(State(net): State<Net>) -> Response {
    let Some(host) = net.host() else { return not_ready() };
    let view = host.view();
    let frame = encode(net.address_to(0), Kind::Members, 512, |out| messages::put_view(out, &view));
    Response::new(Body::from(frame))
}

fn refusal(status: StatusCode, text: &'static str) -> Response {
    (status, text).into_response()
}

fn not_ready() -> Response {
    refusal(StatusCode::SERVICE_UNAVAILABLE, "this member is not ready, or is stopping\n")
}

/// Begins to serve a channel. The response is the other direction of it, so its head is answered at once.
fn channel(net: Net, request: Request, purpose: Purpose) -> Response {
    if request.version() != Version::HTTP_2 {
        net.inner.complaints.make(Complaint::NotAPeer, 0, &"a channel is asked for without HTTP/2");
        return refusal(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "members speak HTTP/2 with prior knowledge\n");
    }
    if net.host().is_none() {
        return not_ready();
    }
    let Ok(place) = Arc::clone(&net.inner.places).try_acquire_owned() else {
        net.inner.complaints.make(Complaint::TooMany, 0, &"more channels are open than a cluster needs");
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "too many channels\n");
    };
    let (out, body) = outgoing();
    tokio::spawn(async move {
        let _place = place;
        tokio::select! {
            () = net.closed() => {}
            () = serve(&net, request.into_body(), out, purpose) => {}
        }
    });
    Response::new(Body::new(body))
}

async fn serve(net: &Net, body: Body, out: mpsc::Sender<Bytes>, purpose: Purpose) {
    let Some(served) = Served::greet(net, body, out).await else { return };
    match purpose {
        Purpose::Append => sessions::serve(served).await,
        Purpose::Control => calls::serve(served).await,
        Purpose::Forward => forward::serve(served).await,
        Purpose::Snapshot => transfer::serve(served).await,
    }
}

/// A channel whose other side is who it should be.
pub(super) struct Served {
    pub(super) net: Net,
    pub(super) host: Arc<dyn Host>,
    pub(super) peer: Arc<Peer>,
    pub(super) inbound: Inbound,
    pub(super) out: mpsc::Sender<Bytes>,
    /// The address of what is answered.
    pub(super) address: Address,
    hello: Hello,
}

impl Served {
    /// Reads who it is, and answers who this is; or refuses it.
    async fn greet(net: &Net, body: Body, out: mpsc::Sender<Bytes>) -> Option<Served> {
        let host = net.host()?;
        let mut inbound = Inbound::new(body, Limits::STRANGER);
        let limit = net.inner.config.read_timeout;
        let (from, hello) = match timeout(limit, greeting(net, &mut inbound)).await {
            Ok(Ok(Greeting::Hello(from, hello))) => (from, hello),
            Ok(Ok(Greeting::Refused(from, verdict))) => {
                refuse(net, &out, from, verdict);
                return None;
            }
            Ok(Ok(Greeting::Rejected(from, _))) => {
                net.inner.complaints.make(Complaint::BadFrame, from, &"a refusal instead of a greeting");
                return None;
            }
            Ok(Err(GreetingError::Inbound(InboundError::Broken(_) | InboundError::Ended))) => return None,
            Ok(Err(error)) => {
                net.inner.complaints.make(Complaint::BadFrame, 0, &error);
                return None;
            }
            Err(_) => {
                net.inner.complaints.make(Complaint::BadFrame, 0, &"a channel without a greeting");
                return None;
            }
        };
        let (peer, address) = (net.caller(from), net.address_to(from));
        if let Err(verdict) = hello.check(net, &*host, &peer) {
            refuse(net, &out, from, verdict);
            return None;
        }
        net.inner.complaints.settle(Complaint::Refused, from);
        inbound.expect(address.reversed());
        // Whoever waits to try to connect to it may try now.
        peer.is_there();
        out.send(Hello::own(net, &*host).frame(address)).await.ok()?;
        // Consensus pauses by itself. It fails only if consensus has stopped, which is noticed elsewhere.
        let _ = host.raft().trigger().reset_backoff([from]).await;
        Some(Served { net: net.clone(), host, peer, inbound, out, address, hello })
    }

    /// The next frame, or none when the channel has ended or must be ended. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        next_from(&self.net, &self.peer, &mut self.inbound).await
    }

    /// Whether the other side must not take part any more; then it has been told.
    pub(super) fn refused(&self) -> bool {
        match self.hello.check_standing(&*self.host, &self.peer) {
            Ok(()) => false,
            Err(verdict) => {
                refuse(&self.net, &self.out, self.peer.id, verdict);
                true
            }
        }
    }

    /// Logs, once per peer, that what it sent could not be understood.
    pub(super) fn complain(&self, detail: &dyn Display) {
        not_understood(&self.net, &self.peer, detail);
    }
}

fn refuse(net: &Net, out: &mpsc::Sender<Bytes>, from: u64, verdict: Verdict) {
    net.inner.complaints.make(Complaint::Refused, from, &format_args!("refused: {verdict}"));
    // It is not waited for: to whoever reads nothing, the end of the channel has to say enough.
    let _ = out.try_send(reject(net.address_to(from), verdict));
}
