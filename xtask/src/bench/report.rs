//! The report: medians of the rounds, ratios, goals, and where it was measured.

use std::collections::BTreeMap;

use super::rows::{LARGE, ROWS, Sample, TARGETS, Target, number};
use crate::node::Kind;

/// Everything measured, by row and server.
#[derive(Debug, Default)]
pub(crate) struct Results(BTreeMap<(&'static str, &'static str), Vec<Sample>>);

impl Results {
    /// Adds one round's numbers.
    pub(crate) fn add(&mut self, row: &'static str, server: Kind, sample: Sample) {
        self.0.entry((row, server.name())).or_default().push(sample);
    }

    /// The numbers of all rounds, in order of size.
    fn sorted(&self, row: &str, server: Kind, metric: &str) -> Vec<f64> {
        let rounds = self.0.iter().find(|((known, name), _)| *known == row && *name == server.name());
        let mut values: Vec<f64> =
            rounds.iter().flat_map(|(_, samples)| samples.iter()).filter_map(|sample| number(sample, metric)).collect();
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

    /// How many goals were reached, and of how many that something can be said about.
    pub(crate) fn reached(&self) -> (usize, usize) {
        let known: Vec<bool> = TARGETS.iter().filter_map(|target| self.verdict(target)).collect();
        (known.iter().filter(|reached| **reached).count(), known.len())
    }

    fn verdict(&self, target: &Target) -> Option<bool> {
        let median = |server| self.median(target.row, server, target.metric);
        target.goal.reached(median(Kind::Tally), median(Kind::Etcd))
    }

    /// The goals as a Markdown table.
    pub(crate) fn goals(&self) -> String {
        let mut out =
            "| work | etcd | Tally | ratio | to reach | reached |\n|---|---:|---:|---:|---:|---|\n".to_owned();
        for target in TARGETS {
            let median = |server| self.median(target.row, server, target.metric);
            let (tally, etcd) = (median(Kind::Tally), median(Kind::Etcd));
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
        for row in ROWS {
            for server in [Kind::Etcd, Kind::Tally] {
                let Some(rate) = self.median(row.name, server, "rate") else { continue };
                let all = self.sorted(row.name, server, "rate");
                let spread = match all[..] {
                    [first, .., last] => format!(" ({}–{})", amount(first), amount(last)),
                    _ => String::new(),
                };
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

    /// The large store in detail as a Markdown table.
    pub(crate) fn large(&self) -> String {
        const LINES: [(&str, &str, &str); 12] = [
            ("fill_rate", "fill, 256 clients", " keys/s"),
            ("rss_fill_mib", "RSS after filling", " MiB"),
            ("count_ms", "count_only over all keys", " ms"),
            ("restart_s", "restart to first read", " s"),
            ("list_s", "list all keys in pages of 500", " s"),
            ("page_p50", "one page, p50", " µs"),
            ("page_p99", "one page, p99", " µs"),
            ("rss_mib", "RSS after the restart and that full read", " MiB"),
            ("put_p99", "put p99, 64 clients", " µs"),
            ("put_p99_list", "put p99, 64 clients, while a list runs", " µs"),
            ("put_p99_ratio", "the latter over the former", ""),
            ("listed_keys", "keys that list read meanwhile (with warm-up)", ""),
        ];
        if !self.0.keys().any(|(row, _)| *row == LARGE) {
            return String::new();
        }
        let mut out = "| large store | etcd | Tally |\n|---|---:|---:|\n".to_owned();
        for (metric, title, unit) in LINES {
            let show = |server| self.median(LARGE, server, metric).map_or(String::new(), |value| amount(value) + unit);
            out += &format!("| {title} | {} | {} |\n", show(Kind::Etcd), show(Kind::Tally));
        }
        out
    }
}

/// A number with about three digits that mean something, and thousands apart.
pub(crate) fn amount(value: f64) -> String {
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
    use crate::node::Kind;

    #[test]
    fn amounts() {
        assert_eq!(amount(0.2), "0.200");
        assert_eq!(amount(77.77), "77.8");
        assert_eq!(amount(999.6), "1,000");
        assert_eq!(amount(1_234_567.0), "1,234,567");
    }

    #[test]
    fn medians_and_verdicts() {
        let mut results = Results::default();
        for (tally, etcd) in [(30.0, 10.0), (90.0, 11.0), (40.0, 9.0)] {
            results.add("put-64", Kind::Tally, vec![("rate", tally)]);
            results.add("put-64", Kind::Etcd, vec![("rate", etcd)]);
        }
        assert_eq!(results.median("put-64", Kind::Tally, "rate"), Some(40.0));
        assert_eq!(results.reached(), (1, 1));
        let table = results.goals();
        assert!(table.contains("| put, 64 clients | 10.0/s | 40.0/s | 4.00 × | ≥ 3 × | yes |"), "{table}");
    }
}
