//! The table of every command-line flag: etcd's own names and defaults, and what this server does with each.

/// How a flag's value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Anything.
    Text,
    /// Comma-separated text; a YAML list in a config file is joined with commas.
    List,
    /// An integer, possibly negative, in any of Go's notations.
    Int,
    /// `true` or `false`; the flag alone means `true`.
    Bool,
    /// A Go duration (`100ms`, `1h30m`); an integer of nanoseconds in a config file.
    Duration,
    /// Anything, since nobody looks at it; the flag alone means `true`.
    Any,
}

/// What the server does with a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Has the meaning it has in etcd.
    Serve,
    /// Checked and accepted, without effect; the text says why it needs none, in one log line when the flag is given.
    Accept(&'static str),
    /// Refused unless it is left at its default: its feature is not in this version.
    Later(&'static str),
    /// Refused unless it is left at its default, for good; the text says what to do instead.
    Refuse(&'static str),
    /// An older name of another flag.
    Alias(&'static str),
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The default as it would be typed; empty where it is derived from other flags.
    pub(crate) default: &'static str,
    pub(crate) class: Class,
    pub(crate) help: &'static str,
}

const fn flag(name: &'static str, kind: Kind, default: &'static str, class: Class, help: &'static str) -> Flag {
    Flag { name, kind, default, class, help }
}

use Class::{Accept, Alias, Later, Refuse, Serve};
use Kind::{Any, Bool, Duration, Int, List, Text};

const TLS: &str = "TLS is not in this version; put a TLS proxy in front, or listen on http:// URLs";
const DISCOVERY: &str = "bootstrap by discovery is not supported; name the members in --initial-cluster";
const AUTH: &str = "users, roles and tokens are not in this version";
const TRACING: &str = "distributed tracing is not in this version";
const PROXY: &str = "there is no v2 proxy; this is always a member";
const CORRUPT: &str = "members do not compare their states by themselves in this version; each start proves its own state, and \
                       /tally/roots shows the roots of all";
const ROTATION: &str =
    "the server does not rotate its log files; it appends to them, so logrotate can do it with copytruncate";
const REBUILD: &str = "rebuilding a cluster from one member's data is not in this version";
const ALIKE: &str = "all members speak the same version";
pub(super) const LOCAL_ADDRESS: &str =
    "the system chooses the address that members are called from; set it with a route (`ip route … src`)";
const FORMER: &str = "a flag of long ago, which etcd ignores, too";

/// Every flag, in the order in which `--help` prints them.
pub(crate) const FLAGS: &[Flag] = &[
    flag("name", Text, "default", Serve, "human-readable name of this member"),
    flag("data-dir", Text, "", Serve, "directory of all data of this member (default: ${name}.etcd)"),
    flag("wal-dir", Text, "", Serve, "directory of the write-ahead log, if it is to be on a disk of its own"),
    flag("snapshot-count", Int, "10000", Serve, "committed entries after which the state is flushed and the log cut"),
    flag("snapshot-catchup-entries", Int, "5000", Serve, "log entries kept for slow members when the log is cut"),
    flag("heartbeat-interval", Int, "100", Serve, "milliseconds between two heartbeats of the leader"),
    flag(
        "election-timeout",
        Int,
        "1000",
        Serve,
        "milliseconds without a heartbeat before an election (5 to 500 heartbeats)",
    ),
    flag("initial-election-tick-advance", Bool, "true", Accept("elections do not wait for ticks"), "accepted"),
    flag("listen-peer-urls", List, "http://localhost:2380", Serve, "URLs to listen on for other members"),
    flag("listen-client-urls", List, "http://localhost:2379", Serve, "URLs to listen on for clients"),
    flag(
        "listen-client-http-urls",
        List,
        "",
        Later(
            "HTTP shares --listen-client-urls with gRPC; metrics and health can have --listen-metrics-urls beside it",
        ),
        "not yet",
    ),
    flag("max-snapshots", Int, "5", Accept("the state is kept once, in the database"), "accepted"),
    flag("max-wals", Int, "5", Accept("log files are recycled as soon as the log is cut"), "accepted"),
    flag(
        "quota-backend-bytes",
        Int,
        "0",
        Serve,
        "size of the database above which writes are refused (0: 2 GiB; negative: no limit)",
    ),
    flag("backend-bbolt-freelist-type", Text, "map", Accept("the database is not bbolt"), "accepted"),
    flag("backend-batch-interval", Duration, "100ms", Accept("batches grow by themselves under load"), "accepted"),
    flag("backend-batch-limit", Int, "10000", Accept("batches grow by themselves under load"), "accepted"),
    flag("memory-mlock", Bool, "false", Accept("memory is not locked"), "accepted"),
    flag("max-txn-ops", Int, "128", Serve, "operations permitted in one transaction"),
    flag("max-request-bytes", Int, "1572864", Serve, "largest client request"),
    flag("max-concurrent-streams", Int, "4294967295", Serve, "HTTP/2 streams that one client connection may have open"),
    flag(
        "grpc-keepalive-min-time",
        Duration,
        "5s",
        Serve,
        "shortest time between two HTTP/2 pings of a client (0: any, where etcd has 5m)",
    ),
    flag(
        "grpc-keepalive-interval",
        Duration,
        "2h",
        Serve,
        "time between two HTTP/2 pings to an idle client (0: 2h, and 20s to answer)",
    ),
    flag(
        "grpc-keepalive-timeout",
        Duration,
        "20s",
        Serve,
        "time a client has to answer an HTTP/2 ping (0: 20s, and 2h between two)",
    ),
    flag("socket-reuse-port", Bool, "false", Serve, "set SO_REUSEPORT on the listening sockets"),
    flag(
        "socket-reuse-address",
        Bool,
        "false",
        Serve,
        "set SO_REUSEADDR on the listening sockets (on Linux it always is)",
    ),
    flag("enable-grpc-gateway", Bool, "true", Serve, "serve JSON and WebSockets beside gRPC"),
    flag(
        "raft-read-timeout",
        Duration,
        "5s",
        Serve,
        "time a peer has to answer before its connection is given up; at least 5s",
    ),
    flag("raft-write-timeout", Duration, "5s", Serve, "time a peer has to take what is sent to it; at least 5s"),
    flag(
        "snapshot-send-rate-bytes",
        Int,
        "0",
        Serve,
        "bytes per second of a snapshot sent to another member (0: no limit); not in etcd",
    ),
    flag(
        "initial-advertise-peer-urls",
        List,
        "",
        Serve,
        "peer URLs to advertise (default: as in --initial-cluster, else as listened on)",
    ),
    flag("initial-cluster", List, "", Serve, "members of a new cluster, as name=url,… (default: this member alone)"),
    flag("initial-cluster-state", Text, "new", Serve, "`new` or `existing`"),
    flag("initial-cluster-token", Text, "etcd-cluster", Serve, "token that tells clusters with equal members apart"),
    flag("advertise-client-urls", List, "", Serve, "client URLs to advertise (default: as listened on)"),
    flag("discovery", Text, "", Refuse(DISCOVERY), "refused"),
    flag("discovery-token", Text, "", Refuse(DISCOVERY), "refused"),
    flag("discovery-endpoints", List, "", Refuse(DISCOVERY), "refused"),
    flag("discovery-dial-timeout", Duration, "2s", Refuse(DISCOVERY), "refused"),
    flag("discovery-request-timeout", Duration, "5s", Refuse(DISCOVERY), "refused"),
    flag("discovery-keepalive-time", Duration, "2s", Refuse(DISCOVERY), "refused"),
    flag("discovery-keepalive-timeout", Duration, "6s", Refuse(DISCOVERY), "refused"),
    flag("discovery-insecure-transport", Bool, "true", Refuse(DISCOVERY), "refused"),
    flag("discovery-insecure-skip-tls-verify", Bool, "false", Refuse(DISCOVERY), "refused"),
    flag("discovery-cert", Text, "", Refuse(DISCOVERY), "refused"),
    flag("discovery-key", Text, "", Refuse(DISCOVERY), "refused"),
    flag("discovery-cacert", Text, "", Refuse(DISCOVERY), "refused"),
    flag("discovery-user", Text, "", Refuse(DISCOVERY), "refused"),
    flag("discovery-password", Text, "", Refuse(DISCOVERY), "refused"),
    // Not refused: releases differ in its default, and without discovery it says nothing.
    flag("discovery-fallback", Text, "exit", Accept(DISCOVERY), "accepted"),
    flag("discovery-proxy", Text, "", Refuse(DISCOVERY), "refused"),
    flag("discovery-srv", Text, "", Refuse(DISCOVERY), "refused"),
    flag("discovery-srv-name", Text, "", Refuse(DISCOVERY), "refused"),
    flag("strict-reconfig-check", Bool, "true", Serve, "refuse membership changes that would endanger the quorum"),
    flag("pre-vote", Bool, "true", Refuse("the pre-vote phase cannot be switched off"), "always on"),
    flag("max-learners", Int, "1", Serve, "learners that the cluster may have at a time"),
    flag("auto-compaction-mode", Text, "periodic", Serve, "`periodic` or `revision`"),
    flag(
        "auto-compaction-retention",
        Text,
        "0",
        Serve,
        "history to keep: a duration (bare number: hours), or a count of revisions; 0: all",
    ),
    flag("compaction-batch-limit", Int, "1000", Serve, "records deleted at a time after a compaction"),
    flag("compaction-sleep-interval", Duration, "10ms", Serve, "pause between two such batches"),
    flag("enable-v2", Bool, "false", Refuse("the v2 API is not supported"), "refused"),
    flag("v2-deprecation", Text, "gone", Accept("there is no v2 store"), "accepted"),
    flag("proxy", Text, "off", Refuse(PROXY), "refused"),
    flag("proxy-failure-wait", Int, "5000", Accept(PROXY), "accepted"),
    flag("proxy-refresh-interval", Int, "30000", Accept(PROXY), "accepted"),
    flag("proxy-dial-timeout", Int, "1000", Accept(PROXY), "accepted"),
    flag("proxy-write-timeout", Int, "5000", Accept(PROXY), "accepted"),
    flag("proxy-read-timeout", Int, "0", Accept(PROXY), "accepted"),
    flag("cert-file", Text, "", Later(TLS), "not yet"),
    flag("key-file", Text, "", Later(TLS), "not yet"),
    flag("client-cert-file", Text, "", Later(TLS), "not yet"),
    flag("client-key-file", Text, "", Later(TLS), "not yet"),
    flag("client-cert-auth", Bool, "false", Later(TLS), "not yet"),
    flag("client-crl-file", Text, "", Later(TLS), "not yet"),
    flag("client-cert-allowed-hostname", Text, "", Later(TLS), "not yet"),
    flag("trusted-ca-file", Text, "", Later(TLS), "not yet"),
    flag("auto-tls", Bool, "false", Later(TLS), "not yet"),
    flag("peer-cert-file", Text, "", Later(TLS), "not yet"),
    flag("peer-key-file", Text, "", Later(TLS), "not yet"),
    flag("peer-client-cert-file", Text, "", Later(TLS), "not yet"),
    flag("peer-client-key-file", Text, "", Later(TLS), "not yet"),
    flag("peer-client-cert-auth", Bool, "false", Later(TLS), "not yet"),
    flag("peer-trusted-ca-file", Text, "", Later(TLS), "not yet"),
    flag("peer-crl-file", Text, "", Later(TLS), "not yet"),
    flag("peer-cert-allowed-cn", Text, "", Later(TLS), "not yet"),
    flag("peer-cert-allowed-hostname", Text, "", Later(TLS), "not yet"),
    flag("peer-auto-tls", Bool, "false", Later(TLS), "not yet"),
    flag("peer-skip-client-san-verification", Bool, "false", Later(TLS), "not yet"),
    flag("self-signed-cert-validity", Int, "1", Accept(TLS), "accepted"),
    flag("cipher-suites", List, "", Later(TLS), "not yet"),
    flag("tls-min-version", Text, "TLS1.2", Accept(TLS), "accepted"),
    flag("tls-max-version", Text, "", Accept(TLS), "accepted"),
    flag("cors", List, "*", Serve, "origins that browsers may call from (`*`: all)"),
    flag("host-whitelist", List, "*", Serve, "host names that clients may use (`*`: all)"),
    flag("auth-token", Text, "simple", Later(AUTH), "not yet"),
    flag("auth-token-ttl", Int, "300", Accept(AUTH), "accepted"),
    flag("bcrypt-cost", Int, "10", Accept(AUTH), "accepted"),
    flag(
        "enable-pprof",
        Bool,
        "false",
        Refuse("there is no Go runtime to profile; use `perf record -g -p PID`"),
        "refused",
    ),
    flag("metrics", Text, "basic", Serve, "`basic`, or `extensive`: a histogram for every RPC, too"),
    flag("listen-metrics-urls", List, "", Serve, "further URLs for /metrics and the health endpoints"),
    flag("logger", Text, "zap", Accept("logs are structured in any case"), "accepted"),
    flag(
        "log-outputs",
        List,
        "default",
        Serve,
        "`stderr` (default; so is `systemd/journal`), `stdout`, or paths of files, comma-separated",
    ),
    flag("log-level", Text, "info", Serve, "`debug`, `info`, `warn`, `error`, `dpanic`, `panic` or `fatal`"),
    flag("log-format", Text, "json", Serve, "`json` or `console`"),
    flag("enable-log-rotation", Bool, "false", Later(ROTATION), "not yet"),
    flag("log-rotation-config-json", Text, "", Accept(ROTATION), "accepted"),
    flag("disable-log-sampling", Bool, "false", Accept("the log is not sampled"), "accepted"),
    flag("warning-apply-duration", Duration, "100ms", Serve, "an apply that takes longer is counted and logged"),
    flag(
        "warning-unary-request-duration",
        Duration,
        "300ms",
        Serve,
        "a request that takes longer to its only answer is logged; one line a second at most",
    ),
    flag("enable-distributed-tracing", Bool, "false", Later(TRACING), "not yet"),
    flag("distributed-tracing-address", Text, "localhost:4317", Accept(TRACING), "accepted"),
    flag("distributed-tracing-service-name", Text, "etcd", Accept(TRACING), "accepted"),
    flag("distributed-tracing-instance-id", Text, "", Accept(TRACING), "accepted"),
    flag("distributed-tracing-sampling-rate", Int, "0", Accept(TRACING), "accepted"),
    flag("corrupt-check-time", Duration, "0s", Accept(CORRUPT), "accepted"),
    flag("compact-hash-check-time", Duration, "1m", Accept(CORRUPT), "accepted"),
    flag(
        "watch-progress-notify-interval",
        Duration,
        "10m",
        Serve,
        "time between two notes on progress to a watch that asked for them; at least 100ms",
    ),
    flag("bootstrap-defrag-threshold-megabytes", Int, "0", Accept("the database compacts itself"), "accepted"),
    flag("downgrade-check-time", Duration, "5s", Accept(ALIKE), "accepted"),
    flag(
        "feature-gates",
        List,
        "",
        Accept("what a gate switches is always on or not there; one that cannot be opened or is not known is refused"),
        "accepted",
    ),
    flag("force-new-cluster", Bool, "false", Later(REBUILD), "not yet"),
    flag(
        "unsafe-no-fsync",
        Bool,
        "false",
        Serve,
        "do not fsync: acknowledged writes can be lost when the machine stops",
    ),
    flag("experimental-initial-corrupt-check", Bool, "false", Accept(CORRUPT), "accepted"),
    flag("experimental-corrupt-check-time", Duration, "0s", Accept(CORRUPT), "accepted"),
    flag("experimental-compact-hash-check-enabled", Bool, "false", Accept(CORRUPT), "accepted"),
    flag("experimental-compact-hash-check-time", Duration, "1m", Accept(CORRUPT), "accepted"),
    flag("experimental-enable-lease-checkpoint", Bool, "false", Accept("always on"), "accepted"),
    flag("experimental-enable-lease-checkpoint-persist", Bool, "false", Accept("always on"), "accepted"),
    flag("experimental-compaction-batch-limit", Int, "1000", Alias("compaction-batch-limit"), "see there"),
    flag("experimental-compaction-sleep-interval", Duration, "10ms", Alias("compaction-sleep-interval"), "see there"),
    flag("experimental-snapshot-catchup-entries", Int, "5000", Alias("snapshot-catchup-entries"), "see there"),
    flag("experimental-warning-apply-duration", Duration, "100ms", Alias("warning-apply-duration"), "see there"),
    flag(
        "experimental-warning-unary-request-duration",
        Duration,
        "300ms",
        Alias("warning-unary-request-duration"),
        "see there",
    ),
    flag(
        "experimental-watch-progress-notify-interval",
        Duration,
        "10m",
        Alias("watch-progress-notify-interval"),
        "see there",
    ),
    flag(
        "experimental-bootstrap-defrag-threshold-megabytes",
        Int,
        "0",
        Alias("bootstrap-defrag-threshold-megabytes"),
        "see there",
    ),
    flag("experimental-max-learners", Int, "1", Alias("max-learners"), "see there"),
    flag("experimental-memory-mlock", Bool, "false", Alias("memory-mlock"), "see there"),
    flag("experimental-downgrade-check-time", Duration, "5s", Alias("downgrade-check-time"), "see there"),
    flag(
        "experimental-peer-skip-client-san-verification",
        Bool,
        "false",
        Alias("peer-skip-client-san-verification"),
        "see there",
    ),
    flag(
        "experimental-txn-mode-write-with-shared-buffer",
        Bool,
        "true",
        Accept("readers never wait for writers"),
        "accepted",
    ),
    flag("experimental-stop-grpc-service-on-defrag", Bool, "false", Accept("the database compacts itself"), "accepted"),
    flag(
        "experimental-wait-cluster-ready-timeout",
        Duration,
        "5s",
        Accept("clients are served as soon as there is a leader"),
        "accepted",
    ),
    flag("experimental-enable-distributed-tracing", Bool, "false", Alias("enable-distributed-tracing"), "see there"),
    flag(
        "experimental-distributed-tracing-address",
        Text,
        "localhost:4317",
        Alias("distributed-tracing-address"),
        "see there",
    ),
    flag(
        "experimental-distributed-tracing-service-name",
        Text,
        "etcd",
        Alias("distributed-tracing-service-name"),
        "see there",
    ),
    flag(
        "experimental-distributed-tracing-instance-id",
        Text,
        "",
        Alias("distributed-tracing-instance-id"),
        "see there",
    ),
    flag(
        "experimental-distributed-tracing-sampling-rate",
        Int,
        "0",
        Alias("distributed-tracing-sampling-rate"),
        "see there",
    ),
    flag("experimental-enable-v2v3", Text, "", Refuse("the v2 API is not supported"), "refused"),
    flag("experimental-backend-bbolt-freelist-type", Text, "map", Alias("backend-bbolt-freelist-type"), "see there"),
    flag("experimental-set-member-localaddr", Bool, "false", Refuse(LOCAL_ADDRESS), "refused"),
    flag("cluster-active-size", Any, "", Accept(FORMER), "accepted"),
    flag("cluster-remove-delay", Any, "", Accept(FORMER), "accepted"),
    flag("cluster-sync-interval", Any, "", Accept(FORMER), "accepted"),
    flag("config", Any, "", Accept(FORMER), "accepted"),
    flag("force", Any, "", Accept(FORMER), "accepted"),
    flag("max-result-buffer", Any, "", Accept(FORMER), "accepted"),
    flag("max-retry-attempts", Any, "", Accept(FORMER), "accepted"),
    flag("peer-election-timeout", Any, "", Accept(FORMER), "accepted"),
    flag("peer-heartbeat-interval", Any, "", Accept(FORMER), "accepted"),
    flag("retry-interval", Any, "", Accept(FORMER), "accepted"),
    flag("snapshot", Any, "", Accept(FORMER), "accepted"),
    flag("v", Any, "", Accept(FORMER), "accepted"),
    flag("vv", Any, "", Accept(FORMER), "accepted"),
    flag(
        "config-file",
        Text,
        "",
        Serve,
        "YAML or JSON file with these names as keys; other flags and variables are then ignored",
    ),
    flag(
        "worker-threads",
        Int,
        "0",
        Serve,
        "threads that serve requests (0: one per core); half of them run Raft and apply too; not in etcd",
    ),
    flag("version", Bool, "false", Serve, "print the version and exit"),
    flag("help", Bool, "false", Serve, "print this help and exit"),
];

/// The row of `name`.
pub(crate) fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// The flag whose name is the fewest edits away from `name`, if that is a plausible typing error. Flags at whose value
/// nobody looks are not meant.
pub(crate) fn nearest(name: &str) -> Option<&'static str> {
    FLAGS
        .iter()
        .filter(|flag| flag.kind != Kind::Any)
        .map(|flag| (distance(name, flag.name), flag.name))
        .min()
        .filter(|(edits, candidate)| *edits <= candidate.len().max(6) / 3)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.bytes().enumerate() {
            let substitute = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_aliases_lead_to_flags_of_the_same_kind() {
        for (at, flag) in FLAGS.iter().enumerate() {
            assert!(FLAGS[..at].iter().all(|other| other.name != flag.name), "{} appears twice", flag.name);
            if let Class::Alias(target) = flag.class {
                let target = find(target).expect("the target of an alias is in the table");
                assert_eq!((target.kind, target.default), (flag.kind, flag.default), "{}", flag.name);
            }
        }
    }

    #[test]
    fn the_families_of_etcd_are_whole() {
        let class = |name: &str| find(name).map(|flag| flag.class);
        // Bootstrap by discovery as a whole is refused, whichever of its flags is given.
        let discovery =
            ["dial-timeout", "request-timeout", "keepalive-time", "keepalive-timeout", "insecure-transport"];
        let secrets = ["token", "endpoints", "cert", "key", "cacert", "user", "password", "insecure-skip-tls-verify"];
        for name in discovery.iter().chain(&secrets) {
            let name = format!("discovery-{name}");
            assert_eq!(class(&name), Some(Refuse(DISCOVERY)), "{name}");
        }
        for name in [
            "enable-distributed-tracing",
            "distributed-tracing-address",
            "distributed-tracing-service-name",
            "distributed-tracing-instance-id",
            "distributed-tracing-sampling-rate",
        ] {
            assert!(class(name).is_some(), "{name}");
            assert_eq!(class(&format!("experimental-{name}")), Some(Alias(name)));
        }
    }

    #[test]
    fn the_nearest_flag_is_found_and_nonsense_is_not_matched() {
        assert_eq!(nearest("data-dri"), Some("data-dir"));
        assert_eq!(nearest("listen-client-url"), Some("listen-client-urls"));
        assert_eq!(nearest("heartbeat"), None);
        assert_eq!((nearest("vvv"), nearest("configs")), (None, None));
        assert_eq!(nearest("zzzzzzzzzzzzzzzz"), None);
    }
}
