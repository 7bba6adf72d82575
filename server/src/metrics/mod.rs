//! `/metrics`: one registry per server, with etcd's names and types, and Tally's own under `tally_`.
//!
//! **Invariant**: a figure that another crate keeps is read when it is scraped, so it costs nothing per operation.
//!
//! Some of etcd's names break Prometheus' own naming rules: gauges that end in `_total`, counters that do not. Their names
//! are a contract, so they stay; their type is left undeclared (see [`UNDECLARED`]), which queries, dashboards and alerts
//! do not notice, and which keeps `promtool check metrics` clean but for two that name their unit, milliseconds.

mod figure;
mod leases;
mod network;
mod node;
mod observed;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::any;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use prometheus::process_collector::ProcessCollector;
use prometheus::{Registry, TextEncoder};

use figure::Figure;
pub(crate) use network::Network;
pub(crate) use node::{Sizes, Sources};
pub(crate) use observed::Observed;

/// Metrics whose etcd type does not agree with their etcd name. Prometheus takes them as untyped.
const UNDECLARED: [&str; 22] = [
    "etcd_debugging_lease_ttl_total_bucket",
    "etcd_debugging_lease_ttl_total_count",
    "etcd_debugging_lease_ttl_total_sum",
    "etcd_debugging_mvcc_keys_total",
    "etcd_debugging_mvcc_pending_events_total",
    "etcd_debugging_mvcc_slow_watcher_total",
    "etcd_debugging_mvcc_watch_stream_total",
    "etcd_debugging_mvcc_watcher_total",
    "etcd_disk_wal_write_bytes_total",
    "etcd_network_snapshot_receive_failures",
    "etcd_network_snapshot_receive_inflights_total",
    "etcd_network_snapshot_receive_success",
    "etcd_network_snapshot_send_failures",
    "etcd_network_snapshot_send_inflights_total",
    "etcd_network_snapshot_send_success",
    "etcd_server_health_failures",
    "etcd_server_health_success",
    "etcd_server_learner_promote_failures",
    "etcd_server_learner_promote_successes",
    "etcd_server_proposals_applied_total",
    "etcd_server_proposals_committed_total",
    "etcd_server_snapshot_apply_in_progress_total",
];

/// All metrics of one server.
pub(crate) struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// A registry with the figures of the process.
    pub(crate) fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Metrics { registry })
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Adds what is read from `sources` at each scrape.
    pub(crate) fn add(&self, sources: Sources) -> Result<(), prometheus::Error> {
        leases::register(&self.registry, &sources.node, &sources.lessor)?;
        node::figures(&Arc::new(sources)).into_iter().try_for_each(|figure| figure.register(&self.registry))
    }

    /// Adds what `observed` and `network` are told.
    pub(crate) fn observe(&self, observed: &Observed, network: &Network) -> Result<(), prometheus::Error> {
        observed.register(&self.registry)?;
        network.register(&self.registry)
    }

    /// `/metrics`.
    pub(crate) fn routes(self: &Arc<Self>) -> Router {
        Router::new().route("/metrics", any(serve)).with_state(Arc::clone(self))
    }

    fn text(&self) -> Result<String, prometheus::Error> {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather())?;
        Ok(text.split_inclusive('\n').filter(|line| !declares_a_misnomer(line)).collect())
    }
}

fn declares_a_misnomer(line: &str) -> bool {
    let Some(declaration) = line.strip_prefix("# TYPE ") else { return false };
    declaration.split(' ').next().is_some_and(|name| UNDECLARED.contains(&name))
}

async fn serve(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.text() {
        Ok(text) => {
            let mut response = Response::new(Body::from(text));
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Err(error) => {
            tracing::warn!(%error, "cannot encode the metrics");
            let mut response = Response::new(Body::from(format!("{error}\n")));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}
