//! What a member tells its cluster about itself when it starts: its name, where clients reach it, and which data directory
//! it runs on.

use std::time::Duration;

use tally_apply::{Command, Member, Rejection};
use tally_raftnode::{EncodedCommand, Node, ProposeError};
use thiserror::Error;

/// Between two attempts.
const RETRY: Duration = Duration::from_millis(100);
/// How long an attempt may take. One that is on its way to the leader when the connection breaks is decided only when
/// leadership changes, and this member would serve nobody until then.
const ATTEMPT: Duration = Duration::from_secs(10);

/// Why a member cannot make itself known.
#[derive(Debug, Error)]
pub enum PublishError {
    /// The cluster knows the member with other data.
    #[error(
        "the cluster knows this member with another data directory: this one is new, a copy, or restored from a backup, \
         and has lost what the member had acknowledged; remove the member, add it again, and start it with an empty \
         directory and --initial-cluster-state=existing"
    )]
    OtherDirectory,
    /// The state machine refuses it for another reason.
    #[error("the cluster refuses it")]
    Refused(#[source] Rejection),
    /// The node does not take it.
    #[error("it cannot be proposed")]
    Propose(#[from] ProposeError),
}

/// Makes the member known, unless the cluster knows all of it already. Tries until it succeeds, or never can.
pub(crate) async fn publish(node: &Node, member: &Member) -> Result<(), PublishError> {
    let command = EncodedCommand::encode(&Command::SetMember(member.clone()));
    while !node.reads().members().contains(member) {
        let attempt = tokio::time::timeout(ATTEMPT, node.propose(command.clone())).await;
        let Ok(proposed) = attempt else {
            tracing::warn!("the cluster has not taken this member's name and URLs in {ATTEMPT:?}; trying again");
            continue;
        };
        match proposed {
            Ok(outcome) => return judge(node, outcome.result.err()).await,
            // Doing it twice is doing it once.
            Err(error @ (ProposeError::NoLeader | ProposeError::Discarded | ProposeError::TooManyRequests { .. })) => {
                tracing::warn!(%error, "this member's name and URLs are not known to the cluster yet; trying again");
                tokio::time::sleep(RETRY).await;
            }
            Err(error @ (ProposeError::TooLarge { .. } | ProposeError::Stopped | ProposeError::Fatal(_))) => {
                return Err(error.into());
            }
        }
    }
    Ok(())
}

async fn judge(node: &Node, rejection: Option<Rejection>) -> Result<(), PublishError> {
    match rejection {
        None => Ok(()),
        Some(Rejection::MemberDirectory { .. }) => Err(PublishError::OtherDirectory),
        Some(Rejection::MemberRemoved { .. }) => {
            // The node learns it from the same log; whoever waits for that ends this.
            node.removed().await;
            std::future::pending().await
        }
        Some(other) => Err(PublishError::Refused(other)),
    }
}
