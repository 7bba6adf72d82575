//! What is watched on etcd can be watched on Tally: the alerts and panels that etcd publishes for Prometheus find every series they ask
//! for, in a real Prometheus that scrapes three nodes, and the alerts that can be brought about go off.
//!
//! The expressions are written down here by what they ask for: names, labels and thresholds. Calls come from a real `etcdctl`, the one
//! beside `TALLY_TEST_ETCD`. Without it, or without a Prometheus, the tests say so and pass.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::cluster::Cluster;
use common::scraper::Prometheus;

/// What every expression selects its targets by.
const JOB: &str = r#"job=~".*etcd.*""#;
/// Codes that count as failures of the server.
const FAILURES: &str =
    r#"grpc_code=~"Unknown|FailedPrecondition|ResourceExhausted|Internal|Unavailable|DataLoss|DeadlineExceeded""#;

/// Alerts: their names, and what they compare before they compare it.
const ALERTS: &[(&str, &str, &str)] = &[
    (
        "etcdMembersDown",
        "max without(endpoint)(sum without(instance)(up{JOB} == bool 0) \
         or count without(To)(sum without(instance)(rate(etcd_network_peer_sent_failures_total{JOB}[120s])) > 0.01))",
        "> 0",
    ),
    (
        "etcdInsufficientMembers",
        "sum without(instance)(up{JOB} == bool 1)",
        "< (count without(instance)(up{JOB}) + 1) / 2",
    ),
    ("etcdNoLeader", "etcd_server_has_leader{JOB}", "== 0"),
    (
        "etcdHighNumberOfLeaderChanges",
        "increase((max without(instance)(etcd_server_leader_changes_seen_total{JOB}) \
         or 0 * absent(etcd_server_leader_changes_seen_total{JOB}))[15m:1s])",
        ">= 4",
    ),
    (
        "etcdHighNumberOfFailedGRPCRequests",
        "100 * sum without(grpc_type, grpc_code)(rate(grpc_server_handled_total{JOB, FAILURES}[5m])) \
         / sum without(grpc_type, grpc_code)(rate(grpc_server_handled_total{JOB}[5m]))",
        "> 1",
    ),
    (
        "etcdGRPCRequestsSlow",
        "histogram_quantile(0.99, sum without(grpc_type)(rate(grpc_server_handling_seconds_bucket\
         {JOB, grpc_method!=\"Defragment\", grpc_type=\"unary\"}[5m])))",
        "> 0.15",
    ),
    (
        "etcdMemberCommunicationSlow",
        "histogram_quantile(0.99, rate(etcd_network_peer_round_trip_time_seconds_bucket{JOB}[5m]))",
        "> 0.15",
    ),
    ("etcdHighNumberOfFailedProposals", "rate(etcd_server_proposals_failed_total{JOB}[15m])", "> 5"),
    (
        "etcdHighFsyncDurations",
        "histogram_quantile(0.99, rate(etcd_disk_wal_fsync_duration_seconds_bucket{JOB}[5m]))",
        "> 0.5",
    ),
    (
        "etcdHighCommitDurations",
        "histogram_quantile(0.99, rate(etcd_disk_backend_commit_duration_seconds_bucket{JOB}[5m]))",
        "> 0.25",
    ),
    (
        "etcdDatabaseQuotaLowSpace",
        "100 * last_over_time(etcd_mvcc_db_total_size_in_bytes{JOB}[5m]) / last_over_time(etcd_server_quota_backend_bytes{JOB}[5m])",
        "> 95",
    ),
    (
        "etcdExcessiveDatabaseGrowth",
        "predict_linear(etcd_mvcc_db_total_size_in_bytes{JOB}[4h], 4 * 60 * 60)",
        "> etcd_server_quota_backend_bytes{JOB}",
    ),
    (
        "etcdDatabaseHighFragmentationRatio",
        "last_over_time(etcd_mvcc_db_total_size_in_use_in_bytes{JOB}[5m]) / last_over_time(etcd_mvcc_db_total_size_in_bytes{JOB}[5m])",
        "< 0.5 and etcd_mvcc_db_total_size_in_use_in_bytes{JOB} > 104857600",
    ),
];

/// Alerts that go off when two of three members are gone, and before that do not.
const BROUGHT_ABOUT: [&str; 3] = ["etcdMembersDown", "etcdInsufficientMembers", "etcdNoLeader"];

/// Panels.
const PANELS: &[&str] = &[
    "sum(etcd_server_has_leader{JOB})",
    "sum(rate(grpc_server_started_total{JOB, grpc_type=\"unary\"}[5m]))",
    "sum(rate(grpc_server_handled_total{JOB, grpc_type=\"unary\", FAILURES}[5m]))",
    "sum(grpc_server_started_total{JOB, grpc_service=\"etcdserverpb.Watch\", grpc_type=\"bidi_stream\"}) \
     - sum(grpc_server_handled_total{JOB, grpc_service=\"etcdserverpb.Watch\", grpc_type=\"bidi_stream\"})",
    "sum(grpc_server_started_total{JOB, grpc_service=\"etcdserverpb.Lease\", grpc_type=\"bidi_stream\"}) \
     - sum(grpc_server_handled_total{JOB, grpc_service=\"etcdserverpb.Lease\", grpc_type=\"bidi_stream\"})",
    "etcd_mvcc_db_total_size_in_bytes{JOB}",
    "histogram_quantile(0.99, sum by(instance, le)(rate(etcd_disk_wal_fsync_duration_seconds_bucket{JOB}[5m])))",
    "histogram_quantile(0.99, sum by(instance, le)(rate(etcd_disk_backend_commit_duration_seconds_bucket{JOB}[5m])))",
    "process_resident_memory_bytes{JOB}",
    "rate(etcd_network_client_grpc_received_bytes_total{JOB}[5m])",
    "rate(etcd_network_client_grpc_sent_bytes_total{JOB}[5m])",
    "sum by(instance)(rate(etcd_network_peer_received_bytes_total{JOB}[5m]))",
    "sum by(instance)(rate(etcd_network_peer_sent_bytes_total{JOB}[5m]))",
    "changes(etcd_server_leader_changes_seen_total{JOB}[1d])",
    "histogram_quantile(0.99, sum by(instance, le)(rate(etcd_network_peer_round_trip_time_seconds_bucket{JOB}[5m])))",
    // Not among those that etcd publishes, but on many dashboards.
    "rate(etcd_server_proposals_committed_total{JOB}[5m])",
    "rate(etcd_server_proposals_applied_total{JOB}[5m])",
    "etcd_server_proposals_pending{JOB}",
    "etcd_debugging_mvcc_keys_total{JOB}",
    "etcd_debugging_mvcc_current_revision{JOB}",
    "etcd_debugging_mvcc_compact_revision{JOB}",
    "rate(etcd_mvcc_put_total{JOB}[5m])",
    "rate(etcd_mvcc_delete_total{JOB}[5m])",
    "rate(etcd_mvcc_txn_total{JOB}[5m])",
    "rate(etcd_mvcc_range_total{JOB}[5m])",
    "etcd_debugging_mvcc_watcher_total{JOB}",
    "etcd_debugging_mvcc_watch_stream_total{JOB}",
    "etcd_debugging_mvcc_slow_watcher_total{JOB}",
    "rate(etcd_debugging_mvcc_events_total{JOB}[5m])",
    "etcd_debugging_mvcc_pending_events_total{JOB}",
    "rate(etcd_debugging_lease_granted_total{JOB}[5m])",
    "rate(etcd_debugging_lease_revoked_total{JOB}[5m])",
    "rate(etcd_debugging_lease_renewed_total{JOB}[5m])",
    "histogram_quantile(0.5, rate(etcd_debugging_lease_ttl_total_bucket{JOB}[5m]))",
    "rate(etcd_debugging_server_lease_expired_total{JOB}[5m])",
    "etcd_server_is_leader{JOB}",
    "etcd_server_is_learner{JOB}",
    "etcd_server_id{JOB, server_id!=\"\"}",
    "etcd_server_version{JOB, server_version!=\"\"}",
    "etcd_cluster_version{JOB, cluster_version!=\"\"}",
    "rate(etcd_server_health_success{JOB}[5m])",
    "rate(etcd_server_health_failures{JOB}[5m])",
    "rate(etcd_server_heartbeat_send_failures_total{JOB}[5m])",
    "rate(etcd_server_slow_apply_total{JOB}[5m])",
    "rate(etcd_server_slow_read_indexes_total{JOB}[5m])",
    "etcd_disk_defrag_inflight{JOB}",
    "os_fd_used{JOB} / os_fd_limit{JOB}",
];

/// Calls of every kind, over gRPC; some that fail, and streams that stay open.
struct Callers {
    etcdctl: PathBuf,
    endpoints: String,
    streams: Vec<Child>,
}

impl Drop for Callers {
    fn drop(&mut self) {
        for stream in &mut self.streams {
            let _ = stream.kill();
            let _ = stream.wait();
        }
    }
}

impl Callers {
    fn of(cluster: &Cluster) -> Option<Callers> {
        let etcdctl = std::env::var_os("TALLY_TEST_ETCD").map(|etcd| PathBuf::from(etcd).with_file_name("etcdctl"));
        let Some(etcdctl) = etcdctl.filter(|etcdctl| etcdctl.is_file()) else {
            eprintln!("SKIPPED: there is no etcdctl beside TALLY_TEST_ETCD; `cargo xtask peers` builds one");
            return None;
        };
        let endpoints: Vec<String> =
            cluster.members.iter().map(|member| format!("127.0.0.1:{}", member.client)).collect();
        Some(Callers { etcdctl, endpoints: endpoints.join(","), streams: Vec::new() })
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.etcdctl);
        command.arg(format!("--endpoints={}", self.endpoints)).args(line.split(' ')).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn ok(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, line: &str) {
        assert!(!self.command(line).output().unwrap().status.success(), "{line}");
    }

    /// Opens a stream that stays.
    fn stays(&mut self, line: &str) {
        let stream = self.command(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.streams.push(stream);
    }

    fn work(&mut self) {
        self.stays("watch --prefix a");
        let granted = self.ok("lease grant 60");
        let lease = granted.split(' ').nth(1).unwrap().to_owned();
        self.stays(&format!("lease keep-alive {lease}"));
        for round in 0..3 {
            self.ok(&format!("put a{round} x"));
            self.ok("get --prefix a");
            self.ok(&format!("del a{round}"));
        }
        self.ok("lease grant 1");
        let gone = self.ok("lease grant 60");
        self.ok(&format!("lease revoke {}", gone.split(' ').nth(1).unwrap()));
        self.refused("move-leader 4711");
        self.refused("get a --rev=999999");
    }
}

fn rendered(expression: &str) -> String {
    expression.replace("JOB", JOB).replace("FAILURES", FAILURES)
}

#[test]
fn alerts_and_panels_find_their_series() {
    let mut cluster = Cluster::with(3, &["--metrics=extensive"]);
    let Some(mut callers) = Callers::of(&cluster) else { return };
    let targets: Vec<String> = cluster.members.iter().map(|member| format!("127.0.0.1:{}", member.client)).collect();
    let Some(mut prometheus) = Prometheus::start(&targets) else { return };
    prometheus.wait(&rendered("sum(up{JOB})"), |up| up == 3.0);
    // The first failure is the only one, so its series has to have been there before.
    callers.work();
    // The lease of one second has expired, and everything before it was scraped, twice.
    prometheus
        .wait(&rendered("sum(increase(etcd_debugging_server_lease_expired_total{JOB}[5m]))"), |expired| expired >= 1.0);
    prometheus.wait(&rendered(PANELS[3]), |streams| streams >= 1.0);
    prometheus.wait(&rendered(PANELS[4]), |streams| streams >= 1.0);
    let sides = ALERTS.iter().flat_map(|(name, value, compared)| {
        // The other side of a comparison may have series of its own.
        let other = compared.trim_start_matches(['<', '>', '=', ' ']);
        let other = other.split(" and ").last().into_iter().flat_map(|other| other.split(" > ").take(1));
        std::iter::once(*value).chain(other.filter(|other| other.contains("JOB"))).map(|side| (*name, side))
    });
    let missing: Vec<String> = sides
        .chain(PANELS.iter().map(|panel| ("panel", *panel)))
        .filter(|(_, expression)| prometheus.query(&rendered(expression)).is_empty())
        .map(|(name, expression)| format!("{name}: {expression}"))
        .collect();
    assert!(missing.is_empty(), "without series:\n{}", missing.join("\n"));

    let fires = |prometheus: &mut Prometheus, alert: &str| {
        let (_, value, compared) = ALERTS.iter().find(|(name, ..)| *name == alert).unwrap();
        !prometheus.query(&rendered(&format!("({value}) {compared}"))).is_empty()
    };
    for alert in BROUGHT_ABOUT {
        // A machine that is slow may have missed a scrape of a member, which counts as one that is down until the next.
        let quiet = format!("{alert} is quiet with all members up");
        common::cluster::eventually(&quiet, || (!fires(&mut prometheus, alert)).then_some(()));
    }
    let refused = "etcdHighNumberOfFailedGRPCRequests";
    common::cluster::eventually(refused, || fires(&mut prometheus, refused).then_some(()));
    cluster.kill(1);
    cluster.kill(2);
    for alert in BROUGHT_ABOUT {
        common::cluster::eventually(alert, || fires(&mut prometheus, alert).then_some(()));
    }
}
