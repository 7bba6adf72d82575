//! Tally's server: a Raft-replicated, multi-version key-value store behind etcd v3's gRPC and JSON interfaces.
//!
//! This crate *is* the outermost room of the house: configuration, listeners, JSON, gRPC, health, metrics, background jobs and
//! the `tally` binary. It *is not* the store: what a write means is decided in `tally-apply`, how it survives in
//! `tally-raftnode` and below, and a program that wants only those uses those crates.
//!
//! ```text
//!  clients ──▶ http ──▶ api ──▶ preflight ──▶ tally-raftnode ──▶ tally-apply
//!              │ grpc   │ wire: JSON in and out    ▲
//!              │        └─▶ reads: views of tally-mvcc, no lock, no queue
//!              ├─▶ health, metrics                 │
//!              └─  app: starts and stops all ──▶ jobs: compactor, sweeper, lessor, sizes
//! ```
//!
//! **Invariant**: nothing is acknowledged before its outcome has come back through the log.
//! **Invariant**: every connection, request, body, queue and wait has a limit with a name and a unit.
//! **Invariant**: a fatal error below ends the process with one line and a non-zero status; a panic aborts it.
//!
//! ```
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! use tally_server::{Config, Server};
//!
//! let directory = tempfile::tempdir()?;
//! let server = Server::start(Config::local(directory.path().join("data"))?).await?;
//! println!("clients connect to {}", server.client_addresses()[0]);
//! server.shutdown().await?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod api;
mod app;
mod cli;
mod config;
mod datadir;
mod error;
mod grpc;
mod health;
mod http;
mod identity;
mod jobs;
mod join;
mod leadership;
mod logging;
mod metrics;
mod preflight;
mod proto;
mod publish;
mod roots;
mod run;
mod wire;

pub use app::{Server, ShutdownError, StartError};
pub use cli::subcommand;
pub use config::{
    Allowed, AutoCompaction, Config, ConfigError, InitialMember, Invocation, LogConfig, LogFormat, LogLevel, LogOutput,
    Scheme, Url, UrlError,
};
pub use datadir::DataDirError;
pub use http::BindError;
pub use join::JoinError;
pub use logging::LogError;
pub use publish::PublishError;
pub use run::{RunError, run};
