//! What is counted per request, under etcd's names. One instance per server, nothing global.
//!
//! etcd's gateway calls its own gRPC services, so a JSON request counts there as a unary RPC; alerts are written against
//! that, so it counts here, too.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, exponential_buckets,
};

use crate::api::Route;
use crate::error::ApiError;

/// Figures of the client API.
#[derive(Clone)]
pub(crate) struct Metrics {
    started: IntCounterVec,
    handled: IntCounterVec,
    durations: HistogramVec,
    requests: IntCounterVec,
    received_bytes: IntCounter,
    sent_bytes: IntCounter,
    promoted: IntCounter,
    not_promoted: IntCounterVec,
    /// The children of the above that every request touches, by route: looking them up would cost more than counting.
    by_route: Vec<PerRoute>,
    unary_requests: IntCounter,
}

#[derive(Clone)]
struct PerRoute {
    started: IntCounter,
    ok: IntCounter,
    duration_ok: Histogram,
    duration_failed: Histogram,
}

impl Route {
    /// gRPC's names of the service and the method.
    fn rpc(self) -> (&'static str, &'static str) {
        match self {
            Route::Range => ("etcdserverpb.KV", "Range"),
            Route::Put => ("etcdserverpb.KV", "Put"),
            Route::DeleteRange => ("etcdserverpb.KV", "DeleteRange"),
            Route::Txn => ("etcdserverpb.KV", "Txn"),
            Route::Compaction => ("etcdserverpb.KV", "Compact"),
            Route::Status => ("etcdserverpb.Maintenance", "Status"),
            Route::Hash => ("etcdserverpb.Maintenance", "Hash"),
            Route::HashKv => ("etcdserverpb.Maintenance", "HashKV"),
            Route::TransferLeadership => ("etcdserverpb.Maintenance", "MoveLeader"),
            Route::MemberAdd => ("etcdserverpb.Cluster", "MemberAdd"),
            Route::MemberRemove => ("etcdserverpb.Cluster", "MemberRemove"),
            Route::MemberUpdate => ("etcdserverpb.Cluster", "MemberUpdate"),
            Route::MemberList => ("etcdserverpb.Cluster", "MemberList"),
            Route::MemberPromote => ("etcdserverpb.Cluster", "MemberPromote"),
        }
    }

    /// The `type` of a request in etcd's duration histogram.
    fn kind(self) -> &'static str {
        match self {
            Route::Range => "range",
            Route::Put => "put",
            Route::DeleteRange => "delete_range",
            Route::Txn => "txn",
            Route::Compaction => "compaction",
            Route::Status => "status",
            Route::Hash => "hash",
            Route::HashKv => "hash_kv",
            Route::TransferLeadership => "move_leader",
            Route::MemberAdd => "member_add",
            Route::MemberRemove => "member_remove",
            Route::MemberUpdate => "member_update",
            Route::MemberList => "member_list",
            Route::MemberPromote => "member_promote",
        }
    }
}

impl Metrics {
    /// Figures that start at zero.
    ///
    /// # Errors
    /// None in practice: the names are fixed and valid.
    pub(crate) fn new() -> prometheus::Result<Self> {
        let started = IntCounterVec::new(
            Opts::new(
                "grpc_server_started_total",
                "Requests started, by RPC; JSON requests count as the RPC they call.",
            ),
            &["grpc_service", "grpc_method", "grpc_type"],
        )?;
        let handled = IntCounterVec::new(
            Opts::new("grpc_server_handled_total", "Requests answered, by RPC and code of the answer."),
            &["grpc_service", "grpc_method", "grpc_type", "grpc_code"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "etcd_server_request_duration_seconds",
                "Time from a request's head to its answer, by type and success.",
            )
            .buckets(exponential_buckets(0.001, 2.0, 14)?),
            &["type", "success"],
        )?;
        let requests = IntCounterVec::new(
            Opts::new("etcd_server_client_requests_total", "Client requests, by type and client API version."),
            &["type", "client_api_version"],
        )?;
        let by_route = Route::ALL
            .iter()
            .map(|route| {
                let (service, method) = route.rpc();
                PerRoute {
                    started: started.with_label_values(&[service, method, "unary"]),
                    ok: handled.with_label_values(&[service, method, "unary", "OK"]),
                    duration_ok: durations.with_label_values(&[route.kind(), "true"]),
                    duration_failed: durations.with_label_values(&[route.kind(), "false"]),
                }
            })
            .collect();
        Ok(Self {
            received_bytes: IntCounter::new(
                "etcd_network_client_grpc_received_bytes_total",
                "Bytes of request bodies received from clients.",
            )?,
            sent_bytes: IntCounter::new(
                "etcd_network_client_grpc_sent_bytes_total",
                "Bytes of response bodies sent to clients.",
            )?,
            promoted: IntCounter::new(
                "etcd_server_learner_promote_successes",
                "Learners that became voters at the request of a client of this member.",
            )?,
            not_promoted: IntCounterVec::new(
                Opts::new("etcd_server_learner_promote_failures", "Learners that did not become voters, by reason."),
                &["Reason"],
            )?,
            unary_requests: requests.with_label_values(&["unary", "unknown"]),
            started,
            handled,
            durations,
            requests,
            by_route,
        })
    }

    /// Makes the figures part of what the registry exposes, whether metrics are `basic` or `extensive`.
    ///
    /// # Errors
    /// If the registry has figures of these names already.
    pub(crate) fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.started.clone()))?;
        registry.register(Box::new(self.handled.clone()))?;
        registry.register(Box::new(self.durations.clone()))?;
        registry.register(Box::new(self.requests.clone()))?;
        registry.register(Box::new(self.promoted.clone()))?;
        registry.register(Box::new(self.not_promoted.clone()))?;
        registry.register(Box::new(self.received_bytes.clone()))?;
        registry.register(Box::new(self.sent_bytes.clone()))
    }

    pub(crate) fn started(&self, route: Route) {
        self.unary_requests.inc();
        self.by_route[route as usize].started.inc();
    }

    pub(crate) fn finished(&self, route: Route, elapsed: Duration, error: Option<&ApiError>) {
        let per_route = &self.by_route[route as usize];
        match error {
            None => {
                per_route.ok.inc();
                per_route.duration_ok.observe(elapsed.as_secs_f64());
            }
            Some(error) => {
                let (service, method) = route.rpc();
                self.handled.with_label_values(&[service, method, "unary", error.code().name()]).inc();
                per_route.duration_failed.observe(elapsed.as_secs_f64());
            }
        }
    }

    pub(crate) fn promoted(&self, error: Option<&ApiError>) {
        match error {
            None => self.promoted.inc(),
            Some(error) => self.not_promoted.with_label_values(&[&error.to_string()]).inc(),
        }
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.received_bytes.inc_by(bytes as u64);
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.sent_bytes.inc_by(bytes as u64);
    }

    /// The counter of bytes sent, for answers that are sent in pieces.
    pub(crate) fn sent_bytes(&self) -> IntCounter {
        self.sent_bytes.clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn requests_are_counted_by_route_and_outcome() {
        let metrics = Metrics::new().unwrap();
        let registry = Registry::new();
        metrics.register(&registry).unwrap();
        for route in Route::ALL {
            assert_eq!(Route::ALL[route as usize], route);
            metrics.started(route);
        }
        metrics.finished(Route::Put, Duration::from_millis(3), None);
        metrics.finished(Route::Txn, Duration::from_millis(3), Some(&ApiError::TooManyOps));
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
            r#"grpc_server_handled_total{grpc_code="InvalidArgument",grpc_method="Txn",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
            r#"etcd_server_request_duration_seconds_count{success="true",type="put"} 1"#,
            r#"etcd_server_request_duration_seconds_bucket{success="false",type="txn",le="0.004"} 1"#,
            r#"etcd_server_client_requests_total{client_api_version="unknown",type="unary"} 14"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
