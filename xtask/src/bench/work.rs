//! Kinds of work: which request comes next, and what a right answer looks like.

use super::keys::{LARGE_VALUE_BYTES, VALUE_BYTES, Values, base64, key, sorted_keys};
use crate::http;
use crate::rng::Rng;

/// Keys per transaction that fills a store.
pub(crate) const FILL_KEYS: u32 = 100;
/// Keys in the answer to one `Range`.
pub(crate) const RANGE_KEYS: usize = 100;

/// What the clients of one measurement do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Put any of the keys.
    Put,
    /// Read one of the keys, linearizably.
    Get,
    /// Read [`RANGE_KEYS`] keys in order from a random place.
    Range,
    /// Put a key if it exists.
    Txn,
    /// Put the keys one after the other, in transactions of [`FILL_KEYS`].
    Fill,
    /// Put the keys one after the other, each by itself.
    Load,
    /// The same with values of [`LARGE_VALUE_BYTES`].
    LoadLarge,
}

/// Makes requests.
#[derive(Debug)]
pub(crate) struct Work {
    kind: Kind,
    /// Keys 0 to here are used.
    keys: u32,
    rng: Rng,
    values: Values,
    filled: u32,
    /// All keys in order, where the work is about ranges.
    sorted: Vec<Vec<u8>>,
    raw: Vec<u8>,
    body: Vec<u8>,
}

impl Work {
    /// The same stream of requests for the same seed.
    pub(crate) fn new(kind: Kind, keys: u32, seed: u64) -> Work {
        let sorted = if kind == Kind::Range { sorted_keys(keys) } else { Vec::new() };
        let value_bytes = if kind == Kind::LoadLarge { LARGE_VALUE_BYTES } else { VALUE_BYTES };
        let (rng, values) = (Rng::new(seed), Values::new(seed, value_bytes));
        Work { kind, keys, rng, values, filled: 0, sorted, raw: Vec::new(), body: Vec::new() }
    }

    /// Appends the next request to `out`.
    pub(crate) fn request(&mut self, out: &mut Vec<u8>) {
        self.body.clear();
        let path = match self.kind {
            Kind::Put => {
                let index = self.any_key();
                self.put(index);
                "/v3/kv/put"
            }
            Kind::Get => {
                self.body.extend_from_slice(br#"{"key":""#);
                let index = self.any_key();
                self.key(index);
                self.body.extend_from_slice(br#""}"#);
                "/v3/kv/range"
            }
            Kind::Range => {
                self.range();
                "/v3/kv/range"
            }
            Kind::Txn => {
                self.txn();
                "/v3/kv/txn"
            }
            Kind::Fill => {
                self.fill();
                "/v3/kv/txn"
            }
            Kind::Load | Kind::LoadLarge => {
                self.put(self.filled);
                self.filled += 1;
                "/v3/kv/put"
            }
        };
        http::post(out, path, &self.body);
    }

    /// Why an answer is wrong, if it is.
    pub(crate) fn refuse(&self, status: u16, body: &[u8]) -> Option<String> {
        let right = status == 200
            && match self.kind {
                Kind::Put | Kind::Load | Kind::LoadLarge => true,
                Kind::Get => body.len() > VALUE_BYTES,
                Kind::Range => body.len() > RANGE_KEYS * VALUE_BYTES,
                Kind::Txn | Kind::Fill => body.windows(11).any(|found| found == br#""succeeded""#),
            };
        let shown = String::from_utf8_lossy(&body[..body.len().min(300)]);
        (!right).then(|| format!("{:?} was answered with {status}: {shown}", self.kind))
    }

    fn any_key(&mut self) -> u32 {
        self.rng.below(u64::from(self.keys)) as u32
    }

    fn key(&mut self, index: u32) {
        self.raw.clear();
        key(index, &mut self.raw);
        base64(&self.raw, &mut self.body);
    }

    /// `{"key":…,"value":…}`
    fn put(&mut self, index: u32) {
        self.body.extend_from_slice(br#"{"key":""#);
        self.key(index);
        self.body.extend_from_slice(br#"","value":""#);
        self.body.extend_from_slice(self.values.any(&mut self.rng));
        self.body.extend_from_slice(br#""}"#);
    }

    fn range(&mut self) {
        let from = self.rng.below((self.sorted.len() - RANGE_KEYS) as u64) as usize;
        self.body.extend_from_slice(br#"{"key":""#);
        base64(&self.sorted[from], &mut self.body);
        self.body.extend_from_slice(br#"","range_end":""#);
        base64(&self.sorted[from + RANGE_KEYS], &mut self.body);
        self.body.extend_from_slice(br#""}"#);
    }

    fn txn(&mut self) {
        let index = self.any_key();
        self.body.extend_from_slice(br#"{"compare":[{"result":"GREATER","target":"VERSION","version":"0","key":""#);
        self.key(index);
        self.body.extend_from_slice(br#""}],"success":[{"request_put":"#);
        self.put(index);
        self.body.extend_from_slice(b"}]}");
    }

    fn fill(&mut self) {
        self.body.extend_from_slice(br#"{"success":["#);
        for offset in 0..FILL_KEYS.min(self.keys - self.filled.min(self.keys)) {
            if offset > 0 {
                self.body.push(b',');
            }
            self.body.extend_from_slice(br#"{"request_put":"#);
            self.put(self.filled + offset);
            self.body.push(b'}');
        }
        self.filled += FILL_KEYS;
        self.body.extend_from_slice(b"]}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{Kind, Work};

    #[test]
    fn bodies_are_json_of_the_stated_length() {
        for kind in [Kind::Put, Kind::Get, Kind::Range, Kind::Txn, Kind::Fill, Kind::Load, Kind::LoadLarge] {
            let mut work = Work::new(kind, 150, 7);
            for round in 0..2 {
                let mut out = Vec::new();
                work.request(&mut out);
                let text = String::from_utf8(out).unwrap();
                let (head, body) = text.split_once("\r\n\r\n").unwrap();
                assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
                let value: serde_json::Value = serde_json::from_str(body).unwrap();
                if kind == Kind::Fill {
                    assert_eq!(value["success"].as_array().unwrap().len(), [100, 50][round]);
                }
            }
        }
    }
}
