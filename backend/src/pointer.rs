//! The `LIVE` file: format, identity, and which generation is in force. Text, so that a human can read it.

use std::path::Path;

use crate::checksum::crc32c;
use crate::config::Identity;
use crate::error::OpenError;

/// The directory format that this program writes, and the newest that it reads.
pub(crate) const FORMAT: u32 = 1;

/// What the `LIVE` file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pointer {
    pub(crate) identity: Identity,
    pub(crate) generation: String,
}

impl Pointer {
    /// Encodes the file, format 1: six lines. The first two and the last keep their meaning in every later format, so
    /// that an older program can tell "newer" from "damaged".
    ///
    /// ```text
    /// tally-backend
    /// format 1
    /// cluster 00000000000000aa
    /// member 00000000000000bb
    /// directory 000102030405060708090a0b0c0d0e0f
    /// live db-0123456789abcdef
    /// crc32c 89abcdef                 (of everything before this line)
    /// ```
    pub(crate) fn encode(&self) -> String {
        let uuid = u128::from_be_bytes(self.identity.directory_uuid);
        let text = format!(
            "tally-backend\nformat {FORMAT}\ncluster {:016x}\nmember {:016x}\ndirectory {uuid:032x}\nlive {}\n",
            self.identity.cluster_id, self.identity.member_id, self.generation
        );
        seal(text)
    }

    /// Decodes the file at `path`.
    pub(crate) fn decode(path: &Path, text: &[u8]) -> Result<Pointer, OpenError> {
        let corrupt = |detail: String| OpenError::Corrupt { path: path.to_path_buf(), detail };
        let body = unseal(text).map_err(corrupt)?;
        let mut lines = Lines::new(body);
        lines.literal("tally-backend").map_err(corrupt)?;
        let found = lines.decimal("format").map_err(corrupt)?;
        if found > u64::from(FORMAT) {
            let found = u32::try_from(found).unwrap_or(u32::MAX);
            return Err(OpenError::Format { path: path.to_path_buf(), found, supported: FORMAT });
        }
        let pointer = Self::decode_fields(&mut lines).map_err(corrupt)?;
        Ok(pointer)
    }

    fn decode_fields(lines: &mut Lines<'_>) -> Result<Pointer, String> {
        let cluster_id = lines.hex64("cluster")?;
        let member_id = lines.hex64("member")?;
        let directory_uuid = lines.hex128("directory")?.to_be_bytes();
        let generation = lines.value("live")?.to_owned();
        if !crate::layout::is_generation_name(&generation) {
            return Err(format!("'{generation}' is no name of a generation"));
        }
        lines.end()?;
        Ok(Pointer { identity: Identity { cluster_id, member_id, directory_uuid }, generation })
    }
}

/// Appends the checksum line.
pub(crate) fn seal(mut text: String) -> String {
    let sum = crc32c(text.as_bytes());
    text.push_str(&format!("crc32c {sum:08x}\n"));
    text
}

/// Checks and removes the checksum line.
pub(crate) fn unseal(text: &[u8]) -> Result<&str, String> {
    const TAIL_BYTES: usize = "crc32c 00000000\n".len();
    let text = std::str::from_utf8(text).map_err(|_| "it is not text".to_owned())?;
    let split = text.len().checked_sub(TAIL_BYTES).filter(|split| text.is_char_boundary(*split));
    let (body, tail) = text.split_at(split.ok_or("it is cut short")?);
    let sum = tail.strip_prefix("crc32c ").and_then(|sum| sum.strip_suffix('\n')).ok_or("no checksum line")?;
    if sum != format!("{:08x}", crc32c(body.as_bytes())) {
        return Err("wrong checksum".to_owned());
    }
    Ok(body)
}

/// Reads `name value` lines in their fixed order.
pub(crate) struct Lines<'a> {
    lines: std::str::Lines<'a>,
    number: usize,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(text: &'a str) -> Lines<'a> {
        Lines { lines: text.lines(), number: 0 }
    }

    pub(crate) fn next(&mut self) -> Option<&'a str> {
        self.number += 1;
        self.lines.next()
    }

    pub(crate) fn literal(&mut self, expected: &str) -> Result<(), String> {
        match self.next() {
            Some(line) if line == expected => Ok(()),
            _ => Err(format!("line {} is not '{expected}'", self.number)),
        }
    }

    pub(crate) fn value(&mut self, name: &str) -> Result<&'a str, String> {
        let value = self.next().and_then(|line| line.strip_prefix(name)).and_then(|rest| rest.strip_prefix(' '));
        value.ok_or_else(|| format!("line {} is not '{name} …'", self.number))
    }

    pub(crate) fn decimal(&mut self, name: &str) -> Result<u64, String> {
        let value = self.value(name)?;
        value.parse().map_err(|_| format!("line {}: '{value}' is no number", self.number))
    }

    pub(crate) fn hex64(&mut self, name: &str) -> Result<u64, String> {
        let value = self.value(name)?;
        u64::from_str_radix(value, 16).map_err(|_| format!("line {}: '{value}' is no hexadecimal number", self.number))
    }

    pub(crate) fn hex128(&mut self, name: &str) -> Result<u128, String> {
        let value = self.value(name)?;
        u128::from_str_radix(value, 16).map_err(|_| format!("line {}: '{value}' is no hexadecimal number", self.number))
    }

    pub(crate) fn end(&mut self) -> Result<(), String> {
        match self.next() {
            None => Ok(()),
            Some(_) => Err(format!("line {} is one too many", self.number)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn example() -> Pointer {
        let identity = Identity { cluster_id: 0xaa, member_id: 0xbb, directory_uuid: [7; 16] };
        Pointer { identity, generation: "db-0123456789abcdef".to_owned() }
    }

    #[test]
    fn golden_version_1() {
        let golden = include_bytes!("../tests/golden/live-1.txt");
        assert_eq!(example().encode().as_bytes(), golden);
        assert_eq!(Pointer::decode(Path::new("LIVE"), golden).unwrap(), example());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let text = example().encode().into_bytes();
        for bit in 0..text.len() * 8 {
            let mut damaged = text.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Pointer::decode(Path::new("LIVE"), &damaged).is_err(), "bit {bit}");
        }
        for length in 0..text.len() {
            assert!(Pointer::decode(Path::new("LIVE"), &text[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn a_path_outside_the_directory_is_refused() {
        let text = seal(example().encode().replace("db-0123456789abcdef", "../elsewhere").lines().take(6).fold(
            String::new(),
            |mut all, line| {
                all.push_str(line);
                all.push('\n');
                all
            },
        ));
        let error = Pointer::decode(Path::new("LIVE"), text.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("elsewhere"), "{error}");
    }

    #[test]
    fn a_newer_format_is_named() {
        let text = seal("tally-backend\nformat 9\nsomething else\n".to_owned());
        let error = Pointer::decode(Path::new("LIVE"), text.as_bytes()).unwrap_err();
        assert!(matches!(error, OpenError::Format { found: 9, supported: 1, .. }), "{error}");
    }
}
