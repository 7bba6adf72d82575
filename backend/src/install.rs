//! Installing an export: staged beside the live data, verified, then put in force by one change of the pointer.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::applied::Applied;
use crate::backend::{Backend, Inner, lock, same_identity};
use crate::config::Config;
use crate::error::{ExportError, FileError, InstallError, StorageError};
use crate::export::{Export, verify_file};
use crate::failpoint::{Failpoints, Step};
use crate::layout::{Directory, Generation, Staging, sync_directory, sync_file};
use crate::pointer::Pointer;

/// What the names of tables end with. They are never changed once written, so they may be shared by hard links.
const TABLE: &str = ".sst";

/// A snapshot that is staged and verified, but not in force. Dropping it deletes it and leaves the old state as it is.
#[must_use = "a staged snapshot is deleted unless switched in"]
pub struct Staged {
    backend: Backend,
    /// The state in force, where it is open.
    old: Option<Arc<Inner>>,
    /// Whether there is no state in force at all.
    first: bool,
    _staging: Staging,
}

impl Backend {
    /// Installs an export into a directory that is not open, making the directory when there is nothing in it, and opens
    /// it. A crash at any moment leaves the old state or the new one.
    pub fn install(config: Config, export: &Path) -> Result<Backend, InstallError> {
        Staged::prepare(config, export)?.switch()
    }

    /// Stages an export beside the state in force, which goes on working. Cost: linear in the data, for the checksums.
    pub fn stage(&self, export: &Path) -> Result<Staged, InstallError> {
        self.stage_received(&Export::open(export)?)
    }

    /// As [`Backend::stage`], for one that this process has just made or received: the manifest is known to be that of its
    /// tables, which are not read again.
    pub fn stage_received(&self, export: &Export) -> Result<Staged, InstallError> {
        self.inner.check_writable()?;
        let directory = Arc::clone(&self.inner.directory);
        stage(self.inner.config.clone(), directory, export, Some(Arc::clone(&self.inner)), false)
    }
}

impl Staged {
    /// Stages an export in a directory that is not open.
    pub fn prepare(config: Config, export: &Path) -> Result<Staged, InstallError> {
        config.validate()?;
        let directory = Directory::lock(&config.path)?;
        let pointer = directory.pointer()?;
        if let Some(pointer) = &pointer {
            same_identity(&config, pointer)?;
        }
        directory.clean(pointer.as_ref().map(|pointer| pointer.generation.as_str()))?;
        stage(config, directory, &Export::open(export)?, None, pointer.is_none())
    }

    /// The staged state, to be looked at before the switch: does its content have the root that its position names?
    /// It must not be committed to, nor kept if the switch is given up.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Puts the staged state in force and returns its handle. Handles of the old state read on, but commit no more; its
    /// files are deleted when the last of them is dropped.
    pub fn switch(self) -> Result<Backend, InstallError> {
        let Staged { backend, old, first, _staging } = self;
        let Inner { generation, directory, config, .. } = &*backend.inner;
        let pointer = Pointer { identity: config.identity, generation: generation.name().to_owned() };
        // The turn to commit is held over the change, so that no commit goes to the old state after it.
        let turn = old.as_ref().map(|old| old.begin_commit()).transpose()?;
        if let Some(old) = &old {
            not_older(old, &backend.applied())?;
        }
        // From here on the pointer may be in force even where an error comes back.
        generation.doom(false);
        if let Err(error) = directory.switch(&pointer, &config.failpoints) {
            if let Some(old) = &old {
                old.poison(StorageError::SwitchFailed { path: directory.path().to_path_buf() });
            }
            return Err(error.into());
        }
        if let Some(old) = &old {
            old.poison(StorageError::Replaced { path: old.generation.path().to_path_buf() });
            old.generation.doom(true);
        }
        if first {
            directory.unmark(&config.failpoints)?;
        }
        drop(turn);
        Ok(backend)
    }
}

fn not_older(old: &Inner, applied: &Applied) -> Result<(), InstallError> {
    let current = lock(&old.applied).as_ref().map_or(0, |current| current.index);
    if applied.index < current {
        return Err(InstallError::Older { found: applied.index, current });
    }
    Ok(())
}

fn stage(
    config: Config,
    directory: Arc<Directory>,
    export: &Export,
    old: Option<Arc<Inner>>,
    first: bool,
) -> Result<Staged, InstallError> {
    let staging = directory.begin_staging();
    let staging = staging.ok_or_else(|| InstallError::Busy { path: directory.path().to_path_buf() })?;
    let (found, expected) = (export.cluster_id(), config.identity.cluster_id);
    if found != expected {
        return Err(InstallError::Cluster { found, expected });
    }
    if let Some(old) = &old {
        not_older(old, export.applied())?;
    }
    export.check_names()?;
    let generation = directory.make_generation(first, &config.failpoints)?;
    copy_files(export, &generation, &config.failpoints)?;
    let failpoints = config.failpoints.clone();
    let backend = Backend::open_generation(config, directory, generation, false)?;
    verify_position(export, &backend, &failpoints)?;
    Ok(Staged { backend, old, first, _staging: staging })
}

/// Puts the files of the export into the generation, and verifies *these*, so that nothing can change in between; but for
/// tables that this process has checked when it wrote them, which are the same files here.
fn copy_files(export: &Export, generation: &Generation, failpoints: &Failpoints) -> Result<(), InstallError> {
    for file in export.files() {
        let (from, to) = (export.path().join(file.name()), generation.path().join(file.name()));
        let linked = file.name().ends_with(TABLE) && fs::hard_link(&from, &to).is_ok();
        if !linked && from.exists() {
            fs::copy(&from, &to).map_err(FileError::on("copy", &from))?;
        }
        if !(linked && export.checked) {
            verify_file(&to, file).map_err(|error| name_source(error, &from))?;
        }
        // What is checked has been made durable, and the link becomes it with the directory.
        if !(linked && export.checked) {
            sync_file(&to)?;
        }
        failpoints.pass(Step::FileStaged, &to).map_err(FileError::on("stage", &to))?;
    }
    sync_directory(generation.path())?;
    let passed = failpoints.pass(Step::StagedVerified, generation.path());
    Ok(passed.map_err(FileError::on("verify", generation.path()))?)
}

/// The operator has to look at the export, not at the copy that is deleted again.
fn name_source(error: ExportError, from: &Path) -> ExportError {
    match error {
        ExportError::Mismatch { detail, .. } => ExportError::Mismatch { path: from.to_path_buf(), detail },
        other => other,
    }
}

/// Where the staged state stands must be what the manifest says.
fn verify_position(export: &Export, staged: &Backend, failpoints: &Failpoints) -> Result<(), InstallError> {
    let found = staged.applied();
    if &found != export.applied() {
        let expected = Box::new(export.applied().clone());
        return Err(InstallError::Position { path: export.path().to_path_buf(), found: Box::new(found), expected });
    }
    let path = staged.inner.generation.path();
    Ok(failpoints.pass(Step::StagedOpened, path).map_err(FileError::on("verify", path))?)
}
