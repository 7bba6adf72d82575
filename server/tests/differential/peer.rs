//! One of the two servers, asked in either wire form; what comes back has one shape.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::grpc::{Ended, Grpc, framed};
use crate::http::{Client, Request, Response};
use crate::schema::Schema;
use crate::servers::Server;

/// The content type of answers over gRPC, which have no other.
pub(crate) const GRPC: &str = "application/grpc";

/// How a request goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Grpc,
}

/// The gRPC method behind a path of the gateway.
pub(crate) fn method(path: &str) -> Option<&'static str> {
    Some(match path.trim_start_matches("/v3beta").trim_start_matches("/v3") {
        "/kv/put" => "/etcdserverpb.KV/Put",
        "/kv/range" => "/etcdserverpb.KV/Range",
        "/kv/rangestream" => "/etcdserverpb.KV/RangeStream",
        "/kv/deleterange" => "/etcdserverpb.KV/DeleteRange",
        "/kv/txn" => "/etcdserverpb.KV/Txn",
        "/kv/compaction" => "/etcdserverpb.KV/Compact",
        "/lease/grant" => "/etcdserverpb.Lease/LeaseGrant",
        "/lease/revoke" | "/kv/lease/revoke" => "/etcdserverpb.Lease/LeaseRevoke",
        "/lease/keepalive" => "/etcdserverpb.Lease/LeaseKeepAlive",
        "/lease/timetolive" | "/kv/lease/timetolive" => "/etcdserverpb.Lease/LeaseTimeToLive",
        "/lease/leases" | "/kv/lease/leases" => "/etcdserverpb.Lease/LeaseLeases",
        "/cluster/member/list" => "/etcdserverpb.Cluster/MemberList",
        "/maintenance/alarm" => "/etcdserverpb.Maintenance/Alarm",
        "/maintenance/status" => "/etcdserverpb.Maintenance/Status",
        "/maintenance/hashkv" => "/etcdserverpb.Maintenance/HashKV",
        "/lock/lock" => "/v3lockpb.Lock/Lock",
        "/lock/unlock" => "/v3lockpb.Lock/Unlock",
        "/election/campaign" => "/v3electionpb.Election/Campaign",
        "/election/proclaim" => "/v3electionpb.Election/Proclaim",
        "/election/leader" => "/v3electionpb.Election/Leader",
        "/election/resign" => "/v3electionpb.Election/Resign",
        _ => return None,
    })
}

/// The request as messages for its gRPC method, if it is good enough to be one.
pub(crate) fn messages(schema: &Schema, request: &Request) -> Option<(&'static str, Vec<Vec<u8>>)> {
    let method = method(&request.path).filter(|_| request.method == "POST")?;
    let values: Result<Vec<Value>, _> = serde_json::Deserializer::from_slice(&request.body).into_iter().collect();
    let name = schema.method(method).0;
    let messages: Option<Vec<_>> = values.ok()?.iter().map(|value| schema.encode(name, value)).collect();
    Some((method, messages.filter(|messages| !messages.is_empty())?))
}

/// A server with clients of both forms.
pub(crate) struct Peer {
    server: Server,
    json: Client,
    grpc: Grpc,
}

impl Peer {
    /// The etcd to compare with.
    pub(crate) fn etcd(program: &Path) -> Self {
        Self::of(Server::etcd(program))
    }

    /// Tally, or what `TALLY_DIFF_SUBJECT` names instead: a program called `etcd`, or another build of Tally.
    pub(crate) fn subject() -> Self {
        let named = std::env::var_os("TALLY_DIFF_SUBJECT").map(PathBuf::from);
        match named.as_deref() {
            Some(program) if program.ends_with("etcd") => Self::of(Server::etcd(program)),
            tally => Self::of(Server::tally(tally)),
        }
    }

    fn of(server: Server) -> Self {
        let (json, grpc) = (Client::new(server.address()), Grpc::new(server.address()));
        Self { server, json, grpc }
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.server.address()
    }

    pub(crate) fn json(&mut self) -> &mut Client {
        &mut self.json
    }

    pub(crate) fn grpc(&mut self) -> &mut Grpc {
        &mut self.grpc
    }

    /// Sends a request in this form; over gRPC it must be good enough.
    pub(crate) fn ask(&mut self, schema: &Schema, request: &Request, form: Form) -> Response {
        match form {
            Form::Json => self.json.send(request),
            Form::Grpc => {
                let (method, messages) = messages(schema, request).unwrap();
                let frames: Vec<Bytes> = messages.iter().map(|message| framed(message)).collect();
                let (ended, messages) = self.grpc.raw(method, frames, &[]);
                let name = schema.method(method).1;
                let mut answers: Vec<Value> = messages.iter().map(|message| schema.decode(name, message)).collect();
                if request.path.ends_with("/rangestream") {
                    answers = joined(answers);
                }
                answer(request, answers, &ended)
            }
        }
    }
}

/// The same shape as over JSON: streams are lines of results.
fn answer(request: &Request, mut answers: Vec<Value>, ended: &Ended) -> Response {
    let failed = (ended.code != 0).then(|| json!({"code": ended.code, "message": ended.message}));
    let lines = if request.path.ends_with("/keepalive") {
        let results = answers.into_iter().map(|answer| json!({"result": answer}));
        results.chain(failed.clone().map(|error| json!({"error": error}))).collect()
    } else {
        match &failed {
            Some(failed) => vec![failed.clone()],
            None if answers.len() == 1 => vec![answers.remove(0)],
            None => vec![json!({"answers": answers})],
        }
    };
    let body = lines.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    let status = if failed.is_some() && !request.path.ends_with("/keepalive") { 400 } else { 200 };
    Response { status, content_type: GRPC.to_owned(), body: body.into_bytes() }
}

/// Differences, "A streamed range that is sorted": etcd cuts it into pieces by key before it sorts each, and repeats records.
pub(crate) fn repeats(request: &Request) -> bool {
    let text = String::from_utf8_lossy(&request.body);
    request.path.ends_with("/rangestream") && ["sort_target", "sortTarget"].iter().any(|name| text.contains(name))
}

/// The pieces of a streamed range put together: how it is cut is each server's own choice, but only the last may have more
/// than records.
fn joined(pieces: Vec<Value>) -> Vec<Value> {
    let count = pieces.len();
    let mut whole: Option<Value> = None;
    for (at, mut piece) in pieces.into_iter().enumerate() {
        let piece = piece["range_response"].take();
        let fields = piece.as_object().cloned().unwrap_or_default();
        if at + 1 < count && fields.keys().any(|name| name != "kvs") {
            return vec![json!({"early": fields.keys().collect::<Vec<_>>()})];
        }
        let whole = whole.get_or_insert_with(|| json!({}));
        for (name, value) in fields {
            match (whole.get_mut(&name), value) {
                (Some(Value::Array(all)), Value::Array(more)) => all.extend(more),
                (_, value) => whole[name.as_str()] = value,
            }
        }
    }
    whole.into_iter().collect()
}
