//! Fits a table into a terminal: which columns are drawn, how wide they are, and the drawing.

use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};

use super::draw::{Canvas, display_width};
use super::table::{Column, Row, SortOrder, Table};
use super::theme::Theme;

/// The least width of the last column, if it is a text.
const MIN_LAST_WIDTH: usize = 8;

/// From this width of the terminal on, two spaces are between the columns, else one.
const WIDE_TERMINAL: u16 = 100;

/// A column that is drawn.
#[derive(Debug, PartialEq, Eq)]
struct ShownColumn {
    index: usize,
    width: usize,
}

/// Draws the head and the rows from `first_row` on, as far as there is room.
pub(super) fn draw_table(
    table: &Table,
    canvas: &mut Canvas,
    area: Rect,
    order: Option<SortOrder>,
    first_row: usize,
    selected: Option<usize>,
) {
    let gap = if area.width >= WIDE_TERMINAL { 2 } else { 1 };
    let shown = shown_columns(table, canvas.theme, usize::from(area.width), gap, order);
    let head = Style::new().add_modifier(Modifier::REVERSED);
    canvas.buffer.set_style(Rect { height: 1, ..area }, head);
    let titles = shown.iter().map(|shown| {
        let column = &table.columns[shown.index];
        let is_sorted = order.is_some_and(|order| order.column == column.title);
        let style = if is_sorted { head.add_modifier(Modifier::BOLD) } else { head };
        (title(column, order, canvas.theme), style)
    });
    let titles: Vec<(String, Style)> = titles.collect();
    draw_cells(table, &shown, canvas, area, gap, |index| titles[index].clone());
    let rows = table.rows.iter().enumerate().skip(first_row);
    for (y, (index, row)) in (area.y + 1..area.bottom()).zip(rows) {
        let mut style = canvas.theme.style(row.tone);
        if selected == Some(index) {
            style = style.add_modifier(Modifier::REVERSED);
        }
        let line = Rect { y, height: 1, ..area };
        canvas.buffer.set_style(line, style);
        let cell = |at: usize| (row.cells[shown[at].index].text.clone(), style);
        draw_cells(table, &shown, canvas, line, gap, cell);
    }
}

/// Draws a line of cells. `cell` returns the text and the style of the n-th shown column.
fn draw_cells(
    table: &Table,
    shown: &[ShownColumn],
    canvas: &mut Canvas,
    line: Rect,
    gap: u16,
    cell: impl Fn(usize) -> (String, Style),
) {
    let mut x = line.x;
    for (at, column) in shown.iter().enumerate() {
        let (text, style) = cell(at);
        let room = line.right().saturating_sub(x).min(column.width as u16);
        let indent = match table.columns[column.index].is_number {
            true => room.saturating_sub(display_width(&canvas.theme.text(&text)) as u16),
            false => 0,
        };
        canvas.write(x + indent, line.y, room - indent, &text, style);
        x = x.saturating_add(column.width as u16 + gap);
        if x >= line.right() {
            break;
        }
    }
}

fn title(column: &Column, order: Option<SortOrder>, theme: Theme) -> String {
    match order {
        Some(order) if order.column == column.title => {
            format!("{}{}", column.title, theme.sort_mark(order.is_descending))
        }
        _ => column.title.to_string(),
    }
}

/// Chooses the columns that fit, and their widths. The column of the order stays. If the last one is a text, it takes the room
/// that is left.
fn shown_columns(
    table: &Table,
    theme: Theme,
    room: usize,
    gap: u16,
    order: Option<SortOrder>,
) -> Vec<ShownColumn> {
    let width = |index: usize| {
        let cell = |row: &Row| display_width(&theme.text(&row.cells[index].text));
        let title = display_width(&title(&table.columns[index], order, theme));
        table.rows.iter().map(cell).max().unwrap_or(0).max(title)
    };
    let mut shown: Vec<ShownColumn> =
        (0..table.columns.len()).map(|index| ShownColumn { index, width: width(index) }).collect();
    let is_flexible = |column: &ShownColumn| {
        column.index + 1 == table.columns.len() && !table.columns[column.index].is_number
    };
    loop {
        let needed = shown.iter().map(|column| match is_flexible(column) {
            true => column.width.min(MIN_LAST_WIDTH),
            false => column.width,
        });
        let needed = needed.sum::<usize>() + usize::from(gap) * shown.len().saturating_sub(1);
        if needed <= room {
            break;
        }
        let is_sorted = |column: &Column| order.is_some_and(|order| order.column == column.title);
        let droppable = shown.iter().enumerate().filter(|(_, shown)| {
            let column = &table.columns[shown.index];
            column.drop_order > 0 && !is_sorted(column)
        });
        let next = droppable.max_by_key(|(_, shown)| table.columns[shown.index].drop_order);
        let Some((at, _)) = next else { break };
        shown.remove(at);
    }
    if shown.last().is_some_and(is_flexible) {
        let others = shown.iter().rev().skip(1).map(|column| column.width + usize::from(gap));
        let left = room.saturating_sub(others.sum());
        if let Some(last) = shown.last_mut() {
            last.width = left;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::super::table::{Cell, Tone};
    use super::*;

    const THEME: Theme = Theme { has_colors: false, has_unicode: true };

    fn table() -> Table {
        let columns = vec![
            Column::identity("SLOT"),
            Column::number("RATE").drop_order(1),
            Column::text("TEXT").drop_order(2),
        ];
        let cells = vec![Cell::count(1), Cell::count(123_456), Cell::text("日本語 and more text")];
        Table { columns, rows: vec![Row { key: 1, cells, tone: Tone::Normal }] }
    }

    fn shown(room: usize, order: Option<SortOrder>) -> Vec<(usize, usize)> {
        let shown = shown_columns(&table(), THEME, room, 1, order);
        shown.iter().map(|column| (column.index, column.width)).collect()
    }

    #[test]
    fn the_last_text_takes_the_room_that_is_left() {
        assert_eq!(shown(60, None), [(0, 4), (1, 6), (2, 48)]);
    }

    #[test]
    fn columns_are_left_out_by_their_order() {
        assert_eq!(shown(19, None), [(0, 4), (1, 6)]);
        assert_eq!(shown(10, None), [(0, 4)]);
        assert_eq!(shown(1, None), [(0, 4)]);
    }

    #[test]
    fn the_column_of_the_order_stays_and_has_room_for_its_mark() {
        let order = Some(SortOrder { column: "RATE", is_descending: true });
        assert_eq!(shown(10, order), [(0, 4), (1, 6)]);
        let order = Some(SortOrder { column: "SLOT", is_descending: false });
        assert_eq!(shown(10, order), [(0, 5)]);
    }
}
