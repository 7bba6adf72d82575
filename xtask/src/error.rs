//! Why a developer command stopped: what failed, on what, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why a developer command stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line cannot be understood.
    #[error("{0}; run `cargo xtask help`")]
    Usage(String),
    /// A program could not be started at all.
    #[error("cannot start `{program}`: {source}; is it installed and on PATH?")]
    Start {
        /// The program's name as it was called.
        program: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A program ran and reported failure.
    #[error("`{command}` failed ({status})")]
    Status {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
    },
    /// A file or directory could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A network operation with a server under test failed.
    #[error("{action}: {source}")]
    Network {
        /// What was tried.
        action: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A server under test answered something else than it should.
    #[error("unexpected answer: {0}")]
    Answer(String),
    /// Something this command needs is not there.
    #[error("{0}")]
    Missing(String),
    /// A check was made and did not hold.
    #[error("{0}")]
    Check(String),
}

impl Error {
    /// A `map_err` helper for file operations.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = path.to_path_buf();
        move |source| Error::File { action, path, source }
    }

    /// A `map_err` helper for network operations.
    pub(crate) fn network(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let action = action.into();
        move |source| Error::Network { action, source }
    }
}

/// The result of every step of a developer command.
pub(crate) type Result<T> = std::result::Result<T, Error>;
