//! Who leads, as those who have work for a leader need to know it.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::metrics::RaftServerMetrics;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::node::RaftHandle;
use crate::types::TypeConfig;

/// How soon somebody who was told "not here" by a leader looks again, when nothing has changed meanwhile.
const RETRY: Duration = Duration::from_millis(10);

/// Who leads at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Leader {
    /// Nobody, as far as is known here.
    #[default]
    Nobody,
    /// This member, in this term.
    Here {
        /// The term.
        term: u64,
    },
    /// Another member.
    There {
        /// Which one.
        id: u64,
        /// The term that it leads in.
        term: u64,
    },
}

impl Leader {
    pub(crate) fn from_metrics(server: &RaftServerMetrics<TypeConfig>, member_id: u64) -> Leader {
        let term = server.vote.leader_id().term;
        match server.current_leader {
            None => Leader::Nobody,
            Some(_) if !server.vote.is_committed() => Leader::Nobody,
            Some(id) if id == member_id => Leader::Here { term },
            Some(id) => Leader::There { id, term },
        }
    }
}

/// Follows who leads. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Leadership {
    watched: watch::Receiver<Leader>,
}

impl Leadership {
    /// Starts following; ends with consensus.
    pub(crate) fn follow(raft: &RaftHandle, member_id: u64) -> Leadership {
        let mut server = raft.server_metrics();
        let first = Leader::from_metrics(&server.borrow_watched(), member_id);
        let (sender, watched) = watch::channel(first);
        tokio::spawn(async move {
            while !sender.is_closed() && server.changed().await.is_ok() {
                let leader = Leader::from_metrics(&server.borrow_watched(), member_id);
                sender.send_if_modified(|known| std::mem::replace(known, leader) != leader);
            }
        });
        Leadership { watched }
    }

    pub(crate) fn now(&self) -> Leader {
        *self.watched.borrow()
    }

    /// Waits until leadership is not `than` any more. Never resolves once consensus has ended.
    pub(crate) async fn other(&mut self, than: Leader) -> Leader {
        match self.watched.wait_for(|leader| *leader != than).await.map(|leader| *leader) {
            Ok(leader) => leader,
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until leadership has changed from `than`, or, as `than` may be right and only not ready, for a moment.
    /// Whether `deadline` is still ahead.
    pub(crate) async fn retry(&mut self, than: Leader, deadline: Instant) -> bool {
        let pause = if than == Leader::Nobody { deadline } else { deadline.min(Instant::now() + RETRY) };
        // A timeout is one of the two things waited for.
        drop(tokio::time::timeout_at(pause, self.other(than)).await);
        Instant::now() < deadline
    }
}
