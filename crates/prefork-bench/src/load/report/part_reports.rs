//! Parts of a load: each kind of request, and each tenth of a ramp.

use std::fmt::Write;

use serde::Serialize;

use super::nanos_to_micros;
use crate::load::counters::LoadCounters;
use crate::load::part_counters::{PartCounters, RAMP_STEPS};
use crate::load::plan::LoadPlan;
use crate::report_format::text_table::{format_count, format_micros, write_table};

/// Figures of one kind of request; times are microseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RequestKindReport {
    /// Name of the kind.
    pub name: String,
    /// Its weight.
    pub weight: u32,
    /// Responses to its requests due in the measurement.
    pub responses: u64,
    /// Its share of all responses, from 0 to 1.
    pub share: f64,
    /// Responses per second of the measurement.
    pub per_second: f64,
    /// Bytes of heads and bodies received per second.
    pub bytes_per_second: f64,
    /// Requests without a response, or with a status of 400 or more.
    pub errors: u64,
    /// Median latency.
    pub p50: f64,
    /// 99th percentile of the latency.
    pub p99: f64,
    /// Maximum.
    pub max: f64,
}

/// Figures of one tenth of a ramp; times are microseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RampStep {
    /// Begin of the step in seconds since the begin of the measurement.
    pub from_s: f64,
    /// End of the step in seconds since the begin of the measurement.
    pub until_s: f64,
    /// Requests due per second, as the mean of the step; `None` in a closed loop.
    pub rate: Option<f64>,
    /// Connections that have been opened at the end of the step.
    pub connections: usize,
    /// Responses to requests due in the step, per second.
    pub per_second: f64,
    /// Requests without a response, or with a status of 400 or more.
    pub errors: u64,
    /// Median latency.
    pub p50: f64,
    /// 99th percentile of the latency.
    pub p99: f64,
    /// Maximum.
    pub max: f64,
}

impl PartCounters {
    fn errors(&self) -> u64 {
        self.failures + self.error_statuses
    }

    /// Returns median, 99th percentile and maximum of the latency in microseconds.
    fn latencies(&self) -> [f64; 3] {
        let at = |quantile| nanos_to_micros(self.latency.value_at_quantile(quantile));
        [at(0.5), at(0.99), nanos_to_micros(self.latency.max())]
    }
}

/// Returns the figures of each kind of request; none if there is one kind.
pub(super) fn request_kind_reports(
    plan: &LoadPlan,
    counters: &LoadCounters,
    measured_s: f64,
) -> Vec<RequestKindReport> {
    let all: u64 = counters.kinds.iter().map(PartCounters::responses).sum();
    let report = |(request, kind): (&crate::load::WeightedRequest, &PartCounters)| {
        let [p50, p99, max] = kind.latencies();
        RequestKindReport {
            name: request.name.clone(),
            weight: request.weight,
            responses: kind.responses(),
            share: kind.responses() as f64 / all.max(1) as f64,
            per_second: kind.responses() as f64 / measured_s.max(1e-9),
            bytes_per_second: kind.bytes as f64 / measured_s.max(1e-9),
            errors: kind.errors(),
            p50,
            p99,
            max,
        }
    };
    plan.mix.iter().zip(&counters.kinds).map(report).collect()
}

/// Returns the figures of each tenth of a ramp; none without one.
pub(super) fn ramp_steps(plan: &LoadPlan, counters: &LoadCounters, rounds: usize) -> Vec<RampStep> {
    let length = plan.duration.as_secs_f64() / RAMP_STEPS as f64;
    let step = |(number, step): (usize, &PartCounters)| {
        let [p50, p99, max] = step.latencies();
        let middle = (number as f64 + 0.5) / RAMP_STEPS as f64;
        let until_s = (number + 1) as f64 * length;
        let mean =
            |from: u32, to: u32| f64::from(from) + (f64::from(to) - f64::from(from)) * middle;
        RampStep {
            from_s: number as f64 * length,
            until_s,
            rate: plan.rate.map(|from| mean(from, plan.rate_at_end.unwrap_or(from))),
            connections: opened_connections(plan, until_s),
            per_second: step.responses() as f64 / (length * rounds.max(1) as f64),
            errors: step.errors(),
            p50,
            p99,
            max,
        }
    };
    counters.ramp_steps.iter().enumerate().map(step).collect()
}

/// Returns how many connections have been opened after this time of the measurement.
fn opened_connections(plan: &LoadPlan, after_s: f64) -> usize {
    let ramp = plan.connection_ramp.as_secs_f64();
    if ramp == 0.0 {
        return plan.connections;
    }
    let opened = (after_s / ramp * (plan.connections - 1) as f64 + 1e-6) as usize + 1;
    opened.min(plan.connections)
}

/// Writes the table of the kinds of requests, if there are several.
pub(super) fn write_request_kinds(text: &mut String, kinds: &[RequestKindReport]) {
    if kinds.is_empty() {
        return;
    }
    let titles =
        ["REQUEST", "WEIGHT", "RESPONSES", "SHARE", "REQ/S", "ERRORS", "P50", "P99", "MAX"];
    let width = kinds.iter().map(|kind| kind.name.chars().count()).max().unwrap_or(0);
    let row = |kind: &RequestKindReport| {
        [
            // The first column is left-aligned.
            format!("{:width$}", kind.name),
            kind.weight.to_string(),
            format_count(kind.responses as f64),
            format!("{:.1} %", kind.share * 100.0),
            format_count(kind.per_second),
            format_count(kind.errors as f64),
            format_micros(kind.p50),
            format_micros(kind.p99),
            format_micros(kind.max),
        ]
    };
    let titles = titles.map(str::to_string);
    text.push('\n');
    write_table(text, &std::iter::once(titles).chain(kinds.iter().map(row)).collect::<Vec<_>>());
}

/// Writes the table of the steps of a ramp, if there is one.
pub(super) fn write_ramp(text: &mut String, steps: &[RampStep]) {
    if steps.is_empty() {
        return;
    }
    let titles =
        ["RAMP", "DUE/S", "CONN", "REQ/S", "ERRORS", "P50", "P99", "MAX"].map(str::to_string);
    let row = |step: &RampStep| {
        [
            format!("{:.1}-{:.1} s", step.from_s, step.until_s),
            step.rate.map_or("-".to_string(), format_count),
            step.connections.to_string(),
            format_count(step.per_second),
            format_count(step.errors as f64),
            format_micros(step.p50),
            format_micros(step.p99),
            format_micros(step.max),
        ]
    };
    text.push('\n');
    write_table(text, &std::iter::once(titles).chain(steps.iter().map(row)).collect::<Vec<_>>());
    // Writing to a string cannot fail.
    let _ = writeln!(text, "requests count in the step in which they were due");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::TargetUrl;
    use std::time::Duration;

    #[test]
    fn a_ramp_has_ten_steps_with_their_rates_and_connections() {
        let mut plan = LoadPlan::new(TargetUrl::parse("http://h/").expect("url"));
        (plan.connections, plan.connection_ramp) = (101, Duration::from_secs(10));
        let counters =
            LoadCounters { ramp_steps: PartCounters::list(RAMP_STEPS), ..LoadCounters::new() };
        let connections = |plan: &LoadPlan| -> Vec<usize> {
            ramp_steps(plan, &counters, 1).iter().map(|step| step.connections).collect()
        };
        assert_eq!(connections(&plan), [11, 21, 31, 41, 51, 61, 71, 81, 91, 101]);
        plan.connection_ramp = Duration::from_secs(5);
        assert_eq!(connections(&plan)[4..], [101; 6]);
        (plan.connection_ramp, plan.rate, plan.rate_at_end) =
            (Duration::ZERO, Some(100), Some(200));
        let steps = ramp_steps(&plan, &counters, 1);
        assert_eq!((steps[0].rate, steps[9].rate), (Some(105.0), Some(195.0)));
        assert_eq!((steps[9].from_s, steps[9].until_s), (9.0, 10.0));
    }

    #[test]
    fn kinds_are_counted_apart() {
        let mut plan = LoadPlan::new(TargetUrl::parse("http://h/").expect("url"));
        let kind = |name: &str, weight| crate::load::WeightedRequest {
            name: name.to_string(),
            weight,
            request_target: "/".to_string(),
            method: "GET".to_string(),
            headers: Vec::new(),
            body: None,
        };
        plan.mix = vec![kind("small", 3), kind("large", 1)];
        let mut counters = LoadCounters { kinds: PartCounters::list(2), ..LoadCounters::new() };
        for (kind, status) in [(0, 200), (0, 200), (0, 404), (1, 200)] {
            counters.parts(kind, 0).for_each(|part| part.record_response(status, 1_000_000, 100));
        }
        counters.parts(1, 0).for_each(|part| part.failures += 1);
        let reports = request_kind_reports(&plan, &counters, 2.0);
        assert_eq!((reports[0].responses, reports[0].errors, reports[0].share), (3, 1, 0.75));
        assert_eq!((reports[1].responses, reports[1].errors, reports[1].per_second), (1, 1, 0.5));
        assert_eq!(reports[0].bytes_per_second, 150.0);
        let mut text = String::new();
        write_request_kinds(&mut text, &reports);
        assert!(text.contains("small") && text.contains("75.0 %"), "{text}");
    }
}
