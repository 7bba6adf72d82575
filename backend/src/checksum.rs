//! CRC-32C, the one checksum of every record that this crate writes by itself.
//!
//! By the processor's instruction where it has one: a snapshot is summed several times on its way from one disk to another
//! (`docs/decisions/0010`).

/// The checksum of `bytes`.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    ::crc32c::crc32c(bytes)
}

/// A checksum to be fed piece by piece.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Digest(u32);

impl Digest {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0 = ::crc32c::crc32c_append(self.0, bytes);
    }

    pub(crate) fn finalize(self) -> u32 {
        self.0
    }
}

/// The checksum of nothing yet.
pub(crate) fn digest() -> Digest {
    Digest::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let mut pieces = digest();
        pieces.update(b"1234");
        pieces.update(b"");
        pieces.update(b"56789");
        assert_eq!(pieces.finalize(), 0xe306_9283);
    }

    /// The instructions take large inputs in three streams, and small ones and edges otherwise.
    #[test]
    fn is_what_the_tables_say_whatever_the_length() {
        let tables = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
        let bytes: Vec<u8> = (0..100_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for length in (0..300).chain([1_023, 4_096, 8_191, 24_577, 65_536, 99_993]) {
            for start in 0..8.min(bytes.len() - length) {
                let part = &bytes[start..start + length];
                assert_eq!(crc32c(part), tables.checksum(part), "{length} bytes from {start}");
            }
        }
    }
}
