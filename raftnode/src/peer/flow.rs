//! One stream of appends over a link's channel: requests go out as they come, results come back in their order.
//!
//! A flow is a *session* on the channel: its requests carry its number, and so do their results. Whatever ends a flow
//! early (a conflict, a lost leadership, a heartbeat that is given up) leaves requests behind whose results still may
//! come; they carry the old number and are dropped. The follower drops requests of a session that it has ended, too.
//!
//! **Invariant**: consensus is given no result while a later request is under way that reaches no further. It takes every
//! request up to where the follower is for answered, and what it knows of the follower for as new as the last of them: a
//! read index would then stand on an answer from before the read. Such requests tell of the commit index alone, and their
//! answers say as much. Where one was sent just before the answer to the one in front of it came, which takes several
//! requests under way (entries of more than half a MiB together), that is heard of a round trip later.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::errors::{NetworkError, RPCError};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};

use super::body::{Append, Stopping, decode_appended};
use super::frame::{Frame, Kind, encode};
use super::link::{Channel, PeerLink, Role};
use super::observer::NetworkEvent;
use crate::types::{TypeConfig, log_index};

/// Requests under way without a result.
pub(super) const PIPELINE_MAX: usize = 64;
/// Bytes of requests under way without a result; a single larger request is under way alone.
pub(super) const PIPELINE_BYTES_MAX: usize = 16 << 20;

type Outcome = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// A stream of appends.
pub(super) struct Flow<'s, S> {
    link: &'s mut PeerLink,
    input: S,
    /// The input has ended.
    ended: bool,
    /// Nothing more comes out.
    over: bool,
    /// A request that waits for the channel, or for room in it.
    unsent: Option<(Bytes, Sent)>,
    /// Requests without a result, in order.
    outstanding: VecDeque<Sent>,
    outstanding_bytes: usize,
    /// The channel broke before anything was lost, and was opened again: not more than once.
    reopened: bool,
    /// Requests taken from the input, minus results.
    unanswered: usize,
}

/// What is remembered of a request until its result comes.
struct Sent {
    /// The leader's commit index in the request.
    committed: u64,
    /// The last entry of the request, or the one before it if it has none.
    last: u64,
    at: Instant,
    bytes: usize,
    is_heartbeat: bool,
}

enum Event {
    Request(Option<AppendEntriesRequest<TypeConfig>>),
    Frame(Option<Frame>),
    Sent,
    Overdue,
}

impl<'s, S> Flow<'s, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    pub(super) fn new(link: &'s mut PeerLink, input: S) -> Flow<'s, S> {
        link.session += 1;
        Flow {
            link,
            input,
            ended: false,
            over: false,
            unsent: None,
            outstanding: VecDeque::new(),
            outstanding_bytes: 0,
            reopened: false,
            unanswered: 0,
        }
    }

    /// The next result. After an error, or a result that is not a success, the flow is over.
    pub(super) async fn next(&mut self) -> Option<Outcome> {
        if self.over {
            return None;
        }
        let outcome = self.advance().await;
        self.over = !matches!(outcome, Some(Ok(Ok(_))));
        outcome
    }

    async fn advance(&mut self) -> Option<Outcome> {
        loop {
            if self.unsent.is_none() && self.outstanding.is_empty() && self.ended {
                return None;
            }
            if self.unsent.is_some()
                && let Err(error) = self.link.open().await
            {
                return Some(Err(error));
            }
            match self.event().await {
                Event::Request(Some(request)) => self.take(request),
                Event::Request(None) => self.ended = true,
                Event::Sent => {}
                Event::Frame(Some(frame)) => {
                    if let Some(outcome) = self.answer(frame) {
                        return Some(outcome);
                    }
                }
                Event::Frame(None) => {
                    self.link.channel = Channel::Closed;
                    if !self.outstanding.is_empty() || std::mem::replace(&mut self.reopened, true) {
                        return Some(Err(self.link.unreachable(&"the connection was lost")));
                    }
                }
                Event::Overdue => {
                    self.link.channel = Channel::Closed;
                    return Some(Err(self.link.unreachable(&"it does not answer")));
                }
            }
        }
    }

    /// Waits until something can be done. Cancel safe.
    async fn event(&mut self) -> Event {
        let wants_more = !self.ended
            && self.unsent.is_none()
            && self.outstanding.len() < PIPELINE_MAX
            && self.outstanding_bytes < PIPELINE_BYTES_MAX;
        let Channel::Open(live) = &mut self.link.channel else {
            // Without a channel there is nothing outstanding and nothing to be sent: only the input can go on.
            return Event::Request(self.input.next().await);
        };
        let since = live.unanswered_since.filter(|_| !self.outstanding.is_empty());
        let overdue = since.map(|since| since + self.link.net.inner.config.read_timeout);
        let (sending, receiving) = live.duplex.halves();
        tokio::select! {
            biased;
            room = sending.room(), if self.unsent.is_some() => {
                // Without room the channel is lost, and the request goes over the next one: consensus does not ask again.
                let Some(room) = room else { return Event::Frame(None) };
                let Some((frame, mut sent)) = self.unsent.take() else { return Event::Frame(None) };
                sending.sent(frame.len() as u64);
                room.send(frame);
                sent.at = Instant::now();
                live.unanswered_since.get_or_insert(sent.at);
                self.outstanding_bytes += sent.bytes;
                self.outstanding.push_back(sent);
                Event::Sent
            }
            frame = receiving.next() => Event::Frame(frame),
            request = self.input.next(), if wants_more => Event::Request(request),
            () = until(overdue), if overdue.is_some() => Event::Overdue,
        }
    }

    fn take(&mut self, request: AppendEntriesRequest<TypeConfig>) {
        let committed = request.leader_commit.as_ref().map_or(0, |id| log_index(id.index));
        let is_heartbeat = request.entries.is_empty();
        let append = Append::new(self.link.session, request);
        let address = self.link.net.address_to(self.link.peer.id);
        let frame = encode(address, Kind::Append, append.bytes(), |out| append.encode(out));
        let sent = Sent { committed, last: append.last(), at: Instant::now(), bytes: frame.len(), is_heartbeat };
        self.unsent = Some((frame, sent));
        self.unanswered += 1;
    }

    /// What a frame says to this flow; nothing if it is of an earlier one.
    fn answer(&mut self, frame: Frame) -> Option<Outcome> {
        let decoded = match frame.kind {
            Kind::Appended => decode_appended(frame.body).map_err(|error| error.to_string()),
            found => Err(format!("a frame of kind {found:?} instead of a result")),
        };
        let (session, result) = match decoded {
            Ok(decoded) => decoded,
            Err(detail) => return Some(Err(self.confused(&detail))),
        };
        if session != self.link.session {
            self.note_answer();
            return None;
        }
        let Some(sent) = self.outstanding.pop_front() else {
            return Some(Err(self.confused("a result without a request")));
        };
        self.outstanding_bytes -= sent.bytes;
        self.unanswered -= 1;
        self.note_answer();
        let next = self.outstanding.front().or(self.unsent.as_ref().map(|(_, sent)| sent)).map(|next| next.last);
        Some(match result {
            Ok(Ok(matching)) => {
                // Up to the commit index that went with the request, what the follower has is committed: it must never
                // come back with less.
                let matched = matching.as_ref().map_or(0, |id| log_index(id.index));
                self.link.peer.keeps(matched.min(sent.committed));
                // An empty request asks for nothing, and says where the follower is while it gets a snapshot.
                if !sent.is_heartbeat && self.link.peer.is_given_up_at(matched) {
                    return Some(Err(self.give_up()));
                }
                if sent.is_heartbeat {
                    let elapsed = sent.at.elapsed();
                    self.link.peer.observe(NetworkEvent::RoundTrip { to: self.link.peer.id, elapsed });
                }
                if next.is_some_and(|last| last <= matched) {
                    return None;
                }
                Ok(Ok(matching))
            }
            Ok(Err(refusal)) => {
                // What else is under way in this session will not be answered.
                if let Channel::Open(live) = &mut self.link.channel {
                    live.unanswered_since = None;
                }
                Ok(Err(refusal))
            }
            Err(stopping @ Stopping) => {
                self.link.channel = Channel::Closed;
                Err(self.link.unreachable(&stopping))
            }
        })
    }

    /// Ends the stream of a member that lacks too much of the log: see `laggards`. What else is on its way on the channel
    /// would only keep the link from what the member needs now.
    fn give_up(&mut self) -> RPCError<TypeConfig> {
        self.link.channel = Channel::Closed;
        NetworkError::from_string(format!("member {:x} gets a snapshot instead", self.link.peer.id)).into()
    }

    fn note_answer(&mut self) {
        if let Channel::Open(live) = &mut self.link.channel {
            live.unanswered_since = (!self.outstanding.is_empty()).then(Instant::now);
        }
    }

    /// The follower says something that makes no sense: start over.
    fn confused(&mut self, detail: &str) -> RPCError<TypeConfig> {
        self.link.channel = Channel::Closed;
        let peer = &self.link.peer;
        self.link.net.inner.complaints.make(super::complaints::Complaint::StrayAnswer, peer.id, &detail);
        NetworkError::from_string(format!("member {:x}: {detail}", peer.id)).into()
    }
}

impl<S> Drop for Flow<'_, S> {
    fn drop(&mut self) {
        if self.link.role == Role::Heartbeat && self.unanswered > 0 {
            self.link.peer.observe(NetworkEvent::HeartbeatFailed { to: self.link.peer.id });
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
