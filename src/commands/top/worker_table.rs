//! The table of workers.

use super::format::{UNKNOWN, format_bytes, format_ms, format_rate};
use super::rates::Rates;
use super::sample::Sample;
use super::table::{Cell, Column, Row, Table, Tone};
use tokio_prefork::WEB_KIND;
use tokio_prefork::status::{ClusterStatus, ProgramFigures, WorkerState, WorkerStatus};
use tokio_prefork::text::printable;

/// From this age of the last heartbeat on, a worker is shown as frozen: 1 s, the default of `stall-warn`.
const FROZEN_AFTER_MS: u64 = 1000;

pub(super) const SLOT: Column = Column::identity("SLOT");
const WORKER: Column = Column::identity("WORKER").drop_order(9);
const GENERATION: Column = Column::identity("GEN").drop_order(12);
pub(super) const PID: Column = Column::identity("PID").drop_order(6);
const KIND: Column = Column::text("KIND").drop_order(1);
const STATE: Column = Column::text("STATE");
pub(super) const UPTIME: Column = Column::number("UP").drop_order(11);
const REQUESTS: Column = Column::number("REQ/S");
const ACTIVE: Column = Column::number("ACTIVE").drop_order(5);
const CONNECTIONS: Column = Column::number("CONNS").drop_order(10);
const LAG: Column = Column::number("LAG").drop_order(8);
pub(super) const MEMORY: Column = Column::number("RSS").drop_order(7);
pub(super) const CPU: Column = Column::number("CPU%").drop_order(4);
const AGE: Column = Column::number("AGE").drop_order(2);
const REQUEST: Column = Column::text("REQUEST").drop_order(3);

const COLUMNS: [Column; 15] = [
    SLOT,
    WORKER,
    GENERATION,
    PID,
    KIND,
    STATE,
    UPTIME,
    REQUESTS,
    ACTIVE,
    CONNECTIONS,
    LAG,
    MEMORY,
    CPU,
    AGE,
    REQUEST,
];

/// Returns a row for each worker. The column of kinds is left out if all workers are of the kind `web`.
pub(super) fn worker_table(sample: &Sample, rates: &Rates) -> Table {
    let workers = &sample.status.workers;
    let rows = workers.iter().map(|worker| worker_row(worker, sample, rates)).collect();
    let mut table = Table { columns: COLUMNS.to_vec(), rows };
    if workers.iter().all(|worker| worker.kind == WEB_KIND) {
        table.remove_column(KIND.title);
    }
    table
}

/// Returns whether the event loop of a worker has not shown a sign of life for a second.
pub(super) fn is_frozen(worker: &WorkerStatus) -> bool {
    let has_loop = matches!(
        worker.state,
        WorkerState::Serving | WorkerState::CannotAccept | WorkerState::Draining
    );
    has_loop && worker.heartbeat_age_ms.is_some_and(|age| age >= FROZEN_AFTER_MS)
}

/// Returns how many workers are frozen.
pub(super) fn frozen_workers(status: &ClusterStatus) -> usize {
    status.workers.iter().filter(|worker| is_frozen(worker)).count()
}

/// Returns the state of a worker in a word: `frozen` and `full` beside those of the status.
pub(super) fn state_text(worker: &WorkerStatus) -> String {
    match worker.state {
        _ if is_frozen(worker) => "frozen".to_string(),
        WorkerState::Serving if worker.full => "full".to_string(),
        state => state.to_string(),
    }
}

fn worker_tone(worker: &WorkerStatus) -> Tone {
    match worker.state {
        _ if is_frozen(worker) => Tone::Error,
        WorkerState::Aborted | WorkerState::Killed => Tone::Error,
        WorkerState::Draining | WorkerState::CannotAccept => Tone::Warning,
        WorkerState::Forking | WorkerState::Booting | WorkerState::Exiting => Tone::Changing,
        _ => Tone::Normal,
    }
}

fn worker_row(worker: &WorkerStatus, sample: &Sample, rates: &Rates) -> Row {
    let own = rates.workers.get(&worker.id).copied().unwrap_or_default();
    let memory = sample.usage.get(&worker.id).map(|usage| usage.resident_bytes as f64);
    // A frozen loop measures no lag.
    let lag = if is_frozen(worker) { worker.heartbeat_age_ms } else { own.lag_ms };
    let (age, request) = oldest_work(worker);
    let ms = |ms: Option<u64>| {
        Cell::number(ms.map(|ms| ms as f64), ms.map_or(UNKNOWN.to_string(), format_ms))
    };
    let cells = vec![
        Cell::count(worker.slot.0.into()),
        Cell::count(worker.id.0),
        Cell::count(worker.generation.0),
        match worker.pid {
            Some(pid) => Cell::count(pid.into()),
            None => Cell::number(None, UNKNOWN),
        },
        Cell::text(printable(&worker.kind)),
        Cell::text(state_text(worker)),
        ms(Some(worker.uptime_ms)),
        Cell::number(own.requests, format_rate(own.requests)),
        match worker.program {
            None => Cell::count(worker.active),
            Some(_) => Cell::number(None, UNKNOWN),
        },
        Cell::count(worker.connections),
        ms(lag),
        Cell::number(memory, memory.map_or(UNKNOWN.to_string(), format_bytes)),
        Cell::number(own.cpu_percent, format_percent(own.cpu_percent)),
        ms(age),
        Cell::text(request),
    ];
    Row { key: worker.id.0, cells, tone: worker_tone(worker) }
}

pub(super) fn format_percent(percent: Option<f64>) -> String {
    percent.map_or(UNKNOWN.to_string(), |percent| format!("{percent:.1}"))
}

/// Returns the processes of a program, and the connections that wait for it.
fn program_text(program: &ProgramFigures) -> String {
    format!("{} processes, {} queued", program.processes, program.queued)
}

/// Returns what a worker does and for how long: the job of an isolated process; the request that occupies its event loop, else
/// the oldest one; the holds that it waits for.
fn oldest_work(worker: &WorkerStatus) -> (Option<u64>, String) {
    if let Some(job) = worker.job {
        return (Some(job.age_ms), format!("job {}", job.id));
    }
    if let Some(program) = worker.program {
        return (None, program_text(&program));
    }
    let mut requests = worker.serving.iter().filter(|request| !request.is_hold());
    let oldest = requests.clone().next().or(worker.serving.first());
    let Some(shown) = requests.find(|request| request.on_loop).or(oldest) else {
        return (None, String::new());
    };
    let mark = if shown.on_loop { " (on loop)" } else { "" };
    (Some(shown.age_ms), format!("{}{mark}", printable(&shown.request)))
}

#[cfg(test)]
mod tests {
    use super::super::test_support::sample;
    use super::*;

    fn cell(table: &Table, row: usize, title: &str) -> String {
        let column = table.columns.iter().position(|column| column.title == title).expect(title);
        table.rows[row].cells[column].text.clone()
    }

    #[test]
    fn each_worker_has_a_row_with_its_longest_request() {
        let table = worker_table(&sample(|_| {}), &Rates::default());
        assert_eq!(table.rows.len(), 2);
        let cells = ["SLOT", "WORKER", "GEN", "PID", "STATE", "UP", "REQ/S", "AGE", "REQUEST"];
        assert_eq!(
            cells.map(|title| cell(&table, 0, title)),
            ["0", "3", "2", "4712", "serving", "3 min", "-", "12 s", "GET /spin (on loop)"]
        );
        assert_eq!(cell(&table, 1, "PID"), "-");
        assert!(!table.columns.contains(&KIND));
    }

    #[test]
    fn a_worker_without_heartbeat_is_frozen_with_the_age_as_lag() {
        let frozen = sample(|status| status.workers[0].heartbeat_age_ms = Some(12_000));
        let table = worker_table(&frozen, &Rates::default());
        assert_eq!((table.rows[0].tone, table.rows[1].tone), (Tone::Error, Tone::Changing));
        assert_eq!([cell(&table, 0, "STATE"), cell(&table, 0, "LAG")], ["frozen", "12 s"]);
        assert_eq!(frozen_workers(&frozen.status), 1);
    }

    #[test]
    fn a_booting_worker_is_not_frozen_and_a_draining_one_is_marked() {
        let changed = sample(|status| {
            status.workers[0].state = WorkerState::Draining;
            status.workers[1].state = WorkerState::Booting;
            status.workers[1].heartbeat_age_ms = Some(60_000);
        });
        let table = worker_table(&changed, &Rates::default());
        let tones: Vec<Tone> = table.rows.iter().map(|row| row.tone).collect();
        assert_eq!(tones, [Tone::Warning, Tone::Changing]);
    }

    #[test]
    fn kinds_jobs_holds_and_hostile_names_are_shown() {
        let mixed = sample(|status| {
            status.workers[0].kind = "\u{1b}[2J".to_string();
            status.workers[0].job =
                serde_json::from_str(r#"{"id":17,"age_ms":1200}"#).expect("job");
            let hold = r#"[{"request":"hold: mail x2","age_ms":3000,"on_loop":false}]"#;
            status.workers[1].serving = serde_json::from_str(hold).expect("hold");
        });
        let table = worker_table(&mixed, &Rates::default());
        assert_eq!([cell(&table, 0, "AGE"), cell(&table, 0, "REQUEST")], ["1.2 s", "job 17"]);
        assert_eq!([cell(&table, 1, "AGE"), cell(&table, 1, "REQUEST")], ["3 s", "hold: mail x2"]);
        assert!(!cell(&table, 0, "KIND").contains('\u{1b}'));
    }
}
