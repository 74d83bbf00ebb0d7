//! The table of what the application shares: counters, gauges, histograms and so on.

use super::format::format_rate;
use super::rates::Rates;
use super::sample::Sample;
use super::table::{Cell, Column, Row, Table, Tone};
use crate::commands::control::shared_metrics_table::format_metric_value;
use tokio_prefork::shared::SharedMetricValue;
use tokio_prefork::text::printable;

/// Returns a row for each declared value, in the order of the declarations.
pub(super) fn shared_table(sample: &Sample, rates: &Rates) -> Table {
    let columns = vec![
        Column::text("NAME"),
        Column::text("TYPE").drop_order(2),
        Column::number("PER SECOND").drop_order(1),
        Column::text("VALUE"),
    ];
    let rows = sample.status.shared.iter().enumerate().map(|(index, metric)| {
        let rate = rates.shared.get(&metric.name).copied();
        let text = format_metric_value(&metric.value);
        let value = match &metric.value {
            SharedMetricValue::Counter { value } | SharedMetricValue::Number { value } => {
                Cell::number(Some(*value as f64), text)
            }
            SharedMetricValue::Gauge { value } => Cell::number(Some(*value as f64), text),
            _ => Cell::text(printable(&text)),
        };
        let cells = vec![
            Cell::text(printable(&metric.name)),
            Cell::text(type_name(&metric.value)),
            Cell::number(rate, format_rate(rate)),
            value,
        ];
        Row { key: index as u64, cells, tone: Tone::Normal }
    });
    Table { columns, rows: rows.collect() }
}

fn type_name(value: &SharedMetricValue) -> &'static str {
    match value {
        SharedMetricValue::Counter { .. } => "counter",
        SharedMetricValue::Gauge { .. } => "gauge",
        SharedMetricValue::Histogram(_) => "histogram",
        SharedMetricValue::Flag { .. } => "flag",
        SharedMetricValue::Number { .. } => "number",
        SharedMetricValue::Bytes { .. } => "bytes",
        SharedMetricValue::Leadership { .. } => "leadership",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::sample;
    use super::*;

    #[test]
    fn counters_have_a_rate_and_each_value_its_type() {
        let mut rates = Rates::default();
        rates.shared.insert("orders_total".to_string(), 4.0);
        let sample = sample(|status| {
            let shared = r#"[{"name":"orders_total","kind":"counter","value":12},
                {"name":"open","kind":"gauge","value":-1},{"name":"cron","kind":"role","leader":7}]"#;
            status.shared = serde_json::from_str(shared).expect("metrics");
        });
        let table = shared_table(&sample, &rates);
        let rows: Vec<Vec<&str>> = table
            .rows
            .iter()
            .map(|row| row.cells.iter().map(|cell| cell.text.as_str()).collect())
            .collect();
        assert_eq!(rows[0], ["orders_total", "counter", "4.0", "12"]);
        assert_eq!(rows[1], ["open", "gauge", "-", "-1"]);
        assert_eq!(rows[2], ["cron", "leadership", "-", "led by pid 7"]);
    }
}
