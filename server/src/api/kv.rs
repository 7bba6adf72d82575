//! The key-value service.

use std::time::Duration;

use tally_apply::{Command, Reply};
use tally_mvcc::{DeleteReply, Op, PutReply, RangeRequest, SweepLimits, SweepProgress, TxnReply, TxnRequest};
use tokio::time::{sleep, timeout};

use crate::api::range::{self, Begun, SMALL_LIMIT, Unread, Whole};
use crate::api::state::State;
use crate::error::ApiError;
use crate::wire::{
    self, CompactionMessage, DeleteRangeMessage, PutMessage, RangeMessage, TxnMessage, reads_are_serializable,
};

/// Between two pieces of a sweep that a client waits for.
const SWEEP_PAUSE: Duration = Duration::from_millis(5);

const OTHER_REPLY: ApiError = ApiError::Defect { what: "a command was answered with the reply to another" };

/// The whole answer to a range, however large.
pub(crate) async fn range(state: &State, message: RangeMessage) -> Result<Whole, ApiError> {
    let request = readable(state, message).await?;
    range::whole(state, &request).await
}

/// The answer to a range; of a large one only the beginning.
pub(crate) async fn begin_range(state: &State, message: RangeMessage) -> Result<Begun, ApiError> {
    let request = readable(state, message).await?;
    range::begin(state, &request).await
}

/// A range to be read in pieces.
pub(crate) async fn scan(state: &State, message: RangeMessage) -> Result<Unread, ApiError> {
    let request = readable(state, message).await?;
    range::scan(state, &request).await
}

/// What a range asks for, once it may be read from this member's state.
async fn readable(state: &State, message: RangeMessage) -> Result<RangeRequest, ApiError> {
    let serializable = message.serializable;
    let request = wire::range(message)?;
    if !serializable {
        state.refuse_if_learner()?;
        state.barrier().await?;
    }
    // Not before: the barrier may have brought this member past the alarm.
    state.refuse_if_corrupt()?;
    Ok(request)
}

pub(crate) async fn put(state: &State, message: PutMessage) -> Result<PutReply, ApiError> {
    let proposed = state.propose(&Command::Put(wire::put(message)?));
    match proposed.await? {
        (_, Reply::Put(reply)) => Ok(reply),
        _ => Err(OTHER_REPLY),
    }
}

pub(crate) async fn delete_range(state: &State, message: DeleteRangeMessage) -> Result<DeleteReply, ApiError> {
    let proposed = state.propose(&Command::DeleteRange(wire::delete_range(message)?));
    match proposed.await? {
        (_, Reply::DeleteRange(reply)) => Ok(reply),
        _ => Err(OTHER_REPLY),
    }
}

pub(crate) async fn txn(state: &State, message: TxnMessage) -> Result<TxnReply, ApiError> {
    let serializable = reads_are_serializable(&message);
    let request = wire::txn(message, state.txn_ops_max)?;
    if request.is_read_only() {
        return Box::pin(read_only_txn(state, request, serializable)).await;
    }
    let proposed = state.propose(&Command::Txn(request));
    match proposed.await? {
        (_, Reply::Txn(reply)) => Ok(reply),
        _ => Err(OTHER_REPLY),
    }
}

/// A transaction that cannot write is a read: it goes by the barrier, not through the log.
async fn read_only_txn(state: &State, request: TxnRequest, serializable: bool) -> Result<TxnReply, ApiError> {
    if !serializable {
        state.barrier().await?;
    }
    state.refuse_if_corrupt()?;
    let view = state.reads().kv().view();
    if is_small(&request) {
        return Ok(view.txn(&request)?);
    }
    range::blocking(state, move || Ok(view.txn(&request)?)).await
}

/// True if every range of the transaction is of one key, or ends after a few of the newest revision.
fn is_small(txn: &TxnRequest) -> bool {
    let small_op = |op: &Op| match op {
        Op::Range(range) => {
            range.range.is_single()
                || (range.revision <= 0 && range::is_plain(range) && (1..=SMALL_LIMIT).contains(&range.options.limit))
        }
        Op::Txn(txn) => is_small(txn),
        Op::Put(_) | Op::Delete(_) => true,
    };
    txn.compares.iter().all(|compare| compare.range.is_single()) && txn.success.iter().chain(&txn.failure).all(small_op)
}

/// Returns the revision of the store.
pub(crate) async fn compact(state: &State, message: CompactionMessage) -> Result<i64, ApiError> {
    let CompactionMessage { revision: requested, physical } = message;
    let (revision, _) = state.propose(&Command::Compact { revision: requested }).await?;
    if physical {
        match timeout(state.request_timeout, sweep(state)).await {
            Ok(Ok(())) => {}
            // The compaction is done and replicated; the sweeper's job frees the rest of the space.
            Ok(Err(ApiError::TooManyRequests)) | Err(_) => {
                tracing::warn!(revision = requested, "answered a physical compaction before its sweep had ended");
            }
            Ok(Err(error)) => return Err(error),
        }
    }
    Ok(revision)
}

/// Deletes what compactions dropped, beside the sweeper's job, which may rest at the moment.
async fn sweep(state: &State) -> Result<(), ApiError> {
    loop {
        let reader = state.reads().kv().clone();
        let piece = move || reader.sweep(SweepLimits::default()).map_err(ApiError::from);
        if range::blocking(state, piece).await? == SweepProgress::Done {
            return Ok(());
        }
        sleep(SWEEP_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tally_mvcc::{KeyRange, RangeOptions, RangeRequest};

    use super::*;

    fn range(end: &'static str, revision: i64, options: RangeOptions) -> TxnRequest {
        let range = KeyRange::new("a".into(), end.into()).unwrap();
        let op = Op::Range(RangeRequest { range, revision, options });
        let nested = TxnRequest { success: vec![op], ..TxnRequest::default() };
        TxnRequest { failure: vec![Op::Txn(nested)], ..TxnRequest::default() }
    }

    #[test]
    fn transactions_that_may_read_much_are_told_from_others() {
        let limit = |limit| RangeOptions { limit, ..RangeOptions::default() };
        assert!(is_small(&TxnRequest::default()));
        assert!(is_small(&range("", 0, limit(0))));
        assert!(is_small(&range("b", 0, limit(SMALL_LIMIT))));
        assert!(!is_small(&range("b", 0, limit(SMALL_LIMIT + 1))));
        assert!(!is_small(&range("b", 0, limit(0))));
        assert!(!is_small(&range("b", 5, limit(1))));
        assert!(!is_small(&range("b", 0, RangeOptions { min_mod_revision: 1, ..limit(1) })));
    }
}
