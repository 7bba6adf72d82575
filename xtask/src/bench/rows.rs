//! The rows of the benchmark: what is measured, and what Tally is to reach against etcd.

use super::work::Kind;

/// Numbers of one measurement by name, such as `rate` or `p99`.
pub(crate) type Sample = Vec<(&'static str, f64)>;

/// A row in which clients do one kind of work in closed loops.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) work: Kind,
    pub(crate) clients: usize,
    /// Keys that are written before the measurement.
    pub(crate) preload: u32,
    /// Keys that the work chooses from.
    pub(crate) keys: u32,
}

/// Every closed-loop row.
pub(crate) const ROWS: &[Row] = &[
    row("put-64", "put, 64 clients", Kind::Put, 64, 0, 1_000_000),
    row("put-256", "put, 256 clients", Kind::Put, 256, 0, 1_000_000),
    row("get-64", "linearizable get, 64 clients", Kind::Get, 64, 100_000, 100_000),
    row("get-256", "linearizable get, 256 clients", Kind::Get, 256, 100_000, 100_000),
    row("range-64", "range of 100 keys, 64 clients", Kind::Range, 64, 100_000, 100_000),
    row("txn-64", "txn (compare + put), 64 clients", Kind::Txn, 64, 100_000, 100_000),
    row("put-1", "put, one client", Kind::Put, 1, 0, 1_000_000),
];

/// The row in which everything is done that needs a large store.
pub(crate) const LARGE: &str = "large";

const fn row(name: &'static str, title: &'static str, work: Kind, clients: usize, preload: u32, keys: u32) -> Row {
    Row { name, title, work, clients, preload, keys }
}

/// What a number is to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Goal {
    /// Tally's is at least so many times etcd's.
    TimesEtcd(f64),
    /// etcd's is at least so many times Tally's.
    EtcdTimes(f64),
    /// Tally's is at most this share of etcd's.
    ShareOfEtcd(f64),
    /// Tally's is at most this, whatever etcd's is.
    AtMost(f64),
}

/// A number of a row with its goal.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) row: &'static str,
    pub(crate) metric: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) goal: Goal,
}

/// Everything that is to be reached.
pub(crate) const TARGETS: &[Target] = &[
    target("put-64", "rate", "put, 64 clients", "/s", Goal::TimesEtcd(3.0)),
    target("put-64", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(0.25)),
    target("put-64", "fsyncs", "— WAL fsyncs per put", "", Goal::AtMost(0.5)),
    target("put-256", "rate", "put, 256 clients", "/s", Goal::TimesEtcd(3.5)),
    target("put-256", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(0.25)),
    target("put-256", "fsyncs", "— WAL fsyncs per put", "", Goal::AtMost(0.5)),
    target("get-64", "rate", "linearizable get, 64 clients", "/s", Goal::TimesEtcd(3.0)),
    target("get-64", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(0.25)),
    target("get-256", "rate", "linearizable get, 256 clients", "/s", Goal::TimesEtcd(3.0)),
    target("get-256", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(0.25)),
    target("range-64", "rate", "range of 100 keys, 64 clients", "/s", Goal::TimesEtcd(5.0)),
    target("range-64", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(1.0 / 6.0)),
    target("txn-64", "rate", "txn (compare + put), 64 clients", "/s", Goal::TimesEtcd(3.5)),
    target("txn-64", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(0.2)),
    target("put-1", "rate", "put, one client", "/s", Goal::TimesEtcd(1.3)),
    target(LARGE, "count_ms", "count_only over all keys", " ms", Goal::EtcdTimes(1000.0)),
    target(LARGE, "list_s", "list all keys in pages of 500", " s", Goal::EtcdTimes(20.0)),
    target(LARGE, "rss_mib", "RSS after a restart and a full read", " MiB", Goal::ShareOfEtcd(0.5)),
    target(LARGE, "restart_s", "restart to first read", " s", Goal::ShareOfEtcd(0.5)),
    target(LARGE, "put_p99_ratio", "put p99 during a list ÷ without", "", Goal::AtMost(1.5)),
];

const fn target(
    row: &'static str,
    metric: &'static str,
    title: &'static str,
    unit: &'static str,
    goal: Goal,
) -> Target {
    Target { row, metric, title, unit, goal }
}

impl Goal {
    /// Whether the two medians reach the goal; nothing is said while a number is missing.
    pub(crate) fn reached(self, tally: Option<f64>, etcd: Option<f64>) -> Option<bool> {
        let tally = tally?;
        Some(match self {
            Goal::TimesEtcd(least) => tally >= least * etcd?,
            Goal::EtcdTimes(least) => etcd? >= least * tally,
            Goal::ShareOfEtcd(most) => tally <= most * etcd?,
            Goal::AtMost(most) => tally <= most,
        })
    }

    /// The goal in words.
    pub(crate) fn shown(self) -> String {
        match self {
            Goal::TimesEtcd(least) | Goal::EtcdTimes(least) => format!("≥ {least} ×"),
            Goal::ShareOfEtcd(most) => format!("≤ 1/{:.0}", 1.0 / most),
            Goal::AtMost(most) => format!("≤ {most}"),
        }
    }

    /// The ratio that the goal is about.
    pub(crate) fn ratio(self, tally: Option<f64>, etcd: Option<f64>) -> Option<String> {
        let (tally, etcd) = (tally?, etcd?);
        Some(match self {
            Goal::TimesEtcd(_) => format!("{:.2} ×", tally / etcd),
            Goal::EtcdTimes(_) => format!("{:.1} ×", etcd / tally),
            Goal::ShareOfEtcd(_) => format!("1/{:.1}", etcd / tally),
            Goal::AtMost(_) => return None,
        })
    }
}

/// The number of that name.
pub(crate) fn number(sample: &Sample, metric: &str) -> Option<f64> {
    sample.iter().find(|(name, _)| *name == metric).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::{Goal, LARGE, ROWS, TARGETS};

    #[test]
    fn goals_hold_at_their_edge_and_not_beyond() {
        assert_eq!(Goal::TimesEtcd(3.0).reached(Some(30.0), Some(10.0)), Some(true));
        assert_eq!(Goal::TimesEtcd(3.0).reached(Some(29.0), Some(10.0)), Some(false));
        assert_eq!(Goal::EtcdTimes(20.0).reached(Some(1.0), Some(20.0)), Some(true));
        assert_eq!(Goal::EtcdTimes(20.0).reached(Some(1.1), Some(20.0)), Some(false));
        assert_eq!(Goal::ShareOfEtcd(0.25).reached(Some(2.5), Some(10.0)), Some(true));
        assert_eq!(Goal::ShareOfEtcd(0.25).reached(Some(2.6), Some(10.0)), Some(false));
        assert_eq!(Goal::AtMost(0.5).reached(Some(0.6), None), Some(false));
        assert_eq!(Goal::TimesEtcd(3.0).reached(Some(30.0), None), None);
    }

    #[test]
    fn every_target_is_about_a_row() {
        for target in TARGETS {
            assert!(target.row == LARGE || ROWS.iter().any(|row| row.name == target.row), "{}", target.row);
        }
    }
}
