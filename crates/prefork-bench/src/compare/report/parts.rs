//! Figures of the parts of a load: each kind of request, each tenth of a ramp, and what each fault has cost.

use super::{ServerWorkloadReport, WorkloadReport, format_latency};
use crate::compare::MeasurementSample;
use crate::load::{FaultImpact, RampStep, RequestKindReport};
use crate::report_format::statistics::median_min_max;
use crate::report_format::text_table::format_count;
use crate::scenario::{LoadRamp, format_percent};

/// A table of the parts of a load: its title, then rows, of which the first one has the titles of the columns.
pub(crate) struct PartTable {
    pub(crate) title: String,
    pub(crate) rows: Vec<Vec<String>>,
}

/// What grows or shrinks in a ramp: its name, and how much of it there is in the middle of each tenth.
pub(crate) struct RampAxis {
    pub(crate) name: &'static str,
    pub(crate) labels: Vec<String>,
}

/// Returns the tables of the parts of a workload; none if it has one kind of request, no ramp and no faults.
pub(crate) fn part_tables(workload: &WorkloadReport) -> Vec<PartTable> {
    let kinds = kind_table(workload);
    let steps = ramp_axis(workload).into_iter().flat_map(|axis| {
        let table = |name: &str, value: fn(&RampStep) -> f64, format: fn(f64) -> String| {
            let titles = std::iter::once(axis.name.to_string()).chain(axis.labels.iter().cloned());
            let rows = measured_servers(workload).map(|server| {
                let cells = ramp_values(server, value).into_iter().map(format);
                std::iter::once(server.server.clone()).chain(cells).collect()
            });
            let rows = std::iter::once(titles.collect()).chain(rows).collect();
            PartTable { title: format!("{name} in each tenth of the ramp"), rows }
        };
        [
            table("p99 latency of the responses", |step| step.p99, format_latency),
            table("requests/s", |step| step.per_second, format_count),
        ]
    });
    kinds.into_iter().chain(steps).chain(fault_table(workload)).collect()
}

/// Returns what each fault has cost each server, in all rounds together.
fn fault_table(workload: &WorkloadReport) -> Option<PartTable> {
    let titles = ["FAULT", "SERVER", "TIMES", "REFUSED", "LOST", "LATE"].map(str::to_string);
    let mut rows = vec![titles.to_vec()];
    let mut names: Vec<&str> = Vec::new();
    for fault in all_samples(workload).flat_map(|sample| &sample.faults) {
        if !names.contains(&fault.fault.as_str()) {
            names.push(&fault.fault);
        }
    }
    for name in &names {
        let shown = if *name == "none" { "not explained" } else { name };
        for server in measured_servers(workload) {
            let of_fault = || server.samples.iter().flat_map(|sample| &sample.faults);
            let of_fault = || of_fault().filter(|fault| fault.fault == *name);
            let sum = |count: fn(&FaultImpact) -> u64| of_fault().map(count).sum::<u64>();
            let is_of_one_kind = of_fault().next().is_some_and(FaultImpact::is_of_one_kind);
            let times = sum(|fault| fault.count);
            let effects =
                [sum(|fault| fault.refused), sum(|fault| fault.lost), sum(|fault| fault.late)];
            if times + effects.iter().sum::<u64>() == 0 {
                continue;
            }
            let times = if is_of_one_kind { times.to_string() } else { "-".to_string() };
            let mut row = vec![shown.to_string(), server.server.clone(), times];
            row.extend(effects.map(|count| format_count(count as f64)));
            rows.push(row);
        }
    }
    let title = "requests that the faults affected, in all rounds".to_string();
    (!names.is_empty()).then_some(PartTable { title, rows })
}

/// Says how many requests each fault has cost a server, such as ` (kill 3, kill or reload 1)`; empty without faults.
pub(crate) fn fault_losses(server: &ServerWorkloadReport) -> String {
    let mut losses: Vec<(&str, u64)> = Vec::new();
    for fault in server.samples.iter().flat_map(|sample| &sample.faults) {
        let lost = fault.refused + fault.lost;
        match losses.iter_mut().find(|(name, _)| *name == fault.fault) {
            Some((_, sum)) => *sum += lost,
            None => losses.push((&fault.fault, lost)),
        }
    }
    let losses = losses.iter().filter(|(_, lost)| *lost > 0).map(|(name, lost)| match *name {
        "none" => format!("not explained by a fault {lost}"),
        name => format!("{name} {lost}"),
    });
    let losses = losses.collect::<Vec<_>>().join(", ");
    if losses.is_empty() { losses } else { format!(" ({losses})") }
}

fn kind_table(workload: &WorkloadReport) -> Option<PartTable> {
    let names = kind_names(workload);
    let row = |kind: usize, server: &ServerWorkloadReport| {
        let median = |value| kind_median(server, kind, value);
        let failed: u64 =
            server.samples.iter().filter_map(|s| s.request_kinds.get(kind)).map(|k| k.errors).sum();
        vec![
            names[kind].to_string(),
            server.server.clone(),
            format_count(median(|kind| kind.per_second)),
            format_latency(median(|kind| kind.p50)),
            format_latency(median(|kind| kind.p99)),
            format_count(failed as f64),
        ]
    };
    let titles = ["REQUEST", "SERVER", "REQ/S", "P50", "P99", "FAILED"].map(str::to_string);
    let mut rows = vec![titles.to_vec()];
    for kind in 0..names.len() {
        rows.extend(measured_servers(workload).map(|server| row(kind, server)));
    }
    (!names.is_empty()).then(|| PartTable {
        title: "each kind of request, with the latency of its responses".to_string(),
        rows,
    })
}

fn measured_servers(workload: &WorkloadReport) -> impl Iterator<Item = &ServerWorkloadReport> {
    workload.servers.iter().filter(|server| !server.samples.is_empty())
}

fn all_samples(workload: &WorkloadReport) -> impl Iterator<Item = &MeasurementSample> {
    workload.servers.iter().flat_map(|server| &server.samples)
}

/// Returns the names of the kinds of requests; none if there is one kind.
pub(crate) fn kind_names(workload: &WorkloadReport) -> Vec<&str> {
    let kinds = all_samples(workload).map(|sample| &sample.request_kinds);
    let kinds = kinds.max_by_key(|kinds| kinds.len());
    kinds.into_iter().flatten().map(|kind| kind.name.as_str()).collect()
}

/// Returns the median over the rounds of a figure of one kind of request.
pub(crate) fn kind_median(
    server: &ServerWorkloadReport,
    kind: usize,
    value: fn(&RequestKindReport) -> f64,
) -> f64 {
    let kinds = server.samples.iter().filter_map(|sample| sample.request_kinds.get(kind));
    median_min_max(&kinds.map(value).collect::<Vec<_>>())[0]
}

/// Returns what grows or shrinks in the ramp of a workload; `None` without a ramp.
pub(crate) fn ramp_axis(workload: &WorkloadReport) -> Option<RampAxis> {
    let steps = &all_samples(workload).find(|sample| !sample.ramp.is_empty())?.ramp;
    let ramp = workload.workload.ramp()?;
    let middle = |from: f64, to: f64, step: usize| {
        from + (to - from) * (step as f64 + 0.5) / steps.len() as f64
    };
    let label = |(at, step): (usize, &RampStep)| match ramp {
        // Labels are short: no decimals.
        LoadRamp::PartOfCapacity { from, to } => {
            format_percent((middle(from, to, at) * 100.0).round() / 100.0)
        }
        LoadRamp::Rate => step.rate.map_or(String::new(), format_count),
        LoadRamp::Connections => format_count(step.connections as f64),
    };
    Some(RampAxis {
        name: match ramp {
            LoadRamp::PartOfCapacity { .. } => "part of the capacity that is due",
            LoadRamp::Rate => "requests due per second",
            LoadRamp::Connections => "connections",
        },
        labels: steps.iter().enumerate().map(label).collect(),
    })
}

/// Returns the median over the rounds of a figure in each tenth of the ramp.
pub(crate) fn ramp_values(server: &ServerWorkloadReport, value: fn(&RampStep) -> f64) -> Vec<f64> {
    let steps = server.samples.iter().map(|sample| sample.ramp.len()).max().unwrap_or(0);
    let median = |step: usize| {
        let values = server.samples.iter().filter_map(|sample| sample.ramp.get(step)).map(value);
        median_min_max(&values.collect::<Vec<_>>())[0]
    };
    (0..steps).map(median).collect()
}
