//! Random requests over a small key space, from a seed: most of them good in all the spellings that JSON allows, some bad.

mod lease;

use std::collections::{HashMap, VecDeque};

use crate::http::{Request, Response};
use crate::schema::{base64, camel};

/// SplitMix64: small, and the same everywhere, so that a seed replays its run.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

/// Makes requests; learns the current revision from the answers so that historical reads hit something.
pub(crate) struct Generator {
    rng: Rng,
    revision: i64,
    modern: bool,
    /// Puts of this transaction may keep values and leases; then nothing in it is deleted "from here on". The two together
    /// crash every etcd (differences, "A put that keeps what its own transaction deleted").
    keeping: bool,
    /// Requests that have to come next.
    queue: VecDeque<Request>,
    /// Leader keys by their lease, as JSON.
    leaders: HashMap<i64, String>,
}

const KEYS: [&[u8]; 22] = [
    b"a",
    b"b",
    b"c",
    b"d",
    b"e",
    b"aa",
    b"ab",
    b"abc",
    b"k/1",
    b"k/2",
    b"k/3",
    b"k/10",
    b"k0",
    b"\x00",
    b"\x00\x00",
    b"\xff",
    b"\xff\xff",
    b"zz",
    b"\xfe",
    b"k",
    b"k/",
    b"long-key-long-key-long-key-long-key-long-key-long-key-long-key-long-key",
];

impl Generator {
    /// `modern`: etcd 3.6 or newer, whose gateway takes base64 in every form. An older one refuses what it does not take, and
    /// from then on the two histories would differ, so it is not sent any.
    pub(crate) fn new(rng: Rng, modern: bool) -> Self {
        Self { rng, revision: 1, modern, keeping: true, queue: VecDeque::new(), leaders: HashMap::new() }
    }

    /// Takes the revision from an answer's header.
    pub(crate) fn learn(&mut self, response: &Response) {
        let Ok(body) = serde_json::from_slice::<serde_json::Value>(&response.body) else { return };
        if let Some(revision) = body["header"]["revision"].as_str().and_then(|text| text.parse().ok()) {
            self.revision = revision;
        }
        self.learn_leader(&body);
    }

    /// Whether the etcd is 3.6 or newer.
    pub(crate) fn modern(&self) -> bool {
        self.modern
    }

    /// Whether what comes next belongs to what came last, and nothing should come between.
    pub(crate) fn busy(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The newest revision that was seen.
    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    /// The generator's numbers, for whoever else chooses at random.
    pub(crate) fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// A key, an end of a range, or none, in JSON; and a revision that may be anything near now.
    pub(crate) fn watched(&mut self) -> (String, Option<String>, i64) {
        (self.key(), self.range_end(), self.near_revision())
    }

    pub(crate) fn next(&mut self) -> Request {
        if let Some(request) = self.queue.pop_front() {
            return request;
        }
        match self.rng.below(1000) {
            0..110 => self.lease(),
            110..130 => self.lock(),
            130..150 => self.election(),
            150..153 => self.alarm(),
            153..155 => Request::post("/v3/cluster/member/list".to_owned(), "{}".to_owned()),
            _ => self.key_value(),
        }
    }

    fn key_value(&mut self) -> Request {
        self.keeping = self.rng.chance(50);
        let prefix = if self.rng.chance(3) { "/v3beta" } else { "/v3" };
        let (path, body) = match self.rng.below(100) {
            0..32 => ("/kv/put", self.put()),
            32..58 => ("/kv/range", self.range(false)),
            58..60 => ("/kv/rangestream", self.range(false)),
            60..68 => ("/kv/deleterange", self.delete()),
            68..88 => ("/kv/txn", self.txn(0)),
            88..89 => ("/kv/compaction", self.compaction()),
            89..91 => ("/maintenance/hashkv", self.hash_kv()),
            91..92 => ("/maintenance/status", "{}".to_owned()),
            _ => return self.bad(),
        };
        Request::post(format!("{prefix}{path}"), body)
    }

    fn object(&mut self, fields: Vec<(&str, String)>) -> String {
        let mut text = String::from("{");
        for (at, (name, value)) in fields.iter().enumerate() {
            if at > 0 {
                text.push(',');
            }
            let name = if self.rng.chance(15) { camel(name) } else { (*name).to_owned() };
            text.push_str(&format!("\"{name}\":{value}"));
        }
        text.push('}');
        text
    }

    fn bytes(&mut self, value: &[u8]) -> String {
        format!("\"{}\"", base64(value, self.modern && self.rng.chance(5)))
    }

    fn integer(&mut self, value: i64) -> String {
        if self.rng.chance(50) { format!("\"{value}\"") } else { value.to_string() }
    }

    fn key(&mut self) -> String {
        let key = if self.rng.chance(1) { &b""[..] } else { *self.rng.pick(&KEYS) };
        self.bytes(key)
    }

    fn range_end(&mut self) -> Option<String> {
        match self.rng.below(10) {
            0..4 => None,
            4..6 => Some(self.bytes(b"\x00")),
            // Over gRPC, an end that is given but empty means "from the key on" to older releases.
            6 if self.modern => Some(self.bytes(b"")),
            7 => Some(self.bytes(b"k0")),
            _ => Some(self.key()),
        }
    }

    fn value(&mut self) -> String {
        let length = match self.rng.below(1000) {
            0..2 => 100_000,
            2..100 => 0,
            100..400 => 1,
            _ => self.rng.below(40),
        };
        let value: Vec<u8> = (0..length).map(|_| b"0123456789\x00\xff"[self.rng.below(12) as usize]).collect();
        self.bytes(&value)
    }

    fn flag(&mut self, fields: &mut Vec<(&str, String)>, name: &'static str, percent: u64) {
        if self.rng.chance(percent) {
            fields.push((name, "true".to_owned()));
        } else if self.rng.chance(3) {
            fields.push((name, self.rng.pick(&["false", "null"]).to_string()));
        }
    }

    fn near_revision(&mut self) -> i64 {
        match self.rng.below(20) {
            0 => self.revision + self.rng.below(3) as i64,
            1 => -1,
            2 => 1,
            _ => self.revision - self.rng.below(40) as i64,
        }
    }

    fn put(&mut self) -> String {
        let mut fields = vec![("key", self.key())];
        if self.rng.chance(92) {
            fields.push(("value", self.value()));
        }
        self.flag(&mut fields, "prev_kv", 30);
        if self.keeping {
            self.flag(&mut fields, "ignore_value", 8);
            self.flag(&mut fields, "ignore_lease", 8);
        }
        if self.rng.chance(12) {
            let lease = self.lease_id();
            fields.push(("lease", self.integer(lease)));
        }
        self.object(fields)
    }

    fn range(&mut self, in_txn: bool) -> String {
        let mut fields = vec![("key", self.key())];
        if let Some(end) = self.range_end() {
            fields.push(("range_end", end));
        }
        if self.rng.chance(25) {
            let revision = self.near_revision();
            // Differences, "Negative revisions in transactions": fixed in etcd after 3.5.1.
            let revision = if in_txn { revision.max(0) } else { revision };
            fields.push(("revision", self.integer(revision)));
        }
        if self.rng.chance(30) {
            let limit = self.rng.below(6) as i64;
            fields.push(("limit", self.integer(limit)));
        }
        if self.rng.chance(20) {
            fields.push((
                "sort_order",
                self.rng.pick(&["\"NONE\"", "\"ASCEND\"", "\"DESCEND\"", "0", "1", "2"]).to_string(),
            ));
        }
        if self.rng.chance(20) {
            let targets = ["\"KEY\"", "\"VERSION\"", "\"CREATE\"", "\"MOD\"", "\"VALUE\"", "0", "1", "2", "3", "4"];
            fields.push(("sort_target", self.rng.pick(&targets).to_string()));
        }
        self.flag(&mut fields, "serializable", 30);
        self.flag(&mut fields, "keys_only", 12);
        self.flag(&mut fields, "count_only", 10);
        for name in ["min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"] {
            if self.rng.chance(5) {
                let revision = self.near_revision();
                fields.push((name, self.integer(revision)));
            }
        }
        self.object(fields)
    }

    fn delete(&mut self) -> String {
        let mut fields = vec![("key", self.key())];
        // Deleting everything is rare, or there would be nothing to read.
        if self.rng.chance(25)
            && let Some(end) = self.range_end()
            && !(self.keeping && end == "\"AA==\"")
        {
            fields.push(("range_end", end));
        }
        self.flag(&mut fields, "prev_kv", 40);
        self.object(fields)
    }

    fn compare(&mut self) -> String {
        let mut fields = vec![("key", self.key())];
        if self.rng.chance(15)
            && let Some(end) = self.range_end()
        {
            fields.push(("range_end", end));
        }
        let results = ["\"EQUAL\"", "\"GREATER\"", "\"LESS\"", "\"NOT_EQUAL\"", "0", "1", "2", "3"];
        if self.rng.chance(90) {
            fields.push(("result", self.rng.pick(&results).to_string()));
        }
        let (target, name, figure) = match self.rng.below(5) {
            0 => ("\"VERSION\"", "version", self.rng.below(4) as i64),
            1 => ("\"CREATE\"", "create_revision", self.near_revision()),
            2 => ("\"MOD\"", "mod_revision", self.near_revision()),
            3 => ("\"VALUE\"", "value", 0),
            _ => ("\"LEASE\"", "lease", self.rng.below(13) as i64),
        };
        fields.push(("target", target.to_owned()));
        if self.rng.chance(95) {
            let figure = if name == "value" { self.value() } else { self.integer(figure) };
            fields.push((name, figure));
        }
        self.object(fields)
    }

    fn operation(&mut self, depth: u32) -> String {
        let (name, body) = match self.rng.below(if depth < 2 { 11 } else { 10 }) {
            0..4 => ("request_put", self.put()),
            4..7 => ("request_range", self.range(true)),
            7..9 => ("request_delete_range", self.delete()),
            9 if self.rng.chance(5) => return "{}".to_owned(),
            9 => ("request_put", self.put()),
            _ => ("request_txn", self.txn(depth + 1)),
        };
        self.object(vec![(name, body)])
    }

    fn list(&mut self, max: u64, mut item: impl FnMut(&mut Self) -> String) -> String {
        let count = self.rng.below(max + 1);
        let items: Vec<_> = (0..count).map(|_| item(self)).collect();
        format!("[{}]", items.join(","))
    }

    fn txn(&mut self, depth: u32) -> String {
        let mut fields = Vec::new();
        if self.rng.chance(80) {
            fields.push(("compare", self.list(2, Self::compare)));
        }
        if self.rng.chance(95) {
            fields.push(("success", self.list(3, |generator| generator.operation(depth))));
        }
        if self.rng.chance(70) {
            fields.push(("failure", self.list(3, |generator| generator.operation(depth))));
        }
        self.object(fields)
    }

    fn compaction(&mut self) -> String {
        let revision = self.revision - self.rng.below(60) as i64 + 2;
        let mut fields = vec![("revision", self.integer(revision))];
        self.flag(&mut fields, "physical", 50);
        self.object(fields)
    }

    fn hash_kv(&mut self) -> String {
        let revision = if self.rng.chance(50) { 0 } else { self.near_revision().max(0) };
        let revision = self.integer(revision);
        self.object(vec![("revision", revision)])
    }

    fn bad(&mut self) -> Request {
        let long = |count: usize, item: &str| format!("[{}]", vec![item; count].join(","));
        let one_put = r#"{"request_put":{"key":"YQ==","value":"YQ=="}}"#;
        let one_range = r#"{"request_range":{"key":"YQ=="}}"#;
        let (path, body) = match self.rng.below(36) {
            0 => ("/v3/kv/put", "{".to_owned()),
            1 => ("/v3/kv/put", "[]".to_owned()),
            2 => ("/v3/kv/put", "\"text\"".to_owned()),
            3 => ("/v3/kv/put", r#"{"key":"!!!","value":"YQ=="}"#.to_owned()),
            4 => ("/v3/kv/put", r#"{"key":5}"#.to_owned()),
            5 => ("/v3/kv/put", r#"{"key":"YQ==","lease":"x"}"#.to_owned()),
            6 => ("/v3/kv/put", r#"{"key":"YQ==","lease":9223372036854775808}"#.to_owned()),
            7 => ("/v3/kv/put", r#"{"key":"YQ==","lease":1.5}"#.to_owned()),
            8 => ("/v3/kv/put", r#"{"key":"YQ==","prev_kv":"yes"}"#.to_owned()),
            9 => ("/v3/kv/put", r#"{"key":"YQ==","prev_kv":1}"#.to_owned()),
            10 => ("/v3/kv/put", r#"{"key":"YQ==","unknown":{"x":[1,2]},"value":"YQ=="}"#.to_owned()),
            11 => ("/v3/kv/put", String::new()),
            12 => ("/v3/kv/put", "null".to_owned()),
            13 => ("/v3/kv/put", "{}".to_owned()),
            14 if self.modern => ("/v3/kv/put", r#"{"key":"YQ","value":"YQ"}"#.to_owned()),
            15 => ("/v3/kv/put", r#"{"key":"YQ==","ignore_value":true,"value":"YQ=="}"#.to_owned()),
            16 => ("/v3/kv/put", r#"{"key":"YQ==","ignore_lease":true,"lease":5}"#.to_owned()),
            17 => ("/v3/kv/range", r#"{"key":"YQ==","sort_order":"UP"}"#.to_owned()),
            // Unknown numbers for sort_order and sort_target are not sent: they crash etcd 3.5.1. Tally's own tests have them.
            18 => ("/v3/kv/range", r#"{"key":"YQ==","sort_target":"SIZE"}"#.to_owned()),
            19 => ("/v3/kv/range", r#"{"key":"YQ==","keys_only":"true"}"#.to_owned()),
            20 => ("/v3/kv/range", r#"{"key":"YQ==","limit":-1}"#.to_owned()),
            21 => ("/v3/kv/range", r#"{"key":"YQ==","revision":1000000000}"#.to_owned()),
            22 => ("/v3/kv/range", r#"{"range_end":"YQ=="}"#.to_owned()),
            23 => ("/v3/kv/range", r#"{"key":null,"range_end":null}"#.to_owned()),
            24 => ("/v3/kv/deleterange", r#"{"key":""}"#.to_owned()),
            25 => ("/v3/kv/txn", format!(r#"{{"success":{}}}"#, long(129, one_range))),
            26 => ("/v3/kv/txn", format!(r#"{{"success":{}}}"#, long(128, one_range))),
            27 => ("/v3/kv/txn", format!(r#"{{"success":{}}}"#, long(2, one_put))),
            28 => ("/v3/kv/txn", r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_delete_range":{"key":"YQ==","range_end":"Yg=="}}]}"#.to_owned()),
            29 => ("/v3/kv/txn", r#"{"compare":[{"target":"VERSION","key":""}]}"#.to_owned()),
            30 => ("/v3/kv/txn", r#"{"success":{}}"#.to_owned()),
            31 => ("/v3/kv/compaction", r#"{"revision":1000000000}"#.to_owned()),
            32 => ("/v3/kv/compaction", r#"{"revision":-5}"#.to_owned()),
            33 => ("/v3/kv/nothing", "{}".to_owned()),
            34 => ("/v3/kv/put", format!(r#"{{"key":"YQ==","value":"{}"}}"#, "A".repeat(1_572_864 / 3 * 4 + 4))),
            _ => ("/v3/kv/put", r#"{"key":"YQ==","value":"YQ=="} trailing"#.to_owned()),
        };
        let method = if self.rng.chance(6) { *self.rng.pick(&["GET", "PUT", "DELETE"]) } else { "POST" };
        Request { method, ..Request::post(path.to_owned(), body) }
    }
}
