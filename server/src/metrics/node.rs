//! The table of figures that are read from the node, the store and the connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus::proto::MetricType;
use tally_apply::Reads;
use tally_raftnode::{Node, Progress, Status};

use super::{Figure, Network};
use crate::config::{API_VERSION, VERSION};
use crate::health::{Check, Health, Tally};
use crate::http::{Connections, descriptor_limit};
use crate::jobs::Lessor;

/// Sizes of the database, refreshed by a job.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    /// Bytes on disk and in memory tables.
    pub(crate) allocated: AtomicU64,
    /// Bytes of them that hold live data.
    pub(crate) in_use: AtomicU64,
    /// Bytes of the keys and leases, which are in memory whole, however little they take on disk.
    pub(crate) keys: AtomicU64,
}

impl Sizes {
    /// What is compared with the quota: keys are compressed on disk and not in memory, and leases take more there.
    pub(crate) fn occupied(&self) -> u64 {
        self.allocated.load(Relaxed).max(self.keys.load(Relaxed))
    }
}

/// What the figures are read from.
pub(crate) struct Sources {
    pub(crate) node: Node,
    pub(crate) lessor: Arc<Lessor>,
    pub(crate) network: Arc<Network>,
    pub(crate) health: Arc<Health>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) sizes: Arc<Sizes>,
    pub(crate) member_id: u64,
    /// As configured, or the default; negative for no limit.
    pub(crate) quota_bytes: i64,
    pub(crate) unsafe_no_fsync: bool,
}

impl Sources {
    fn reads(&self) -> Reads {
        self.node.reads()
    }

    fn status<T>(&self, read: impl FnOnce(&Status) -> T) -> T {
        read(&self.node.status().borrow())
    }
}

/// All of them.
pub(super) fn figures(sources: &Arc<Sources>) -> Vec<Figure> {
    let table = Table { sources: Arc::clone(sources), figures: Vec::new() };
    table.store().consensus().health().server().connections().process().figures
}

struct Table {
    sources: Arc<Sources>,
    figures: Vec<Figure>,
}

impl Table {
    fn gauge(mut self, name: &'static str, help: &'static str, read: fn(&Sources) -> f64) -> Table {
        let sources = Arc::clone(&self.sources);
        self.figures.push(Figure::gauge(name, help, move || read(&sources)));
        self
    }

    fn counter(mut self, name: &'static str, help: &'static str, read: fn(&Sources) -> u64) -> Table {
        let sources = Arc::clone(&self.sources);
        self.figures.push(Figure::counter(name, help, move || read(&sources)));
        self
    }

    fn progress(self, name: &'static str, help: &'static str, read: fn(&Progress) -> u64) -> Table {
        let mut table = self;
        let sources = Arc::clone(&table.sources);
        table.figures.push(Figure::gauge(name, help, move || read(&sources.node.progress()) as f64));
        table
    }

    fn store(self) -> Table {
        self.counter("etcd_mvcc_put_total", "Puts seen by this member.", |s| s.reads().kv().metrics().puts())
            .counter("etcd_mvcc_delete_total", "Deletes seen by this member.", |s| s.reads().kv().metrics().deletes())
            .counter("etcd_mvcc_txn_total", "Transactions of more than one operation seen by this member.", |s| {
                s.reads().kv().metrics().txns()
            })
            .counter("etcd_mvcc_range_total", "Ranges seen by this member.", |s| s.reads().kv().metrics().ranges())
            .gauge("etcd_debugging_mvcc_current_revision", "The current revision of the store.", |s| {
                s.reads().kv().revision() as f64
            })
            .gauge("etcd_debugging_mvcc_compact_revision", "The revision of the last compaction.", |s| {
                s.reads().kv().compact_revision() as f64
            })
            .gauge("etcd_debugging_mvcc_keys_total", "Keys that exist.", |s| s.reads().kv().keys_live() as f64)
            .gauge("etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes of keys and values put.", |s| {
                s.reads().kv().metrics().put_bytes() as f64
            })
            .counter("etcd_debugging_mvcc_db_compaction_keys_total", "Records deleted after compactions.", |s| {
                s.reads().kv().metrics().swept_records()
            })
            .gauge("etcd_debugging_mvcc_watch_stream_total", "Watch streams that are open.", |s| {
                s.reads().kv().watch_figures().streams() as f64
            })
            .gauge("etcd_debugging_mvcc_watcher_total", "Watchers on all streams.", |s| {
                s.reads().kv().watch_figures().watchers() as f64
            })
            .gauge("etcd_debugging_mvcc_slow_watcher_total", "Watchers that read history to catch up.", |s| {
                s.reads().kv().watch_figures().slow_watchers() as f64
            })
            .gauge("tally_watch_crowd_streams", "Watch streams that are told of changes in a crowd.", |s| {
                s.reads().kv().watch_figures().aside() as f64
            })
            .counter("etcd_debugging_mvcc_events_total", "Events sent to watchers.", |s| {
                s.reads().kv().watch_figures().events()
            })
            .gauge("etcd_debugging_mvcc_pending_events_total", "Events taken up for watchers and not sent yet.", |s| {
                s.reads().kv().watch_figures().pending_events() as f64
            })
            .gauge("etcd_mvcc_db_total_size_in_bytes", "Bytes that the database takes.", |s| {
                s.sizes.allocated.load(Relaxed) as f64
            })
            .gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of live data in the database.", |s| {
                s.sizes.in_use.load(Relaxed) as f64
            })
            .gauge("etcd_server_quota_backend_bytes", "Size of the database above which writes are refused.", |s| {
                s.quota_bytes as f64
            })
            .gauge("tally_quota_used_bytes", "What the quota bounds: bytes on disk, or of keys if that is more.", |s| {
                s.sizes.occupied() as f64
            })
    }

    fn consensus(self) -> Table {
        self.gauge("etcd_server_has_leader", "Whether a leader is known.", |s| {
            s.status(|status| f64::from(u8::from(status.leader.is_some())))
        })
        .gauge("etcd_server_is_leader", "Whether this member leads.", |s| {
            s.status(|status| f64::from(u8::from(status.is_leader)))
        })
        .gauge("etcd_server_is_learner", "Whether this member does not vote.", |s| {
            s.status(|status| f64::from(u8::from(status.is_learner)))
        })
        .counter("etcd_server_leader_changes_seen_total", "Changes of the leader seen.", |s| {
            s.status(|status| status.leader_changes)
        })
        .progress("etcd_server_proposals_committed_total", "Index of the last committed entry.", |p| p.committed)
        .progress("etcd_server_proposals_applied_total", "Index of the last applied entry.", |p| p.applied)
        .progress("etcd_server_proposals_pending", "Proposals without an outcome yet.", |p| p.proposals_pending)
        .counter("etcd_server_proposals_failed_total", "Proposals that consensus did not carry out.", |s| {
            s.node.progress().proposals_failed
        })
        .counter("etcd_server_slow_read_indexes_total", "Confirmations of leadership for reads that took long.", |s| {
            s.node.progress().read_indexes_slow
        })
        .counter("etcd_server_read_indexes_failed_total", "Confirmations of leadership for reads that failed.", |s| {
            s.node.progress().read_indexes_failed
        })
        .gauge("etcd_server_snapshot_apply_in_progress_total", "Whether a state is being received.", |s| {
            f64::from(u8::from(s.network.is_receiving_snapshot()))
        })
        .known_peers()
        .progress("tally_applied_index", "Index of the last entry that readers see.", |p| p.applied)
        .progress("tally_durable_index", "Index of the last entry that is durable in the database.", |p| p.durable)
        .progress("tally_log_last_index", "Index of the last entry in the log.", |p| p.last)
        .progress("tally_log_purged_index", "Index of the last entry cut from the log.", |p| p.purged)
    }

    /// As in etcd, a member knows itself.
    fn known_peers(mut self) -> Table {
        let sources = Arc::clone(&self.sources);
        let known = move || {
            let local = format!("{:x}", sources.member_id);
            let remotes = sources.node.members().into_iter().map(|member| format!("{:x}", member.id));
            remotes.map(|remote| (vec![local.clone(), remote], 1.0)).collect()
        };
        let (name, help) = ("etcd_network_known_peers", "Members of the cluster.");
        self.figures.push(Figure::labelled(name, help, MetricType::GAUGE, &["Local", "Remote"], known));
        self
    }

    fn health(mut self) -> Table {
        let sources = Arc::clone(&self.sources);
        let count = move || {
            health_samples(&sources.health)
                .into_iter()
                .flat_map(|(labels, tally)| {
                    let with = |status: &str| labels.iter().cloned().chain([status.to_owned()]).collect::<Vec<_>>();
                    let (good, bad) = (tally.successes.load(Relaxed), tally.failures.load(Relaxed));
                    [(with("success"), good as f64), (with("error"), bad as f64)]
                })
                .collect()
        };
        let labels = &["type", "name", "status"];
        let (name, help) = ("etcd_server_healthchecks_total", "Health checks made, by result.");
        self.figures.push(Figure::labelled(name, help, MetricType::COUNTER, labels, count));
        let sources = Arc::clone(&self.sources);
        let last = move || {
            let samples = health_samples(&sources.health).into_iter();
            samples.map(|(labels, tally)| (labels, tally.last_good.load(Relaxed) as f64)).collect()
        };
        let (name, help) = ("etcd_server_healthcheck", "Whether the last health check went well.");
        self.figures.push(Figure::labelled(name, help, MetricType::GAUGE, &["type", "name"], last));
        let sources = Arc::clone(&self.sources);
        let alarms = move || {
            let alarms = sources.reads().alarms();
            alarms.iter().map(|a| (vec![format!("{:x}", a.member_id), a.kind.name().to_owned()], 1.0)).collect()
        };
        let (name, help) = ("etcd_debugging_server_alarms", "Alarms that are raised.");
        self.figures.push(Figure::labelled(name, help, MetricType::GAUGE, &["server_id", "alarm_type"], alarms));
        self.counter("etcd_server_health_success", "Good answers of /health.", |s| {
            s.health.health.successes.load(Relaxed)
        })
        .counter("etcd_server_health_failures", "Bad answers of /health.", |s| s.health.health.failures.load(Relaxed))
    }

    fn server(mut self) -> Table {
        let id = format!("{:x}", self.sources.member_id);
        // Clusters speak of major and minor versions only.
        let cluster = API_VERSION.rsplit_once('.').map_or(API_VERSION, |(minor, _)| minor).to_owned();
        self.figures.extend([
            Figure::info(
                "etcd_server_version",
                "The etcd version whose API is served.",
                &["server_version"],
                API_VERSION.into(),
            ),
            Figure::info("etcd_cluster_version", "The version of the cluster.", &["cluster_version"], cluster),
            Figure::info("etcd_server_id", "The id of this member, in hexadecimal.", &["server_id"], id),
            Figure::info("tally_build_info", "The version of this program.", &["version"], VERSION.into()),
        ]);
        self.gauge("tally_unsafe_no_fsync", "Whether fsync is switched off, so that writes can be lost.", |s| {
            f64::from(u8::from(s.unsafe_no_fsync))
        })
    }

    fn connections(self) -> Table {
        self.gauge("tally_connections_open", "Connections that are open.", |s| s.connections.open() as f64)
            .counter("tally_connections_accepted_total", "Connections accepted.", |s| s.connections.accepted())
            .counter("tally_connections_refused_total", "Connections closed at once: too many were open.", |s| {
                s.connections.refused()
            })
            .counter("tally_connections_timed_out_total", "Connections closed because they made no progress.", |s| {
                s.connections.timed_out()
            })
    }

    fn process(self) -> Table {
        self.gauge("os_fd_limit", "File descriptors that this process may open.", |_| {
            descriptor_limit().unwrap_or_default() as f64
        })
        .gauge("os_fd_used", "File descriptors that this process has open.", |_| {
            std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as f64
        })
    }
}

/// Every check of every endpoint with its labels.
fn health_samples(health: &Health) -> Vec<(Vec<String>, &Tally)> {
    let endpoints = [("livez", Check::LIVE, &health.live), ("readyz", Check::READY, &health.ready)];
    let samples = endpoints.into_iter().flat_map(|(endpoint, checks, tallies)| {
        checks
            .iter()
            .zip(tallies)
            .map(move |(check, tally)| (vec![endpoint.to_owned(), check.name().to_owned()], tally))
    });
    samples.collect()
}
