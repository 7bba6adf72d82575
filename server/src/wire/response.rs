//! The response messages, written once from the replies and the stored records, with etcd's names in etcd's order.

use prost::Message as _;
use tally_apply::Alarm;
use tally_mvcc::{DeleteReply, HashKv, OpReply, PutReply, RangeResult, Record, TxnReply};

use crate::error::{ApiError, Effect};
use crate::proto::etcdserverpb::ResponseHeader;
use crate::wire::write;

/// What every response begins with: who answers, at which revision and term.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header<'a> {
    /// The two ids.
    pub(crate) identity: &'a Identity,
    /// The store's revision; not written if zero.
    pub(crate) revision: i64,
    /// The Raft term.
    pub(crate) term: u64,
}

/// The part of a header that never changes, in both wire forms; made once per server.
#[derive(Debug)]
pub(crate) struct Identity {
    json: Vec<u8>,
    /// The first two fields of the message `ResponseHeader`.
    pub(crate) protobuf: Vec<u8>,
}

impl Identity {
    pub(crate) fn new(cluster_id: u64, member_id: u64) -> Identity {
        let json = format!("{{\"header\":{{\"cluster_id\":\"{cluster_id}\",\"member_id\":\"{member_id}\"").into_bytes();
        let ids = ResponseHeader { cluster_id, member_id, ..ResponseHeader::default() };
        Identity { json, protobuf: ids.encode_to_vec() }
    }
}

impl Header<'_> {
    /// The beginning of a response, with room for `capacity` bytes in all.
    pub(super) fn begin(&self, capacity: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(capacity + HEADER_BYTES);
        self.append(&mut out);
        out
    }

    /// Appends the beginning of a response.
    pub(crate) fn append(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.identity.json);
        write::signed(out, ",\"revision\":\"", self.revision);
        write::unsigned(out, ",\"raft_term\":\"", self.term);
        out.push(b'}');
    }
}

/// At least what a header and the braces around take.
const HEADER_BYTES: usize = 192;
/// At least what a record takes beside its key and value.
const RECORD_BYTES: usize = 128;

pub(crate) fn range(header: &Header<'_>, result: &RangeResult) -> Vec<u8> {
    let mut writer = RangeWriter::with_capacity(header, kvs_bytes(&result.kvs));
    result.kvs.iter().for_each(|record| writer.push(record));
    writer.finish(result.more, result.count)
}

pub(crate) fn put(header: &Header<'_>, reply: &PutReply) -> Vec<u8> {
    let mut out = header.begin(reply.prev_kv.as_ref().map_or(0, |record| kvs_bytes(std::slice::from_ref(record))));
    put_fields(&mut out, reply);
    out.push(b'}');
    out
}

pub(crate) fn delete_range(header: &Header<'_>, reply: &DeleteReply) -> Vec<u8> {
    let mut out = header.begin(kvs_bytes(&reply.prev_kvs));
    delete_fields(&mut out, reply);
    out.push(b'}');
    out
}

pub(crate) fn txn(header: &Header<'_>, reply: &TxnReply) -> Vec<u8> {
    let mut out = header.begin(txn_bytes(reply));
    txn_fields(&mut out, reply);
    out.push(b'}');
    out
}

/// A response that is only a header.
pub(crate) fn header_only(header: &Header<'_>) -> Vec<u8> {
    let mut out = header.begin(0);
    out.push(b'}');
    out
}

pub(crate) fn auth_status(header: &Header<'_>, status: &AuthStatus) -> Vec<u8> {
    let mut out = header.begin(64);
    if status.is_enabled {
        out.extend_from_slice(b",\"enabled\":true");
    }
    write::unsigned(&mut out, ",\"authRevision\":\"", status.auth_revision);
    out.push(b'}');
    out
}

pub(crate) fn status(header: &Header<'_>, status: &Status) -> Vec<u8> {
    let mut out = header.begin(512);
    text(&mut out, ",\"version\":", status.version);
    write::unsigned(&mut out, ",\"dbSize\":\"", status.db_size);
    write::unsigned(&mut out, ",\"leader\":\"", status.leader);
    write::unsigned(&mut out, ",\"raftIndex\":\"", status.raft_index);
    write::unsigned(&mut out, ",\"raftTerm\":\"", status.raft_term);
    write::unsigned(&mut out, ",\"raftAppliedIndex\":\"", status.raft_applied_index);
    for (index, error) in status.errors.iter().enumerate() {
        text(&mut out, if index == 0 { ",\"errors\":[" } else { "," }, error);
    }
    if !status.errors.is_empty() {
        out.push(b']');
    }
    write::unsigned(&mut out, ",\"dbSizeInUse\":\"", status.db_size_in_use);
    if status.is_learner {
        out.extend_from_slice(b",\"isLearner\":true");
    }
    text(&mut out, ",\"storageVersion\":", status.version);
    write::signed(&mut out, ",\"dbSizeQuota\":\"", status.db_size_quota);
    out.extend_from_slice(b",\"downgradeInfo\":{}}");
    out
}

/// A member, as etcd's cluster service shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: u64,
    /// Empty until it has started.
    pub(crate) name: String,
    pub(crate) peer_urls: Vec<String>,
    pub(crate) client_urls: Vec<String>,
    pub(crate) is_learner: bool,
}

/// The members after a request, and the one that was added, if one was.
pub(crate) struct Members {
    pub(crate) added: Option<Member>,
    pub(crate) members: Vec<Member>,
}

impl Members {
    pub(crate) fn new(members: Vec<Member>) -> Members {
        Members { added: None, members }
    }
}

/// The members, and before them the one that was added, if one was.
pub(crate) fn members(header: &Header<'_>, members: &Members) -> Vec<u8> {
    let Members { added, members } = members;
    let mut out = header.begin(256 * (members.len() + 1));
    if let Some(added) = added {
        out.extend_from_slice(b",\"member\":");
        member(&mut out, added);
    }
    for (index, one) in members.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b",\"members\":[" } else { b"," });
        member(&mut out, one);
    }
    out.extend_from_slice(if members.is_empty() { b"}" } else { b"]}" });
    out
}

/// An id is never zero, so every other field may begin with a comma.
fn member(out: &mut Vec<u8>, member: &Member) {
    out.push(b'{');
    write::unsigned(out, "\"ID\":\"", member.id);
    if !member.name.is_empty() {
        text(out, ",\"name\":", &member.name);
    }
    texts(out, ",\"peerURLs\":[", &member.peer_urls);
    texts(out, ",\"clientURLs\":[", &member.client_urls);
    out.extend_from_slice(if member.is_learner { b",\"isLearner\":true}" } else { b"}" });
}

fn texts(out: &mut Vec<u8>, name: &str, list: &[String]) {
    for (index, one) in list.iter().enumerate() {
        text(out, if index == 0 { name } else { "," }, one);
    }
    if !list.is_empty() {
        out.push(b']');
    }
}

/// The alarms that are raised, or were changed.
pub(crate) fn alarms(header: &Header<'_>, alarms: &[Alarm]) -> Vec<u8> {
    let mut out = header.begin(64 * alarms.len());
    for (index, alarm) in alarms.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b",\"alarms\":[{" } else { b",{" });
        write::unsigned(&mut out, "\"memberID\":\"", alarm.member_id);
        // A member's id is never zero, but that of an alarm that a client raised may be.
        text(&mut out, if alarm.member_id == 0 { "\"alarm\":" } else { ",\"alarm\":" }, alarm.kind.name());
        out.push(b'}');
    }
    out.extend_from_slice(if alarms.is_empty() { b"}" } else { b"]}" });
    out
}

pub(crate) fn hash(header: &Header<'_>, hash: u32) -> Vec<u8> {
    let mut out = header.begin(0);
    hash_field(&mut out, hash);
    out.push(b'}');
    out
}

pub(crate) fn hash_kv(header: &Header<'_>, hashed: &HashKv) -> Vec<u8> {
    let mut out = header.begin(96);
    hash_field(&mut out, hashed.hash);
    write::signed(&mut out, ",\"compact_revision\":\"", hashed.compact_revision);
    write::signed(&mut out, ",\"hash_revision\":\"", hashed.hash_revision);
    out.push(b'}');
    out
}

/// Appends one record.
pub(crate) fn record(out: &mut Vec<u8>, record: &Record) {
    kv(out, record);
}

/// An error in the midst of a stream: a line of its own, the last, with the keys of both gateway generations.
pub(crate) fn stream_error(out: &mut Vec<u8>, failure: &ApiError) {
    let (code, status) = (failure.code() as u64, failure.status());
    for (name, number) in
        [("{\"error\":{\"grpc_code\":", code), (",\"http_code\":", status.as_u16().into()), (",\"code\":", code)]
    {
        out.extend_from_slice(name.as_bytes());
        write::digits(out, number);
    }
    text(out, ",\"message\":", &failure.to_string());
    if let Some(reason) = status.canonical_reason() {
        text(out, ",\"http_status\":", reason);
    }
    outcome(out, failure);
    out.extend_from_slice(b"}}\n");
}

/// The body of an error: the keys of both gateway generations, and whether a write has, or may have, happened after all.
pub(crate) fn error(error: &ApiError) -> Vec<u8> {
    let message = error.to_string();
    let mut out = Vec::with_capacity(message.len() * 2 + HEADER_BYTES);
    out.extend_from_slice(b"{\"error\":");
    write::string(&mut out, &message);
    out.extend_from_slice(b",\"code\":");
    write::digits(&mut out, error.code() as u64);
    out.extend_from_slice(b",\"message\":");
    write::string(&mut out, &message);
    outcome(&mut out, error);
    out.push(b'}');
    out
}

/// Whether a write has, or may have, happened after all.
fn outcome(out: &mut Vec<u8>, error: &ApiError) {
    match error.effect() {
        Effect::None => {}
        Effect::Unknown => out.extend_from_slice(b",\"outcome\":\"unknown\""),
        Effect::Done => out.extend_from_slice(b",\"outcome\":\"done\""),
    }
}

fn text(out: &mut Vec<u8>, name: &str, text: &str) {
    out.extend_from_slice(name.as_bytes());
    write::string(out, text);
}

/// A 32-bit number is a JSON number, unlike the 64-bit ones.
fn hash_field(out: &mut Vec<u8>, hash: u32) {
    if hash != 0 {
        out.extend_from_slice(b",\"hash\":");
        write::digits(out, u64::from(hash));
    }
}

fn put_fields(out: &mut Vec<u8>, reply: &PutReply) {
    if let Some(record) = &reply.prev_kv {
        out.extend_from_slice(b",\"prev_kv\":");
        kv(out, record);
    }
}

fn delete_fields(out: &mut Vec<u8>, reply: &DeleteReply) {
    write::signed(out, ",\"deleted\":\"", reply.deleted);
    list(out, ",\"prev_kvs\":[", &reply.prev_kvs);
}

fn range_tail(out: &mut Vec<u8>, more: bool, count: i64) {
    if more {
        out.extend_from_slice(b",\"more\":true");
    }
    write::signed(out, ",\"count\":\"", count);
}

fn list(out: &mut Vec<u8>, name: &str, records: &[Record]) {
    for (index, record) in records.iter().enumerate() {
        out.extend_from_slice(if index == 0 { name.as_bytes() } else { b"," });
        kv(out, record);
    }
    if !records.is_empty() {
        out.push(b']');
    }
}

/// Recursion: as deep as the request was nested, which is bounded.
fn txn_fields(out: &mut Vec<u8>, reply: &TxnReply) {
    if reply.succeeded {
        out.extend_from_slice(b",\"succeeded\":true");
    }
    for (index, reply) in reply.replies.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b",\"responses\":[" } else { b"," });
        op(out, reply);
    }
    if !reply.replies.is_empty() {
        out.push(b']');
    }
}

fn op(out: &mut Vec<u8>, reply: &OpReply) {
    let head = |out: &mut Vec<u8>, name: &str, revision: i64| {
        out.extend_from_slice(name.as_bytes());
        write::signed(out, "\"revision\":\"", revision);
        out.push(b'}');
    };
    match reply {
        OpReply::Range(result) => {
            head(out, "{\"response_range\":{\"header\":{", result.revision);
            list(out, ",\"kvs\":[", &result.kvs);
            range_tail(out, result.more, result.count);
        }
        OpReply::Put(reply) => {
            head(out, "{\"response_put\":{\"header\":{", reply.revision);
            put_fields(out, reply);
        }
        OpReply::Delete(reply) => {
            head(out, "{\"response_delete_range\":{\"header\":{", reply.revision);
            delete_fields(out, reply);
        }
        OpReply::Txn(reply) => {
            // etcd leaves the header of a nested transaction empty.
            head(out, "{\"response_txn\":{\"header\":{", 0);
            txn_fields(out, reply);
        }
    }
    out.extend_from_slice(b"}}");
}

fn txn_bytes(reply: &TxnReply) -> usize {
    let op = |reply: &OpReply| match reply {
        OpReply::Range(result) => kvs_bytes(&result.kvs),
        OpReply::Put(reply) => reply.prev_kv.as_ref().map_or(0, |record| kvs_bytes(std::slice::from_ref(record))),
        OpReply::Delete(reply) => kvs_bytes(&reply.prev_kvs),
        OpReply::Txn(reply) => txn_bytes(reply),
    };
    reply.replies.iter().map(|reply| op(reply) + HEADER_BYTES).sum()
}

/// Whether clients have to say who they are.
#[derive(Clone, Debug)]
pub(crate) struct AuthStatus {
    /// The store's revision.
    pub(crate) revision: i64,
    pub(crate) is_enabled: bool,
    /// How often users and roles have changed, counted from one.
    pub(crate) auth_revision: u64,
}

/// What the answer to a status request says.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    /// The store's revision.
    pub(crate) revision: i64,
    pub(crate) version: &'static str,
    pub(crate) db_size: u64,
    pub(crate) db_size_in_use: u64,
    /// As given by the flag; negative is off.
    pub(crate) db_size_quota: i64,
    /// 0 if there is none.
    pub(crate) leader: u64,
    pub(crate) raft_index: u64,
    pub(crate) raft_term: u64,
    pub(crate) raft_applied_index: u64,
    pub(crate) errors: Vec<String>,
    pub(crate) is_learner: bool,
}

/// Writes the answer to a range record by record, in as many pieces as one likes.
pub(crate) struct RangeWriter {
    out: Vec<u8>,
    any: bool,
}

impl RangeWriter {
    fn with_capacity(header: &Header<'_>, capacity: usize) -> Self {
        Self { out: header.begin(capacity), any: false }
    }

    pub(crate) fn new(header: &Header<'_>) -> Self {
        Self::with_capacity(header, 0)
    }

    fn push(&mut self, record: &Record) {
        self.out.extend_from_slice(if self.any { b"," } else { b",\"kvs\":[" });
        self.any = true;
        kv(&mut self.out, record);
    }

    /// Takes what has been written so far.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    pub(crate) fn extend(&mut self, records: &[Record]) {
        self.out.reserve(kvs_bytes(records));
        records.iter().for_each(|record| self.push(record));
    }

    pub(crate) fn finish(mut self, more: bool, count: i64) -> Vec<u8> {
        if self.any {
            self.out.push(b']');
        }
        range_tail(&mut self.out, more, count);
        self.out.push(b'}');
        self.out
    }
}

/// At least what the records take in JSON.
fn kvs_bytes(records: &[Record]) -> usize {
    records.iter().map(|record| record.bytes().len() / 3 * 4 + RECORD_BYTES).sum()
}

/// One record. Its key is never empty, so every other field may begin with a comma.
pub(super) fn kv(out: &mut Vec<u8>, record: &Record) {
    let parts = record.parts();
    out.push(b'{');
    write::bytes(out, "\"key\":\"", parts.key);
    write::signed(out, ",\"create_revision\":\"", parts.create_revision);
    write::signed(out, ",\"mod_revision\":\"", parts.mod_revision);
    write::signed(out, ",\"version\":\"", parts.version);
    write::bytes(out, ",\"value\":\"", parts.value);
    write::signed(out, ",\"lease\":\"", parts.lease);
    out.push(b'}');
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;
