//! One stored key-value record, in the very bytes that go over the wire.
//!
//! The layout is the protobuf message `KeyValue`, fields in ascending order, zero fields left out:
//!
//! ```text
//! 0A len key | 10 create_revision | 18 mod_revision | 20 version | 2A len value | 30 lease
//! ```
//!
//! Numbers are varints. A tombstone has version 0 and carries only its key and mod revision.

use bytes::{BufMut, Bytes, BytesMut};

const KEY: u8 = 0x0A;
const CREATE: u8 = 0x10;
const MOD: u8 = 0x18;
const VERSION: u8 = 0x20;
const VALUE: u8 = 0x2A;
const LEASE: u8 = 0x30;

/// One key-value record: cheap to clone, its bytes are a protobuf `KeyValue` ready to be sent.
///
/// **Invariant**: the bytes decode; they were either encoded here or checked by [`Record::decode`].
#[derive(Clone, PartialEq, Eq)]
pub struct Record(Bytes);

/// The fields of a [`Record`], all at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordParts<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The revision that created the key; 0 in a tombstone.
    pub create_revision: i64,
    /// The revision that wrote this record.
    pub mod_revision: i64,
    /// Puts since the key was created, this one included; 0 in a tombstone.
    pub version: i64,
    /// The value.
    pub value: &'a [u8],
    /// The lease the key is attached to; 0 is none.
    pub lease: i64,
}

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes end inside a field.
    #[error("the record ends inside field {field}")]
    Truncated {
        /// The field's number.
        field: u8,
    },
    /// A varint is longer than it need be or than 64 bits.
    #[error("field {field} is not a minimal 64-bit varint")]
    BadVarint {
        /// The field's number.
        field: u8,
    },
    /// A field is written although it is zero.
    #[error("field {field} is written although it is zero or empty")]
    ZeroField {
        /// The field's number.
        field: u8,
    },
    /// A tag that is unknown, repeated or out of order.
    #[error("unexpected tag {tag:#04x} at byte {at}")]
    UnexpectedTag {
        /// The tag.
        tag: u8,
        /// Its place.
        at: usize,
    },
    /// The fields are those of neither a put nor a tombstone.
    #[error("key, revisions and version do not fit together")]
    Inconsistent,
}

impl Record {
    /// Encodes a record. The parts must be those of a put or of a tombstone, as everywhere in this crate.
    pub(crate) fn encode(parts: &RecordParts<'_>) -> Record {
        let mut out = BytesMut::with_capacity(encoded_length(parts));
        put_bytes(&mut out, KEY, parts.key);
        put_number(&mut out, CREATE, parts.create_revision);
        put_number(&mut out, MOD, parts.mod_revision);
        put_number(&mut out, VERSION, parts.version);
        put_bytes(&mut out, VALUE, parts.value);
        put_number(&mut out, LEASE, parts.lease);
        Record(out.freeze())
    }

    /// The record that says `key` was deleted at `mod_revision`.
    pub(crate) fn tombstone(key: &[u8], mod_revision: i64) -> Record {
        Record::encode(&RecordParts { key, mod_revision, ..RecordParts::default() })
    }

    /// Checks bytes strictly (canonical form only) and takes them as a record.
    pub fn decode(bytes: Bytes) -> Result<Record, RecordError> {
        parse(&bytes)?;
        Ok(Record(bytes))
    }

    /// The encoded record: a protobuf `KeyValue`.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// All fields at once; cheaper than asking for them one by one.
    pub fn parts(&self) -> RecordParts<'_> {
        parse(&self.0).expect("a record's bytes were checked when it was made")
    }

    /// The key.
    pub fn key(&self) -> &[u8] {
        self.parts().key
    }

    /// The value; empty in a tombstone.
    pub fn value(&self) -> &[u8] {
        self.parts().value
    }

    /// The revision that created the key; 0 in a tombstone.
    pub fn create_revision(&self) -> i64 {
        self.parts().create_revision
    }

    /// The revision that wrote this record.
    pub fn mod_revision(&self) -> i64 {
        self.parts().mod_revision
    }

    /// Puts since the key was created; 0 in a tombstone.
    pub fn version(&self) -> i64 {
        self.parts().version
    }

    /// The lease; 0 is none.
    pub fn lease(&self) -> i64 {
        self.parts().lease
    }

    /// True if this says that the key was deleted.
    pub fn is_tombstone(&self) -> bool {
        self.version() == 0
    }

    /// The same record with an empty value.
    pub fn without_value(&self) -> Record {
        Record::encode(&RecordParts { value: &[], ..self.parts() })
    }
}

impl std::fmt::Debug for Record {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = self.parts();
        out.debug_struct("Record")
            .field("key", &format_args!("{}", parts.key.escape_ascii()))
            .field("create_revision", &parts.create_revision)
            .field("mod_revision", &parts.mod_revision)
            .field("version", &parts.version)
            .field("value_bytes", &parts.value.len())
            .field("lease", &parts.lease)
            .finish()
    }
}

/// Decodes the fields of a record, refusing every encoding but the canonical one.
pub(crate) fn parse(bytes: &[u8]) -> Result<RecordParts<'_>, RecordError> {
    let mut input = Input { bytes, at: 0 };
    let parts = RecordParts {
        key: input.bytes_field(KEY)?,
        create_revision: input.number_field(CREATE)?,
        mod_revision: input.number_field(MOD)?,
        version: input.number_field(VERSION)?,
        value: input.bytes_field(VALUE)?,
        lease: input.number_field(LEASE)?,
    };
    if let Some(tag) = bytes.get(input.at) {
        return Err(RecordError::UnexpectedTag { tag: *tag, at: input.at });
    }
    let put = parts.version > 0 && parts.create_revision > 0 && parts.create_revision <= parts.mod_revision;
    let tombstone = parts.version == 0 && parts.create_revision == 0 && parts.value.is_empty() && parts.lease == 0;
    if parts.key.is_empty() || parts.mod_revision <= 0 || !(put || tombstone) {
        return Err(RecordError::Inconsistent);
    }
    Ok(parts)
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn starts(&mut self, tag: u8) -> bool {
        let here = self.bytes.get(self.at) == Some(&tag);
        self.at += usize::from(here);
        here
    }

    fn number_field(&mut self, tag: u8) -> Result<i64, RecordError> {
        if !self.starts(tag) {
            return Ok(0);
        }
        match self.varint(tag >> 3)? {
            0 => Err(RecordError::ZeroField { field: tag >> 3 }),
            number => Ok(number.cast_signed()),
        }
    }

    fn bytes_field(&mut self, tag: u8) -> Result<&'a [u8], RecordError> {
        if !self.starts(tag) {
            return Ok(&[]);
        }
        let field = tag >> 3;
        let length = self.varint(field)?;
        if length == 0 {
            return Err(RecordError::ZeroField { field });
        }
        let rest = &self.bytes[self.at..];
        let data = usize::try_from(length).ok().and_then(|length| rest.get(..length));
        let data = data.ok_or(RecordError::Truncated { field })?;
        self.at += data.len();
        Ok(data)
    }

    fn varint(&mut self, field: u8) -> Result<u64, RecordError> {
        let mut number = 0u64;
        for place in 0..10 {
            let byte = *self.bytes.get(self.at).ok_or(RecordError::Truncated { field })?;
            self.at += 1;
            number |= u64::from(byte & 0x7F) << (7 * place);
            if byte & 0x80 == 0 {
                let minimal = place == 0 || byte != 0;
                let fits = place < 9 || byte <= 1;
                return if minimal && fits { Ok(number) } else { Err(RecordError::BadVarint { field }) };
            }
        }
        Err(RecordError::BadVarint { field })
    }
}

fn put_bytes(out: &mut BytesMut, tag: u8, data: &[u8]) {
    if !data.is_empty() {
        out.put_u8(tag);
        put_varint(out, data.len() as u64);
        out.put_slice(data);
    }
}

fn put_number(out: &mut BytesMut, tag: u8, number: i64) {
    if number != 0 {
        out.put_u8(tag);
        put_varint(out, number.cast_unsigned());
    }
}

fn put_varint(out: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8((number & 0x7F) as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

fn varint_length(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

fn encoded_length(parts: &RecordParts<'_>) -> usize {
    let bytes = |data: &[u8]| if data.is_empty() { 0 } else { 1 + varint_length(data.len() as u64) + data.len() };
    let number = |number: i64| if number == 0 { 0 } else { 1 + varint_length(number.cast_unsigned()) };
    bytes(parts.key)
        + number(parts.create_revision)
        + number(parts.mod_revision)
        + number(parts.version)
        + bytes(parts.value)
        + number(parts.lease)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const PUT: &[u8] = b"\x0a\x01k\x10\x05\x18\xac\x02\x20\x03\x2a\x05value\x30\x07";

    fn parts() -> RecordParts<'static> {
        RecordParts { key: b"k", create_revision: 5, mod_revision: 300, version: 3, value: b"value", lease: 7 }
    }

    #[test]
    fn the_layout_is_fixed() {
        assert_eq!(&**Record::encode(&parts()).bytes(), PUT);
        assert_eq!(&**Record::tombstone(b"k", 300).bytes(), b"\x0a\x01k\x18\xac\x02");
        assert_eq!(Record::decode(Bytes::from_static(PUT)).unwrap().parts(), parts());
    }

    #[test]
    fn without_value_keeps_the_rest() {
        let blank = Record::encode(&parts()).without_value();
        assert_eq!(blank.parts(), RecordParts { value: b"", ..parts() });
    }

    #[test]
    fn every_other_form_is_refused() {
        let cases: [(&[u8], RecordError); 9] = [
            (b"", RecordError::Inconsistent),
            (b"\x0a\x02k", RecordError::Truncated { field: 1 }),
            (b"\x0a\x01k\x18", RecordError::Truncated { field: 3 }),
            (b"\x0a\x01k\x18\x81\x00", RecordError::BadVarint { field: 3 }),
            (b"\x0a\x01k\x18\x00", RecordError::ZeroField { field: 3 }),
            (b"\x0a\x01k\x18\x05\x10\x05", RecordError::UnexpectedTag { tag: 0x10, at: 5 }),
            (b"\x0a\x01k\x18\x05\x38\x05", RecordError::UnexpectedTag { tag: 0x38, at: 5 }),
            (b"\x0a\x01k\x18\x05\x2a\x01v", RecordError::Inconsistent),
            (b"\x0a\x01k\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", RecordError::BadVarint { field: 3 }),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Record::decode(Bytes::copy_from_slice(bytes)).unwrap_err(), expected, "{bytes:02x?}");
        }
        for end in 0..PUT.len() {
            // Cutting at a field boundary leaves a shorter record, which is told by its content or is well formed.
            if let Ok(record) = Record::decode(Bytes::copy_from_slice(&PUT[..end])) {
                assert!(end == 10 || end == 17, "cut at {end}: {record:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            key in prop::collection::vec(any::<u8>(), 1..200), value in prop::collection::vec(any::<u8>(), 0..300),
            create in 1..i64::MAX, more in 0..1000i64, version in 1..i64::MAX, lease in any::<i64>(),
        ) {
            let mod_revision = create.saturating_add(more);
            let parts = RecordParts { key: &key, create_revision: create, mod_revision, version, value: &value, lease };
            let record = Record::encode(&parts);
            prop_assert_eq!(record.bytes().len(), encoded_length(&parts));
            let decoded = Record::decode(record.bytes().clone()).unwrap();
            prop_assert_eq!(decoded.parts(), parts);
        }

        #[test]
        fn whatever_decodes_is_canonical(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(record) = Record::decode(Bytes::from(bytes.clone())) {
                let again = Record::encode(&record.parts());
                prop_assert_eq!(&**again.bytes(), &bytes[..]);
            }
        }
    }
}
