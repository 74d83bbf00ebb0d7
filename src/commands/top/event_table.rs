//! The table of log events, and which events are about a worker.

use super::table::{Cell, Column, Row, Table, Tone};
use tokio_prefork::WorkerId;
use tokio_prefork::control::Event;
use tokio_prefork::text::format_utc;
use tokio_prefork::text::printable;

/// Returns a row for each event, oldest first. Its key is the number of the event.
pub(super) fn event_table<'a>(events: impl Iterator<Item = &'a Event>) -> Table {
    let columns = vec![
        Column::text("TIME (UTC)").drop_order(1),
        Column::text("LEVEL").drop_order(2),
        Column::text("EVENT"),
    ];
    let rows = events.map(|event| Row {
        key: event.sequence,
        cells: vec![
            Cell::text(time_of_day(event.time_ms)),
            Cell::text(printable(&event.level)),
            Cell::text(printable(&event.text)),
        ],
        tone: match event.level.as_str() {
            "error" => Tone::Error,
            "warn" => Tone::Warning,
            _ => Tone::Normal,
        },
    });
    Table { columns, rows: rows.collect() }
}

/// Returns the time of day in UTC, as in the log: `10:00:00.123`.
pub(super) fn time_of_day(time_ms: u64) -> String {
    let date_and_time = format_utc(time_ms);
    let time = date_and_time.split_once('T').map_or("", |(_, time)| time);
    time.trim_end_matches('Z').to_string()
}

/// Returns whether an event is about this worker.
pub(super) fn is_about(event: &Event, worker: WorkerId) -> bool {
    let tag = format!("worker={worker}");
    let mut words = event.text.split(|c: char| c.is_whitespace() || ",;:()".contains(c));
    words.any(|word| word == tag)
}

#[cfg(test)]
mod tests {
    use super::super::test_support::event;
    use super::*;

    #[test]
    fn events_have_time_level_and_a_printable_text() {
        let events = [event(7, "error", "\u{1b}[2J"), event(8, "info", "ready")];
        let table = event_table(events.iter());
        assert_eq!(table.rows[0].cells[0].text, "10:00:00.130");
        assert!(!table.rows[0].cells[2].text.contains('\u{1b}'));
        let tones: Vec<(u64, Tone)> = table.rows.iter().map(|row| (row.key, row.tone)).collect();
        assert_eq!(tones, [(7, Tone::Error), (8, Tone::Normal)]);
    }

    #[test]
    fn an_event_is_about_the_worker_that_its_tag_names() {
        for text in ["worker=3 slot=0 ready", "stalled: worker=3", "killed (worker=3, pid=1)"] {
            assert!(is_about(&event(1, "info", text), WorkerId(3)), "{text}");
        }
        for text in ["worker=31 slot=0 ready", "worker 3", "slot=3"] {
            assert!(!is_about(&event(1, "info", text), WorkerId(3)), "{text}");
        }
    }
}
