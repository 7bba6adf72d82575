//! Asking the leader: requests that do not go through the log, answered by whoever leads and by nobody else.
//!
//! What is asked and answered are opaque bytes of a kind; the layer above registers a [`LeaderHandler`] and gives both their
//! meaning. A question may be put more than once before it is answered, to different leaders too, so it must be one that
//! may be repeated.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use crate::cluster::{Leader, Leadership};
use crate::fatal::FatalError;
use crate::peer::{BoxFuture, Net};
use crate::progress::Shared;

/// Bytes of the largest question or answer.
pub(crate) const ASK_BYTES_MAX: usize = 256 << 10;

/// Answers what members ask of the leader.
///
/// It is called only while this member seems to lead. Before it lets anything depend on that, it has to confirm it, by
/// [`Node::confirm_leadership`](crate::Node::confirm_leadership).
pub trait LeaderHandler: Send + Sync + 'static {
    /// The answer; `None` if this member does not lead after all, and then whoever asks looks for the leader again.
    fn answer(self: Arc<Self>, kind: u8, question: Bytes) -> BoxFuture<Option<Bytes>>;
}

/// Why the leader did not answer. The question may have been heard, and more than once.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AskError {
    /// There was no leader for as long as a request may wait.
    #[error("there is no leader; try again")]
    NoLeader,
    /// There was a leader, and no answer for as long as a request may wait.
    #[error("the leader did not answer in time; try again")]
    TimedOut,
    /// It has more bytes than a question may have; the text tells both numbers.
    #[error("a question of {bytes} bytes is too large, the limit is {ASK_BYTES_MAX}")]
    TooLarge {
        /// How many.
        bytes: usize,
    },
    /// The node has failed.
    #[error("the node has failed")]
    Fatal(#[source] FatalError),
}

/// Who answers here, if anybody does. Weak, because a handler has the node to ask.
#[derive(Clone, Default)]
pub(crate) struct Answering {
    handler: Arc<Mutex<Option<Weak<dyn LeaderHandler>>>>,
}

impl Answering {
    pub(crate) fn set(&self, handler: Weak<dyn LeaderHandler>) {
        *self.handler.lock().unwrap_or_else(PoisonError::into_inner) = Some(handler);
    }

    fn get(&self) -> Option<Arc<dyn LeaderHandler>> {
        self.handler.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.upgrade()
    }

    /// The answer of this member, if it leads and has one.
    pub(crate) async fn answer(&self, leadership: &Leadership, kind: u8, question: Bytes) -> Option<Bytes> {
        let Leader::Here { .. } = leadership.now() else { return None };
        let handler = self.get()?;
        handler.answer(kind, question).await.filter(|answer| answer.len() <= ASK_BYTES_MAX)
    }
}

/// Puts a question to the leader, and to the next one if that one is deposed, until it is answered or `timeout` is over.
pub(crate) async fn ask_leader(
    (answering, net, shared): (&Answering, &Net, &Shared),
    mut leadership: Leadership,
    timeout: Duration,
    kind: u8,
    question: Bytes,
) -> Result<Bytes, AskError> {
    if question.len() > ASK_BYTES_MAX {
        return Err(AskError::TooLarge { bytes: question.len() });
    }
    let deadline = Instant::now() + timeout;
    loop {
        let leader = leadership.now();
        let mut watched = leadership.clone();
        let answer = async {
            match leader {
                Leader::Nobody => None,
                Leader::Here { .. } => answering.answer(&leadership, kind, question.clone()).await,
                Leader::There { id, .. } => net.ask(id, kind, question.clone()).await.ok().flatten(),
            }
        };
        let attempt = async {
            tokio::select! {
                biased;
                answer = answer => answer,
                // A leader that was deposed may never answer.
                _ = watched.other(leader) => None,
            }
        };
        if let Ok(Some(answer)) = timeout_at(deadline, attempt).await {
            return Ok(answer);
        }
        if let Some(error) = shared.fatal.get() {
            return Err(AskError::Fatal(error));
        }
        if !leadership.retry(leader, deadline).await {
            return Err(if leader == Leader::Nobody { AskError::NoLeader } else { AskError::TimedOut });
        }
    }
}
