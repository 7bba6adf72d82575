//! An export as a stream of checked frames, and back.
//!
//! ```text
//! header   "TALLYSNP"  u32 version = 1
//! frame    u32 kind  u32 length  payload  u32 CRC-32C of (u64 number of the frame, kind, length, payload)
//!            kind 1  manifest, of format 1 or 2                               first, once
//!            kind 2  data: u32 file, u64 offset, up to 1 MiB of the file      files in order, offsets without a gap
//!            kind 3  end: u64 number of frames before it                      last, once
//! ```
//! All numbers are little-endian. The number of a frame is not sent but counted, so that a frame that is lost, doubled
//! or moved breaks its checksum. Where the manifest has no checksums of the files, the receiver makes them.

use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::mem;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::checksum::{self, Digest};
use crate::durable::{Durable, syncing};
use crate::error::{ExportError, FileError};
use crate::export::{Export, Unfinished};
use crate::failpoint::{Failpoints, Step};
use crate::manifest::{ExportedFile, MANIFEST, MANIFEST_BYTES_MAX, Manifest};

const MAGIC: &[u8; 8] = b"TALLYSNP";
const STREAM_VERSION: u32 = 1;
const HEADER_BYTES: u64 = 12;
/// Kind, length and checksum around each payload.
const FRAME_BYTES: u64 = 12;
/// File and offset before the data.
const DATA_BYTES: u64 = 12;
/// Bytes of a file in one frame.
const CHUNK_BYTES: usize = 1 << 20;

const KIND_MANIFEST: u32 = 1;
const KIND_DATA: u32 = 2;
const KIND_END: u32 = 3;

/// The checksum of a frame up to its payload.
fn frame_digest(number: u64, kind: u32, length: u32) -> Digest {
    let mut digest = checksum::digest();
    digest.update(&number.to_le_bytes());
    digest.update(&kind.to_le_bytes());
    digest.update(&length.to_le_bytes());
    digest
}

fn frame_sum(number: u64, kind: u32, payload: &[u8]) -> u32 {
    let mut digest = frame_digest(number, kind, payload.len() as u32);
    digest.update(payload);
    digest.finalize()
}

impl Export {
    /// The export as a stream of bytes. Holds one frame in memory.
    pub fn reader(&self) -> ExportReader<'_> {
        ExportReader::new(&self.path, &self.manifest)
    }

    /// Writes the stream, returns its length.
    pub fn write_to(&self, out: &mut impl Write) -> Result<u64, ExportError> {
        let mut reader = self.reader();
        let mut offset = 0;
        while let Some(piece) = reader.next_piece()? {
            out.write_all(&piece).map_err(|source| ExportError::Transport { offset, source })?;
            offset += piece.len() as u64;
        }
        Ok(offset)
    }

    /// Bytes of the whole stream, known before it is read.
    pub fn stream_bytes(&self) -> u64 {
        let framed = |file: &ExportedFile| {
            let frames = file.bytes.div_ceil(CHUNK_BYTES as u64);
            file.bytes + frames * (FRAME_BYTES + DATA_BYTES)
        };
        let manifest = self.manifest.encode().len() as u64 + FRAME_BYTES;
        HEADER_BYTES + manifest + self.manifest.files.iter().map(framed).sum::<u64>() + 8 + FRAME_BYTES
    }

    /// Receives a stream into a new directory under `dest_root`. Checks every frame, and every file of which the manifest has
    /// a checksum; makes everything durable before it returns, on a thread that it starts for that. Reads nothing past the end
    /// of the stream. Whatever fails, nothing is left behind.
    pub fn receive(input: &mut impl BufRead, dest_root: &Path) -> Result<Export, ExportError> {
        Export::receive_with(input, dest_root, &Failpoints::none())
    }

    /// As [`Export::receive`], with faults.
    pub fn receive_with(
        input: &mut impl BufRead,
        dest_root: &Path,
        failpoints: &Failpoints,
    ) -> Result<Export, ExportError> {
        fs::create_dir_all(dest_root).map_err(FileError::on("create", dest_root))?;
        let unfinished = Unfinished::new(dest_root);
        fs::create_dir(&unfinished.path).map_err(FileError::on("create", &unfinished.path))?;
        let mut frames = Frames { input, offset: 0, number: 0 };
        frames.header(dest_root)?;
        let mut manifest = frames.manifest(&unfinished.path)?;
        syncing(&unfinished.path, |durable| {
            for (index, file) in manifest.files.iter_mut().enumerate() {
                let found = receive_file(&mut frames, index, file, &unfinished.path, durable, failpoints)?;
                if manifest.summed && found != file.crc32c {
                    let detail = format!("its checksum is not {:08x}", file.crc32c);
                    return Err(ExportError::Mismatch { path: unfinished.path.join(&file.name), detail });
                }
                file.crc32c = found;
            }
            frames.end()
        })?;
        manifest.summed = true;
        unfinished.finish(manifest, failpoints)
    }
}

/// What comes next in the stream.
enum Stage {
    Header,
    Manifest,
    File { index: usize, offset: u64, file: Option<File> },
    End,
    Done,
}

/// Reads an export, or what is to become one elsewhere, as a stream.
pub struct ExportReader<'a> {
    path: &'a Path,
    manifest: &'a Manifest,
    stage: Stage,
    frames: u64,
    buffer: Vec<u8>,
    position: usize,
}

impl<'a> ExportReader<'a> {
    pub(crate) fn new(path: &'a Path, manifest: &'a Manifest) -> ExportReader<'a> {
        ExportReader { path, manifest, stage: Stage::Header, frames: 0, buffer: Vec::new(), position: 0 }
    }

    /// The next piece of the stream, as long as a frame may be, or `None` at its end. Costs no copy.
    pub fn next_piece(&mut self) -> Result<Option<Bytes>, ExportError> {
        if self.position == self.buffer.len() && !self.refill()? {
            return Ok(None);
        }
        let piece = Bytes::from(mem::take(&mut self.buffer)).slice(self.position..);
        self.position = 0;
        Ok(Some(piece))
    }

    /// Replaces the buffer by the next piece of the stream; `false` at its end.
    fn refill(&mut self) -> Result<bool, ExportError> {
        self.position = 0;
        self.buffer.clear();
        match mem::replace(&mut self.stage, Stage::Done) {
            Stage::Header => {
                self.buffer.extend_from_slice(MAGIC);
                self.buffer.extend_from_slice(&STREAM_VERSION.to_le_bytes());
                self.stage = Stage::Manifest;
            }
            Stage::Manifest => {
                self.begin_frame(KIND_MANIFEST);
                self.buffer.extend_from_slice(self.manifest.encode().as_bytes());
                self.finish_frame(KIND_MANIFEST);
                self.stage = self.begin_file(0);
            }
            Stage::File { index, offset, file } => {
                // Whoever reads on after an error gets nothing more, and not the half of a frame.
                self.refill_data(index, offset, file).inspect_err(|_| self.buffer.clear())?;
            }
            Stage::End => {
                self.begin_frame(KIND_END);
                self.buffer.extend_from_slice(&self.frames.to_le_bytes());
                self.finish_frame(KIND_END);
            }
            Stage::Done => return Ok(false),
        }
        Ok(true)
    }

    fn refill_data(&mut self, index: usize, offset: u64, file: Option<File>) -> Result<(), ExportError> {
        let entry = &self.manifest.files[index];
        let path = self.path.join(&entry.name);
        let mut file = match file {
            Some(file) => file,
            None => File::open(&path).map_err(FileError::on("open", &path))?,
        };
        let chunk = (entry.bytes - offset).min(CHUNK_BYTES as u64);
        self.buffer.reserve_exact(chunk as usize + (FRAME_BYTES + DATA_BYTES) as usize);
        self.begin_frame(KIND_DATA);
        self.buffer.extend_from_slice(&(index as u32).to_le_bytes());
        self.buffer.extend_from_slice(&offset.to_le_bytes());
        let before = self.buffer.len();
        (&mut file).take(chunk).read_to_end(&mut self.buffer).map_err(FileError::on("read", &path))?;
        if (self.buffer.len() - before) as u64 != chunk {
            let detail = format!("it ends before its {} bytes", entry.bytes);
            return Err(ExportError::Mismatch { path, detail });
        }
        self.finish_frame(KIND_DATA);
        let offset = offset + chunk;
        self.stage = match offset < entry.bytes {
            true => Stage::File { index, offset, file: Some(file) },
            false => self.begin_file(index + 1),
        };
        Ok(())
    }

    /// The stage that begins the first file from `index` on. Empty files have no frame.
    fn begin_file(&self, index: usize) -> Stage {
        let mut rest = self.manifest.files.iter().enumerate().skip(index);
        match rest.find(|(_, entry)| entry.bytes > 0) {
            Some((index, _)) => Stage::File { index, offset: 0, file: None },
            None => Stage::End,
        }
    }

    fn begin_frame(&mut self, kind: u32) {
        self.buffer.extend_from_slice(&kind.to_le_bytes());
        self.buffer.extend_from_slice(&[0; 4]);
    }

    fn finish_frame(&mut self, kind: u32) {
        let length = (self.buffer.len() - 8) as u32;
        self.buffer[4..8].copy_from_slice(&length.to_le_bytes());
        let sum = frame_sum(self.frames, kind, &self.buffer[8..]);
        self.buffer.extend_from_slice(&sum.to_le_bytes());
        self.frames += 1;
    }
}

impl Read for ExportReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if self.position == self.buffer.len() && !self.refill().map_err(io::Error::other)? {
            return Ok(0);
        }
        let length = out.len().min(self.buffer.len() - self.position);
        out[..length].copy_from_slice(&self.buffer[self.position..self.position + length]);
        self.position += length;
        Ok(length)
    }
}

/// Reads and checks frames.
struct Frames<'a, R> {
    input: &'a mut R,
    offset: u64,
    number: u64,
}

impl<R: BufRead> Frames<'_, R> {
    fn damaged(&self, detail: impl Into<String>) -> ExportError {
        ExportError::Stream { offset: self.offset, detail: detail.into() }
    }

    fn broken(&self, source: io::Error) -> ExportError {
        ExportError::Transport { offset: self.offset, source }
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N], ExportError> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|source| self.broken(source))?;
        self.offset += N as u64;
        Ok(bytes)
    }

    fn header(&mut self, dest_root: &Path) -> Result<(), ExportError> {
        if &self.read::<8>()? != MAGIC {
            return Err(self.damaged("it does not begin as a snapshot does"));
        }
        let found = u32::from_le_bytes(self.read()?);
        if found != STREAM_VERSION {
            return Err(ExportError::Format { path: dest_root.to_path_buf(), found, supported: STREAM_VERSION });
        }
        Ok(())
    }

    /// Begins a frame, which must be of this kind; the length of its payload.
    fn begin(&mut self, kind: u32, bytes_max: usize) -> Result<u32, ExportError> {
        let found = u32::from_le_bytes(self.read()?);
        if found != kind {
            return Err(self.damaged(format!("a frame of kind {found} where one of kind {kind} belongs")));
        }
        let length = u32::from_le_bytes(self.read()?);
        if length as usize > bytes_max {
            return Err(self.damaged(format!("a frame of {length} bytes, the limit is {bytes_max}")));
        }
        Ok(length)
    }

    /// Ends a frame whose checksum was computed to be this.
    fn finish(&mut self, sum: u32) -> Result<(), ExportError> {
        if u32::from_le_bytes(self.read()?) != sum {
            return Err(self.damaged("wrong checksum of a frame"));
        }
        self.number += 1;
        Ok(())
    }

    /// The payload of a frame of this kind.
    fn frame(&mut self, kind: u32, bytes_max: usize) -> Result<Vec<u8>, ExportError> {
        let length = self.begin(kind, bytes_max)?;
        let mut payload = vec![0; length as usize];
        self.input.read_exact(&mut payload).map_err(|source| self.broken(source))?;
        self.offset += u64::from(length);
        self.finish(frame_sum(self.number, kind, &payload))?;
        Ok(payload)
    }

    fn manifest(&mut self, directory: &Path) -> Result<Manifest, ExportError> {
        let payload = self.frame(KIND_MANIFEST, MANIFEST_BYTES_MAX)?;
        Manifest::decode(&directory.join(MANIFEST), &payload)
    }

    /// The next piece of a file, which must be this one and not longer than `bytes_max`: shown to `sink` as it comes, which
    /// is before its checksum has been seen, and added to `sum`. Its length.
    fn data(
        &mut self,
        index: usize,
        offset: u64,
        bytes_max: u64,
        sum: &mut Digest,
        mut sink: impl FnMut(&[u8]) -> Result<(), FileError>,
    ) -> Result<u64, ExportError> {
        let length = self.begin(KIND_DATA, CHUNK_BYTES + DATA_BYTES as usize)?;
        let mut expected = [0; DATA_BYTES as usize];
        expected[..4].copy_from_slice(&(index as u32).to_le_bytes());
        expected[4..].copy_from_slice(&offset.to_le_bytes());
        let bytes = u64::from(length).saturating_sub(DATA_BYTES);
        if bytes == 0 || self.read::<{ DATA_BYTES as usize }>()? != expected {
            return Err(self.damaged(format!("not the data of file {index} from byte {offset} on")));
        }
        if bytes > bytes_max {
            return Err(self.damaged(format!("file {index} goes on after its end")));
        }
        let (mut rest, mut frame) = (bytes, frame_digest(self.number, KIND_DATA, length));
        frame.update(&expected);
        while rest > 0 {
            let there = match self.input.fill_buf() {
                Ok([]) => return Err(self.broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(there) => &there[..there.len().min(usize::try_from(rest).unwrap_or(usize::MAX))],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(self.broken(source)),
            };
            frame.update(there);
            sum.update(there);
            sink(there)?;
            let taken = there.len();
            self.input.consume(taken);
            self.offset += taken as u64;
            rest -= taken as u64;
        }
        self.finish(frame.finalize())?;
        Ok(bytes)
    }

    fn end(&mut self) -> Result<(), ExportError> {
        let frames = self.number;
        if self.frame(KIND_END, 8)? != frames.to_le_bytes() {
            return Err(self.damaged(format!("the end does not count {frames} frames")));
        }
        Ok(())
    }
}

/// Receives one file and has it made durable; its checksum.
fn receive_file<R: BufRead>(
    frames: &mut Frames<'_, R>,
    index: usize,
    entry: &ExportedFile,
    directory: &Path,
    durable: &Durable,
    failpoints: &Failpoints,
) -> Result<u32, ExportError> {
    let path: PathBuf = directory.join(&entry.name);
    let mut file = durable.create(&path)?;
    let (mut offset, mut sum) = (0, checksum::digest());
    while offset < entry.bytes {
        offset += frames.data(index, offset, entry.bytes - offset, &mut sum, |data| file.write(data))?;
        failpoints.pass(Step::FrameReceived, &path).map_err(FileError::on("write", &path))?;
    }
    file.finish()?;
    Ok(sum.finalize())
}
