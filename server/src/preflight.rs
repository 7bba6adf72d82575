//! What a write must pass before it is proposed: the apply gap, the size, the quota. These look at this member alone, so
//! they stand in front of the log; what replicas must agree on stands behind it, in the gate of `tally-apply`.

use std::sync::atomic::{AtomicBool, Ordering};

use tally_apply::Command;
use tally_mvcc::{Compare, CompareTarget, DeleteRequest, KeyRange, Op, PutRequest, RangeRequest, TxnRequest};

use crate::error::ApiError;

/// Committed entries that may wait to be applied before new work is refused.
pub(crate) const APPLY_GAP_MAX: u64 = 5_000;
/// What a message may be larger than `max-request-bytes` before etcd's gRPC layer refuses it in other words.
pub(crate) const MESSAGE_OVERHEAD_BYTES: usize = 512 * 1024;
/// What etcd wraps around a request before it looks at its size: tag and length of a header with a request id.
const ENVELOPE_BYTES: usize = 13;
/// What etcd reckons for a key-value pair beside its key and value.
const KV_OVERHEAD_BYTES: u64 = 256;
/// What etcd reckons for a lease.
const LEASE_OVERHEAD_BYTES: u64 = 64;

/// Refuses new work while the state machine is too far behind the log.
pub(crate) fn check_gap(apply_gap: u64) -> Result<(), ApiError> {
    if apply_gap > APPLY_GAP_MAX { Err(ApiError::TooManyRequests) } else { Ok(()) }
}

/// Refuses a request that is larger than `request_bytes_max`, measured as etcd measures it.
pub(crate) fn check_size(command: &Command, request_bytes_max: usize) -> Result<(), ApiError> {
    let bytes = match command {
        Command::Put(request) => put_bytes(request),
        Command::DeleteRange(request) => delete_bytes(request),
        Command::Txn(request) => txn_bytes(request),
        Command::Compact { .. }
        | Command::Alarm(_)
        | Command::SetFeatureLevel { .. }
        | Command::SetMember(_)
        | Command::RemoveMember { .. }
        | Command::LeaseGrant { .. }
        | Command::LeaseRevoke { .. }
        | Command::LeaseCheckpoint { .. }
        | Command::LeaseExpire { .. } => 0,
    };
    let limit = request_bytes_max.saturating_add(MESSAGE_OVERHEAD_BYTES);
    if bytes > limit {
        return Err(ApiError::MessageTooLarge { bytes, limit });
    }
    if field(bytes) + ENVELOPE_BYTES > request_bytes_max { Err(ApiError::RequestTooLarge) } else { Ok(()) }
}

/// The longest body that can hold a message of `request_bytes_max`: base64 makes 4 bytes of 3, JSON needs some more.
pub(crate) fn body_bytes_max(request_bytes_max: usize) -> usize {
    request_bytes_max.saturating_add(request_bytes_max / 2).saturating_add(MESSAGE_OVERHEAD_BYTES)
}

/// How much this member's store may hold.
#[derive(Debug)]
pub(crate) struct Quota {
    limit_bytes: Option<u64>,
    raising: AtomicBool,
}

impl Quota {
    /// A quota of so many bytes; `None` is off.
    pub(crate) fn new(limit_bytes: Option<u64>) -> Self {
        Self { limit_bytes, raising: AtomicBool::new(false) }
    }

    /// The limit as status and etcd's flag tell it: negative is off.
    pub(crate) fn reported(&self) -> i64 {
        self.limit_bytes.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX))
    }

    /// True if the command adds data for which there is no room beside the `occupied_bytes` that the store has. That
    /// figure may be a second old: what is written within it may go over the quota.
    pub(crate) fn refuses(&self, command: &Command, occupied_bytes: u64) -> bool {
        let Some(limit) = self.limit_bytes else { return false };
        let added = match command {
            Command::Put(request) => put_cost(request),
            Command::Txn(request) => txn_cost(request),
            Command::LeaseGrant { .. } => LEASE_OVERHEAD_BYTES,
            Command::DeleteRange(_)
            | Command::Compact { .. }
            | Command::Alarm(_)
            | Command::SetFeatureLevel { .. }
            | Command::SetMember(_)
            | Command::RemoveMember { .. }
            | Command::LeaseRevoke { .. }
            | Command::LeaseCheckpoint { .. }
            | Command::LeaseExpire { .. } => 0,
        };
        added > 0 && occupied_bytes.saturating_add(added) >= limit
    }

    /// Lets one caller at a time raise the alarm; whoever gets the guard does it.
    pub(crate) fn begin_raising(&self) -> Option<Raising<'_>> {
        (!self.raising.swap(true, Ordering::AcqRel)).then_some(Raising(self))
    }
}

/// Held by whoever raises the alarm.
pub(crate) struct Raising<'a>(&'a Quota);

impl Drop for Raising<'_> {
    fn drop(&mut self) {
        self.0.raising.store(false, Ordering::Release);
    }
}

fn put_cost(put: &PutRequest) -> u64 {
    KV_OVERHEAD_BYTES + put.key.len() as u64 + put.value.len() as u64
}

/// The more expensive branch, as etcd reckons.
fn txn_cost(txn: &TxnRequest) -> u64 {
    let branch = |ops: &[Op]| {
        let cost = |op: &Op| match op {
            Op::Put(put) => put_cost(put),
            Op::Txn(txn) => txn_cost(txn),
            Op::Range(_) | Op::Delete(_) => 0,
        };
        ops.iter().map(cost).sum::<u64>()
    };
    branch(&txn.success).max(branch(&txn.failure))
}

// Sizes of etcd's protobuf messages, for which the limit is defined.

fn varint(number: u64) -> usize {
    (70 - (number | 1).leading_zeros() as usize) / 7
}

/// A length-delimited field with a one-byte tag.
fn field(bytes: usize) -> usize {
    1 + varint(bytes as u64) + bytes
}

fn bytes_field(bytes: &[u8]) -> usize {
    if bytes.is_empty() { 0 } else { field(bytes.len()) }
}

fn number_field(number: i64) -> usize {
    if number == 0 { 0 } else { 1 + varint(number as u64) }
}

fn flags(flags: &[bool]) -> usize {
    flags.iter().filter(|flag| **flag).count() * 2
}

fn range_fields(range: &KeyRange) -> usize {
    bytes_field(range.key()) + bytes_field(range.range_end())
}

fn put_bytes(put: &PutRequest) -> usize {
    bytes_field(&put.key)
        + bytes_field(&put.value)
        + number_field(put.lease)
        + flags(&[put.prev_kv, put.ignore_value, put.ignore_lease])
}

fn delete_bytes(delete: &DeleteRequest) -> usize {
    range_fields(&delete.range) + flags(&[delete.prev_kv])
}

fn range_bytes(range: &RangeRequest) -> usize {
    let options = &range.options;
    let numbers = [
        range.revision,
        options.limit,
        options.sort_order as i64,
        options.sort_target as i64,
        options.min_mod_revision,
        options.max_mod_revision,
        options.min_create_revision,
        options.max_create_revision,
    ];
    range_fields(&range.range)
        + numbers.into_iter().map(number_field).sum::<usize>()
        + flags(&[options.keys_only, options.count_only])
}

fn compare_bytes(compare: &Compare) -> usize {
    // A oneof is written although it is zero.
    let (target, figure) = match &compare.target {
        CompareTarget::Version(number) => (0, 1 + varint(*number as u64)),
        CompareTarget::Create(number) => (1, 1 + varint(*number as u64)),
        CompareTarget::Mod(number) => (2, 1 + varint(*number as u64)),
        CompareTarget::Value(value) => (3, field(value.len())),
        CompareTarget::Lease(number) => (4, 1 + varint(*number as u64)),
    };
    // The range end has a two-byte tag here.
    let range_end = bytes_field(compare.range.range_end());
    number_field(compare.result as i64)
        + number_field(target)
        + figure
        + bytes_field(compare.range.key())
        + range_end
        + usize::from(range_end > 0)
}

fn txn_bytes(txn: &TxnRequest) -> usize {
    let op = |op: &Op| {
        let request = match op {
            Op::Range(range) => range_bytes(range),
            Op::Put(put) => put_bytes(put),
            Op::Delete(delete) => delete_bytes(delete),
            Op::Txn(txn) => txn_bytes(txn),
        };
        field(field(request))
    };
    let compares = txn.compares.iter().map(|compare| field(compare_bytes(compare)));
    compares.chain(txn.success.iter().chain(&txn.failure).map(op)).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const REQUEST_BYTES_MAX: usize = 1_572_864;

    fn put(value_bytes: usize) -> Command {
        Command::Put(PutRequest::new("big", vec![b'x'; value_bytes]))
    }

    /// The borders are those found by trying with etcd 3.5.1.
    #[test]
    fn sizes_are_measured_as_etcd_measures_them() {
        assert!(check_size(&put(1_572_838), REQUEST_BYTES_MAX).is_ok());
        assert!(matches!(check_size(&put(1_572_839), REQUEST_BYTES_MAX), Err(ApiError::RequestTooLarge)));
        assert!(matches!(check_size(&put(1_572_865), REQUEST_BYTES_MAX), Err(ApiError::RequestTooLarge)));
        let error = check_size(&put(2_097_153), REQUEST_BYTES_MAX).unwrap_err();
        assert_eq!(error.to_string(), "grpc: received message larger than max (2097163 vs. 2097152)");
    }

    #[test]
    fn bodies_have_room_for_the_largest_request() {
        let longest = (REQUEST_BYTES_MAX + MESSAGE_OVERHEAD_BYTES / 4).div_ceil(3) * 4 + 100;
        assert!(body_bytes_max(REQUEST_BYTES_MAX) > longest);
        assert_eq!(body_bytes_max(usize::MAX), usize::MAX);
    }

    #[test]
    fn varints_have_their_lengths() {
        for (number, length) in [(0, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3), (u64::MAX, 10)] {
            assert_eq!(varint(number), length, "{number}");
        }
    }

    #[test]
    fn the_quota_lets_deletes_through_and_counts_the_dearer_branch() {
        let quota = Quota::new(Some(10_000));
        let refuses = |command: &Command| quota.refuses(command, 9_000);
        assert!(!refuses(&put(100)));
        assert!(refuses(&put(900)));
        assert!(!refuses(&Command::DeleteRange(DeleteRequest { range: KeyRange::all(), prev_kv: false })));
        let op = |bytes| Op::Put(PutRequest::new("k", vec![0; bytes]));
        let txn = |success, failure| Command::Txn(TxnRequest { compares: vec![], success, failure });
        assert!(refuses(&txn(vec![], vec![op(800)])));
        assert!(!refuses(&txn(vec![op(200)], vec![op(400)])));
        assert!(refuses(&txn(vec![op(200), op(400)], vec![])));
        assert!(!Quota::new(None).refuses(&put(900), u64::MAX));
        assert_eq!((Quota::new(None).reported(), Quota::new(Some(7)).reported()), (-1, 7));
    }

    #[test]
    fn one_caller_raises_the_alarm() {
        let quota = Quota::new(None);
        let raising = quota.begin_raising();
        assert!(raising.is_some() && quota.begin_raising().is_none());
        drop(raising);
        assert!(quota.begin_raising().is_some());
    }

    #[test]
    fn the_gap_is_bounded() {
        assert!(check_gap(APPLY_GAP_MAX).is_ok());
        assert!(matches!(check_gap(APPLY_GAP_MAX + 1), Err(ApiError::TooManyRequests)));
    }
}
