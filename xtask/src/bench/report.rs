//! The report: medians of the rounds, ratios, goals, and where it was measured.

use std::collections::BTreeMap;

use super::rows::{Event, Over, Suite, Target};
use super::sample::Sample;
use crate::node::Kind;

/// The servers in the order of the tables.
const SERVERS: [Kind; 2] = [Kind::Etcd, Kind::Tally];

/// Everything measured, by row and server.
#[derive(Debug)]
pub(crate) struct Results {
    suite: &'static Suite,
    samples: BTreeMap<(&'static str, &'static str), Vec<Sample>>,
}

impl Results {
    /// Nothing yet.
    pub(crate) fn new(suite: &'static Suite) -> Results {
        Results { suite, samples: BTreeMap::new() }
    }

    /// Adds one round's numbers.
    pub(crate) fn add(&mut self, row: &'static str, server: Kind, sample: Sample) {
        self.samples.entry((row, server.name())).or_default().push(sample);
    }

    fn samples(&self, row: &str, server: Kind) -> impl Iterator<Item = &Sample> {
        let found = self.samples.iter().find(|((known, name), _)| *known == row && *name == server.name());
        found.into_iter().flat_map(|(_, samples)| samples)
    }

    /// The numbers of all rounds, in order of size.
    fn sorted(&self, row: &str, server: Kind, metric: &str) -> Vec<f64> {
        let mut values: Vec<f64> = self.samples(row, server).flat_map(|sample| sample.numbers(metric)).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    fn median(&self, row: &str, server: Kind, metric: &str) -> Option<f64> {
        let values = self.sorted(row, server, metric);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            odd if odd % 2 == 1 => Some(values[middle]),
            _ => Some(f64::midpoint(values[middle - 1], values[middle])),
        }
    }

    /// The value that is compared with a goal.
    fn value(&self, target: &Target, server: Kind) -> Option<f64> {
        match target.over {
            Over::Median => self.median(target.row, server, target.metric),
            Over::Largest => self.sorted(target.row, server, target.metric).last().copied(),
        }
    }

    /// How many goals were reached, and of how many that something can be said about.
    pub(crate) fn reached(&self) -> (usize, usize) {
        let known: Vec<bool> = self.suite.targets.iter().filter_map(|target| self.verdict(target)).collect();
        (known.iter().filter(|reached| **reached).count(), known.len())
    }

    fn verdict(&self, target: &Target) -> Option<bool> {
        target.goal.reached(self.value(target, Kind::Tally), self.value(target, Kind::Etcd))
    }

    /// The goals as a Markdown table.
    pub(crate) fn goals(&self) -> String {
        let mut out =
            "| work | etcd | Tally | ratio | to reach | reached |\n|---|---:|---:|---:|---:|---|\n".to_owned();
        for target in self.suite.targets {
            let (tally, etcd) = (self.value(target, Kind::Tally), self.value(target, Kind::Etcd));
            if tally.is_none() && etcd.is_none() {
                continue;
            }
            let shown = |value: Option<f64>| value.map_or("".to_owned(), |value| amount(value) + target.unit);
            let verdict = match self.verdict(target) {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            };
            let ratio = target.goal.ratio(tally, etcd).unwrap_or_default();
            let goal = target.goal.shown();
            let title = target.title;
            out += &format!("| {title} | {} | {} | {ratio} | {goal} | {verdict} |\n", shown(etcd), shown(tally));
        }
        out
    }

    /// Every closed-loop row in detail as a Markdown table.
    pub(crate) fn details(&self) -> String {
        let mut out =
            "| work | server | ops/s (least–most) | p50 | p99 | p99.9 | CPU/op | client CPU/op | RSS | fsyncs/put |\n\
                       |---|---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
                .to_owned();
        for row in self.suite.rows {
            for server in SERVERS {
                let Some(rate) = self.median(row.name, server, "rate") else { continue };
                let spread = self.spread(row.name, server, "rate");
                let show = |metric, unit: &str| {
                    self.median(row.name, server, metric).map_or(String::new(), |value| amount(value) + unit)
                };
                out += &format!(
                    "| {} | {} | {}{spread} | {} | {} | {} | {} | {} | {} | {} |\n",
                    row.title,
                    server.name(),
                    amount(rate),
                    show("p50", " µs"),
                    show("p99", " µs"),
                    show("p999", " µs"),
                    show("cpu", " µs"),
                    show("client_cpu", " µs"),
                    show("rss_mib", " MiB"),
                    show("fsyncs", ""),
                );
            }
        }
        out
    }

    /// The events that were measured, each in a Markdown table of its own.
    pub(crate) fn events(&self) -> String {
        let measured = self.suite.events.iter().filter(|event| self.samples.keys().any(|(row, _)| *row == event.name));
        let tables: Vec<String> = measured.map(|event| self.event(event)).collect();
        tables.join("\n")
    }

    fn event(&self, event: &Event) -> String {
        let mut out = format!("| {} | etcd | Tally |\n|---|---:|---:|\n", event.title);
        for line in event.lines {
            let show = |server| {
                let spread = self.spread(event.name, server, line.0);
                self.median(event.name, server, line.0)
                    .map_or(String::new(), |value| format!("{}{}{spread}", amount(value), line.2))
            };
            out += &format!("| {} | {} | {} |\n", line.1, show(Kind::Etcd), show(Kind::Tally));
        }
        out + &self.failures(event)
    }

    /// What clients were told that were not served, and how often.
    fn failures(&self, event: &Event) -> String {
        let mut out = String::new();
        for server in SERVERS {
            let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
            for (told, count) in self.samples(event.name, server).flat_map(|sample| sample.failures()) {
                *counts.entry(told).or_insert(0) += count;
            }
            if counts.is_empty() {
                continue;
            }
            let counts: Vec<String> = counts.iter().map(|(told, count)| format!("{count} × “{told}”")).collect();
            out += &format!("\nRequests that failed, {}: {}.\n", server.name(), counts.join("; "));
        }
        out
    }

    /// From the least to the most, where there are several values that differ.
    fn spread(&self, row: &str, server: Kind, metric: &str) -> String {
        match self.sorted(row, server, metric)[..] {
            [first, .., last] if amount(first) != amount(last) => format!(" ({}–{})", amount(first), amount(last)),
            _ => String::new(),
        }
    }
}

/// A number with about three digits that mean something, and thousands apart.
pub(crate) fn amount(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if value < 10.0 {
        return format!("{value:.3}");
    }
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Results, amount};
    use crate::bench::cluster::{self, FAILOVER, TRANSFER};
    use crate::bench::sample::Sample;
    use crate::bench::single;
    use crate::node::Kind;
    use std::collections::BTreeMap;

    fn sample(numbers: &[(&'static str, f64)]) -> Sample {
        let mut sample = Sample::default();
        numbers.iter().for_each(|(metric, value)| sample.add(metric, *value));
        sample
    }

    #[test]
    fn amounts() {
        assert_eq!(amount(0.0), "0");
        assert_eq!(amount(0.2), "0.200");
        assert_eq!(amount(77.77), "77.8");
        assert_eq!(amount(999.6), "1,000");
        assert_eq!(amount(1_234_567.0), "1,234,567");
    }

    #[test]
    fn medians_and_verdicts() {
        let mut results = Results::new(&single::SUITE);
        for (tally, etcd) in [(30.0, 10.0), (90.0, 11.0), (40.0, 9.0)] {
            results.add("put-64", Kind::Tally, sample(&[("rate", tally)]));
            results.add("put-64", Kind::Etcd, sample(&[("rate", etcd)]));
        }
        assert_eq!(results.median("put-64", Kind::Tally, "rate"), Some(40.0));
        assert_eq!(results.reached(), (1, 1));
        let table = results.goals();
        assert!(table.contains("| put, 64 clients | 10.0/s | 40.0/s | 4.00 × | ≥ 3 × | yes |"), "{table}");
        assert!(results.details().contains("| put, 64 clients | tally | 40.0 (30.0–90.0) |"), "{}", results.details());
        assert_eq!(results.events(), "");
    }

    #[test]
    fn a_median_is_over_all_values_and_a_largest_too() {
        let mut results = Results::new(&cluster::SUITE);
        for values in [[900.0, 5000.0], [1000.0, 1100.0]] {
            results.add(FAILOVER, Kind::Tally, sample(&values.map(|value| ("failover_ms", value))));
        }
        assert_eq!(results.reached(), (1, 1));
        results.add(TRANSFER, Kind::Tally, sample(&[("term_gap_ms", 20.0), ("term_gap_ms", 101.0)]));
        results.add(TRANSFER, Kind::Tally, sample(&[("term_gap_ms", 30.0)]));
        assert_eq!(results.reached(), (1, 2), "one handover took too long");
        let table = results.goals();
        assert!(table.contains("|  | 1,050 ms |  | ≤ 1500 | yes |"), "{table}");
        assert!(table.contains("|  | 101 ms |  | ≤ 100 | **no** |"), "{table}");
    }

    #[test]
    fn events_have_tables_with_failures() {
        let mut results = Results::new(&cluster::SUITE);
        let mut failed = sample(&[("failover_ms", 900.0), ("failover_ms", 1100.0)]);
        failed.add_failures(BTreeMap::from([("503 no leader (safe to retry)".to_owned(), 7)]));
        results.add(FAILOVER, Kind::Etcd, failed);
        let tables = results.events();
        assert!(tables.contains("acknowledged by the new leader | 1,000 ms (900–1,100) |  |"), "{tables}");
        assert!(tables.contains("failed, etcd: 7 × “503 no leader (safe to retry)”."), "{tables}");
        assert!(!tables.contains("new member"), "{tables}");
    }
}
