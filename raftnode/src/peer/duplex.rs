//! Channels to a peer: opened with a Hello in both directions, then frames in both directions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, Uri, Version};
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::CallError;
use super::complaints::Complaint;
use super::connect::{ConnectError, Connection, connect};
use super::frame::{Address, Frame, Kind, Limits, encode};
use super::hello::{Greeting, GreetingError, Hello, Verdict, greeting, refused_here, reject};
use super::inbound::{Inbound, next_from, not_understood};
use super::net::Net;
use super::observer::NetworkEvent;
use super::outgoing::outgoing;
use super::peers::Peer;
use crate::codec::CodecError;

/// How long it is tried to tell a peer that it is refused.
const FAREWELL: Duration = Duration::from_millis(200);

/// Why a channel was not opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("this member is not ready, or is stopping")]
    NotReady,
    #[error("no address of it is known")]
    NoAddress,
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("it does not take the request: {0}")]
    Request(#[source] hyper::Error),
    #[error("it answers with HTTP status {0}")]
    Status(StatusCode),
    #[error("its first words cannot be read: {0}")]
    Greeting(#[from] GreetingError),
    #[error("it refuses this member: {0}")]
    Rejected(Verdict),
    #[error("it is refused, and told: {0}")]
    Refused(Verdict),
}

/// A channel to a peer.
pub(super) struct Duplex {
    sending: Sending,
    receiving: Receiving,
}

/// The sending half.
#[derive(Clone)]
pub(super) struct Sending {
    peer: Arc<Peer>,
    address: Address,
    out: mpsc::Sender<Bytes>,
    write_timeout: Duration,
    _open: Arc<Open>,
}

/// The receiving half.
pub(super) struct Receiving {
    net: Net,
    peer: Arc<Peer>,
    inbound: Inbound,
    open: Arc<Open>,
}

/// Keeps the connection, and is counted as long as something may come over it: whoever only sends may hold it for longer.
struct Open {
    peer: Arc<Peer>,
    is_counted: AtomicBool,
    _connection: Connection,
}

impl Open {
    fn new(peer: &Arc<Peer>, connection: Connection) -> Arc<Open> {
        peer.connected();
        Arc::new(Open { peer: Arc::clone(peer), is_counted: AtomicBool::new(true), _connection: connection })
    }

    fn end(&self) {
        if self.is_counted.swap(false, Ordering::AcqRel) {
            self.peer.disconnected();
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.end();
    }
}

impl Duplex {
    /// Opens a channel: waits until it may be tried again, connects, greets, and checks the other side.
    pub(super) async fn open(net: &Net, peer: &Arc<Peer>, path: &'static str) -> Result<Duplex, OpenError> {
        peer.pause().await;
        let limit = net.inner.config.connect_timeout;
        let opened = timeout(limit, open_any(net, peer, path)).await.unwrap_or(Err(OpenError::Timeout(limit)));
        match &opened {
            Ok(_) => {
                peer.is_there();
                net.inner.complaints.settle(Complaint::Unreachable, peer.id);
            }
            Err(error) => {
                peer.failed();
                if !matches!(error, OpenError::NotReady | OpenError::Rejected(_) | OpenError::Refused(_)) {
                    net.inner.complaints.make(Complaint::Unreachable, peer.id, error);
                }
            }
        }
        opened
    }

    pub(super) fn split(self) -> (Sending, Receiving) {
        (self.sending, self.receiving)
    }

    /// As if the connection had just been lost, and only who sends could know.
    #[cfg(test)]
    pub(super) fn lose_sending(&mut self) {
        self.sending.out = mpsc::channel(1).0;
    }

    pub(super) fn halves(&mut self) -> (&Sending, &mut Receiving) {
        (&self.sending, &mut self.receiving)
    }
}

/// Tries one URL after the other.
async fn open_any(net: &Net, peer: &Arc<Peer>, path: &'static str) -> Result<Duplex, OpenError> {
    let mut last = OpenError::NoAddress;
    for url in peer.urls() {
        match open_one(net, peer, &url, path).await {
            Ok(duplex) => return Ok(duplex),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn open_one(net: &Net, peer: &Arc<Peer>, url: &str, path: &'static str) -> Result<Duplex, OpenError> {
    let host = net.host().ok_or(OpenError::NotReady)?;
    let address = net.address_to(peer.id);
    let mut connection = connect(url, net.inner.config.ping_timeout).await?;
    let (out, body) = outgoing();
    let uri = Uri::builder().scheme("http").authority(connection.authority.as_str()).path_and_query(path);
    let request = Request::builder().method(Method::POST).version(Version::HTTP_2);
    let request = uri
        .build()
        .and_then(|uri| request.uri(uri).body(body))
        .map_err(|_| ConnectError::Url { url: url.to_owned(), detail: "no request can be made of it" })?;
    // The queue is empty and its reader is alive: this cannot fail, and if it did the peer would say nothing.
    let _ = out.try_send(Hello::own(net, &*host).frame(address));
    let response = connection.requests.send_request(request).await.map_err(OpenError::Request)?;
    if response.status() != StatusCode::OK {
        return Err(OpenError::Status(response.status()));
    }
    let mut inbound = Inbound::new(Body::new(response.into_body()), Limits::STRANGER);
    let refusal = match greeting(net, &mut inbound).await? {
        Greeting::Rejected(by, verdict) => {
            refused_here(net, by, verdict);
            return Err(OpenError::Rejected(verdict));
        }
        Greeting::Refused(_, verdict) => Err(verdict),
        Greeting::Hello(from, _) if from != peer.id => {
            Err(Verdict::WrongReceiver { member: net.inner.local.member_id })
        }
        Greeting::Hello(_, hello) => hello.check(net, &*host, peer),
    };
    if let Err(verdict) = refusal {
        net.inner.complaints.make(Complaint::Refused, peer.id, &verdict);
        // It shall know: a connection that is just closed says nothing.
        if out.try_send(reject(address, verdict)).is_ok() {
            drop(out);
            let _ = timeout(FAREWELL, inbound.next()).await;
        }
        return Err(OpenError::Refused(verdict));
    }
    inbound.expect(address.reversed());
    let open = Open::new(peer, connection);
    let write_timeout = net.inner.config.write_timeout;
    let sending = Sending { peer: Arc::clone(peer), address, out, write_timeout, _open: Arc::clone(&open) };
    let receiving = Receiving { net: net.clone(), peer: Arc::clone(peer), inbound, open };
    Ok(Duplex { sending, receiving })
}

impl Sending {
    /// Builds a frame and queues it; waits while the peer takes nothing.
    pub(super) async fn send(
        &self,
        kind: Kind,
        body_bytes: usize,
        body: impl FnOnce(&mut BytesMut),
    ) -> Result<(), CallError> {
        self.send_bytes(encode(self.address, kind, body_bytes, body)).await
    }

    /// Queues bytes as they are.
    pub(super) async fn send_bytes(&self, bytes: Bytes) -> Result<(), CallError> {
        self.send_bytes_within(bytes, self.write_timeout).await
    }

    /// The same, if the peer may take nothing for so long.
    pub(super) async fn send_bytes_within(&self, bytes: Bytes, limit: Duration) -> Result<(), CallError> {
        let count = bytes.len() as u64;
        match timeout(limit, self.out.send(bytes)).await {
            Ok(Ok(())) => {
                self.peer.observe(NetworkEvent::Sent { to: self.peer.id, bytes: count });
                Ok(())
            }
            Ok(Err(_)) => Err(self.not_sent("the connection was lost")),
            Err(_) => Err(self.not_sent("it takes nothing")),
        }
    }

    /// Where it leads.
    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Builds a frame.
    pub(super) fn frame(&self, kind: Kind, body_bytes: usize, body: impl FnOnce(&mut BytesMut)) -> Bytes {
        encode(self.address, kind, body_bytes, body)
    }

    /// Waits for room in the queue. Cancel safe. None when the channel has ended.
    pub(super) async fn room(&self) -> Option<mpsc::Permit<'_, Bytes>> {
        self.out.reserve().await.ok()
    }

    /// Counts bytes that were put into the queue by a permit.
    pub(super) fn sent(&self, bytes: u64) {
        self.peer.observe(NetworkEvent::Sent { to: self.peer.id, bytes });
    }

    fn not_sent(&self, reason: &str) -> CallError {
        self.peer.observe(NetworkEvent::SendFailed { to: self.peer.id });
        CallError::NotSent { peer: self.peer.id, reason: reason.to_owned() }
    }
}

impl Receiving {
    /// The next frame, or none when the channel has ended. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        let frame = next_from(&self.net, &self.peer, &mut self.inbound).await;
        if frame.is_none() {
            self.open.end();
        }
        frame
    }

    /// A body could not be read: the channel is to be given up.
    pub(super) fn broken(&self, error: &CodecError) {
        not_understood(&self.net, &self.peer, error);
    }
}
