//! Reports: a Markdown table, or JSON with every value of every round.

use super::median;
use super::rounds::Series;

/// How a column aggregates the values with the given index.
pub enum ColumnValue {
    /// The median over the rounds, with minimum and maximum.
    Median(usize),
    /// The maximum over the rounds.
    Worst(usize),
    /// The sum over the rounds.
    Total(usize),
    /// The median of the ratio to the floor measured close in time.
    ToFloor(usize),
    /// This value and the next as `most/fewest`, of the round with the largest difference.
    Spread(usize),
}

/// One column of the table.
pub struct Column {
    pub title: String,
    pub digits: usize,
    pub show: ColumnValue,
}

/// Creates a column.
pub fn column(title: impl Into<String>, digits: usize, show: ColumnValue) -> Column {
    Column { title: title.into(), digits, show }
}

/// Formats the results as a Markdown table.
pub fn table(title: &str, columns: &[Column], all: &[Series]) -> String {
    let mut rows = vec![vec![String::from("server")]];
    rows[0].extend(columns.iter().map(|column| column.title.clone()));
    for series in all {
        let cells = columns.iter().map(|column| column.cell(series));
        rows.push(std::iter::once(series.target.title()).chain(cells).collect());
    }
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|n| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| -> String {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!(" {cell:width$} |"));
        format!("|{}\n", cells.collect::<String>())
    };
    let rule: String = widths.iter().map(|width| format!("{}|", "-".repeat(width + 2))).collect();
    let body: String = rows[1..].iter().map(line).collect();
    format!("\n{title}\n\n{}|{rule}\n{body}", line(&rows[0]))
}

impl Column {
    fn cell(&self, series: &Series) -> String {
        let digits = self.digits;
        let values = |n: usize| -> Vec<f64> {
            series.samples.iter().filter_map(|sample| sample.values.get(n).copied()).collect()
        };
        match self.show {
            ColumnValue::Median(n) => range(&values(n), digits),
            ColumnValue::Worst(n) => number(values(n).into_iter().fold(f64::NAN, f64::max), digits),
            ColumnValue::Total(n) => number(values(n).into_iter().sum(), digits),
            ColumnValue::ToFloor(n) => {
                let ratio = |sample: &super::rounds::Sample| {
                    Some(sample.values.get(n)? / sample.floor.as_ref()?.get(n)?)
                };
                range(&series.samples.iter().filter_map(ratio).collect::<Vec<_>>(), digits)
            }
            ColumnValue::Spread(n) => {
                let pairs = values(n).into_iter().zip(values(n + 1));
                let worst = pairs.max_by(|a, b| (a.0 - a.1).total_cmp(&(b.0 - b.1)));
                worst.map_or_else(|| "-".into(), |(most, fewest)| format!("{most:.0}/{fewest:.0}"))
            }
        }
    }
}

fn number(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { "-".into() }
}

fn range(values: &[f64], digits: usize) -> String {
    let least = values.iter().copied().fold(f64::NAN, f64::min);
    let most = values.iter().copied().fold(f64::NAN, f64::max);
    let middle = number(median(values), digits);
    if values.len() < 2 || number(least, digits) == number(most, digits) {
        return middle;
    }
    format!("{middle} ({}-{})", number(least, digits), number(most, digits))
}

/// Formats the results as one line of JSON, with the `names` of the values.
pub fn json(title: &str, names: &[String], all: &[Series]) -> String {
    let named = |values: &Vec<f64>| -> serde_json::Value {
        names.iter().cloned().zip(values.iter().map(|v| serde_json::json!(v))).collect()
    };
    let rounds = |series: &Series| -> Vec<serde_json::Value> {
        let samples = series.samples.iter();
        samples
            .map(|s| serde_json::json!({"values": named(&s.values), "floor": s.floor.as_ref().map(named)}))
            .collect()
    };
    let servers: serde_json::Map<String, serde_json::Value> =
        all.iter().map(|series| (series.target.title(), rounds(series).into())).collect();
    serde_json::json!({"what": title, "servers": servers}).to_string()
}
