//! The suite for a cluster: the closed-loop rows over all members, and what happens when a member goes, comes, or lags.

pub(crate) mod catchup;
pub(crate) mod failover;
pub(crate) mod snapshot;
pub(crate) mod transfer;

use super::rows::{Event, Goal, Line, Row, Suite, Target, row, target};
use super::work::Kind;

/// A cluster of each.
pub(crate) const SUITE: Suite = Suite {
    rows: ROWS,
    events: EVENTS,
    targets: TARGETS,
    out: "docs/benchmarks-cluster.md",
    title: "Benchmarks of a cluster",
};

/// The row in which the leader is killed.
pub(crate) const FAILOVER: &str = "failover";
/// The row in which the leader hands over.
pub(crate) const TRANSFER: &str = "transfer";
/// The row in which a follower has fallen behind.
pub(crate) const CATCHUP: &str = "catchup";
/// The row in which a new member gets everything.
pub(crate) const SNAPSHOT: &str = "snapshot";

/// Closed-loop clients of the rows about events.
const CLIENTS: usize = 64;
/// Keys that they put.
const KEYS: u32 = 1_000_000;

const ROWS: &[Row] = &[
    row("put-64", "put, 64 clients", Kind::Put, 64, 0, 1_000_000),
    row("put-256", "put, 256 clients", Kind::Put, 256, 0, 1_000_000),
    row("get-64", "linearizable get, 64 clients", Kind::Get, 64, 100_000, 100_000),
    row("get-256", "linearizable get, 256 clients", Kind::Get, 256, 100_000, 100_000),
    row("txn-64", "txn (compare + put), 64 clients", Kind::Txn, 64, 100_000, 100_000),
    row("put-1", "put, one client, the members in turn", Kind::Put, 1, 0, 1_000_000),
];

const EVENTS: &[Event] = &[
    Event {
        name: FAILOVER,
        title: "leader killed",
        lines: &[
            Line("failover_ms", "SIGKILL to the first write acknowledged by the new leader", " ms"),
            Line("unclear", "writes per kill whose outcome clients cannot know", ""),
            Line("rate", "puts before each kill, 64 clients on the two followers", "/s"),
        ],
    },
    Event {
        name: TRANSFER,
        title: "leader hands over",
        lines: &[
            Line("move_gap_ms", "transfer-leadership: longest time without an acknowledged write", " ms"),
            Line("move_unclear", "— writes whose outcome clients cannot know", ""),
            Line("term_gap_ms", "SIGTERM of the leader: longest time without an acknowledged write", " ms"),
            Line("term_unclear", "— writes whose outcome clients cannot know", ""),
            Line("quiet_gap_ms", "for comparison, the longest such time in the second before", " ms"),
        ],
    },
    Event {
        name: CATCHUP,
        title: "follower restarts behind",
        lines: &[
            Line("entries", "entries that it has missed", ""),
            Line("catchup_s", "restart until its applied index is level", " s"),
        ],
    },
    Event {
        name: SNAPSHOT,
        title: "new member gets everything",
        lines: &[
            Line("data_mb", "keys and values", " MB"),
            Line("fill_mb_s", "filling, 64 clients", " MB/s"),
            Line("snapshot_s", "start of the new member until it has everything, no other load", " s"),
            Line("snapshot_mb_s", "— keys and values per second", " MB/s"),
            Line("disk_mb_s", "sequential write speed of this disk, for comparison", " MB/s"),
            Line("snapshot_share", "— over the lesser of 200 MB/s and the disk's speed", ""),
            Line("busy_snapshot_s", "the same while 64 clients put to the leader", " s"),
            Line("put_p99", "put p99 on the leader before", " µs"),
            Line("busy_put_p99", "put p99 on the leader meanwhile", " µs"),
            Line("put_p99_ratio", "the latter over the former", ""),
        ],
    },
];

const TARGETS: &[Target] = &[
    target("put-64", "rate", "put, 64 clients", "/s", Goal::TimesEtcd(2.5)),
    target("put-64", "cpu", "— server CPU per op, all members", " µs", Goal::ShareOfEtcd(1.0 / 3.0)),
    target("put-256", "rate", "put, 256 clients", "/s", Goal::TimesEtcd(2.5)),
    target("put-256", "cpu", "— server CPU per op, all members", " µs", Goal::ShareOfEtcd(1.0 / 3.0)),
    target("get-64", "rate", "linearizable get, 64 clients", "/s", Goal::TimesEtcd(2.5)),
    target("get-64", "cpu", "— server CPU per op, all members", " µs", Goal::ShareOfEtcd(1.0 / 3.0)),
    target("get-256", "rate", "linearizable get, 256 clients", "/s", Goal::TimesEtcd(2.5)),
    target("get-256", "cpu", "— server CPU per op, all members", " µs", Goal::ShareOfEtcd(1.0 / 3.0)),
    target("txn-64", "rate", "txn (compare + put), 64 clients", "/s", Goal::TimesEtcd(2.5)),
    target("txn-64", "cpu", "— server CPU per op, all members", " µs", Goal::ShareOfEtcd(1.0 / 3.0)),
    target("put-1", "p50", "put, one client, p50", " µs", Goal::ShareOfEtcd(1.0)),
    target(FAILOVER, "failover_ms", "leader killed: first write by a new one (median)", " ms", Goal::AtMost(1500.0)),
    target(TRANSFER, "term_gap_ms", "SIGTERM of the leader: no writes for (largest)", " ms", Goal::AtMost(100.0))
        .always(),
    target(TRANSFER, "term_unclear", "— unclear failures (largest)", "", Goal::AtMost(0.0)).always(),
    target(TRANSFER, "move_gap_ms", "transfer-leadership: no writes for (largest)", " ms", Goal::AtMost(100.0))
        .always(),
    target(TRANSFER, "move_unclear", "— unclear failures (largest)", "", Goal::AtMost(0.0)).always(),
    target(CATCHUP, "catchup_s", "restarted follower level again", " s", Goal::ShareOfEtcd(0.5)),
    target(
        SNAPSHOT,
        "snapshot_share",
        "snapshot to a new member: speed ÷ the lesser of 200 MB/s and the disk's",
        "",
        Goal::AtLeast(1.0),
    ),
    target(SNAPSHOT, "put_p99_ratio", "leader's put p99 during a snapshot ÷ before", "", Goal::AtMost(2.0)),
];
