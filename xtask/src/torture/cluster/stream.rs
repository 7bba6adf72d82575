//! One watch stream over JSON: requests go out as one endless body, one chunk each; answers come in as lines.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::api::{self, number};
use crate::http::Parser;
use crate::linear::watches::{Event, Interest, Spec, fingerprint};
use crate::node::Kind;

/// How long a connection, and sending a request, may take.
const LIMIT: Duration = Duration::from_secs(2);
/// What is read at once, in bytes.
const READ_BYTES: usize = 64 * 1024;
/// The longest line, in bytes: larger than any message that a server may send. A real etcd sends all that a watcher lacks
/// as one message, however much that is.
const LINE_BYTES_MAX: usize = 256 << 20;
const LINE_BYTES_MAX_ETCD: usize = 1 << 30;

/// What precedes the requests to a real etcd, in spaces. As soon as its gateway has something to answer, the HTTP server of Go
/// throws away what it has not read of the request, and with it the watchers at its end. The gateway reads by a buffer that
/// doubles until the first request is whole, and fills it: behind so many spaces there are another 32,000 bytes in it.
const PADDING_ETCD: usize = 33_000;

/// What a stream said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    Created {
        id: i64,
        revision: i64,
    },
    Events {
        id: i64,
        revision: i64,
        fragment: bool,
        events: Vec<Event>,
    },
    /// Of one watcher, or of all of the stream if the id is -1.
    Progress {
        id: i64,
        revision: i64,
    },
    Canceled {
        id: i64,
        created: bool,
        compacted: i64,
        reason: String,
    },
    /// The stream is over: why.
    Failed(String),
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: TcpStream,
    parser: Parser,
    /// The beginning of a line.
    partial: Vec<u8>,
    arrived: Vec<u8>,
    line_bytes_max: usize,
    /// Whether further requests may be sent.
    pub(crate) open: bool,
    /// How long reads have waited in vain since the last byte.
    pub(crate) silent: Duration,
}

impl Stream {
    /// Connects and sends the first requests; `open` says whether more may follow.
    pub(crate) fn connect(
        kind: Kind,
        address: SocketAddr,
        first: &[String],
        leader: bool,
        open: bool,
    ) -> io::Result<Stream> {
        let mut socket = TcpStream::connect_timeout(&address, LIMIT)?;
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(LIMIT))?;
        let mut request = b"POST /v3/watch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
            Transfer-Encoding: chunked\r\n"
            .to_vec();
        if leader {
            request.extend_from_slice(b"Grpc-Metadata-hasleader: true\r\n");
        }
        request.extend_from_slice(b"\r\n");
        match kind {
            Kind::Etcd => chunk(&mut request, &format!("{}{}", " ".repeat(PADDING_ETCD), first.concat())),
            Kind::Tally => first.iter().for_each(|body| chunk(&mut request, body)),
        }
        if !open {
            chunk(&mut request, "");
        }
        socket.write_all(&request)?;
        let (parser, partial, arrived) = (Parser::new(), Vec::new(), vec![0; READ_BYTES]);
        let line_bytes_max = if kind == Kind::Etcd { LINE_BYTES_MAX_ETCD } else { LINE_BYTES_MAX };
        Ok(Stream { socket, parser, partial, arrived, line_bytes_max, open, silent: Duration::ZERO })
    }

    /// Sends one more request.
    pub(crate) fn send(&mut self, body: &str) -> io::Result<()> {
        let mut request = Vec::new();
        chunk(&mut request, body);
        self.socket.write_all(&request)
    }

    /// Reads once, for at most `wait`; gives the lines that are complete. An error is the end of the stream.
    pub(crate) fn read(&mut self, wait: Duration) -> io::Result<Vec<Value>> {
        self.socket.set_read_timeout(Some(wait))?;
        let count = match self.socket.read(&mut self.arrived) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                self.silent += wait;
                return Ok(Vec::new());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Vec::new()),
            read => read?,
        };
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.silent = Duration::ZERO;
        let ended = self.parser.feed(&self.arrived[..count])?;
        let mut lines = Vec::new();
        for piece in std::mem::take(self.parser.partial_body()).split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                lines.push(line(&self.partial)?);
                self.partial.clear();
            }
        }
        if ended && !self.partial.is_empty() {
            lines.push(line(&self.partial)?);
            self.partial.clear();
        }
        if self.partial.len() > self.line_bytes_max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line does not end"));
        }
        if ended && lines.is_empty() {
            return Err(io::Error::other(format!("the stream ended with status {}", self.parser.status())));
        }
        Ok(lines)
    }
}

fn chunk(out: &mut Vec<u8>, body: &str) {
    out.extend_from_slice(format!("{:x}\r\n{body}\r\n", body.len()).as_bytes());
}

fn line(bytes: &[u8]) -> io::Result<Value> {
    let odd = |error| io::Error::new(io::ErrorKind::InvalidData, format!("a line that is no JSON: {error}"));
    serde_json::from_slice(bytes).map_err(odd)
}

/// The request that makes a watcher; the id 0 lets the server choose.
pub(crate) fn create(spec: &Spec, start: i64, id: i64) -> String {
    let (key, end) = match spec.interest {
        Interest::Key(key) => (api::key_name(key), None),
        Interest::Keys { first, .. } => {
            let (from, to) = api::generation_range(first / api::KEYS);
            (from, Some(to))
        }
        // '0' follows '/'.
        Interest::All => (api::PREFIX.to_owned(), Some(api::PREFIX.replace('/', "0"))),
    };
    let mut filters = Vec::new();
    filters.extend((!spec.puts).then_some(r#""NOPUT""#));
    filters.extend((!spec.deletions).then_some(r#""NODELETE""#));
    format!(
        r#"{{"create_request":{{"key":"{}","range_end":"{}","start_revision":"{start}","watch_id":"{id}","filters":[{}],"prev_kv":{},"progress_notify":{},"fragment":{}}}}}"#,
        api::base64(key.as_bytes()),
        api::base64(end.unwrap_or_default().as_bytes()),
        filters.join(","),
        spec.previous,
        spec.notified,
        spec.fragments
    )
}

/// The request that ends a watcher.
pub(crate) fn cancel(id: i64) -> String {
    format!(r#"{{"cancel_request":{{"watch_id":"{id}"}}}}"#)
}

/// The request that asks where all watchers of the stream stand.
pub(crate) const PROGRESS: &str = r#"{"progress_request":{}}"#;

/// What a line says; `now` is the time in nanoseconds since the run began. What cannot be understood is an error.
pub(crate) fn heard(line: &Value, now: u64) -> Result<Heard, String> {
    let odd = || format!("a strange line of a watch: {}", api::shown(line));
    let message = &line["result"];
    if message.is_null() {
        let why = line["error"]["message"].as_str().or(line["message"].as_str()).or(line["error"].as_str());
        return why.map(|why| Heard::Failed(why.to_owned())).ok_or_else(odd);
    }
    let figure = |value: &Value| if value.is_null() { Some(0) } else { number(value) };
    let flag = |field: &str| message[field].as_bool().unwrap_or(false);
    let id = figure(&message["watch_id"]).ok_or_else(odd)?;
    let revision = figure(&message["header"]["revision"]).ok_or_else(odd)?;
    if flag("canceled") {
        let compacted = figure(&message["compact_revision"]).ok_or_else(odd)?;
        let reason = message["cancel_reason"].as_str().unwrap_or_default().to_owned();
        return Ok(Heard::Canceled { id, created: flag("created"), compacted, reason });
    }
    let events = message["events"].as_array().map_or(&[][..], Vec::as_slice);
    if flag("created") {
        return if events.is_empty() { Ok(Heard::Created { id, revision }) } else { Err(odd()) };
    }
    if events.is_empty() {
        return Ok(Heard::Progress { id, revision });
    }
    let arrived_ms = u32::try_from(now.div_ceil(1_000_000)).map_err(|_| "a run of 49 days".to_owned())?;
    let events =
        events.iter().map(|event| one(event, arrived_ms).map_err(|why| format!("{why}: {}", api::shown(event))));
    Ok(Heard::Events { id, revision, fragment: flag("fragment"), events: events.collect::<Result<_, _>>()? })
}

fn one(event: &Value, arrived_ms: u32) -> Result<Event, String> {
    let deletion = match event["type"].as_str() {
        Some("DELETE") => true,
        None | Some("PUT") => false,
        Some(_) => return Err("an event of no known type".to_owned()),
    };
    let previous = &event["prev_kv"];
    let before = if previous.is_null() { None } else { Some(api::record(previous)?) };
    let (key, revision, record) = if deletion {
        let kv = &event["kv"];
        let name = base64_simd::STANDARD.decode_to_vec(kv["key"].as_str().unwrap_or_default()).ok();
        let key = name.and_then(|name| api::key_number(&name)).ok_or("a deletion of no key")?;
        let rest = ["value", "version", "create_revision", "lease"];
        if rest.iter().any(|field| !kv[*field].is_null()) {
            return Err("a deletion with more than a key and a revision".to_owned());
        }
        (key, number(&kv["mod_revision"]).ok_or("a deletion without a revision")?, 0)
    } else {
        let (key, stored) = api::record(&event["kv"])?;
        (key, stored.modified, fingerprint(&stored))
    };
    if before.is_some_and(|(other, _)| other != key) {
        return Err("another key's record as the one before".to_owned());
    }
    let revision = u32::try_from(revision).map_err(|_| "a revision that cannot be".to_owned())?;
    let previous = before.map_or(0, |(_, stored)| fingerprint(&stored));
    Ok(Event { revision, key, arrived_ms, deletion, record, previous })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::{Heard, Interest, Spec, Stream, api, create, heard};
    use crate::node::Kind;

    #[test]
    fn every_byte_ends_a_silence() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut stream = Stream::connect(Kind::Tally, address, &[], false, true).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let wait = Duration::from_millis(20);
        for waited in 1..=3 {
            assert_eq!(stream.read(wait).unwrap(), Vec::<Value>::new());
            assert_eq!(stream.silent, wait * waited);
        }
        // The beginning of an answer, without a line.
        server.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
        while stream.silent >= wait * 3 {
            assert_eq!(stream.read(wait * 50).unwrap(), Vec::<Value>::new());
        }
        assert_eq!(stream.silent, Duration::ZERO);
    }

    #[test]
    fn requests_say_what_is_watched() {
        let spec = Spec {
            interest: Interest::Keys { first: 8, count: api::KEYS },
            puts: false,
            deletions: true,
            previous: true,
            notified: false,
            fragments: true,
        };
        let request: Value = serde_json::from_str(&create(&spec, 5, 3)).unwrap();
        let request = &request["create_request"];
        assert_eq!(request["key"], api::base64(b"t/000001/"));
        assert_eq!(request["range_end"], api::base64(b"t/0000010"));
        assert_eq!(request["filters"], json!(["NOPUT"]));
        assert_eq!((&request["start_revision"], &request["watch_id"]), (&json!("5"), &json!("3")));
        let all: Value = serde_json::from_str(&create(&Spec { interest: Interest::All, ..spec }, 0, 0)).unwrap();
        assert_eq!(all["create_request"]["range_end"], api::base64(b"t0"));
    }

    #[test]
    fn lines_are_taken_apart() {
        let header = json!({"revision": "9"});
        let created = json!({"result": {"header": header, "watch_id": "4", "created": true}});
        assert_eq!(heard(&created, 0), Ok(Heard::Created { id: 4, revision: 9 }));
        let progress = json!({"result": {"header": header, "watch_id": "-1"}});
        assert_eq!(heard(&progress, 0), Ok(Heard::Progress { id: -1, revision: 9 }));
        let canceled = json!({"result": {"header": header, "canceled": true, "compact_revision": "7"}});
        let wanted = Heard::Canceled { id: 0, created: false, compacted: 7, reason: String::new() };
        assert_eq!(heard(&canceled, 0), Ok(wanted));
        let failed = json!({"error": {"message": "etcdserver: no leader", "grpc_code": 14}});
        assert_eq!(heard(&failed, 0), Ok(Heard::Failed("etcdserver: no leader".to_owned())));
        let kv = json!({"key": api::key_base64(3), "mod_revision": "9"});
        let event = json!({"type": "DELETE", "kv": kv});
        let told = json!({"result": {"header": header, "events": [event]}});
        let Ok(Heard::Events { events, .. }) = heard(&told, 1_500_000) else { panic!("no events") };
        assert_eq!((events[0].key, events[0].revision, events[0].arrived_ms, events[0].record), (3, 9, 2, 0));
        let put = json!({"result": {"header": header, "events": [{ "kv": kv }]}});
        assert!(heard(&put, 0).is_err(), "a put without a value");
        assert!(heard(&json!({}), 0).is_err());
    }
}
