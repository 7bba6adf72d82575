//! What is no good message, or no good call, sent to every method of both servers: they must refuse it with the same status,
//! and serve the next call.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::grpc::{Ended, framed};
use crate::peer::Peer;
use crate::schema::Schema;
use crate::servers::{find_etcd, version};

/// How long a call may stay open before that counts as its answer: a watch, for one, does not end by itself.
const OPEN: Duration = Duration::from_millis(250);
/// The largest message that is taken: the default of `--max-request-bytes` and 512 KiB.
const MESSAGE_BYTES_MAX: usize = 1_572_864 + 512 * 1024;

/// A body in pieces, and headers.
struct Case {
    name: &'static str,
    body: Vec<Bytes>,
    headers: &'static [(&'static str, &'static str)],
    /// Whether every text must be equal, too; what a decoder says of a bad message is its own.
    text: bool,
}

fn flagged(flag: u8, message: &[u8]) -> Bytes {
    let mut out = framed(message).to_vec();
    out[0] = flag;
    out.into()
}

fn cases() -> Vec<Case> {
    let case = |name, body: Vec<Bytes>| Case { name, body, headers: &[], text: false };
    let exact = |name, body: Vec<Bytes>| Case { name, body, headers: &[], text: true };
    let with = |name, headers| Case { name, body: vec![framed(b"")], headers, text: true };
    let prefix = |length: u32| {
        let mut out = vec![0];
        out.extend_from_slice(&length.to_be_bytes());
        out
    };
    let (mut cut, mut trailing) = (prefix(100), framed(b"").to_vec());
    cut.extend_from_slice(b"abc");
    trailing.extend_from_slice(b"\0\0");
    // A field that no message has, so that only the length is wrong.
    let mut large = vec![0xfa, 0x7f];
    let mut length = MESSAGE_BYTES_MAX as u64;
    while length >= 0x80 {
        large.push(length as u8 | 0x80);
        length >>= 7;
    }
    large.push(length as u8);
    large.resize(large.len() + MESSAGE_BYTES_MAX, 0);
    vec![
        case("bytes that are no fields", vec![framed(&[0xff; 7])]),
        case("a field cut off", vec![framed(&[0x0a, 16, b'a'])]),
        case("a number cut off", vec![framed(&[0x08, 0x80])]),
        case(
            "a number of eleven bytes",
            vec![framed(&[0xf8, 0x07, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 1])],
        ),
        case("field number zero", vec![framed(&[0x00, 1])]),
        case("wire type seven", vec![framed(&[0x0f, 1])]),
        case("the end of a group that has not begun", vec![framed(&[0xfc, 0x7f])]),
        exact("an unknown field of fixed width", vec![framed(&[0xfd, 0x7f, 1, 2, 3, 4])]),
        exact("an unknown group", vec![framed(&[0xfb, 0x7f, 0x08, 1, 0xfc, 0x7f])]),
        case("a group that does not end", vec![framed(&[0xfb, 0x7f, 0x08, 1])]),
        exact("no message", vec![]),
        case("a prefix cut off", vec![Bytes::from_static(&[0, 0, 0])]),
        case("a message cut off", vec![cut.into()]),
        case("bytes after the message", vec![trailing.into()]),
        case("two messages", vec![framed(b""), framed(b"")]),
        exact("a message in two pieces", vec![Bytes::from_static(&[0, 0]), Bytes::from_static(&[0, 0, 0])]),
        case("a compressed message without an encoding", vec![flagged(1, b"")]),
        case("a flag that there is not", vec![flagged(2, b"")]),
        exact("a prefix of four gigabytes", vec![prefix(u32::MAX).into()]),
        exact("a message that is too large", vec![framed(&large)]),
        with("another content type", &[("content-type", "text/plain")]),
        with("a content type that only begins like it", &[("content-type", "application/grpcx")]),
        with("a content type with a codec", &[("content-type", "application/grpc+proto")]),
        with("a content type with parameters", &[("content-type", "application/grpc;charset=utf-8")]),
        with("an unknown encoding that is not used", &[("grpc-encoding", "snappy")]),
        Case {
            name: "an unknown encoding",
            body: vec![flagged(1, b"x")],
            headers: &[("grpc-encoding", "snappy")],
            text: false,
        },
        with("no te", &[("te", "")]),
        with("a deadline that has passed", &[("grpc-timeout", "1n")]),
        Case { text: false, ..with("a deadline that is none", &[("grpc-timeout", "soon")]) },
        Case { text: false, ..with("a deadline without a unit", &[("grpc-timeout", "100")]) },
        with("a leader is required", &[("hasleader", "true")]),
    ]
}

/// What `docs/differences.md` explains.
fn explained(case: &Case, method: &str, etcd: Option<&Ended>, tally: Option<&Ended>) -> bool {
    let Some(tally) = tally else { return false };
    // "JSON over HTTP/2": what is not gRPC is for the gateway.
    let json = case.name.contains("content type") && (tally.code == 404 || tally.code == 501);
    // "Peer URLs are checked when a member is updated".
    let urls = method.ends_with("/MemberUpdate") && tally.message == "etcdserver: given member URLs are invalid";
    // "A watch stream that can do nothing more": no request can come, and there is no watcher.
    let idle = method.ends_with("/Watch") && etcd.is_none() && matches!(tally.code, 0 | 13);
    // "Calls cut off": streams end with the status of other calls.
    let cut = ["/Watch", "/LeaseKeepAlive", "/Observe", "/RangeStream"].iter().any(|name| method.ends_with(name))
        && tally.code == 2
        && tally.message.ends_with("EOF");
    json || urls || idle || cut
}

/// The texts for what cannot be read are each server's own (differences, "Texts of malformed requests").
fn agree(case: &Case, etcd: Option<&Ended>, tally: Option<&Ended>) -> bool {
    match (etcd, tally) {
        (None, None) => true,
        (Some(etcd), Some(tally)) => {
            let exact = case.text || etcd.message.starts_with("etcdserver:");
            etcd.code == tally.code && (!exact || etcd.message == tally.message)
        }
        _ => false,
    }
}

#[test]
fn malformed_calls_end_as_they_do_with_etcd() {
    let Some(etcd) = find_etcd() else {
        eprintln!("SKIPPED: no etcd found; set TALLY_TEST_ETCD to one, or let `cargo xtask test` fetch it");
        return;
    };
    let schema = Schema::new();
    let mut peers = [Peer::etcd(&etcd), Peer::subject()];
    if version(peers[0].json()) < (3, 6) {
        eprintln!("SKIPPED: older etcds cut such calls off, so this is compared with 3.6 and newer");
        return;
    }
    let mut methods: Vec<String> = schema.methods().map(|name| format!("/{name}")).collect();
    methods.extend(["/etcdserverpb.KV/Nothing", "/etcdserverpb.Nothing/Put", "/nothing", "/a/b/c"].map(str::to_owned));
    methods.sort();
    // By what differs, the methods.
    let (mut compared, mut differences) = (0, BTreeMap::<String, Vec<&str>>::new());
    for method in &methods {
        for case in cases() {
            let ended =
                peers.each_mut().map(|peer| peer.grpc().raw_within(method, case.body.clone(), case.headers, OPEN));
            let [etcd, tally] = ended.each_ref().map(|ended| ended.as_ref().map(|(ended, _)| ended));
            if !agree(&case, etcd, tally) && !explained(&case, method, etcd, tally) {
                let what = format!("{}:\n  etcd : {etcd:?}\n  tally: {tally:?}", case.name);
                differences.entry(what).or_default().push(method);
            }
            compared += 1;
        }
        for (peer, name) in peers.iter_mut().zip(["etcd", "tally"]) {
            let put = schema.encode("PutRequest", &serde_json::json!({"key": "YQ=="})).unwrap();
            let answer = peer.grpc().call("/etcdserverpb.KV/Put", &put);
            assert!(answer.is_ok(), "after bad calls of {method}, {name} answers a put with {answer:?}");
        }
    }
    println!("{compared} malformed calls of {} methods, {} differences", methods.len(), differences.len());
    let shown: Vec<String> =
        differences.iter().map(|(what, methods)| format!("{what}\n  {}", methods.join(" "))).collect();
    assert!(differences.is_empty(), "{} differences\n{}", differences.len(), shown.join("\n"));
}
