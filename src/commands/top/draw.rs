//! Draws the model into a buffer of cells: a screen, or a frame of `--batch`.

use std::time::Instant;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::Span;

use super::details::overlay_lines;
use super::format::format_ms;
use super::model::{Connection, Model, Overlay, View};
use super::summary::{Piece, summary_lines};
use super::table::Tone;
use super::table_layout::draw_table;
use super::theme::Theme;
use tokio_prefork::text::printable;

/// Between the pieces of a line.
const PIECE_GAP: &str = "  ";

/// How many lines a message may take.
const MAX_MESSAGE_LINES: usize = 3;

/// The keys that the last line names, the most important ones first.
const HINTS: [&str; 8] = [
    "? help",
    "q quit",
    "Tab view",
    "Enter details",
    "< > sort",
    "/ filter",
    "p pause",
    "+ - interval",
];

/// A canvas with a style for this terminal.
pub(super) struct Canvas<'a> {
    pub(super) buffer: &'a mut Buffer,
    pub(super) theme: Theme,
}

impl Canvas<'_> {
    /// Writes a text into the cells of a line from `x` on, cut to `width` cells with a mark. Returns how many cells it took.
    pub(super) fn write(&mut self, x: u16, y: u16, width: u16, text: &str, style: Style) -> u16 {
        let text = self.theme.text(text);
        if width == 0 {
            return 0;
        }
        if display_width(&text) <= usize::from(width) {
            return self.buffer.set_stringn(x, y, &*text, usize::from(width), style).0 - x;
        }
        // A wide character that does not fit leaves a cell free.
        let (end, _) = self.buffer.set_stringn(x, y, &*text, usize::from(width) - 1, style);
        self.buffer.set_string(end, y, self.theme.cut_mark(), style);
        end + 1 - x
    }

    /// Writes as many whole pieces as fit into the line, the first one cut if need be.
    fn write_pieces(&mut self, area: Rect, y: u16, pieces: &[Piece]) {
        let mut x = area.x;
        for (index, piece) in pieces.iter().enumerate() {
            let gap = if index == 0 { 0 } else { PIECE_GAP.len() as u16 };
            let room = area.right().saturating_sub(x).saturating_sub(gap);
            let width = display_width(&self.theme.text(&piece.text));
            if index > 0 && width > usize::from(room) {
                break;
            }
            x += gap;
            x += self.write(x, y, room, &piece.text, self.theme.style(piece.tone));
        }
    }

    /// Fills a line with a style, and writes a text into it.
    fn write_bar(&mut self, area: Rect, y: u16, text: &str, style: Style) {
        self.buffer.set_style(Rect { y, height: 1, ..area }, style);
        self.write(area.x, y, area.width, text, style);
    }
}

/// Returns how many cells a text takes.
pub(super) fn display_width(text: &str) -> usize {
    Span::raw(text).width()
}

/// Draws the whole screen.
pub(super) fn draw_screen(model: &mut Model, canvas: &mut Canvas, area: Rect, now: Instant) {
    if area.width == 0 || area.height == 0 {
        return;
    }
    let summary_room = match area.height {
        0..=5 => 1,
        6..=9 => 2,
        10..=13 => 3,
        _ => 4,
    };
    let footer = footer_lines(model, canvas.theme, area, now);
    let footer_height = footer.len() as u16;
    let has_tabs = area.height >= 8;
    let summary = Rect { height: summary_room, ..area };
    draw_summary(model, canvas, summary);
    let mut y = summary.bottom();
    if has_tabs {
        draw_tabs(model, canvas, Rect { y, height: 1, ..area });
        y += 1;
    }
    let end = area.bottom().saturating_sub(footer_height);
    let body = Rect { y, height: end.saturating_sub(y), ..area };
    draw_body(model, canvas, body);
    for (y, line) in (end..area.bottom()).zip(footer) {
        match line {
            FooterLine::Keys(pieces) => canvas.write_pieces(area, y, &pieces),
            FooterLine::Message(text, tone) => {
                let style = canvas.theme.style(tone).add_modifier(Modifier::REVERSED);
                canvas.write_bar(area, y, &text, style);
            }
        }
    }
}

/// Draws as many lines of the summary as there is room for, at most four.
pub(super) fn draw_summary(model: &Model, canvas: &mut Canvas, area: Rect) {
    let lines = summary_lines(model.sample(), model.rates(), usize::from(area.height));
    for (y, line) in (area.y..area.bottom()).zip(lines) {
        canvas.write_pieces(area, y, &line);
    }
}

/// Draws the table of the view, or what covers it.
pub(super) fn draw_body(model: &mut Model, canvas: &mut Canvas, body: Rect) {
    if body.height == 0 {
        return;
    }
    match model.overlay() {
        Some(overlay) => draw_overlay(model, overlay, canvas, body),
        None => draw_view(model, canvas, body),
    }
}

fn draw_tabs(model: &Model, canvas: &mut Canvas, line: Rect) {
    let mut x = line.x;
    for (index, view) in View::ALL.into_iter().enumerate() {
        let style = match view == model.view() {
            true => Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED),
            false => Style::new(),
        };
        let room = line.right().saturating_sub(x);
        x += canvas.write(x, line.y, room, &format!("{} {}", index + 1, view.name()), style);
        x += PIECE_GAP.len() as u16;
    }
    let interval = format_ms(u64::try_from(model.interval().as_millis()).unwrap_or(u64::MAX));
    let mut pieces = vec![match model.is_paused() {
        true => Piece { text: "PAUSED".to_string(), tone: Tone::Warning },
        false => Piece::new(format!("every {interval}")),
    }];
    if !model.filter().is_empty() {
        pieces.push(Piece::new(format!("filter: {}", printable(model.filter()))));
    }
    let rest = Rect { x, width: line.right().saturating_sub(x), ..line };
    if rest.width > 0 {
        canvas.write_pieces(rest, line.y, &pieces);
    }
}

fn draw_view(model: &mut Model, canvas: &mut Canvas, body: Rect) {
    let table = model.table();
    let selected = model.selected_index(&table);
    let rows = usize::from(body.height).saturating_sub(1);
    model.page_rows = rows.max(1);
    model.first_row = first_row(model.first_row, selected.unwrap_or(0), rows, table.rows.len());
    draw_table(&table, canvas, body, model.sort_order(), model.first_row, selected);
    if table.rows.is_empty() && body.height > 1 {
        canvas.write(body.x, body.y + 1, body.width, empty_text(model), Style::new());
    }
}

fn empty_text(model: &Model) -> &'static str {
    match model.view() {
        _ if !model.filter().is_empty() => "no row contains the filter",
        View::Workers => "no workers",
        View::Pools => "no CPU pool was used, and there is no isolated pool",
        View::Events => "no events",
        View::Shared => "the application shares nothing",
    }
}

/// Returns the first row to draw, so that the selected one is visible and no room is left at the end.
fn first_row(first: usize, selected: usize, room: usize, rows: usize) -> usize {
    let lowest = (selected + 1).saturating_sub(room);
    first.clamp(lowest, selected.max(lowest)).min(rows.saturating_sub(room))
}

fn draw_overlay(model: &mut Model, overlay: Overlay, canvas: &mut Canvas, body: Rect) {
    let lines = overlay_lines(model, overlay);
    let mut rows: Vec<(String, Style)> = Vec::new();
    for line in lines {
        let style = match line.is_heading {
            true => Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED),
            false => canvas.theme.style(line.tone),
        };
        let text = canvas.theme.text(&line.text);
        rows.extend(wrap(&text, usize::from(body.width)).into_iter().map(|row| (row, style)));
    }
    let room = usize::from(body.height);
    model.page_rows = room;
    model.overlay_scroll = model.overlay_scroll.min(rows.len().saturating_sub(room));
    for (y, (text, style)) in (body.y..).zip(rows.iter().skip(model.overlay_scroll).take(room)) {
        canvas.write(body.x, y, body.width, text, *style);
    }
}

/// Breaks a text into lines of at most `width` cells, at spaces where there are any.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_inclusive(' ') {
        let needed = display_width(word.trim_end());
        if used > 0 && used + needed > width {
            lines.push(String::new());
            used = 0;
        }
        for c in word.chars() {
            let cells = display_width(c.encode_utf8(&mut [0; 4]));
            if used + cells > width && c != ' ' && used > 0 {
                lines.push(String::new());
                used = 0;
            }
            if let Some(line) = lines.last_mut() {
                line.push(c);
            }
            used += cells;
        }
    }
    lines.iter_mut().for_each(|line| line.truncate(line.trim_end().len()));
    lines
}

/// A line at the end of the screen.
enum FooterLine {
    Keys(Vec<Piece>),
    Message(String, Tone),
}

/// Returns the last lines: the filter that is typed, why the primary does not answer, or the keys. A low terminal has no room
/// for the keys.
fn footer_lines(model: &Model, theme: Theme, area: Rect, now: Instant) -> Vec<FooterLine> {
    let is_editing = model.is_editing();
    let (text, tone) = match model.connection() {
        _ if is_editing => (format!("filter: {}_", printable(model.filter())), Tone::Normal),
        Connection::Live if area.height < 6 => return Vec::new(),
        Connection::Live => return vec![FooterLine::Keys(hints(model))],
        Connection::Lost { reason, since } => {
            let age = now.saturating_duration_since(*since).as_millis();
            let age = format_ms(u64::try_from(age).unwrap_or(u64::MAX));
            (format!("connection lost {age} ago: {}", printable(reason)), Tone::Error)
        }
    };
    // The table keeps most of the screen.
    let room = usize::from(area.height / 4).clamp(1, MAX_MESSAGE_LINES);
    let mut lines = wrap(&theme.text(&text), usize::from(area.width));
    if area.height < 2 {
        return Vec::new();
    }
    if is_editing {
        // The end of the text is where the next character goes.
        lines.drain(..lines.len().saturating_sub(1));
    }
    if lines.len() > room {
        let rest = lines.split_off(room - 1).join(" ");
        lines.push(rest);
    }
    lines.into_iter().map(|line| FooterLine::Message(line, tone)).collect()
}

fn hints(model: &Model) -> Vec<Piece> {
    let hints = match model.overlay() {
        Some(_) => &["Esc back", "Up Down scroll", "q quit"][..],
        None => &HINTS[..],
    };
    hints.iter().map(|hint| Piece::new(*hint)).collect()
}

#[cfg(test)]
#[path = "draw_tests.rs"]
mod tests;
