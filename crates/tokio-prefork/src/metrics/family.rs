//! A metric with its series, independent of the text format.

use std::borrow::Cow;

/// The labels of a series.
pub(super) type Labels = Vec<(Cow<'static, str>, String)>;

/// A metric with all its series.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MetricFamily {
    /// The name without unit and without `_total`.
    pub(super) name: String,
    pub(super) help: Cow<'static, str>,
    pub(super) unit: Option<MetricUnit>,
    pub(super) series: Series,
}

/// The unit of a metric, which its name ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MetricUnit {
    Seconds,
    Bytes,
}

/// The series of a metric, by its type.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Series {
    Counter(Vec<(Labels, CounterValue)>),
    Gauge(Vec<(Labels, f64)>),
    Histogram(Vec<(Labels, HistogramValue)>),
    /// One series with the value 1, for its labels.
    Info(Labels),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum CounterValue {
    Whole(u64),
    Fraction(f64),
}

/// Buckets of a histogram: upper bound and count, not cumulative. The last bound is infinite.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct HistogramValue {
    pub(super) buckets: Vec<(f64, u64)>,
    pub(super) sum: f64,
}

impl MetricFamily {
    /// Creates a counter without labels.
    pub(super) fn counter(name: &str, help: &'static str, value: u64) -> MetricFamily {
        MetricFamily::counters(name, help, vec![(Labels::new(), value)])
    }

    /// Creates a counter with labels.
    pub(super) fn counters(
        name: &str,
        help: &'static str,
        series: Vec<(Labels, u64)>,
    ) -> MetricFamily {
        let whole = series.into_iter().map(|(labels, n)| (labels, CounterValue::Whole(n)));
        MetricFamily::new(name, help, Series::Counter(whole.collect()))
    }

    /// Creates a gauge without labels.
    pub(super) fn gauge(name: &str, help: &'static str, value: f64) -> MetricFamily {
        MetricFamily::gauges(name, help, vec![(Labels::new(), value)])
    }

    /// Creates a gauge with labels.
    pub(super) fn gauges(
        name: &str,
        help: &'static str,
        series: Vec<(Labels, f64)>,
    ) -> MetricFamily {
        MetricFamily::new(name, help, Series::Gauge(series))
    }

    /// Creates a histogram of seconds.
    pub(super) fn durations(
        name: &str,
        help: &'static str,
        series: Vec<(Labels, HistogramValue)>,
    ) -> MetricFamily {
        MetricFamily::new(name, help, Series::Histogram(series)).in_unit(MetricUnit::Seconds)
    }

    pub(super) fn new(name: &str, help: &'static str, series: Series) -> MetricFamily {
        MetricFamily { name: name.to_string(), help: Cow::Borrowed(help), unit: None, series }
    }

    /// Appends the unit to the name.
    pub(super) fn in_unit(self, unit: MetricUnit) -> MetricFamily {
        MetricFamily { unit: Some(unit), ..self }
    }

    /// Returns whether there is a series.
    pub(super) fn has_series(&self) -> bool {
        match &self.series {
            Series::Counter(series) => !series.is_empty(),
            Series::Gauge(series) => !series.is_empty(),
            Series::Histogram(series) => !series.is_empty(),
            Series::Info(_) => true,
        }
    }
}

impl HistogramValue {
    /// Returns the number of observations: the sum of the buckets, so that the two always agree.
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }
}

/// Returns one label.
pub(super) fn label(name: &'static str, value: impl Into<String>) -> Labels {
    vec![(Cow::Borrowed(name), value.into())]
}

/// Returns several labels.
pub(super) fn labels<const N: usize>(pairs: [(&'static str, &str); N]) -> Labels {
    pairs.into_iter().map(|(name, value)| (Cow::Borrowed(name), value.to_string())).collect()
}
