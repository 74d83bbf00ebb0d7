//! `prefork check`: validates the configuration and prints every value with its source.

use std::process::ExitCode;

use serde_json::{Map, Value, json};

use crate::settings::{ConfigSources, EffectiveValue, FlagValues};
use tokio_prefork::Result;
use tokio_prefork::log_file::LogFile;
use tokio_prefork::text::{printable, printable_json};

/// Prints the effective configuration. Fails if it is invalid or the log file cannot be written.
pub(crate) fn run_check(flags: FlagValues, json: bool) -> Result<ExitCode> {
    let settings = ConfigSources::from_process(flags).resolve()?;
    for warning in &settings.warnings {
        crate::output::print_error(&format_args!("warning: {warning}"));
    }
    let status = crate::output::print_result(&if json {
        format_json(&settings.effective_values)
    } else {
        format_table(&settings.effective_values)
    })?;
    if let Some(path) = settings.config.log_file() {
        LogFile::check(path)?;
    }
    Ok(status)
}

/// Formats values as aligned columns; `-` if there is no value.
fn format_table(effective_values: &[EffectiveValue]) -> String {
    let mut rows = vec![["KEY".to_string(), "VALUE".to_string(), "SOURCE".to_string()]];
    rows.extend(effective_values.iter().map(|effective| {
        let value = if effective.value.is_empty() { "-" } else { &effective.value };
        let source = effective.source.to_string();
        [effective.key.to_string(), printable(value).into_owned(), printable(&source).into_owned()]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let (keys, values) = (width(0).unwrap_or(0), width(1).unwrap_or(0));
    rows.iter()
        .map(|[key, value, source]| format!("{key:keys$}  {value:values$}  {source}\n"))
        .collect()
}

/// Formats values as a JSON object that maps each key to value and source; `null` if there is no value.
fn format_json(effective_values: &[EffectiveValue]) -> String {
    let members = effective_values.iter().map(|effective| {
        let value = Some(&effective.value).filter(|value| !value.is_empty());
        let member = json!({ "value": value, "source": effective.source.to_string() });
        (effective.key.to_string(), member)
    });
    let json = format!("{:#}\n", Value::Object(members.collect::<Map<_, _>>()));
    printable_json(&json).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::ValueSource;

    fn effective_values() -> Vec<EffectiveValue> {
        vec![
            EffectiveValue {
                key: "workers",
                value: "4".into(),
                source: ValueSource::Flag("workers"),
            },
            EffectiveValue { key: "root", value: String::new(), source: ValueSource::Default },
            EffectiveValue {
                key: "log",
                value: "a\nb".into(),
                source: ValueSource::File { path: "p.toml".into(), line: 3 },
            },
        ]
    }

    #[test]
    fn table_is_aligned_with_one_escaped_line_per_key() {
        assert_eq!(
            format_table(&effective_values()),
            "KEY      VALUE  SOURCE\n\
             workers  4      --workers\n\
             root     -      default\n\
             log      a\\nb   p.toml:3\n"
        );
    }

    #[test]
    fn json_maps_each_key_to_value_and_source() {
        let text = format_json(&effective_values());
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            value,
            json!({
                "workers": { "value": "4", "source": "--workers" },
                "root": { "value": null, "source": "default" },
                "log": { "value": "a\nb", "source": "p.toml:3" },
            })
        );
    }
}
