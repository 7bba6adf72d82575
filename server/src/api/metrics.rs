//! What is counted per request, under etcd's names. One instance per server, nothing global.
//!
//! etcd's gateway calls its own gRPC services, so a JSON request counts there as the RPC that it calls; alerts are written
//! against that, so it counts here, too.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{
    DEFAULT_BUCKETS, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    exponential_buckets,
};

use crate::api::{Exchange, Route};
use crate::error::{ApiError, Code};

/// Client API versions that have a series of their own; clients write what they like, so there is an end to it.
const CLIENT_VERSIONS_MAX: usize = 32;
/// Time between two log lines about slow requests: when everything is slow, a line for each would make it slower.
const SLOW_LINE_INTERVAL: Duration = Duration::from_secs(1);
const RPC: [&str; 3] = ["grpc_service", "grpc_method", "grpc_type"];
/// What etcd's published alerts and panels count as a failure of the server. These series are there from the beginning: a rate needs a
/// sample from before, so the first failure of a kind would not be seen without.
const FAILURES: [Code; 7] = [
    Code::Unknown,
    Code::FailedPrecondition,
    Code::ResourceExhausted,
    Code::Internal,
    Code::Unavailable,
    Code::DataLoss,
    Code::DeadlineExceeded,
];

/// Figures of the client API.
pub(crate) struct Metrics {
    started: IntCounterVec,
    handled: IntCounterVec,
    messages_received: IntCounterVec,
    messages_sent: IntCounterVec,
    /// Only if metrics are `extensive`, as in etcd.
    handling: Option<HistogramVec>,
    durations: HistogramVec,
    requests: IntCounterVec,
    stream_failures: IntCounterVec,
    received_bytes: IntCounter,
    sent_bytes: IntCounter,
    promoted: IntCounter,
    not_promoted: IntCounterVec,
    defragmenting: IntGauge,
    defragmentations: Histogram,
    hashes: Histogram,
    revision_hashes: Histogram,
    slow: SlowRequests,
    /// The children of the above that every request touches, by route: looking them up would cost more than counting.
    by_route: Vec<PerRoute>,
    unknown_versions: [IntCounter; 2],
    client_versions: Mutex<Vec<String>>,
}

struct PerRoute {
    started: IntCounter,
    ok: IntCounter,
    messages_received: IntCounter,
    messages_sent: IntCounter,
    handling: Option<Histogram>,
    duration_ok: Histogram,
    duration_failed: Histogram,
}

/// A request that is being handled. Dropped before its end it counts as canceled by the client.
pub(crate) struct Running {
    metrics: Arc<Metrics>,
    route: Route,
    started: Instant,
    ended: bool,
}

fn counters(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

impl Metrics {
    /// Figures that start at zero; with the histogram of `grpc_server_handling_seconds` if they are to be `extensive`.
    /// A request with one answer that takes longer than `slow` is logged.
    ///
    /// # Errors
    /// None in practice: the names are fixed and valid.
    pub(crate) fn new(extensive: bool, slow: Duration) -> prometheus::Result<Self> {
        let started = counters(
            "grpc_server_started_total",
            "Requests started, by RPC; JSON requests count as the RPC they call.",
            &RPC,
        )?;
        let handled = counters(
            "grpc_server_handled_total",
            "Requests answered, by RPC and code of the answer.",
            &[RPC[0], RPC[1], RPC[2], "grpc_code"],
        )?;
        let messages_received = counters("grpc_server_msg_received_total", "Messages received, by RPC.", &RPC)?;
        let messages_sent = counters("grpc_server_msg_sent_total", "Messages sent, by RPC.", &RPC)?;
        let handling =
            HistogramOpts::new("grpc_server_handling_seconds", "Time from a request's head to its end, by RPC.")
                .buckets(DEFAULT_BUCKETS.to_vec());
        let handling = if extensive { Some(HistogramVec::new(handling, &RPC)?) } else { None };
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "etcd_server_request_duration_seconds",
                "Time from a request's head to its answer, by type and success.",
            )
            .buckets(exponential_buckets(0.001, 2.0, 14)?),
            &["type", "success"],
        )?;
        let hash_buckets = exponential_buckets(0.01, 2.0, 15)?;
        let hashes =
            |name: &str, help: &str| Histogram::with_opts(HistogramOpts::new(name, help).buckets(hash_buckets.clone()));
        let requests = counters(
            "etcd_server_client_requests_total",
            "Client requests, by type and client API version.",
            &["type", "client_api_version"],
        )?;
        let by_route = Route::ALL
            .iter()
            .map(|route| {
                let rpc = [route.service(), route.method(), route.exchange().name()];
                for code in FAILURES {
                    handled.with_label_values(&[rpc[0], rpc[1], rpc[2], code.name()]);
                }
                PerRoute {
                    started: started.with_label_values(&rpc),
                    ok: handled.with_label_values(&[rpc[0], rpc[1], rpc[2], "OK"]),
                    messages_received: messages_received.with_label_values(&rpc),
                    messages_sent: messages_sent.with_label_values(&rpc),
                    handling: handling.as_ref().map(|handling| handling.with_label_values(&rpc)),
                    duration_ok: durations.with_label_values(&[route.kind(), "true"]),
                    duration_failed: durations.with_label_values(&[route.kind(), "false"]),
                }
            })
            .collect();
        Ok(Self {
            received_bytes: IntCounter::new(
                "etcd_network_client_grpc_received_bytes_total",
                "Bytes of requests received from clients.",
            )?,
            sent_bytes: IntCounter::new(
                "etcd_network_client_grpc_sent_bytes_total",
                "Bytes of responses sent to clients.",
            )?,
            promoted: IntCounter::new(
                "etcd_server_learner_promote_successes",
                "Learners that became voters at the request of a client of this member.",
            )?,
            not_promoted: counters(
                "etcd_server_learner_promote_failures",
                "Learners that did not become voters, by reason.",
                &["Reason"],
            )?,
            defragmenting: IntGauge::new(
                "etcd_disk_defrag_inflight",
                "Whether the database is being defragmented at the request of a client.",
            )?,
            defragmentations: Histogram::with_opts(
                HistogramOpts::new(
                    "etcd_disk_backend_defrag_duration_seconds",
                    "Time that defragmentations at the request of clients took.",
                )
                .buckets(exponential_buckets(0.1, 2.0, 13)?),
            )?,
            hashes: hashes("etcd_mvcc_hash_duration_seconds", "Time to hash the whole store; it keeps a root.")?,
            revision_hashes: hashes(
                "etcd_mvcc_hash_rev_duration_seconds",
                "Time to hash the key-value records up to a revision.",
            )?,
            slow: SlowRequests::new(slow),
            stream_failures: counters(
                "etcd_network_server_stream_failures_total",
                "Streams whose messages could not be read, by API.",
                &["Type", "API"],
            )?,
            unknown_versions: ["unary", "stream"].map(|kind| requests.with_label_values(&[kind, "unknown"])),
            client_versions: Mutex::default(),
            started,
            handled,
            messages_received,
            messages_sent,
            handling,
            durations,
            requests,
            by_route,
        })
    }

    /// Makes the figures part of what the registry exposes.
    ///
    /// # Errors
    /// If the registry has figures of these names already.
    pub(crate) fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.started.clone()))?;
        registry.register(Box::new(self.handled.clone()))?;
        registry.register(Box::new(self.messages_received.clone()))?;
        registry.register(Box::new(self.messages_sent.clone()))?;
        if let Some(handling) = &self.handling {
            registry.register(Box::new(handling.clone()))?;
        }
        registry.register(Box::new(self.durations.clone()))?;
        registry.register(Box::new(self.requests.clone()))?;
        registry.register(Box::new(self.stream_failures.clone()))?;
        registry.register(Box::new(self.promoted.clone()))?;
        registry.register(Box::new(self.defragmenting.clone()))?;
        registry.register(Box::new(self.defragmentations.clone()))?;
        registry.register(Box::new(self.hashes.clone()))?;
        registry.register(Box::new(self.revision_hashes.clone()))?;
        registry.register(Box::new(self.not_promoted.clone()))?;
        registry.register(Box::new(self.received_bytes.clone()))?;
        registry.register(Box::new(self.sent_bytes.clone()))
    }

    /// A request begins, from a client that says which API version it speaks, or does not.
    pub(crate) fn begin(self: &Arc<Self>, route: Route, client_version: Option<&str>) -> Running {
        match client_version {
            None => self.unknown_versions[usize::from(route.exchange() != Exchange::Unary)].inc(),
            Some(version) => self.count_version(route, version),
        }
        self.by_route[route as usize].started.inc();
        Running { metrics: Arc::clone(self), route, started: Instant::now(), ended: false }
    }

    fn count_version(&self, route: Route, version: &str) {
        let kind = if route.exchange() == Exchange::Unary { "unary" } else { "stream" };
        let mut known = self.client_versions.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = known.iter().any(|one| one == version);
        if !is_known && known.len() < CLIENT_VERSIONS_MAX {
            known.push(version.to_owned());
        } else if !is_known {
            return self.requests.with_label_values(&[kind, "other"]).inc();
        }
        self.requests.with_label_values(&[kind, version]).inc();
    }

    /// What came in on a stream of this API, as etcd names it, could not be read. A client that went away is no failure.
    pub(crate) fn not_received(&self, api: &str, error: &ApiError) {
        if !matches!(error, ApiError::Canceled) {
            self.stream_failures.with_label_values(&["receive", api]).inc();
        }
    }

    pub(crate) fn promoted(&self, error: Option<&ApiError>) {
        match error {
            None => self.promoted.inc(),
            Some(error) => self.not_promoted.with_label_values(&[&error.to_string()]).inc(),
        }
    }

    /// A defragmentation begins; it ends when the guard is dropped.
    pub(crate) fn defragmenting(&self) -> Defragmenting {
        self.defragmenting.inc();
        Defragmenting {
            inflight: self.defragmenting.clone(),
            durations: self.defragmentations.clone(),
            started: Instant::now(),
        }
    }

    /// The whole store was hashed.
    pub(crate) fn hashed(&self, took: Duration) {
        self.hashes.observe(took.as_secs_f64());
    }

    /// The records up to a revision were hashed.
    pub(crate) fn hashed_revision(&self, took: Duration) {
        self.revision_hashes.observe(took.as_secs_f64());
    }

    /// A message, or the body of a JSON request, has been received.
    pub(crate) fn received(&self, route: Route, bytes: usize) {
        self.by_route[route as usize].messages_received.inc();
        self.received_bytes.inc_by(bytes as u64);
    }

    /// A message, or the body of a JSON response, is sent.
    pub(crate) fn sent(&self, route: Route, bytes: usize) {
        self.sent_to_many(route, bytes, 1);
    }

    /// The same message is sent to so many.
    pub(crate) fn sent_to_many(&self, route: Route, bytes: usize, times: u64) {
        self.by_route[route as usize].messages_sent.inc_by(times);
        self.sent_bytes.inc_by(bytes as u64 * times);
    }

    /// The counter of bytes sent, for answers that are sent in pieces.
    pub(crate) fn sent_bytes(&self) -> IntCounter {
        self.sent_bytes.clone()
    }

    fn finished(&self, route: Route, elapsed: Duration, code: Option<Code>) {
        let per_route = &self.by_route[route as usize];
        self.slow.note(route, elapsed, code);
        let elapsed = elapsed.as_secs_f64();
        match code {
            None => {
                per_route.ok.inc();
                per_route.duration_ok.observe(elapsed);
            }
            Some(code) => {
                let (service, method) = (route.service(), route.method());
                self.handled.with_label_values(&[service, method, route.exchange().name(), code.name()]).inc();
                per_route.duration_failed.observe(elapsed);
            }
        }
        if let Some(handling) = &per_route.handling {
            handling.observe(elapsed);
        }
    }
}

/// Logs requests that take long: one line in every [`SLOW_LINE_INTERVAL`] at most, which says how many had none.
struct SlowRequests {
    /// What takes longer is slow.
    limit: Duration,
    last: Mutex<LastLine>,
}

#[derive(Default)]
struct LastLine {
    at: Option<Instant>,
    /// Slow requests since that had no line.
    unlogged: u64,
}

impl SlowRequests {
    fn new(limit: Duration) -> SlowRequests {
        SlowRequests { limit, last: Mutex::default() }
    }

    /// A request is over; `code` says why it failed, if it did. Only a slow one reads the clock.
    fn note(&self, route: Route, elapsed: Duration, code: Option<Code>) {
        if !self.is_slow(route, elapsed) {
            return;
        }
        let Some(unlogged) = self.turn(Instant::now()) else { return };
        let (took_ms, expected_ms) = (elapsed.as_millis() as u64, self.limit.as_millis() as u64);
        let (method, code) = (route.method(), code.map_or("OK", Code::name));
        tracing::warn!(method, code, took_ms, expected_ms, unlogged, "request took too long");
    }

    /// Streams last as long as their clients like, and whoever waits for a lock waits for others.
    fn is_slow(&self, route: Route, elapsed: Duration) -> bool {
        elapsed > self.limit && route.exchange() == Exchange::Unary && !route.waits()
    }

    /// How many slow requests had no line since the last one, if it is time for the next.
    fn turn(&self, now: Instant) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.at.is_some_and(|at| now.saturating_duration_since(at) < SLOW_LINE_INTERVAL) {
            last.unlogged += 1;
            return None;
        }
        last.at = Some(now);
        Some(std::mem::take(&mut last.unlogged))
    }
}

/// A defragmentation under way.
pub(crate) struct Defragmenting {
    inflight: IntGauge,
    durations: Histogram,
    started: Instant,
}

impl Drop for Defragmenting {
    fn drop(&mut self) {
        self.inflight.dec();
        self.durations.observe(self.started.elapsed().as_secs_f64());
    }
}

impl Running {
    /// The request has its answer; `None` is a result.
    pub(crate) fn end(mut self, error: Option<&ApiError>) {
        self.ended = true;
        self.metrics.finished(self.route, self.started.elapsed(), error.map(ApiError::code));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.metrics.finished(self.route, self.started.elapsed(), Some(Code::Canceled));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn text(metrics: &Metrics) -> String {
        let registry = Registry::new();
        metrics.register(&registry).unwrap();
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn requests_are_counted_by_route_and_outcome() {
        let metrics = Arc::new(Metrics::new(false, Duration::MAX).unwrap());
        for route in Route::ALL {
            drop(metrics.begin(*route, Some("3.6")));
        }
        metrics.begin(Route::Put, None).end(None);
        metrics.begin(Route::Txn, None).end(Some(&ApiError::TooManyOps));
        let text = text(&metrics);
        for line in [
            r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
            r#"grpc_server_handled_total{grpc_code="Canceled",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
            r#"grpc_server_handled_total{grpc_code="InvalidArgument",grpc_method="Txn",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
            r#"grpc_server_started_total{grpc_method="RangeStream",grpc_service="etcdserverpb.KV",grpc_type="server_stream"} 1"#,
            r#"etcd_server_request_duration_seconds_count{success="true",type="put"} 1"#,
            r#"etcd_server_request_duration_seconds_count{success="false",type="txn"} 2"#,
            r#"etcd_server_client_requests_total{client_api_version="unknown",type="unary"} 2"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        let streams = Route::ALL.iter().filter(|route| route.exchange() != Exchange::Unary).count();
        let line = format!(r#"etcd_server_client_requests_total{{client_api_version="3.6",type="stream"}} {streams}"#);
        assert!(text.contains(&line), "{line}\n{text}");
        assert!(!text.contains("grpc_server_handling_seconds"));
    }

    #[test]
    fn streams_and_waiting_for_a_lock_are_not_slow() {
        let limit = Duration::from_millis(300);
        let slow = SlowRequests::new(limit);
        let is_slow = |route| slow.is_slow(route, limit + Duration::from_nanos(1));
        for route in [Route::Put, Route::Range, Route::Unlock, Route::Defragment] {
            assert!(is_slow(route) && !slow.is_slow(route, limit), "{route:?}");
        }
        for route in [Route::Watch, Route::RangeStream, Route::Lock, Route::Campaign] {
            assert!(!is_slow(route), "{route:?}");
        }
    }

    #[test]
    fn slow_requests_have_a_line_a_second_that_counts_those_without() {
        let slow = SlowRequests::new(Duration::ZERO);
        let start = Instant::now();
        let at = |ms| slow.turn(start + Duration::from_millis(ms));
        assert_eq!([0, 1, 500, 999].map(at), [Some(0), None, None, None]);
        assert_eq!([1_000, 1_001, 5_000, 6_000].map(at), [Some(3), None, Some(1), Some(0)]);
    }

    #[test]
    fn results_and_failures_of_every_rpc_have_a_series_before_the_first() {
        let text = text(&Metrics::new(false, Duration::MAX).unwrap());
        let codes = [
            "OK",
            "Unknown",
            "FailedPrecondition",
            "ResourceExhausted",
            "Internal",
            "Unavailable",
            "DataLoss",
            "DeadlineExceeded",
        ];
        for route in Route::ALL {
            let (service, method, exchange) = (route.service(), route.method(), route.exchange().name());
            for code in codes {
                let line = format!(
                    r#"grpc_server_handled_total{{grpc_code="{code}",grpc_method="{method}",grpc_service="{service}",grpc_type="{exchange}"}} 0"#
                );
                assert!(text.lines().any(|found| found == line), "{line}\n{text}");
            }
        }
    }

    #[test]
    fn the_histogram_of_every_rpc_is_extensive() {
        let metrics = Arc::new(Metrics::new(true, Duration::MAX).unwrap());
        metrics.begin(Route::Put, None).end(None);
        let line = r#"grpc_server_handling_seconds_count{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#;
        assert!(text(&metrics).contains(line));
    }

    #[test]
    fn clients_cannot_make_series_without_end() {
        let metrics = Arc::new(Metrics::new(false, Duration::MAX).unwrap());
        for number in 0..1_000 {
            metrics.begin(Route::Put, Some(&format!("9.{number}"))).end(None);
        }
        let series =
            text(&metrics).lines().filter(|line| line.starts_with("etcd_server_client_requests_total")).count();
        assert!(series <= CLIENT_VERSIONS_MAX + 3, "{series}");
    }
}
