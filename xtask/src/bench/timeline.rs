//! What happened to the requests of clients that go on through failures: when each write was acknowledged, and what failed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::hist::Histogram;
use crate::node::Kind;

/// An acknowledged write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acknowledged {
    pub(crate) sent: Instant,
    pub(crate) answered: Instant,
}

/// A request that was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What the client was told, in words.
    pub(crate) told: String,
    /// Whether the write may or may not have taken effect, so that it cannot safely be sent again.
    pub(crate) unclear: bool,
}

/// Everything that happened, in order of time.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    acknowledged: Vec<Acknowledged>,
    failures: Vec<(Instant, Failure)>,
    /// When the requests were sent that had no answer in the end.
    hanging: Vec<Instant>,
}

impl Timeline {
    /// Adds an acknowledged write; not before any that was added.
    pub(crate) fn acknowledge(&mut self, sent: Instant, answered: Instant) {
        self.acknowledged.push(Acknowledged { sent, answered });
    }

    /// Adds a failed request.
    pub(crate) fn fail(&mut self, at: Instant, failure: Failure) {
        self.failures.push((at, failure));
    }

    /// Adds a request that has no answer in the end.
    pub(crate) fn leave_hanging(&mut self, sent: Instant) {
        self.hanging.push(sent);
    }

    /// How many requests sent before a moment have no answer in the end.
    pub(crate) fn hanging_since(&self, moment: Instant) -> u64 {
        self.hanging.iter().filter(|sent| **sent < moment).count() as u64
    }

    /// When the first write was acknowledged that was sent after this moment.
    pub(crate) fn first_sent_after(&self, moment: Instant) -> Option<Instant> {
        self.after(moment).iter().find(|write| write.sent > moment).map(|write| write.answered)
    }

    /// The longest time without an acknowledged write between two moments.
    pub(crate) fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let within = self.after(from).iter().map(|write| write.answered).take_while(|answered| *answered < to);
        let (mut last, mut longest) = (from, Duration::ZERO);
        for moment in within.chain([to]) {
            longest = longest.max(moment.saturating_duration_since(last));
            last = moment;
        }
        longest
    }

    /// How long the writes took that were acknowledged between two moments.
    pub(crate) fn latencies(&self, from: Instant, to: Instant) -> Histogram {
        let mut histogram = Histogram::new();
        for write in self.after(from).iter().take_while(|write| write.answered < to) {
            histogram.add(write.answered.duration_since(write.sent));
        }
        histogram
    }

    /// What failed after a moment, by what the client was told.
    pub(crate) fn failures_after(&self, moment: Instant) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for (_, failure) in self.failures.iter().filter(|(at, _)| *at >= moment) {
            let outcome = if failure.unclear { "outcome unclear" } else { "safe to retry" };
            *counts.entry(format!("{} ({outcome})", failure.told)).or_insert(0) += 1;
        }
        counts
    }

    /// How many requests failed after a moment that cannot safely be sent again.
    pub(crate) fn unclear_after(&self, moment: Instant) -> u64 {
        self.failures.iter().filter(|(at, failure)| *at >= moment && failure.unclear).count() as u64
    }

    /// The writes that were acknowledged after a moment.
    fn after(&self, moment: Instant) -> &[Acknowledged] {
        &self.acknowledged[self.acknowledged.partition_point(|write| write.answered <= moment)..]
    }
}

/// What etcd says only of requests that it has not proposed.
const ETCD_CLEAR: [&str; 4] = ["no leader", "too many requests", "raft proposal dropped", "not started"];

/// What an answer other than a success means for the write that it answers.
///
/// Tally says in the answer whether the outcome is unknown. etcd does not, so whatever it may say after proposing counts
/// as unclear.
pub(crate) fn refusal(server: Kind, status: u16, body: &[u8]) -> Failure {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = value["error"].as_str().or(value["message"].as_str()).unwrap_or("no error message");
    let unclear = match server {
        Kind::Tally => value["outcome"] == "unknown" || value["error"].is_null(),
        Kind::Etcd => status >= 500 && !ETCD_CLEAR.iter().any(|clear| text.contains(clear)),
    };
    Failure { told: format!("{status} {text}"), unclear }
}

#[cfg(test)]
mod tests {
    use super::{Failure, Timeline, refusal};
    use crate::node::Kind;
    use std::time::{Duration, Instant};

    fn timeline(begin: Instant, writes: &[(u64, u64)]) -> Timeline {
        let mut timeline = Timeline::default();
        let at = |millis: u64| begin + Duration::from_millis(millis);
        writes.iter().for_each(|(sent, answered)| timeline.acknowledge(at(*sent), at(*answered)));
        timeline
    }

    #[test]
    fn gaps_count_the_edges_too() {
        let begin = Instant::now();
        let at = |millis: u64| begin + Duration::from_millis(millis);
        let timeline = timeline(begin, &[(0, 10), (0, 20), (20, 70), (60, 90)]);
        let gap = |from, to| timeline.longest_gap(at(from), at(to)).as_millis();
        assert_eq!(gap(0, 100), 50);
        assert_eq!(gap(0, 60), 40);
        assert_eq!(gap(90, 200), 110);
        assert_eq!(gap(70, 85), 15);
        assert_eq!(timeline.latencies(at(10), at(90)).count(), 2);
    }

    #[test]
    fn a_write_sent_before_does_not_count_as_sent_after() {
        let begin = Instant::now();
        let at = |millis: u64| begin + Duration::from_millis(millis);
        let timeline = timeline(begin, &[(0, 10), (4, 30), (6, 40)]);
        assert_eq!(timeline.first_sent_after(at(5)), Some(at(40)));
        assert_eq!(timeline.first_sent_after(at(3)), Some(at(30)));
        assert_eq!(timeline.first_sent_after(at(6)), None);
    }

    #[test]
    fn failures_are_counted_by_what_was_told() {
        let begin = Instant::now();
        let mut timeline = Timeline::default();
        let clear = Failure { told: "503 no".to_owned(), unclear: false };
        timeline.fail(begin, clear.clone());
        timeline.fail(begin + Duration::from_millis(5), clear);
        timeline.fail(begin + Duration::from_millis(6), Failure { told: "cut".to_owned(), unclear: true });
        let after = begin + Duration::from_millis(1);
        let counts: Vec<_> = timeline.failures_after(after).into_iter().collect();
        assert_eq!(counts, [("503 no (safe to retry)".to_owned(), 1), ("cut (outcome unclear)".to_owned(), 1)]);
        assert_eq!(timeline.unclear_after(after), 1);
        assert_eq!(timeline.unclear_after(begin + Duration::from_millis(7)), 0);
        timeline.leave_hanging(begin);
        timeline.leave_hanging(after);
        assert_eq!(timeline.hanging_since(after), 1);
    }

    #[test]
    fn refusals_are_clear_or_not() {
        let said = |server, body: &str| refusal(server, 503, body.as_bytes());
        let unknown = r#"{"error":"etcdserver: request timed out","code":14,"outcome":"unknown"}"#;
        let lost = r#"{"error":"etcdserver: leader changed","code":14}"#;
        let none = r#"{"error":"etcdserver: no leader","code":14}"#;
        let told = "503 etcdserver: request timed out".to_owned();
        assert_eq!(said(Kind::Tally, unknown), Failure { told, unclear: true });
        assert!(!said(Kind::Tally, none).unclear && !said(Kind::Etcd, none).unclear);
        assert!(!said(Kind::Tally, lost).unclear && said(Kind::Etcd, lost).unclear);
        assert!(said(Kind::Tally, "<html>").unclear);
    }
}
