//! The key-value service.

use std::time::Duration;

use tally_apply::{Command, Reply};
use tally_mvcc::{
    DeleteReply, Op, OpReply, PutReply, RangeRequest, RangeResult, SweepLimits, SweepProgress, TxnReply, TxnRequest,
};
use tokio::time::{sleep, timeout};

use crate::api::range::{self, ANSWER_BYTES_MAX, Begun, SMALL_LIMIT, Unread, Whole};
use crate::api::state::State;
use crate::error::ApiError;
use crate::grpc::ProtocolError;
use crate::wire::{
    self, CompactionMessage, DeleteRangeMessage, PutMessage, RangeMessage, TxnMessage, reads_are_serializable,
};

/// Between two pieces of a sweep that a client waits for.
const SWEEP_PAUSE: Duration = Duration::from_millis(5);

/// What a transaction that is read in place may cost, where a key and a comparison cost one.
const SMALL_COST: i64 = 1_024;

const OTHER_REPLY: ApiError = ApiError::Defect { what: "a command was answered with the reply to another" };

/// What was answered to a write in place of its reply.
pub(crate) fn no_reply(found: &Reply) -> ApiError {
    match found {
        Reply::AnswerTooLarge { limit, wrote: true } => ApiError::AnswerLeftOut { limit: *limit },
        Reply::AnswerTooLarge { limit, wrote: false } => {
            ProtocolError::AnswerTooLarge { bytes: limit.saturating_add(1), limit: *limit }.into()
        }
        _ => OTHER_REPLY,
    }
}

/// The whole answer to a range, as long as it may be sent.
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
        (_, other) => Err(no_reply(&other)),
    }
}

pub(crate) async fn delete_range(state: &State, message: DeleteRangeMessage) -> Result<DeleteReply, ApiError> {
    let proposed = state.propose(&Command::DeleteRange(wire::delete_range(message)?));
    match proposed.await? {
        (_, Reply::DeleteRange(reply)) => Ok(reply),
        (_, other) => Err(no_reply(&other)),
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
        (_, other) => Err(no_reply(&other)),
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
    let work = move || {
        let branches = |txn: &TxnRequest| view.txn(txn).map_err(ApiError::from);
        let one = |range: &RangeRequest, left: usize| view.txn_range_within(range, left).map_err(ApiError::from);
        read(&request, ANSWER_BYTES_MAX, branches, one)
    };
    range::blocking(state, work).await
}

/// True if the whole transaction, nested ones included, costs little whichever branches it takes.
fn is_small(txn: &TxnRequest) -> bool {
    left_after(txn, SMALL_COST).is_some()
}

/// What is left of a budget after both branches. None if it is not enough, or if a range reads more than its limit: of a
/// revision that is not the newest, or filtered, or sorted.
fn left_after(txn: &TxnRequest, budget: i64) -> Option<i64> {
    let spend = |left: i64, cost: i64| (left >= cost).then(|| left - cost);
    let mut left = spend(budget, i64::try_from(txn.compares.len()).ok()?)?;
    if !txn.compares.iter().all(|compare| compare.range.is_single()) {
        return None;
    }
    for op in txn.success.iter().chain(&txn.failure) {
        left = spend(left, 1)?;
        left = match op {
            Op::Range(range) if range.range.is_single() => left,
            Op::Range(range) => {
                let limit = range.options.limit;
                let ends = range.revision <= 0 && range::is_plain(range) && (1..=SMALL_LIMIT).contains(&limit);
                spend(left, if ends { limit } else { return None })?
            }
            Op::Txn(txn) => left_after(txn, left)?,
            Op::Put(_) | Op::Delete(_) => left,
        };
    }
    Some(left)
}

/// Reads a transaction range by range, until the answers together are too large. `branches` runs one without ranges;
/// `range` reads one range, unless that takes more than so many bytes of records.
fn read(
    txn: &TxnRequest,
    bytes_max: usize,
    branches: impl FnOnce(&TxnRequest) -> Result<TxnReply, ApiError>,
    range: impl FnMut(&RangeRequest, usize) -> Result<Option<RangeResult>, ApiError>,
) -> Result<TxnReply, ApiError> {
    let branches = branches(&without_ranges(txn))?;
    Reading { range, bytes: 0, bytes_max }.read(txn, branches)
}

/// The same transaction with nothing in place of ranges: its reply says which branches are taken.
fn without_ranges(txn: &TxnRequest) -> TxnRequest {
    let ops = |ops: &[Op]| {
        let op = |op: &Op| match op {
            Op::Txn(txn) => Op::Txn(without_ranges(txn)),
            Op::Range(_) | Op::Put(_) | Op::Delete(_) => Op::Txn(TxnRequest::default()),
        };
        ops.iter().map(op).collect()
    };
    TxnRequest { compares: txn.compares.clone(), success: ops(&txn.success), failure: ops(&txn.failure) }
}

/// A transaction that is being read.
struct Reading<R> {
    range: R,
    /// Of the records read so far.
    bytes: usize,
    bytes_max: usize,
}

impl<R: FnMut(&RangeRequest, usize) -> Result<Option<RangeResult>, ApiError>> Reading<R> {
    /// Reads the ranges of the branches that are taken.
    fn read(&mut self, txn: &TxnRequest, branches: TxnReply) -> Result<TxnReply, ApiError> {
        let TxnReply { succeeded, replies, revision } = branches;
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let read = |(op, reply): (&Op, OpReply)| match (op, reply) {
            (Op::Txn(txn), OpReply::Txn(branches)) => Ok(OpReply::Txn(self.read(txn, branches)?)),
            (Op::Range(range), _) => Ok(OpReply::Range(self.read_one(range)?)),
            (Op::Txn(_) | Op::Put(_) | Op::Delete(_), _) => Err(OTHER_REPLY),
        };
        let replies = ops.iter().zip(replies).map(read).collect::<Result<_, ApiError>>()?;
        Ok(TxnReply { succeeded, replies, revision })
    }

    fn read_one(&mut self, range: &RangeRequest) -> Result<RangeResult, ApiError> {
        let (limit, left) = (self.bytes_max, self.bytes_max.saturating_sub(self.bytes));
        let read = (self.range)(range, left)?;
        let result = read.ok_or(ProtocolError::AnswerTooLarge { bytes: limit.saturating_add(1), limit })?;
        self.bytes += range::record_bytes(&result.kvs);
        Ok(result)
    }
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
    use tally_mvcc::{Compare, CompareResult, CompareTarget, KeyRange, RangeOptions, Record};

    use super::*;
    use crate::error::Effect;

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

    #[test]
    fn many_small_ranges_are_not_small_together() {
        let limit = |limit| RangeOptions { limit, ..RangeOptions::default() };
        let nested = |count: usize, txn: TxnRequest| TxnRequest {
            success: (1..count).map(|_| Op::Txn(txn.clone())).collect(),
            failure: vec![Op::Txn(txn.clone())],
            ..TxnRequest::default()
        };
        // Each is a transaction in a transaction around a range, of which each costs one beside what is read.
        assert!(is_small(&nested(7, range("b", 0, limit(SMALL_LIMIT)))));
        assert!(!is_small(&nested(8, range("b", 0, limit(SMALL_LIMIT)))));
        assert!(is_small(&nested(341, range("", 0, limit(0)))));
        assert!(!is_small(&nested(342, range("", 0, limit(0)))));
        let compares = |count| TxnRequest { compares: vec![compare(); count], ..TxnRequest::default() };
        assert!(is_small(&compares(1_024)));
        assert!(!is_small(&compares(1_025)));
    }

    #[test]
    fn a_write_whose_answer_is_too_large_is_told_that_it_was_done() {
        let error = no_reply(&Reply::AnswerTooLarge { limit: 5, wrote: false });
        assert_eq!(error.effect(), Effect::None, "a transaction whose other branch would have written: {error}");
        let error = no_reply(&Reply::AnswerTooLarge { limit: 5, wrote: true });
        assert!(matches!(error, ApiError::AnswerLeftOut { limit: 5 }), "{error}");
        assert_eq!(error.effect(), Effect::Done);
        assert!(matches!(no_reply(&Reply::Done), ApiError::Defect { .. }));
    }

    fn compare() -> Compare {
        let range = KeyRange::new("a".into(), "".into()).unwrap();
        Compare { range, result: CompareResult::Equal, target: CompareTarget::Version(0) }
    }

    /// A transaction that takes its failure branch has a range there and one in a nested transaction.
    #[test]
    fn a_transaction_is_read_until_its_answers_are_too_large() {
        let range = |key: &'static str| Op::Range(RangeRequest::latest(KeyRange::new(key.into(), "".into()).unwrap()));
        let inner = TxnRequest { success: vec![range("inner")], failure: vec![range("not")], ..TxnRequest::default() };
        let txn = TxnRequest {
            compares: vec![compare()],
            success: vec![range("not")],
            failure: vec![range("first"), Op::Txn(inner), range("last")],
        };
        const RECORD: &[u8; 16] = b"\x0a\x01k\x10\x01\x18\x01\x20\x01\x2a\x05value";
        let store = std::cell::RefCell::new(Vec::new());
        fn reply(txn: &TxnRequest, read: &dyn Fn(&RangeRequest) -> RangeResult) -> TxnReply {
            let succeeded = txn.compares.is_empty();
            let ops = if succeeded { &txn.success } else { &txn.failure };
            let one = |op: &Op| match op {
                Op::Range(range) => OpReply::Range(read(range)),
                Op::Txn(txn) => OpReply::Txn(reply(txn, read)),
                Op::Put(_) | Op::Delete(_) => panic!("it only reads"),
            };
            TxnReply { succeeded, replies: ops.iter().map(one).collect(), revision: 7 }
        }
        let found = |range: &RangeRequest| {
            store.borrow_mut().push(range.range.start().to_vec());
            let record = Record::decode(RECORD[..].into()).unwrap();
            RangeResult { kvs: vec![record], count: 1, revision: 7, more: false }
        };
        let branches = |txn: &TxnRequest| Ok(reply(txn, &found));
        let one = |range: &RangeRequest, left: usize| {
            let result = found(range);
            Ok((RECORD.len() <= left).then_some(result))
        };
        let whole = read(&txn, 3 * RECORD.len(), branches, one).unwrap();
        assert_eq!(whole, reply(&txn, &found));
        assert_eq!(*store.borrow(), [&b"first"[..], b"inner", b"last", b"first", b"inner", b"last"]);
        store.borrow_mut().clear();
        let error = read(&txn, 20, branches, one).unwrap_err();
        assert!(matches!(error, ApiError::Grpc(ProtocolError::AnswerTooLarge { bytes: 21, limit: 20 })), "{error}");
        assert_eq!(*store.borrow(), [&b"first"[..], b"inner"], "what comes after is not read");
    }
}
