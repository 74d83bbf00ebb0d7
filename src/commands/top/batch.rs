//! `prefork top --batch`: plain frames on standard output, for scripts and files.

use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::draw::{Canvas, draw_body, draw_summary};
use super::model::Model;
use super::sample::SampleSource;
use super::theme::Theme;
use crate::output::print_stdout;
use tokio_prefork::text::format_utc;
use tokio_prefork::{Result, exit};

/// The width of a frame if neither `COLUMNS` nor a terminal says another one.
const DEFAULT_WIDTH: u16 = 160;

/// The widest frame.
const MAX_WIDTH: u16 = 1000;

/// The highest table of a frame.
const MAX_ROWS: u16 = 10_000;

/// Prints a frame after each interval, until the reader closes the pipe or this number is reached.
///
/// # Errors
///
/// The primary does not answer, or standard output cannot be written.
pub(super) fn run_batch(
    mut model: Model,
    mut source: SampleSource,
    iterations: Option<u64>,
) -> Result<ExitCode> {
    let width = frame_width();
    let theme = Theme { has_colors: false, ..Theme::from_environment() };
    let mut left = iterations;
    while left != Some(0) {
        std::thread::sleep(model.interval());
        // The sample at the start is the base of the first rates.
        let sample = source.take_sample()?;
        model.apply(Ok(sample), Instant::now());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis());
        let time = format_utc(u64::try_from(now).unwrap_or_default());
        if !print_stdout(&format!("{time}\n{}\n", frame_text(&mut model, theme, width)))? {
            break;
        }
        left = left.map(|left| left - 1);
    }
    Ok(ExitCode::from(exit::OK))
}

/// Returns the lines of a frame: the summary, an empty line and the table with all rows.
pub(super) fn frame_text(model: &mut Model, theme: Theme, width: u16) -> String {
    let rows = u16::try_from(model.table().rows.len()).unwrap_or(MAX_ROWS).min(MAX_ROWS);
    // A line for the head of the table, and one for the text of an empty table.
    let table_height = rows.max(1) + 1;
    let mut summary = Buffer::empty(Rect::new(0, 0, width, 4));
    let area = summary.area;
    draw_summary(model, &mut Canvas { buffer: &mut summary, theme }, area);
    let mut table = Buffer::empty(Rect::new(0, 0, width, table_height));
    let area = table.area;
    draw_body(model, &mut Canvas { buffer: &mut table, theme }, area);
    format!("{}\n{}", buffer_text(&summary), buffer_text(&table))
}

/// Returns the lines of a buffer, without spaces at their ends.
pub(super) fn buffer_text(buffer: &Buffer) -> String {
    let area = buffer.area;
    let line = |y| {
        let mut text = String::new();
        let mut x = area.left();
        while x < area.right() {
            let symbol = buffer[(x, y)].symbol();
            text.push_str(symbol);
            // A wide character also takes the cells behind it.
            x += u16::try_from(super::draw::display_width(symbol)).unwrap_or(1).max(1);
        }
        text.trim_end().to_string() + "\n"
    };
    (area.top()..area.bottom()).map(line).collect()
}

/// Returns the width that `COLUMNS` says, else that of the terminal.
fn frame_width() -> u16 {
    let variable = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let terminal = || {
        let size = super::terminal::has_terminal().then(crossterm::terminal::size);
        size.and_then(|size| size.ok()).map(|(width, _)| width)
    };
    let width = variable.or_else(terminal).filter(|width| *width > 0);
    width.unwrap_or(DEFAULT_WIDTH).clamp(20, MAX_WIDTH)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::model::View;
    use super::super::test_support::sample;
    use super::*;

    #[test]
    fn a_frame_has_the_summary_and_all_rows_without_escape_sequences() {
        let mut sample = sample(|status| {
            let worker = status.workers[0].clone();
            status.workers.extend((0..100).map(|n| {
                let mut worker = worker.clone();
                worker.id.0 = 100 + n;
                worker
            }));
        });
        sample.status.workers[0].serving[1].request = "GET /日本".to_string();
        let mut model = Model::new(sample, View::Workers, Duration::from_secs(1));
        let theme = Theme { has_colors: false, has_unicode: true };
        let text = frame_text(&mut model, theme, 160);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("prefork 0.1.0  running  generation 2"), "{text}");
        assert_eq!(lines[4], "");
        assert!(lines[5].starts_with("SLOT▲  WORKER  GEN"), "{text}");
        assert_eq!(lines.len(), 6 + 102);
        assert!(lines.iter().any(|line| line.ends_with("GET /日本 (on loop)")), "{text}");
        assert!(!text.contains('\u{1b}'));
    }
}
