//! CRC-32C, the one checksum of every record that this crate writes by itself.

use crc::{CRC_32_ISCSI, Crc, Digest, Table};

/// Sixteen bytes at a time: a snapshot is summed three times on its way, so speed shows.
const CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);
/// The same table behind a reference, so that it exists once.
const TABLE: &Crc<u32, Table<16>> = &CRC32C;

/// The checksum of `bytes`.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    TABLE.checksum(bytes)
}

/// A checksum to be fed piece by piece.
pub(crate) fn digest() -> Digest<'static, u32, Table<16>> {
    TABLE.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let mut pieces = digest();
        pieces.update(b"1234");
        pieces.update(b"56789");
        assert_eq!(pieces.finalize(), 0xe306_9283);
    }
}
