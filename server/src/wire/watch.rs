//! The messages of etcd's watch service: requests from JSON, responses to JSON.

use bytes::Bytes;
use tally_mvcc::Event;

use crate::wire::read::{Cursor, DecodeError, FieldNames};
use crate::wire::request::Message;
use crate::wire::response::{Header, record};
use crate::wire::write;

/// What a client says on a watch stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum WatchMessage {
    /// Nothing that is known; passed over.
    #[default]
    Empty,
    Create(WatchCreateMessage),
    Cancel {
        watch_id: i64,
    },
    Progress,
}

/// A watch to be created.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WatchCreateMessage {
    pub(crate) key: Bytes,
    pub(crate) range_end: Bytes,
    pub(crate) start_revision: i64,
    pub(crate) progress_notify: bool,
    pub(crate) filters: Vec<i32>,
    pub(crate) prev_kv: bool,
    pub(crate) watch_id: i64,
    pub(crate) fragment: bool,
}

const REQUEST: &[FieldNames] = &[
    ("create_request", "createRequest"),
    ("cancel_request", "cancelRequest"),
    ("progress_request", "progressRequest"),
];
const CREATE: &[FieldNames] = &[
    ("key", "key"),
    ("range_end", "rangeEnd"),
    ("start_revision", "startRevision"),
    ("progress_notify", "progressNotify"),
    ("filters", "filters"),
    ("prev_kv", "prevKv"),
    ("watch_id", "watchId"),
    ("fragment", "fragment"),
];
const CANCEL: &[FieldNames] = &[("watch_id", "watchId")];
const FILTERS: &[&str] = &["NOPUT", "NODELETE"];

impl Message for WatchMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(REQUEST, |cursor, field| {
            if *self != Self::Empty {
                return Err(DecodeError::OneofTaken { field, oneof: "etcdserverpb.WatchRequest.request_union" });
            }
            *self = match field {
                "create_request" => {
                    let mut create = WatchCreateMessage::default();
                    create.read(cursor)?;
                    Self::Create(create)
                }
                "cancel_request" => {
                    let mut watch_id = 0;
                    cursor.object(CANCEL, |cursor, _| {
                        watch_id = cursor.int64()?;
                        Ok(())
                    })?;
                    Self::Cancel { watch_id }
                }
                _ => {
                    cursor.object(&[], |_, _| Ok(()))?;
                    Self::Progress
                }
            };
            Ok(())
        })
    }
}

impl Message for WatchCreateMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(CREATE, |cursor, field| {
            match field {
                "key" => self.key = cursor.bytes()?,
                "range_end" => self.range_end = cursor.bytes()?,
                "start_revision" => self.start_revision = cursor.int64()?,
                "progress_notify" => self.progress_notify = cursor.boolean()?,
                "filters" => cursor.array(|cursor| {
                    self.filters.push(cursor.enumeration("etcdserverpb.WatchCreateRequest.FilterType", FILTERS)?);
                    Ok(())
                })?,
                "prev_kv" => self.prev_kv = cursor.boolean()?,
                "watch_id" => self.watch_id = cursor.int64()?,
                _ => self.fragment = cursor.boolean()?,
            }
            Ok(())
        })
    }
}

/// Writes responses of a watch stream.
pub(crate) struct WatchFields<'a> {
    pub(crate) watch_id: i64,
    pub(crate) created: bool,
    pub(crate) canceled: bool,
    pub(crate) compact_revision: i64,
    pub(crate) cancel_reason: &'a str,
    pub(crate) fragment: bool,
}

/// Appends one response of a watch stream with its line feed. `events` are encoded already.
pub(crate) fn watch<'e>(
    out: &mut Vec<u8>,
    header: &Header<'_>,
    fields: &WatchFields<'_>,
    events: impl Iterator<Item = &'e Bytes>,
) {
    out.extend_from_slice(b"{\"result\":");
    header.append(out);
    write::signed(out, ",\"watch_id\":\"", fields.watch_id);
    for (name, flag) in [(&b",\"created\":true"[..], fields.created), (b",\"canceled\":true", fields.canceled)] {
        if flag {
            out.extend_from_slice(name);
        }
    }
    write::signed(out, ",\"compact_revision\":\"", fields.compact_revision);
    if !fields.cancel_reason.is_empty() {
        out.extend_from_slice(b",\"cancel_reason\":");
        write::string(out, fields.cancel_reason);
    }
    if fields.fragment {
        out.extend_from_slice(b",\"fragment\":true");
    }
    let mut any = false;
    for event in events {
        out.extend_from_slice(if any { b"," } else { b",\"events\":[" });
        out.extend_from_slice(event);
        any = true;
    }
    out.extend_from_slice(if any { b"]}}\n" } else { b"}}\n" });
}

/// One event in JSON.
pub(crate) fn event(event: &Event, prev_kv: bool) -> Bytes {
    let prev = event.prev_kv().filter(|_| prev_kv);
    let bytes = event.record().bytes().len() + prev.map_or(0, |prev| prev.bytes().len());
    let mut out = Vec::with_capacity(bytes / 3 * 4 + 256);
    out.extend_from_slice(if event.is_delete() { b"{\"type\":\"DELETE\",\"kv\":" } else { b"{\"kv\":" });
    record(&mut out, event.record());
    if let Some(prev) = prev {
        out.extend_from_slice(b",\"prev_kv\":");
        record(&mut out, prev);
    }
    out.push(b'}');
    out.shrink_to_fit();
    out.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wire::Identity;
    use crate::wire::request::decode;

    #[test]
    fn requests_in_either_spelling() {
        let create: WatchMessage = decode(
            br#"{"create_request":{"key":"Zm9v","range_end":"Zm9w","start_revision":"7","progress_notify":true,
                "filters":["NOPUT",1],"prev_kv":true,"watch_id":3,"fragment":true}}"#,
        )
        .unwrap();
        let camel: WatchMessage = decode(
            br#"{"createRequest":{"key":"Zm9v","rangeEnd":"Zm9w","startRevision":7,"progressNotify":true,
                "filters":[0,"NODELETE"],"prevKv":true,"watchId":"3","fragment":true,"unknown":[{}]}}"#,
        )
        .unwrap();
        assert_eq!(create, camel);
        let WatchMessage::Create(create) = create else { panic!("{create:?}") };
        assert_eq!((create.start_revision, create.watch_id, create.filters), (7, 3, vec![0, 1]));
        assert_eq!(decode::<WatchMessage>(br#"{"cancelRequest":{}}"#).unwrap(), WatchMessage::Cancel { watch_id: 0 });
        assert_eq!(decode::<WatchMessage>(br#"{"progress_request":{}}"#).unwrap(), WatchMessage::Progress);
        assert_eq!(decode::<WatchMessage>(b"{}").unwrap(), WatchMessage::Empty);
    }

    #[test]
    fn wrong_requests_are_refused() {
        for bad in [
            &br#"{"create_request":{},"cancel_request":{}}"#[..],
            br#"{"create_request":[]}"#,
            br#"{"create_request":{"filters":["NOTHING"]}}"#,
            br#"{"create_request":{"key":"!"}}"#,
            br#"{"cancel_request":{"watch_id":true}}"#,
        ] {
            assert!(decode::<WatchMessage>(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn responses_are_lines_with_etcds_fields() {
        let identity = Identity::new(1, 2);
        let header = Header { identity: &identity, revision: 5, term: 3 };
        let mut out = Vec::new();
        let mut fields = WatchFields {
            watch_id: 0,
            created: true,
            canceled: false,
            compact_revision: 0,
            cancel_reason: "",
            fragment: false,
        };
        watch(&mut out, &header, &fields, [].iter());
        fields = WatchFields {
            watch_id: -1,
            canceled: true,
            compact_revision: 4,
            cancel_reason: "why",
            fragment: true,
            ..fields
        };
        let events = [Bytes::from_static(b"{\"kv\":{}}"), Bytes::from_static(b"{}")];
        watch(&mut out, &header, &fields, events.iter());
        let head = r#"{"result":{"header":{"cluster_id":"1","member_id":"2","revision":"5","raft_term":"3"}"#;
        let expected = format!(
            "{head},\"created\":true}}}}\n{head},\"watch_id\":\"-1\",\"created\":true,\"canceled\":true,\
             \"compact_revision\":\"4\",\"cancel_reason\":\"why\",\"fragment\":true,\"events\":[{{\"kv\":{{}}}},{{}}]}}}}\n"
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
