//! Changes of the membership, carried out by the leader, one after the other.
//!
//! Who is a member, under which URLs, and who votes, is said by the log's membership entries and by nothing else. An id
//! that has left gets a tombstone in the replicated state, so that it is never used again and a process that still runs
//! under it can be told.
//!
//! Voters change by joint consensus, which is two entries. A leader that finds the cluster between the two finishes the
//! change, whether another leader left it so or its own second entry was refused; it also puts up tombstones that are
//! missing. It looks for both for as long as it leads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, Fatal, RaftError};
use tally_apply::Command;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};

use super::leadership::{Leader, Leadership};
use crate::barrier::{Barrier, BarrierError};
use crate::command::EncodedCommand;
use crate::member::{MemberChange, MemberError};
use crate::node::RaftHandle;
use crate::peer::{CHANGE_TIMEOUT, CallError, Net};
use crate::progress::Shared;
use crate::proposals::Proposals;
use crate::state_machine::SharedLive;
use crate::types::{Membership, Peer, TypeConfig, log_index};

/// A member that is connected and was heard of within this time counts as healthy; etcd's interval.
const HEALTHY_WITHIN: Duration = Duration::from_secs(5);
/// A learner may vote when it has this share of the leader's log, in percent; etcd's share.
const LEARNER_READY_PERCENT: u64 = 90;
/// How often a change that cannot be committed yet is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// What a question to the leader and its answer may take on their way.
const CHANGE_MARGIN: Duration = Duration::from_secs(1);
/// How often a leader looks whether something was begun and is not finished.
const UNFINISHED_INTERVAL: Duration = Duration::from_secs(1);

/// What changes are made with.
pub(crate) struct Changes {
    pub(crate) member_id: u64,
    pub(crate) max_learners: usize,
    pub(crate) strict: bool,
    pub(crate) timeout: Duration,
    pub(crate) raft: RaftHandle,
    pub(crate) net: Net,
    pub(crate) barrier: Arc<Barrier>,
    pub(crate) proposals: Proposals,
    pub(crate) leadership: Leadership,
    pub(crate) shared: Arc<Shared>,
    pub(crate) live: SharedLive,
    /// One change at a time.
    pub(crate) turn: Arc<Mutex<()>>,
}

type Written = Result<(), RaftError<TypeConfig, ClientWriteError<TypeConfig>>>;

impl Changes {
    /// Carries out a change on whichever member leads, after those of others. Does not begin it once the time of a
    /// request is over.
    pub(crate) async fn change(self: &Arc<Self>, change: MemberChange) -> Result<(), MemberError> {
        let deadline = Instant::now() + self.timeout;
        let mut leadership = self.leadership.clone();
        loop {
            let leader = leadership.now();
            let error = match leader {
                Leader::Nobody => MemberError::NoLeader,
                Leader::Here { .. } => match self.carry_out(change.clone(), deadline).await {
                    Err(error @ (MemberError::NoLeader | MemberError::Busy)) => error,
                    result => return result,
                },
                Leader::There { id, .. } => match self.net.change_members(id, &change).await {
                    Ok(Err(error @ (MemberError::NoLeader | MemberError::Busy))) => error,
                    Ok(result) => return result,
                    Err(CallError::NotSent { .. }) => MemberError::NoLeader,
                    Err(CallError::Unclear { .. }) => return Err(MemberError::Unclear),
                },
            };
            if !leadership.retry(leader, deadline).await {
                return Err(error);
            }
        }
    }

    /// Carries out a change that another member asks this one for.
    pub(crate) async fn carry_out_for_member(self: &Arc<Self>, change: MemberChange) -> Result<(), MemberError> {
        // Before the other one gives up: what was not begun must not begin later.
        self.carry_out(change, Instant::now() + self.timeout.min(CHANGE_TIMEOUT - CHANGE_MARGIN)).await
    }

    /// Carries out a change on this member, which must lead. Once begun it goes on, and finishes, even if nobody waits
    /// any more.
    async fn carry_out(self: &Arc<Self>, change: MemberChange, deadline: Instant) -> Result<(), MemberError> {
        // Until it is begun nothing has happened, and whoever asks is told so. From then on only its end says more.
        let turn = timeout_at(deadline, Arc::clone(&self.turn).lock_owned()).await.map_err(|_| MemberError::Busy)?;
        if !matches!(self.leadership.now(), Leader::Here { .. }) {
            return Err(MemberError::NoLeader);
        }
        // What is looked at below must not be older than what other members have been told.
        let confirmed = timeout_at(deadline, self.barrier.join()).await.unwrap_or(Err(BarrierError::NoQuorum));
        confirmed.map_err(|error| match error {
            BarrierError::NoLeader | BarrierError::NoQuorum => MemberError::NoLeader,
            BarrierError::Stopped => MemberError::Stopped,
            BarrierError::Fatal(error) => MemberError::Fatal(error),
        })?;
        let this = Arc::clone(self);
        let making = tokio::spawn(async move {
            let _turn = turn;
            this.make(change).await
        });
        match timeout_at(deadline, making).await {
            Ok(made) => made.unwrap_or(Err(MemberError::Stopped)),
            Err(_) => Err(MemberError::Unclear),
        }
    }

    async fn make(self: &Arc<Self>, change: MemberChange) -> Result<(), MemberError> {
        let mut membership = self.effective().await?;
        if is_joint(&membership) || self.has_unburied(&membership) {
            // What is left of an earlier change comes first: whoever asks for that one again, and hears that there is
            // no such member any more, can rely on it.
            self.finish().await;
            membership = self.effective().await?;
        }
        if is_joint(&membership) {
            return Err(MemberError::Busy);
        }
        match change {
            MemberChange::Add { id, peer_urls, is_learner } => self.add(&membership, id, peer_urls, is_learner).await,
            MemberChange::Remove { id } => self.remove(&membership, id).await,
            MemberChange::Update { id, peer_urls } => self.update(&membership, id, peer_urls).await,
            MemberChange::Promote { id } => self.promote(&membership, id).await,
        }
    }

    async fn effective(&self) -> Result<Membership, MemberError> {
        self.raft
            .with_raft_state(|state| state.membership_state.effective().membership().clone())
            .await
            .map_err(|error| self.fatal(&error))
    }

    async fn add(
        self: &Arc<Self>,
        membership: &Membership,
        id: u64,
        urls: Vec<String>,
        learner: bool,
    ) -> Result<(), MemberError> {
        let removed = self.live.load().reads.removed_members().contains(&id);
        if removed || membership.get_node(&id).is_some() {
            return Err(MemberError::IdExists { id });
        }
        free_urls(membership, None, &urls)?;
        let learners = membership.learner_ids().count();
        if learner && learners >= self.max_learners {
            return Err(MemberError::TooManyLearners { limit: self.max_learners });
        }
        let node = Peer { urls };
        if learner {
            return self.settle(membership, self.raft.add_learner(id, node, false).await.map(drop)).await;
        }
        if self.strict {
            self.room_for_a_voter(membership, None)?;
        }
        let change = ChangeMembers::AddVoters(BTreeMap::from([(id, node)]));
        let (raft, voters) = (self.raft.clone(), voters(membership));
        let mut adding = tokio::spawn(async move { raft.change_membership(change, false).await.map(drop) });
        // A second voter has to run before the change can be committed, and can only be started after it was made. The
        // change stands as soon as a majority of the old voters has it: nobody without it can be elected.
        loop {
            tokio::select! {
                added = &mut adding => {
                    return self.settle(membership, added.unwrap_or(Err(RaftError::Fatal(Fatal::Stopped)))).await;
                }
                () = sleep(LOOK_INTERVAL) => {
                    if self.majority_has_member(&voters, id).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Whether the membership that `id` is in has reached a majority of `voters`.
    async fn majority_has_member(&self, voters: &BTreeSet<u64>, id: u64) -> Result<bool, MemberError> {
        let in_force = self.raft.with_raft_state(move |state| {
            let effective = state.membership_state.effective();
            effective.membership().get_node(&id).and(effective.log_id().as_ref()).map(|log_id| log_id.index)
        });
        let Some(index) = in_force.await.map_err(|error| self.fatal(&error))? else { return Ok(false) };
        let own = self.shared.logged.mark().get() >= log_index(index);
        let matched = self.matched();
        let has = |voter: &u64| {
            if *voter == self.member_id { own } else { matched.get(voter).is_some_and(|index_of| *index_of >= index) }
        };
        Ok(voters.iter().filter(|voter| has(voter)).count() >= quorum(voters.len()))
    }

    /// How far the log of each other member is known to be the leader's, in openraft's indexes.
    fn matched(&self) -> BTreeMap<u64, u64> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let replication = metrics.replication.unwrap_or_default();
        replication.into_iter().filter_map(|(id, matched)| Some((id, matched?.index))).collect()
    }

    async fn remove(self: &Arc<Self>, membership: &Membership, id: u64) -> Result<(), MemberError> {
        if membership.get_node(&id).is_none() {
            return Err(MemberError::NotFound { id });
        }
        let voters = voters(membership);
        let change = if voters.contains(&id) {
            // Not a matter of strictness: somebody has to vote.
            if voters.len() == 1 {
                return Err(MemberError::NotEnoughStarted);
            }
            if self.strict {
                self.quorum_without(&voters, id)?;
            }
            ChangeMembers::RemoveVoters(BTreeSet::from([id]))
        } else {
            ChangeMembers::RemoveNodes(BTreeSet::from([id]))
        };
        self.settle(membership, self.raft.change_membership(change, false).await.map(drop)).await?;
        self.bury(id).await;
        Ok(())
    }

    /// Puts up a tombstone. If that fails, and the member is still recorded as one, the next look does it.
    async fn bury(&self, id: u64) {
        let command = EncodedCommand::encode(&Command::RemoveMember { id });
        let buried = match self.proposals.submit(command) {
            Ok(outcome) => tokio::time::timeout(self.timeout, outcome).await.is_ok_and(|outcome| outcome.is_ok()),
            Err(_) => false,
        };
        if !buried {
            tracing::warn!(member = format!("{id:x}"), "a removed member is not recorded as such; it is tried again");
        }
    }

    async fn update(&self, membership: &Membership, id: u64, urls: Vec<String>) -> Result<(), MemberError> {
        if membership.get_node(&id).is_none() {
            return Err(MemberError::NotFound { id });
        }
        free_urls(membership, Some(id), &urls)?;
        // Changes what is known of a member, not whether it votes.
        let change = ChangeMembers::SetNodes(BTreeMap::from([(id, Peer { urls })]));
        self.settle(membership, self.raft.change_membership(change, false).await.map(drop)).await
    }

    async fn promote(&self, membership: &Membership, id: u64) -> Result<(), MemberError> {
        if membership.get_node(&id).is_none() {
            return Err(MemberError::NotFound { id });
        }
        if voters(membership).contains(&id) {
            return Err(MemberError::NotLearner { id });
        }
        let last = self.shared.last.load(std::sync::atomic::Ordering::Acquire);
        let matched = self.matched().get(&id).map_or(0, |index| log_index(*index));
        if !self.is_started(id) || matched * 100 < last * LEARNER_READY_PERCENT {
            return Err(MemberError::LearnerNotReady { id });
        }
        if self.strict {
            self.room_for_a_voter(membership, Some(id))?;
        }
        let change = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
        self.settle(membership, self.raft.change_membership(change, false).await.map(drop)).await
    }

    /// Whoever runs now must be a quorum of the voters and one more: the `learner`, or somebody who has not been started and
    /// may never be. That is not asked of a single voter that adds one, or it could never grow.
    fn room_for_a_voter(&self, membership: &Membership, learner: Option<u64>) -> Result<(), MemberError> {
        let mut voters = voters(membership);
        let quorum = quorum(voters.len() + 1);
        voters.extend(learner);
        let started = voters.iter().filter(|voter| self.is_started(**voter)).count();
        if voters.len() == 1 && started == 1 {
            return Ok(());
        }
        if started < quorum {
            return Err(MemberError::NotEnoughStarted);
        }
        self.healthy(&voters, quorum)
    }

    /// Those who stay must be able to go on alone.
    fn quorum_without(&self, voters: &BTreeSet<u64>, leaving: u64) -> Result<(), MemberError> {
        let stay: BTreeSet<u64> = voters.iter().copied().filter(|voter| *voter != leaving).collect();
        // One that was never started counts for nothing, so it can always leave.
        if !self.is_started(leaving) {
            return Ok(());
        }
        let started = stay.iter().filter(|voter| self.is_started(**voter)).count();
        if started < quorum(stay.len()) {
            return Err(MemberError::NotEnoughStarted);
        }
        self.healthy(&stay, quorum(stay.len()))
    }

    fn healthy(&self, members: &BTreeSet<u64>, quorum: usize) -> Result<(), MemberError> {
        let runs = |id: u64| id == self.member_id || self.net.is_heard(id, HEALTHY_WITHIN);
        let healthy = members.iter().filter(|id| runs(**id)).count();
        if healthy < quorum { Err(MemberError::Unhealthy) } else { Ok(()) }
    }

    /// A member that has published its name runs, or did.
    fn is_started(&self, id: u64) -> bool {
        self.live.load().reads.members().iter().any(|member| member.id == id && !member.name.is_empty())
    }

    /// What came of a change of the membership that was `before` it.
    ///
    /// A change of voters is two entries. When the second one is refused the first one stands, and whoever leads
    /// finishes the change: then it must not be said that nothing has happened.
    async fn settle(&self, before: &Membership, written: Written) -> Result<(), MemberError> {
        let error = match written {
            Ok(()) => return Ok(()),
            Err(RaftError::Fatal(error)) => return Err(self.fatal(&error)),
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => return Err(MemberError::Unclear),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => MemberError::NoLeader,
            Err(RaftError::APIError(
                ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_),
            )) => MemberError::Busy,
        };
        if self.effective().await? == *before { Err(error) } else { Err(MemberError::Unclear) }
    }

    fn fatal(&self, _error: &Fatal<TypeConfig>) -> MemberError {
        self.shared.fatal.get().map_or(MemberError::Stopped, MemberError::Fatal)
    }

    /// Finishes what was begun and left unfinished: when this member begins to lead, and as long as it leads. Runs
    /// until dropped.
    pub(crate) async fn finish_what_was_begun(self: Arc<Self>) {
        let mut leadership = self.leadership.clone();
        let mut leader = leadership.now();
        loop {
            if matches!(leader, Leader::Here { .. }) {
                let _turn = self.turn.lock().await;
                self.finish().await;
            }
            loop {
                tokio::select! {
                    other = leadership.other(leader) => {
                        leader = other;
                        break;
                    }
                    () = sleep(UNFINISHED_INTERVAL), if matches!(leader, Leader::Here { .. }) => {}
                }
                // Whoever has the turn looks at this first.
                if self.is_unfinished()
                    && let Ok(_turn) = self.turn.try_lock()
                {
                    self.finish().await;
                }
            }
        }
    }

    /// Whether there seems to be something to finish; costs no question to anybody.
    fn is_unfinished(&self) -> bool {
        let in_force = Arc::clone(&self.raft.server_metrics().borrow_watched().membership_config);
        is_joint(in_force.membership()) || self.has_unburied(in_force.membership())
    }

    /// Whether somebody seems to be recorded as a member who is none.
    fn has_unburied(&self, membership: &Membership) -> bool {
        self.recorded().into_iter().any(|id| membership.get_node(&id).is_none())
    }

    /// Those who are recorded as members.
    fn recorded(&self) -> Vec<u64> {
        self.live.load().reads.members().iter().map(|member| member.id).collect()
    }

    /// Finishes a change that is between its two entries, and puts up the tombstones that are missing. Only for who has
    /// the turn. What fails is found again, but for the tombstone of a member that leaves with this change and never had a
    /// record: once the change is finished, nothing but the log names it.
    async fn finish(&self) {
        // Everything of earlier terms is applied after this.
        if self.barrier.join().await.is_err() {
            return;
        }
        // Before the membership: whoever has a record by now was added by an entry that is part of what is read next, so that
        // it is missing there only if it was removed. Nobody is buried who was added meanwhile.
        let recorded = self.recorded();
        let Some(before) = self.committed().await else { return };
        let mut after = None;
        if is_joint(&before) {
            tracing::info!("finishing a membership change that was begun before");
            let nothing_more = ChangeMembers::AddVoterIds(BTreeSet::new());
            if let Err(error) = self.raft.change_membership(nothing_more, false).await {
                tracing::warn!(%error, "the membership change is not finished yet; it is tried again");
                return;
            }
            after = self.committed().await;
            if after.is_none() {
                return;
            }
        }
        let after = after.as_ref().unwrap_or(&before);
        // Who leaves with this change may not have a record yet.
        let known = before.nodes().map(|(id, _)| *id).chain(recorded);
        let gone: BTreeSet<u64> = known.filter(|id| after.get_node(id).is_none()).collect();
        for id in gone {
            self.bury(id).await;
        }
    }

    /// The membership in force, if it is committed. If not, whoever wrote it is about to go on with it; and nobody may
    /// be buried for a change that could still be taken back.
    async fn committed(&self) -> Option<Membership> {
        let committed = self.raft.with_raft_state(|state| {
            let (effective, committed) = (state.membership_state.effective(), state.membership_state.committed());
            (effective.log_id() == committed.log_id()).then(|| effective.membership().clone())
        });
        committed.await.ok().flatten()
    }
}

/// Between the two entries of a change of voters.
fn is_joint(membership: &Membership) -> bool {
    membership.get_joint_config().len() > 1
}

fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

fn voters(membership: &Membership) -> BTreeSet<u64> {
    membership.voter_ids().collect()
}

/// No URL may be another member's.
fn free_urls(membership: &Membership, of: Option<u64>, urls: &[String]) -> Result<(), MemberError> {
    let taken = |url: &&String| membership.nodes().any(|(id, peer)| Some(*id) != of && peer.urls.contains(url));
    match urls.iter().find(taken) {
        Some(url) => Err(MemberError::PeerUrlExists { url: url.clone() }),
        None => Ok(()),
    }
}
