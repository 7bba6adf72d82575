//! Protocol buffers by hand: the fields that are written, and a look at those that come back.

use bytes::Bytes;

/// Bytes before each message of a gRPC stream: whether it is compressed, and its length.
pub(super) const PREFIX_BYTES: usize = 5;

/// One message as it goes on the wire, with its prefix; `fill` appends its fields.
pub(crate) fn frame(fill: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    fill(&mut out);
    let length = (out.len() - PREFIX_BYTES) as u32;
    out[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    out.into()
}

/// Appends a field of bytes or text.
pub(crate) fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    tag(out, field, 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Appends a whole number, a flag or an enum.
pub(crate) fn number(out: &mut Vec<u8>, field: u32, value: u64) {
    tag(out, field, 0);
    varint(out, value);
}

/// Appends a message within a message; `fill` appends its fields.
pub(crate) fn nested(out: &mut Vec<u8>, field: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    tag(out, field, 2);
    let begun = out.len();
    fill(out);
    let mut length = Vec::with_capacity(10);
    varint(&mut length, (out.len() - begun) as u64);
    out.splice(begun..begun, length);
}

fn tag(out: &mut Vec<u8>, field: u32, wire_type: u32) {
    varint(out, u64::from(field << 3 | wire_type));
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'message> {
    Number(u64),
    Bytes(&'message [u8]),
}

/// The fields of a message, in order; ends early at bytes that are no field.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'message>(pub(crate) &'message [u8]);

impl<'message> Iterator for Fields<'message> {
    type Item = (u32, Value<'message>);

    fn next(&mut self) -> Option<Self::Item> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                let (value, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Value::Bytes(value)
            }
            // None of etcd's messages has fields of a fixed width.
            _ => return None,
        };
        Some(((tag >> 3) as u32, value))
    }
}

impl Fields<'_> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

/// The first field of that number.
pub(crate) fn find(message: &[u8], field: u32) -> Option<Value<'_>> {
    Fields(message).find(|(number, _)| *number == field).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::{Fields, Value, bytes, find, frame, nested, number};

    #[test]
    fn what_is_written_is_read_again() {
        let framed = frame(|out| {
            bytes(out, 1, b"key");
            number(out, 3, 300);
            nested(out, 64, |out| bytes(out, 2, &[7; 200]));
        });
        assert_eq!(framed[..5], [0, 0, 0, 0, (framed.len() - 5) as u8]);
        let message = &framed[5..];
        assert_eq!(message[..5], [0x0a, 3, b'k', b'e', b'y']);
        assert_eq!(message[5..8], [0x18, 0xac, 0x02]);
        let fields: Vec<_> = Fields(message).map(|(field, _)| field).collect();
        assert_eq!(fields, [1, 3, 64]);
        assert_eq!(find(message, 3), Some(Value::Number(300)));
        let Some(Value::Bytes(inner)) = find(message, 64) else { panic!("no inner message") };
        assert_eq!(find(inner, 2), Some(Value::Bytes(&[7; 200])));
        assert_eq!(find(message, 2), None);
    }

    #[test]
    fn reading_ends_where_there_is_no_field() {
        for broken in [&[0x0a, 9, 1][..], &[0x08], &[0x08, 0xff], &[0x0d, 1, 2, 3, 4], &[0xff; 12]] {
            assert_eq!(Fields(broken).count(), 0, "{broken:?}");
        }
    }
}
