//! One thing that was said: its text, how to show it in an error, and who said it.

use std::fmt;
use std::path::PathBuf;

use super::key::Key;
use tokio_prefork::Error;

/// Where a value came from. Prints as `--workers`, `PREFORK_WORKERS`, `/etc/prefork.toml:12` or
/// `default`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ValueSource {
    /// The command line: the flag's name without dashes.
    Flag(&'static str),
    /// The environment: the variable's name.
    Env(String),
    /// The configuration file.
    File {
        /// As the operator wrote it.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// Nobody said anything.
    Default,
}

impl fmt::Display for ValueSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueSource::Flag(name) => write!(f, "--{name}"),
            ValueSource::Env(name) => f.write_str(name),
            ValueSource::File { path, line } => write!(f, "{}:{line}", path.display()),
            ValueSource::Default => f.write_str("default"),
        }
    }
}

/// One value in text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ValueText {
    /// What is read.
    pub text: String,
    /// What an error shows: what was written, quoted where it is a string.
    pub shown: String,
}

impl ValueText {
    /// An item whose text is what was written, as a string.
    pub(crate) fn quoted(text: &str) -> ValueText {
        ValueText { text: text.to_string(), shown: quote_for_error(text) }
    }
}

/// A string as errors show it: quoted, escaped, and cut off where it gets long.
pub(crate) fn quote_for_error(text: &str) -> String {
    const MAX_QUOTED_CHARS: usize = 200;
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// What was said about one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfiguredValue {
    /// The values; not exactly one only where `list` is set.
    pub items: Vec<ValueText>,
    /// Whether it was said as a list, be it of one.
    pub is_list: bool,
    /// Who said it.
    pub source: ValueSource,
}

impl ConfiguredValue {
    /// With numbers as they were written, not in decimal: `0o660` in TOML stays octal.
    pub(crate) fn as_written(&self) -> ConfiguredValue {
        let written = |item: &ValueText| match item.shown.starts_with('"') {
            true => item.clone(),
            false => ValueText { text: item.shown.clone(), shown: item.shown.clone() },
        };
        let items = self.items.iter().map(written).collect();
        ConfiguredValue { items, is_list: self.is_list, source: self.source.clone() }
    }
}

/// What is wrong with a value: the part to show, and the words that follow it.
#[derive(Debug)]
pub(crate) struct ValueError {
    shown: String,
    why: String,
}

impl ConfiguredValue {
    /// A single value.
    pub(crate) fn single(item: ValueText, source: ValueSource) -> ConfiguredValue {
        ConfiguredValue { items: vec![item], is_list: false, source }
    }

    /// Whether it stands in the configuration file.
    pub(crate) fn is_from_file(&self) -> bool {
        matches!(self.source, ValueSource::File { .. })
    }

    /// Reads a key that takes one value.
    pub(crate) fn parse_one<T>(
        &self,
        read: fn(&str) -> Result<T, String>,
    ) -> Result<T, ValueError> {
        match self.items.as_slice() {
            [item] if !self.is_list => parse_value_text(item, read),
            _ => Err(self.value_error("is a list: give a single value")),
        }
    }

    /// Reads a key that takes at least one value.
    pub(crate) fn parse_each<T>(
        &self,
        read: fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, ValueError> {
        if self.items.is_empty() {
            return Err(self.value_error("is empty: give at least one value"));
        }
        self.items.iter().map(|item| parse_value_text(item, read)).collect()
    }

    /// The error of a value that makes no sense.
    pub(crate) fn to_error(&self, key: &Key, problem: &ValueError) -> Error {
        let ValueError { shown, why } = problem;
        Error::config(match &self.source {
            ValueSource::File { .. } => format!("{}: {} = {shown} {why}", self.source, key.name),
            ValueSource::Flag(_) | ValueSource::Env(_) => {
                format!("{} = {shown} {why}", self.source)
            }
            ValueSource::Default => format!("{} = {shown} {why}", key.name),
        })
    }

    /// Names the source in an error of the later checks, which know keys but not sources.
    pub(crate) fn with_source_named(&self, key: &Key, text: &str) -> Error {
        match text.find(" is out of range") {
            Some(at) => self.to_error(key, &self.value_error(text[at..].trim_start())),
            None => Error::config(format!("{}: {text}", self.source)),
        }
    }

    fn value_error(&self, why: &str) -> ValueError {
        let shown = match self.items.as_slice() {
            [item] if !self.is_list => item.shown.clone(),
            items => {
                let shown: Vec<&str> = items.iter().map(|item| item.shown.as_str()).collect();
                format!("[{}]", shown.join(", "))
            }
        };
        ValueError { shown, why: why.to_string() }
    }
}

fn parse_value_text<T>(
    item: &ValueText,
    read: fn(&str) -> Result<T, String>,
) -> Result<T, ValueError> {
    read(&item.text).map_err(|why| ValueError { shown: item.shown.clone(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_print_as_an_operator_would_look_for_them() {
        let file = ValueSource::File { path: "/etc/prefork.toml".into(), line: 12 };
        assert_eq!(file.to_string(), "/etc/prefork.toml:12");
        assert_eq!(ValueSource::Flag("workers").to_string(), "--workers");
        assert_eq!(ValueSource::Env("PREFORK_WORKERS".into()).to_string(), "PREFORK_WORKERS");
        assert_eq!(ValueSource::Default.to_string(), "default");
    }

    #[test]
    fn long_and_odd_strings_are_shown_short_and_escaped() {
        assert_eq!(quote_for_error("a\n\u{1b}"), r#""a\n\u{1b}""#);
        assert_eq!(quote_for_error(&"é".repeat(300)), format!("\"{}\"...", "é".repeat(200)));
    }
}
