//! A metric whose value is read at each scrape.

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Registry, Result};

/// One value, with the values of the figure's labels.
type Sample = (Vec<String>, f64);

/// A gauge or counter that somebody else keeps.
pub(super) struct Figure {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    read: Box<dyn Fn() -> Vec<Sample> + Send + Sync>,
}

impl Figure {
    /// A value that goes up and down.
    pub(super) fn gauge(
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) -> Figure {
        Figure::labelled(name, help, MetricType::GAUGE, &[], move || vec![(Vec::new(), read())])
    }

    /// A value that only grows while the process lives.
    pub(super) fn counter(
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Figure {
        Figure::labelled(name, help, MetricType::COUNTER, &[], move || vec![(Vec::new(), read() as f64)])
    }

    /// A gauge that is always 1 and tells something by its label.
    pub(super) fn info(
        name: &'static str,
        help: &'static str,
        label: &'static [&'static str],
        value: String,
    ) -> Figure {
        Figure::labelled(name, help, MetricType::GAUGE, label, move || vec![(vec![value.clone()], 1.0)])
    }

    /// Several values that differ in their labels.
    pub(super) fn labelled(
        name: &'static str,
        help: &'static str,
        kind: MetricType,
        labels: &'static [&'static str],
        read: impl Fn() -> Vec<Sample> + Send + Sync + 'static,
    ) -> Figure {
        Figure { name, help, kind, labels, read: Box::new(read) }
    }

    pub(super) fn register(self, registry: &Registry) -> Result<()> {
        let labels = self.labels.iter().map(|label| (*label).to_owned()).collect();
        let desc = Desc::new(self.name.into(), self.help.into(), labels, std::collections::HashMap::new())?;
        registry.register(Box::new(Described { desc, figure: self }))
    }

    fn metric(&self, (values, value): Sample) -> Metric {
        let mut metric = Metric::default();
        let pair = |(name, value): (&&str, String)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value);
            pair
        };
        metric.set_label(self.labels.iter().zip(values).map(pair).collect());
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metric
    }
}

struct Described {
    desc: Desc,
    figure: Figure,
}

impl Collector for Described {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let figure = &self.figure;
        let mut family = MetricFamily::default();
        family.set_name(figure.name.to_owned());
        family.set_help(figure.help.to_owned());
        family.set_field_type(figure.kind);
        family.set_metric((figure.read)().into_iter().map(|sample| figure.metric(sample)).collect());
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn figures_are_read_at_each_scrape() {
        let registry = Registry::new();
        Figure::counter("a_total", "As.", || 3).register(&registry).unwrap();
        let read = || vec![(vec!["x".to_owned()], 1.5), (vec!["y".to_owned()], -2.0)];
        Figure::labelled("b", "Bs.", MetricType::GAUGE, &["l"], read).register(&registry).unwrap();
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in ["# HELP a_total As.", "# TYPE a_total counter", "a_total 3", "# TYPE b gauge", "b{l=\"y\"} -2"] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(Figure::counter("a_total", "Again.", || 3).register(&registry).is_err());
    }
}
