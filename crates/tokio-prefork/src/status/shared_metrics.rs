//! Limits how many numbers of shared metrics a status lists, and how large they are.

use super::MAX_JSON_INTEGER;
use crate::shared::{HistogramSnapshot, SharedMetric, SharedMetricValue};

/// How many numbers are listed, in the order of the declarations; later metrics are left out.
const MAX_LISTED_NUMBERS: usize = 1 << 14;

/// Returns the first metrics, as many as fit into the limit on numbers.
pub(super) fn limit_shared_metrics(all: Vec<SharedMetric>) -> Vec<SharedMetric> {
    let mut room = MAX_LISTED_NUMBERS;
    let fits = |metric: &SharedMetric| {
        let numbers = match &metric.value {
            SharedMetricValue::Histogram(seen) => 1 + seen.bounds.len() + seen.counts.len(),
            _ => 1,
        };
        room = room.saturating_sub(numbers);
        room > 0
    };
    all.into_iter().take_while(fits).map(limit_metric_values).collect()
}

/// Cuts the values of a metric to whole numbers that every JSON reader keeps exactly.
fn limit_metric_values(mut metric: SharedMetric) -> SharedMetric {
    match &mut metric.value {
        SharedMetricValue::Counter { value } | SharedMetricValue::Number { value } => {
            *value = (*value).min(MAX_JSON_INTEGER);
        }
        SharedMetricValue::Gauge { value } => {
            *value =
                (*value).clamp(-MAX_JSON_INTEGER.cast_signed(), MAX_JSON_INTEGER.cast_signed());
        }
        SharedMetricValue::Histogram(seen) => {
            let HistogramSnapshot { bounds, counts, sum } = seen;
            bounds
                .iter_mut()
                .chain(counts)
                .chain([sum])
                .for_each(|n| *n = (*n).min(MAX_JSON_INTEGER));
        }
        SharedMetricValue::Flag { .. }
        | SharedMetricValue::Bytes { .. }
        | SharedMetricValue::Leadership { .. }
        | SharedMetricValue::Unknown => {}
    }
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_metric(value: SharedMetricValue) -> SharedMetric {
        SharedMetric { value, ..SharedMetric::new("a") }
    }

    #[test]
    fn values_and_their_number_are_bounded() {
        let many = vec![
            sample_metric(SharedMetricValue::Counter { value: u64::MAX });
            2 * MAX_LISTED_NUMBERS
        ];
        let listed = limit_shared_metrics(many);
        assert!(listed.len() < MAX_LISTED_NUMBERS);
        assert_eq!(listed[0].value, SharedMetricValue::Counter { value: MAX_JSON_INTEGER });
        let least =
            limit_metric_values(sample_metric(SharedMetricValue::Gauge { value: i64::MIN }));
        assert_eq!(
            least.value,
            SharedMetricValue::Gauge { value: -MAX_JSON_INTEGER.cast_signed() }
        );
    }

    #[test]
    fn metrics_are_read_back_and_newer_kinds_are_unknown() {
        let bounds = vec![1, 10];
        let seen = HistogramSnapshot { bounds, counts: vec![3, 2, 1], sum: 40 };
        for value in [
            SharedMetricValue::Counter { value: 5 },
            SharedMetricValue::Gauge { value: -5 },
            SharedMetricValue::Histogram(seen),
            SharedMetricValue::Flag { set: true },
            SharedMetricValue::Number { value: 6 },
            SharedMetricValue::Bytes { len: 4096, locked: 2, poisoned: 1 },
            SharedMetricValue::Leadership { leader: Some(7) },
        ] {
            let json = serde_json::to_string(&sample_metric(value.clone())).expect("json");
            let read: SharedMetric = serde_json::from_str(&json).expect(&json);
            assert_eq!(read, sample_metric(value));
        }
        let newer = r#"{"name":"a","kind":"tree","height":3}"#;
        let read: SharedMetric = serde_json::from_str(newer).expect("read");
        assert_eq!(read.value, SharedMetricValue::Unknown);
    }
}
