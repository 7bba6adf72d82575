//! Watching over gRPC: the same stream as over JSON, its responses written straight from the events.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use prost::Message as _;
use prost::encoding::{encode_varint, encoded_len_varint};
use tally_mvcc::Event;

use crate::api::watch::{Filled, Response, Session, slot};
use crate::api::{Metrics, Route, State};
use crate::error::ApiError;
use crate::grpc::error::ProtocolError;
use crate::grpc::messages::{Messages, PREFIX_BYTES};
use crate::grpc::reply::Answers;
use crate::grpc::write::{bytes_field, field_len, header_len, number_len, put_header, sendable, varint_field};
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::watch_request::RequestUnion;
use crate::wire::{Header, WatchCreateMessage, WatchMessage};

const EVENTS: u8 = bytes_field(11);
/// Messages that are ready are put together up to so much, and sent as one.
const CHUNK_BYTES: usize = 32 * 1024;

/// Opens a watch stream.
pub(super) fn answers(state: &Arc<State>, requires_leader: bool, messages: Messages) -> Result<Answers, ApiError> {
    let session = Session::open(state, requires_leader)?;
    Ok(Box::pin(Watching { session: Some(session), messages, metrics: Arc::clone(&state.metrics), error: None }))
}

struct Watching {
    /// `None` once the last message has been made.
    session: Option<Session>,
    messages: Messages,
    metrics: Arc<Metrics>,
    /// What the stream ends with, after its last messages.
    error: Option<ApiError>,
}

impl Stream for Watching {
    type Item = Result<Bytes, ApiError>;

    /// As many messages as are ready, up to a chunk.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Watching { session: Some(session), messages, metrics, error } = &mut *self else {
            return Poll::Ready(self.error.take().map(Err));
        };
        let mut out = Vec::new();
        let mut written = 0;
        let write = |out: &mut Vec<u8>, state: &State, response: &Response| -> Result<(), ApiError> {
            append(out, &state.header(response.revision), response)?;
            // The first is counted by whoever sends the chunk.
            if written > 0 {
                metrics.sent(Route::Watch, 0);
            }
            written += 1;
            Ok(())
        };
        if let Filled::Ended(with) = session.fill(cx, &mut out, CHUNK_BYTES, |cx| request(messages, metrics, cx), write)
        {
            *error = with;
            self.session = None;
        }
        match (out.is_empty(), &self.session) {
            (false, _) => Poll::Ready(Some(Ok(out.into()))),
            (true, Some(_)) => Poll::Pending,
            (true, None) => Poll::Ready(self.error.take().map(Err)),
        }
    }
}

fn request(
    messages: &mut Messages,
    metrics: &Metrics,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<WatchMessage, ApiError>>> {
    let decode = |message: Bytes| {
        metrics.received(Route::Watch, message.len());
        Ok(WatchMessage::from(pb::WatchRequest::decode(message).map_err(ProtocolError::from)?))
    };
    messages.poll_next(cx).map(|message| {
        let request = message.and_then(|message| message.map(decode).transpose());
        request.inspect_err(|error| metrics.not_received("watch", error)).transpose()
    })
}

impl From<pb::WatchRequest> for WatchMessage {
    fn from(request: pb::WatchRequest) -> Self {
        match request.request_union {
            None => WatchMessage::Empty,
            Some(RequestUnion::CancelRequest(cancel)) => WatchMessage::Cancel { watch_id: cancel.watch_id },
            Some(RequestUnion::ProgressRequest(_)) => WatchMessage::Progress,
            Some(RequestUnion::CreateRequest(create)) => WatchMessage::Create(WatchCreateMessage {
                key: create.key,
                range_end: create.range_end,
                start_revision: create.start_revision,
                progress_notify: create.progress_notify,
                filters: create.filters,
                prev_kv: create.prev_kv,
                watch_id: create.watch_id,
                fragment: create.fragment,
            }),
        }
    }
}

/// Appends a message with its prefix.
///
/// # Errors
/// [`ProtocolError::AnswerTooLarge`]: it is longer than may be sent, and nothing of it has been made.
fn append(out: &mut Vec<u8>, header: &Header<'_>, response: &Response) -> Result<(), ProtocolError> {
    // Before any event is encoded, which has to be done to know the length.
    sendable(response.record_bytes())?;
    let events = || response.events(slot::PROTO, event);
    let flag = |flag: bool| i64::from(flag);
    let numbers = [
        (2, response.watch_id),
        (3, flag(response.created)),
        (4, flag(response.canceled)),
        (5, response.compact_revision),
        (7, flag(response.fragment)),
    ];
    let reason = response.cancel_reason.as_bytes();
    let reason_len = if reason.is_empty() { 0 } else { field_len(reason.len()) };
    let length = field_len(header_len(header))
        + numbers.iter().map(|(_, number)| number_len(*number)).sum::<usize>()
        + reason_len
        + events().map(Bytes::len).sum::<usize>();
    sendable(length)?;
    out.reserve(length + PREFIX_BYTES);
    out.push(0);
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    put_header(out, header);
    for (field, number) in numbers {
        if field == 7 && !reason.is_empty() {
            put_bytes(out, bytes_field(6), reason);
        }
        if number != 0 {
            out.push(varint_field(field));
            encode_varint(number as u64, out);
        }
    }
    events().for_each(|event| out.extend_from_slice(event));
    Ok(())
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// One event as it stands in a response: its field's tag and length, then the message `Event`.
fn event(event: &Event, prev_kv: bool) -> Bytes {
    let record = event.record().bytes();
    let prev = event.prev_kv().filter(|_| prev_kv).map(|prev| prev.bytes());
    let length = number_len(i64::from(event.is_delete()))
        + field_len(record.len())
        + prev.map_or(0, |prev| field_len(prev.len()));
    let mut out = Vec::with_capacity(1 + encoded_len_varint(length as u64) + length);
    out.push(EVENTS);
    encode_varint(length as u64, &mut out);
    if event.is_delete() {
        out.extend_from_slice(&[varint_field(1), 1]);
    }
    put_bytes(&mut out, bytes_field(2), record);
    if let Some(prev) = prev {
        put_bytes(&mut out, bytes_field(3), prev);
    }
    out.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::task::Waker;

    use tally_backend::{Applied, Backend, Config};
    use tally_mvcc::{Delivery, KeyRange, Options, PutRequest, Step, WatchLimits, WatchSpec, open};

    use super::*;
    use crate::api::ANSWER_BYTES_MAX;
    use crate::wire::Identity;

    const MIB: usize = 1 << 20;

    /// A put of a value of one mebibyte, as a watcher gets it.
    fn change() -> Arc<Event> {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::new(directory.path(), tally_backend::Identity::default());
        let backend = Backend::open(config).unwrap();
        let (mut writer, reader) = open(&backend, Options::default()).unwrap();
        let mut stream = reader.watch_stream(WatchLimits::default());
        stream.create(WatchSpec::new(KeyRange::all())).unwrap();
        let mut batch = backend.batch();
        writer.put(&PutRequest::new("k", vec![b'v'; MIB]), &mut batch).unwrap();
        writer.stage_meta(&mut batch);
        let at = Applied { index: 1, term: 1, root: writer.root(), ..Applied::default() };
        batch.commit(&at).unwrap();
        writer.publish();
        match stream.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Step::Deliver(Delivery::Events(batch))) => Arc::clone(&batch.events[0]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_response_that_is_longer_than_may_be_sent_is_not_made() {
        let (event, identity) = (change(), Identity::new(7, 3));
        let header = Header { identity: &identity, revision: 2, term: 1 };
        // Over what may be sent, and over what a prefix can say. The records are the same one, so they take little.
        for times in [2_048, 4_097] {
            let (mut out, response) = (Vec::new(), Response::repeating(&event, times));
            match append(&mut out, &header, &response) {
                Err(ProtocolError::AnswerTooLarge { bytes, limit: ANSWER_BYTES_MAX }) => assert!(bytes > times * MIB),
                other => panic!("{other:?}"),
            }
            assert_eq!(out.capacity(), 0);
        }
        let not_yet = || Bytes::from_static(b"nobody has encoded it");
        assert_eq!(event.encoding(slot::PROTO, |_| not_yet()), &not_yet());
    }

    #[test]
    fn a_response_follows_a_prefix_that_says_how_long_it_is() {
        let (event, identity) = (change(), Identity::new(7, 3));
        let header = Header { identity: &identity, revision: 2, term: 1 };
        let mut out = b"what was there".to_vec();
        append(&mut out, &header, &Response::repeating(&event, 3)).unwrap();
        let message = out.strip_prefix(b"what was there").unwrap();
        let (prefix, message) = message.split_first_chunk::<PREFIX_BYTES>().unwrap();
        assert_eq!(prefix[0], 0);
        assert_eq!(prefix[1..], u32::try_from(message.len()).unwrap().to_be_bytes());
        let response = <pb::WatchResponse as prost::Message>::decode(message).unwrap();
        assert_eq!((response.watch_id, response.events.len()), (1, 3));
        assert!(message.ends_with(&event.encoding(slot::PROTO, |_| Bytes::new()).repeat(3)));
    }
}
