//! The part of `Status` about what the application shares: bounded, whatever was written into it.

use super::LARGEST;
use crate::shared::{HistogramSnapshot, SharedMetric, SharedMetricValue};

/// So many numbers are listed, in the order of the declarations; what is declared after them is left out.
const NUMBERS: usize = 1 << 14;

pub(super) fn listed(all: Vec<SharedMetric>) -> Vec<SharedMetric> {
    let mut room = NUMBERS;
    let fits = |metric: &SharedMetric| {
        let numbers = match &metric.value {
            SharedMetricValue::Histogram(seen) => 1 + seen.bounds.len() + seen.counts.len(),
            _ => 1,
        };
        room = room.saturating_sub(numbers);
        room > 0
    };
    all.into_iter().take_while(fits).map(clipped).collect()
}

/// With figures that every JSON reader keeps exactly. A figure beyond them is garbage anyway.
fn clipped(mut metric: SharedMetric) -> SharedMetric {
    match &mut metric.value {
        SharedMetricValue::Counter { value } => *value = (*value).min(LARGEST),
        SharedMetricValue::Gauge { value } => {
            *value = (*value).clamp(-LARGEST.cast_signed(), LARGEST.cast_signed());
        }
        SharedMetricValue::Histogram(seen) => {
            let HistogramSnapshot { bounds, counts, sum } = seen;
            bounds.iter_mut().chain(counts).chain([sum]).for_each(|n| *n = (*n).min(LARGEST));
        }
        SharedMetricValue::Flag { .. }
        | SharedMetricValue::Leadership { .. }
        | SharedMetricValue::Unknown => {}
    }
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(value: SharedMetricValue) -> SharedMetric {
        SharedMetric { name: "a".to_string(), value }
    }

    #[test]
    fn figures_and_their_number_are_bounded() {
        let many = vec![metric(SharedMetricValue::Counter { value: u64::MAX }); 2 * NUMBERS];
        let listed = listed(many);
        assert!(listed.len() < NUMBERS);
        assert_eq!(listed[0].value, SharedMetricValue::Counter { value: LARGEST });
        let least = clipped(metric(SharedMetricValue::Gauge { value: i64::MIN }));
        assert_eq!(least.value, SharedMetricValue::Gauge { value: -LARGEST.cast_signed() });
    }

    #[test]
    fn what_is_written_is_read_and_what_is_unknown_too() {
        let bounds = vec![1, 10];
        let seen = HistogramSnapshot { bounds, counts: vec![3, 2, 1], sum: 40 };
        for value in [
            SharedMetricValue::Counter { value: 5 },
            SharedMetricValue::Gauge { value: -5 },
            SharedMetricValue::Histogram(seen),
            SharedMetricValue::Flag { set: true },
            SharedMetricValue::Leadership { leader: Some(7) },
        ] {
            let json = serde_json::to_string(&metric(value.clone())).expect("json");
            let read: SharedMetric = serde_json::from_str(&json).expect(&json);
            assert_eq!(read, metric(value));
        }
        let newer = r#"{"name":"a","kind":"tree","height":3}"#;
        let read: SharedMetric = serde_json::from_str(newer).expect("read");
        assert_eq!(read.value, SharedMetricValue::Unknown);
    }
}
