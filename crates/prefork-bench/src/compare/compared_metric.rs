//! What servers are compared by: name, unit, direction and words of each metric.

use serde::{Deserialize, Serialize};

use crate::report_format::text_table::{compact_number, format_bytes, format_count, format_micros};

/// What servers are compared by. A new metric is one more variant, with its row in `definition`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComparedMetric {
    /// Responses per second.
    RequestsPerSecond,
    /// 99th percentile of the latency of the measured requests.
    P99Latency,
    /// CPU time of the server per request.
    CpuPerRequest,
    /// Memory (PSS) of all processes of the server.
    Memory,
}

/// Unit of the values of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MetricUnit {
    /// A number per second.
    PerSecond,
    /// Microseconds.
    Micros,
    /// Bytes.
    Bytes,
    /// MiB.
    Mebibytes,
    /// A number.
    Count,
}

/// Properties of a metric.
#[derive(Debug, Clone, Copy)]
struct MetricDefinition {
    name: &'static str,
    /// Name of its field in a measurement of the JSON report.
    sample_field: &'static str,
    unit: MetricUnit,
    is_higher_better: bool,
    /// Whether a slower machine changes it.
    depends_on_speed: bool,
    /// Words for more of it, less of it, and a multiple of it.
    words: [&'static str; 3],
    /// Whether its name comes first in a sentence: "p99 latency 3 % longer", but "3 % more memory".
    is_name_first: bool,
}

impl ComparedMetric {
    fn definition(self) -> MetricDefinition {
        let amount = MetricDefinition {
            name: "",
            sample_field: "",
            unit: MetricUnit::Count,
            is_higher_better: false,
            depends_on_speed: true,
            words: ["more", "less", "as much"],
            is_name_first: false,
        };
        match self {
            ComparedMetric::RequestsPerSecond => MetricDefinition {
                name: "requests/s",
                sample_field: "per_second",
                unit: MetricUnit::PerSecond,
                is_higher_better: true,
                words: ["more", "fewer", "as many"],
                ..amount
            },
            ComparedMetric::P99Latency => MetricDefinition {
                name: "p99 latency",
                sample_field: "p99",
                unit: MetricUnit::Micros,
                words: ["longer", "shorter", "as long"],
                is_name_first: true,
                ..amount
            },
            ComparedMetric::CpuPerRequest => MetricDefinition {
                name: "CPU per request",
                sample_field: "cpu_us",
                unit: MetricUnit::Micros,
                ..amount
            },
            ComparedMetric::Memory => MetricDefinition {
                name: "memory",
                sample_field: "memory_mib",
                unit: MetricUnit::Mebibytes,
                depends_on_speed: false,
                ..amount
            },
        }
    }

    /// Returns the name in reports.
    pub fn name(self) -> &'static str {
        self.definition().name
    }

    /// Returns the name of its field in a measurement of the JSON report.
    pub(crate) fn sample_field(self) -> &'static str {
        self.definition().sample_field
    }

    /// Returns the unit of its values.
    pub fn unit(self) -> MetricUnit {
        self.definition().unit
    }

    /// Returns whether a higher value is better.
    pub fn is_higher_better(self) -> bool {
        self.definition().is_higher_better
    }

    /// Returns whether a slower machine changes it, as it does not change memory.
    pub fn depends_on_speed(self) -> bool {
        self.definition().depends_on_speed
    }

    /// Returns `higher is better` or `lower is better`.
    pub(crate) fn direction(self) -> &'static str {
        if self.is_higher_better() { "higher is better" } else { "lower is better" }
    }

    /// Returns whether a server with this ratio to another is better than it.
    pub(crate) fn is_better(self, ratio: f64) -> bool {
        if self.is_higher_better() { ratio > 1.0 } else { ratio < 1.0 }
    }

    /// Returns the words for more of it, less of it, and a multiple of it.
    pub(super) fn words(self) -> [&'static str; 3] {
        self.definition().words
    }

    /// Returns whether its name comes first in a sentence.
    pub(super) fn is_name_first(self) -> bool {
        self.definition().is_name_first
    }

    /// Formats a value with its unit, such as `10 573` or `1.50 ms`.
    pub(crate) fn format_value(self, value: f64) -> String {
        match self.unit() {
            MetricUnit::PerSecond | MetricUnit::Count => format_count(value),
            // The CPU time of a small request is a few microseconds.
            MetricUnit::Micros if value < 100.0 => format!("{value:.1} us"),
            MetricUnit::Micros => format_micros(value),
            MetricUnit::Bytes => format_bytes(value),
            MetricUnit::Mebibytes => format!("{value:.1} MiB"),
        }
    }

    /// Formats a value for an axis.
    pub(crate) fn format_tick(self, value: f64) -> String {
        match self.unit() {
            MetricUnit::PerSecond | MetricUnit::Count => compact_number(value),
            MetricUnit::Micros => format_micros(value),
            MetricUnit::Bytes => format_bytes(value),
            MetricUnit::Mebibytes => format!("{value} MiB"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_units_and_metrics_a_direction() {
        let shown = [
            ComparedMetric::RequestsPerSecond.format_value(10_573.4),
            ComparedMetric::P99Latency.format_value(1500.0),
            ComparedMetric::CpuPerRequest.format_value(9.46),
            ComparedMetric::Memory.format_value(6.04),
        ];
        assert_eq!(shown, ["10 573", "1.50 ms", "9.5 us", "6.0 MiB"]);
        assert_eq!(ComparedMetric::RequestsPerSecond.direction(), "higher is better");
        assert_eq!(ComparedMetric::Memory.direction(), "lower is better");
        assert!(!ComparedMetric::Memory.depends_on_speed());
    }
}
