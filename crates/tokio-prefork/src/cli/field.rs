//! Types of the values of keys: how a value is parsed into its field, and formatted.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::configured_value::{ConfiguredValue, ValueError};
use super::value_syntax::{self, AUTO, OFF};
use crate::config::ParseValueError;
use crate::listener::{ListenAddr, UnixAddr};

/// The field of `T` that holds the value of a [`Key`](super::Key); the variant decides how text is parsed and formatted.
///
/// The accessors serve reading, too: formatting a value takes `&mut T`.
#[non_exhaustive]
pub enum Field<T> {
    /// One or more addresses.
    Addresses(fn(&mut T) -> &mut Vec<ListenAddr>),
    /// An address, or `off`.
    OptionalAddress(fn(&mut T) -> &mut Option<ListenAddr>),
    /// A whole number.
    Count(fn(&mut T) -> &mut u32),
    /// A whole number, or `off`; 0 is `off` as well.
    OptionalCount(fn(&mut T) -> &mut Option<u32>),
    /// A whole number, or `auto`; 0 is `auto` as well.
    AutoCount(fn(&mut T) -> &mut Option<u32>),
    /// A duration: `30s`, `500ms`, `2m`, `1h` or a number of seconds.
    Duration(fn(&mut T) -> &mut Duration),
    /// A duration, or `off`; 0 is `off` as well.
    OptionalDuration(fn(&mut T) -> &mut Option<Duration>),
    /// A number of bytes per second, or `off`; 0 is `off` as well.
    OptionalRate(fn(&mut T) -> &mut Option<u64>),
    /// A number of bytes that limits a buffer in memory: `16KiB`, `1MiB` or a number.
    MemorySize(fn(&mut T) -> &mut usize),
    /// A number of bytes: `16KiB`, `1MiB` or a number.
    ByteCount(fn(&mut T) -> &mut u64),
    /// A number of bytes, or `off`; 0 is `off` as well.
    OptionalByteCount(fn(&mut T) -> &mut Option<u64>),
    /// `true` or `false`; the flag without a value is `true`.
    Switch(fn(&mut T) -> &mut bool),
    /// An existing directory.
    Directory(fn(&mut T) -> &mut Option<PathBuf>),
    /// A file, which need not exist.
    File(fn(&mut T) -> &mut Option<PathBuf>),
    /// File permissions in octal.
    FileMode(fn(&mut T) -> &mut Option<u32>),
    /// A text that need not be given.
    OptionalText {
        /// Placeholder of the value in the help.
        value_name: &'static str,
        /// Checks the text. An error completes a sentence that begins with `KEY = VALUE`.
        parse: fn(&str) -> Result<String, String>,
        /// The field.
        field: fn(&mut T) -> &mut Option<String>,
    },
    /// A text with a default.
    Text {
        /// Placeholder of the value in the help.
        value_name: &'static str,
        /// Checks the text. An error completes a sentence that begins with `KEY = VALUE`.
        parse: fn(&str) -> Result<String, String>,
        /// The field.
        field: fn(&mut T) -> &mut String,
    },
    /// A list of any other type.
    List {
        /// Placeholder of a value in the help.
        value_name: &'static str,
        /// Whether a list without values is valid.
        may_be_empty: bool,
        /// Removes all values from the field.
        clear: fn(&mut T),
        /// Parses a value and adds it to the field. An error completes a sentence that begins with `KEY = VALUE`.
        add: fn(&mut T, &str) -> Result<(), String>,
        /// Formats the field so that its values can be parsed again, with commas between them.
        format: fn(&T) -> String,
    },
    /// Several words that belong together, such as a program and its arguments: a list takes each item as one word, a single
    /// text is split.
    Words {
        /// Placeholder of the value in the help.
        value_name: &'static str,
        /// Splits a text into words. An error completes a sentence that begins with `KEY = VALUE`.
        split: fn(&str) -> Result<Vec<String>, String>,
        /// Joins words into a text that `split` splits again.
        join: fn(&[String]) -> String,
        /// The field.
        field: fn(&mut T) -> &mut Vec<String>,
    },
    /// A value of any other type.
    Other {
        /// Placeholder of the value in the help.
        value_name: &'static str,
        /// Parses the text into the field. An error completes a sentence that begins with `KEY = VALUE`.
        parse: fn(&mut T, &str) -> Result<(), String>,
        /// Formats the field so that it can be parsed again.
        format: fn(&T) -> String,
    },
}

/// Parses a value of a type of the configuration, for [`Field::Other`].
///
/// # Errors
///
/// The reason of the [`ParseValueError`], which completes a sentence that begins with `KEY = VALUE`.
pub fn parse_value<T: FromStr<Err = ParseValueError>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: ParseValueError| error.reason().to_string())
}

impl<T> Field<T> {
    /// Returns whether the key takes several values.
    pub(super) fn is_list(&self) -> bool {
        matches!(self, Field::Addresses(_) | Field::List { .. })
    }

    /// Returns whether the flag without a value means `true`.
    pub(super) fn is_switch(&self) -> bool {
        matches!(self, Field::Switch(_))
    }

    /// Returns the placeholder of the value in the help.
    pub(super) fn value_name(&self) -> &'static str {
        match self {
            Field::Addresses(_) | Field::OptionalAddress(_) => "ADDRESS",
            Field::Count(_) | Field::OptionalCount(_) | Field::AutoCount(_) => "N",
            Field::Duration(_) | Field::OptionalDuration(_) => "DURATION",
            Field::OptionalRate(_)
            | Field::MemorySize(_)
            | Field::ByteCount(_)
            | Field::OptionalByteCount(_) => "SIZE",
            Field::Switch(_) => "BOOL",
            Field::Directory(_) => "DIR",
            Field::File(_) => "FILE",
            Field::FileMode(_) => "MODE",
            Field::OptionalText { value_name, .. }
            | Field::Text { value_name, .. }
            | Field::List { value_name, .. }
            | Field::Words { value_name, .. }
            | Field::Other { value_name, .. } => value_name,
        }
    }

    /// Parses a configured value into the field. Bounds are checked later, over all fields.
    pub(super) fn parse_into(
        &self,
        target: &mut T,
        configured: &ConfiguredValue,
    ) -> Result<(), ValueError> {
        match self {
            Field::Addresses(field) => {
                *field(target) = configured.parse_each(value_syntax::parse_address)?;
            }
            Field::OptionalAddress(field) => {
                *field(target) = configured.parse_one(value_syntax::parse_optional_address)?;
            }
            Field::Count(field) => {
                *field(target) = configured.parse_one(value_syntax::parse_count)?;
            }
            Field::OptionalCount(field) => {
                *field(target) = configured.parse_one(value_syntax::parse_optional_count)?;
            }
            Field::AutoCount(field) => {
                *field(target) = configured.parse_one(value_syntax::parse_auto_count)?;
            }
            Field::Duration(field) => {
                *field(target) = configured.parse_one(value_syntax::parse_duration)?;
            }
            Field::OptionalDuration(field) => {
                *field(target) = configured.parse_one(value_syntax::parse_optional_duration)?;
            }
            Field::OptionalRate(field) => {
                *field(target) = configured.parse_one(value_syntax::parse_optional_rate)?;
            }
            Field::MemorySize(field) => {
                let size = configured.parse_one(value_syntax::parse_size)?;
                *field(target) = usize::try_from(size).unwrap_or(usize::MAX);
            }
            Field::ByteCount(field) => {
                *field(target) = configured.parse_one(value_syntax::parse_size)?;
            }
            Field::OptionalByteCount(field) => {
                *field(target) = configured.parse_one(value_syntax::parse_optional_size)?;
            }
            Field::Switch(field) => *field(target) = parse_switch(configured)?,
            Field::Directory(field) => {
                *field(target) = Some(configured.parse_one(value_syntax::parse_directory)?);
            }
            Field::File(field) => {
                *field(target) = Some(configured.parse_one(value_syntax::parse_file)?);
            }
            Field::FileMode(field) => {
                *field(target) = Some(configured.as_written().parse_one(UnixAddr::parse_mode)?);
            }
            Field::OptionalText { parse, field, .. } => {
                *field(target) = Some(configured.parse_one(parse)?);
            }
            Field::Text { parse, field, .. } => *field(target) = configured.parse_one(parse)?,
            Field::List { may_be_empty, clear, add, .. } => {
                clear(target);
                configured.parse_list(*may_be_empty, |text| add(target, text))?;
            }
            Field::Words { split, field, .. } => {
                *field(target) = configured.parse_words(*split)?;
            }
            Field::Other { parse, .. } => configured.parse_one(|text| parse(target, text))?,
        }
        Ok(())
    }

    /// Formats the value of the field so that it can be parsed again; empty if there is none.
    pub(super) fn format_value(&self, target: &mut T) -> String {
        match self {
            Field::Addresses(field) => {
                field(target).iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            }
            Field::OptionalAddress(field) => {
                or_word(field(target).as_ref(), OFF, ToString::to_string)
            }
            Field::Count(field) => field(target).to_string(),
            Field::OptionalCount(field) => or_word(*field(target), OFF, |n| n.to_string()),
            Field::AutoCount(field) => or_word(*field(target), AUTO, |n| n.to_string()),
            Field::Duration(field) => value_syntax::format_duration(*field(target)),
            Field::OptionalDuration(field) => {
                or_word(*field(target), OFF, value_syntax::format_duration)
            }
            Field::OptionalRate(field) | Field::OptionalByteCount(field) => {
                or_word(*field(target), OFF, value_syntax::format_size)
            }
            Field::MemorySize(field) => value_syntax::format_size(*field(target) as u64),
            Field::ByteCount(field) => value_syntax::format_size(*field(target)),
            Field::Switch(field) => field(target).to_string(),
            Field::Directory(field) | Field::File(field) => {
                or_word(field(target).as_ref(), "", |path| path.display().to_string())
            }
            Field::FileMode(field) => or_word(*field(target), "", |mode| format!("{mode:04o}")),
            Field::OptionalText { field, .. } => field(target).clone().unwrap_or_default(),
            Field::Text { field, .. } => field(target).clone(),
            Field::Words { join, field, .. } => join(field(target)),
            Field::List { format, .. } | Field::Other { format, .. } => format(target),
        }
    }
}

/// Formats a value, or returns the word for none.
fn or_word<V>(value: Option<V>, none: &str, format: impl Fn(V) -> String) -> String {
    value.map_or_else(|| none.to_string(), format)
}

fn parse_switch(configured: &ConfiguredValue) -> Result<bool, ValueError> {
    match configured.is_from_file() {
        true => configured.parse_one(value_syntax::parse_toml_switch),
        false => configured.parse_one(value_syntax::parse_switch),
    }
}
