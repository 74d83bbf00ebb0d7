//! One thing that was said: its text, how to show it in an error, and who said it.

use std::fmt;
use std::path::PathBuf;

use super::key::Key;
use tokio_prefork::Error;

/// Where a value came from. Prints as `--workers`, `PREFORK_WORKERS`, `/etc/prefork.toml:12` or
/// `default`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
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

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag(name) => write!(f, "--{name}"),
            Source::Env(name) => f.write_str(name),
            Source::File { path, line } => write!(f, "{}:{line}", path.display()),
            Source::Default => f.write_str("default"),
        }
    }
}

/// One value in text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// What is read.
    pub text: String,
    /// What an error shows: what was written, quoted where it is a string.
    pub shown: String,
}

impl Item {
    /// An item whose text is what was written, as a string.
    pub(crate) fn quoted(text: &str) -> Item {
        Item { text: text.to_string(), shown: quote(text) }
    }
}

/// A string as errors show it: quoted, escaped, and cut off where it gets long.
pub(crate) fn quote(text: &str) -> String {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// What was said about one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    /// The values; not exactly one only where `list` is set.
    pub items: Vec<Item>,
    /// Whether it was said as a list, be it of one.
    pub list: bool,
    /// Who said it.
    pub source: Source,
}

impl Said {
    /// With numbers as they were written, not in decimal: `0o660` in TOML stays octal.
    pub(crate) fn as_written(&self) -> Said {
        let written = |item: &Item| match item.shown.starts_with('"') {
            true => item.clone(),
            false => Item { text: item.shown.clone(), shown: item.shown.clone() },
        };
        let items = self.items.iter().map(written).collect();
        Said { items, list: self.list, source: self.source.clone() }
    }
}

/// What is wrong with a value: the part to show, and the words that follow it.
#[derive(Debug)]
pub(crate) struct Problem {
    shown: String,
    why: String,
}

impl Said {
    /// A single value.
    pub(crate) fn single(item: Item, source: Source) -> Said {
        Said { items: vec![item], list: false, source }
    }

    /// Whether it stands in the configuration file.
    pub(crate) fn is_from_file(&self) -> bool {
        matches!(self.source, Source::File { .. })
    }

    /// Reads a key that takes one value.
    pub(crate) fn one<T>(&self, read: fn(&str) -> Result<T, String>) -> Result<T, Problem> {
        match self.items.as_slice() {
            [item] if !self.list => read_item(item, read),
            _ => Err(self.problem("is a list: give a single value")),
        }
    }

    /// Reads a key that takes at least one value.
    pub(crate) fn each<T>(&self, read: fn(&str) -> Result<T, String>) -> Result<Vec<T>, Problem> {
        if self.items.is_empty() {
            return Err(self.problem("is empty: give at least one value"));
        }
        self.items.iter().map(|item| read_item(item, read)).collect()
    }

    /// The error of a value that makes no sense.
    pub(crate) fn error(&self, key: &Key, problem: &Problem) -> Error {
        let Problem { shown, why } = problem;
        Error::config(match &self.source {
            Source::File { .. } => format!("{}: {} = {shown} {why}", self.source, key.name),
            Source::Flag(_) | Source::Env(_) => format!("{} = {shown} {why}", self.source),
            Source::Default => format!("{} = {shown} {why}", key.name),
        })
    }

    /// Names the source in an error of the later checks, which know keys but not sources.
    pub(crate) fn blame(&self, key: &Key, text: &str) -> Error {
        match text.find(" is out of range") {
            Some(at) => self.error(key, &self.problem(text[at..].trim_start())),
            None => Error::config(format!("{}: {text}", self.source)),
        }
    }

    fn problem(&self, why: &str) -> Problem {
        let shown = match self.items.as_slice() {
            [item] if !self.list => item.shown.clone(),
            items => {
                let shown: Vec<&str> = items.iter().map(|item| item.shown.as_str()).collect();
                format!("[{}]", shown.join(", "))
            }
        };
        Problem { shown, why: why.to_string() }
    }
}

fn read_item<T>(item: &Item, read: fn(&str) -> Result<T, String>) -> Result<T, Problem> {
    read(&item.text).map_err(|why| Problem { shown: item.shown.clone(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_print_as_an_operator_would_look_for_them() {
        let file = Source::File { path: "/etc/prefork.toml".into(), line: 12 };
        assert_eq!(file.to_string(), "/etc/prefork.toml:12");
        assert_eq!(Source::Flag("workers").to_string(), "--workers");
        assert_eq!(Source::Env("PREFORK_WORKERS".into()).to_string(), "PREFORK_WORKERS");
        assert_eq!(Source::Default.to_string(), "default");
    }

    #[test]
    fn long_and_odd_strings_are_shown_short_and_escaped() {
        assert_eq!(quote("a\n\u{1b}"), r#""a\n\u{1b}""#);
        assert_eq!(quote(&"é".repeat(300)), format!("\"{}\"...", "é".repeat(200)));
    }
}
