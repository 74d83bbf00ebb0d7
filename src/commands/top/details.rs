//! The lines of what covers the table: the help, a worker, or a row of another view.

use super::actions::KEYS;
use super::event_table::{is_about, time_of_day};
use super::format::{format_bytes, format_duration, format_ms, format_rate};
use super::model::{Model, Overlay};
use super::table::Tone;
use super::worker_table::{format_percent, is_frozen, state_text};
use tokio_prefork::WorkerId;
use tokio_prefork::status::{PoolStatus, WorkerStatus};
use tokio_prefork::text::printable;

/// How many events about a worker are listed.
const MAX_LISTED_EVENTS: usize = 50;

/// Upper bound of the delays that the status counts; longer ones are in one class.
const MAX_COUNTED_DELAY_MS: u64 = 1 << 14;

/// A line of an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DetailLine {
    pub(super) text: String,
    pub(super) tone: Tone,
    pub(super) is_heading: bool,
}

impl DetailLine {
    fn new(text: impl Into<String>) -> DetailLine {
        DetailLine { text: text.into(), tone: Tone::Normal, is_heading: false }
    }

    fn heading(text: impl Into<String>) -> DetailLine {
        DetailLine { is_heading: true, ..DetailLine::new(text) }
    }

    fn toned(text: impl Into<String>, tone: Tone) -> DetailLine {
        DetailLine { tone, ..DetailLine::new(text) }
    }
}

/// Returns the lines of the overlay.
pub(super) fn overlay_lines(model: &Model, overlay: Overlay) -> Vec<DetailLine> {
    match overlay {
        Overlay::Help => help_lines(),
        Overlay::Worker(id) => worker_lines(model, id),
        Overlay::Row(key) => row_lines(model, key),
    }
}

fn help_lines() -> Vec<DetailLine> {
    let width = KEYS.iter().map(|(keys, _)| keys.len()).max().unwrap_or(0);
    let keys = KEYS.iter().map(|(keys, help)| DetailLine::new(format!("{keys:<width$}  {help}")));
    std::iter::once(DetailLine::heading("Keys")).chain(keys).collect()
}

/// Lists all columns of a row, also those that a narrow terminal leaves out, with their whole text.
fn row_lines(model: &Model, key: u64) -> Vec<DetailLine> {
    let table = model.table();
    let Some(row) = table.rows.iter().find(|row| row.key == key) else {
        return vec![DetailLine::new("This row is gone.")];
    };
    let width = table.columns.iter().map(|column| column.title.len()).max().unwrap_or(0);
    let cells = table.columns.iter().zip(&row.cells);
    cells
        .map(|(column, cell)| DetailLine::new(format!("{:<width$}  {}", column.title, cell.text)))
        .collect()
}

fn worker_lines(model: &Model, id: WorkerId) -> Vec<DetailLine> {
    let status = &model.sample().status;
    let mut lines = match status.workers.iter().find(|worker| worker.id == id) {
        None => vec![DetailLine::toned(format!("Worker {id} has ended."), Tone::Warning)],
        Some(worker) => {
            let mut lines = identity_lines(model, worker);
            lines.extend(delay_lines(worker));
            lines.extend(request_lines(worker));
            lines.extend(thread_lines(worker));
            lines.extend(pool_lines(&worker.pools));
            lines
        }
    };
    lines.extend(event_lines(model, id));
    lines
}

fn identity_lines(model: &Model, worker: &WorkerStatus) -> Vec<DetailLine> {
    let rates = model.rates().workers.get(&worker.id).copied().unwrap_or_default();
    let pid = worker.pid.map_or("-".to_string(), |pid| pid.to_string());
    let state = match worker.heartbeat_age_ms {
        Some(age) if is_frozen(worker) => {
            DetailLine::toned(format!("frozen: no heartbeat for {}", format_ms(age)), Tone::Error)
        }
        Some(age) => DetailLine::new(format!(
            "{}, last heartbeat {} ago",
            state_text(worker),
            format_ms(age)
        )),
        None => DetailLine::new(state_text(worker)),
    };
    let usage = match model.sample().usage.get(&worker.id) {
        None => String::new(),
        Some(usage) => format!(
            ", cpu {}% ({} in all), rss {}",
            format_percent(rates.cpu_percent),
            format_duration(Some(usage.cpu_time)),
            format_bytes(usage.resident_bytes as f64)
        ),
    };
    let counters = &worker.counters;
    let [r1, r2, r3, r4, r5] = counters.responses;
    vec![
        DetailLine::heading(format!(
            "Worker {}: slot {}, generation {}, pid {pid}, kind {}",
            worker.id,
            worker.slot,
            worker.generation,
            printable(&worker.kind)
        )),
        state,
        DetailLine::new(format!("up {}{usage}", format_ms(worker.uptime_ms))),
        DetailLine::new(format!(
            "{} requests/s, {} in all, {} in progress, {} connections, {} accepted",
            format_rate(rates.requests),
            counters.requests,
            worker.active,
            worker.connections,
            counters.accepted
        )),
        DetailLine::new(format!(
            "responses: {r1} 1xx, {r2} 2xx, {r3} 3xx, {r4} 4xx, {r5} 5xx; bytes: {} in, {} out",
            format_bytes(counters.bytes_in as f64),
            format_bytes(counters.bytes_out as f64)
        )),
        DetailLine::new(format!(
            "{} panics, {} timed out, {} cut, {} shed, {} handed over, {} taken over",
            counters.panics,
            counters.timed_out,
            counters.cut,
            counters.shed,
            counters.handed_over,
            counters.taken_over
        )),
    ]
}

fn delay_lines(worker: &WorkerStatus) -> [DetailLine; 2] {
    let delays =
        [("event loop late by", &worker.loop_lag), ("waited to be accepted", &worker.queue_wait)];
    delays.map(|(name, counts)| {
        let [half, most, all] = [50, 99, 100].map(|percent| format_delay(counts, percent));
        DetailLine::new(format!("{name}: p50 {half}, p99 {most}, longest {all}"))
    })
}

/// Formats the bound that this percentage of the delays did not exceed. They are counted by powers of two of a millisecond.
fn format_delay(counts: &[u64], percent: u64) -> String {
    let total = counts.iter().fold(0u128, |sum, count| sum + u128::from(*count));
    let wanted = (total * u128::from(percent)).div_ceil(100).max(1);
    let mut sum = 0u128;
    for (bucket, count) in counts.iter().enumerate() {
        sum += u128::from(*count);
        if sum >= wanted {
            return match 1u64 << bucket.min(62) {
                bound if bound > MAX_COUNTED_DELAY_MS => {
                    format!("over {}", format_ms(MAX_COUNTED_DELAY_MS))
                }
                bound => format_ms(bound),
            };
        }
    }
    "-".to_string()
}

fn request_lines(worker: &WorkerStatus) -> Vec<DetailLine> {
    if let Some(job) = worker.job {
        let age = format_ms(job.age_ms);
        return vec![
            DetailLine::heading("Job"),
            DetailLine::new(format!("{age:>8}  job {}", job.id)),
        ];
    }
    let listed = worker.serving.len();
    let in_all = (worker.active as usize).max(listed);
    let title = match in_all > listed {
        true => format!("Requests in progress: the {listed} oldest of {in_all}"),
        false => format!("Requests in progress: {listed}"),
    };
    let requests = worker.serving.iter().map(|request| {
        let age = format_ms(request.age_ms);
        let mut text = format!("{age:>8}  {}", printable(&request.request));
        let identity = [("client", &request.client), ("id", &request.request_id)];
        for (name, value) in identity {
            if let Some(value) = value {
                text += &format!("  {name} {}", printable(value));
            }
        }
        match request.on_loop {
            true if is_frozen(worker) => {
                DetailLine::toned(format!("{text}  (on the event loop)"), Tone::Error)
            }
            true => DetailLine::new(format!("{text}  (on the event loop)")),
            false => DetailLine::new(text),
        }
    });
    std::iter::once(DetailLine::heading(title)).chain(requests).collect()
}

fn thread_lines(worker: &WorkerStatus) -> Vec<DetailLine> {
    if worker.threads.is_empty() {
        return Vec::new();
    }
    let threads = worker.threads.iter().map(|thread| {
        DetailLine::new(format!(
            "loop {}: {}, last heartbeat {} ago, {} connections, {} in progress, {} requests in all",
            thread.thread,
            thread.state,
            format_ms(thread.heartbeat_age_ms),
            thread.connections,
            thread.active,
            thread.requests
        ))
    });
    std::iter::once(DetailLine::heading("Threads")).chain(threads).collect()
}

fn pool_lines(pools: &[PoolStatus]) -> Vec<DetailLine> {
    if pools.is_empty() {
        return Vec::new();
    }
    let lines = pools.iter().map(|pool| {
        DetailLine::new(format!(
            "{}: {}/{} busy ({}%), {} of {} queued, {} done, run p50 {} p99 {}",
            printable(&pool.name),
            pool.running,
            pool.threads,
            pool.utilisation,
            pool.depth,
            pool.capacity,
            pool.done,
            format_duration(pool.run_quantile(0.5)),
            format_duration(pool.run_quantile(0.99))
        ))
    });
    std::iter::once(DetailLine::heading("CPU pools")).chain(lines).collect()
}

fn event_lines(model: &Model, id: WorkerId) -> Vec<DetailLine> {
    let events = model.events().rev().filter(|event| is_about(event, id));
    let lines = events.take(MAX_LISTED_EVENTS).map(|event| {
        let tone = match event.level.as_str() {
            "error" => Tone::Error,
            "warn" => Tone::Warning,
            _ => Tone::Normal,
        };
        let text = format!("{}  {}", time_of_day(event.time_ms), printable(&event.text));
        DetailLine::toned(text, tone)
    });
    std::iter::once(DetailLine::heading("Events about it, the last one first"))
        .chain(lines)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::model::View;
    use super::super::test_support::{event, sample};
    use super::*;

    fn lines_of(model: &Model, overlay: Overlay) -> Vec<String> {
        overlay_lines(model, overlay).into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn a_worker_has_its_requests_threads_pools_and_events() {
        let mut sample = sample(|status| {
            let worker = &mut status.workers[0];
            worker.heartbeat_age_ms = Some(12_000);
            worker.loop_lag[2] = 99;
            worker.loop_lag[15] = 1;
            let threads = r#"[{"thread":0,"state":"serving","beat_age_ms":40,"connections":1,"active":1,"requests":9}]"#;
            worker.threads = serde_json::from_str(threads).expect("threads");
            worker.active = 30;
            worker.serving[0].client = Some("192.0.2.7".to_string());
            worker.serving[0].request_id = Some("7f-1\u{1b}".to_string());
        });
        sample.events = vec![
            event(1, "info", "worker=3 slot=0 ready"),
            event(2, "info", "worker=4 slot=1 forked"),
            event(3, "warn", "worker=3 slot=0 stalled"),
        ];
        let model = Model::new(sample, View::Workers, Duration::from_secs(1));
        let lines = lines_of(&model, Overlay::Worker(WorkerId(3)));
        for expected in [
            "Worker 3: slot 0, generation 2, pid 4712, kind web",
            "frozen: no heartbeat for 12 s",
            "event loop late by: p50 4 ms, p99 4 ms, longest over 16.4 s",
            "waited to be accepted: p50 -, p99 -, longest -",
            "Requests in progress: the 2 oldest of 30",
            "    13 s  GET /slow  client 192.0.2.7  id 7f-1\\u{1b}",
            "    12 s  GET /spin  (on the event loop)",
            "loop 0: serving, last heartbeat 40 ms ago, 1 connections, 1 in progress, 9 requests in all",
            "default: 1/1 busy (97%), 3 of 8 queued, 0 done, run p50 - p99 -",
        ] {
            assert!(lines.iter().any(|line| line == expected), "{expected} is not in {lines:#?}");
        }
        let events: Vec<&String> = lines.iter().rev().take(2).rev().collect();
        assert!(events[0].ends_with("worker=3 slot=0 stalled"), "{events:?}");
        assert!(events[1].ends_with("worker=3 slot=0 ready"), "{events:?}");
    }

    #[test]
    fn a_worker_that_has_ended_keeps_its_events() {
        let mut sample = sample(|_| {});
        sample.events = vec![event(1, "error", "worker=9 slot=0 killed by SIGKILL")];
        let model = Model::new(sample, View::Workers, Duration::from_secs(1));
        let lines = lines_of(&model, Overlay::Worker(WorkerId(9)));
        assert_eq!(lines[0], "Worker 9 has ended.");
        assert!(lines.last().expect("event").contains("killed by SIGKILL"));
    }

    #[test]
    fn a_row_of_another_view_is_listed_with_all_columns() {
        let model = Model::new(sample(|_| {}), View::Pools, Duration::from_secs(1));
        let lines = lines_of(&model, Overlay::Row(0));
        assert!(lines.contains(&"POOL      default".to_string()), "{lines:?}");
        assert_eq!(lines_of(&model, Overlay::Row(7)), ["This row is gone."]);
    }
}
