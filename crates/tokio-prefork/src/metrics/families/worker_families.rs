//! The metrics of the workers, by kind and slot. A worker's id and pid are no labels: each would begin new series.

use std::collections::BTreeMap;

use super::super::family::{Labels, MetricFamily, MetricUnit, labels};
use super::seconds_counter;
use crate::status::{ClusterStatus, WorkerState, WorkerStatus};
use prefork_supervisor::WEB_KIND;

/// The states that are exposed even if no worker is in them.
const STATES: [WorkerState; 5] = [
    WorkerState::Booting,
    WorkerState::Serving,
    WorkerState::CannotAccept,
    WorkerState::Draining,
    WorkerState::Killed,
];

/// The figures of all workers of a slot: while one is replaced, there are two.
#[derive(Debug, Default)]
struct SlotFigures {
    heartbeat_age_ms: u64,
    active_requests: u64,
    connections: u64,
    parked_connections: u64,
    rss_bytes: Option<u64>,
    open_fds: Option<u64>,
    /// Processes and queued connections of a foreign program.
    program: Option<(u64, u64)>,
}

pub(super) fn families_of(status: &ClusterStatus) -> Vec<MetricFamily> {
    let mut all = vec![workers_by_state(status), workers_wanted(status)];
    let slots = figures_by_slot(&status.workers);
    all.extend(slot_families(&slots));
    match status.primary.program {
        None => all.extend(request_families(&slots)),
        Some(_) => all.extend(program_families(&slots)),
    }
    all.push(MetricFamily::counter(
        "prefork_worker_restarts",
        "Workers that replaced one that exited unexpectedly.",
        status.primary.restarts,
    ));
    if status.primary.program.is_none() {
        // That of foreign programs is not in it: a guard has its own CPU time.
        all.push(seconds_counter(
            "prefork_worker_cpu",
            "CPU time of all workers, living and dead, as of their last heartbeats.",
            status.kept.cpu_us,
        ));
    }
    all
}

fn workers_by_state(status: &ClusterStatus) -> MetricFamily {
    let mut counts: BTreeMap<(&str, &'static str), u32> = BTreeMap::new();
    let other_kinds = status.primary.kinds.iter().map(|kind| kind.name.as_str());
    for kind in other_kinds.chain([WEB_KIND]) {
        counts.extend(STATES.iter().map(|state| ((kind, state.as_str()), 0)));
    }
    for worker in &status.workers {
        *counts.entry((worker.kind.as_str(), worker.state.as_str())).or_default() += 1;
    }
    let series = counts.into_iter().map(|((kind, state), count)| {
        (labels([("kind", kind), ("state", state)]), f64::from(count))
    });
    MetricFamily::gauges("prefork_workers", "Workers by kind and state.", series.collect())
}

fn workers_wanted(status: &ClusterStatus) -> MetricFamily {
    let web = (WEB_KIND, status.primary.workers_wanted);
    let kinds = status.primary.kinds.iter();
    let wanted = kinds.map(|kind| (kind.name.as_str(), kind.workers_wanted)).chain([web]);
    let series = wanted.map(|(kind, wanted)| (labels([("kind", kind)]), f64::from(wanted)));
    let help = "How many workers there should be, by kind.";
    MetricFamily::gauges("prefork_workers_wanted", help, series.collect())
}

fn figures_by_slot(workers: &[WorkerStatus]) -> BTreeMap<(&str, u32), SlotFigures> {
    let mut slots: BTreeMap<(&str, u32), SlotFigures> = BTreeMap::new();
    for worker in workers {
        let number = worker.slot.0 - worker.slot.first_slot_of_kind().0;
        let slot = slots.entry((worker.kind.as_str(), number)).or_default();
        let age_ms = worker.heartbeat_age_ms.unwrap_or(0);
        slot.heartbeat_age_ms = slot.heartbeat_age_ms.max(age_ms);
        slot.active_requests += worker.active;
        slot.connections += worker.connections;
        slot.parked_connections += worker.parked;
        if let Some(program) = worker.program {
            let (processes, queued) = slot.program.unwrap_or_default();
            slot.program = Some((processes + program.processes, queued + program.queued));
        }
        for (sum, more) in
            [(&mut slot.rss_bytes, worker.rss_bytes), (&mut slot.open_fds, worker.open_fds)]
        {
            *sum = more.map_or(*sum, |more| Some(sum.unwrap_or(0).saturating_add(more)));
        }
    }
    slots
}

type FiguresBySlot<'a> = BTreeMap<(&'a str, u32), SlotFigures>;

/// Returns the values of a figure with the labels of their slots. Slots without it are left out.
fn by_slot(
    slots: &FiguresBySlot<'_>,
    figure: impl Fn(&SlotFigures) -> Option<f64>,
) -> Vec<(Labels, f64)> {
    let slots = slots.iter().filter_map(|(slot, figures)| Some((slot, figure(figures)?)));
    slots.map(|((kind, slot), figure)| (slot_labels(kind, *slot), figure)).collect()
}

/// Returns what is known only of workers that serve HTTP themselves.
fn request_families(slots: &FiguresBySlot<'_>) -> [MetricFamily; 3] {
    [
        connections_by_state(slots),
        MetricFamily::gauges(
            "prefork_connections_parked",
            "Idle connections that are reduced to their sockets, by slot.",
            by_slot(slots, |slot| Some(slot.parked_connections as f64)),
        ),
        MetricFamily::gauges(
            "prefork_http_requests_running",
            "Requests in progress, by slot.",
            by_slot(slots, |slot| Some(slot.active_requests as f64)),
        ),
    ]
}

/// Returns what the kernel shows of foreign programs.
fn program_families(slots: &FiguresBySlot<'_>) -> [MetricFamily; 3] {
    let figure = |figure: fn((u64, u64)) -> u64| {
        by_slot(slots, |slot| slot.program.map(|program| figure(program) as f64))
    };
    [
        MetricFamily::gauges(
            "prefork_program_connections",
            "Open connections of the programs, by slot.",
            by_slot(slots, |slot| slot.program.map(|_| slot.connections as f64)),
        ),
        MetricFamily::gauges(
            "prefork_program_processes",
            "Processes of the programs, by slot: each with all that it has started.",
            figure(|program| program.0),
        ),
        MetricFamily::gauges(
            "prefork_program_queued_connections",
            "Connections in the accept queues of the programs' own sockets, by slot.",
            figure(|program| program.1),
        ),
    ]
}

fn slot_families(slots: &FiguresBySlot<'_>) -> Vec<MetricFamily> {
    let by_slot = |figure: &dyn Fn(&SlotFigures) -> Option<f64>| by_slot(slots, figure);
    vec![
        MetricFamily::gauges(
            "prefork_worker_heartbeat_age",
            "How long ago the event loop last ran, by slot: 0.1 s or less unless it is blocked or starved.",
            by_slot(&|slot| Some(slot.heartbeat_age_ms as f64 / 1000.0)),
        )
        .in_unit(MetricUnit::Seconds),
        MetricFamily::gauges(
            "prefork_worker_resident_memory",
            "Resident memory of the worker processes, by slot. Pages that workers share count in each.",
            by_slot(&|slot| slot.rss_bytes.map(|bytes| bytes as f64)),
        )
        .in_unit(MetricUnit::Bytes),
        MetricFamily::gauges(
            "prefork_worker_open_fds",
            "Open file descriptors of the worker processes, by slot.",
            by_slot(&|slot| slot.open_fds.map(|fds| fds as f64)),
        ),
    ]
}

fn connections_by_state(slots: &BTreeMap<(&str, u32), SlotFigures>) -> MetricFamily {
    let web = slots.iter().filter(|((kind, _), _)| *kind == WEB_KIND);
    let series = web.flat_map(|((_, slot), figures)| {
        // A connection of HTTP/2 can have several requests.
        let active = figures.active_requests.min(figures.connections);
        let slot = slot.to_string();
        [("active", active), ("idle", figures.connections - active)].map(|(state, count)| {
            (labels([("slot", slot.as_str()), ("state", state)]), count as f64)
        })
    });
    let help = "Open connections by slot; active: with a request in progress.";
    MetricFamily::gauges("prefork_connections", help, series.collect())
}

fn slot_labels(kind: &str, slot: u32) -> Labels {
    labels([("kind", kind), ("slot", &slot.to_string())])
}
