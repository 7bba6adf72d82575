//! A histogram of durations with a bounded error: buckets of equal width within each power of two.

use std::time::Duration;

/// Twice the buckets per power of two: a value is reported at most 1/64 (1.6 %) too high.
const STEPS: usize = 128;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Longer durations than 2^40 ns (18 minutes) are counted as that.
const OCTAVES: usize = 40 - STEP_BITS as usize + 1;

/// Counts durations in nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Histogram {
    /// An empty histogram.
    pub(crate) fn new() -> Histogram {
        Histogram { buckets: vec![0; STEPS * OCTAVES], count: 0 }
    }

    /// Counts one duration.
    pub(crate) fn add(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)] += 1;
        self.count += 1;
    }

    /// Counts what another one has counted.
    pub(crate) fn merge(&mut self, other: &Histogram) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(here, there)| *here += there);
        self.count += other.count;
    }

    /// How many durations were counted.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The duration that this share (0 to 1) of all counted ones did not exceed; zero if there are none.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let wanted = ((self.count as f64 * share).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(upper(index));
            }
        }
        Duration::ZERO
    }
}

fn bucket(nanos: u64) -> usize {
    let octave = (64 - STEP_BITS).saturating_sub(nanos.leading_zeros()) as usize;
    if octave == 0 {
        return nanos as usize;
    }
    if octave >= OCTAVES {
        return STEPS * OCTAVES - 1;
    }
    // In octave k the values lie in [2^(k+6), 2^(k+7)), cut into 64 steps of 2^k: the upper half of a row of 128.
    octave * STEPS + (nanos >> octave) as usize
}

/// The largest value of a bucket.
fn upper(index: usize) -> u64 {
    let (octave, step) = (index / STEPS, index % STEPS);
    ((step as u64 + 1) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::{Histogram, bucket, upper};
    use std::time::Duration;

    #[test]
    fn every_value_is_reported_within_the_bound() {
        for exponent in 0..39 {
            for offset in [0, 1, 2, 3, 5, 77] {
                let nanos = (1_u64 << exponent) + offset;
                let shown = upper(bucket(nanos));
                assert!(shown >= nanos, "{nanos} shown as {shown}");
                assert!((shown - nanos) as f64 <= nanos as f64 / 64.0, "{nanos} shown as {shown}");
            }
        }
        assert_eq!(bucket(u64::MAX), bucket(1 << 60));
    }

    #[test]
    fn quantiles() {
        let (mut histogram, mut other) = (Histogram::new(), Histogram::new());
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);
        for micros in 1..=1000 {
            let half = if micros % 2 == 0 { &mut histogram } else { &mut other };
            half.add(Duration::from_micros(micros));
        }
        histogram.merge(&other);
        for (share, micros) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let found = histogram.quantile(share).as_secs_f64() * 1e6;
            assert!((found - micros).abs() <= micros / 64.0, "{share}: {found}");
        }
        assert_eq!(histogram.count(), 1000);
    }
}
