//! A running server: opens what is below, mounts what is above, and closes all of it in the reverse order.
//!
//! ```text
//!   bind all ─► who am I (join) ─► open data ─► start the node ─► serve peers, metrics, health
//!            ─► wait for a leader ─► publish name and URLs ─► serve clients
//!   stop:  refuse new clients ─► hand leadership over ─► answer what is under way ─► stop the node ─► cut off the peers
//! ```

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use tally_apply::Member;
use tally_raftnode::{Node, Storage, StorageOptions, open_storage};
use thiserror::Error;
use tokio::task::JoinSet;

use crate::api;
use crate::config::{API_VERSION, Allowed, Config, Url, VERSION};
use crate::datadir::{self, DataDirError, Purpose};
use crate::grpc::Grpc;
use crate::health::{Health, version_routes};
use crate::http::{BindError, Bound, Connections, Front, Http, Http2, Lanes, Limits};
use crate::identity::Ids;
use crate::jobs::{self, Lessor, Schedule, Sweeper, SweeperConfig};
use crate::join::{Enrolment, JoinError, enrol, texts};
use crate::leadership::Leadership;
use crate::metrics::{Metrics, Network, Observed, Sizes, Sources};
use crate::publish::{self, PublishError};
use crate::roots;

/// Room in a log entry beyond the request that it carries.
const ENTRY_OVERHEAD_BYTES: u64 = 1024 * 1024;
/// Time between two log lines while there is no leader.
const WAITING_INTERVAL: Duration = Duration::from_secs(10);
/// How long a removed member's clients have to take the answers that are there.
const REMOVED_PATIENCE: Duration = Duration::from_millis(300);
/// How much sooner the node gives a request up than whoever waits for it, so that its reason is the one that is told.
const NODE_GIVES_UP_SOONER: Duration = Duration::from_millis(200);

/// Why a server does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A URL cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The member cannot take its place in the cluster.
    #[error(transparent)]
    Join(#[from] JoinError),
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
    Publish(#[from] PublishError),
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
    lessor: Arc<Lessor>,
    /// What this member says about itself once it has a leader.
    member: Member,
    clients: Listening,
    /// Taken when clients are served.
    waiting: Option<Waiting>,
    peers: Listening,
    background: JoinSet<()>,
    watches: Arc<api::watch::Watches>,
    sweeper: Sweeper,
    patience: Duration,
    client_addresses: Vec<SocketAddr>,
    peer_addresses: Vec<SocketAddr>,
}

/// Listeners that are served, and the connections that came through them.
struct Listening {
    listeners: JoinSet<()>,
    connections: Arc<Connections>,
    http: Http,
}

/// Where clients will be served.
struct Waiting {
    listeners: Vec<Bound>,
    front: Arc<Front>,
}

/// Every listening socket, bound before the data is opened, so that a port in use is noticed early.
struct Listeners {
    /// Where connections of clients are served.
    lanes: Lanes,
    clients: Vec<Bound>,
    peers: Vec<Bound>,
    metrics: Vec<Bound>,
}

impl Listeners {
    fn bind(config: &Config, lanes: Lanes) -> Result<Listeners, BindError> {
        let bind = |urls: &[Url]| {
            urls.iter().map(|url| Bound::new(url, config.socket_reuse_port)).collect::<Result<Vec<_>, _>>()
        };
        Ok(Listeners {
            lanes,
            clients: bind(&config.listen_client_urls)?,
            peers: bind(&config.listen_peer_urls)?,
            metrics: bind(&config.listen_metrics_urls)?,
        })
    }
}

fn addresses(listeners: &[Bound]) -> Vec<SocketAddr> {
    listeners.iter().filter_map(Bound::tcp_address).collect()
}

impl Listening {
    fn new(connections: Arc<Connections>, http: Http) -> Listening {
        Listening { listeners: JoinSet::new(), connections, http }
    }

    fn serve(&mut self, listeners: Vec<Bound>, front: &Arc<Front>, message: &str) -> Result<(), BindError> {
        for bound in listeners {
            let listener = bound.listen()?;
            let address = listener.address().to_owned();
            self.listeners.spawn(self.http.clone().serve(listener, Arc::clone(front)));
            tracing::info!(%address, "{message}");
        }
        Ok(())
    }
}

impl Server {
    /// Opens the data, waits until the node can serve, and serves. Must be called inside a tokio runtime.
    ///
    /// A member of a cluster waits for a leader, and so for a majority of the members, however long that takes.
    ///
    /// # Errors
    /// [`StartError`] says what cannot be used, and its sources why.
    pub async fn start(config: Config) -> Result<Server, StartError> {
        let mut server = Server::open(config, Lanes::none()).await?;
        match server.join().await {
            Ok(()) => Ok(server),
            Err(error) => {
                if let Err(error) = server.shutdown().await {
                    tracing::warn!(%error, "stopping after a failed start");
                }
                Err(error)
            }
        }
    }

    /// Opens the data and takes part in the cluster. Clients are served from [`Server::join`] on.
    pub(crate) async fn open(config: Config, lanes: Lanes) -> Result<Server, StartError> {
        let data_dir = config.data_dir.display();
        tracing::info!(version = VERSION, name = %config.name, %data_dir, "starting a member");
        let listeners = Listeners::bind(&config, lanes)?;
        prepare(&config)?;
        let observed = Arc::new(Observed::new(config.warning_apply)?);
        let (enrolment, options) = enrol(&config, storage_options(&config, &observed)).await?;
        let ids = enrolment.ids;
        let (cluster_id, member_id) = (format!("{:x}", ids.cluster), format!("{:x}", ids.member));
        tracing::info!(%cluster_id, %member_id, "taking part in the cluster");
        let network = Arc::new(Network::new(ids.member)?);
        let storage =
            open(&config, StorageOptions { cluster_id: ids.cluster, member_id: ids.member, ..options }).await?;
        let member = Member {
            id: ids.member,
            name: config.name.clone(),
            client_urls: texts(&config.advertise_client_urls),
            directory: storage.recovered.metadata.directory_uuid,
        };
        let node = Node::start(node_config(&config, enrolment, &observed, &network), storage).await?;
        Server::assemble(&config, ids, member, node, listeners, observed, network)
    }

    fn assemble(
        config: &Config,
        ids: Ids,
        member: Member,
        node: Node,
        listeners: Listeners,
        observed: Arc<Observed>,
        network: Arc<Network>,
    ) -> Result<Server, StartError> {
        let (clients, peers) = Limits::within_descriptors();
        let clients = clients.for_requests_of(config.request_timeout());
        let connections = Arc::new(Connections::new(clients));
        let peer_connections = Arc::new(Connections::new(peers));
        let sizes = Arc::new(Sizes::default());
        jobs::refresh_sizes(&node, &sizes);
        let election = Duration::from_millis(config.election_ms);
        let leadership = Arc::new(Leadership::new(node.clone(), Arc::clone(&network), ids.member, election));
        let lessor = Lessor::new(node.clone(), config.election_ms, config.request_timeout());
        let health = Arc::new(Health::new(node.clone(), config.request_timeout()));
        let api_metrics = Arc::new(api::Metrics::new(config.extensive_metrics, config.warning_request)?);
        let metrics = Arc::new(Metrics::new()?);
        metrics.observe(&observed, &network)?;
        api_metrics.register(metrics.registry())?;
        metrics.add(Sources {
            node: node.clone(),
            lessor: Arc::clone(&lessor),
            network,
            health: Arc::clone(&health),
            connections: Arc::clone(&connections),
            sizes: Arc::clone(&sizes),
            member_id: ids.member,
            quota_bytes: config.quota_bytes().and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or(-1),
            unsafe_no_fsync: config.unsafe_no_fsync,
        })?;

        let sweep = SweeperConfig { batch_records: config.compaction_batch_limit, pause: config.compaction_sleep };
        let swept = node.clone();
        let sweeper = Sweeper::start(move || swept.reads().kv().clone(), sweep).map_err(StartError::Thread)?;
        let mut background = JoinSet::new();
        background.spawn(Arc::clone(&connections).reap());
        background.spawn(Arc::clone(&peer_connections).reap());
        background.spawn(jobs::watch_sizes(node.clone(), Arc::clone(&sizes)));
        background.spawn(Arc::clone(&leadership).follow());
        background.spawn(Arc::clone(&lessor).run());
        let check_interval = Duration::from_millis(config.auto_compaction_check_ms);
        if let Some(schedule) = Schedule::new(config.auto_compaction, check_interval) {
            background.spawn(jobs::compact(schedule, node.clone()));
        }

        let watches = Arc::new(api::watch::Watches::new(config.watch_progress_notify_interval));
        background.spawn(api::watch::monitor(Arc::clone(&watches), node.clone(), election));
        let state = api::State::new(api::Parts {
            node: node.clone(),
            lessor: Arc::clone(&lessor),
            leadership,
            cluster_id: ids.cluster,
            member_id: ids.member,
            version: API_VERSION,
            limits: api_limits(config),
            sizes,
            metrics: api_metrics,
            watches: Arc::clone(&watches),
        });
        let state = Arc::new(state);
        let watched = health.routes().merge(metrics.routes()).merge(version_routes());
        let json = if config.grpc_gateway { api::router(Arc::clone(&state)) } else { api::no_router(&state) };
        let routes = json.merge(watched.clone().merge(roots::routes(node.clone())));
        let http = Http::new(Arc::clone(&connections), listeners.lanes, http2(config));
        let front = |routes: Router| Front::new(routes, config.host_whitelist.clone(), config.cors.clone());
        let client_front = Arc::new(front(routes).with_grpc(Grpc::new(state)));
        let mut server = Server {
            clients: Listening::new(connections, http),
            peers: Listening::new(Arc::clone(&peer_connections), Http::for_peers(peer_connections)),
            member,
            background,
            watches,
            sweeper,
            patience: config.request_timeout(),
            client_addresses: addresses(&listeners.clients),
            peer_addresses: addresses(&listeners.peers),
            waiting: Some(Waiting { listeners: listeners.clients, front: client_front }),
            node,
            lessor,
        };
        // The others may be waiting for this member's vote.
        let peer_routes = Arc::new(Front::for_peers(server.node.peer_router().merge(version_routes())));
        server.peers.serve(listeners.peers, &peer_routes, "serving peer traffic")?;
        // Nothing there can be read or changed, and probes ask by whatever address they know.
        let metrics_front = Front::new(watched, Allowed::All, config.cors.clone());
        server.clients.serve(listeners.metrics, &Arc::new(metrics_front), "serving metrics and health")?;
        Ok(server)
    }

    /// Waits for a leader, makes this member known, and serves clients from then on.
    pub(crate) async fn join(&mut self) -> Result<(), StartError> {
        self.wait_for_leader().await?;
        publish::publish(&self.node, &self.member).await?;
        if let Some(Waiting { listeners, front }) = self.waiting.take() {
            self.clients.serve(listeners, &front, "ready to serve client requests")?;
        }
        Ok(())
    }

    async fn wait_for_leader(&self) -> Result<(), StartError> {
        let started = Instant::now();
        let mut ready = std::pin::pin!(self.node.ready());
        loop {
            if let Ok(ready) = tokio::time::timeout(WAITING_INTERVAL, ready.as_mut()).await {
                return Ok(ready?);
            }
            let (term, leader) = {
                let status = self.node.status();
                let status = status.borrow();
                (status.term, status.leader.map_or("none".to_owned(), |leader| format!("{leader:x}")))
            };
            let members = self.node.members().len();
            let waited_s = started.elapsed().as_secs();
            tracing::warn!(
                waited_s,
                term,
                %leader,
                members,
                "clients are not served yet: waiting for a leader, which needs a majority of the members"
            );
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

    /// Resolves when this member has been removed from its cluster for good: the process must then end, and its data is of
    /// no more use.
    pub fn removed(&self) -> impl Future<Output = ()> + Send + 'static {
        let node = self.node.clone();
        async move { node.removed().await }
    }

    /// Closes the listeners, hands leadership over, answers the requests under way, makes everything durable and closes
    /// the data.
    ///
    /// # Errors
    /// [`ShutdownError`] if not all of this was possible.
    pub async fn shutdown(mut self) -> Result<(), ShutdownError> {
        self.waiting = None;
        self.clients.listeners.shutdown().await;
        self.lessor.note_all().await;
        // Whatever still comes in waits for the next leader, and is answered by it through this member.
        self.node.hand_over().await;
        self.watches.stop();
        self.lessor.stop();
        self.clients.connections.drain(self.patience).await;
        self.close().await
    }

    /// The same for a member that has been removed: the others have nothing to do with it any more, so whoever waits for
    /// something here waits in vain.
    pub(crate) async fn abandon(mut self) -> Result<(), ShutdownError> {
        self.clients.listeners.shutdown().await;
        self.watches.stop();
        self.lessor.stop();
        self.clients.connections.drain(REMOVED_PATIENCE).await;
        self.close().await
    }

    async fn close(self) -> Result<(), ShutdownError> {
        let Server { node, mut peers, mut background, sweeper, .. } = self;
        background.shutdown().await;
        // It joins its thread, which may be writing a batch.
        let swept = tokio::task::spawn_blocking(move || drop(sweeper)).await;
        if let Err(error) = swept {
            tracing::warn!(%error, "the sweep did not end cleanly");
        }
        let stopped = node.shutdown().await;
        peers.listeners.shutdown().await;
        peers.connections.close().await;
        Ok(stopped?)
    }
}

fn prepare(config: &Config) -> Result<(), DataDirError> {
    datadir::prepare(&config.data_dir, Purpose::Data)?;
    config.wal_dir.as_deref().map_or(Ok(()), |wal_dir| datadir::prepare(wal_dir, Purpose::Log))
}

/// Where the data is; whose it is is found out later.
fn storage_options(config: &Config, observed: &Arc<Observed>) -> StorageOptions {
    let uuid = uuid::Uuid::new_v4().into_bytes();
    let mut options = StorageOptions::new(&config.data_dir, 0, 0, uuid);
    options.wal_dir.clone_from(&config.wal_dir);
    options.wal.sync = !config.unsafe_no_fsync;
    options.wal.observer = Some(observed.clone());
    options.backend.observer = Some(observed.clone());
    options.kv.sweep_observer = Some(observed.clone());
    options
}

/// Opens the data; a blocking operation that takes as long as the state is large.
async fn open(config: &Config, options: StorageOptions) -> Result<Storage, StartError> {
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

fn node_config(
    config: &Config,
    enrolment: Enrolment,
    observed: &Arc<Observed>,
    network: &Arc<Network>,
) -> tally_raftnode::Config {
    let defaults = tally_raftnode::Config::default();
    let entry_bytes = usize::try_from(entry_bytes(config)).unwrap_or(usize::MAX);
    let command_bytes_max = defaults.command_bytes_max.max(entry_bytes);
    tally_raftnode::Config {
        cluster_id: enrolment.ids.cluster,
        member_id: enrolment.ids.member,
        founders: enrolment.founders,
        heartbeat_ms: config.heartbeat_ms,
        election_ms: config.election_ms,
        snapshot_count: config.snapshot_count,
        catchup_entries: config.snapshot_catchup_entries,
        command_bytes_max,
        // So that the largest does not keep everything else out until it is answered.
        queue_bytes_max: defaults.queue_bytes_max.max(2 * command_bytes_max as u64),
        max_learners: config.max_learners,
        strict_reconfig: config.strict_reconfig_check,
        request_timeout_ms: millis(config.request_timeout() - NODE_GIVES_UP_SOONER),
        peer_read_timeout_ms: millis(config.raft_read_timeout),
        peer_write_timeout_ms: millis(config.raft_write_timeout),
        snapshot_rate_bytes_max: config.snapshot_send_rate_bytes,
        network: Some(network.clone()),
        apply_observer: Some(observed.clone()),
        ..defaults
    }
}

/// A fraction of a millisecond counts as one.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn http2(config: &Config) -> Http2 {
    Http2 {
        streams_max: config.max_concurrent_streams,
        ping_interval: config.http2_ping_interval,
        ping_timeout: config.http2_ping_timeout,
        client_ping_interval_min: config.http2_client_ping_interval_min,
    }
}

fn api_limits(config: &Config) -> api::Limits {
    api::Limits {
        request_bytes_max: config.max_request_bytes,
        txn_ops_max: config.max_txn_ops,
        quota_bytes: config.quota_bytes(),
        lease_ttl_min_s: lease_ttl_min_s(config),
        election_timeout: Duration::from_millis(config.election_ms),
        request_timeout: config.request_timeout(),
    }
}

/// As in etcd: one and a half election timeouts, counted in heartbeats, rounded up to a second.
fn lease_ttl_min_s(config: &Config) -> i64 {
    let ticks = 3 * (config.election_ms / config.heartbeat_ms.max(1)) / 2;
    i64::try_from((ticks * config.heartbeat_ms).div_ceil(1_000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "app_tests.rs"]
mod tests;
