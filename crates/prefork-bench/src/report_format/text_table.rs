//! Text tables for a terminal, and readable durations, counts and sizes.

use std::fmt::Write;

/// Writes right-aligned rows, each column as wide as its widest cell.
pub(crate) fn write_table<const N: usize>(text: &mut String, rows: &[[String; N]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}"));
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  "));
    }
}

/// Writes rows of the same number of cells, each column as wide as its widest cell, the first one left-aligned.
pub(crate) fn write_rows(text: &mut String, rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells =
            row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
                0 => format!("{cell:width$}"),
                _ => format!("{cell:>width$}"),
            });
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// Writes left-aligned rows, each column as wide as its widest cell.
pub(crate) fn write_left_table<const N: usize>(text: &mut String, rows: &[[String; N]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// Writes a table, followed by an empty line. The first column is left-aligned.
pub(crate) fn write_section<const N: usize>(text: &mut String, rows: &mut [[String; N]]) {
    let width = rows.iter().map(|row| row[0].chars().count()).max().unwrap_or(0);
    rows.iter_mut().for_each(|row| row[0] = format!("{:width$}", row[0]));
    write_table(text, rows);
    // Writing to a string cannot fail.
    let _ = writeln!(text);
}

/// Formats microseconds with a unit.
pub(crate) fn format_micros(micros: f64) -> String {
    match micros {
        us if us < 1000.0 => format!("{us:.0} us"),
        us if us < 10_000.0 => format!("{:.2} ms", us / 1e3),
        us if us < 1_000_000.0 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// Formats microseconds for an axis, whose ticks are round numbers: `1 ms`.
pub(crate) fn format_tick_micros(micros: f64) -> String {
    format_micros(micros).replace(".00 ", " ")
}

/// Formats a number in groups of three digits, as `1 234 567`.
pub(crate) fn format_count(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Formats a number for an axis label.
pub(crate) fn compact_number(number: f64) -> String {
    match number {
        n if n < 10_000.0 => format!("{n}"),
        n if n < 1e6 => format!("{}k", n / 1e3),
        n => format!("{}M", n / 1e6),
    }
}

/// Formats a number of bytes with a unit.
pub(crate) fn format_bytes(number: f64) -> String {
    match number {
        n if n < 1e3 => format!("{n:.0} B"),
        n if n < 1e6 => format!("{:.1} kB", n / 1e3),
        n if n < 1e9 => format!("{:.1} MB", n / 1e6),
        n => format!("{:.2} GB", n / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_formatted_with_units() {
        let times = [0.4, 999.0, 1500.0, 15_000.0, 2_500_000.0].map(format_micros);
        assert_eq!(times, ["0 us", "999 us", "1.50 ms", "15 ms", "2.50 s"]);
        assert_eq!([7.0, 1234.0, 1_234_567.0].map(format_count), ["7", "1 234", "1 234 567"]);
        assert_eq!(
            [999.0, 1500.0, 2.5e6, 3e9].map(format_bytes),
            ["999 B", "1.5 kB", "2.5 MB", "3.00 GB"]
        );
    }
}
