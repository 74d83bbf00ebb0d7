//! Tables of any view: columns, rows, sorting and filtering. Drawing is elsewhere.

use std::cmp::Ordering;

/// A table of a view.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Row>,
}

/// A column. The last one of a table takes the room that is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) title: &'static str,
    /// Numbers are right-aligned, and sorted with the largest first.
    pub(super) is_number: bool,
    /// Whether sorting by the column begins with the largest value.
    pub(super) is_largest_first: bool,
    /// In a narrow terminal, columns with a higher number are left out first; those with 0 stay.
    pub(super) drop_order: u8,
}

/// A row with a cell for each column.
#[derive(Debug)]
pub(super) struct Row {
    /// Identifies the row from one sample to the next.
    pub(super) key: u64,
    pub(super) cells: Vec<Cell>,
    pub(super) tone: Tone,
}

/// What a row is, for its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Normal,
    /// Starts or ends, without trouble.
    Changing,
    /// Needs attention.
    Warning,
    /// Does not work.
    Error,
}

/// The text of a cell, and what it is sorted by.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) text: String,
    sort_key: SortKey,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum SortKey {
    /// The text of the cell.
    Text,
    Number(f64),
    /// Sorted behind all others, in both directions.
    Missing,
}

/// The column that a table is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SortOrder {
    pub(super) column: &'static str,
    pub(super) is_descending: bool,
}

impl Column {
    /// A column of text that stays down to the narrowest terminal.
    pub(super) const fn text(title: &'static str) -> Column {
        Column { title, is_number: false, is_largest_first: false, drop_order: 0 }
    }

    /// A column of numbers, of which the largest are of interest.
    pub(super) const fn number(title: &'static str) -> Column {
        Column { title, is_number: true, is_largest_first: true, drop_order: 0 }
    }

    /// A column of numbers that identify something.
    pub(super) const fn identity(title: &'static str) -> Column {
        Column { title, is_number: true, is_largest_first: false, drop_order: 0 }
    }

    /// Sets when to leave the column out.
    pub(super) const fn drop_order(mut self, order: u8) -> Column {
        self.drop_order = order;
        self
    }

    /// Returns the order that sorting by this column begins with.
    pub(super) fn sort_order(&self) -> SortOrder {
        SortOrder { column: self.title, is_descending: self.is_largest_first }
    }
}

impl Cell {
    /// A text, sorted as such.
    pub(super) fn text(text: impl Into<String>) -> Cell {
        Cell { text: text.into(), sort_key: SortKey::Text }
    }

    /// The text of a number, sorted by the number; `None` is unknown.
    pub(super) fn number(value: Option<f64>, text: impl Into<String>) -> Cell {
        let sort_key = value.filter(|value| !value.is_nan());
        Cell { text: text.into(), sort_key: sort_key.map_or(SortKey::Missing, SortKey::Number) }
    }

    /// A whole number.
    pub(super) fn count(count: u64) -> Cell {
        Cell::number(Some(count as f64), count.to_string())
    }

    fn compare(&self, other: &Cell, is_descending: bool) -> Ordering {
        let in_direction =
            |ordering: Ordering| if is_descending { ordering.reverse() } else { ordering };
        match (self.sort_key, other.sort_key) {
            (SortKey::Number(one), SortKey::Number(two)) => in_direction(one.total_cmp(&two)),
            (SortKey::Text, SortKey::Text) => in_direction(self.text.cmp(&other.text)),
            (SortKey::Missing, SortKey::Missing) => Ordering::Equal,
            (SortKey::Missing, _) => Ordering::Greater,
            (_, SortKey::Missing) => Ordering::Less,
            (SortKey::Number(_), SortKey::Text) => Ordering::Less,
            (SortKey::Text, SortKey::Number(_)) => Ordering::Greater,
        }
    }
}

impl Table {
    /// Sorts the rows. Equal ones keep their order.
    pub(super) fn sort(&mut self, order: SortOrder) {
        let Some(index) = self.column_index(order.column) else { return };
        self.rows.sort_by(|one, two| match (one.cells.get(index), two.cells.get(index)) {
            (Some(one), Some(two)) => one.compare(two, order.is_descending),
            _ => Ordering::Equal,
        });
    }

    /// Keeps the rows of which a cell contains this text in whatever case.
    pub(super) fn filter(&mut self, text: &str) {
        let text = text.to_lowercase();
        let contains = |cell: &Cell| cell.text.to_lowercase().contains(&text);
        self.rows.retain(|row| text.is_empty() || row.cells.iter().any(contains));
    }

    /// Removes a column.
    pub(super) fn remove_column(&mut self, title: &str) {
        let Some(index) = self.column_index(title) else { return };
        self.columns.remove(index);
        self.rows.iter_mut().for_each(|row| drop(row.cells.remove(index)));
    }

    fn column_index(&self, title: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.title == title)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let columns = vec![Column::text("NAME"), Column::number("RATE")];
        let row = |key, name: &str, rate: Option<f64>| Row {
            key,
            cells: vec![Cell::text(name), Cell::number(rate, format!("{rate:?}"))],
            tone: Tone::Normal,
        };
        let rows = vec![
            row(1, "b", Some(9.0)),
            row(2, "a", None),
            row(3, "C", Some(10.0)),
            row(4, "d", Some(9.0)),
        ];
        Table { columns, rows }
    }

    fn keys(table: &Table) -> Vec<u64> {
        table.rows.iter().map(|row| row.key).collect()
    }

    #[test]
    fn numbers_are_sorted_by_value_and_unknown_ones_are_last() {
        let mut table = table();
        table.sort(Column::number("RATE").sort_order());
        assert_eq!(keys(&table), [3, 1, 4, 2]);
        table.sort(SortOrder { column: "RATE", is_descending: false });
        assert_eq!(keys(&table), [1, 4, 3, 2]);
        table.sort(Column::text("NAME").sort_order());
        assert_eq!(keys(&table), [3, 2, 1, 4]);
        table.sort(SortOrder { column: "GONE", is_descending: false });
        assert_eq!(keys(&table), [3, 2, 1, 4]);
    }

    #[test]
    fn the_filter_ignores_case_and_looks_at_each_cell() {
        let mut table = table();
        table.filter("c");
        assert_eq!(keys(&table), [3]);
        let mut table = self::table();
        table.filter("9.0");
        assert_eq!(keys(&table), [1, 4]);
        table.filter("");
        assert_eq!(keys(&table), [1, 4]);
    }

    #[test]
    fn a_removed_column_takes_its_cells_along() {
        let mut table = table();
        table.remove_column("NAME");
        assert!(table.columns.len() == 1 && table.rows.iter().all(|row| row.cells.len() == 1));
    }
}
