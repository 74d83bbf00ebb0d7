//! Text form of the status and of events.

use std::fmt::Write;
use std::time::Duration;

use tokio_prefork::control::Event;
use tokio_prefork::status::{
    AdminStatus, ClusterStatus, PrimaryStatus, QueueWaitStatus, ThreadStatus, WorkerState,
    WorkerStatus,
};
use tokio_prefork::text::{HumanDuration, format_utc, printable};
use tokio_prefork::{ConcurrencyModel, WEB_KIND};

/// Maximum number of characters of a line of the table, as long as a request keeps `MIN_REQUEST`.
const MAX_LINE: usize = 100;
/// Minimum room for a request in the table.
const MIN_REQUEST: usize = 12;
/// Largest bucket bound of the queue wait in milliseconds; a larger value means "more".
const LONGEST_WAIT: u64 = 1 << 14;

/// The columns. `KIND` is left out if all workers are of the kind `web`.
const HEAD: [&str; 12] = [
    "ID", "SLOT", "GEN", "PID", "KIND", "STATE", "UP", "CONN", "ACTIVE", "REQUESTS", "BEAT",
    "SERVING",
];

/// A row of the table without its last column, and what a worker serves.
struct Row {
    cells: [String; 11],
    serving: Serving,
}

/// The last cell of a row: a request that is cut if the line is too long, and what follows it.
#[derive(Default)]
struct Serving {
    request: String,
    rest: String,
}

/// Returns `NAME VERSION`, or the name alone if the application has no version.
fn app_and_version(primary: &PrimaryStatus) -> String {
    // Primaries of an old version send no name.
    let name = if primary.name.is_empty() { "prefork" } else { &primary.name };
    printable(format!("{name} {}", primary.version).trim_end()).into_owned()
}

/// Formats a header and a line for each worker.
pub(super) fn format_status(status: &ClusterStatus) -> String {
    let primary = &status.primary;
    let serving = serving_of(status, WEB_KIND);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{}: primary pid={} {}, up {}, generation {}, {serving} of {} workers serve, \
         {} restarts{}",
        app_and_version(primary),
        primary.pid,
        primary.phase,
        span(primary.uptime_ms),
        primary.generation,
        primary.workers_wanted,
        primary.restarts,
        match primary.program {
            // Nobody counts the requests of a foreign program.
            Some(_) => String::new(),
            None => format!(", {} requests", status.totals.requests),
        },
    );
    if let Some(program) = &primary.program {
        let _ = writeln!(text, "running {}", printable(program));
    }
    let dispatch = match printable(&primary.dispatch) {
        // Older primaries do not send it.
        unknown if unknown.is_empty() => String::new(),
        known if primary.dispatch_backend.is_empty() => format!(", dispatch {known}"),
        known => format!(", dispatch {known} ({})", printable(&primary.dispatch_backend)),
    };
    let model = match printable(&primary.model) {
        usual if usual.is_empty() || usual == ConcurrencyModel::default().name() => String::new(),
        other => format!(", model {other}"),
    };
    let _ = writeln!(text, "listening on {}{dispatch}{model}", listeners(status));
    text.push_str(&super::certificate_lines::format_certificates(status));
    if let Some(admin) = &status.admin {
        let _ = writeln!(text, "{}", admin_line(admin));
    }
    let (wait, shed) = (&status.queue_wait, status.totals.shed);
    if wait.connections > 0 || shed > 0 {
        let _ = writeln!(text, "{}", waits(wait, shed));
    }
    for kind in &primary.kinds {
        let (name, there) = (printable(&kind.name), serving_of(status, &kind.name));
        let is_isolated = status.isolated.iter().any(|pool| pool.name == kind.name);
        let range = kind.min_workers.zip(kind.max_workers);
        if is_isolated && range.is_none() && there == kind.workers_wanted as usize {
            // The line of the pool tells it.
            continue;
        }
        let range =
            range.map_or(String::new(), |(min, max)| format!(" ({min} to {max} on demand)"));
        let _ = writeln!(text, "{there} of {} of kind {name} serve{range}", kind.workers_wanted);
    }
    if !primary.empty_slots.is_empty() {
        let slots: Vec<String> = primary.empty_slots.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "empty until the next reload or scale: slot {}", slots.join(", "));
    }
    if primary.log_lines_dropped > 0 {
        let _ = writeln!(text, "{} lines are missing in the log", primary.log_lines_dropped);
    }
    if primary.messages_lost > 0 {
        let _ = writeln!(text, "{} messages were lost", primary.messages_lost);
    }
    text.push_str(&super::pool_lines::format_pools(status));
    text.push('\n');
    text.push_str(&format_table(status.workers.iter().flat_map(rows).collect()));
    text.push_str(&super::request_lines::format_requests(status));
    text + &super::shared_metrics_table::format_shared_metrics(&status.shared)
}

/// Formats the rows below the names of the columns.
fn format_table(rows: Vec<Row>) -> String {
    let is_empty = |column: usize| rows.iter().all(|row| matches!(&*row.cells[column], "-" | ""));
    let is_shown = |column: usize| HEAD[column] != "KIND" || !is_empty(column);
    let shown: Vec<usize> = (0..HEAD.len() - 1).filter(|column| is_shown(*column)).collect();
    let width = |column: &usize| {
        let cells = rows.iter().map(|row| row.cells[*column].chars().count());
        cells.max().unwrap_or(0).max(HEAD[*column].len())
    };
    let widths: Vec<usize> = shown.iter().map(width).collect();
    let room = MAX_LINE.saturating_sub(widths.iter().map(|width| width + 2).sum());
    let line = |cell: &dyn Fn(usize) -> String, last: &str| {
        let mut line = String::new();
        for (column, width) in shown.iter().zip(&widths) {
            // Text is left-aligned, numbers are right-aligned.
            let _ = match HEAD[*column] {
                "KIND" | "STATE" => write!(line, "{:<width$}  ", cell(*column)),
                _ => write!(line, "{:>width$}  ", cell(*column)),
            };
        }
        format!("{line}{last}").trim_end().to_string() + "\n"
    };
    let mut text = line(&|column| HEAD[column].to_string(), HEAD[HEAD.len() - 1]);
    for row in &rows {
        text.push_str(&line(&|column| row.cells[column].clone(), &row.serving.fit(room)));
    }
    text
}

impl Serving {
    /// Returns the text, with the request cut so that all of it fits.
    fn fit(&self, room: usize) -> String {
        let room = room.saturating_sub(self.rest.chars().count()).max(MIN_REQUEST);
        if self.request.chars().count() <= room {
            return format!("{}{}", self.request, self.rest);
        }
        let cut: String = self.request.chars().take(room - 1).collect();
        format!("{cut}…{}", self.rest)
    }
}

fn serving_of(status: &ClusterStatus, kind: &str) -> usize {
    let of_kind = status.workers.iter().filter(|worker| worker.kind == kind);
    of_kind.filter(|worker| worker.state == WorkerState::Serving).count()
}

/// Formats the line of the process of the admin listener.
fn admin_line(admin: &AdminStatus) -> String {
    let listeners: Vec<_> = admin.listeners.iter().map(|one| printable(one)).collect();
    let process = match admin.pid {
        None => "no process".to_string(),
        Some(pid) => format!(
            "pid={pid} {}, up {}, generation {}, {} connections, {} requests",
            admin.state,
            span(admin.uptime_ms),
            admin.generation,
            admin.connections,
            admin.requests
        ),
    };
    format!("admin on {}: {process}, {} restarts", listeners.join(", "), admin.restarts)
}

/// Formats the addresses, with the length of the accept queue where it is known.
fn listeners(status: &ClusterStatus) -> String {
    if status.listeners.is_empty() {
        return "nothing any more".to_string();
    }
    let all = status.listeners.iter().map(|name| {
        let mut text = printable(name).into_owned();
        let queues: Vec<_> = status.queues.iter().filter(|queue| queue.listener == *name).collect();
        if let Some(first) = queues.first() {
            // One queue per slot, or one for all.
            let depths: Vec<String> = queues.iter().map(|queue| queue.depth.to_string()).collect();
            let each = if queues.len() > 1 { "each " } else { "" };
            let _ = write!(text, " ({} of {each}{} queued)", depths.join("+"), first.limit);
        }
        text
    });
    all.collect::<Vec<_>>().join(", ")
}

/// Formats how long connections waited to be accepted, as bounds.
fn waits(wait: &QueueWaitStatus, shed: u64) -> String {
    let bound = |ms: Option<u64>| match ms {
        None => "-".to_string(),
        Some(ms) if ms > LONGEST_WAIT => format!("over {}", span(LONGEST_WAIT)),
        Some(ms) => span(ms),
    };
    let [half, most, all] = [wait.p50_ms, wait.p99_ms, wait.max_ms].map(bound);
    let connections = wait.connections;
    format!(
        "waited to be accepted: p50 {half}, p99 {most}, longest {all} ({connections} connections), {shed} shed"
    )
}

fn row(worker: &WorkerStatus) -> Row {
    // Nobody counts the requests of a foreign program.
    let of_requests = |count: u64| match worker.program {
        None => count.to_string(),
        Some(_) => "-".to_string(),
    };
    let cells = [
        worker.id.to_string(),
        worker.slot.to_string(),
        worker.generation.to_string(),
        worker.pid.map_or("-".to_string(), |pid| pid.to_string()),
        match &*worker.kind {
            WEB_KIND => "-".to_string(),
            kind => printable(kind).into_owned(),
        },
        match worker.full {
            true => format!("{}, full", worker.state),
            false => worker.state.to_string(),
        },
        span(worker.uptime_ms),
        worker.connections.to_string(),
        of_requests(worker.active),
        of_requests(worker.counters.requests),
        worker.heartbeat_age_ms.map_or("-".to_string(), span),
    ];
    Row { cells, serving: serving(worker) }
}

/// Formats a worker and, below it, its threads.
fn rows(worker: &WorkerStatus) -> Vec<Row> {
    std::iter::once(row(worker)).chain(worker.threads.iter().map(thread)).collect()
}

fn thread(thread: &ThreadStatus) -> Row {
    let none = String::new;
    let cells = [
        none(),
        none(),
        none(),
        format!("loop {}", thread.thread),
        none(),
        thread.state.to_string(),
        none(),
        thread.connections.to_string(),
        thread.active.to_string(),
        thread.requests.to_string(),
        span(thread.heartbeat_age_ms),
    ];
    Row { cells, serving: Serving::default() }
}

/// Formats what the worker serves, and the holds that it waits for.
fn serving(worker: &WorkerStatus) -> Serving {
    let mut serving = serving_request(worker);
    if let Some(holds) = worker.serving.iter().find(|request| request.is_hold()) {
        let _ = write!(serving.rest, ", {} ({})", printable(&holds.request), span(holds.age_ms));
    }
    serving
}

/// Formats the job of an isolated process; the request that blocks the event loop, else the oldest one, and the number of
/// others.
fn serving_request(worker: &WorkerStatus) -> Serving {
    if let Some(program) = worker.program {
        let guard = worker.guard_pid.map_or(String::new(), |pid| format!(", guard pid={pid}"));
        let rest = format!("{} processes, {} queued{guard}", program.processes, program.queued);
        return Serving { request: String::new(), rest };
    }
    if let Some(job) = worker.job {
        let rest = format!("job {} ({})", job.id, span(job.age_ms));
        return Serving { request: String::new(), rest };
    }
    let mut requests = worker.serving.iter().filter(|request| !request.is_hold());
    let oldest = requests.clone().next();
    let Some(shown) = requests.find(|request| request.on_loop).or(oldest) else {
        return Serving { request: String::new(), rest: "-".to_string() };
    };
    let mut rest = format!(" ({}", span(shown.age_ms));
    if shown.on_loop {
        rest.push_str(", on loop");
    }
    match worker.active.saturating_sub(1) {
        0 => rest.push(')'),
        others => {
            let _ = write!(rest, ") +{others}");
        }
    }
    Serving { request: printable(&shown.request).into_owned(), rest }
}

fn span(ms: u64) -> String {
    if ms < 1000 {
        return format!("{ms} ms");
    }
    HumanDuration(Duration::from_millis(ms)).to_string()
}

/// Formats an event like a line of the log.
pub(super) fn format_event(event: &Event) -> String {
    let Event { time_ms, level, text, .. } = event;
    format!("{} {:<5} {}\n", format_utc(*time_ms), level.to_ascii_uppercase(), printable(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> ClusterStatus {
        let reply = include_str!("status_sample.json");
        let reply: serde_json::Value = serde_json::from_str(reply).expect("JSON");
        serde_json::from_value(reply["status"].clone()).expect("status")
    }

    #[test]
    fn the_table_has_a_header_and_a_line_a_worker() {
        assert_eq!(
            format_status(&status()),
            "prefork 0.1.0: primary pid=4711 running, up 3 min, generation 2, 1 of 2 workers serve, \
             5 restarts, 105 requests\n\
             listening on http://127.0.0.1:3000, dispatch reuseport\n\
             pool default: 1/1 busy (97%), 3 of 8 queued, 0 done\n\
             \n\
             ID  SLOT  GEN   PID  STATE       UP  CONN  ACTIVE  REQUESTS   BEAT  SERVING\n \
             3     0    2  4712  serving  3 min     2       2       100  50 ms  \
             GET /spin (12 s, on loop) +1\n \
             4     1    2     -  forking   0 ms     0       0         0      -  -\n"
        );
    }

    #[test]
    fn a_program_has_no_requests_but_processes_and_a_guard() {
        let mut status = status();
        status.primary.program = Some("node app.js".to_string());
        let program = r#"{"processes":3,"queued":1,"rss_bytes":5,"cpu_ms":7}"#;
        status.workers[0].program = Some(serde_json::from_str(program).expect("figures"));
        status.workers[0].guard_pid = Some(4000);
        let text = format_status(&status);
        assert!(text.contains("\nrunning node app.js\n") && !text.contains("requests"), "{text}");
        let row = text.lines().find(|line| line.contains("4712")).expect("a row");
        assert!(row.ends_with("3 processes, 1 queued, guard pid=4000"), "{row}");
    }

    #[test]
    fn holds_are_shown_beside_the_request() {
        let mut status = status();
        let mut hold = status.workers[0].serving[0].clone();
        (hold.request, hold.age_ms, hold.on_loop) = ("hold: mail x2".to_string(), 3_000, false);
        status.workers[0].serving.insert(0, hold);
        let text = format_status(&status);
        assert!(text.contains("GET /spin (12 s, on loop) +1, hold: mail x2 (3 s)\n"), "{text}");
    }

    #[test]
    fn what_chooses_is_shown_where_a_policy_has_several_ways() {
        let mut status = status();
        status.primary.dispatch = "least-conn".to_string();
        status.primary.dispatch_backend = "cbpf-weights".to_string();
        assert!(format_status(&status).contains(", dispatch least-conn (cbpf-weights)\n"));
    }

    #[test]
    fn queues_and_waits_are_shown_where_they_are_known() {
        let mut status = status();
        let queues = r#"[{"listener":"http://127.0.0.1:3000","depth":3,"limit":4096}]"#;
        status.queues = serde_json::from_str(queues).expect("queues");
        status.listeners.push("unix:/run/a".to_string());
        status.totals.shed = 5;
        let wait = r#"{"connections":9,"p50_ms":1,"p99_ms":4096,"max_ms":32768}"#;
        status.queue_wait = serde_json::from_str(wait).expect("waits");
        let text = format_status(&status);
        let lines: Vec<&str> = text.lines().skip(1).take(2).collect();
        assert_eq!(
            lines,
            [
                "listening on http://127.0.0.1:3000 (3 of 4096 queued), unix:/run/a, dispatch reuseport",
                "waited to be accepted: p50 1 ms, p99 4.1 s, longest over 16.4 s (9 connections), 5 shed"
            ]
        );
        status.queue_wait = QueueWaitStatus::default();
        assert!(format_status(&status).contains("p50 -, p99 -, longest - (0 connections), 5 shed"));
    }

    #[test]
    fn an_isolated_process_shows_its_job_and_each_row_its_kind() {
        let mut status = status();
        status.workers[1].kind = "danger".to_string();
        status.workers[1].job = serde_json::from_str(r#"{"id":17,"age_ms":1200}"#).expect("job");
        let text = format_status(&status);
        let rows: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("ID")).collect();
        assert!(rows[0].starts_with("ID  SLOT  GEN   PID  KIND    STATE  "), "{text}");
        assert!(rows[1].contains("  4712  -       serving  "), "{text}");
        assert!(
            rows[2].contains("  danger  forking ") && rows[2].ends_with("  job 17 (1.2 s)"),
            "{text}"
        );
    }

    #[test]
    fn a_long_request_is_cut_so_that_the_table_fits() {
        let mut status = status();
        status.workers[0].serving[1].request = format!("GET /{}", "x".repeat(99));
        let text = format_status(&status);
        let row = text.lines().find(|line| line.contains("GET /xxx")).expect("row");
        assert_eq!(row.chars().count(), MAX_LINE, "{row}");
        assert!(row.ends_with("x… (12 s, on loop) +1"), "{row}");
    }

    #[test]
    fn a_worker_without_room_is_marked() {
        let mut status = status();
        status.workers[0].full = true;
        assert!(format_status(&status).contains("serving, full "));
    }

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal() {
        let mut status = status();
        status.workers[0].serving[0].request = "GET /\u{1b}[2J".to_string();
        status.listeners = vec!["\u{9b}".to_string()];
        let text = format_status(&status);
        assert!(!text.contains(['\u{1b}', '\u{9b}']), "{text}");
    }
}
