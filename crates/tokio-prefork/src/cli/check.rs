//! The printed form of the effective configuration, for `--check-config` and `prefork check`.

use std::str::FromStr;

use serde_json::{Map, Value, json};

use super::app_keys::AppKeys;
use super::output::print_stdout;
use super::settings::{EffectiveValue, Settings};
use crate::config::{ParseValueError, parse_choice};
use crate::error::Result;
use crate::log_file::LogFile;
use crate::main_result::print_error;
use crate::text::{printable, printable_json};

/// How to print the effective configuration. Default: `Table`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CheckFormat {
    /// One line for each key, with its value and source in columns.
    #[default]
    Table,
    /// A JSON object that maps each key to its value and source.
    Json,
}

impl FromStr for CheckFormat {
    type Err = ParseValueError;

    /// # Errors
    ///
    /// Another word than `table` and `json`.
    fn from_str(text: &str) -> Result<CheckFormat, ParseValueError> {
        let choices = [("table", CheckFormat::Table), ("json", CheckFormat::Json)];
        parse_choice(text, "a format", &choices)
    }
}

impl<A: AppKeys> Settings<A> {
    /// Prints every value with its source to standard output, and warnings to standard error. Checks what a start
    /// would find out beside the values.
    ///
    /// # Errors
    ///
    /// A certificate, its key, the log file or standard output cannot be used. A closed pipe (`| head`) is not an error.
    pub fn print_check(&self, format: CheckFormat) -> Result<()> {
        for warning in self.warnings() {
            print_error(&format!("warning: {warning}"));
        }
        print_stdout(&match format {
            CheckFormat::Table => format_table(self.effective_values()),
            CheckFormat::Json => format_json(self.effective_values()),
        })?;
        for warning in self.config().clone().load_tls_certificates()? {
            print_error(&format!("warning: {warning}"));
        }
        self.config().log_file().map_or(Ok(()), LogFile::check)?;
        self.config().access_log().check()
    }
}

/// Formats values as aligned columns; `-` if there is no value.
fn format_table(effective_values: &[EffectiveValue]) -> String {
    let mut rows = vec![["KEY".to_string(), "VALUE".to_string(), "SOURCE".to_string()]];
    rows.extend(effective_values.iter().map(|effective| {
        let value = match (effective.value.as_str(), effective.resolved) {
            ("", _) => "-".to_string(),
            (value, Some(number)) => format!("{value} ({number})"),
            (value, None) => value.to_string(),
        };
        let source = effective.source.to_string();
        [effective.key.to_string(), printable(&value).into_owned(), printable(&source).into_owned()]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let (keys, values) = (width(0).unwrap_or(0), width(1).unwrap_or(0));
    rows.iter()
        .map(|[key, value, source]| format!("{key:keys$}  {value:values$}  {source}\n"))
        .collect()
}

/// Formats values as a JSON object that maps each key to value and source, and `auto` to its number too; `null` if there is no
/// value.
fn format_json(effective_values: &[EffectiveValue]) -> String {
    let members = effective_values.iter().map(|effective| {
        let value = Some(&effective.value).filter(|value| !value.is_empty());
        let mut member = json!({ "value": value, "source": effective.source.to_string() });
        if let Some(number) = effective.resolved {
            member["resolved"] = number.into();
        }
        (effective.key.to_string(), member)
    });
    let json = format!("{:#}\n", Value::Object(members.collect::<Map<_, _>>()));
    printable_json(&json).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ValueSource;

    fn effective_values() -> Vec<EffectiveValue> {
        vec![
            EffectiveValue {
                key: "workers",
                value: "auto".into(),
                resolved: Some(2),
                source: ValueSource::Flag("workers"),
            },
            EffectiveValue {
                key: "root",
                value: String::new(),
                resolved: None,
                source: ValueSource::Default,
            },
            EffectiveValue {
                key: "log",
                value: "a\nb".into(),
                resolved: None,
                source: ValueSource::File { path: "p.toml".into(), line: 3 },
            },
        ]
    }

    #[test]
    fn table_is_aligned_with_one_escaped_line_per_key() {
        assert_eq!(
            format_table(&effective_values()),
            "KEY      VALUE     SOURCE\n\
             workers  auto (2)  --workers\n\
             root     -         default\n\
             log      a\\nb      p.toml:3\n"
        );
    }

    #[test]
    fn json_maps_each_key_to_value_and_source() {
        let text = format_json(&effective_values());
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            value,
            json!({
                "workers": { "value": "auto", "resolved": 2, "source": "--workers" },
                "root": { "value": null, "source": "default" },
                "log": { "value": "a\nb", "source": "p.toml:3" },
            })
        );
    }
}
