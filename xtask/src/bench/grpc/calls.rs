//! The work of the closed-loop rows as gRPC calls: which call comes next, and what a right answer looks like.

use bytes::Bytes;

use crate::bench::keys::{LARGE_VALUE_BYTES, VALUE_BYTES, Values, key, sorted_keys};
use crate::bench::work::{FILL_KEYS, Kind, RANGE_KEYS};
use crate::grpc::{self, Fields, Value, frame, method, nested, number};
use crate::rng::Rng;

/// A call to make.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) path: &'static str,
    /// Framed.
    pub(crate) message: Bytes,
    /// Whether an answer is right.
    pub(crate) right: fn(&[u8]) -> bool,
}

/// Makes calls.
#[derive(Debug)]
pub(crate) struct Calls {
    kind: Kind,
    /// Keys 0 to here are used.
    keys: u32,
    rng: Rng,
    values: Values,
    filled: u32,
    /// All keys in order, where the work is about ranges.
    sorted: Vec<Vec<u8>>,
    key: Vec<u8>,
}

impl Calls {
    /// The same stream of calls for the same seed.
    pub(crate) fn new(kind: Kind, keys: u32, seed: u64) -> Calls {
        let sorted = if kind == Kind::Range { sorted_keys(keys) } else { Vec::new() };
        let value_bytes = if kind == Kind::LoadLarge { LARGE_VALUE_BYTES } else { VALUE_BYTES };
        let (rng, values) = (Rng::new(seed), Values::raw(seed, value_bytes));
        Calls { kind, keys, rng, values, filled: 0, sorted, key: Vec::new() }
    }

    /// The next call.
    pub(crate) fn next(&mut self) -> Call {
        match self.kind {
            Kind::Put => {
                let index = self.any_key();
                self.put_call(index)
            }
            Kind::Load | Kind::LoadLarge => {
                self.filled += 1;
                self.put_call(self.filled - 1)
            }
            Kind::Get => {
                let index = self.any_key();
                let message = frame(|out| self.key_field(1, index, out));
                Call { path: method::RANGE, message, right: |answer| first_value(answer) == VALUE_BYTES }
            }
            Kind::Range => {
                Call { path: method::RANGE, message: self.range(), right: |answer| kvs(answer) == RANGE_KEYS }
            }
            Kind::Txn => Call { path: method::TXN, message: self.txn(), right: succeeded },
            Kind::Fill => Call { path: method::TXN, message: self.fill(), right: succeeded },
        }
    }

    fn any_key(&mut self) -> u32 {
        self.rng.below(u64::from(self.keys)) as u32
    }

    fn key_field(&mut self, field: u32, index: u32, out: &mut Vec<u8>) {
        self.key.clear();
        key(index, &mut self.key);
        grpc::bytes(out, field, &self.key);
    }

    fn put(&mut self, index: u32, out: &mut Vec<u8>) {
        self.key_field(1, index, out);
        grpc::bytes(out, 2, self.values.any(&mut self.rng));
    }

    fn put_call(&mut self, index: u32) -> Call {
        let message = frame(|out| self.put(index, out));
        Call { path: method::PUT, message, right: |answer| grpc::find(answer, 1).is_some() }
    }

    fn range(&mut self) -> Bytes {
        let from = self.rng.below((self.sorted.len() - RANGE_KEYS) as u64) as usize;
        frame(|out| {
            grpc::bytes(out, 1, &self.sorted[from]);
            grpc::bytes(out, 2, &self.sorted[from + RANGE_KEYS]);
        })
    }

    /// Puts a key if its version is greater than 0.
    fn txn(&mut self) -> Bytes {
        let index = self.any_key();
        frame(|out| {
            nested(out, 1, |out| {
                number(out, 1, 1);
                self.key_field(3, index, out);
                number(out, 4, 0);
            });
            nested(out, 2, |out| nested(out, 2, |out| self.put(index, out)));
        })
    }

    fn fill(&mut self) -> Bytes {
        let count = FILL_KEYS.min(self.keys - self.filled.min(self.keys));
        let from = self.filled;
        self.filled += FILL_KEYS;
        frame(|out| {
            (from..from + count).for_each(|index| nested(out, 2, |out| nested(out, 2, |out| self.put(index, out))));
        })
    }
}

/// Bytes of the value of the first record in an answer to a range.
fn first_value(answer: &[u8]) -> usize {
    let Some(Value::Bytes(record)) = grpc::find(answer, 2) else { return 0 };
    let Some(Value::Bytes(value)) = grpc::find(record, 5) else { return 0 };
    value.len()
}

/// Records in an answer to a range.
fn kvs(answer: &[u8]) -> usize {
    Fields(answer).filter(|(field, _)| *field == 2).count()
}

fn succeeded(answer: &[u8]) -> bool {
    grpc::find(answer, 2) == Some(Value::Number(1))
}

#[cfg(test)]
mod tests {
    use super::{Calls, Kind, RANGE_KEYS, Value, first_value, grpc, kvs, method, succeeded};
    use crate::bench::keys::{VALUE_BYTES, sorted_keys};
    use crate::grpc::{Fields, frame, nested, number};

    /// The fields of a framed message's part.
    fn part(message: &[u8], field: u32) -> &[u8] {
        match grpc::find(message, field) {
            Some(Value::Bytes(part)) => part,
            other => panic!("field {field} is {other:?}"),
        }
    }

    #[test]
    fn calls_have_etcds_fields() {
        let keys = sorted_keys(150);
        for kind in [Kind::Put, Kind::Load] {
            let call = Calls::new(kind, 150, 7).next();
            assert_eq!(call.path, method::PUT);
            assert!(keys.iter().any(|key| key == part(&call.message[5..], 1)));
            assert_eq!(part(&call.message[5..], 2).len(), VALUE_BYTES);
        }
        let range = Calls::new(Kind::Range, 150, 7).next();
        let (from, to) = (part(&range.message[5..], 1), part(&range.message[5..], 2));
        assert_eq!(keys.iter().filter(|key| from <= key.as_slice() && key.as_slice() < to).count(), RANGE_KEYS);
        let txn = Calls::new(Kind::Txn, 150, 7).next();
        let (compare, put) = (part(&txn.message[5..], 1), part(part(&txn.message[5..], 2), 2));
        assert_eq!(part(compare, 3), part(put, 1));
        let mut fill = Calls::new(Kind::Fill, 150, 7);
        let counts = [0, 1].map(|_| Fields(&fill.next().message[5..]).count());
        assert_eq!(counts, [100, 50]);
    }

    #[test]
    fn answers_are_looked_into() {
        let answer = frame(|out| {
            nested(out, 1, |out| number(out, 3, 7));
            (0..3).for_each(|_| nested(out, 2, |out| grpc::bytes(out, 5, &[0; 9])));
        });
        assert_eq!((first_value(&answer[5..]), kvs(&answer[5..])), (9, 3));
        assert!(!succeeded(&answer[5..]) && succeeded(&frame(|out| number(out, 2, 1))[5..]));
    }
}
