//! What happens between this member and its peers: counted under etcd's names, and remembered as far as the texts of
//! timeouts need it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, Result,
    exponential_buckets,
};
use tally_raftnode::{NetworkEvent, NetworkObserver};

/// The observer of one server's peers.
pub(crate) struct Network {
    families: Families,
    /// Figures by peer: looking them up by label would cost more than counting.
    peers: RwLock<HashMap<u64, Arc<Peer>>>,
}

struct Families {
    local: String,
    active: GaugeVec,
    disconnected: IntCounterVec,
    sent_bytes: IntCounterVec,
    received_bytes: IntCounterVec,
    sent_failures: IntCounterVec,
    received_failures: IntCounterVec,
    round_trip: HistogramVec,
    snapshot_send: SnapshotFamily,
    snapshot_receive: SnapshotFamily,
    heartbeat_failures: IntCounter,
}

struct SnapshotFamily {
    success: IntCounterVec,
    failures: IntCounterVec,
    inflight: GaugeVec,
    duration: HistogramVec,
}

/// One peer's share of the figures.
struct Peer {
    active: Gauge,
    disconnected: IntCounter,
    sent_bytes: IntCounter,
    received_bytes: IntCounter,
    sent_failures: IntCounter,
    received_failures: IntCounter,
    round_trip: Histogram,
    snapshot_send: SnapshotFigures,
    snapshot_receive: SnapshotFigures,
    connected_since: Mutex<Option<Instant>>,
}

struct SnapshotFigures {
    success: IntCounter,
    failures: IntCounter,
    inflight: Gauge,
    duration: Histogram,
}

impl SnapshotFamily {
    /// `side` is `send` or `receive`.
    fn new(side: &str, label: &str) -> Result<SnapshotFamily> {
        let labels = &[label];
        let name = |what: &str| format!("etcd_network_snapshot_{side}_{what}");
        let buckets = exponential_buckets(0.1, 2.0, 10)?;
        let done = if side == "send" { "sent" } else { "received" };
        Ok(SnapshotFamily {
            success: IntCounterVec::new(Opts::new(name("success"), format!("Snapshots {done}.")), labels)?,
            failures: IntCounterVec::new(
                Opts::new(name("failures"), format!("Snapshots that were not {done} to the end.")),
                labels,
            )?,
            inflight: GaugeVec::new(
                Opts::new(name("inflights_total"), format!("Snapshots that are being {done}.")),
                labels,
            )?,
            duration: HistogramVec::new(
                HistogramOpts::new(name("total_duration_seconds"), format!("Time until a snapshot was {done}."))
                    .buckets(buckets),
                labels,
            )?,
        })
    }

    fn of(&self, peer: &str) -> SnapshotFigures {
        SnapshotFigures {
            success: self.success.with_label_values(&[peer]),
            failures: self.failures.with_label_values(&[peer]),
            inflight: self.inflight.with_label_values(&[peer]),
            duration: self.duration.with_label_values(&[peer]),
        }
    }

    fn register(&self, registry: &Registry) -> Result<()> {
        registry.register(Box::new(self.success.clone()))?;
        registry.register(Box::new(self.failures.clone()))?;
        registry.register(Box::new(self.inflight.clone()))?;
        registry.register(Box::new(self.duration.clone()))
    }
}

impl SnapshotFigures {
    fn ended(&self, elapsed: Option<Duration>) {
        self.inflight.dec();
        match elapsed {
            Some(elapsed) => {
                self.success.inc();
                self.duration.observe(elapsed.as_secs_f64());
            }
            None => self.failures.inc(),
        }
    }
}

impl Families {
    fn new(member_id: u64) -> Result<Families> {
        let counter = |name: &str, help: &str, label: &str| IntCounterVec::new(Opts::new(name, help), &[label]);
        let between = &["Local", "Remote"];
        Ok(Families {
            local: format!("{member_id:x}"),
            active: GaugeVec::new(Opts::new("etcd_network_active_peers", "Peers that are connected."), between)?,
            disconnected: IntCounterVec::new(
                Opts::new("etcd_network_disconnected_peers_total", "Times that a peer was lost."),
                between,
            )?,
            sent_bytes: counter("etcd_network_peer_sent_bytes_total", "Bytes sent to a peer.", "To")?,
            received_bytes: counter("etcd_network_peer_received_bytes_total", "Bytes received from a peer.", "From")?,
            sent_failures: counter("etcd_network_peer_sent_failures_total", "Failures to send to a peer.", "To")?,
            received_failures: counter(
                "etcd_network_peer_received_failures_total",
                "Failures to receive from a peer.",
                "From",
            )?,
            round_trip: HistogramVec::new(
                HistogramOpts::new(
                    "etcd_network_peer_round_trip_time_seconds",
                    "Time from a message to a peer until its answer.",
                )
                .buckets(exponential_buckets(0.0001, 2.0, 16)?),
                &["To"],
            )?,
            snapshot_send: SnapshotFamily::new("send", "To")?,
            snapshot_receive: SnapshotFamily::new("receive", "From")?,
            heartbeat_failures: IntCounter::new(
                "etcd_server_heartbeat_send_failures_total",
                "Heartbeats that could not be sent in time.",
            )?,
        })
    }

    fn of(&self, peer: u64) -> Peer {
        let remote = format!("{peer:x}");
        let (between, one) = ([self.local.as_str(), remote.as_str()], [remote.as_str()]);
        Peer {
            active: self.active.with_label_values(&between),
            disconnected: self.disconnected.with_label_values(&between),
            sent_bytes: self.sent_bytes.with_label_values(&one),
            received_bytes: self.received_bytes.with_label_values(&one),
            sent_failures: self.sent_failures.with_label_values(&one),
            received_failures: self.received_failures.with_label_values(&one),
            round_trip: self.round_trip.with_label_values(&one),
            snapshot_send: self.snapshot_send.of(&remote),
            snapshot_receive: self.snapshot_receive.of(&remote),
            connected_since: Mutex::new(None),
        }
    }
}

impl Peer {
    fn connected_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.connected_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Network {
    pub(crate) fn new(member_id: u64) -> Result<Network> {
        Ok(Network { families: Families::new(member_id)?, peers: RwLock::default() })
    }

    pub(super) fn register(&self, registry: &Registry) -> Result<()> {
        let families = &self.families;
        registry.register(Box::new(families.active.clone()))?;
        for counters in [
            &families.disconnected,
            &families.sent_bytes,
            &families.received_bytes,
            &families.sent_failures,
            &families.received_failures,
        ] {
            registry.register(Box::new(counters.clone()))?;
        }
        registry.register(Box::new(families.round_trip.clone()))?;
        families.snapshot_send.register(registry)?;
        families.snapshot_receive.register(registry)?;
        registry.register(Box::new(families.heartbeat_failures.clone()))
    }

    /// Whether a peer has been connected all the time since `moment`.
    pub(crate) fn is_connected_since(&self, peer: u64, moment: Instant) -> bool {
        self.peer(peer).connected_since().is_some_and(|since| since <= moment)
    }

    /// Whether the state of another member is being received and put in place.
    pub(super) fn is_receiving_snapshot(&self) -> bool {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.values().any(|peer| peer.snapshot_receive.inflight.get() > 0.0)
    }

    fn peer(&self, id: u64) -> Arc<Peer> {
        if let Some(peer) = self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return Arc::clone(peer);
        }
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(peers.entry(id).or_insert_with(|| Arc::new(self.families.of(id))))
    }
}

impl NetworkObserver for Network {
    fn observe(&self, event: NetworkEvent) {
        match event {
            NetworkEvent::Sent { to, bytes } => self.peer(to).sent_bytes.inc_by(bytes),
            NetworkEvent::Received { from, bytes } => self.peer(from).received_bytes.inc_by(bytes),
            NetworkEvent::SendFailed { to } => self.peer(to).sent_failures.inc(),
            NetworkEvent::ReceiveFailed { from } => self.peer(from).received_failures.inc(),
            NetworkEvent::RoundTrip { to, elapsed } => self.peer(to).round_trip.observe(elapsed.as_secs_f64()),
            NetworkEvent::Connected { to } => {
                let peer = self.peer(to);
                peer.active.inc();
                *peer.connected_since() = Some(Instant::now());
            }
            NetworkEvent::Disconnected { to } => {
                let peer = self.peer(to);
                peer.active.dec();
                peer.disconnected.inc();
                *peer.connected_since() = None;
            }
            NetworkEvent::HeartbeatFailed { .. } => self.families.heartbeat_failures.inc(),
            NetworkEvent::SnapshotSendStarted { to } => self.peer(to).snapshot_send.inflight.inc(),
            NetworkEvent::SnapshotSent { to, elapsed } => self.peer(to).snapshot_send.ended(Some(elapsed)),
            NetworkEvent::SnapshotSendFailed { to } => self.peer(to).snapshot_send.ended(None),
            NetworkEvent::SnapshotReceiveStarted { from } => self.peer(from).snapshot_receive.inflight.inc(),
            NetworkEvent::SnapshotReceived { from, elapsed } => self.peer(from).snapshot_receive.ended(Some(elapsed)),
            NetworkEvent::SnapshotReceiveFailed { from } => self.peer(from).snapshot_receive.ended(None),
            // Kinds that are not known here have no figure.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn events_are_counted_by_peer() {
        let network = Network::new(0xa).unwrap();
        let registry = Registry::new();
        network.register(&registry).unwrap();
        let before = Instant::now();
        assert!(!network.is_connected_since(0xb, before));
        for event in [
            NetworkEvent::Connected { to: 0xb },
            NetworkEvent::Sent { to: 0xb, bytes: 7 },
            NetworkEvent::Sent { to: 0xb, bytes: 5 },
            NetworkEvent::Received { from: 0xb, bytes: 3 },
            NetworkEvent::RoundTrip { to: 0xb, elapsed: Duration::from_micros(150) },
            NetworkEvent::SnapshotSendStarted { to: 0xb },
            NetworkEvent::SnapshotSent { to: 0xb, elapsed: Duration::from_secs(1) },
            NetworkEvent::SnapshotReceiveStarted { from: 0xc },
            NetworkEvent::HeartbeatFailed { to: 0xb },
        ] {
            network.observe(event);
        }
        assert!(network.is_connected_since(0xb, Instant::now()) && !network.is_connected_since(0xb, before));
        assert!(network.is_receiving_snapshot());
        network.observe(NetworkEvent::SnapshotReceiveFailed { from: 0xc });
        network.observe(NetworkEvent::Connected { to: 0xc });
        network.observe(NetworkEvent::Disconnected { to: 0xc });
        assert!(!network.is_receiving_snapshot() && !network.is_connected_since(0xc, Instant::now()));
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            r#"etcd_network_active_peers{Local="a",Remote="b"} 1"#,
            r#"etcd_network_active_peers{Local="a",Remote="c"} 0"#,
            r#"etcd_network_disconnected_peers_total{Local="a",Remote="c"} 1"#,
            r#"etcd_network_peer_sent_bytes_total{To="b"} 12"#,
            r#"etcd_network_peer_received_bytes_total{From="b"} 3"#,
            r#"etcd_network_peer_sent_failures_total{To="b"} 0"#,
            r#"etcd_network_peer_round_trip_time_seconds_bucket{To="b",le="0.0002"} 1"#,
            r#"etcd_network_snapshot_send_success{To="b"} 1"#,
            r#"etcd_network_snapshot_send_inflights_total{To="b"} 0"#,
            r#"etcd_network_snapshot_receive_failures{From="c"} 1"#,
            "etcd_server_heartbeat_send_failures_total 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
