//! The lines above the table: the cluster and its totals, as pieces in the order of their importance.

use super::format::{format_bytes, format_duration, format_ms, format_rate};
use super::rates::Rates;
use super::sample::Sample;
use super::table::Tone;
use super::worker_table::{format_percent, frozen_workers};
use tokio_prefork::WEB_KIND;
use tokio_prefork::status::{ClusterStatus, PrimaryPhase, WorkerState};
use tokio_prefork::text::{Count, printable};

/// A piece of a line, which is shown whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) tone: Tone,
}

impl Piece {
    pub(super) fn new(text: impl Into<String>) -> Piece {
        Piece { text: text.into(), tone: Tone::Normal }
    }

    /// Returns a piece with the tone if the condition holds.
    fn toned(text: String, tone: Tone, has_tone: bool) -> Piece {
        Piece { text, tone: if has_tone { tone } else { Tone::Normal } }
    }
}

/// Returns as many lines as there is room for, the most important ones; at most four.
pub(super) fn summary_lines(sample: &Sample, rates: &Rates, room: usize) -> Vec<Vec<Piece>> {
    let status = &sample.status;
    match room {
        0 => vec![],
        1 => vec![overview(status, Some(rates))],
        2 => vec![overview(status, None), traffic(status, rates)],
        3 => vec![identity(status), workers(sample, rates), traffic(status, rates)],
        _ => vec![
            identity(status),
            workers(sample, rates),
            traffic(status, rates),
            connections(status, rates),
        ],
    }
}

fn name_and_version(status: &ClusterStatus) -> String {
    let primary = &status.primary;
    // Primaries of an old version send no name.
    let name = if primary.name.is_empty() { "prefork" } else { &primary.name };
    printable(format!("{name} {}", primary.version).trim_end()).into_owned()
}

fn serving(status: &ClusterStatus) -> Piece {
    let web = status.workers.iter().filter(|worker| worker.kind == WEB_KIND);
    let serving = web.filter(|worker| worker.state == WorkerState::Serving).count();
    let wanted = status.primary.workers_wanted as usize;
    Piece::toned(format!("{serving}/{wanted} serve"), Tone::Warning, serving < wanted)
}

fn frozen(status: &ClusterStatus) -> Option<Piece> {
    let frozen = frozen_workers(status);
    (frozen > 0).then(|| Piece::toned(format!("{frozen} frozen"), Tone::Error, true))
}

fn phase(status: &ClusterStatus) -> Piece {
    let phase = status.primary.phase;
    Piece::toned(phase.to_string(), Tone::Warning, phase != PrimaryPhase::Running)
}

/// Everything that matters, for a terminal of a few lines. The rate of requests is left out if another line has it.
fn overview(status: &ClusterStatus, rates: Option<&Rates>) -> Vec<Piece> {
    let mut pieces = vec![serving(status)];
    pieces.extend(frozen(status));
    let rate = |rates: &Rates| format!("{} req/s", format_rate(rates.totals.requests));
    pieces.extend(rates.map(rate).map(Piece::new));
    pieces.extend([phase(status), Piece::new(name_and_version(status))]);
    pieces
}

fn identity(status: &ClusterStatus) -> Vec<Piece> {
    let primary = &status.primary;
    let mut pieces = vec![
        Piece::new(name_and_version(status)),
        phase(status),
        Piece::new(format!("generation {}", primary.generation)),
        Piece::new(format!("up {}", format_ms(primary.uptime_ms))),
    ];
    if !primary.model.is_empty() {
        pieces.push(Piece::new(format!("model {}", printable(&primary.model))));
    }
    if !primary.dispatch.is_empty() {
        let backend = match printable(&primary.dispatch_backend) {
            none if none.is_empty() => String::new(),
            backend => format!(" ({backend})"),
        };
        let dispatch = printable(&primary.dispatch);
        pieces.push(Piece::new(format!("dispatch {dispatch}{backend}")));
    }
    pieces.push(Piece::new(format!("primary pid {}", primary.pid)));
    pieces
}

fn workers(sample: &Sample, rates: &Rates) -> Vec<Piece> {
    let status = &sample.status;
    let mut pieces = vec![serving(status)];
    pieces.extend(frozen(status));
    let draining = status.workers.iter().filter(|worker| worker.state == WorkerState::Draining);
    match draining.count() {
        0 => {}
        draining => {
            pieces.push(Piece::toned(format!("{draining} draining"), Tone::Warning, true));
        }
    }
    pieces.push(Piece::new(Count(status.primary.restarts, "respawn").to_string()));
    if !status.primary.empty_slots.is_empty() {
        let slots = Count(status.primary.empty_slots.len() as u64, "empty slot").to_string();
        pieces.push(Piece::toned(slots, Tone::Warning, true));
    }
    let cpu = rates.workers.values().filter_map(|worker| worker.cpu_percent);
    if let Some(cpu) = cpu.reduce(|sum, cpu| sum + cpu) {
        pieces.push(Piece::new(format!("cpu {}%", format_percent(Some(cpu)))));
    }
    if !sample.usage.is_empty() {
        let memory = sample.usage.values().map(|usage| usage.resident_bytes as f64).sum();
        pieces.push(Piece::new(format!("rss {}", format_bytes(memory))));
    }
    pieces
}

fn traffic(status: &ClusterStatus, rates: &Rates) -> Vec<Piece> {
    if let Some(program) = &status.primary.program {
        let programs = status.workers.iter().filter_map(|worker| worker.program);
        let (processes, queued) = programs.fold((0u64, 0u64), |sum, one| {
            (sum.0.saturating_add(one.processes), sum.1.saturating_add(one.queued))
        });
        return vec![
            Piece::new(format!("running {}", printable(program))),
            Piece::new(format!("{processes} processes")),
            Piece::new(format!("{queued} queued")),
        ];
    }
    let totals = &rates.totals;
    let is_positive = |rate: Option<f64>| rate.is_some_and(|rate| rate > 0.0);
    let byte_rate = |rate: Option<f64>| match rate {
        Some(rate) => format!("{}B/s", format_bytes(rate)),
        None => "-".to_string(),
    };
    let active = status.workers.iter().fold(0u64, |sum, one| sum.saturating_add(one.active));
    let mut pieces = vec![
        Piece::new(format!("{} requests/s", format_rate(totals.requests))),
        Piece::toned(
            format!("{} 5xx/s", format_rate(totals.server_errors)),
            Tone::Error,
            is_positive(totals.server_errors),
        ),
        Piece::toned(
            format!("{} 4xx/s", format_rate(totals.client_errors)),
            Tone::Warning,
            is_positive(totals.client_errors),
        ),
    ];
    if let Some([p50, p99]) = totals.durations.map(|both| both.map(Some).map(format_duration)) {
        pieces.push(Piece::new(format!("p50 {p50} p99 {p99}")));
    }
    pieces.extend([
        Piece::new(format!("{active} in progress")),
        Piece::new(format!("in {}", byte_rate(totals.bytes_in))),
        Piece::new(format!("out {}", byte_rate(totals.bytes_out))),
        Piece::new(format!("{} requests in all", status.totals.requests)),
    ]);
    pieces
}

fn connections(status: &ClusterStatus, rates: &Rates) -> Vec<Piece> {
    let workers = status.workers.iter();
    let open = workers.fold(0u64, |sum, one| sum.saturating_add(one.connections));
    let mut pieces = vec![
        Piece::new(format!("{open} connections")),
        Piece::new(format!("{} accepted/s", format_rate(rates.totals.accepted))),
    ];
    if !status.queues.is_empty() {
        let queued = status.queues.iter().fold(0u64, |sum, queue| sum + u64::from(queue.depth));
        pieces.push(Piece::toned(format!("{queued} queued"), Tone::Warning, queued > 0));
    }
    if let Some(p99) = status.queue_wait.p99_ms {
        pieces.push(Piece::new(format!("queue wait p99 {}", format_ms(p99))));
    }
    let shed = status.totals.shed;
    if shed > 0 {
        pieces.push(Piece::toned(format!("{shed} shed"), Tone::Warning, true));
    }
    let listeners: Vec<_> = status.listeners.iter().map(|name| printable(name)).collect();
    let listeners = match listeners.join(" ") {
        none if none.is_empty() => "not listening".to_string(),
        names => format!("on {names}"),
    };
    pieces.push(Piece::toned(listeners, Tone::Warning, status.listeners.is_empty()));
    pieces
}

#[cfg(test)]
mod tests {
    use super::super::rates::TotalRates;
    use super::super::test_support::sample;
    use super::*;

    fn texts(lines: &[Vec<Piece>]) -> Vec<String> {
        let text = |line: &Vec<Piece>| {
            line.iter().map(|piece| piece.text.as_str()).collect::<Vec<_>>().join(", ")
        };
        lines.iter().map(text).collect()
    }

    #[test]
    fn the_lines_tell_who_answers_and_what_happens() {
        let totals =
            TotalRates { requests: Some(120.0), bytes_out: Some(2048.0), ..TotalRates::default() };
        let rates = Rates { totals, ..Rates::default() };
        let sample = sample(|status| {
            status.primary.name = "greeter".to_string();
            status.primary.model = "threads".to_string();
            let queues = r#"[{"listener":"http://127.0.0.1:3000","depth":3,"limit":4096}]"#;
            status.queues = serde_json::from_str(queues).expect("queues");
        });
        assert_eq!(
            texts(&summary_lines(&sample, &rates, 4)),
            [
                "greeter 0.1.0, running, generation 2, up 3 min, model threads, dispatch reuseport, primary pid 4711",
                "1/2 serve, 5 respawns",
                "120 requests/s, - 5xx/s, - 4xx/s, 2 in progress, in -, out 2.0KB/s, 105 requests in all",
                "2 connections, - accepted/s, 3 queued, on http://127.0.0.1:3000",
            ]
        );
    }

    #[test]
    fn with_room_for_one_line_it_has_what_matters_most() {
        let sample = sample(|status| status.workers[0].heartbeat_age_ms = Some(5_000));
        assert_eq!(
            texts(&summary_lines(&sample, &Rates::default(), 1)),
            ["1/2 serve, 1 frozen, - req/s, running, prefork 0.1.0"]
        );
        assert!(summary_lines(&sample, &Rates::default(), 0).is_empty());
    }

    #[test]
    fn trouble_has_a_tone() {
        let sample = sample(|status| {
            status.workers[0].state = WorkerState::Draining;
            status.primary.phase = PrimaryPhase::Stopping;
            status.listeners.clear();
        });
        let lines = summary_lines(&sample, &Rates::default(), 4);
        let toned = |text: &str| {
            let piece = lines.iter().flatten().find(|piece| piece.text == text);
            piece.expect(text).tone
        };
        assert_eq!(toned("stopping"), Tone::Warning);
        assert_eq!(toned("1 draining"), Tone::Warning);
        assert_eq!(toned("not listening"), Tone::Warning);
        assert_eq!(toned("generation 2"), Tone::Normal);
    }
}
