//! The life of the process: logging, threads, signals, and how it ends.

use std::error::Error;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{Server, ShutdownError, StartError};
use crate::config::{Config, LogOutput};
use crate::http::{Lanes, raise_descriptor_limit};
use crate::logging::{self, LogError};

/// How long threads may take to end once the outcome is known; then the process ends without them.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);
/// How long a process that has failed may take for all of its end; then it is aborted. Longer, so that threads which merely
/// do not end in time leave it its status.
const ABORT_PATIENCE: Duration = Duration::from_secs(10);
const _: () = assert!(ABORT_PATIENCE.as_secs() > EXIT_PATIENCE.as_secs());

/// Threads for what may block, such as reading a large range: of home, and of each lane, of which there may be many.
const HOME_BLOCKING_MAX: usize = 512;
const LANE_BLOCKING_MAX: usize = 64;

/// Why the process ends with a non-zero status. The texts include those of all sources: one line says everything.
#[derive(Debug, Error)]
pub enum RunError {
    /// Logging cannot begin.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The threads cannot be started, or signals cannot be received.
    #[error("cannot set up the process: {0}")]
    Process(#[from] io::Error),
    /// The server does not start.
    #[error("{}", chain(.0))]
    Start(#[from] StartError),
    /// The server cannot go on.
    #[error("stopped by a fatal error: {}", chain(.0))]
    Fatal(tally_raftnode::FatalError),
    /// The server was told to stop, and could not do so cleanly.
    #[error("{}", chain(.0))]
    Shutdown(#[from] ShutdownError),
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        // Some errors repeat their source.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

/// Runs a server until SIGTERM or SIGINT, or until it fails.
///
/// # Errors
/// [`RunError`], which has been printed to standard error, in one line. The process must then end with a non-zero status;
/// it is aborted if it does not do so soon.
pub fn run(config: Config) -> Result<(), RunError> {
    let log_is_seen = config.log.outputs.contains(&LogOutput::Stderr);
    let (home, lanes) = begin(&config).inspect_err(|error| give_up(error, log_is_seen))?;
    let handles: Vec<_> = lanes.iter().map(|lane| lane.handle().clone()).collect();
    let mut server = None;
    let result = home.block_on(serve(config, handles, &mut server));
    let deadline = Instant::now() + EXIT_PATIENCE;
    if let Err(error) = &result {
        give_up(error, log_is_seen);
    }
    {
        // Not before the reason is told: this waits for threads, and one of them may hang on a dead disk.
        let _context = home.enter();
        drop(server);
    }
    // What a connection made on its lane it may have taken home, and must not use when that lane is gone.
    for runtime in [home].into_iter().chain(lanes) {
        runtime.shutdown_timeout(deadline.saturating_duration_since(Instant::now()));
    }
    result
}

/// What is set up for the whole process: its log, and the runtimes of home and lanes.
fn begin(config: &Config) -> Result<(Runtime, Vec<Runtime>), RunError> {
    logging::start(&config.log)?;
    abort_on_panic();
    keep_pages_small();
    raise_descriptor_limit();
    for notice in &config.notices {
        tracing::warn!("{notice}");
    }
    let workers = config.workers();
    let home = runtime("tally-worker", workers.home, HOME_BLOCKING_MAX)?;
    let lanes = (0..workers.lanes).map(|_| runtime("tally-lane", 1, LANE_BLOCKING_MAX));
    Ok((home, lanes.collect::<io::Result<Vec<_>>>()?))
}

/// Says, once, why the process ends, and sees to it that it does, before anything is tried that could hang.
fn give_up(error: &RunError, log_is_seen: bool) {
    abort_unless_ended();
    let _ = writeln!(io::stderr(), "tally: {error}");
    // A log that goes elsewhere needs it too.
    if !log_is_seen {
        tracing::error!(%error, "the server ends");
    }
}

fn runtime(name: &str, threads: usize, blocking_max: usize) -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(blocking_max)
        .thread_name(name)
        .enable_all()
        .build()
}

/// Why a server stops that was not broken.
enum Stop {
    Signal(&'static str),
    Removed,
}

/// Serves until the end. A server that cannot go on is left in `running`, for the caller to drop.
async fn serve(config: Config, lanes: Vec<Handle>, running: &mut Option<Server>) -> Result<(), RunError> {
    let mut signals = Signals::new()?;
    let opened = tokio::select! {
        opened = Server::open(config, Lanes::new(lanes)) => opened?,
        name = signals.next() => {
            tracing::info!(signal = name, "stopping before the start was complete");
            return Ok(());
        }
    };
    let server = running.insert(opened);
    let (failed, removed) = (server.failed(), server.removed());
    let stop = tokio::select! {
        biased;
        fatal = failed => return Err(RunError::Fatal(fatal)),
        () = removed => Stop::Removed,
        name = signals.next() => Stop::Signal(name),
        error = live(server) => return Err(error.into()),
    };
    let Some(server) = running.take() else { return Ok(()) };
    let ending = async {
        match stop {
            Stop::Signal(name) => {
                tracing::info!(signal = name, "stopping");
                server.shutdown().await
            }
            Stop::Removed => {
                tracing::warn!(
                    "this member has been permanently removed from its cluster and stops; its data directory must be \
                     deleted before it is used again"
                );
                // Its data is of no more use, so neither is a clean end of it.
                if let Err(error) = server.abandon().await {
                    tracing::warn!(error = chain(&error), "the removed member did not stop cleanly");
                }
                Ok(())
            }
        }
    };
    tokio::select! {
        ended = ending => ended?,
        name = signals.next() => {
            tracing::warn!(signal = name, "stopping at once; what was acknowledged is in the log");
            abort_unless_ended();
            std::process::exit(1);
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Serves until something else ends it; returns only if the start cannot be completed.
async fn live(server: &mut Server) -> StartError {
    match server.join().await {
        Ok(()) => std::future::pending().await,
        Err(error) => error,
    }
}

/// The two signals that ask a process to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// A task that panicked may have left anything behind, so nothing goes on after it.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!(%panic, "the process is aborted by a panic: this is a bug");
        print(panic);
        std::process::abort();
    }));
}

/// Huge pages cost more than they bring here: the first byte in one has all 2 MiB of it cleared, and a few bytes that stay
/// in use keep all of it (docs/decisions/0003).
fn keep_pages_small() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay in use");
    }
}

/// A process that has failed must not live on because a thread hangs, for example on a dead disk.
fn abort_unless_ended() {
    // Without a thread there is nobody to do it, which is no reason not to say why the process ends.
    let _ = std::thread::Builder::new().name("tally-abort".to_owned()).spawn(|| {
        std::thread::sleep(ABORT_PATIENCE);
        std::process::abort();
    });
}
