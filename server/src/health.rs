//! `/health`, `/livez`, `/readyz` and `/version`, as etcd answers them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::any;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use tally_apply::AlarmKind;
use tally_mvcc::{KeyRange, RangeOptions, RangeRequest};
use tally_raftnode::{BarrierError, Node};

use crate::config::{API_VERSION, CLUSTER_VERSION};

/// One thing that can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

impl Check {
    pub(crate) const LIVE: &[Check] = &[Check::SerializableRead];
    pub(crate) const READY: &[Check] =
        &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }
}

/// How often one check of one endpoint went well and badly, and how it went last.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) successes: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) last_good: AtomicU64,
}

impl Tally {
    fn count(&self, good: bool) {
        let counter = if good { &self.successes } else { &self.failures };
        counter.fetch_add(1, Relaxed);
        self.last_good.store(u64::from(good), Relaxed);
    }
}

/// Answers questions about the health of one server.
pub(crate) struct Health {
    node: Node,
    timeout: Duration,
    /// `/health` as a whole.
    pub(crate) health: Tally,
    /// In the order of [`Check::LIVE`].
    pub(crate) live: Vec<Tally>,
    /// In the order of [`Check::READY`].
    pub(crate) ready: Vec<Tally>,
}

impl Health {
    pub(crate) fn new(node: Node, timeout: Duration) -> Health {
        let tallies = |checks: &[Check]| checks.iter().map(|_| Tally::default()).collect();
        let (live, ready) = (tallies(Check::LIVE), tallies(Check::READY));
        Health { node, timeout, health: Tally::default(), live, ready }
    }

    /// The routes of the health endpoints.
    pub(crate) fn routes(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/health", any(serve_health))
            .route("/livez", any(serve_livez))
            .route("/livez/{check}", any(serve_livez_check))
            .route("/readyz", any(serve_readyz))
            .route("/readyz/{check}", any(serve_readyz_check))
            .with_state(Arc::clone(self))
    }

    /// `Err` says what is wrong.
    async fn check(&self, check: Check) -> Result<(), String> {
        match check {
            Check::DataCorruption if self.node.is_alarmed(AlarmKind::Corrupt) => Err("alarm activated: CORRUPT".into()),
            Check::DataCorruption => Ok(()),
            Check::SerializableRead => self.read(),
            Check::LinearizableRead => self.barrier().await.and_then(|()| self.read()),
            Check::NonLearner if self.node.status().borrow().is_learner => Err("not supported for learner".into()),
            Check::NonLearner => Ok(()),
        }
    }

    async fn barrier(&self) -> Result<(), String> {
        match tokio::time::timeout(self.timeout, self.node.read_barrier()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(BarrierError::NoLeader | BarrierError::NoQuorum)) | Err(_) => {
                Err("etcdserver: request timed out".into())
            }
            Ok(Err(error @ (BarrierError::Stopped | BarrierError::Fatal(_)))) => Err(error.to_string()),
        }
    }

    fn read(&self) -> Result<(), String> {
        let options = RangeOptions { limit: 1, keys_only: true, ..RangeOptions::default() };
        let request = RangeRequest { range: KeyRange::all(), revision: 0, options };
        self.node.reads().kv().view().range(&request).map(drop).map_err(|error| error.to_string())
    }

    /// What `/health` says: `Err` is the reason.
    async fn whole(&self, excluded: &BTreeSet<String>, serializable: bool) -> Result<(), String> {
        let alarms = self.node.reads().alarms();
        if let Some(alarm) = alarms.iter().find(|alarm| !excluded.contains(alarm.kind.name())) {
            return Err(format!("ALARM {}", alarm.kind.name()));
        }
        if !serializable && self.node.status().borrow().leader.is_none() {
            return Err("RAFT NO LEADER".into());
        }
        let check = if serializable { Check::SerializableRead } else { Check::LinearizableRead };
        self.check(check).await.map_err(|error| format!("RANGE ERROR:{error}"))
    }

    /// Runs the checks and lists how they went, one per line.
    async fn run(&self, checks: impl Iterator<Item = (Check, &Tally)>) -> (bool, String) {
        let mut good = true;
        let mut report = String::new();
        for (check, tally) in checks {
            let result = self.check(check).await;
            tally.count(result.is_ok());
            match result {
                Ok(()) => report.push_str(&format!("[+]{} ok\n", check.name())),
                Err(error) => {
                    good = false;
                    report.push_str(&format!("[-]{} failed: {error}\n", check.name()));
                }
            }
        }
        (good, report)
    }

    /// An endpoint with several checks.
    async fn several(&self, method: &Method, uri: &Uri, checks: &[Check], tallies: &[Tally]) -> Response {
        if method != Method::GET {
            return not_allowed();
        }
        let excluded = values(uri, "exclude");
        let chosen = checks.iter().copied().zip(tallies).filter(|(check, _)| !excluded.contains(check.name()));
        let (good, report) = self.run(chosen).await;
        answer(uri, good, &report)
    }

    /// One check by its name.
    async fn single(&self, method: &Method, uri: &Uri, name: &str, checks: &[Check], tallies: &[Tally]) -> Response {
        let Some(found) = checks.iter().copied().zip(tallies).find(|(check, _)| check.name() == name) else {
            return text(StatusCode::NOT_FOUND, "404 page not found\n".into());
        };
        if method != Method::GET {
            return not_allowed();
        }
        let (good, report) = self.run(std::iter::once(found)).await;
        answer(uri, good, &report)
    }
}

async fn serve_health(State(health): State<Arc<Health>>, method: Method, uri: Uri) -> Response {
    if method != Method::GET {
        return not_allowed();
    }
    let serializable = first(&uri, "serializable").as_deref() == Some("true");
    let result = health.whole(&values(&uri, "exclude"), serializable).await;
    health.health.count(result.is_ok());
    let reason = result.as_ref().err().map_or("", String::as_str);
    let quoted = serde_json::Value::from(reason);
    let body = format!(r#"{{"health":"{}","reason":{quoted}}}"#, result.is_ok());
    match result {
        Ok(()) => text(StatusCode::OK, body),
        Err(reason) => {
            tracing::warn!(%reason, "serving /health false");
            text(StatusCode::SERVICE_UNAVAILABLE, format!("{body}\n"))
        }
    }
}

async fn serve_livez(State(health): State<Arc<Health>>, method: Method, uri: Uri) -> Response {
    health.several(&method, &uri, Check::LIVE, &health.live).await
}

async fn serve_readyz(State(health): State<Arc<Health>>, method: Method, uri: Uri) -> Response {
    health.several(&method, &uri, Check::READY, &health.ready).await
}

async fn serve_livez_check(
    State(health): State<Arc<Health>>,
    Path(name): Path<String>,
    method: Method,
    uri: Uri,
) -> Response {
    health.single(&method, &uri, &name, Check::LIVE, &health.live).await
}

async fn serve_readyz_check(
    State(health): State<Arc<Health>>,
    Path(name): Path<String>,
    method: Method,
    uri: Uri,
) -> Response {
    health.single(&method, &uri, &name, Check::READY, &health.ready).await
}

/// `/version`, on every listener.
pub(crate) fn version_routes() -> Router {
    Router::new().route("/version", any(serve_version))
}

async fn serve_version(method: Method) -> Response {
    if method != Method::GET {
        return not_allowed();
    }
    let body =
        format!(r#"{{"etcdserver":"{API_VERSION}","etcdcluster":"{CLUSTER_VERSION}","storage":"{CLUSTER_VERSION}"}}"#);
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// What failed is always told; what went well, only to those who ask.
fn answer(uri: &Uri, good: bool, report: &str) -> Response {
    if !good {
        tracing::warn!(path = uri.path(), report, "a health check failed");
        return text(StatusCode::SERVICE_UNAVAILABLE, format!("{report}\n"));
    }
    let verbose = pairs(uri).any(|(key, _)| key == "verbose");
    text(StatusCode::OK, format!("{}ok\n", if verbose { report } else { "" }))
}

fn text(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if !status.is_success() {
        headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    }
    response
}

fn not_allowed() -> Response {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n".into());
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    response
}

/// The query's pairs as they stand: the names and values that matter here need no escapes.
fn pairs(uri: &Uri) -> impl Iterator<Item = (&str, &str)> {
    let query = uri.query().unwrap_or("");
    query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn values(uri: &Uri, name: &str) -> BTreeSet<String> {
    pairs(uri).filter(|(key, value)| *key == name && !value.is_empty()).map(|(_, value)| value.to_owned()).collect()
}

fn first(uri: &Uri, name: &str) -> Option<String> {
    pairs(uri).find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn queries_are_read() {
        let uri: Uri = "/readyz?verbose&exclude=a&exclude=b&exclude=&serializable=true".parse().unwrap();
        assert_eq!(values(&uri, "exclude").into_iter().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(first(&uri, "serializable").as_deref(), Some("true"));
        assert!(pairs(&uri).any(|(key, _)| key == "verbose"));
        assert!(values(&"/readyz".parse().unwrap(), "exclude").is_empty());
    }
}
