//! The configuration of a server: read from flags, environment or file, checked once, plain data afterwards.

mod duration;
mod file;
mod flags;
mod gates;
mod help;
mod url;
mod validate;
mod values;

use std::collections::BTreeSet;
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

pub(crate) use help::{API_VERSION, CLUSTER_VERSION, VERSION, help, version};
pub(crate) use url::Endpoint;
pub use url::{Scheme, Url, UrlError};

use values::Values;

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// No flag has this name.
    #[error("unknown flag --{name}{}", nearest.map(|n| format!(" (did you mean --{n}?)")).unwrap_or_default())]
    UnknownFlag {
        /// As typed.
        name: String,
        /// A flag with a similar name.
        nearest: Option<&'static str>,
    },
    /// A flag stands last, without its value.
    #[error("flag --{name} needs a value")]
    NoValue {
        /// The flag.
        name: &'static str,
    },
    /// Something that is no flag.
    #[error("{0:?} is not a flag")]
    Argument(String),
    /// The value is of another kind.
    #[error("invalid value {value:?} for --{name} from {from}: expected {expected}")]
    Value {
        /// The flag.
        name: &'static str,
        /// As given.
        value: String,
        /// Where the value was found.
        from: String,
        /// What would do.
        expected: &'static str,
    },
    /// The flag asks for something that this version does not do.
    #[error("--{name}={value} is refused: {why}")]
    Refused {
        /// The flag.
        name: &'static str,
        /// As given.
        value: String,
        /// Why, and what to do instead.
        why: &'static str,
    },
    /// The value makes no sense, alone or beside another flag.
    #[error("--{name}: {why}")]
    Invalid {
        /// The flag.
        name: &'static str,
        /// Why.
        why: String,
    },
    /// A URL cannot be used.
    #[error("--{name}: {source}")]
    Url {
        /// The flag.
        name: &'static str,
        /// Why.
        source: UrlError,
    },
    /// The config file cannot be read.
    #[error("cannot read config file {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The config file is not understood.
    #[error("config file {path}: {why}")]
    FileSyntax {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Print this text and exit.
    Print(String),
    /// Start a server.
    Serve(Box<Config>),
}

/// One member of `--initial-cluster`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialMember {
    /// Its name.
    pub name: String,
    /// Its peer URLs, sorted.
    pub peer_urls: Vec<Url>,
}

/// What history automatic compaction keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Everything: it is off.
    Off,
    /// What was current at any moment of this last span of time.
    Periodic(Duration),
    /// This many revisions.
    Revision(i64),
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line, with etcd's keys.
    Json,
    /// For people.
    Console,
}

/// Where log lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}

/// The least important lines that are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What happens in normal operation.
    Info,
    /// What somebody should look at.
    Warn,
    /// What failed.
    Error,
}

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Which lines.
    pub level: LogLevel,
    /// In which form.
    pub format: LogFormat,
    /// Where to.
    pub outputs: Vec<LogOutput>,
}

/// A list of names in which `*` means all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// No restriction.
    All,
    /// These only.
    Only(BTreeSet<String>),
}

/// Everything that a server is told when it starts. The names are those of etcd's flags, with units.
#[derive(Clone, Debug)]
pub struct Config {
    /// Human-readable name of this member.
    pub name: String,
    /// Directory of all data.
    pub data_dir: PathBuf,
    /// Directory of the write-ahead log, if not inside `data_dir`.
    pub wal_dir: Option<PathBuf>,
    /// Where clients are served.
    pub listen_client_urls: Vec<Url>,
    /// Where other members are served.
    pub listen_peer_urls: Vec<Url>,
    /// Serve JSON and WebSockets beside gRPC. Health, version and metrics are served in any case.
    pub grpc_gateway: bool,
    /// Whether metrics have a histogram of durations for every RPC.
    pub extensive_metrics: bool,
    /// Further places where metrics and health are served.
    pub listen_metrics_urls: Vec<Url>,
    /// What clients are told.
    pub advertise_client_urls: Vec<Url>,
    /// What other members are told.
    pub advertise_peer_urls: Vec<Url>,
    /// The members of a new cluster.
    pub initial_cluster: Vec<InitialMember>,
    /// Tells clusters with equal members apart.
    pub initial_cluster_token: String,
    /// Whether a member without data joins a running cluster instead of founding one.
    pub initial_cluster_existing: bool,
    /// Whether the members, the token or the peer URLs were given, so that data found must agree with them.
    pub initial_cluster_given: bool,
    /// Refuse membership changes that would endanger the quorum.
    pub strict_reconfig_check: bool,
    /// Learners that the cluster may have.
    pub max_learners: usize,
    /// Time a peer has to answer.
    pub raft_read_timeout: Duration,
    /// Time a peer has to take what is sent to it.
    pub raft_write_timeout: Duration,
    /// Bytes per second of a snapshot sent to a peer; 0 for no limit.
    pub snapshot_send_rate_bytes: u64,
    /// Committed entries after which the state is flushed and the log cut.
    pub snapshot_count: u64,
    /// Log entries kept when the log is cut.
    pub snapshot_catchup_entries: u64,
    /// Milliseconds between heartbeats.
    pub heartbeat_ms: u64,
    /// Milliseconds without a heartbeat before an election.
    pub election_ms: u64,
    /// Database size above which writes are refused; 0 for the default, negative for no limit.
    pub quota_backend_bytes: i64,
    /// Largest request.
    pub max_request_bytes: u64,
    /// Operations per transaction.
    pub max_txn_ops: usize,
    /// HTTP/2 streams per connection.
    pub max_concurrent_streams: u32,
    /// Time between HTTP/2 pings to an idle client. Never zero: a zero for it or for the next means defaults for both.
    pub http2_ping_interval: Duration,
    /// Time to answer an HTTP/2 ping.
    pub http2_ping_timeout: Duration,
    /// Time between two notes on progress to a watch that asked for them, before a tenth that is added by chance.
    pub watch_progress_notify_interval: Duration,
    /// Shortest time between two HTTP/2 pings of a client; zero for as many as it likes.
    pub http2_client_ping_interval_min: Duration,
    /// Set SO_REUSEPORT on listeners.
    pub socket_reuse_port: bool,
    /// What automatic compaction keeps.
    pub auto_compaction: AutoCompaction,
    /// Milliseconds between two looks at the revision in revision mode. Five minutes, as in etcd; not a flag.
    pub auto_compaction_check_ms: u64,
    /// Records swept at a time after a compaction.
    pub compaction_batch_limit: usize,
    /// Pause between two batches.
    pub compaction_sleep: Duration,
    /// Origins that browsers may call from.
    pub cors: Allowed,
    /// Host names that clients may use.
    pub host_whitelist: Allowed,
    /// How to log.
    pub log: LogConfig,
    /// An apply that takes longer is counted and logged.
    pub warning_apply: Duration,
    /// A request that takes longer to its only answer is logged.
    pub warning_request: Duration,
    /// Leave out every fsync. Dangerous.
    pub unsafe_no_fsync: bool,
    /// Threads that serve requests; 0 to choose from the number of cores.
    pub worker_threads: usize,
    /// Lines to log at the start: flags without effect, values that are not taken as given, unknown variables.
    pub notices: Vec<String>,
}

/// Threads that serve requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Workers {
    /// That run everything.
    pub(crate) home: usize,
    /// That run connections alone.
    pub(crate) lanes: usize,
}

impl Config {
    /// Reads a command line (without the program's name) and an environment.
    pub fn from_args(args: &[String], env: impl Iterator<Item = (String, String)>) -> Result<Invocation, ConfigError> {
        let values = Values::collect(args, env)?;
        if values.bool("help") {
            return Ok(Invocation::Print(help()));
        }
        if values.bool("version") {
            return Ok(Invocation::Print(version()));
        }
        Config::from_values(values).map(|config| Invocation::Serve(Box::new(config)))
    }

    /// A member of its own cluster with all defaults, for the use of a server inside another program: data in `data_dir`,
    /// listening on free loopback ports, logging nothing by itself.
    pub fn local(data_dir: impl Into<PathBuf>) -> Result<Config, ConfigError> {
        let args =
            ["--listen-client-urls=http://127.0.0.1:0", "--listen-peer-urls=http://127.0.0.1:0"].map(String::from);
        let mut config = Config::from_values(Values::collect(&args, std::iter::empty())?)?;
        config.data_dir = data_dir.into();
        Ok(config)
    }

    /// What `quota_backend_bytes` means: `None` for no limit.
    pub(crate) fn quota_bytes(&self) -> Option<u64> {
        const QUOTA_BYTES_DEFAULT: u64 = 2 * 1024 * 1024 * 1024;
        match self.quota_backend_bytes {
            0 => Some(QUOTA_BYTES_DEFAULT),
            limit => u64::try_from(limit).ok(),
        }
    }

    /// How long a request may take: 5 s and two election timeouts.
    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(5_000 + 2 * self.election_ms)
    }

    /// Which threads serve requests: half of them, rounded up, run Raft and apply too, and the others connections alone.
    pub(crate) fn workers(&self) -> Workers {
        let threads = match self.worker_threads {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            chosen => chosen,
        };
        Workers { home: threads.div_ceil(2), lanes: threads / 2 }
    }
}
