//! Figures about leases.
//!
//! The histogram of times to live is three figures, because its name does not let its type be declared (see
//! [`UNDECLARED`](super::UNDECLARED)), and each needs a help of its own then.

use std::sync::Arc;

use prometheus::proto::MetricType;
use prometheus::{Registry, Result};
use tally_raftnode::Node;

use super::Figure;
use crate::jobs::Lessor;

/// Adds the figures of a node's leases.
pub(super) fn register(registry: &Registry, node: &Node, lessor: &Arc<Lessor>) -> Result<()> {
    let (granted, revoked) = (node.clone(), node.clone());
    let (renewed, expired) = (Arc::clone(lessor), Arc::clone(lessor));
    let (bucketed, summed, counted) = (node.clone(), node.clone(), node.clone());
    let leases = node.clone();
    let figures = [
        Figure::counter("etcd_debugging_lease_granted_total", "Leases granted.", move || {
            granted.reads().lease_metrics().granted_total()
        }),
        Figure::counter("etcd_debugging_lease_revoked_total", "Leases revoked, expired ones included.", move || {
            revoked.reads().lease_metrics().revoked_total()
        }),
        Figure::counter("etcd_debugging_lease_renewed_total", "Renewals that this leader granted.", move || {
            renewed.renewed_total()
        }),
        Figure::counter(
            "etcd_debugging_server_lease_expired_total",
            "Leases that this leader let expire.",
            move || expired.expired_total(),
        ),
        Figure::labelled(
            "etcd_debugging_lease_ttl_total_bucket",
            "Leases granted at most so many seconds.",
            MetricType::GAUGE,
            &["le"],
            move || buckets(bucketed.reads().lease_metrics()),
        ),
        Figure::gauge("etcd_debugging_lease_ttl_total_sum", "Seconds granted to all leases.", move || {
            summed.reads().lease_metrics().ttl_sum_s() as f64
        }),
        Figure::gauge("etcd_debugging_lease_ttl_total_count", "Leases whose seconds are counted.", move || {
            counted.reads().lease_metrics().granted_total() as f64
        }),
        Figure::gauge("tally_leases", "Leases that there are.", move || leases.reads().leases().len() as f64),
    ];
    figures.into_iter().try_for_each(|figure| figure.register(registry))
}

/// How many leases were granted at most so many seconds.
fn buckets(metrics: &tally_lease::Metrics) -> Vec<(Vec<String>, f64)> {
    let counts = metrics.ttl_buckets();
    let bound = |at: usize| if at + 1 < counts.len() { (1_u64 << at).to_string() } else { "+Inf".to_owned() };
    let mut below = 0;
    let add = |(at, count): (usize, &u64)| {
        below += count;
        (vec![bound(at)], below as f64)
    };
    counts.iter().enumerate().map(add).collect()
}
