//! Calls: a request, an answer, over one channel per peer that all of them share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use openraft::raft::{TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::body::Input;
use super::complaints::Complaint;
use super::duplex::{Duplex, Receiving, Sending};
use super::frame::Kind;
use super::net::Net;
use super::outgoing::Task;
use super::peers::Peer;
use super::{CallError, messages, serve};
use crate::barrier::BarrierError;
use crate::codec::CodecError;
use crate::member::{MemberChange, MemberError};
use crate::types::TypeConfig;

/// For the leader to answer that the membership has been changed. Whoever asks may give up earlier.
pub(crate) const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that most calls fit into.
const CALL_BYTES: usize = 128;

/// The shared channel to a peer, opened when it is needed.
#[derive(Default)]
pub(super) struct Control {
    channel: tokio::sync::Mutex<Option<Channel>>,
}

#[derive(Clone)]
struct Channel {
    sending: Sending,
    waiting: Arc<Waiting>,
    _reader: Arc<Task<()>>,
}

/// Who waits for which answer.
struct Waiting {
    calls: Mutex<Option<BTreeMap<u64, Waiter>>>,
}

struct Waiter {
    kind: Kind,
    answer: oneshot::Sender<Input>,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Option<BTreeMap<u64, Waiter>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.lock().is_none()
    }

    /// None if no answer can come any more.
    fn register(self: &Arc<Self>, id: u64, kind: Kind) -> Option<Registered> {
        let (answer, receiver) = oneshot::channel();
        self.lock().as_mut()?.insert(id, Waiter { kind, answer });
        Some(Registered { id, waiting: Arc::clone(self), receiver })
    }
}

/// A call under way; forgotten when dropped.
struct Registered {
    id: u64,
    waiting: Arc<Waiting>,
    receiver: oneshot::Receiver<Input>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(calls) = self.waiting.lock().as_mut() {
            calls.remove(&self.id);
        }
    }
}

impl Channel {
    async fn open(net: &Net, peer: &Arc<Peer>) -> Result<Channel, String> {
        let duplex = Duplex::open(net, peer, serve::CONTROL).await.map_err(|error| error.to_string())?;
        let (sending, receiving) = duplex.split();
        let waiting = Arc::new(Waiting { calls: Mutex::new(Some(BTreeMap::new())) });
        let reader = Task::spawn(read_answers(net.clone(), peer.id, receiving, Arc::clone(&waiting)));
        Ok(Channel { sending, waiting, _reader: Arc::new(reader) })
    }
}

/// Hands every answer to the call it belongs to. Ends with the channel; then nobody waits any more.
async fn read_answers(net: Net, peer: u64, mut receiving: Receiving, waiting: Arc<Waiting>) {
    loop {
        let frame = tokio::select! {
            () = net.closed() => None,
            frame = receiving.next() => frame,
        };
        let Some(frame) = frame else { break };
        let mut input = Input::new("answer", frame.body);
        let Ok(id) = input.u64() else { break };
        let waiter = waiting.lock().as_mut().and_then(|calls| calls.remove(&id));
        match waiter {
            // It has given up waiting if this fails, which is its right.
            Some(waiter) if waiter.kind == frame.kind => drop(waiter.answer.send(input)),
            // The answer to a call that was given up: nobody's business.
            None => {}
            Some(waiter) => {
                let detail = format!("an answer of kind {:?} to a call that wants {:?}", frame.kind, waiter.kind);
                net.inner.complaints.make(Complaint::StrayAnswer, peer, &detail);
                break;
            }
        }
    }
    waiting.lock().take();
}

impl Control {
    async fn channel(&self, net: &Net, peer: &Arc<Peer>) -> Result<Channel, String> {
        let mut slot = self.channel.lock().await;
        if let Some(channel) = slot.as_ref().filter(|channel| !channel.waiting.is_closed()) {
            return Ok(channel.clone());
        }
        *slot = None;
        let channel = Channel::open(net, peer).await?;
        *slot = Some(channel.clone());
        Ok(channel)
    }
}

/// Opens the channel to a peer, so that it knows at once that this member is there, and need not wait until it would have
/// tried again by itself. If it cannot be reached, it will be its turn.
pub(super) async fn knock(net: &Net, to: u64) {
    let peer = net.peer(to);
    tokio::select! {
        () = net.closed() => {}
        _ = peer.control.channel(net, &peer) => {}
    }
}

/// One call: a request of kind `ask`, and the body of the answer, which must be of kind `answer`.
async fn call(
    net: &Net,
    peer: &Arc<Peer>,
    (ask, answer): (Kind, Kind),
    limit: Duration,
    body: impl FnOnce(&mut BytesMut),
) -> Result<Input, CallError> {
    let not_sent = |reason: String| CallError::NotSent { peer: peer.id, reason };
    let deadline = Instant::now() + limit;
    let opening = timeout_at(deadline, peer.control.channel(net, peer)).await;
    let channel = opening.unwrap_or_else(|_| Err("no connection in time".to_owned())).map_err(not_sent)?;
    let id = net.next_call();
    let registered = channel.waiting.register(id, answer);
    let mut registered = registered.ok_or_else(|| not_sent("the connection was lost".to_owned()))?;
    let frame = channel.sending.frame(ask, CALL_BYTES, |out| {
        out.put_u64(id);
        body(out);
    });
    let sent = timeout_at(deadline, channel.sending.send_bytes(frame)).await;
    sent.unwrap_or_else(|_| Err(not_sent("it takes nothing".to_owned())))?;
    let unclear = |reason: &str| CallError::Unclear { peer: peer.id, reason: reason.to_owned() };
    match timeout_at(deadline, &mut registered.receiver).await {
        Ok(Ok(input)) => Ok(input),
        Ok(Err(_)) => Err(unclear("the connection was lost before the answer came")),
        Err(_) => Err(unclear("no answer in time")),
    }
}

fn readable<T>(peer: &Peer, decoded: Result<T, CodecError>) -> Result<T, CallError> {
    decoded.map_err(|error| CallError::Unclear { peer: peer.id, reason: error.to_string() })
}

/// Asks for a vote, or whether one would be granted. An error is never a vote.
pub(super) async fn vote(
    net: &Net,
    peer: &Arc<Peer>,
    kind: Kind,
    request: &VoteRequest<TypeConfig>,
    limit: Duration,
) -> Result<VoteResponse<TypeConfig>, CallError> {
    let write = |out: &mut BytesMut| messages::put_vote_request(out, request);
    let answer = call(net, peer, (kind, Kind::Voted), limit, write).await?;
    readable(peer, messages::vote_response(answer))
}

/// Tells a peer that leadership is handed over.
pub(super) async fn transfer(
    net: &Net,
    peer: &Arc<Peer>,
    request: &TransferLeaderRequest<TypeConfig>,
    limit: Duration,
) -> Result<TransferLeaderResponse<TypeConfig>, CallError> {
    let write = |out: &mut BytesMut| messages::put_transfer(out, request);
    let answer = call(net, peer, (Kind::Transfer, Kind::Transferred), limit, write).await?;
    readable(peer, messages::transferred(answer))
}

pub(super) async fn read_index(net: &Net, to: u64) -> Result<Result<u64, BarrierError>, CallError> {
    let peer = net.peer(to);
    let limit = net.inner.config.read_timeout;
    let answer = call(net, &peer, (Kind::ReadIndex, Kind::ReadAt), limit, |_| {}).await?;
    readable(&peer, messages::read_at(answer))
}

/// Puts a question to the leader. Whoever asks may give up earlier than this does.
pub(super) async fn ask(net: &Net, to: u64, kind: u8, question: &[u8]) -> Result<Option<Bytes>, CallError> {
    let peer = net.peer(to);
    let limit = net.inner.config.read_timeout;
    let write = |out: &mut BytesMut| messages::put_ask(out, kind, question);
    let answer = call(net, &peer, (Kind::Ask, Kind::Answer), limit, write).await?;
    readable(&peer, messages::answer(answer))
}

pub(super) async fn change_members(
    net: &Net,
    to: u64,
    change: &MemberChange,
) -> Result<Result<(), MemberError>, CallError> {
    let peer = net.peer(to);
    let write = |out: &mut BytesMut| messages::put_change(out, change);
    let answer = call(net, &peer, (Kind::Change, Kind::Changed), CHANGE_TIMEOUT, write).await?;
    readable(&peer, messages::changed(answer))
}
