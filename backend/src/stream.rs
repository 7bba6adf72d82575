//! An export as a stream of checked frames, and back.
//!
//! ```text
//! header   "TALLYSNP"  u32 version = 1
//! frame    u32 kind  u32 length  payload  u32 CRC-32C of (u64 number of the frame, kind, length, payload)
//!            kind 1  manifest: the text of MANIFEST.tally                     first, once
//!            kind 2  data: u32 file, u64 offset, up to 1 MiB of the file      files in order, offsets without a gap
//!            kind 3  end: u64 number of frames before it                      last, once
//! ```
//! All numbers are little-endian. The number of a frame is not sent but counted, so that a frame that is lost, doubled
//! or moved breaks its checksum.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::checksum;
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
/// Bytes of a file that are written before they are synced: whoever shares the disk never waits behind more.
const SYNC_BYTES: u64 = 1 << 20;

const KIND_MANIFEST: u32 = 1;
const KIND_DATA: u32 = 2;
const KIND_END: u32 = 3;

fn frame_sum(number: u64, kind: u32, payload: &[u8]) -> u32 {
    let mut digest = checksum::digest();
    digest.update(&number.to_le_bytes());
    digest.update(&kind.to_le_bytes());
    digest.update(&(payload.len() as u32).to_le_bytes());
    digest.update(payload);
    digest.finalize()
}

impl Export {
    /// The export as a stream of bytes. Holds one frame in memory.
    pub fn reader(&self) -> ExportReader<'_> {
        ExportReader { export: self, stage: Stage::Header, frames: 0, buffer: Vec::new(), position: 0 }
    }

    /// Writes the stream, returns its length.
    pub fn write_to(&self, out: &mut impl Write) -> Result<u64, ExportError> {
        let mut reader = self.reader();
        let mut offset = 0;
        while reader.refill()? {
            out.write_all(&reader.buffer).map_err(|source| ExportError::Transport { offset, source })?;
            offset += reader.buffer.len() as u64;
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

    /// Receives a stream into a new directory under `dest_root`. Checks every frame and every file; makes everything
    /// durable before it returns. Reads nothing past the end of the stream. Whatever fails, nothing is left behind.
    pub fn receive(input: &mut impl Read, dest_root: &Path) -> Result<Export, ExportError> {
        Export::receive_with(input, dest_root, &Failpoints::none())
    }

    /// As [`Export::receive`], with faults.
    pub fn receive_with(
        input: &mut impl Read,
        dest_root: &Path,
        failpoints: &Failpoints,
    ) -> Result<Export, ExportError> {
        fs::create_dir_all(dest_root).map_err(FileError::on("create", dest_root))?;
        let unfinished = Unfinished::new(dest_root);
        fs::create_dir(&unfinished.path).map_err(FileError::on("create", &unfinished.path))?;
        let mut frames = Frames { input, offset: 0, number: 0, payload: Vec::new() };
        frames.header(dest_root)?;
        let manifest = frames.manifest(&unfinished.path)?;
        for (index, file) in manifest.files.iter().enumerate() {
            receive_file(&mut frames, index, file, &unfinished.path, failpoints)?;
        }
        frames.end()?;
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

/// Reads an export as a stream.
pub struct ExportReader<'a> {
    export: &'a Export,
    stage: Stage,
    frames: u64,
    buffer: Vec<u8>,
    position: usize,
}

impl ExportReader<'_> {
    /// Replaces the buffer by the next piece of the stream; `false` at its end.
    fn refill(&mut self) -> Result<bool, ExportError> {
        self.position = 0;
        self.buffer.clear();
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Header => {
                self.buffer.extend_from_slice(MAGIC);
                self.buffer.extend_from_slice(&STREAM_VERSION.to_le_bytes());
                self.stage = Stage::Manifest;
            }
            Stage::Manifest => {
                self.begin_frame(KIND_MANIFEST);
                self.buffer.extend_from_slice(self.export.manifest.encode().as_bytes());
                self.finish_frame(KIND_MANIFEST);
                self.stage = self.begin_file(0);
            }
            Stage::File { index, offset, file } => self.refill_data(index, offset, file)?,
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
        let entry = &self.export.manifest.files[index];
        let path = self.export.path.join(&entry.name);
        let mut file = match file {
            Some(file) => file,
            None => File::open(&path).map_err(FileError::on("open", &path))?,
        };
        let chunk = (entry.bytes - offset).min(CHUNK_BYTES as u64);
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
        let mut rest = self.export.manifest.files.iter().enumerate().skip(index);
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
    payload: Vec<u8>,
}

impl<R: Read> Frames<'_, R> {
    fn damaged(&self, detail: impl Into<String>) -> ExportError {
        ExportError::Stream { offset: self.offset, detail: detail.into() }
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N], ExportError> {
        let mut bytes = [0; N];
        let offset = self.offset;
        self.input.read_exact(&mut bytes).map_err(|source| ExportError::Transport { offset, source })?;
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

    /// Reads a frame of this kind into `payload`.
    fn frame(&mut self, kind: u32, bytes_max: usize) -> Result<(), ExportError> {
        let found = u32::from_le_bytes(self.read()?);
        if found != kind {
            return Err(self.damaged(format!("a frame of kind {found} where one of kind {kind} belongs")));
        }
        let length = u32::from_le_bytes(self.read()?) as usize;
        if length > bytes_max {
            return Err(self.damaged(format!("a frame of {length} bytes, the limit is {bytes_max}")));
        }
        self.payload.resize(length, 0);
        let offset = self.offset;
        self.input.read_exact(&mut self.payload).map_err(|source| ExportError::Transport { offset, source })?;
        self.offset += length as u64;
        let sum = u32::from_le_bytes(self.read()?);
        if sum != frame_sum(self.number, kind, &self.payload) {
            return Err(self.damaged("wrong checksum of a frame"));
        }
        self.number += 1;
        Ok(())
    }

    fn manifest(&mut self, directory: &Path) -> Result<Manifest, ExportError> {
        self.frame(KIND_MANIFEST, MANIFEST_BYTES_MAX)?;
        Manifest::decode(&directory.join(MANIFEST), &self.payload)
    }

    /// The next piece of a file, which must be this one.
    fn data(&mut self, index: usize, offset: u64) -> Result<&[u8], ExportError> {
        self.frame(KIND_DATA, CHUNK_BYTES + DATA_BYTES as usize)?;
        let mut expected = [0; DATA_BYTES as usize];
        expected[..4].copy_from_slice(&(index as u32).to_le_bytes());
        expected[4..].copy_from_slice(&offset.to_le_bytes());
        if self.payload.get(..expected.len()) != Some(&expected) || self.payload.len() == expected.len() {
            return Err(self.damaged(format!("not the data of file {index} from byte {offset} on")));
        }
        Ok(&self.payload[expected.len()..])
    }

    fn end(&mut self) -> Result<(), ExportError> {
        let frames = self.number;
        self.frame(KIND_END, 8)?;
        if self.payload != frames.to_le_bytes() {
            return Err(self.damaged(format!("the end does not count {frames} frames")));
        }
        Ok(())
    }
}

fn receive_file<R: Read>(
    frames: &mut Frames<'_, R>,
    index: usize,
    entry: &ExportedFile,
    directory: &Path,
    failpoints: &Failpoints,
) -> Result<(), ExportError> {
    let path: PathBuf = directory.join(&entry.name);
    let mut file = File::create_new(&path).map_err(FileError::on("create", &path))?;
    let (mut offset, mut unsynced, mut digest) = (0, 0, checksum::digest());
    while offset < entry.bytes {
        let data = frames.data(index, offset)?;
        if data.len() as u64 > entry.bytes - offset {
            let detail = format!("it goes on after its {} bytes", entry.bytes);
            return Err(ExportError::Mismatch { path, detail });
        }
        file.write_all(data).map_err(FileError::on("write", &path))?;
        digest.update(data);
        offset += data.len() as u64;
        unsynced += data.len() as u64;
        if unsynced >= SYNC_BYTES {
            file.sync_data().map_err(FileError::on("sync", &path))?;
            unsynced = 0;
        }
        failpoints.pass(Step::FrameReceived, &path).map_err(FileError::on("write", &path))?;
    }
    if digest.finalize() != entry.crc32c {
        let detail = format!("its checksum is not {:08x}", entry.crc32c);
        return Err(ExportError::Mismatch { path, detail });
    }
    Ok(file.sync_all().map_err(FileError::on("sync", &path))?)
}
