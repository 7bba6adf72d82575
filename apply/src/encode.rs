//! Writes the fields of each command; `decode` is its mirror, field by field.

use bytes::BytesMut;
use tally_mvcc::{
    Compare, CompareResult, CompareTarget, DeleteRequest, KeyRange, Op, PutRequest, RangeEnd, RangeOptions,
    RangeRequest, SortOrder, SortTarget, TxnRequest,
};

use crate::alarm::AlarmCommand;
use crate::codec::{write_bytes, write_integer, write_message, write_nonzero};
use crate::command::Command;
use crate::member::{Member, NO_DIRECTORY};

/// About how many bytes the encoding takes, to allocate once.
pub(crate) fn size_hint(command: &Command) -> usize {
    const ENVELOPE: usize = 40;
    match command {
        Command::Put(put) => ENVELOPE + put.key.len() + put.value.len(),
        Command::Txn(txn) => ENVELOPE + 96 * (txn.compares.len() + txn.success.len() + txn.failure.len()),
        Command::DeleteRange(_)
        | Command::Compact { .. }
        | Command::Alarm(_)
        | Command::SetFeatureLevel { .. }
        | Command::RemoveMember { .. }
        | Command::LeaseGrant { .. }
        | Command::LeaseRevoke { .. } => 2 * ENVELOPE,
        Command::LeaseCheckpoint { remaining, .. } => ENVELOPE + 20 * remaining.len(),
        Command::LeaseExpire { ids, .. } => ENVELOPE + 11 * ids.len(),
        Command::SetMember(member) => {
            2 * ENVELOPE + member.name.len() + member.client_urls.iter().map(|url| 2 + url.len()).sum::<usize>()
        }
    }
}

pub(crate) fn body(command: &Command, out: &mut BytesMut) {
    match command {
        Command::Put(request) => put(request, out),
        Command::DeleteRange(request) => delete(request, out),
        Command::Txn(request) => txn(request, out),
        Command::Compact { revision } => write_integer(out, 1, *revision),
        Command::Alarm(command) => alarm(command, out),
        Command::SetFeatureLevel { level } => write_integer(out, 1, i64::from(*level)),
        Command::SetMember(record) => member(record, out),
        Command::RemoveMember { id } => write_integer(out, 1, *id as i64),
        Command::LeaseGrant { id, ttl_s } => {
            write_integer(out, 1, *id);
            write_nonzero(out, 2, *ttl_s);
        }
        Command::LeaseRevoke { id } => write_integer(out, 1, *id),
        Command::LeaseCheckpoint { term, remaining } => checkpoint(*term, remaining, out),
        Command::LeaseExpire { term, ids } => {
            write_integer(out, 1, *term as i64);
            ids.iter().for_each(|id| write_integer(out, 2, *id));
        }
    }
}

/// Checkpoint of leases: 1 term, 2 lease (repeated), each 1 id, 2 remaining seconds. Expired leases: 1 term, 2 id (repeated).
/// A lease granted: 1 id, 2 seconds; revoked: 1 id.
fn checkpoint(term: u64, remaining: &[(i64, i64)], out: &mut BytesMut) {
    write_integer(out, 1, term as i64);
    for (id, remaining_s) in remaining {
        write_message(out, 2, |out| {
            write_integer(out, 1, *id);
            write_nonzero(out, 2, *remaining_s);
        });
    }
}

/// Put: 1 key, 2 value, 3 lease, 4 prev_kv, 5 ignore_value, 6 ignore_lease.
fn put(request: &PutRequest, out: &mut BytesMut) {
    write_bytes(out, 1, &request.key);
    write_bytes(out, 2, &request.value);
    write_nonzero(out, 3, request.lease);
    write_nonzero(out, 4, i64::from(request.prev_kv));
    write_nonzero(out, 5, i64::from(request.ignore_value));
    write_nonzero(out, 6, i64::from(request.ignore_lease));
}

/// Key range: 1 start, then for more than a single key either 2 end (exclusive) or 3 unbounded.
fn key_range(range: &KeyRange, out: &mut BytesMut) {
    write_bytes(out, 1, range.start());
    match range.end() {
        RangeEnd::Single => {}
        RangeEnd::Before(end) => write_bytes(out, 2, end),
        RangeEnd::Unbounded => write_integer(out, 3, 1),
    }
}

/// Delete: 1 range, 2 prev_kv.
fn delete(request: &DeleteRequest, out: &mut BytesMut) {
    write_message(out, 1, |out| key_range(&request.range, out));
    write_nonzero(out, 2, i64::from(request.prev_kv));
}

/// Range: 1 range, 2 revision, 3 limit, 4 order, 5 target, 6 keys_only, 7 count_only, 8 to 11 revision filters.
fn range(request: &RangeRequest, out: &mut BytesMut) {
    let RangeOptions {
        limit,
        sort_order,
        sort_target,
        keys_only,
        count_only,
        min_mod_revision,
        max_mod_revision,
        min_create_revision,
        max_create_revision,
    } = &request.options;
    write_message(out, 1, |out| key_range(&request.range, out));
    write_nonzero(out, 2, request.revision);
    write_nonzero(out, 3, *limit);
    let order = match sort_order {
        SortOrder::None => 0,
        SortOrder::Ascend => 1,
        SortOrder::Descend => 2,
    };
    write_nonzero(out, 4, order);
    let target = match sort_target {
        SortTarget::Key => 0,
        SortTarget::Version => 1,
        SortTarget::Create => 2,
        SortTarget::Mod => 3,
        SortTarget::Value => 4,
    };
    write_nonzero(out, 5, target);
    write_nonzero(out, 6, i64::from(*keys_only));
    write_nonzero(out, 7, i64::from(*count_only));
    write_nonzero(out, 8, *min_mod_revision);
    write_nonzero(out, 9, *max_mod_revision);
    write_nonzero(out, 10, *min_create_revision);
    write_nonzero(out, 11, *max_create_revision);
}

/// Transaction: 1 compare (repeated), 2 operation on success (repeated), 3 operation on failure (repeated).
fn txn(request: &TxnRequest, out: &mut BytesMut) {
    for item in &request.compares {
        write_message(out, 1, |out| compare(item, out));
    }
    for op in &request.success {
        write_message(out, 2, |out| operation(op, out));
    }
    for op in &request.failure {
        write_message(out, 3, |out| operation(op, out));
    }
}

/// Compare: 1 range, 2 result, then exactly one of 3 version, 4 create, 5 mod, 6 value, 7 lease.
fn compare(item: &Compare, out: &mut BytesMut) {
    write_message(out, 1, |out| key_range(&item.range, out));
    let result = match item.result {
        CompareResult::Equal => 0,
        CompareResult::Greater => 1,
        CompareResult::Less => 2,
        CompareResult::NotEqual => 3,
    };
    write_nonzero(out, 2, result);
    match &item.target {
        CompareTarget::Version(version) => write_integer(out, 3, *version),
        CompareTarget::Create(revision) => write_integer(out, 4, *revision),
        CompareTarget::Mod(revision) => write_integer(out, 5, *revision),
        CompareTarget::Value(value) => write_bytes(out, 6, value),
        CompareTarget::Lease(lease) => write_integer(out, 7, *lease),
    }
}

/// Operation: exactly one of 1 range, 2 put, 3 delete, 4 transaction.
fn operation(op: &Op, out: &mut BytesMut) {
    match op {
        Op::Range(request) => write_message(out, 1, |out| range(request, out)),
        Op::Put(request) => write_message(out, 2, |out| put(request, out)),
        Op::Delete(request) => write_message(out, 3, |out| delete(request, out)),
        Op::Txn(request) => write_message(out, 4, |out| txn(request, out)),
    }
}

/// Alarm: 1 action, 2 member id, 3 kind.
fn alarm(command: &AlarmCommand, out: &mut BytesMut) {
    write_integer(out, 1, command.action.number());
    write_nonzero(out, 2, command.member_id as i64);
    write_integer(out, 3, i64::from(command.kind.number()));
}

/// Member: 1 id, 2 name, 4 client URL (repeated), 5 directory. Number 3 is retired: it was the peer URL (repeated), which is
/// read and dropped. Number 6 stands for a tombstone in the member bucket and is in no command.
pub(crate) fn member(record: &Member, out: &mut BytesMut) {
    write_integer(out, 1, record.id as i64);
    write_bytes(out, 2, record.name.as_bytes());
    for url in &record.client_urls {
        write_bytes(out, 4, url.as_bytes());
    }
    if record.directory != NO_DIRECTORY {
        write_bytes(out, 5, &record.directory);
    }
}

/// What a removed member leaves in the member bucket: 6 id, and nothing else.
pub(crate) fn tombstone(id: u64, out: &mut BytesMut) {
    write_integer(out, 6, id as i64);
}
