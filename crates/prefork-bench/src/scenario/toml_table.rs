//! Reads the tables of a scenario file strictly: every error names the line, the key and what is valid.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use tokio_prefork::cli::{nearest_name, parse_duration, parse_size};

/// Text of a scenario file, and where it comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct SourceText<'a> {
    /// Path of the file, or the name of a built-in scenario.
    pub(super) origin: &'a str,
    pub(super) text: &'a str,
}

impl<'a> SourceText<'a> {
    /// Returns an error at a position, as `FILE:LINE: why`.
    fn error_at(self, position: usize, why: impl Display) -> String {
        let before = self.text.get(..position).unwrap_or(self.text);
        format!("{}:{}: {why}", self.origin, before.matches('\n').count() + 1)
    }

    /// Parses the text as TOML, and checks the keys of its first level.
    pub(super) fn read_tables(self, keys: &'static [&'static str]) -> Result<Table<'a>, String> {
        let table = DeTable::parse(self.text).map_err(|error| {
            let lines: Vec<&str> = error.message().lines().map(str::trim).collect();
            let position = error.span().map_or(0, |span| span.start);
            self.error_at(position, format!("not TOML: {}", lines.join(", ")))
        })?;
        Table::new(self, "", 0, table.into_inner(), keys)
    }
}

/// A table of the file whose keys are all known; each key is taken once.
#[derive(Debug)]
pub(super) struct Table<'a> {
    source: SourceText<'a>,
    /// How the table is written, such as `[[load]] `; empty for the first level.
    name: &'static str,
    position: usize,
    entries: Vec<(String, usize, Spanned<DeValue<'a>>)>,
}

/// A value, and where it stands.
#[derive(Debug)]
pub(super) struct Value<'a> {
    source: SourceText<'a>,
    table: &'static str,
    key: String,
    position: usize,
    pub(super) value: DeValue<'a>,
    written: &'a str,
}

impl Value<'_> {
    /// Returns an error about this value.
    pub(super) fn error(&self, why: impl Display) -> String {
        let written = self.written.lines().next().unwrap_or_default();
        let text = format!("{}{} = {written}: {why}", self.table, self.key);
        self.source.error_at(self.position, text)
    }
}

impl<'a> Table<'a> {
    fn new(
        source: SourceText<'a>,
        name: &'static str,
        position: usize,
        table: DeTable<'a>,
        keys: &'static [&'static str],
    ) -> Result<Table<'a>, String> {
        let mut entries: Vec<_> = table
            .into_iter()
            .map(|(key, value)| (key.get_ref().to_string(), key.span().start, value))
            .collect();
        // In the order of the file, so that its first error is reported.
        entries.sort_by_key(|(_, position, _)| *position);
        for (key, position, _) in &entries {
            if !keys.contains(&key.as_str()) {
                let meant = nearest_name(key, keys.iter().copied())
                    .map_or(String::new(), |meant| format!(" (did you mean {meant:?}?)"));
                let why =
                    format!("unknown key {name}{key:?}{meant}: the keys are {}", keys.join(", "));
                return Err(source.error_at(*position, why));
            }
        }
        Ok(Table { source, name, position, entries })
    }

    /// Returns an error about the table.
    pub(super) fn error(&self, why: impl Display) -> String {
        self.source.error_at(self.position, format!("{}{why}", self.name))
    }

    /// Takes the value of a key.
    pub(super) fn take(&mut self, key: &str) -> Option<Value<'a>> {
        let at = self.entries.iter().position(|(name, ..)| name == key)?;
        let (key, position, value) = self.entries.remove(at);
        let written = self.source.text.get(value.span()).unwrap_or_default();
        let (source, table) = (self.source, self.name);
        Some(Value { source, table, key, position, value: value.into_inner(), written })
    }

    /// Returns whether the key is there and was not taken.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(name, ..)| name == key)
    }

    /// Takes the first value that is left.
    pub(super) fn take_any(&mut self) -> Option<Value<'a>> {
        let key = self.entries.first()?.0.clone();
        self.take(&key)
    }

    /// Takes a value that `read` understands.
    pub(super) fn read<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&DeValue<'a>) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.take(key) else { return Ok(None) };
        read(&value.value).map(Some).map_err(|why| value.error(why))
    }

    /// Takes a string with at least one character that is no space, and without line ends.
    pub(super) fn line(&mut self, key: &str) -> Result<Option<String>, String> {
        self.read(key, |value| match read_text(value, "a string in quotes")? {
            text if text.trim().is_empty() => Err("give a text that is not empty".to_string()),
            text if text.contains(char::is_control) => Err("give one line".to_string()),
            text => Ok(text),
        })
    }

    /// Takes `true` or `false`; `false` if there is none.
    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>, String> {
        self.read(key, |value| match value {
            DeValue::Boolean(flag) => Ok(*flag),
            _ => Err("give true or false, without quotes".to_string()),
        })
    }

    /// Takes a whole number within a range.
    pub(super) fn count(
        &mut self,
        key: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, String> {
        self.read(key, |value| read_count(value, range))
    }

    /// Takes a duration of at least `least`.
    pub(super) fn duration(
        &mut self,
        key: &str,
        range: RangeInclusive<Duration>,
    ) -> Result<Option<Duration>, String> {
        self.read(key, |value| {
            const EXPECTED: &str =
                "a duration with its unit in quotes, such as \"1s\" or \"500ms\"";
            let text = read_text(value, EXPECTED)?;
            let unit = text.trim_end().ends_with(|c: char| c.is_ascii_alphabetic());
            let duration = match parse_duration(&text) {
                Ok(duration) if unit || duration.is_zero() => duration,
                _ => return Err(format!("give {EXPECTED}")),
            };
            match range.contains(&duration) {
                true => Ok(duration),
                false => Err(format!("give {:?} to {:?}", range.start(), range.end())),
            }
        })
    }

    /// Takes a number of bytes, up to `most`.
    pub(super) fn size(&mut self, key: &str, most: u64) -> Result<Option<u64>, String> {
        self.read(key, |value| {
            const EXPECTED: &str = "a number of bytes, or a size in quotes such as \"64KiB\"";
            let size = match value {
                DeValue::Integer(_) => read_count(value, 0..=u64::MAX)?,
                _ => parse_size(&read_text(value, EXPECTED)?)
                    .map_err(|_| format!("give {EXPECTED}"))?,
            };
            if size <= most { Ok(size) } else { Err(format!("give at most {most} bytes")) }
        })
    }

    /// Takes one of several words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, String> {
        self.read(key, |value| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let expected = format!("one of \"{}\"", words.join("\", \""));
            let text = read_text(value, &expected)?;
            let found = choices.iter().find(|(word, _)| *word == text);
            found.map(|(_, choice)| *choice).ok_or(format!("give {expected}"))
        })
    }

    /// Takes the tables of an array, such as `[[load]]`; none if there is none.
    pub(super) fn tables(
        &mut self,
        key: &str,
        name: &'static str,
        keys: &'static [&'static str],
    ) -> Result<Vec<Table<'a>>, String> {
        let Some(value) = self.take(key) else { return Ok(Vec::new()) };
        let wrong = |written: &str| {
            let why = format!("{written} is not a table: write {} above its keys", name.trim());
            self.source.error_at(value.position, why)
        };
        let DeValue::Array(items) = value.value else { return Err(wrong(key)) };
        items
            .into_iter()
            .map(|item| {
                let position = item.span().start;
                match item.into_inner() {
                    DeValue::Table(table) => Table::new(self.source, name, position, table, keys),
                    _ => Err(wrong(key)),
                }
            })
            .collect()
    }
}

/// Returns the text of a string.
pub(super) fn read_text(value: &DeValue<'_>, expected: &str) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        _ => Err(format!("give {expected}")),
    }
}

/// Returns a whole number within a range.
pub(super) fn read_count(value: &DeValue<'_>, range: RangeInclusive<u64>) -> Result<u64, String> {
    let number = match value {
        DeValue::Integer(number) => {
            u64::from_str_radix(number.as_str().trim_start_matches('+'), number.radix()).ok()
        }
        _ => None,
    };
    let expected = format!("give a whole number from {} to {}", range.start(), range.end());
    number.filter(|number| range.contains(number)).ok_or(expected)
}
