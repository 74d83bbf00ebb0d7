//! A configured value: its text, how errors quote it, and its source.

use std::fmt;
use std::path::PathBuf;

use super::key::KeyInfo;
use crate::error::Error;

/// Where a value comes from. Displays as `--workers`, `command line`, `MYAPP_WORKERS`, `/etc/myapp.toml:12` or `default`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ValueSource {
    /// The command line; holds the name of the flag without dashes.
    Flag(&'static str),
    /// The positional arguments of the command line.
    Arguments,
    /// The environment; holds the name of the variable.
    Env(String),
    /// The configuration file.
    File {
        /// Path as the operator wrote it.
        path: PathBuf,
        /// Line number, starting at 1.
        line: usize,
    },
    /// The built-in default.
    Default,
}

impl fmt::Display for ValueSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueSource::Flag(name) => write!(f, "--{name}"),
            ValueSource::Arguments => f.write_str("command line"),
            ValueSource::Env(name) => f.write_str(name),
            ValueSource::File { path, line } => write!(f, "{}:{line}", path.display()),
            ValueSource::Default => f.write_str("default"),
        }
    }
}

/// Text of a single value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ValueText {
    /// Text to parse.
    pub text: String,
    /// Text for errors: as the operator wrote it; strings are quoted.
    pub shown: String,
}

impl ValueText {
    /// Returns a string value, which errors show in quotes.
    pub(super) fn quoted(text: &str) -> ValueText {
        ValueText { text: text.to_string(), shown: quote_for_error(text) }
    }
}

/// Quotes and escapes a string for an error, and truncates a long one.
pub(super) fn quote_for_error(text: &str) -> String {
    const MAX_QUOTED_CHARS: usize = 200;
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The value or list of values that a source sets for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConfiguredValue {
    /// Values; exactly one unless `is_list` is set.
    pub items: Vec<ValueText>,
    /// Whether it was written as a list, even of a single value.
    pub is_list: bool,
    /// Where the value comes from.
    pub source: ValueSource,
}

impl ConfiguredValue {
    /// Returns a copy with numbers as written instead of in decimal: `0o660` in TOML stays octal.
    pub(super) fn as_written(&self) -> ConfiguredValue {
        let written = |item: &ValueText| match item.shown.starts_with('"') {
            true => item.clone(),
            false => ValueText { text: item.shown.clone(), shown: item.shown.clone() },
        };
        let items = self.items.iter().map(written).collect();
        ConfiguredValue { items, is_list: self.is_list, source: self.source.clone() }
    }
}

/// Error in a value: the offending text and the reason, which follows it in the message.
#[derive(Debug)]
pub(super) struct ValueError {
    shown: String,
    reason: String,
}

impl ConfiguredValue {
    /// Returns the value of a flag, which was given once or more.
    pub(super) fn from_flag(key: &KeyInfo, texts: &[String]) -> ConfiguredValue {
        let items = texts.iter().map(|text| ValueText::quoted(text)).collect();
        let source = match key.is_positional {
            true => ValueSource::Arguments,
            false => ValueSource::Flag(key.name),
        };
        ConfiguredValue { items, is_list: key.is_list || key.is_positional, source }
    }

    /// Returns a value that is not a list.
    pub(super) fn single(item: ValueText, source: ValueSource) -> ConfiguredValue {
        ConfiguredValue { items: vec![item], is_list: false, source }
    }

    /// Returns whether the value comes from the configuration file.
    pub(super) fn is_from_file(&self) -> bool {
        matches!(self.source, ValueSource::File { .. })
    }

    /// Parses the value of a key that takes exactly one.
    pub(super) fn parse_one<T>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ValueError> {
        match self.items.as_slice() {
            [item] if !self.is_list => parse_value_text(item, parse),
            _ => Err(self.value_error("is a list: give a single value")),
        }
    }

    /// Parses the values of a key that takes at least one.
    pub(super) fn parse_each<T>(
        &self,
        parse: fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, ValueError> {
        let mut parsed = Vec::new();
        self.parse_list(false, |text| parse(text).map(|value| parsed.push(value)))?;
        Ok(parsed)
    }

    /// Returns the words of a key that takes several: the items of a list, or what `split` makes of a single text.
    pub(super) fn parse_words(
        &self,
        split: fn(&str) -> Result<Vec<String>, String>,
    ) -> Result<Vec<String>, ValueError> {
        match self.items.as_slice() {
            [item] if !self.is_list => parse_value_text(item, split),
            items => Ok(items.iter().map(|item| item.text.clone()).collect()),
        }
    }

    /// Parses the values of a key that takes several, one after the other.
    pub(super) fn parse_list(
        &self,
        may_be_empty: bool,
        mut parse: impl FnMut(&str) -> Result<(), String>,
    ) -> Result<(), ValueError> {
        if self.items.is_empty() && !may_be_empty {
            return Err(self.value_error("is empty: give at least one value"));
        }
        self.items.iter().try_for_each(|item| parse_value_text(item, &mut parse))
    }

    /// Returns the configuration error for an invalid value, which names the source and the key.
    pub(super) fn to_error(&self, key: &str, problem: &ValueError) -> Error {
        let ValueError { shown, reason } = problem;
        Error::config(match &self.source {
            ValueSource::File { .. } => format!("{}: {key} = {shown} {reason}", self.source),
            ValueSource::Flag(_) | ValueSource::Env(_) => {
                format!("{} = {shown} {reason}", self.source)
            }
            ValueSource::Arguments | ValueSource::Default => format!("{key} = {shown} {reason}"),
        })
    }

    /// Adds the source to an error of the final checks, which know keys but not sources.
    pub(super) fn with_source_named(&self, key: &str, text: &str) -> Error {
        match text.find(" is out of range") {
            Some(at) => self.to_error(key, &self.value_error(text[at..].trim_start())),
            None => Error::config(format!("{}: {text}", self.source)),
        }
    }

    fn value_error(&self, reason: &str) -> ValueError {
        let shown = match self.items.as_slice() {
            [item] if !self.is_list => item.shown.clone(),
            items => {
                let shown: Vec<&str> = items.iter().map(|item| item.shown.as_str()).collect();
                format!("[{}]", shown.join(", "))
            }
        };
        ValueError { shown, reason: reason.to_string() }
    }
}

fn parse_value_text<T>(
    item: &ValueText,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, ValueError> {
    parse(&item.text).map_err(|reason| ValueError { shown: item.shown.clone(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_formatted_as_flag_variable_file_line_or_default() {
        let file = ValueSource::File { path: "/etc/prefork.toml".into(), line: 12 };
        assert_eq!(file.to_string(), "/etc/prefork.toml:12");
        assert_eq!(ValueSource::Flag("workers").to_string(), "--workers");
        assert_eq!(ValueSource::Env("PREFORK_WORKERS".into()).to_string(), "PREFORK_WORKERS");
        assert_eq!(ValueSource::Default.to_string(), "default");
    }

    #[test]
    fn quoted_strings_are_escaped_and_truncated() {
        assert_eq!(quote_for_error("a\n\u{1b}"), r#""a\n\u{1b}""#);
        assert_eq!(quote_for_error(&"é".repeat(300)), format!("\"{}\"...", "é".repeat(200)));
    }
}
