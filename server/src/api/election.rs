//! The election service: of those who campaign under a name, the one with the oldest key leads, until the key or its lease
//! is gone. `rev` in its leader key is the key's create revision: a fencing token that grows from leader to leader.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::try_unfold;
use tally_mvcc::{Filters, KeyRange, Op, PutRequest, Record};

use crate::api::follow::{Followed, Follower};
use crate::api::queue::{Queue, delete, single};
use crate::api::state::State;
use crate::error::ApiError;
use crate::wire::{CampaignMessage, LeaderKey, LeaderMessage, ProclaimMessage, ResignMessage};

/// An election that is won.
pub(crate) struct Elected {
    pub(crate) revision: i64,
    pub(crate) leader: LeaderKey,
}

/// Who leads, and the revision at which it was seen.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    pub(crate) revision: i64,
    pub(crate) record: Record,
}

impl From<Record> for Leader {
    /// Seen when it was written.
    fn from(record: Record) -> Leader {
        Leader { revision: record.mod_revision(), record }
    }
}

/// Waits until the candidate leads, for as long as the client does.
pub(crate) async fn campaign(state: &Arc<State>, message: CampaignMessage) -> Result<Elected, ApiError> {
    win(state, message).await.map_err(ApiError::unclassified)
}

async fn win(state: &Arc<State>, message: CampaignMessage) -> Result<Elected, ApiError> {
    let CampaignMessage { name, lease, value } = message;
    let queue = Queue::new(state, &name);
    let lease = queue.session(lease).await?;
    let entry = queue.enter(lease, value.clone()).await?;
    // Who goes meanwhile leaves the key, as in etcd: it may be the leader's, who knows nothing of having lost it.
    let said = match entry.found.as_ref().is_some_and(|found| *found != value) {
        true => say(&queue, &entry.key, entry.create_revision, lease, value).await.map(drop),
        false => Ok(()),
    };
    let leaving = queue.leave_unless_told(&entry);
    said?;
    // etcd does not look again, and tells a candidate whose lease ended while it waited that it leads.
    if !entry.is_first && queue.turn(&entry).await?.0.is_none() {
        return Err(ApiError::ElectionNotLeader);
    }
    leaving.stay();
    let leader = LeaderKey { name, key: entry.key, rev: entry.create_revision, lease };
    Ok(Elected { revision: entry.revision, leader })
}

/// Changes what the leader says; returns the revision of the store.
pub(crate) async fn proclaim(state: &Arc<State>, message: ProclaimMessage) -> Result<i64, ApiError> {
    let tell = async {
        let LeaderKey { name, key, rev, lease } = message.leader.ok_or(ApiError::NoLeaderField)?;
        let queue = Queue::new(state, &name);
        let lease = queue.session(lease).await?;
        say(&queue, &key, rev, lease, message.value).await
    };
    tell.await.map_err(ApiError::unclassified)
}

async fn say(queue: &Queue, key: &Bytes, rev: i64, lease: i64, value: Bytes) -> Result<i64, ApiError> {
    let put = PutRequest { lease, ..PutRequest::new(key.clone(), value) };
    let reply = queue.if_still(key, rev, Op::Put(put)).await?;
    if reply.succeeded { Ok(reply.revision) } else { Err(ApiError::ElectionNotLeader) }
}

/// Gives leadership up; without effect if it is gone already. Returns the revision of the store.
pub(crate) async fn resign(state: &Arc<State>, message: ResignMessage) -> Result<i64, ApiError> {
    let leave = async {
        let LeaderKey { name, key, rev, .. } = message.leader.ok_or(ApiError::NoLeaderField)?;
        let queue = Queue::new(state, &name);
        Ok(queue.if_still(&key, rev, delete(&key)?).await?.revision)
    };
    leave.await.map_err(ApiError::unclassified)
}

/// Who leads now.
pub(crate) async fn leader(state: &Arc<State>, message: LeaderMessage) -> Result<Leader, ApiError> {
    match Queue::new(state, &message.name).oldest().await.map_err(ApiError::unclassified)? {
        (Some(record), revision) => Ok(Leader { revision, record }),
        (None, _) => Err(ApiError::ElectionNoLeader),
    }
}

/// Who leads, now and whenever that or what the leader says changes. As in etcd, what happens while nobody is watched may
/// be seen only by its result.
pub(crate) fn observe(
    state: &Arc<State>,
    requires_leader: bool,
    message: LeaderMessage,
) -> impl Stream<Item = Result<Leader, ApiError>> + use<> {
    let queue = Queue::new(state, &message.name);
    let observer = Observer { queue, state: Arc::clone(state), requires_leader, following: None };
    try_unfold(observer, |mut observer| async move {
        let leader = observer.next().await.map_err(|error| match error {
            // Not of the election: the stream ends as any other that wants a leader.
            ApiError::NoLeader if observer.requires_leader => error,
            ApiError::TimedOut(..) if observer.requires_leader && !observer.state.has_leader() => ApiError::NoLeader,
            error => error.unclassified(),
        })?;
        Ok(Some((leader, observer)))
    })
}

struct Observer {
    queue: Queue,
    state: Arc<State>,
    requires_leader: bool,
    following: Option<Following>,
}

/// A leader that is followed.
struct Following {
    follower: Follower,
    /// What it said and was not handed out yet, the newest first.
    said: Vec<Leader>,
    /// It leads no more.
    ended: bool,
}

impl Observer {
    async fn next(&mut self) -> Result<Leader, ApiError> {
        loop {
            let Some(following) = &mut self.following else {
                let leader = self.find().await?;
                let key = Bytes::copy_from_slice(leader.record.key());
                let follower = self.follow(single(&key)?, leader.revision + 1, Filters::default())?;
                self.following = Some(Following { follower, said: Vec::new(), ended: false });
                return Ok(leader);
            };
            if let Some(leader) = following.said.pop() {
                return Ok(leader);
            }
            if following.ended {
                self.following = None;
                continue;
            }
            match following.follower.next().await? {
                Followed::Changes(batch) => {
                    let puts = batch.events.iter().take_while(|event| !event.is_delete());
                    following.said = puts.map(|event| event.record().clone().into()).collect();
                    following.ended = following.said.len() < batch.events.len();
                    following.said.reverse();
                }
                Followed::Compacted => following.ended = true,
            }
        }
    }

    fn follow(&self, range: KeyRange, start: i64, filters: Filters) -> Result<Follower, ApiError> {
        Ok(Follower::new(&self.state, range, start, filters)?.requires_leader(self.requires_leader))
    }

    /// The leader, as soon as there is one.
    async fn find(&self) -> Result<Leader, ApiError> {
        loop {
            let (oldest, revision) = self.queue.oldest().await?;
            if let Some(record) = oldest {
                return Ok(Leader { revision, record });
            }
            let puts = Filters { no_put: false, no_delete: true };
            let mut follower = self.follow(self.queue.range()?, revision + 1, puts)?;
            if let Followed::Changes(batch) = follower.next().await?
                && let Some(first) = batch.events.first()
            {
                return Ok(first.record().clone().into());
            }
        }
    }
}
