//! `tally wal dump`: every record of a log, for people or as JSON lines.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Value, json};
use tally_apply::{AlarmAction, Command};
use tally_mvcc::{KeyRange, Op, RangeEnd, TxnRequest};
use tally_raftnode::{EntryView, describe_entry};
use tally_wal::dump::{RecordType, RecordView, ScanOptions, ScannedRecord, scan};
use tally_wal::{LogIndex, LogPosition, OpenError, RealFs, ScanError, Wal};
use thiserror::Error;

/// Longest part of a value that is shown to people.
const VALUE_SHOWN_BYTES_MAX: usize = 64;

/// What to show.
#[derive(Debug, Default)]
pub(super) struct Filter {
    pub(super) from: Option<u64>,
    pub(super) to: Option<u64>,
    /// Names of record types; all if empty.
    pub(super) types: Vec<String>,
    /// Only commands that can write or delete a key containing this.
    pub(super) grep: Option<String>,
}

/// Why the dump ends early.
#[derive(Debug, Error)]
pub(super) enum DumpError {
    #[error("cannot look for a log in {}", path.display())]
    Open { path: PathBuf, source: OpenError },
    #[error("there is no log in {}", .0.display())]
    NoLog(PathBuf),
    #[error("cannot read the log")]
    Scan(#[from] ScanError),
    #[error("cannot print")]
    Print(#[from] io::Error),
}

/// Prints the records in the order in which they were written.
pub(super) fn dump(dir: &Path, filter: &Filter, as_json: bool, mut out: impl Write) -> Result<(), DumpError> {
    let exists = Wal::exists(&RealFs, dir).map_err(|source| DumpError::Open { path: dir.to_owned(), source })?;
    if !exists {
        return Err(DumpError::NoLog(dir.to_owned()));
    }
    let all = [RecordType::Crc, RecordType::Metadata, RecordType::State, RecordType::Snapshot, RecordType::Entry];
    let types = all.into_iter().filter(|kind| filter.types.iter().any(|name| name == kind.name())).collect();
    let options = ScanOptions { from: filter.from.map(LogIndex::new), to: filter.to.map(LogIndex::new), types };
    let mut records = scan(dir, options)?;
    for record in records.by_ref() {
        let record = record?;
        if filter.grep.as_ref().is_some_and(|text| !touches(&record.view, text.as_bytes())) {
            continue;
        }
        let ScannedRecord { file, offset, record, view } = &record;
        if as_json {
            let mut line = describe(view);
            line["file"] = json!(&**file);
            line["offset"] = json!(offset);
            line["record"] = json!(record);
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, "{file}:{offset} {}", line(view))?;
        }
    }
    if let Some(torn) = records.torn() {
        match as_json {
            true => writeln!(out, "{}", json!({"type": "torn_tail", "text": torn.to_string()}))?,
            false => writeln!(out, "torn tail (an unfinished write, harmless): {torn}")?,
        }
    }
    Ok(out.flush()?)
}

/// What an entry carries.
enum Content<'a> {
    Command {
        command: Command,
        /// The term that it was meant for, if it says so: in an entry of another term it does nothing.
        term: Option<u64>,
    },
    Other(EntryView<'a>),
    Undecodable(String),
}

fn content(payload: &Bytes) -> Content<'_> {
    let (encoded, term) = match describe_entry(payload) {
        EntryView::Command(encoded) => (encoded, None),
        EntryView::Proposal { term, command } => (command, Some(term)),
        other => return Content::Other(other),
    };
    match Command::decode(&payload.slice_ref(encoded)) {
        Ok(command) => Content::Command { command, term },
        Err(error) => Content::Undecodable(error.to_string()),
    }
}

fn touches(view: &RecordView, text: &[u8]) -> bool {
    let RecordView::Entry { payload, .. } = view else { return false };
    let Content::Command { command, .. } = content(payload) else { return false };
    command_touches(&command, text)
}

/// Whether a command can write or delete a key that contains the text. Whether it did depends on the state.
fn command_touches(command: &Command, text: &[u8]) -> bool {
    match command {
        Command::Put(put) => contains(&put.key, text),
        Command::DeleteRange(delete) => range_touches(&delete.range, text),
        Command::Txn(txn) => txn_touches(txn, text),
        // They delete the keys that are attached, and do not name them.
        Command::LeaseRevoke { .. } | Command::LeaseExpire { .. } => true,
        Command::Compact { .. }
        | Command::Alarm(_)
        | Command::SetFeatureLevel { .. }
        | Command::SetMember(_)
        | Command::RemoveMember { .. }
        | Command::LeaseGrant { .. }
        | Command::LeaseCheckpoint { .. } => false,
    }
}

fn contains(key: &[u8], text: &[u8]) -> bool {
    text.is_empty() || key.windows(text.len()).any(|window| window == text)
}

/// Between two keys there is room for one with any text in it, as between `b` and `c` for `bfoo`; unless the end is the
/// start and zeros, which leaves only the start and, with more than one zero, the start followed by fewer of them.
fn range_touches(range: &KeyRange, text: &[u8]) -> bool {
    let start = range.start();
    match range.end() {
        RangeEnd::Single => contains(start, text),
        RangeEnd::Unbounded => true,
        RangeEnd::Before(end) => match end.strip_prefix(start) {
            Some([zeros @ .., 0]) if zeros.iter().all(|byte| *byte == 0) => contains(&end[..end.len() - 1], text),
            Some(_) | None => start < end,
        },
    }
}

fn txn_touches(txn: &TxnRequest, text: &[u8]) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        Op::Put(put) => contains(&put.key, text),
        Op::Delete(delete) => range_touches(&delete.range, text),
        Op::Range(_) => false,
        Op::Txn(txn) => txn_touches(txn, text),
    })
}

/// One record for people.
fn line(view: &RecordView) -> String {
    match view {
        RecordView::Crc(head) => format!("crc      segment {} from index {}", head.sequence, head.first_index),
        RecordView::Metadata(metadata) => format!("metadata format {}, {metadata}", metadata.format),
        RecordView::State(state) => format!("state    {}", committed(state.committed)),
        RecordView::Truncate { after: Some(index) } => format!("state    entries after index {index} dropped"),
        RecordView::Truncate { after: None } => "state    all entries dropped".into(),
        RecordView::Snapshot(position) => format!("snapshot entries up to {position} dropped"),
        RecordView::Entry { position, payload } => {
            format!("entry    {position} {}", entry_line(position.term, payload))
        }
    }
}

fn committed(position: Option<LogPosition>) -> String {
    position.map_or("vote only".into(), |position| format!("vote, committed up to {position}"))
}

fn entry_line(entry_term: u64, payload: &Bytes) -> String {
    match content(payload) {
        Content::Command { command, term: Some(term) } if term != entry_term => {
            format!("without effect, as it was meant for term {term}: {}", command_line(&command))
        }
        Content::Command { command, .. } => command_line(&command),
        Content::Other(EntryView::Blank) => "blank".into(),
        Content::Other(EntryView::Membership(view)) => {
            let member = |(id, urls): &(u64, Vec<String>)| format!("{id:x} [{}]", urls.join(","));
            let members: Vec<String> = view.members.iter().map(member).collect();
            format!("membership voters {:x?} members {}", view.voters, members.join(" "))
        }
        Content::Other(EntryView::Unreadable(error)) => format!("unreadable: {error}"),
        Content::Other(EntryView::Command(_) | EntryView::Proposal { .. }) => "command".into(),
        Content::Undecodable(error) => format!("undecodable command: {error}"),
    }
}

fn command_line(command: &Command) -> String {
    match command {
        Command::Put(put) => {
            let shown = &put.value[..put.value.len().min(VALUE_SHOWN_BYTES_MAX)];
            let more = if shown.len() < put.value.len() { "…" } else { "" };
            let (key, value, bytes) = (put.key.escape_ascii(), shown.escape_ascii(), put.value.len());
            format!("put \"{key}\" = \"{value}{more}\" ({bytes} bytes)")
        }
        Command::DeleteRange(delete) => format!("delete {}", range_text(&delete.range)),
        Command::Txn(txn) => txn_line(txn),
        Command::Compact { revision } => format!("compact to revision {revision}"),
        Command::Alarm(alarm) => {
            let verb = match alarm.action {
                AlarmAction::Activate => "raise",
                AlarmAction::Deactivate => "clear",
            };
            format!("{verb} alarm {} of member {:x}", alarm.kind.name(), alarm.member_id)
        }
        Command::SetFeatureLevel { level } => format!("feature level {level}"),
        Command::SetMember(member) => {
            let (name, clients) = (&member.name, member.client_urls.join(","));
            let directory = uuid::Uuid::from_bytes(member.directory);
            format!("member {:x} name {name:?} clients [{clients}] directory {directory}", member.id)
        }
        Command::RemoveMember { id } => format!("member {id:x} removed for good"),
        Command::LeaseGrant { id, ttl_s } => format!("grant lease {id:x} for {ttl_s} s"),
        Command::LeaseRevoke { id } => format!("revoke lease {id:x}"),
        Command::LeaseCheckpoint { term, remaining } => {
            let items: Vec<String> = remaining.iter().map(|(id, seconds)| format!("{id:x} {seconds} s")).collect();
            format!("in term {term}, what is left of leases: {}", items.join(", "))
        }
        Command::LeaseExpire { term, ids } => {
            let ids: Vec<String> = ids.iter().map(|id| format!("{id:x}")).collect();
            format!("in term {term}, expire leases {}", ids.join(", "))
        }
    }
}

fn txn_line(txn: &TxnRequest) -> String {
    let compares: Vec<String> = txn
        .compares
        .iter()
        .map(|compare| format!("{} {:?} {:?}", range_text(&compare.range), compare.target, compare.result))
        .collect();
    let ops = |ops: &[Op]| ops.iter().map(op_line).collect::<Vec<_>>().join("; ");
    format!("txn if [{}] then [{}] else [{}]", compares.join("; "), ops(&txn.success), ops(&txn.failure))
}

fn op_line(op: &Op) -> String {
    match op {
        Op::Range(range) => format!("range {}", range_text(&range.range)),
        Op::Put(put) => command_line(&Command::Put(put.clone())),
        Op::Delete(delete) => format!("delete {}", range_text(&delete.range)),
        Op::Txn(txn) => txn_line(txn),
    }
}

fn range_text(range: &KeyRange) -> String {
    let start = range.start().escape_ascii();
    if range.is_single() {
        format!("\"{start}\"")
    } else {
        format!("\"{start}\"..\"{}\"", range.range_end().escape_ascii())
    }
}

/// One record as JSON; bytes as base64, ids in hexadecimal.
fn describe(view: &RecordView) -> Value {
    let name = view.record_type().name();
    match view {
        RecordView::Crc(head) => json!({
            "type": name, "sequence": head.sequence, "first_index": head.first_index, "allocated": head.allocated,
        }),
        RecordView::Metadata(metadata) => json!({
            "type": name,
            "format": metadata.format,
            "cluster_id": format!("{:x}", metadata.cluster_id),
            "member_id": format!("{:x}", metadata.member_id),
            "directory_uuid": uuid::Uuid::from_bytes(metadata.directory_uuid).to_string(),
        }),
        RecordView::State(state) => json!({
            "type": name,
            "vote": base64(&state.vote),
            "committed": state.committed.map(|position| json!({"index": position.index.get(), "term": position.term})),
        }),
        RecordView::Truncate { after } => json!({"type": name, "truncate_after": after.map(LogIndex::get)}),
        RecordView::Snapshot(position) => {
            json!({"type": name, "purged": {"index": position.index.get(), "term": position.term}})
        }
        RecordView::Entry { position, payload } => {
            let mut entry = entry_json(payload);
            entry["type"] = json!(name);
            entry["index"] = json!(position.index.get());
            entry["term"] = json!(position.term);
            entry
        }
    }
}

fn entry_json(payload: &Bytes) -> Value {
    match content(payload) {
        Content::Command { command, term } => {
            json!({"kind": "command", "command": command_json(&command), "meant_for_term": term})
        }
        Content::Other(EntryView::Blank) => json!({"kind": "blank"}),
        Content::Other(EntryView::Membership(view)) => {
            let ids = |set: &Vec<u64>| set.iter().map(|id| format!("{id:x}")).collect::<Vec<_>>();
            let member = |(id, urls): &(u64, Vec<String>)| json!({"id": format!("{id:x}"), "peer_urls": urls});
            let voters: Vec<_> = view.voters.iter().map(ids).collect();
            let members: Vec<_> = view.members.iter().map(member).collect();
            json!({"kind": "membership", "voters": voters, "members": members})
        }
        Content::Other(EntryView::Unreadable(error)) => json!({"kind": "unreadable", "error": error.to_string()}),
        Content::Other(EntryView::Command(bytes) | EntryView::Proposal { command: bytes, .. }) => {
            json!({"kind": "command", "bytes": base64(bytes)})
        }
        Content::Undecodable(error) => json!({"kind": "undecodable", "error": error}),
    }
}

fn command_json(command: &Command) -> Value {
    match command {
        Command::Put(put) => json!({"put": {
            "key": base64(&put.key), "value": base64(&put.value), "lease": put.lease,
            "ignore_value": put.ignore_value, "ignore_lease": put.ignore_lease,
        }}),
        Command::DeleteRange(delete) => json!({"delete_range": range_json(&delete.range)}),
        Command::Txn(txn) => json!({"txn": txn_json(txn)}),
        Command::Compact { revision } => json!({"compact": {"revision": revision}}),
        Command::LeaseGrant { id, ttl_s } => json!({"lease_grant": {"id": id, "ttl": ttl_s}}),
        Command::LeaseRevoke { id } => json!({"lease_revoke": {"id": id}}),
        Command::LeaseExpire { term, ids } => json!({"lease_expire": {"term": term, "ids": ids}}),
        Command::LeaseCheckpoint { term, remaining } => {
            json!({"lease_checkpoint": {"term": term, "remaining": remaining}})
        }
        Command::Alarm(_) | Command::SetFeatureLevel { .. } | Command::SetMember(_) | Command::RemoveMember { .. } => {
            json!({"text": command_line(command)})
        }
    }
}

fn txn_json(txn: &TxnRequest) -> Value {
    let compares = txn.compares.iter().map(|compare| {
        json!({"range": range_json(&compare.range), "test": format!("{:?} {:?}", compare.target, compare.result)})
    });
    let ops = |ops: &[Op]| ops.iter().map(op_json).collect::<Vec<_>>();
    json!({"compare": compares.collect::<Vec<_>>(), "success": ops(&txn.success), "failure": ops(&txn.failure)})
}

fn op_json(op: &Op) -> Value {
    match op {
        Op::Range(range) => json!({"range": range_json(&range.range)}),
        Op::Put(put) => command_json(&Command::Put(put.clone())),
        Op::Delete(delete) => json!({"delete_range": range_json(&delete.range)}),
        Op::Txn(txn) => json!({"txn": txn_json(txn)}),
    }
}

fn range_json(range: &KeyRange) -> Value {
    json!({"key": base64(range.key()), "range_end": base64(range.range_end())})
}

fn base64(bytes: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tally_mvcc::{DeleteRequest, PutRequest};

    use super::*;

    fn delete(key: &'static str, end: &'static str) -> DeleteRequest {
        DeleteRequest { range: KeyRange::new(key.into(), end.into()).unwrap(), prev_kv: false }
    }

    fn deletes(key: &'static str, end: &'static str) -> bool {
        command_touches(&Command::DeleteRange(delete(key, end)), b"foo")
    }

    #[test]
    fn a_deletion_of_a_range_is_shown_if_the_key_may_have_been_in_it() {
        for (key, end) in [("foo", ""), ("a foo", ""), ("b", "c"), ("foo", "fop"), ("z", "\0"), ("b", "b\0a")] {
            assert!(deletes(key, end), "{key:?} {end:?}");
        }
        assert!(deletes("xfoo", "xfoo\0"));
        // One key alone, nothing at all, and keys that can only end in zeros.
        for (key, end) in [("b", ""), ("fo", ""), ("c", "b"), ("b", "b"), ("b", "b\0"), ("b", "b\0\0")] {
            assert!(!deletes(key, end), "{key:?} {end:?}");
        }
    }

    #[test]
    fn what_ends_leases_is_shown_and_what_changes_no_key_is_not() {
        assert!(command_touches(&Command::LeaseRevoke { id: 1 }, b"foo"));
        assert!(command_touches(&Command::LeaseExpire { term: 1, ids: vec![1] }, b"foo"));
        assert!(!command_touches(&Command::LeaseGrant { id: 1, ttl_s: 5 }, b"foo"));
        assert!(!command_touches(&Command::Compact { revision: 5 }, b"foo"));
    }

    #[test]
    fn operations_of_transactions_are_looked_at_on_both_sides() {
        let put = |key: &'static str| Op::Put(PutRequest { key: key.into(), ..PutRequest::default() });
        let txn = |success, failure| Command::Txn(TxnRequest { success, failure, ..TxnRequest::default() });
        assert!(command_touches(&txn(vec![put("b")], vec![put("afoo")]), b"foo"));
        assert!(command_touches(&txn(vec![Op::Delete(delete("b", "c"))], Vec::new()), b"foo"));
        assert!(!command_touches(&txn(vec![put("b")], Vec::new()), b"foo"));
    }
}
