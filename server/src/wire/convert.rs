//! From what a request says to what it asks for: the checks that etcd makes before anything is proposed, in etcd's order, so
//! that of several mistakes the same one is named.

use bytes::Bytes;
use tally_mvcc::{
    Compare, CompareResult, CompareTarget, DeleteRequest, Invalid, KeyRange, Op, PutRequest, RangeOptions,
    RangeRequest, SortOrder, SortTarget, TxnRequest,
};

use crate::error::ApiError;
use crate::wire::request::{
    CompareMessage, DeleteRangeMessage, Figure, OpMessage, PutMessage, RangeMessage, TxnMessage,
};

fn key_range(key: Bytes, range_end: Bytes) -> Result<KeyRange, ApiError> {
    KeyRange::new(key, range_end).map_err(|_| ApiError::EmptyKey)
}

fn refusal(invalid: Invalid) -> ApiError {
    match invalid {
        Invalid::EmptyKey => ApiError::EmptyKey,
        Invalid::ValueProvided => ApiError::ValueProvided,
        Invalid::LeaseProvided => ApiError::LeaseProvided,
        Invalid::TooManyOps { .. } | Invalid::TooDeep => ApiError::TooManyOps,
        Invalid::DuplicateKey => ApiError::DuplicateKey,
    }
}

/// A range; `serializable` is not part of it but of how it is read.
pub(crate) fn range(message: RangeMessage) -> Result<RangeRequest, ApiError> {
    let range = key_range(message.key, message.range_end)?;
    let sort_order = match message.sort_order {
        0 => SortOrder::None,
        1 => SortOrder::Ascend,
        2 => SortOrder::Descend,
        _ => return Err(ApiError::InvalidSortOption),
    };
    let sort_target = match message.sort_target {
        0 => SortTarget::Key,
        1 => SortTarget::Version,
        2 => SortTarget::Create,
        3 => SortTarget::Mod,
        4 => SortTarget::Value,
        _ => return Err(ApiError::InvalidSortOption),
    };
    let options = RangeOptions {
        limit: message.limit,
        sort_order,
        sort_target,
        keys_only: message.keys_only,
        count_only: message.count_only,
        min_mod_revision: message.min_mod_revision,
        max_mod_revision: message.max_mod_revision,
        min_create_revision: message.min_create_revision,
        max_create_revision: message.max_create_revision,
    };
    Ok(RangeRequest { range, revision: message.revision, options })
}

pub(crate) fn put(message: PutMessage) -> Result<PutRequest, ApiError> {
    let PutMessage { key, value, lease, prev_kv, ignore_value, ignore_lease } = message;
    let put = PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease };
    put.validate().map_err(refusal)?;
    Ok(put)
}

pub(crate) fn delete_range(message: DeleteRangeMessage) -> Result<DeleteRequest, ApiError> {
    Ok(DeleteRequest { range: key_range(message.key, message.range_end)?, prev_kv: message.prev_kv })
}

/// A transaction with at most `ops_max` compares or operations at its outermost level; nested ones share what it leaves.
pub(crate) fn txn(message: TxnMessage, ops_max: usize) -> Result<TxnRequest, ApiError> {
    let txn = nested_txn(message, ops_max)?;
    txn.check_overlap().map_err(refusal)?;
    Ok(txn)
}

fn nested_txn(message: TxnMessage, ops_max: usize) -> Result<TxnRequest, ApiError> {
    let used = message.compare.len().max(message.success.len()).max(message.failure.len());
    let left = ops_max.checked_sub(used).ok_or(ApiError::TooManyOps)?;
    let compares = message.compare.into_iter().map(compare).collect::<Result<_, _>>()?;
    let ops =
        |messages: Vec<OpMessage>| messages.into_iter().map(|message| op(message, left)).collect::<Result<_, _>>();
    Ok(TxnRequest { compares, success: ops(message.success)?, failure: ops(message.failure)? })
}

fn op(message: OpMessage, ops_max: usize) -> Result<Op, ApiError> {
    Ok(match message {
        OpMessage::Empty => return Err(ApiError::KeyNotFound),
        OpMessage::Range(message) => Op::Range(range(message)?),
        OpMessage::Put(message) => Op::Put(put(message)?),
        OpMessage::DeleteRange(message) => Op::Delete(delete_range(message)?),
        OpMessage::Txn(message) => Op::Txn(nested_txn(message, ops_max)?),
    })
}

fn compare(message: CompareMessage) -> Result<Compare, ApiError> {
    let range = key_range(message.key, message.range_end)?;
    let result = match message.result {
        0 => Some(CompareResult::Equal),
        1 => Some(CompareResult::Greater),
        2 => Some(CompareResult::Less),
        3 => Some(CompareResult::NotEqual),
        _ => None,
    };
    // A figure of another kind than the target counts as not given, and what is not given is zero.
    let target = match (message.target, message.figure) {
        (0, Figure::Version(number)) => Some(CompareTarget::Version(number)),
        (0, _) => Some(CompareTarget::Version(0)),
        (1, Figure::Create(number)) => Some(CompareTarget::Create(number)),
        (1, _) => Some(CompareTarget::Create(0)),
        (2, Figure::Mod(number)) => Some(CompareTarget::Mod(number)),
        (2, _) => Some(CompareTarget::Mod(0)),
        (3, Figure::Value(value)) => Some(CompareTarget::Value(value)),
        (3, _) => Some(CompareTarget::Value(Bytes::new())),
        (4, Figure::Lease(number)) => Some(CompareTarget::Lease(number)),
        (4, _) => Some(CompareTarget::Lease(0)),
        _ => None,
    };
    let (result, target) = match (result, target) {
        (Some(result), Some(target)) => (result, target),
        // etcd: with an unknown result everything holds, except that a value compare needs the key to be there.
        (None, Some(CompareTarget::Value(_))) => (CompareResult::NotEqual, CompareTarget::Version(0)),
        (None, _) => ALWAYS,
        // etcd: an unknown target compares equal, whatever is stored.
        (Some(CompareResult::Equal), None) => ALWAYS,
        (Some(CompareResult::Greater | CompareResult::Less | CompareResult::NotEqual), None) => NEVER,
    };
    Ok(Compare { range, result, target })
}

/// No key ever has a version of -1, present or not.
const NO_VERSION: CompareTarget = CompareTarget::Version(-1);
const ALWAYS: (CompareResult, CompareTarget) = (CompareResult::NotEqual, NO_VERSION);
const NEVER: (CompareResult, CompareTarget) = (CompareResult::Equal, NO_VERSION);

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
