//! What one measurement of one row gives: numbers by name, and counts of whatever else happened.

use std::collections::BTreeMap;
use std::time::Duration;

use super::load::Measured;
use super::report::amount;

/// The numbers of one measurement.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    /// By name, such as `rate` or `p99`; what was measured several times is there several times.
    numbers: Vec<(&'static str, f64)>,
    failures: BTreeMap<String, u64>,
}

impl Sample {
    /// Adds a number.
    pub(crate) fn add(&mut self, metric: &'static str, value: f64) {
        self.numbers.push((metric, value));
    }

    /// Adds rate and latencies.
    pub(crate) fn add_load(&mut self, measured: &Measured) {
        self.add("rate", measured.rate());
        for (metric, share) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
            self.add(metric, measured.latency.quantile(share).as_secs_f64() * 1e6);
        }
    }

    /// Adds the CPU time per request, of the servers and of the load generator.
    pub(crate) fn add_cpu(&mut self, measured: &Measured, servers: Duration, own: Duration) {
        let per_op = |cpu: Duration| cpu.as_secs_f64() * 1e6 / measured.latency.count().max(1) as f64;
        self.add("cpu", per_op(servers));
        self.add("client_cpu", per_op(own));
    }

    /// Adds failed requests, counted by what the client was told.
    pub(crate) fn add_failures(&mut self, counts: BTreeMap<String, u64>) {
        for (told, count) in counts {
            *self.failures.entry(told).or_insert(0) += count;
        }
    }

    /// All numbers of that name.
    pub(crate) fn numbers(&self, metric: &str) -> impl Iterator<Item = f64> {
        self.numbers.iter().filter(move |(name, _)| *name == metric).map(|(_, value)| *value)
    }

    /// Failed requests, by what the client was told.
    pub(crate) fn failures(&self) -> &BTreeMap<String, u64> {
        &self.failures
    }

    /// Everything in one line.
    pub(crate) fn shown(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in &self.numbers {
            if !names.contains(name) {
                names.push(name);
            }
        }
        let shown = names.iter().map(|name| {
            let values: Vec<String> = self.numbers(name).map(amount).collect();
            format!("{name} {}", values.join("/"))
        });
        let failures = self.failures.iter().map(|(told, count)| format!("[{count} × {told}]"));
        shown.chain(failures).collect::<Vec<_>>().join("  ")
    }
}

#[cfg(test)]
mod tests {
    use super::Sample;
    use std::collections::BTreeMap;

    #[test]
    fn repeated_numbers_stay_together_and_failures_add_up() {
        let mut sample = Sample::default();
        sample.add("gap_ms", 12.0);
        sample.add("rate", 500.0);
        sample.add("gap_ms", 3.0);
        for count in [1, 2] {
            sample.add_failures(BTreeMap::from([("503 no".to_owned(), count)]));
        }
        assert_eq!(sample.numbers("gap_ms").collect::<Vec<_>>(), [12.0, 3.0]);
        assert_eq!(sample.shown(), "gap_ms 12.0/3.000  rate 500  [3 × 503 no]");
    }
}
