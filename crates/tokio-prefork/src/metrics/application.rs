//! The application's shared counters, gauges, histograms, flags, numbers and leaderships as metrics.

use std::borrow::Cow;

use super::family::{CounterValue, HistogramValue, Labels, MetricFamily, Series};
use crate::shared::{HistogramSnapshot, SharedMetric, SharedMetricValue};

/// Returns one metric for each name. Declarations of the same name are its series.
pub(super) fn families_of(metrics: &[SharedMetric]) -> Vec<MetricFamily> {
    let mut families: Vec<MetricFamily> = Vec::new();
    for metric in metrics {
        let Some(new) = family_of(metric) else { continue };
        match families.iter_mut().find(|family| family.name == new.name) {
            Some(family) => add_series(family, new),
            None => families.push(new),
        }
    }
    families
}

/// Adds the series of another declaration of the same name. Those of another type are left out: the declaration refuses them.
fn add_series(family: &mut MetricFamily, new: MetricFamily) {
    match (&mut family.series, new.series) {
        (Series::Counter(all), Series::Counter(more)) => all.extend(more),
        (Series::Gauge(all), Series::Gauge(more)) => all.extend(more),
        (Series::Histogram(all), Series::Histogram(more)) => all.extend(more),
        _ => return,
    }
    if has_default_help(family) {
        family.help = new.help;
    }
}

fn has_default_help(family: &MetricFamily) -> bool {
    matches!(family.help, Cow::Borrowed(_))
}

fn family_of(metric: &SharedMetric) -> Option<MetricFamily> {
    let scale = metric.scale.map_or(1.0, |scale| scale.0);
    let labels: Labels = metric
        .labels
        .iter()
        .map(|(name, value)| (Cow::Owned(name.clone()), value.clone()))
        .collect();
    let mut name = metric.name.as_str();
    let (help, series) = match &metric.value {
        SharedMetricValue::Counter { value } => {
            name = name.strip_suffix("_total").unwrap_or(name);
            let value = match metric.scale {
                None => CounterValue::Whole(*value),
                Some(_) => CounterValue::Fraction(*value as f64 * scale),
            };
            ("A counter of the application.", Series::Counter(vec![(labels, value)]))
        }
        SharedMetricValue::Gauge { value } => (
            "A gauge of the application, summed over its live processes.",
            Series::Gauge(vec![(labels, *value as f64 * scale)]),
        ),
        SharedMetricValue::Number { value } => {
            ("A number of the application.", Series::Gauge(vec![(labels, *value as f64 * scale)]))
        }
        SharedMetricValue::Flag { set } => (
            "A flag of the application: 1 if it is set.",
            Series::Gauge(vec![(labels, f64::from(u8::from(*set)))]),
        ),
        SharedMetricValue::Leadership { leader } => (
            "A leadership of the application: 1 if there is a leader.",
            Series::Gauge(vec![(labels, f64::from(u8::from(leader.is_some())))]),
        ),
        SharedMetricValue::Histogram(seen) => (
            "A histogram of the application.",
            Series::Histogram(vec![(labels, histogram_of(seen, scale))]),
        ),
        // Not a figure: how many bytes there are never changes.
        SharedMetricValue::Bytes { .. } | SharedMetricValue::Unknown => return None,
    };
    let family = MetricFamily::new(name, help, series);
    Some(match metric.help.is_empty() {
        true => family,
        false => MetricFamily { help: Cow::Owned(metric.help.clone()), ..family },
    })
}

fn histogram_of(seen: &HistogramSnapshot, scale: f64) -> HistogramValue {
    let bounds = seen.bounds.iter().map(|bound| *bound as f64 * scale).chain([f64::INFINITY]);
    let buckets = bounds.zip(seen.counts.iter().copied()).collect();
    HistogramValue { buckets, sum: seen.sum as f64 * scale }
}

#[cfg(test)]
mod tests {
    use super::super::text_format::TextFormat;
    use super::*;
    use crate::shared::MetricScale;

    fn metric(name: &str, label: &str, value: SharedMetricValue) -> SharedMetric {
        let labels = vec![("queue".to_string(), label.to_string())];
        SharedMetric { value, labels, ..SharedMetric::new(name) }
    }

    #[test]
    fn declarations_of_one_name_are_series_of_one_metric() {
        let counter = |label, value, help: &str| {
            let counted = metric("jobs_total", label, SharedMetricValue::Counter { value });
            SharedMetric { help: help.to_string(), ..counted }
        };
        let flag = SharedMetric::new("paused");
        let all = [counter("mail", 1, ""), flag, counter("images", 2, "Jobs that ran.")];
        assert_eq!(
            TextFormat::Prometheus.write(families_of(&all)),
            "# HELP jobs_total Jobs that ran.\n# TYPE jobs_total counter\n\
             jobs_total{queue=\"mail\"} 1\njobs_total{queue=\"images\"} 2\n\
             # HELP paused A flag of the application: 1 if it is set.\n# TYPE paused gauge\npaused 0.0\n"
        );
    }

    #[test]
    fn values_are_scaled_to_a_base_unit() {
        let seen = HistogramSnapshot { bounds: vec![1, 10], counts: vec![3, 2, 1], sum: 40 };
        let scaled = SharedMetric {
            scale: Some(MetricScale(0.001)),
            ..metric("took_seconds", "mail", SharedMetricValue::Histogram(seen))
        };
        let text = TextFormat::Prometheus.write(families_of(&[scaled]));
        for line in [
            r#"took_seconds_bucket{queue="mail",le="0.001"} 3"#,
            r#"took_seconds_bucket{queue="mail",le="0.01"} 5"#,
            r#"took_seconds_bucket{queue="mail",le="+Inf"} 6"#,
            r#"took_seconds_sum{queue="mail"} 0.04"#,
            r#"took_seconds_count{queue="mail"} 6"#,
        ] {
            assert!(text.lines().any(|seen| seen == line), "{line}\nis not in\n{text}");
        }
    }
}
