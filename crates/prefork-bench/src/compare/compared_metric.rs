//! What servers are compared by: name, unit, direction and words of each metric.

use serde::{Deserialize, Serialize};

use crate::report_format::text_table::{
    compact_number, format_bytes, format_count, format_micros, format_tick_micros,
};

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
    /// WebSocket messages that came back per second.
    RoundTripsPerSecond,
    /// Growth of the memory (PSS) of the server for each idle connection.
    IdleMemory,
    /// The same, after a request on all connections at once.
    IdleMemoryAfterBurst,
    /// 99th percentile of the latency beside slow readers, divided by that alone.
    SlowReaderEffect,
    /// Time from the kill of a worker until a new one answers.
    TimeToServe,
    /// Requests lost for each kill or reload.
    RequestsLost,
    /// Longest time without a response during reloads.
    LongestGap,
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
    /// A ratio of two values.
    Ratio,
}

/// Properties of a metric.
#[derive(Debug, Clone, Copy)]
struct MetricDefinition {
    name: &'static str,
    /// Name of its field in a measurement of the JSON report.
    sample_field: &'static str,
    /// Title of its column in tables.
    column: &'static str,
    unit: MetricUnit,
    is_higher_better: bool,
    /// Whether a slower machine changes it.
    depends_on_speed: bool,
    /// Words for more of it, less of it, and a multiple of it.
    words: [&'static str; 3],
    /// Whether its name comes first in a sentence: "p99 latency 3 % longer", but "3 % more memory".
    is_name_first: bool,
}

impl MetricDefinition {
    /// Returns an amount of which less is better.
    fn amount(
        name: &'static str,
        sample_field: &'static str,
        column: &'static str,
        unit: MetricUnit,
    ) -> MetricDefinition {
        MetricDefinition {
            name,
            sample_field,
            column,
            unit,
            is_higher_better: false,
            depends_on_speed: true,
            words: ["more", "less", "as much"],
            is_name_first: false,
        }
    }

    /// Returns an amount of memory, which the speed of the machine does not change.
    fn memory(
        name: &'static str,
        sample_field: &'static str,
        column: &'static str,
        unit: MetricUnit,
    ) -> MetricDefinition {
        let depends_on_speed = false;
        MetricDefinition { depends_on_speed, ..Self::amount(name, sample_field, column, unit) }
    }

    /// Returns a duration in microseconds.
    fn duration(
        name: &'static str,
        sample_field: &'static str,
        column: &'static str,
    ) -> MetricDefinition {
        MetricDefinition {
            words: ["longer", "shorter", "as long"],
            is_name_first: true,
            ..Self::amount(name, sample_field, column, MetricUnit::Micros)
        }
    }

    /// Returns a number per second, of which more is better.
    fn rate(name: &'static str, column: &'static str) -> MetricDefinition {
        MetricDefinition {
            is_higher_better: true,
            words: ["more", "fewer", "as many"],
            ..Self::amount(name, "per_second", column, MetricUnit::PerSecond)
        }
    }
}

impl ComparedMetric {
    fn definition(self) -> MetricDefinition {
        use MetricDefinition as Metric;
        use MetricUnit::{Bytes, Count, Mebibytes, Micros, Ratio};
        match self {
            ComparedMetric::RequestsPerSecond => Metric::rate("requests/s", ""),
            ComparedMetric::P99Latency => Metric::duration("p99 latency", "p99", "P99"),
            ComparedMetric::CpuPerRequest => {
                Metric::amount("CPU per request", "cpu_us", "CPU", Micros)
            }
            ComparedMetric::Memory => Metric::memory("memory", "memory_mib", "PSS", Mebibytes),
            ComparedMetric::RoundTripsPerSecond => Metric::rate("round trips/s", "TRIPS/S"),
            ComparedMetric::IdleMemory => {
                Metric::memory("memory per idle connection", "idle_bytes", "IDLE", Bytes)
            }
            ComparedMetric::IdleMemoryAfterBurst => Metric::memory(
                "memory per idle connection after a burst",
                "idle_bytes_after_burst",
                "AFTER BURST",
                Bytes,
            ),
            ComparedMetric::SlowReaderEffect => Metric::amount(
                "growth of p99 beside slow readers",
                "p99_beside_to_alone",
                "P99 GROWTH",
                Ratio,
            ),
            ComparedMetric::TimeToServe => {
                Metric::duration("time to serve after a kill", "time_to_serve_us", "SERVES AFTER")
            }
            ComparedMetric::RequestsLost => MetricDefinition {
                words: ["more", "fewer", "as many"],
                ..Metric::amount("requests lost", "requests_lost", "LOST", Count)
            },
            ComparedMetric::LongestGap => Metric::duration("longest gap", "longest_gap_us", "GAP"),
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

    /// Returns the title of its column in tables; empty for requests/s.
    pub(crate) fn column(self) -> &'static str {
        self.definition().column
    }

    /// Returns two values; servers are compared by their ratio.
    ///
    /// Two servers that both lose no request are equal, although 0 to 0 is no ratio.
    pub(crate) fn paired_values(self, own: f64, other: f64) -> (f64, f64) {
        match self == ComparedMetric::RequestsLost && own == 0.0 && other == 0.0 {
            true => (1.0, 1.0),
            false => (own, other),
        }
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
            // A mean number of lost requests.
            MetricUnit::Count if value.fract() != 0.0 && value < 100.0 => format!("{value:.1}"),
            MetricUnit::PerSecond | MetricUnit::Count => format_count(value),
            MetricUnit::Ratio => format!("{value:.2}"),
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
            MetricUnit::PerSecond | MetricUnit::Count | MetricUnit::Ratio => compact_number(value),
            MetricUnit::Micros => format_tick_micros(value),
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
