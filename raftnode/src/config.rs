//! The settings of a node. Every queue, batch and chunk has a limit here, with its unit in the name.

use std::sync::Arc;
use std::time::Duration;

use openraft::SnapshotPolicy;

use crate::peer::{NetConfig, NetworkObserver};
use crate::state_machine::ApplyObserver;

/// Bytes of the largest command that any member of a cluster may propose, which is the most that
/// [`Config::command_bytes_max`] may be: 256 MiB for a request, and what is around it.
///
/// What is proposed here is limited by this member's own settings. What comes from other members, and what is stored,
/// is limited by this alone: they may have been given other settings, and an entry that a follower does not take for
/// its size could never be replicated to it, nor anything behind it.
pub const COMMAND_BYTES_MAX: usize = 257 << 20;

/// A member of a new cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founder {
    /// Its id.
    pub id: u64,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
}

/// How a node runs.
#[derive(Clone)]
pub struct Config {
    /// The cluster; equal on all members, part of every message between them.
    pub cluster_id: u64,
    /// This member. Never reused for another one.
    pub member_id: u64,
    /// The members of a new cluster, this one among them. Looked at only if nothing has ever happened in the data
    /// directory; all members of a new cluster must be given the same. Empty for a member that joins a cluster: it waits
    /// until the leader gets in touch.
    pub founders: Vec<Founder>,
    /// How often a leader shows that it is there. Default 100 ms.
    pub heartbeat_ms: u64,
    /// How long a member hears nothing of a leader before it stands for election: between this and 1.3 times this, by
    /// chance. Default 1,000 ms.
    pub election_ms: u64,
    /// How long a proposal waits for a leader, and a linearizable read for a confirmed one. Default 7,000 ms.
    pub request_timeout_ms: u64,
    /// Learners that the cluster may have. Default 1.
    pub max_learners: usize,
    /// Refuse membership changes that could leave the cluster without a quorum. Default true.
    pub strict_reconfig: bool,
    /// For an answer of a peer that requests are under way to. Default 5,000 ms.
    pub peer_read_timeout_ms: u64,
    /// For a peer to take bytes. Default 5,000 ms.
    pub peer_write_timeout_ms: u64,
    /// Bytes per second at which a snapshot is sent to a member; 0, the default, is as fast as possible.
    pub snapshot_rate_bytes_max: u64,
    /// Told what happens between this member and its peers.
    pub network: Option<Arc<dyn NetworkObserver>>,
    /// Entries applied since the last snapshot before another one is made. Default 10,000. A snapshot makes the store
    /// durable, which writes table files: so it also waits for [`Config::snapshot_bytes_min`] of log or
    /// [`Config::snapshot_interval_ms`], whichever comes first.
    pub snapshot_count: u64,
    /// Bytes of log since the last snapshot that make another one worth its tables. Default 32 MiB.
    pub snapshot_bytes_min: u64,
    /// Bytes of log since the last snapshot that call for another one, however few entries they are. Default 256 MiB.
    pub snapshot_bytes_max: u64,
    /// Time since the last snapshot after which entries enough make another one, however few bytes. Default 30,000 ms.
    pub snapshot_interval_ms: u64,
    /// Entries kept in the log behind a snapshot, for members that are a little behind. Default 5,000.
    pub catchup_entries: u64,
    /// Bytes of log that a member may lack while it is being sent them; also what the log may grow by while a snapshot is
    /// being sent. One that lacks more gets a snapshot instead. Default 512 MiB.
    pub lag_bytes_max: u64,
    /// What one command may take that is proposed here, or that other members forward while this one leads. Default
    /// 12 MiB, at most [`COMMAND_BYTES_MAX`].
    pub command_bytes_max: usize,
    /// Proposals that have not been answered. Default 10,000; more are refused.
    pub queue_entries_max: usize,
    /// Bytes of proposals that have not been answered, and, while this member leads, of those that others have forwarded
    /// and that it has not proposed yet. Default 256 MiB each; more are refused.
    pub queue_bytes_max: u64,
    /// Proposals handed to consensus together. Default 1,024.
    pub batch_entries_max: usize,
    /// Bytes of proposals handed to consensus together; a single larger one is a batch. Default 4 MiB, at most
    /// [`COMMAND_BYTES_MAX`].
    pub batch_bytes_max: usize,
    /// Batches under way at the same time. Default 1: while one is being made durable the next one grows, which was
    /// measured to cost the least per proposal.
    pub batches_in_flight_max: usize,
    /// How much is applied with one commit.
    pub apply: ApplyLimits,
    /// Told how long that takes, what is replayed at the start included.
    pub apply_observer: Option<Arc<dyn ApplyObserver>>,
}

/// How much is applied with one commit, and so without giving other tasks a turn.
#[derive(Clone, Copy, Debug)]
pub struct ApplyLimits {
    /// Entries in a chunk. Default 1,024.
    pub entries_max: usize,
    /// Bytes of commands in a chunk; a single larger one is a chunk. Default 1 MiB.
    pub bytes_max: usize,
}

impl Default for ApplyLimits {
    fn default() -> ApplyLimits {
        ApplyLimits { entries_max: 1024, bytes_max: 1 << 20 }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            cluster_id: 0,
            member_id: 0,
            founders: Vec::new(),
            heartbeat_ms: 100,
            election_ms: 1_000,
            request_timeout_ms: 7_000,
            max_learners: 1,
            strict_reconfig: true,
            peer_read_timeout_ms: 5_000,
            peer_write_timeout_ms: 5_000,
            snapshot_rate_bytes_max: 0,
            network: None,
            snapshot_count: 10_000,
            snapshot_bytes_min: 32 << 20,
            snapshot_bytes_max: 256 << 20,
            snapshot_interval_ms: 30_000,
            catchup_entries: 5_000,
            lag_bytes_max: 512 << 20,
            command_bytes_max: 12 << 20,
            queue_entries_max: 10_000,
            queue_bytes_max: 256 << 20,
            batch_entries_max: 1_024,
            batch_bytes_max: 4 << 20,
            batches_in_flight_max: 1,
            apply: ApplyLimits::default(),
            apply_observer: None,
        }
    }
}

/// A setting that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A limit is zero.
    #[error("{field} is 0, the least is 1")]
    Zero {
        /// The setting.
        field: &'static str,
    },
    /// A limit is more than other members take.
    #[error("{field} is {given}, the most is {limit}")]
    TooLarge {
        /// The setting.
        field: &'static str,
        /// The value given.
        given: usize,
        /// The most that it may be.
        limit: usize,
    },
    /// Followers would stand for election between two heartbeats.
    #[error("election_ms is {election_ms}, at least 5 times heartbeat_ms ({heartbeat_ms}) is needed")]
    ElectionTooShort {
        /// The election timeout given.
        election_ms: u64,
        /// The heartbeat interval given.
        heartbeat_ms: u64,
    },
    /// Consensus refuses the combination.
    #[error("the timing settings do not work together: {detail}")]
    Timing {
        /// What it said.
        detail: String,
    },
}

/// Time for a state to be set aside before it is sent, and to be put in place after; large states need it.
const INSTALL_SNAPSHOT_TIMEOUT_MS: u64 = 10 * 60 * 1_000;

/// Entries sent to a peer in one piece; the bytes are bounded where the log is read.
const PAYLOAD_ENTRIES_MAX: u64 = 4_096;

impl Config {
    /// Checks that the settings can work.
    ///
    /// # Errors
    /// Names the first setting that cannot.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.consensus().map(drop)
    }

    /// The limits of the transport. A peer that answers no ping within an election timeout is as good as gone.
    pub(crate) fn net(&self) -> NetConfig {
        NetConfig {
            connect_timeout: Duration::from_millis(self.election_ms),
            read_timeout: Duration::from_millis(self.peer_read_timeout_ms),
            write_timeout: Duration::from_millis(self.peer_write_timeout_ms),
            ping_timeout: Duration::from_millis(self.election_ms.saturating_mul(3) / 2),
            install_timeout: Duration::from_millis(INSTALL_SNAPSHOT_TIMEOUT_MS),
            snapshot_rate_bytes_max: self.snapshot_rate_bytes_max,
            observer: self.network.clone(),
        }
    }

    pub(crate) fn consensus(&self) -> Result<openraft::Config, ConfigError> {
        let at_least_one = [
            ("heartbeat_ms", self.heartbeat_ms),
            ("request_timeout_ms", self.request_timeout_ms),
            ("peer_read_timeout_ms", self.peer_read_timeout_ms),
            ("peer_write_timeout_ms", self.peer_write_timeout_ms),
            ("snapshot_count", self.snapshot_count),
            ("command_bytes_max", self.command_bytes_max as u64),
            ("queue_entries_max", self.queue_entries_max as u64),
            ("queue_bytes_max", self.queue_bytes_max),
            ("batch_entries_max", self.batch_entries_max as u64),
            ("batches_in_flight_max", self.batches_in_flight_max as u64),
            ("apply.entries_max", self.apply.entries_max as u64),
        ];
        if let Some((field, _)) = at_least_one.into_iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::Zero { field });
        }
        let at_most = [("command_bytes_max", self.command_bytes_max), ("batch_bytes_max", self.batch_bytes_max)];
        if let Some((field, given)) = at_most.into_iter().find(|(_, given)| *given > COMMAND_BYTES_MAX) {
            return Err(ConfigError::TooLarge { field, given, limit: COMMAND_BYTES_MAX });
        }
        let (election_ms, heartbeat_ms) = (self.election_ms, self.heartbeat_ms);
        if election_ms < heartbeat_ms.saturating_mul(5) {
            return Err(ConfigError::ElectionTooShort { election_ms, heartbeat_ms });
        }
        // A follower keeps faith with its leader for the longest of these, and then waits for a random one of them: so it
        // stands for election after 1.0 to 1.3 times the election timeout.
        let (wait_min_ms, lease_ms) = (election_ms * 35 / 100, election_ms * 65 / 100);
        let config = openraft::Config {
            cluster_name: format!("{:x}", self.cluster_id),
            heartbeat_interval: heartbeat_ms,
            election_timeout_min: wait_min_ms,
            election_timeout_max: lease_ms,
            install_snapshot_timeout: INSTALL_SNAPSHOT_TIMEOUT_MS,
            // A candidate that cannot win does not disturb the leader, and nobody leads without having been elected.
            enable_pre_vote: Some(true),
            enable_leader_restore: Some(false),
            // The leader's lease and the longest wait on top.
            quorum_loss_probe_interval: Some(lease_ms.saturating_mul(2)),
            max_payload_entries: PAYLOAD_ENTRIES_MAX,
            // The policy task asks for snapshots; openraft then drops what lies `catchup_entries` behind one.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: self.catchup_entries,
            replication_lag_threshold: self.catchup_entries.max(1),
            allow_log_reversion: Some(false),
            ..openraft::Config::default()
        };
        config.validate().map_err(|error| ConfigError::Timing { detail: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_defaults_work() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn what_cannot_work_is_named() {
        let config = Config { election_ms: 499, ..Config::default() };
        assert_eq!(config.validate(), Err(ConfigError::ElectionTooShort { election_ms: 499, heartbeat_ms: 100 }));
        let config = Config { queue_entries_max: 0, ..Config::default() };
        assert_eq!(config.validate(), Err(ConfigError::Zero { field: "queue_entries_max" }));
        let largest = Config { command_bytes_max: COMMAND_BYTES_MAX, ..Config::default() };
        largest.validate().unwrap();
        let (given, limit) = (COMMAND_BYTES_MAX + 1, COMMAND_BYTES_MAX);
        let config = Config { command_bytes_max: given, ..Config::default() };
        assert_eq!(config.validate(), Err(ConfigError::TooLarge { field: "command_bytes_max", given, limit }));
    }

    #[test]
    fn safety_settings_are_what_the_design_says() {
        let consensus = Config::default().consensus().unwrap();
        assert_eq!(consensus.enable_pre_vote, Some(true));
        assert_eq!(consensus.enable_leader_restore, Some(false));
        assert_eq!(consensus.allow_log_reversion, Some(false));
        assert_eq!(consensus.snapshot_policy, SnapshotPolicy::Never);
        assert_eq!(consensus.max_in_snapshot_log_to_keep, 5_000);
    }
}
