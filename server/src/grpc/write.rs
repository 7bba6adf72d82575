//! Response messages with their prefixes, written once: those of the key-value service straight from the stored records,
//! the others from the messages of `proto`.
//!
//! Fields that are zero are left out, as protobuf wants it. A stored record *is* the message `KeyValue`, so it is copied
//! as it stands.

use bytes::{BufMut, Bytes};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use tally_mvcc::{DeleteReply, OpReply, PutReply, RangeResult, Record, TxnReply};

use crate::api::ANSWER_BYTES_MAX;
use crate::api::lease::KeptAlive;
use crate::grpc::error::ProtocolError;
use crate::grpc::messages::PREFIX_BYTES;
use crate::proto::etcdserverpb as pb;
use crate::wire::{Header, Member};

/// About how much of a large answer is made at a time.
const PIECE_BYTES: usize = 64 * 1024;

/// A field's tag and type in one byte: fields up to 15.
pub(super) const fn varint_field(number: u8) -> u8 {
    number << 3
}

pub(super) const fn bytes_field(number: u8) -> u8 {
    number << 3 | 2
}

/// A length-delimited field whose content takes `bytes`.
pub(super) fn field_len(bytes: usize) -> usize {
    1 + encoded_len_varint(bytes as u64) + bytes
}

pub(super) fn number_len(number: i64) -> usize {
    if number == 0 { 0 } else { 1 + encoded_len_varint(number as u64) }
}

fn records_len(records: &[Record]) -> usize {
    records.iter().map(|record| field_len(record.bytes().len())).sum()
}

fn put_number(out: &mut impl BufMut, tag: u8, number: i64) {
    if number != 0 {
        out.put_u8(tag);
        encode_varint(number as u64, out);
    }
}

fn put_begin(out: &mut impl BufMut, tag: u8, bytes: usize) {
    out.put_u8(tag);
    encode_varint(bytes as u64, out);
}

fn put_records(out: &mut Vec<u8>, tag: u8, records: &[Record]) {
    for record in records {
        put_begin(out, tag, record.bytes().len());
        out.put_slice(record.bytes());
    }
}

/// The encoded header and its length: the first field of every response.
pub(super) fn header_len(header: &Header<'_>) -> usize {
    header.identity.protobuf.len() + number_len(header.revision) + number_len(header.term as i64)
}

pub(super) fn put_header(out: &mut impl BufMut, header: &Header<'_>) {
    put_begin(out, bytes_field(1), header_len(header));
    out.put_slice(&header.identity.protobuf);
    put_number(out, varint_field(3), header.revision);
    put_number(out, varint_field(4), header.term as i64);
}

/// Prefix and message in one buffer of the right size.
fn framed(bytes: usize, write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut out = begin(bytes, bytes);
    write(&mut out);
    debug_assert_eq!(out.len(), PREFIX_BYTES + bytes);
    out.into()
}

/// The same for what may be too long to be sent: then it is not made.
fn framed_if_short(bytes: usize, write: impl FnOnce(&mut Vec<u8>)) -> Result<Bytes, ProtocolError> {
    sendable(bytes)?;
    Ok(framed(bytes, write))
}

/// Refuses a message of more bytes than may be sent, long before the prefix could not say how many they are.
pub(super) fn sendable(bytes: usize) -> Result<(), ProtocolError> {
    let limit = ANSWER_BYTES_MAX;
    if bytes > limit { Err(ProtocolError::AnswerTooLarge { bytes, limit }) } else { Ok(()) }
}

/// A buffer with the prefix of a message of so many bytes, and room for `capacity` of them. Of more bytes than are
/// [`sendable`] the prefix may be wrong: nobody may get to see it.
fn begin(bytes: usize, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(PREFIX_BYTES + capacity);
    out.put_u8(0);
    out.put_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
    out
}

/// Any message.
pub(super) fn message(message: &impl Message) -> Bytes {
    framed(message.encoded_len(), |out| message.encode_raw(out))
}

/// The header as a message, for responses that are built of messages.
pub(super) fn header(header: &Header<'_>) -> Option<pb::ResponseHeader> {
    let mut message = pb::ResponseHeader::decode(&header.identity.protobuf[..]).unwrap_or_default();
    message.revision = header.revision;
    message.raft_term = header.term;
    Some(message)
}

pub(super) fn kept_alive(header: &Header<'_>, kept: &KeptAlive) -> Bytes {
    framed(field_len(header_len(header)) + number_len(kept.id) + number_len(kept.ttl_s), |out| {
        put_header(out, header);
        put_number(out, varint_field(2), kept.id);
        put_number(out, varint_field(3), kept.ttl_s);
    })
}

pub(super) fn put(header: &Header<'_>, reply: &PutReply) -> Result<Bytes, ProtocolError> {
    framed_if_short(field_len(header_len(header)) + put_len(reply), |out| {
        put_header(out, header);
        put_fields(out, reply);
    })
}

pub(super) fn delete_range(header: &Header<'_>, reply: &DeleteReply) -> Result<Bytes, ProtocolError> {
    framed_if_short(field_len(header_len(header)) + delete_len(reply), |out| {
        put_header(out, header);
        delete_fields(out, reply);
    })
}

pub(super) fn txn(header: &Header<'_>, reply: &TxnReply) -> Result<Bytes, ProtocolError> {
    framed_if_short(field_len(header_len(header)) + txn_len(reply), |out| {
        put_header(out, header);
        txn_fields(out, reply);
    })
}

/// The length of an answer to a range.
pub(super) fn range_bytes(header: &Header<'_>, result: &RangeResult) -> usize {
    field_len(header_len(header)) + range_len(result)
}

pub(super) fn range(header: &Header<'_>, result: &RangeResult) -> Bytes {
    framed(range_bytes(header, result), |out| {
        put_header(out, header);
        range_fields(out, result);
    })
}

/// An answer to a range in pieces, each made when it is asked for: the same bytes as [`range`] makes.
pub(super) fn range_in_pieces(header: &Header<'_>, result: RangeResult) -> impl Iterator<Item = Bytes> + Send + use<> {
    let mut out = begin(range_bytes(header, &result), PIECE_BYTES);
    put_header(&mut out, header);
    let RangeResult { kvs, more, count, .. } = result;
    let mut records = kvs.into_iter();
    let mut ended = false;
    std::iter::from_fn(move || {
        if ended {
            return None;
        }
        while out.len() < PIECE_BYTES {
            match records.next() {
                Some(record) => put_records(&mut out, bytes_field(2), &[record]),
                None => {
                    put_range_figures(&mut out, more, count);
                    ended = true;
                    break;
                }
            }
        }
        Some(std::mem::take(&mut out).into())
    })
}

/// One message of a range stream: a response without figures, or with them if it is the last.
pub(super) fn range_chunk(records: &[Record], last: Option<(&Header<'_>, bool, i64)>) -> Result<Bytes, ProtocolError> {
    let figures = last.map_or(0, |(header, more, count)| field_len(header_len(header)) + figures_len(more, count));
    let inner = figures + records_len(records);
    framed_if_short(field_len(inner), |out| {
        put_begin(out, bytes_field(1), inner);
        if let Some((header, ..)) = last {
            put_header(out, header);
        }
        put_records(out, bytes_field(2), records);
        if let Some((_, more, count)) = last {
            put_range_figures(out, more, count);
        }
    })
}

fn put_len(reply: &PutReply) -> usize {
    reply.prev_kv.as_ref().map_or(0, |record| field_len(record.bytes().len()))
}

fn put_fields(out: &mut Vec<u8>, reply: &PutReply) {
    put_records(out, bytes_field(2), reply.prev_kv.as_slice());
}

fn delete_len(reply: &DeleteReply) -> usize {
    number_len(reply.deleted) + records_len(&reply.prev_kvs)
}

fn delete_fields(out: &mut Vec<u8>, reply: &DeleteReply) {
    put_number(out, varint_field(2), reply.deleted);
    put_records(out, bytes_field(3), &reply.prev_kvs);
}

fn figures_len(more: bool, count: i64) -> usize {
    number_len(i64::from(more)) + number_len(count)
}

fn put_range_figures(out: &mut Vec<u8>, more: bool, count: i64) {
    put_number(out, varint_field(3), i64::from(more));
    put_number(out, varint_field(4), count);
}

fn range_len(result: &RangeResult) -> usize {
    records_len(&result.kvs) + figures_len(result.more, result.count)
}

fn range_fields(out: &mut Vec<u8>, result: &RangeResult) {
    put_records(out, bytes_field(2), &result.kvs);
    put_range_figures(out, result.more, result.count);
}

/// Recursion: as deep as the request was nested, which is bounded.
fn txn_len(reply: &TxnReply) -> usize {
    let replies = reply.replies.iter().map(|reply| field_len(field_len(op_len(reply)))).sum::<usize>();
    number_len(i64::from(reply.succeeded)) + replies
}

fn txn_fields(out: &mut Vec<u8>, reply: &TxnReply) {
    put_number(out, varint_field(2), i64::from(reply.succeeded));
    for reply in &reply.replies {
        op(out, reply);
    }
}

/// The revision in the header of an operation's response. etcd leaves the header of a nested transaction empty.
fn op_revision(reply: &OpReply) -> i64 {
    match reply {
        OpReply::Range(result) => result.revision,
        OpReply::Put(reply) => reply.revision,
        OpReply::Delete(reply) => reply.revision,
        OpReply::Txn(_) => 0,
    }
}

/// Of the response inside the operation's message.
fn op_len(reply: &OpReply) -> usize {
    let fields = match reply {
        OpReply::Range(result) => range_len(result),
        OpReply::Put(reply) => put_len(reply),
        OpReply::Delete(reply) => delete_len(reply),
        OpReply::Txn(reply) => txn_len(reply),
    };
    field_len(number_len(op_revision(reply))) + fields
}

fn op(out: &mut Vec<u8>, reply: &OpReply) {
    let (number, bytes) = match reply {
        OpReply::Range(_) => (1, op_len(reply)),
        OpReply::Put(_) => (2, op_len(reply)),
        OpReply::Delete(_) => (3, op_len(reply)),
        OpReply::Txn(_) => (4, op_len(reply)),
    };
    put_begin(out, bytes_field(3), field_len(bytes));
    put_begin(out, bytes_field(number), bytes);
    put_begin(out, bytes_field(1), number_len(op_revision(reply)));
    put_number(out, varint_field(3), op_revision(reply));
    match reply {
        OpReply::Range(result) => range_fields(out, result),
        OpReply::Put(reply) => put_fields(out, reply),
        OpReply::Delete(reply) => delete_fields(out, reply),
        OpReply::Txn(reply) => txn_fields(out, reply),
    }
}

impl From<Member> for pb::Member {
    fn from(member: Member) -> Self {
        let Member { id, name, peer_urls, client_urls, is_learner } = member;
        pb::Member { id, name, peer_ur_ls: peer_urls, client_ur_ls: client_urls, is_learner }
    }
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
