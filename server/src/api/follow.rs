//! Waiting for changes inside the server, for what is built on keys and watches: locks and elections.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use tally_mvcc::{Batch, CreateError, Delivery, Filters, KeyRange, Step, WatchLimits, WatchSpec, WatchStream};

use crate::api::state::State;
use crate::api::watch::{Place, read_history};
use crate::error::{ApiError, Effect};

/// What comes next.
pub(crate) enum Followed {
    /// All changes of one or more revisions.
    Changes(Batch),
    /// What should have come has been compacted: look at the store again.
    Compacted,
}

/// One watcher that nobody sees from outside.
pub(crate) struct Follower {
    state: Arc<State>,
    stream: WatchStream,
    place: Place,
    requires_leader: bool,
}

impl Follower {
    /// Follows a range from a revision on.
    pub(crate) fn new(state: &Arc<State>, range: KeyRange, start: i64, filters: Filters) -> Result<Follower, ApiError> {
        let mut stream = state.reads().kv().watch_stream(WatchLimits::default());
        let spec = WatchSpec { start, filters, ..WatchSpec::new(range) };
        stream.create(spec).map_err(|error| match error {
            CreateError::TooMany { .. } => ApiError::TooManyRequests,
            CreateError::EmptyRange | CreateError::DuplicateId(_) | CreateError::BadStart(_) => {
                ApiError::Defect { what: "a key cannot be followed" }
            }
        })?;
        Ok(Follower { state: Arc::clone(state), stream, place: state.watches.admit()?, requires_leader: false })
    }

    /// Whether waiting ends with an error when there is no leader any more.
    pub(crate) fn requires_leader(self, requires_leader: bool) -> Follower {
        Follower { requires_leader, ..self }
    }

    /// Waits for the next changes.
    pub(crate) async fn next(&mut self) -> Result<Followed, ApiError> {
        loop {
            let is_corrupt = || self.state.refuse_if_corrupt().is_err();
            let step = poll_fn(|cx| match self.place.ending(self.requires_leader, is_corrupt, cx.waker()) {
                Some(error) => Poll::Ready(Err(error)),
                None => self.stream.poll_next(cx).map(Ok),
            });
            match step.await? {
                Step::Deliver(Delivery::Events(batch)) => return Ok(Followed::Changes(batch)),
                Step::Deliver(Delivery::Canceled { .. }) => return Ok(Followed::Compacted),
                Step::Deliver(Delivery::Progress { .. }) => {}
                Step::Deliver(Delivery::Failed(error)) => return Err(error.into()),
                Step::Read(history) => {
                    let read = read_history(Arc::clone(&self.state), history).await?;
                    self.stream.absorb(read);
                }
                Step::Closed => {
                    // A state that was received from the leader has taken its place; or the node has stopped.
                    if !self.stream.attach(self.state.reads().kv()) {
                        return Err(ApiError::Stopped(Effect::None));
                    }
                }
            }
        }
    }
}
