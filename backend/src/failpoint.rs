//! Named points at which a test may fail, or photograph the directory as a crash would leave it.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// A step that has just been completed on disk. A crash between any two of them must leave the old state or the new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The marker that names a generation in the making is durable.
    Marked,
    /// The empty directory of the new generation is there.
    DirectoryMade,
    /// The engine has made its files in a first generation.
    EngineMade,
    /// One file of an export has been put into the new generation.
    FileStaged,
    /// Every staged file has the size and the checksum of the manifest.
    StagedVerified,
    /// The staged generation has been opened and its position is that of the manifest.
    StagedOpened,
    /// The new pointer is written beside the old one.
    PointerWritten,
    /// The new pointer is in force.
    PointerSwitched,
    /// The marker is gone.
    Unmarked,
    /// The checkpoint of an export is on disk.
    CheckpointMade,
    /// The manifest of an export is written.
    ManifestWritten,
    /// The export has got its final name.
    ExportNamed,
    /// One frame of a received export has been written.
    FrameReceived,
}

type Hook = dyn Fn(Step, &Path) -> io::Result<()> + Send + Sync;

/// Decides at every [`Step`] whether it fails. Empty in production.
#[derive(Clone, Default)]
pub struct Failpoints {
    hook: Option<Arc<Hook>>,
}

impl Failpoints {
    /// Nothing fails.
    pub const fn none() -> Failpoints {
        Failpoints { hook: None }
    }

    /// Asks `hook` after every step; the path is the one that the step worked on. An error is treated as one of the disk.
    pub fn new(hook: impl Fn(Step, &Path) -> io::Result<()> + Send + Sync + 'static) -> Failpoints {
        Failpoints { hook: Some(Arc::new(hook)) }
    }

    /// Passes a step.
    pub(crate) fn pass(&self, step: Step, path: &Path) -> io::Result<()> {
        match &self.hook {
            Some(hook) => hook(step, path),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Failpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.hook.is_some() { "Failpoints(set)" } else { "Failpoints(none)" })
    }
}
