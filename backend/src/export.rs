//! Exports: a checkpoint beside the live data, with a manifest that says what it is.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use rocksdb::checkpoint::Checkpoint;

use crate::applied::Applied;
use crate::backend::{Backend, read_applied};
use crate::checksum;
use crate::engine::Engine;
use crate::error::{ExportError, FileError};
use crate::failpoint::{Failpoints, Step};
use crate::layout::{UNFINISHED, list, remove, sync_directory, sync_file, unique, write_durably};
use crate::manifest::{ExportedFile, MANIFEST, MANIFEST_BYTES_MAX, Manifest};
use crate::stream::ExportReader;

/// What the names of exports begin with.
const EXPORT: &str = "export-";
/// Bytes read at a time for a checksum.
const SUM_BYTES: usize = 256 << 10;

/// A finished export: a directory that holds a whole state and its manifest.
#[derive(Clone, Debug)]
pub struct Export {
    pub(crate) path: PathBuf,
    pub(crate) manifest: Manifest,
    /// Whether this process has compared every file with the manifest when it wrote it, or made the manifest of what it wrote.
    pub(crate) checked: bool,
}

/// The state at one moment, set aside to be sent as a stream. Making it reads nothing of the data: there are no checksums of
/// its files, whoever receives the stream makes them. Dropping it deletes it; after a crash [`Export::clean`] does.
#[derive(Debug)]
pub struct Frozen {
    unfinished: Unfinished,
    manifest: Manifest,
}

impl Backend {
    /// Sets the state as of now aside, in a new directory under `dest_root`, which is made when it is not there. On the same
    /// file system the tables are hard links, so it costs a flush. Commits go on meanwhile.
    pub fn freeze(&self, dest_root: &Path) -> Result<Frozen, ExportError> {
        self.inner.check_writable()?;
        let failpoints = &self.inner.config.failpoints;
        fs::create_dir_all(dest_root).map_err(FileError::on("create", dest_root))?;
        let unfinished = Unfinished::new(dest_root);
        let failed = |error| self.inner.error(error, "making a checkpoint", None);
        let checkpoint = Checkpoint::new(self.inner.engine().db()).map_err(failed)?;
        if let Err(error) = checkpoint.create_checkpoint(&unfinished.path) {
            // It flushes first. When that is what failed, the writing is over; otherwise only the checkpoint is.
            self.inner.check_health()?;
            return Err(failed(error).into());
        }
        let passed = failpoints.pass(Step::CheckpointMade, &unfinished.path);
        passed.map_err(FileError::on("export to", &unfinished.path))?;
        let applied = position_of(&unfinished.path)?;
        let mut files = Vec::new();
        for name in list(&unfinished.path)? {
            let path = unfinished.path.join(&name);
            let bytes = fs::metadata(&path).map_err(FileError::on("look at", &path))?.len();
            files.push(ExportedFile { name, bytes, crc32c: 0 });
        }
        let cluster_id = self.inner.config.identity.cluster_id;
        Ok(Frozen { unfinished, manifest: Manifest { cluster_id, applied, files, summed: false } })
    }

    /// Writes the state as of now into a new directory under `dest_root`, as [`Backend::freeze`] does, to be kept: with a
    /// manifest that has the checksum of every file. That costs one reading of the data more.
    pub fn export(&self, dest_root: &Path) -> Result<Export, ExportError> {
        let Frozen { unfinished, mut manifest } = self.freeze(dest_root)?;
        for file in &mut manifest.files {
            let path = unfinished.path.join(&file.name);
            sync_file(&path)?;
            (file.bytes, file.crc32c) = sum_file(&path)?;
        }
        manifest.summed = true;
        unfinished.finish(manifest, &self.inner.config.failpoints)
    }
}

impl Frozen {
    /// The state as a stream of bytes, for [`Export::receive`]. Holds one frame in memory.
    pub fn reader(&self) -> ExportReader<'_> {
        ExportReader::new(&self.unfinished.path, &self.manifest)
    }

    /// Where the state stands.
    pub fn applied(&self) -> &Applied {
        &self.manifest.applied
    }

    /// Deletes it, and says so if that fails: as long as it is there, it holds the tables that it consists of.
    pub fn remove(mut self) -> Result<(), ExportError> {
        self.unfinished.finished = true;
        Ok(remove(&self.unfinished.path)?)
    }
}

impl Export {
    /// Opens a finished export by its manifest. The files are checked by [`Export::verify`] and by every install.
    pub fn open(path: &Path) -> Result<Export, ExportError> {
        let file = path.join(MANIFEST);
        let mut text = Vec::new();
        let reader = File::open(&file).map_err(FileError::on("open", &file))?;
        let limit = MANIFEST_BYTES_MAX as u64 + 1;
        reader.take(limit).read_to_end(&mut text).map_err(FileError::on("read", &file))?;
        if text.len() > MANIFEST_BYTES_MAX {
            let detail = format!("it is larger than {MANIFEST_BYTES_MAX} bytes");
            return Err(ExportError::Manifest { path: file, detail });
        }
        let manifest = Manifest::decode(&file, &text)?;
        if !manifest.summed {
            let detail = "it has no checksums of the files".to_owned();
            return Err(ExportError::Manifest { path: file, detail });
        }
        Ok(Export { path: path.to_path_buf(), manifest, checked: false })
    }

    /// Every finished export under `dest_root`, oldest position first. Unreadable ones are errors, not skipped.
    pub fn list(dest_root: &Path) -> Result<Vec<Export>, ExportError> {
        if !dest_root.exists() {
            return Ok(Vec::new());
        }
        let mut exports = Vec::new();
        for name in list(dest_root)?.into_iter().filter(|name| name.starts_with(EXPORT) && !name.ends_with(UNFINISHED))
        {
            exports.push(Export::open(&dest_root.join(name))?);
        }
        exports.sort_by_key(|export| export.manifest.applied.index);
        Ok(exports)
    }

    /// Deletes what a crash has left half-written under `dest_root`. To be called at start, before anything is exported
    /// to it or received into it.
    pub fn clean(dest_root: &Path) -> Result<(), ExportError> {
        if !dest_root.exists() {
            return Ok(());
        }
        for name in list(dest_root)?.into_iter().filter(|name| name.starts_with(EXPORT) && name.ends_with(UNFINISHED)) {
            remove(&dest_root.join(name))?;
        }
        Ok(sync_directory(dest_root)?)
    }

    /// Compares every file with the manifest: none missing, none too many, sizes and checksums equal.
    /// Cost: one reading of the data.
    pub fn verify(&self) -> Result<(), ExportError> {
        self.check_names()?;
        self.manifest.files.iter().try_for_each(|file| verify_file(&self.path.join(&file.name), file))
    }

    /// Refuses files that the manifest does not name. Missing ones are found when they are opened.
    pub(crate) fn check_names(&self) -> Result<(), ExportError> {
        let known = |name: &str| self.manifest.files.binary_search_by(|file| file.name.as_str().cmp(name)).is_ok();
        match list(&self.path)?.into_iter().find(|name| name != MANIFEST && !known(name)) {
            Some(name) => {
                let detail = "the manifest does not name it".to_owned();
                Err(ExportError::Mismatch { path: self.path.join(name), detail })
            }
            None => Ok(()),
        }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cluster that the state is of.
    pub fn cluster_id(&self) -> u64 {
        self.manifest.cluster_id
    }

    /// Where the state stands.
    pub fn applied(&self) -> &Applied {
        &self.manifest.applied
    }

    /// Its files, in ascending order of their names.
    pub fn files(&self) -> &[ExportedFile] {
        &self.manifest.files
    }

    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.manifest.bytes()
    }

    /// Deletes it. Streams that are being read from it fail.
    pub fn remove(self) -> Result<(), ExportError> {
        // Renamed first, so that a crash midway leaves nothing that looks finished.
        let unfinished = self.path.with_extension(&UNFINISHED[1..]);
        fs::rename(&self.path, &unfinished).map_err(FileError::on("remove", &self.path))?;
        Ok(remove(&unfinished)?)
    }
}

/// A directory in the making; deleted unless finished.
#[derive(Debug)]
pub(crate) struct Unfinished {
    dest_root: PathBuf,
    pub(crate) path: PathBuf,
    finished: bool,
}

impl Unfinished {
    /// Chooses a name that has not been used before. Does not make the directory.
    pub(crate) fn new(dest_root: &Path) -> Unfinished {
        let path = dest_root.join(format!("{EXPORT}{:016x}{UNFINISHED}", unique()));
        Unfinished { dest_root: dest_root.to_path_buf(), path, finished: false }
    }

    /// Writes the manifest, makes everything durable and gives the directory its final name. The files must be durable, and
    /// what the manifest says of them, checksums included, must have been seen by whoever wrote them.
    pub(crate) fn finish(mut self, manifest: Manifest, failpoints: &Failpoints) -> Result<Export, ExportError> {
        let action = "export to";
        write_durably(&self.path.join(MANIFEST), manifest.encode().as_bytes())?;
        sync_directory(&self.path)?;
        failpoints.pass(Step::ManifestWritten, &self.path).map_err(FileError::on(action, &self.path))?;
        let path = self.dest_root.join(format!("{EXPORT}{:016x}-{:016x}", manifest.applied.index, unique()));
        fs::rename(&self.path, &path).map_err(FileError::on("name", &path))?;
        self.finished = true;
        sync_directory(&self.dest_root)?;
        failpoints.pass(Step::ExportNamed, &path).map_err(FileError::on(action, &path))?;
        Ok(Export { path, manifest, checked: true })
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            // Deleted by the next clean where this fails: its name says that it is not finished.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The position in the tables of a directory, which is not changed by the look.
fn position_of(path: &Path) -> Result<Applied, ExportError> {
    let engine = Engine::open_read_only(path)?;
    Ok(read_applied(&engine, engine.read_options(), path)?.unwrap_or_default())
}

/// Compares a file with what the manifest says of it.
pub(crate) fn verify_file(path: &Path, file: &ExportedFile) -> Result<(), ExportError> {
    let mismatch = |detail: String| Err(ExportError::Mismatch { path: path.to_path_buf(), detail });
    let (bytes, crc32c) = match sum_file(path) {
        Ok(found) => found,
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => {
            return mismatch("it is missing".to_owned());
        }
        Err(error) => return Err(error.into()),
    };
    if bytes != file.bytes {
        return mismatch(format!("it has {bytes} bytes instead of {}", file.bytes));
    }
    if crc32c != file.crc32c {
        return mismatch(format!("its checksum is {crc32c:08x} instead of {:08x}", file.crc32c));
    }
    Ok(())
}

/// Size and checksum of a file.
fn sum_file(path: &Path) -> Result<(u64, u32), FileError> {
    let mut file = File::open(path).map_err(FileError::on("open", path))?;
    let mut buffer = vec![0; SUM_BYTES];
    let (mut bytes, mut digest) = (0, checksum::digest());
    loop {
        match file.read(&mut buffer).map_err(FileError::on("read", path))? {
            0 => return Ok((bytes, digest.finalize())),
            read => {
                digest.update(&buffer[..read]);
                bytes += read as u64;
            }
        }
    }
}
