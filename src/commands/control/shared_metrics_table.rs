//! Text table of the application's shared metrics, for `prefork status`.

use std::fmt::Write;

use tokio_prefork::shared::{SharedMetric, SharedMetricValue};
use tokio_prefork::text::printable;

/// Formats a header and one line per metric; empty if there are no metrics.
pub(super) fn format_shared_metrics(metrics: &[SharedMetric]) -> String {
    if metrics.is_empty() {
        return String::new();
    }
    let name = |metric: &SharedMetric| printable(&metric.name_and_labels()).into_owned();
    let width = metrics.iter().map(|metric| name(metric).chars().count()).max().unwrap_or(0).max(6);
    let mut text = format!("\n{:<width$}  VALUE\n", "SHARED");
    for metric in metrics {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<width$}  {}", name(metric), format_metric_value(&metric.value));
    }
    text
}

/// Formats the value of a metric.
pub(crate) fn format_metric_value(value: &SharedMetricValue) -> String {
    match value {
        SharedMetricValue::Counter { value } | SharedMetricValue::Number { value } => {
            value.to_string()
        }
        SharedMetricValue::Gauge { value } => value.to_string(),
        SharedMetricValue::Histogram(histogram) => {
            let [p50, p99] = [0.5, 0.99].map(|q| match histogram.quantile(q) {
                Some(bound) => bound.to_string(),
                None => "-".to_string(),
            });
            let (count, sum) = (histogram.count(), histogram.sum);
            format!("{count} observed, sum {sum}, p50 {p50}, p99 {p99}")
        }
        SharedMetricValue::Flag { set: true } => "set".to_string(),
        SharedMetricValue::Flag { set: false } => "not set".to_string(),
        SharedMetricValue::Bytes { len, locked, poisoned } => {
            format!("{len} bytes, {locked} ranges locked, {poisoned} poisoned")
        }
        SharedMetricValue::Leadership { leader: Some(pid) } => format!("led by pid {pid}"),
        SharedMetricValue::Leadership { leader: None } => "no leader".to_string(),
        _ => "(unknown metric type of a newer version)".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_prefork::shared::HistogramSnapshot;

    #[test]
    fn each_metric_has_a_line() {
        let seen = HistogramSnapshot { bounds: vec![10, 20], counts: vec![3, 1, 0], sum: 30 };
        let all = [
            ("orders_total", SharedMetricValue::Counter { value: 12 }),
            ("open", SharedMetricValue::Gauge { value: -1 }),
            ("ms", SharedMetricValue::Histogram(seen)),
            ("\u{1b}[2J", SharedMetricValue::Flag { set: true }),
            ("cron", SharedMetricValue::Leadership { leader: Some(7) }),
            ("tickets", SharedMetricValue::Number { value: 9 }),
            ("frame", SharedMetricValue::Bytes { len: 64, locked: 2, poisoned: 1 }),
        ];
        let all = all.map(|(name, value)| SharedMetric { value, ..SharedMetric::new(name) });
        let text = format_shared_metrics(&all);
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines[..3], ["SHARED        VALUE", "orders_total  12", "open          -1"]);
        assert_eq!(lines[3], "ms            4 observed, sum 30, p50 10, p99 20");
        assert!(lines[4].ends_with("  set") && !lines[4].contains('\u{1b}'), "{text}");
        assert_eq!(lines[5], "cron          led by pid 7");
        assert_eq!(lines[6], "tickets       9");
        assert_eq!(lines[7], "frame         64 bytes, 2 ranges locked, 1 poisoned");
        assert_eq!(format_shared_metrics(&[]), "");
    }
}
