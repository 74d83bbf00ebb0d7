//! The two text formats of metrics, written by the crate `prometheus-client`.

use std::borrow::Cow;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::family::{CounterValue, Labels, MetricFamily, MetricUnit, Series};

/// A text format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextFormat {
    /// Prometheus, version 0.0.4.
    Prometheus,
    /// OpenMetrics, version 1.0.
    OpenMetrics,
}

impl TextFormat {
    /// Selects the format that an `Accept` header prefers. On a tie, the first one that it names.
    pub(super) fn from_accept(accept: &str) -> TextFormat {
        let mut best = (TextFormat::Prometheus, 0.0);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let format = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "application/openmetrics-text" => TextFormat::OpenMetrics,
                "text/plain" | "text/*" | "*/*" => TextFormat::Prometheus,
                _ => continue,
            };
            let quality = parts.find_map(|part| {
                let (name, value) = part.split_once('=')?;
                name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse().unwrap_or(0.0))
            });
            let quality: f64 = quality.unwrap_or(1.0);
            if quality > best.1 {
                best = (format, quality);
            }
        }
        best.0
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            TextFormat::Prometheus => prometheus_text::CONTENT_TYPE,
            TextFormat::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Writes metrics. Those without series are left out.
    pub(super) fn write(self, families: Vec<MetricFamily>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(FamilyCollector(families)));
        let mut body = String::new();
        let written = match self {
            TextFormat::Prometheus => prometheus_text::encode(&mut body, &registry),
            TextFormat::OpenMetrics => text::encode(&mut body, &registry),
        };
        debug_assert!(written.is_ok(), "writing to a string does not fail");
        body
    }
}

/// Gives metrics to the encoders.
#[derive(Debug)]
struct FamilyCollector(Vec<MetricFamily>);

impl Collector for FamilyCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        for family in self.0.iter().filter(|family| family.has_series()) {
            let unit = family.unit.map(|unit| match unit {
                MetricUnit::Seconds => Unit::Seconds,
                MetricUnit::Bytes => Unit::Bytes,
            });
            let kind = match family.series {
                Series::Counter(_) => MetricType::Counter,
                Series::Gauge(_) => MetricType::Gauge,
                Series::Histogram(_) => MetricType::Histogram,
                Series::Info(_) => MetricType::Info,
            };
            let help = one_line(&family.help);
            let metric = encoder.encode_descriptor(&family.name, &help, unit.as_ref(), kind)?;
            encode_series(metric, &family.series)?;
        }
        Ok(())
    }
}

fn encode_series(mut metric: MetricEncoder<'_>, series: &Series) -> std::fmt::Result {
    match series {
        Series::Counter(series) => {
            for (labels, value) in series {
                with_labels(&mut metric, labels, |metric| match value {
                    CounterValue::Whole(n) => metric.encode_counter::<NoLabelSet, _, f64>(n, None),
                    CounterValue::Fraction(n) => {
                        metric.encode_counter::<NoLabelSet, _, f64>(n, None)
                    }
                })?;
            }
        }
        Series::Gauge(series) => {
            for (labels, value) in series {
                with_labels(&mut metric, labels, |metric| metric.encode_gauge(value))?;
            }
        }
        Series::Histogram(series) => {
            for (labels, histogram) in series {
                let (sum, count) = (histogram.sum, histogram.count());
                with_labels(&mut metric, labels, |metric| {
                    metric.encode_histogram::<NoLabelSet>(sum, count, &histogram.buckets, None)
                })?;
            }
        }
        Series::Info(labels) => metric.encode_info(labels)?,
    }
    Ok(())
}

fn with_labels(
    metric: &mut MetricEncoder<'_>,
    labels: &Labels,
    encode: impl FnOnce(&mut MetricEncoder<'_>) -> std::fmt::Result,
) -> std::fmt::Result {
    match labels.is_empty() {
        true => encode(metric),
        false => encode(&mut metric.encode_family(labels)?),
    }
}

/// Returns a help text without what the formats would have to escape: the encoder of OpenMetrics escapes nothing.
fn one_line(help: &str) -> Cow<'_, str> {
    let needs_change = |c: char| c.is_control() || c == '\\' || c == '"';
    if !help.contains(needs_change) {
        return Cow::Borrowed(help);
    }
    let plain = help.chars().map(|c| match c {
        '\\' => '/',
        '"' => '\'',
        c if c.is_control() => ' ',
        c => c,
    });
    Cow::Owned(plain.collect())
}

#[cfg(test)]
mod tests {
    use super::super::family::{HistogramValue, label, labels};
    use super::*;

    #[test]
    fn the_format_is_the_one_that_the_client_prefers() {
        use TextFormat::{OpenMetrics, Prometheus};
        for (accept, format) in [
            ("", Prometheus),
            ("*/*", Prometheus),
            ("text/html", Prometheus),
            ("text/plain;version=0.0.4", Prometheus),
            ("application/openmetrics-text", OpenMetrics),
            ("application/openmetrics-text; version=1.0.0; charset=utf-8", OpenMetrics),
            (
                "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.3,*/*;q=0.2",
                OpenMetrics,
            ),
            ("application/openmetrics-text;q=0.3,text/plain;version=0.0.4;q=0.6", Prometheus),
            ("Application/OpenMetrics-Text ; Q=1 , text/plain;q=0.9", OpenMetrics),
            ("application/openmetrics-text;q=0", Prometheus),
            ("application/openmetrics-text;q=x,,;;", Prometheus),
        ] {
            assert_eq!(TextFormat::from_accept(accept), format, "{accept}");
        }
    }

    fn sample_families() -> Vec<MetricFamily> {
        let histogram = HistogramValue { buckets: vec![(0.5, 2), (f64::INFINITY, 1)], sum: 1.25 };
        vec![
            MetricFamily::counters(
                "jobs",
                "Jobs\nthat \"ran\".",
                vec![(labels([("queue", "a\"b\\c\nd")]), 5)],
            ),
            MetricFamily::gauge("memory", "Memory.", 1.5).in_unit(MetricUnit::Bytes),
            MetricFamily::durations("took", "Time.", vec![(label("slot", "0"), histogram)]),
            MetricFamily::new("build", "Build.", Series::Info(label("version", "1"))),
            MetricFamily::counters("none", "Has no series.", vec![]),
        ]
    }

    #[test]
    fn the_format_of_prometheus_is_written() {
        assert_eq!(
            TextFormat::Prometheus.write(sample_families()),
            r#"# HELP jobs_total Jobs that 'ran'.
# TYPE jobs_total counter
jobs_total{queue="a\"b\\c\nd"} 5
# HELP memory_bytes Memory.
# TYPE memory_bytes gauge
memory_bytes 1.5
# HELP took_seconds Time.
# TYPE took_seconds histogram
took_seconds_bucket{slot="0",le="0.5"} 2
took_seconds_bucket{slot="0",le="+Inf"} 3
took_seconds_sum{slot="0"} 1.25
took_seconds_count{slot="0"} 3
# HELP build_info Build.
# TYPE build_info gauge
build_info{version="1"} 1
"#
        );
    }

    #[test]
    fn the_format_of_openmetrics_is_written() {
        let text = TextFormat::OpenMetrics.write(sample_families());
        for line in [
            "# TYPE jobs counter\njobs_total{queue=\"a\\\"b\\\\c\\nd\"} 5\n",
            "# TYPE memory_bytes gauge\n# UNIT memory_bytes bytes\nmemory_bytes 1.5\n",
            "took_seconds_count{slot=\"0\"} 3\n",
            "# TYPE build info\nbuild_info{version=\"1\"} 1\n",
        ] {
            assert!(text.contains(line), "{line}\nis not in\n{text}");
        }
        assert!(text.ends_with("\n# EOF\n") && !text.contains("none"));
    }
}
