//! `prefork check`: every value and who said it.

use std::process::ExitCode;

use serde_json::{Map, Value, json};

use crate::settings::{Inputs, Origin, RawFlags};
use tokio_prefork::Result;
use tokio_prefork::log_file::LogFile;
use tokio_prefork::text::{printable, printable_json};

pub(super) fn run(flags: RawFlags, json: bool) -> Result<ExitCode> {
    let settings = Inputs::of_process(flags).resolve()?;
    for warning in &settings.warnings {
        super::complain(&format_args!("warning: {warning}"));
    }
    let done =
        super::answer(&if json { object(&settings.origins) } else { table(&settings.origins) })?;
    if let Some(path) = &settings.config.log_file {
        LogFile::check(path)?;
    }
    Ok(done)
}

/// Aligned columns; `-` where there is no value.
fn table(origins: &[Origin]) -> String {
    let mut rows = vec![["KEY".to_string(), "VALUE".to_string(), "SOURCE".to_string()]];
    rows.extend(origins.iter().map(|origin| {
        let value = if origin.value.is_empty() { "-" } else { &origin.value };
        let source = origin.source.to_string();
        [origin.key.to_string(), printable(value).into_owned(), printable(&source).into_owned()]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let (keys, values) = (width(0).unwrap_or(0), width(1).unwrap_or(0));
    rows.iter()
        .map(|[key, value, source]| format!("{key:keys$}  {value:values$}  {source}\n"))
        .collect()
}

/// Key to value and source; `null` where there is no value.
fn object(origins: &[Origin]) -> String {
    let members = origins.iter().map(|origin| {
        let value = Some(&origin.value).filter(|value| !value.is_empty());
        let member = json!({ "value": value, "source": origin.source.to_string() });
        (origin.key.to_string(), member)
    });
    let json = format!("{:#}\n", Value::Object(members.collect::<Map<_, _>>()));
    printable_json(&json).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Source;

    fn origins() -> Vec<Origin> {
        vec![
            Origin { key: "workers", value: "4".into(), source: Source::Flag("workers") },
            Origin { key: "root", value: String::new(), source: Source::Default },
            Origin {
                key: "log",
                value: "a\nb".into(),
                source: Source::File { path: "p.toml".into(), line: 3 },
            },
        ]
    }

    #[test]
    fn the_table_is_aligned_and_one_row_is_printable() {
        assert_eq!(
            table(&origins()),
            "KEY      VALUE  SOURCE\n\
             workers  4      --workers\n\
             root     -      default\n\
             log      a\\nb   p.toml:3\n"
        );
    }

    #[test]
    fn the_object_has_value_and_source() {
        let text = object(&origins());
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
