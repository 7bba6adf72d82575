//! A running server: opens what is below, mounts what is above, and closes all of it in the reverse order.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tally_apply::{Command, Member};
use tally_raftnode::{EncodedCommand, Node, Storage, StorageOptions, open_storage};
use thiserror::Error;
use tokio::task::JoinSet;

use crate::api;
use crate::config::{API_VERSION, Config, Url, VERSION};
use crate::datadir::{self, DataDirError};
use crate::health::{Health, version_routes};
use crate::http::{BindError, Connections, Front, Http, Http2, Limits, Listener};
use crate::identity::{Ids, ids};
use crate::jobs::{self, Schedule, Sweeper, SweeperConfig};
use crate::metrics::{Metrics, Observed, Sizes, Sources};

/// Room in a log entry beyond the request that it carries.
const ENTRY_OVERHEAD_BYTES: u64 = 1024 * 1024;

/// Why a server does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A URL cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The data cannot be opened.
    #[error("cannot open the data in {}", path.display())]
    Open {
        /// The data directory.
        path: PathBuf,
        /// Why.
        source: Box<tally_raftnode::OpenError>,
    },
    /// The node cannot start on its data.
    #[error("cannot start the node")]
    Node(#[from] tally_raftnode::StartError),
    /// The node started, but cannot serve.
    #[error("the node does not become ready")]
    Ready(#[from] tally_raftnode::BarrierError),
    /// The member's name and URLs cannot be made known.
    #[error("cannot publish this member's name and URLs")]
    Publish(#[from] tally_raftnode::ProposeError),
    /// Two metrics have the same name.
    #[error("cannot set up the metrics")]
    Metrics(#[from] prometheus::Error),
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Why a shutdown was not clean. What was acknowledged is durable all the same.
#[derive(Debug, Error)]
#[error("the node did not stop cleanly")]
pub struct ShutdownError(#[from] tally_raftnode::ShutdownError);

/// A server that accepts requests until it is shut down. Dropping it closes its listeners at once.
pub struct Server {
    node: Node,
    listeners: JoinSet<()>,
    background: JoinSet<()>,
    sweeper: Sweeper,
    connections: Arc<Connections>,
    patience: Duration,
    client_addresses: Vec<SocketAddr>,
    peer_addresses: Vec<SocketAddr>,
}

/// Every listening socket, bound before the data is opened, so that a port in use is noticed early.
struct Listeners {
    clients: Vec<Listener>,
    peers: Vec<Listener>,
    metrics: Vec<Listener>,
}

impl Listeners {
    fn bind(config: &Config) -> Result<Listeners, BindError> {
        let bind = |urls: &[Url]| {
            urls.iter().map(|url| Listener::bind(url, config.socket_reuse_port)).collect::<Result<Vec<_>, _>>()
        };
        Ok(Listeners {
            clients: bind(&config.listen_client_urls)?,
            peers: bind(&config.listen_peer_urls)?,
            metrics: bind(&config.listen_metrics_urls)?,
        })
    }
}

fn addresses(listeners: &[Listener]) -> Vec<SocketAddr> {
    listeners.iter().filter_map(Listener::tcp_address).collect()
}

impl Server {
    /// Opens the data, waits until the node can serve, and serves. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`] says what cannot be used, and its sources why.
    pub async fn start(config: Config) -> Result<Server, StartError> {
        let ids = ids(&config);
        let (cluster_id, member_id) = (format!("{:x}", ids.cluster), format!("{:x}", ids.member));
        let data_dir = config.data_dir.display();
        tracing::info!(version = VERSION, name = %config.name, %cluster_id, %member_id, %data_dir, "starting a member");
        let listeners = Listeners::bind(&config)?;
        prepare(&config)?;
        let observed = Arc::new(Observed::new(config.warning_apply)?);
        let storage = open(&config, ids, &observed).await?;
        let (backend, reads) = (storage.backend.clone(), storage.reads.clone());
        let node = Node::start(node_config(&config, ids), storage).await?;
        node.ready().await?;
        publish(&config, ids, &node).await?;

        let connections = Arc::new(Connections::new(Limits::default().within_descriptors()));
        let sizes = Arc::new(Sizes::default());
        jobs::refresh_sizes(&backend, &sizes);
        let health = Arc::new(Health::new(node.clone(), reads.clone(), config.request_timeout()));
        let api_metrics = Arc::new(api::Metrics::new()?);
        let metrics = Arc::new(Metrics::new()?);
        metrics.observe(&observed)?;
        api_metrics.register(metrics.registry())?;
        metrics.add(Sources {
            node: node.clone(),
            reads: reads.clone(),
            health: Arc::clone(&health),
            connections: Arc::clone(&connections),
            sizes: Arc::clone(&sizes),
            member_id: ids.member,
            quota_bytes: config.quota_bytes().and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or(-1),
            unsafe_no_fsync: config.unsafe_no_fsync,
        })?;

        let sweep = SweeperConfig { batch_records: config.compaction_batch_limit, pause: config.compaction_sleep };
        let sweeper = Sweeper::start(reads.kv().clone(), sweep).map_err(StartError::Thread)?;
        let mut background = JoinSet::new();
        background.spawn(Arc::clone(&connections).reap());
        background.spawn(jobs::watch_sizes(backend, Arc::clone(&sizes)));
        let check_interval = Duration::from_millis(config.auto_compaction_check_ms);
        if let Some(schedule) = Schedule::new(config.auto_compaction, check_interval) {
            background.spawn(jobs::compact(schedule, node.clone(), reads.clone()));
        }

        let state = api::State::new(api::Parts {
            node: node.clone(),
            reads,
            cluster_id: ids.cluster,
            member_id: ids.member,
            version: API_VERSION,
            limits: api_limits(&config),
            sizes,
            metrics: api_metrics,
        });
        let routes = Routes {
            clients: api::router(Arc::new(state))
                .merge(health.routes())
                .merge(metrics.routes())
                .merge(version_routes()),
            peers: node.peer_router().merge(version_routes()),
            metrics: health.routes().merge(metrics.routes()).merge(version_routes()),
        };
        let mut server = Server {
            node,
            listeners: JoinSet::new(),
            background,
            sweeper,
            connections,
            patience: config.request_timeout(),
            client_addresses: addresses(&listeners.clients),
            peer_addresses: addresses(&listeners.peers),
        };
        server.serve(&config, listeners, routes);
        Ok(server)
    }

    fn serve(&mut self, config: &Config, listeners: Listeners, routes: Routes) {
        let http2 = Http2 {
            streams_max: config.max_concurrent_streams,
            ping_interval: config.http2_ping_interval,
            ping_timeout: config.http2_ping_timeout,
        };
        let http = Http::new(Arc::clone(&self.connections), http2);
        let front = |routes| Arc::new(Front::new(routes, config.host_whitelist.clone(), config.cors.clone()));
        let clients = front(routes.clients);
        for (listeners, front, message) in [
            (listeners.peers, front(routes.peers), "serving peer traffic"),
            (listeners.metrics, front(routes.metrics), "serving metrics and health"),
            (listeners.clients, clients, "ready to serve client requests"),
        ] {
            for listener in listeners {
                let address = listener.address().to_owned();
                self.listeners.spawn(http.clone().serve(listener, Arc::clone(&front)));
                tracing::info!(%address, "{message}");
            }
        }
    }

    /// Where clients connect to, with the ports that the system chose.
    pub fn client_addresses(&self) -> &[SocketAddr] {
        &self.client_addresses
    }

    /// Where other members connect to.
    pub fn peer_addresses(&self) -> &[SocketAddr] {
        &self.peer_addresses
    }

    /// Resolves when the server can go on no longer: the process must then end with a non-zero status.
    pub fn failed(&self) -> impl Future<Output = tally_raftnode::FatalError> + Send + 'static {
        let node = self.node.clone();
        async move { node.fatal().await }
    }

    /// Closes the listeners, answers the requests under way, makes everything durable and closes the data.
    ///
    /// # Errors
    /// [`ShutdownError`] if not all of this was possible.
    pub async fn shutdown(self) -> Result<(), ShutdownError> {
        let Server { node, mut listeners, mut background, sweeper, connections, patience, .. } = self;
        listeners.shutdown().await;
        connections.drain(patience).await;
        background.shutdown().await;
        // It joins its thread, which may be writing a batch.
        let swept = tokio::task::spawn_blocking(move || drop(sweeper)).await;
        if let Err(error) = swept {
            tracing::warn!(%error, "the sweep did not end cleanly");
        }
        Ok(node.shutdown().await?)
    }
}

/// What each kind of listener serves.
struct Routes {
    clients: Router,
    peers: Router,
    metrics: Router,
}

fn prepare(config: &Config) -> Result<(), DataDirError> {
    let wal_dir = config.wal_dir.clone().unwrap_or_else(|| config.data_dir.join("member").join("wal"));
    if config.initial_cluster_existing && !wal_dir.exists() {
        return Err(DataDirError::NothingToJoin { path: config.data_dir.clone() });
    }
    datadir::prepare(&config.data_dir)?;
    config.wal_dir.as_deref().map_or(Ok(()), datadir::prepare)
}

/// Opens the data; a blocking operation that takes as long as the state is large.
async fn open(config: &Config, ids: Ids, observed: &Arc<Observed>) -> Result<Storage, StartError> {
    let uuid = uuid::Uuid::new_v4().into_bytes();
    let mut options = StorageOptions::new(&config.data_dir, ids.cluster, ids.member, uuid);
    options.wal_dir.clone_from(&config.wal_dir);
    options.wal.sync = !config.unsafe_no_fsync;
    options.wal.observer = Some(observed.clone());
    let entry_bytes = usize::try_from(entry_bytes(config) + ENTRY_OVERHEAD_BYTES).unwrap_or(usize::MAX);
    options.wal.entry_bytes_max = options.wal.entry_bytes_max.max(entry_bytes);
    options.backend.observer = Some(observed.clone());
    if config.unsafe_no_fsync {
        tracing::warn!("fsync is switched off: acknowledged writes are lost when the machine stops");
    }
    let opened = tokio::task::spawn_blocking(move || open_storage(options).map_err(Box::new)).await;
    let opened = opened.map_err(|error| StartError::Thread(io::Error::other(error)))?;
    opened.map_err(|source| StartError::Open { path: config.data_dir.clone(), source })
}

/// The largest command that a request within the limits can become.
fn entry_bytes(config: &Config) -> u64 {
    config.max_request_bytes + ENTRY_OVERHEAD_BYTES
}

fn node_config(config: &Config, ids: Ids) -> tally_raftnode::Config {
    let defaults = tally_raftnode::Config::default();
    let entry_bytes = usize::try_from(entry_bytes(config)).unwrap_or(usize::MAX);
    tally_raftnode::Config {
        cluster_id: ids.cluster,
        member_id: ids.member,
        peer_urls: texts(&config.advertise_peer_urls),
        heartbeat_ms: config.heartbeat_ms,
        election_ms: config.election_ms,
        snapshot_count: config.snapshot_count,
        catchup_entries: config.snapshot_catchup_entries,
        command_bytes_max: defaults.command_bytes_max.max(entry_bytes),
        ..defaults
    }
}

fn api_limits(config: &Config) -> api::Limits {
    api::Limits {
        request_bytes_max: config.max_request_bytes,
        txn_ops_max: config.max_txn_ops,
        quota_bytes: config.quota_bytes(),
        request_timeout: config.request_timeout(),
    }
}

/// Makes this member's name and URLs known, if they have changed.
async fn publish(config: &Config, ids: Ids, node: &Node) -> Result<(), StartError> {
    let member = Member {
        id: ids.member,
        name: config.name.clone(),
        peer_urls: texts(&config.advertise_peer_urls),
        client_urls: texts(&config.advertise_client_urls),
    };
    if node.reads().members().contains(&member) {
        return Ok(());
    }
    node.propose(EncodedCommand::encode(&Command::SetMember(member))).await?;
    Ok(())
}

fn texts(urls: &[Url]) -> Vec<String> {
    urls.iter().map(Url::to_string).collect()
}
