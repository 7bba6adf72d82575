//! What a suite of measurements consists of: its rows, and what Tally is to reach against etcd.

use super::work::Kind;

/// Everything that one run measures.
#[derive(Debug)]
pub(crate) struct Suite {
    /// Rows in which clients do one kind of work in closed loops.
    pub(crate) rows: &'static [Row],
    /// The other rows.
    pub(crate) events: &'static [Event],
    pub(crate) targets: &'static [Target],
    /// Where the report of a complete run goes.
    pub(crate) out: &'static str,
    pub(crate) title: &'static str,
}

impl Suite {
    /// The names of all rows, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.rows.iter().map(|row| row.name).chain(self.events.iter().map(|event| event.name))
    }
}

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
    /// gRPC connections that the clients share; without them, each client has one of its own and speaks JSON.
    pub(crate) grpc: Option<usize>,
    /// Nodes, where it is not as many as in the rest of the suite.
    pub(crate) nodes: Option<usize>,
}

impl Row {
    /// The same over gRPC, on that many connections.
    pub(crate) const fn over(self, connections: usize) -> Row {
        Row { grpc: Some(connections), ..self }
    }

    /// The same on that many nodes.
    pub(crate) const fn on(self, nodes: usize) -> Row {
        Row { nodes: Some(nodes), ..self }
    }
}

/// A row in which something else is done; its numbers have a table of their own.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) lines: &'static [Line],
}

/// A number of an event: its name, its title, its unit.
#[derive(Debug)]
pub(crate) struct Line(pub(crate) &'static str, pub(crate) &'static str, pub(crate) &'static str);

/// A closed-loop row.
pub(crate) const fn row(
    name: &'static str,
    title: &'static str,
    work: Kind,
    clients: usize,
    preload: u32,
    keys: u32,
) -> Row {
    Row { name, title, work, clients, preload, keys, grpc: None, nodes: None }
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
    /// Tally's is at least this, whatever etcd's is.
    AtLeast(f64),
}

/// Which of the measured values is compared with the goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// The median of all.
    Median,
    /// The largest of all: the goal is to hold every time.
    Largest,
}

/// A number of a row with its goal.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) row: &'static str,
    pub(crate) metric: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) goal: Goal,
    pub(crate) over: Over,
}

/// A goal for the median.
pub(crate) const fn target(
    row: &'static str,
    metric: &'static str,
    title: &'static str,
    unit: &'static str,
    goal: Goal,
) -> Target {
    Target { row, metric, title, unit, goal, over: Over::Median }
}

impl Target {
    /// The same goal for the largest value.
    pub(crate) const fn always(self) -> Target {
        Target { over: Over::Largest, ..self }
    }
}

impl Goal {
    /// Whether the two values reach the goal; nothing is said while a number is missing.
    pub(crate) fn reached(self, tally: Option<f64>, etcd: Option<f64>) -> Option<bool> {
        let tally = tally?;
        Some(match self {
            Goal::TimesEtcd(least) => tally >= least * etcd?,
            Goal::EtcdTimes(least) => etcd? >= least * tally,
            Goal::ShareOfEtcd(most) => tally <= most * etcd?,
            Goal::AtMost(most) => tally <= most,
            Goal::AtLeast(least) => tally >= least,
        })
    }

    /// The goal in words.
    pub(crate) fn shown(self) -> String {
        match self {
            Goal::TimesEtcd(least) | Goal::EtcdTimes(least) => format!("≥ {least} ×"),
            Goal::ShareOfEtcd(most) if most >= 1.0 => "no more".to_owned(),
            Goal::ShareOfEtcd(most) if !simple(most) => format!("≤ {most:.2} ×"),
            Goal::ShareOfEtcd(most) => format!("≤ 1/{:.0}", 1.0 / most),
            Goal::AtMost(most) => format!("≤ {most}"),
            Goal::AtLeast(least) => format!("≥ {least}"),
        }
    }

    /// The ratio that the goal is about.
    pub(crate) fn ratio(self, tally: Option<f64>, etcd: Option<f64>) -> Option<String> {
        let (tally, etcd) = (tally?, etcd?);
        match self {
            Goal::TimesEtcd(_) => Some(format!("{:.2} ×", tally / etcd)),
            Goal::EtcdTimes(_) => Some(format!("{:.1} ×", etcd / tally)),
            Goal::ShareOfEtcd(most) if most >= 1.0 || !simple(most) => Some(format!("{:.2} ×", tally / etcd)),
            Goal::ShareOfEtcd(_) => Some(format!("1/{:.1}", etcd / tally)),
            Goal::AtMost(_) | Goal::AtLeast(_) => None,
        }
    }
}

/// Whether a share is one over a whole number.
fn simple(share: f64) -> bool {
    ((1.0 / share).round() * share - 1.0).abs() < 1e-9
}

#[cfg(test)]
mod tests {
    use super::Goal;
    use crate::bench::{cluster, grpc, single};

    #[test]
    fn goals_hold_at_their_edge_and_not_beyond() {
        assert_eq!(Goal::TimesEtcd(3.0).reached(Some(30.0), Some(10.0)), Some(true));
        assert_eq!(Goal::TimesEtcd(3.0).reached(Some(29.0), Some(10.0)), Some(false));
        assert_eq!(Goal::EtcdTimes(20.0).reached(Some(1.0), Some(20.0)), Some(true));
        assert_eq!(Goal::EtcdTimes(20.0).reached(Some(1.1), Some(20.0)), Some(false));
        assert_eq!(Goal::ShareOfEtcd(0.25).reached(Some(2.5), Some(10.0)), Some(true));
        assert_eq!(Goal::ShareOfEtcd(0.25).reached(Some(2.6), Some(10.0)), Some(false));
        assert_eq!(Goal::AtMost(0.5).reached(Some(0.6), None), Some(false));
        assert_eq!(Goal::AtMost(0.0).reached(Some(0.0), None), Some(true));
        assert_eq!(Goal::AtLeast(1.0).reached(Some(1.0), None), Some(true));
        assert_eq!(Goal::AtLeast(1.0).reached(Some(0.9), Some(9.0)), Some(false));
        assert_eq!(Goal::TimesEtcd(3.0).reached(Some(30.0), None), None);
    }

    #[test]
    fn goals_and_ratios_in_words() {
        let both = |goal: Goal| (goal.shown(), goal.ratio(Some(2.0), Some(8.0)).unwrap_or_default());
        assert_eq!(both(Goal::ShareOfEtcd(1.0 / 3.0)), ("≤ 1/3".to_owned(), "1/4.0".to_owned()));
        assert_eq!(both(Goal::ShareOfEtcd(0.45)), ("≤ 0.45 ×".to_owned(), "0.25 ×".to_owned()));
        assert_eq!(both(Goal::ShareOfEtcd(1.0)), ("no more".to_owned(), "0.25 ×".to_owned()));
        assert_eq!(both(Goal::TimesEtcd(2.5)), ("≥ 2.5 ×".to_owned(), "0.25 ×".to_owned()));
        assert_eq!(both(Goal::AtMost(100.0)), ("≤ 100".to_owned(), String::new()));
    }

    #[test]
    fn every_target_is_about_a_row_and_names_are_used_once() {
        for suite in [&single::SUITE, &cluster::SUITE, &grpc::SUITE] {
            let names: Vec<&str> = suite.names().collect();
            for target in suite.targets {
                assert!(names.contains(&target.row), "{}", target.row);
                let event = suite.events.iter().find(|event| event.name == target.row);
                let lines = event.map(|event| event.lines.iter().any(|line| line.0 == target.metric));
                assert_ne!(lines, Some(false), "{} {} is in no table", target.row, target.metric);
            }
            for (index, name) in names.iter().enumerate() {
                assert!(!names[..index].contains(name), "{name}");
            }
        }
    }
}
