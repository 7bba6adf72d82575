//! The manifest of an exported snapshot: what it is, where it stands, and the size and checksum of every file.

use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;

use crate::applied::Applied;
use crate::error::ExportError;
use crate::pointer::{Lines, seal, unseal};

/// Name of the manifest in the directory of an export.
pub(crate) const MANIFEST: &str = "MANIFEST.tally";
/// The format of a manifest on disk, where every file has its checksum.
const SUMMED: u32 = 1;
/// The format of a manifest in the stream of a state whose files nobody has read yet, and the newest that this program reads.
const UNSUMMED: u32 = 2;
/// Bytes of the largest manifest.
pub(crate) const MANIFEST_BYTES_MAX: usize = 16 << 20;

/// One file of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedFile {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) crc32c: u32,
}

impl ExportedFile {
    /// Its name in the directory of the export.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The CRC-32C of its contents.
    pub fn crc32c(&self) -> u32 {
        self.crc32c
    }
}

/// What an export consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) cluster_id: u64,
    pub(crate) applied: Applied,
    /// In ascending order of their names.
    pub(crate) files: Vec<ExportedFile>,
    /// Whether the checksums of the files are known; where not, they are zero and mean nothing.
    pub(crate) summed: bool,
}

impl Manifest {
    /// Encodes the file, format 1, and without the checksums format 2. The first two lines and the last keep their meaning in
    /// every later format.
    ///
    /// ```text
    /// tally-snapshot
    /// format 1
    /// cluster 00000000000000aa
    /// index 7
    /// term 3
    /// root 00000000000000000000000001020304
    /// membership 766f74657273              (hexadecimal, may be empty)
    /// files 2
    /// file 1024 8a9136aa 000012.sst        (bytes, CRC-32C, name; ascending names; in format 2 no CRC-32C)
    /// file 16 c1d04330 CURRENT
    /// crc32c 89abcdef                      (of everything before this line)
    /// ```
    pub(crate) fn encode(&self) -> String {
        let Applied { index, term, root, membership } = &self.applied;
        let format = if self.summed { SUMMED } else { UNSUMMED };
        let mut text = format!(
            "tally-snapshot\nformat {format}\ncluster {:016x}\nindex {index}\nterm {term}\nroot {root:032x}\nmembership ",
            self.cluster_id
        );
        // Writing into a string cannot fail.
        for byte in membership {
            let _ = write!(text, "{byte:02x}");
        }
        let _ = write!(text, "\nfiles {}\n", self.files.len());
        for ExportedFile { name, bytes, crc32c } in &self.files {
            let _ = match self.summed {
                true => writeln!(text, "file {bytes} {crc32c:08x} {name}"),
                false => writeln!(text, "file {bytes} {name}"),
            };
        }
        seal(text)
    }

    /// Decodes what was found at `path`.
    pub(crate) fn decode(path: &Path, text: &[u8]) -> Result<Manifest, ExportError> {
        let damaged = |detail: String| ExportError::Manifest { path: path.to_path_buf(), detail };
        let body = unseal(text).map_err(damaged)?;
        let mut lines = Lines::new(body);
        lines.literal("tally-snapshot").map_err(damaged)?;
        let found = lines.decimal("format").map_err(damaged)?;
        if found > u64::from(UNSUMMED) {
            let found = u32::try_from(found).unwrap_or(u32::MAX);
            return Err(ExportError::Format { path: path.to_path_buf(), found, supported: UNSUMMED });
        }
        Self::decode_fields(&mut lines, found != u64::from(UNSUMMED)).map_err(damaged)
    }

    fn decode_fields(lines: &mut Lines<'_>, summed: bool) -> Result<Manifest, String> {
        let cluster_id = lines.hex64("cluster")?;
        let index = lines.decimal("index")?;
        let term = lines.decimal("term")?;
        let root = lines.hex128("root")?;
        let membership = unhex(lines.value("membership")?).ok_or("the membership is not hexadecimal")?;
        let count = lines.decimal("files")?;
        let mut files: Vec<ExportedFile> = Vec::new();
        for _ in 0..count {
            let file = decode_file(lines.value("file")?, summed)?;
            if files.last().is_some_and(|last| last.name >= file.name) {
                return Err(format!("'{}' is out of order", file.name));
            }
            files.push(file);
        }
        lines.end()?;
        Ok(Manifest { cluster_id, applied: Applied { index, term, root, membership }, files, summed })
    }

    /// Bytes of all files together.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

fn decode_file(line: &str, summed: bool) -> Result<ExportedFile, String> {
    let mut fields = line.splitn(if summed { 3 } else { 2 }, ' ');
    let mut field = || fields.next().ok_or_else(|| format!("'{line}' has too few fields"));
    let bytes = field()?.parse().map_err(|_| format!("'{line}' has no size"))?;
    let crc32c = match summed {
        true => u32::from_str_radix(field()?, 16).map_err(|_| format!("'{line}' has no checksum"))?,
        false => 0,
    };
    let name = field()?.to_owned();
    if !is_plain_name(&name) {
        return Err(format!("'{name}' is no name of a file"));
    }
    Ok(ExportedFile { name, bytes, crc32c })
}

/// Whether a name stays inside its directory, whatever the system makes of it.
fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name != MANIFEST && name.bytes().all(plain)
}

fn unhex(text: &str) -> Option<Bytes> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    let pairs = (0..text.len()).step_by(2).map(|at| text.get(at..at + 2));
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect::<Option<Vec<u8>>>().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn example() -> Manifest {
        let file = |name: &str, bytes, crc32c| ExportedFile { name: name.to_owned(), bytes, crc32c };
        Manifest {
            cluster_id: 0xaa,
            applied: Applied { index: 7, term: 3, root: 0x0102_0304, membership: Bytes::from_static(b"voters") },
            files: vec![file("000012.sst", 1024, 0x8a91_36aa), file("CURRENT", 16, 0xc1d0_4330)],
            summed: true,
        }
    }

    fn unsummed() -> Manifest {
        let mut manifest = Manifest { summed: false, ..example() };
        manifest.files.iter_mut().for_each(|file| file.crc32c = 0);
        manifest
    }

    #[test]
    fn golden_version_1() {
        let golden = include_bytes!("../tests/golden/manifest-1.txt");
        assert_eq!(example().encode().as_bytes(), golden);
        assert_eq!(Manifest::decode(Path::new("m"), golden).unwrap(), example());
    }

    #[test]
    fn golden_version_2_without_checksums() {
        let golden = include_bytes!("../tests/golden/manifest-2.txt");
        assert_eq!(unsummed().encode().as_bytes(), golden);
        assert_eq!(Manifest::decode(Path::new("m"), golden).unwrap(), unsummed());
    }

    #[test]
    fn every_flipped_bit_is_found() {
        for text in [example().encode(), unsummed().encode()].map(String::into_bytes) {
            for bit in 0..text.len() * 8 {
                let mut damaged = text.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(Manifest::decode(Path::new("m"), &damaged).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for name in ["../x", "/etc/passwd", ".hidden", "", MANIFEST, "a b", "a/b", ".."] {
            let mut manifest = example();
            manifest.files = vec![ExportedFile { name: name.to_owned(), bytes: 1, crc32c: 1 }];
            assert!(Manifest::decode(Path::new("m"), manifest.encode().as_bytes()).is_err(), "{name}");
        }
    }

    #[test]
    fn duplicates_and_newer_formats_are_refused() {
        let mut manifest = example();
        manifest.files[1] = manifest.files[0].clone();
        assert!(Manifest::decode(Path::new("m"), manifest.encode().as_bytes()).is_err());
        let newer = seal("tally-snapshot\nformat 3\nwhatever\n".to_owned());
        let error = Manifest::decode(Path::new("m"), newer.as_bytes()).unwrap_err();
        assert!(matches!(error, ExportError::Format { found: 3, supported: 2, .. }), "{error}");
    }
}
