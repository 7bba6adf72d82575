//! How far the state has been built: the record that every commit carries, and its bytes.

use bytes::Bytes;

use crate::checksum::crc32c;

/// Key of the position record in the private column family.
pub(crate) const POSITION_KEY: &[u8] = b"applied";
/// Key of the membership record in the private column family.
pub(crate) const MEMBERSHIP_KEY: &[u8] = b"membership";
/// The version of the position record that this program writes, and the newest that it reads.
pub(crate) const RECORD_VERSION: u32 = 1;
/// Bytes of a position record.
pub(crate) const POSITION_BYTES: usize = 48;

/// Where the state stands in the log that it is built from. It is written in the same atomic write as the effects.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Applied {
    /// Index of the last entry whose effects are in the state.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
    /// Root of the whole logical state after that entry.
    pub root: u128,
    /// The cluster membership in force, with the log id that it came from: opaque here.
    pub membership: Bytes,
}

/// What can be wrong with a stored position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by a newer program.
    #[error("the applied record has version {found}, this program reads up to {supported}; use a newer program")]
    Newer {
        /// The version found.
        found: u32,
        /// The newest version that is understood.
        supported: u32,
    },
    /// Wrong length or wrong checksum.
    #[error("the applied record is damaged ({0})")]
    Damaged(&'static str),
}

impl Applied {
    /// Encodes the position record, version 1, all numbers little-endian:
    ///
    /// ```text
    ///  0  u32   version = 1
    ///  4  u64   index
    /// 12  u64   term
    /// 20  u128  root
    /// 36  u32   length of the membership record
    /// 40  u32   CRC-32C of the membership record
    /// 44  u32   CRC-32C of bytes 0..44
    /// ```
    /// The membership is a record of its own, written only when it changes; length and checksum tie the two together.
    pub(crate) fn encode(&self) -> [u8; POSITION_BYTES] {
        let mut record = [0; POSITION_BYTES];
        record[0..4].copy_from_slice(&RECORD_VERSION.to_le_bytes());
        record[4..12].copy_from_slice(&self.index.to_le_bytes());
        record[12..20].copy_from_slice(&self.term.to_le_bytes());
        record[20..36].copy_from_slice(&self.root.to_le_bytes());
        record[36..40].copy_from_slice(&(self.membership.len() as u32).to_le_bytes());
        record[40..44].copy_from_slice(&crc32c(&self.membership).to_le_bytes());
        let sum = crc32c(&record[0..44]);
        record[44..48].copy_from_slice(&sum.to_le_bytes());
        record
    }

    /// Decodes both records and checks that they belong together.
    pub(crate) fn decode(position: &[u8], membership: &[u8]) -> Result<Applied, RecordError> {
        let version = take::<4>(position, 0).map(u32::from_le_bytes).ok_or(RecordError::Damaged("too short"))?;
        if version > RECORD_VERSION {
            return Err(RecordError::Newer { found: version, supported: RECORD_VERSION });
        }
        if version == 0 || position.len() != POSITION_BYTES {
            return Err(RecordError::Damaged("wrong length"));
        }
        let damaged = || RecordError::Damaged("too short");
        let sum = take::<4>(position, 44).map(u32::from_le_bytes).ok_or_else(damaged)?;
        if sum != crc32c(&position[..44]) {
            return Err(RecordError::Damaged("wrong checksum"));
        }
        let length = take::<4>(position, 36).map(u32::from_le_bytes).ok_or_else(damaged)?;
        let membership_sum = take::<4>(position, 40).map(u32::from_le_bytes).ok_or_else(damaged)?;
        if membership.len() as u64 != u64::from(length) || crc32c(membership) != membership_sum {
            return Err(RecordError::Damaged("its membership record does not belong to it"));
        }
        Ok(Applied {
            index: take::<8>(position, 4).map(u64::from_le_bytes).ok_or_else(damaged)?,
            term: take::<8>(position, 12).map(u64::from_le_bytes).ok_or_else(damaged)?,
            root: take::<16>(position, 20).map(u128::from_le_bytes).ok_or_else(damaged)?,
            membership: Bytes::copy_from_slice(membership),
        })
    }
}

/// The `N` bytes at `offset`, if they are there.
fn take<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn example() -> Applied {
        Applied { index: 7, term: 3, root: 0x0102_0304, membership: Bytes::from_static(b"voters: 1") }
    }

    #[test]
    fn reads_what_it_wrote() {
        let applied = example();
        assert_eq!(Applied::decode(&applied.encode(), &applied.membership), Ok(applied));
    }

    #[test]
    fn golden_version_1() {
        let golden = include_bytes!("../tests/golden/applied-1.bin");
        assert_eq!(&example().encode(), golden);
        assert_eq!(Applied::decode(golden, b"voters: 1"), Ok(example()));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let applied = example();
        for bit in 0..POSITION_BYTES * 8 {
            let mut record = applied.encode();
            record[bit / 8] ^= 1 << (bit % 8);
            assert!(Applied::decode(&record, &applied.membership).is_err(), "bit {bit}");
        }
        assert!(Applied::decode(&applied.encode(), b"voters: 2").is_err());
        assert!(Applied::decode(&applied.encode()[..47], &applied.membership).is_err());
        assert!(Applied::decode(&[], &[]).is_err());
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut record = example().encode();
        record[0] = 2;
        assert_eq!(Applied::decode(&record, &[]), Err(RecordError::Newer { found: 2, supported: 1 }));
    }
}
