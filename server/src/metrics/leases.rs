//! Figures about leases.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, Metric, MetricFamily, MetricType};
use prometheus::{Registry, Result};
use tally_raftnode::Node;

use super::Figure;
use crate::jobs::Lessor;

const TTLS: &str = "etcd_debugging_lease_ttl_total";
const TTLS_HELP: &str = "Times to live of the leases granted, in seconds.";

/// Adds the figures of a node's leases.
pub(super) fn register(registry: &Registry, node: &Node, lessor: &Arc<Lessor>) -> Result<()> {
    let (granted, revoked) = (node.clone(), node.clone());
    let (renewed, expired) = (Arc::clone(lessor), Arc::clone(lessor));
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
        Figure::gauge("tally_leases", "Leases that there are.", move || leases.reads().leases().len() as f64),
    ];
    figures.into_iter().try_for_each(|figure| figure.register(registry))?;
    let desc = Desc::new(TTLS.into(), TTLS_HELP.into(), Vec::new(), std::collections::HashMap::new())?;
    registry.register(Box::new(Ttls { desc, node: node.clone() }))
}

/// The histogram that the table of leases keeps.
struct Ttls {
    desc: Desc,
    node: Node,
}

impl Collector for Ttls {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let reads = self.node.reads();
        let metrics = reads.lease_metrics();
        let (mut buckets, mut below) = (Vec::new(), 0);
        let counts = metrics.ttl_buckets();
        for (at, count) in counts.iter().enumerate() {
            below += count;
            // The last one has no bound, and is the whole count.
            if at + 1 < counts.len() {
                let mut bucket = Bucket::default();
                bucket.set_cumulative_count(below);
                bucket.set_upper_bound((1_u64 << at) as f64);
                buckets.push(bucket);
            }
        }
        let mut histogram = Histogram::default();
        histogram.set_sample_count(below);
        histogram.set_sample_sum(metrics.ttl_sum_s() as f64);
        histogram.set_bucket(buckets);
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        let mut family = MetricFamily::default();
        family.set_name(TTLS.to_owned());
        family.set_help(TTLS_HELP.to_owned());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(vec![metric]);
        vec![family]
    }
}
