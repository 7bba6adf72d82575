//! The verdicts of etcd 3.5.1 (3.6 where its rules are younger) on requests as they stand in a body.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::wire::base64;
use crate::wire::request::{CompactionMessage, HashKvMessage, Message, TXN_DEPTH_MAX, decode};

const OPS_MAX: usize = 128;

fn judge<M: Message, T>(body: &str, convert: impl FnOnce(M) -> Result<T, ApiError>) -> Result<T, (u8, String)> {
    let answer = decode::<M>(body.as_bytes()).map_err(ApiError::from).and_then(convert);
    answer.map_err(|error| (error.code() as u8, error.to_string()))
}

fn range_of(body: &str) -> Result<RangeRequest, (u8, String)> {
    judge(body, range)
}

fn put_of(body: &str) -> Result<PutRequest, (u8, String)> {
    judge(body, put)
}

fn txn_of(body: &str) -> Result<TxnRequest, (u8, String)> {
    judge(body, |message| txn(message, OPS_MAX))
}

fn refused<T: std::fmt::Debug>(answer: Result<T, (u8, String)>) -> String {
    let (code, text) = answer.unwrap_err();
    assert_eq!(code, 3, "{text}");
    text
}

const NO_KEY: &str = "etcdserver: key is not provided";

#[test]
fn bodies_that_are_no_request() {
    for (body, words) in [
        ("", NO_KEY),
        ("   ", NO_KEY),
        ("{}", NO_KEY),
        ("null", NO_KEY),
        ("{}x", NO_KEY),
        (r#"{"Key":"Zm9v"}"#, NO_KEY),
        (r#"{"key":null}"#, NO_KEY),
        ("[]", "json: cannot unmarshal array into Go value of type map[string]json.RawMessage"),
        ("\"\"", "json: cannot unmarshal string into Go value of type map[string]json.RawMessage"),
        ("1", "json: cannot unmarshal number into Go value of type map[string]json.RawMessage"),
        ("true", "json: cannot unmarshal bool into Go value of type map[string]json.RawMessage"),
        ("{", "unexpected EOF"),
        (r#"{"key":1}"#, "json: cannot unmarshal number into Go value of type []uint8"),
        (r#"{"key":true}"#, "json: cannot unmarshal bool into Go value of type []uint8"),
        (r#"{"key":{}}"#, "json: cannot unmarshal object into Go value of type []uint8"),
        (r#"{"key":"!!"}"#, "illegal base64 data at input byte 0"),
        (r#"{"key":"Zg="}"#, "illegal base64 data at input byte 3"),
        (r#"{"key":"Zm 9v"}"#, "illegal base64 data at input byte 2"),
        (r#"{"key":"Zm9v","serializable":"true"}"#, "json: cannot unmarshal string into Go value of type bool"),
        (r#"{"key":"Zm9v","serializable":1}"#, "json: cannot unmarshal number into Go value of type bool"),
        (
            r#"{"key":"Zm9v","sort_order":"ascend"}"#,
            r#"unknown value "\"ascend\"" for enum etcdserverpb.RangeRequest.SortOrder"#,
        ),
        (
            r#"{"key":"Zm9v","sort_target":"ASCEND"}"#,
            r#"unknown value "\"ASCEND\"" for enum etcdserverpb.RangeRequest.SortTarget"#,
        ),
        (
            r#"{"key":"Zm9v","sort_order":1.5}"#,
            "json: cannot unmarshal number 1.5 into Go value of type protoreflect.EnumNumber",
        ),
        (
            r#"{"key":"Zm9v","sort_order":99999999999}"#,
            "json: cannot unmarshal number 99999999999 into Go value of type protoreflect.EnumNumber",
        ),
        (
            r#"{"key":"Zm9v","sort_order":true}"#,
            "json: cannot unmarshal bool into Go value of type protoreflect.EnumNumber",
        ),
        // From here on as in 3.6.
        (r#"{"key":"Zm9v","sort_order":9}"#, "etcdserver: invalid sort option"),
        (r#"{"key":"Zm9v","sort_order":-1}"#, "etcdserver: invalid sort option"),
        (r#"{"key":"Zm9v","sort_target":9}"#, "etcdserver: invalid sort option"),
        (r#"{"key":"","sort_order":9}"#, NO_KEY),
        (r#"{"key":"Zm9v","key":"YmFy"}"#, "duplicate field \"key\": give it once"),
        (r#"{"key":"Zm9v","countOnly":true,"count_only":false}"#, "duplicate field \"count_only\": give it once"),
    ] {
        assert_eq!(refused(range_of(body)), words, "{body}");
    }
    // A mistake in the grammar is told before any other.
    assert_eq!(refused(range_of(r#"{"key":1,"limit":}"#)), "invalid character '}' looking for beginning of value");
}

#[test]
fn both_spellings_and_all_forms() {
    let snake = r#"{"key":"Zm9v","range_end":"AA==","limit":"7","revision":5,"sort_order":"DESCEND","sort_target":3,
        "serializable":true,"keys_only":true,"count_only":true,"min_mod_revision":"1","max_mod_revision":"2",
        "min_create_revision":"3","max_create_revision":"4","unknown":{"a":[1,{}]},"@type":"x"} trailing"#;
    let camel = r#"{"rangeEnd":"AA","k\u0065y":"\u005am9v","limit":7.0,"revision":"5","sortOrder":2,"sortTarget":"MOD",
        "serializable":true,"keysOnly":true,"countOnly":true,"minModRevision":1,"maxModRevision":2,
        "minCreateRevision":3,"maxCreateRevision":4}"#;
    let request = range_of(snake).unwrap();
    assert_eq!(range_of(camel).unwrap(), request);
    assert_eq!(request.range, KeyRange::new("foo".into(), "\0".into()).unwrap());
    assert_eq!((request.revision, request.options.limit), (5, 7));
    assert_eq!((request.options.sort_order, request.options.sort_target), (SortOrder::Descend, SortTarget::Mod));
    assert_eq!((request.options.min_create_revision, request.options.max_create_revision), (3, 4));
    let defaults = range_of(r#"{"key":"Zm9v","limit":null,"sort_order":null,"serializable":null}"#).unwrap();
    assert_eq!(defaults, RangeRequest::latest(KeyRange::single("foo".into()).unwrap()));
    assert_eq!(
        decode::<CompactionMessage>(br#"{"revision":"-3","physical":true}"#).unwrap(),
        CompactionMessage { revision: -3, physical: true }
    );
    assert_eq!(decode::<HashKvMessage>(br#"{"revision":9}"#).unwrap().revision, 9);
}

#[test]
fn of_several_mistakes_in_a_put_the_first_is_named() {
    for (body, words) in [
        ("{}", NO_KEY),
        (r#"{"key":"","ignore_value":true,"value":"YQ=="}"#, NO_KEY),
        (r#"{"key":"eno=","ignore_value":true,"value":"YQ=="}"#, "etcdserver: value is provided"),
        (r#"{"key":"eno=","ignoreLease":true,"lease":1}"#, "etcdserver: lease is provided"),
        (
            r#"{"key":"eno=","ignore_lease":true,"lease":1,"ignore_value":true,"value":"YQ=="}"#,
            "etcdserver: value is provided",
        ),
    ] {
        assert_eq!(refused(put_of(body)), words, "{body}");
    }
    let request = put_of(r#"{"key":"Zm9v","value":null,"prevKv":true,"lease":"-1","ID":1}"#).unwrap();
    assert_eq!(request, PutRequest { lease: -1, prev_kv: true, ..PutRequest::new("foo", "") });
}

#[test]
fn transactions_that_are_refused() {
    let op = "request_range";
    for (body, words) in [
        (r#"{"success":[{}]}"#, "etcdserver: key not found"),
        (r#"{"success":[null]}"#, "etcdserver: key not found"),
        (r#"{"success":[{"foo":{}}]}"#, "etcdserver: key not found"),
        (r#"{"success":[{"request_range":null}]}"#, "etcdserver: key not found"),
        (r#"{"success":{}}"#, "json: cannot unmarshal object into Go value of type []json.RawMessage"),
        (r#"{"success":[1]}"#, "json: cannot unmarshal number into Go value of type map[string]json.RawMessage"),
        (r#"{"success":[{"request_range":{}}]}"#, NO_KEY),
        (r#"{"compare":[{}]}"#, NO_KEY),
        (r#"{"compare":[null]}"#, NO_KEY),
        (r#"{"compare":[{}],"success":[{}]}"#, NO_KEY),
        (r#"{"failure":[{"request_range":{}}],"success":[{}]}"#, "etcdserver: key not found"),
        (
            r#"{"compare":[{"key":"YQ==","result":"FOO"}]}"#,
            r#"unknown value "\"FOO\"" for enum etcdserverpb.Compare.CompareResult"#,
        ),
        (
            r#"{"success":[{"request_put":{"key":"YQ==","ignore_value":true,"value":"YQ=="}},{"request_range":{}}]}"#,
            "etcdserver: value is provided",
        ),
        (
            r#"{"success":[{"request_put":{"key":"YQ=="}},{"requestDeleteRange":{"key":"YQ=="}}]}"#,
            "etcdserver: duplicate key given in txn request",
        ),
        // Nothing that is deleted can be kept. A shape that is wrong is told before keys written twice.
        (
            r#"{"success":[{"request_delete_range":{"key":"YQ==","range_end":"AA=="}},
                {"request_put":{"key":"YQ==","ignore_value":true}}]}"#,
            "etcdserver: duplicate key given in txn request",
        ),
        (
            r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}},{"request_txn":{"failure":[{}]}}]}"#,
            "etcdserver: key not found",
        ),
        // As in 3.6.
        (
            r#"{"success":[{"request_range":{"key":"YQ=="},"request_put":{"key":"Yg=="}}]}"#,
            "field \"request_put\": oneof etcdserverpb.RequestOp.request is already set: give one of its fields",
        ),
        (
            r#"{"compare":[{"key":"YQ==","version":"1","value":"MQ=="}]}"#,
            "field \"value\": oneof etcdserverpb.Compare.target_union is already set: give one of its fields",
        ),
        (r#"{"success":[{"request_range":{"key":"YQ==","sort_order":9}}]}"#, "etcdserver: invalid sort option"),
    ] {
        assert_eq!(refused(txn_of(body)), words, "{body}");
    }
    // A put that does not depend on the key is let through beside the same delete, as in etcd.
    let plain =
        r#"{"success":[{"request_delete_range":{"key":"YQ==","range_end":"AA=="}},{"request_put":{"key":"YQ=="}}]}"#;
    assert_eq!(txn_of(plain).unwrap().success.len(), 2);
    let many = |count: usize| json!({ "success": vec![json!({ op: { "key": "eno=" } }); count] }).to_string();
    assert_eq!(txn_of(&many(128)).unwrap().success.len(), 128);
    assert_eq!(refused(txn_of(&many(129))), "etcdserver: too many operations in txn request");
    let nested =
        |depth: usize| [r#"{"success":[{"request_txn":"#.repeat(depth), "{}".into(), "}]}".repeat(depth)].concat();
    assert!(txn_of(&nested(TXN_DEPTH_MAX - 1)).is_ok());
    for depth in [TXN_DEPTH_MAX, TXN_DEPTH_MAX + 1, 3_000] {
        assert_eq!(refused(txn_of(&nested(depth))), "etcdserver: too many operations in txn request");
    }
    assert_eq!(refused(txn_of(&nested(4_000))), "invalid character '[' exceeded max depth");
}

#[test]
fn compares_as_etcd_judges_them() {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    use CompareTarget::{Create, Lease, Mod, Value, Version};
    for (fields, expected) in [
        ("", (Equal, Version(0))),
        (r#","version":"1""#, (Equal, Version(1))),
        (r#","target":"VERSION","version":1,"result":"EQUAL""#, (Equal, Version(1))),
        (r#","target":"VERSION","version":null"#, (Equal, Version(0))),
        (r#","target":"VALUE","value":"MQ==""#, (Equal, Value("1".into()))),
        (r#","target":"VALUE","version":"1""#, (Equal, Value("".into()))),
        (r#","target":"MOD","version":"7","result":"GREATER""#, (Greater, Mod(0))),
        (r#","target":"MOD","modRevision":"7","result":2"#, (Less, Mod(7))),
        (r#","target":"CREATE","create_revision":7,"result":"NOT_EQUAL""#, (NotEqual, Create(7))),
        (r#","target":"LEASE","lease":"5""#, (Equal, Lease(5))),
        // Numbers that no name belongs to: see `compare`.
        (r#","target":9"#, (NotEqual, Version(-1))),
        (r#","target":9,"result":2"#, (Equal, Version(-1))),
        (r#","result":9"#, (NotEqual, Version(-1))),
        (r#","result":9,"target":"VALUE""#, (NotEqual, Version(0))),
    ] {
        let body = format!(r#"{{"compare":[{{"key":"YQ=="{fields}}}]}}"#);
        let compare = txn_of(&body).unwrap().compares.remove(0);
        assert_eq!((compare.result, compare.target), expected, "{fields}");
    }
}

fn text64(bytes: &[u8]) -> String {
    let mut text = Vec::new();
    base64::encode(bytes, &mut text);
    String::from_utf8(text).unwrap()
}

proptest! {
    /// Whatever a client library writes is read as it was meant.
    #[test]
    fn what_is_written_is_read(
        key in prop::collection::vec(any::<u8>(), 1..40),
        value: Vec<u8>,
        lease: i64,
        quoted: bool,
        prev_kv: bool,
    ) {
        let number = if quoted { json!(lease.to_string()) } else { json!(lease) };
        let body = json!({ "key": text64(&key), "value": text64(&value), "lease": number, "prev_kv": prev_kv });
        let expected = PutRequest { lease, prev_kv, ..PutRequest::new(key, value) };
        prop_assert_eq!(put_of(&body.to_string()).unwrap(), expected.clone());
        prop_assert_eq!(put_of(&serde_json::to_string_pretty(&body).unwrap()).unwrap(), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Noise around and inside a real request: an answer or an error, and nothing is made up that is larger than the body.
    #[test]
    fn damaged_bodies_are_refused_or_read(cut in 0_usize..400, at in 0_usize..400, noise: Vec<u8>) {
        let body = br#"{"compare":[{"key":"YQ==","target":"MOD","mod_revision":"3","result":"LESS"}],"success":[{"request_put":
            {"key":"Yg==","value":"MQ==","prev_kv":true}},{"request_txn":{"failure":[{"request_range":{"key":"YQ==",
            "range_end":"AA==","sort_order":"DESCEND","limit":5}}]}}],"failure":[{"request_delete_range":{"key":"AA=="}}]}"#;
        let mut damaged = body.to_vec();
        damaged.truncate(cut.max(10));
        let at = at.min(damaged.len());
        let end = (at + noise.len() / 2).min(damaged.len());
        damaged.splice(at..end, noise);
        if let Ok(message) = decode::<TxnMessage>(&damaged) {
            prop_assert!(message.success.len() + message.failure.len() + message.compare.len() <= damaged.len());
            let _ = txn(message, OPS_MAX);
        }
        let _ = decode::<RangeMessage>(&damaged);
        let _ = decode::<PutMessage>(&damaged);
    }
}
