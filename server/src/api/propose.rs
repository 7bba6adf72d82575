//! The two ways through consensus: proposing a command, and the barrier before a linearizable read.

use std::time::Instant;

use tally_apply::{AlarmAction, AlarmCommand, AlarmKind, Command, Outcome, Reply};
use tally_raftnode::{BarrierError, EncodedCommand, ProposeError};
use tokio::time::timeout;

use crate::api::state::State;
use crate::error::{ApiError, Effect};
use crate::preflight;

impl State {
    /// Sends a client's command through preflight and the log: the revision after it, and the reply. The command is encoded
    /// before this returns, so nobody has to keep it.
    pub(crate) fn propose(
        &self,
        command: &Command,
    ) -> impl Future<Output = Result<(i64, Reply), ApiError>> + Send + use<'_> {
        let ready = self.ready(command).map(|room| room.then(|| EncodedCommand::encode(command)));
        async move {
            let Some(encoded) = ready? else {
                Box::pin(self.raise_no_space()).await;
                return Err(ApiError::NoSpace);
            };
            let Outcome { revision, result } = self.submit(encoded).await?;
            Ok((revision, result?))
        }
    }

    /// What is refused by a look at this member alone; `false` if there is no room.
    fn ready(&self, command: &Command) -> Result<bool, ApiError> {
        preflight::check_size(command, self.request_bytes_max)?;
        preflight::check_gap(self.node.apply_gap())?;
        Ok(!self.quota.refuses(command, self.occupied_bytes()))
    }

    /// Waits for the outcome. If the time runs out, or the client goes, the proposal is carried out all the same.
    async fn submit(&self, command: EncodedCommand) -> Result<Outcome, ApiError> {
        let started = Instant::now();
        match timeout(self.request_timeout, self.node.propose(command)).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(error)) => Err(self.propose_error(error, started)),
            Err(_) => Err(self.timed_out(started, Effect::Unknown)),
        }
    }

    /// Raises the NOSPACE alarm unless it is raised already; one request does it, the others are refused meanwhile.
    async fn raise_no_space(&self) {
        let alarm = |alarm: &tally_apply::Alarm| alarm.member_id == self.member_id && alarm.kind == AlarmKind::NoSpace;
        if self.reads().alarms().iter().any(alarm) {
            return;
        }
        let Some(_raising) = self.quota.begin_raising() else { return };
        let command = Command::Alarm(AlarmCommand {
            action: AlarmAction::Activate,
            member_id: self.member_id,
            kind: AlarmKind::NoSpace,
        });
        match self.submit(EncodedCommand::encode(&command)).await {
            Ok(_) => tracing::warn!(
                size_bytes = self.occupied_bytes(),
                quota_bytes = self.quota.reported(),
                "the store is over its quota: raised the NOSPACE alarm; compact, delete, and disarm it to go on"
            ),
            Err(error) => {
                tracing::warn!(%error, "could not raise the NOSPACE alarm; the next refused write tries again")
            }
        }
    }

    /// Waits until a read of this member's state is linearizable.
    pub(crate) async fn barrier(&self) -> Result<(), ApiError> {
        let started = Instant::now();
        match timeout(self.request_timeout, self.node.read_barrier()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(BarrierError::NoLeader | BarrierError::NoQuorum)) | Err(_) => {
                Err(self.timed_out(started, Effect::None))
            }
            Ok(Err(BarrierError::Stopped | BarrierError::Fatal(_))) => Err(ApiError::Stopped(Effect::None)),
        }
    }

    fn propose_error(&self, error: ProposeError, started: Instant) -> ApiError {
        match error {
            // It waited for a leader as long as a request may take, and none got it.
            ProposeError::NoLeader => self.timed_out(started, Effect::None),
            ProposeError::TooManyRequests { .. } => ApiError::TooManyRequests,
            ProposeError::TooLarge { .. } => ApiError::RequestTooLarge,
            ProposeError::Discarded => ApiError::LeaderChanged(Effect::Unknown),
            ProposeError::Stopped | ProposeError::Fatal(_) => ApiError::Stopped(Effect::Unknown),
        }
    }
}
