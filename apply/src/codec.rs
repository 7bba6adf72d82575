//! The tagged encoding under every replicated command: fields by number, each with its own type.
//!
//! A message is a sequence of fields. A field is one header byte, `number << 2 | type`, and then by type:
//!
//! | type | content |
//! |---|---|
//! | 0 integer | LEB128 of the two's complement 64-bit value, at most 10 bytes |
//! | 1 bytes | LEB128 length, then that many bytes |
//! | 2 message | length as 4 bytes little-endian, then the fields of the nested message |
//!
//! Numbers run from 1 to 63. A field that is zero, false or empty is left out, except where its presence carries meaning; one
//! that is always written must be there, so that no damaged header reads as the same command.
//! A reader that meets a number it does not know must refuse: skipping a field that changes what a command does would let
//! replicas of different versions apply the same entry differently.

use bytes::{BufMut, Bytes, BytesMut};

use crate::command::DecodeError;

const INTEGER: u8 = 0;
const BYTES: u8 = 1;
const MESSAGE: u8 = 2;

/// Writes a 64-bit integer field, also when it is zero.
pub(crate) fn write_integer(out: &mut BytesMut, number: u8, value: i64) {
    out.put_u8(number << 2 | INTEGER);
    write_varint(out, value as u64);
}

/// Writes a 64-bit integer field unless it is zero.
pub(crate) fn write_nonzero(out: &mut BytesMut, number: u8, value: i64) {
    if value != 0 {
        write_integer(out, number, value);
    }
}

/// Writes a bytes field, also when it is empty.
pub(crate) fn write_bytes(out: &mut BytesMut, number: u8, value: &[u8]) {
    out.put_u8(number << 2 | BYTES);
    write_varint(out, value.len() as u64);
    out.put_slice(value);
}

/// Writes a nested message; `fill` writes its fields.
pub(crate) fn write_message(out: &mut BytesMut, number: u8, fill: impl FnOnce(&mut BytesMut)) {
    out.put_u8(number << 2 | MESSAGE);
    let length_at = out.len();
    out.put_u32_le(0);
    fill(out);
    // Requests are bounded far below 4 GiB (max-request-bytes), so the length fits.
    let length = (out.len() - length_at - 4) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
}

fn write_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// One decoded field; bytes and messages are slices of the input, not copies.
pub(crate) enum Field {
    Integer(i64),
    Bytes(Bytes),
    Message(Fields),
}

/// Walks the fields of one message.
pub(crate) struct Fields {
    rest: Bytes,
}

impl Fields {
    pub(crate) fn new(message: Bytes) -> Self {
        Self { rest: message }
    }

    /// The next field with its number, or `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u8, Field)>, DecodeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let header = self.take(1)?[0];
        let number = header >> 2;
        if number == 0 {
            return Err(DecodeError::Malformed { what: "field number 0" });
        }
        let field = match header & 3 {
            INTEGER => Field::Integer(self.varint()? as i64),
            BYTES => {
                let length = self.varint()?;
                Field::Bytes(self.take_u64(length)?)
            }
            MESSAGE => {
                let prefix = self.take(4)?;
                let length = u32::from_le_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]);
                Field::Message(Fields::new(self.take_u64(u64::from(length))?))
            }
            _ => return Err(DecodeError::Malformed { what: "field type 3" }),
        };
        Ok(Some((number, field)))
    }

    fn take(&mut self, length: usize) -> Result<Bytes, DecodeError> {
        if length > self.rest.len() {
            return Err(DecodeError::Truncated);
        }
        Ok(self.rest.split_to(length))
    }

    fn take_u64(&mut self, length: u64) -> Result<Bytes, DecodeError> {
        let length = usize::try_from(length).map_err(|_| DecodeError::Truncated)?;
        self.take(length)
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for (at, byte) in self.rest.iter().enumerate().take(10) {
            let bits = u64::from(byte & 0x7f);
            if at == 9 && bits > 1 {
                return Err(DecodeError::Malformed { what: "integer over 64 bits" });
            }
            value |= bits << (7 * at);
            if byte & 0x80 == 0 {
                let _ = self.rest.split_to(at + 1);
                return Ok(value);
            }
        }
        if self.rest.len() >= 10 {
            return Err(DecodeError::Malformed { what: "integer over 10 bytes" });
        }
        Err(DecodeError::Truncated)
    }
}

impl Field {
    pub(crate) fn integer(self, command: &'static str, number: u8) -> Result<i64, DecodeError> {
        match self {
            Self::Integer(value) => Ok(value),
            Self::Bytes(_) | Self::Message(_) => Err(DecodeError::WrongType { command, number }),
        }
    }

    pub(crate) fn boolean(self, command: &'static str, number: u8) -> Result<bool, DecodeError> {
        match self.integer(command, number)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::WrongType { command, number }),
        }
    }

    pub(crate) fn bytes(self, command: &'static str, number: u8) -> Result<Bytes, DecodeError> {
        match self {
            Self::Bytes(value) => Ok(value),
            Self::Integer(_) | Self::Message(_) => Err(DecodeError::WrongType { command, number }),
        }
    }

    pub(crate) fn message(self, command: &'static str, number: u8) -> Result<Fields, DecodeError> {
        match self {
            Self::Message(fields) => Ok(fields),
            Self::Integer(_) | Self::Bytes(_) => Err(DecodeError::WrongType { command, number }),
        }
    }
}
