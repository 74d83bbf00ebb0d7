//! The error of values that cannot be read from text.

use std::fmt;

use crate::error::Error;

/// A text that is no value of its type, and what to give instead.
///
/// The error of [`FromStr`](std::str::FromStr) for the types of the configuration. Displays as
/// `"fork" is not a concurrency model: give prefork, single, threads or thread-per-core`.
///
/// ```
/// use tokio_prefork::{Dispatch, ParseValueError};
///
/// let error: ParseValueError = "random".parse::<Dispatch>().unwrap_err();
/// assert_eq!(error.value(), "random");
/// assert!(error.reason().contains("round-robin"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseValueError {
    value: String,
    reason: String,
}

impl ParseValueError {
    pub(crate) fn new(value: &str, reason: impl Into<String>) -> ParseValueError {
        ParseValueError { value: value.to_string(), reason: reason.into() }
    }

    /// Returns the text that was read.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Returns why the text is no value, and the valid ones, as the end of a sentence that begins with the text.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for ParseValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.value, self.reason)
    }
}

impl std::error::Error for ParseValueError {}

impl From<ParseValueError> for Error {
    fn from(error: ParseValueError) -> Error {
        Error::config(error.to_string()).with_source(error)
    }
}

/// Returns the choice with this name, in any case. `what` is the type in the error: `a dispatch policy`.
pub(crate) fn parse_choice<T: Copy>(
    text: &str,
    what: &str,
    choices: &[(&str, T)],
) -> Result<T, ParseValueError> {
    let word = text.trim();
    let known = choices.iter().find(|(name, _)| word.eq_ignore_ascii_case(name));
    known.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let names = match names.as_slice() {
            [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            names => names.concat(),
        };
        ParseValueError::new(text, format!("is not {what}: give {names}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_found_by_its_name_and_the_error_lists_all() {
        let colours = [("red", 1), ("green", 2), ("blue", 3)];
        assert_eq!(parse_choice(" Green ", "a colour", &colours), Ok(2));
        let error = parse_choice("pink", "a colour", &colours).expect_err("unknown");
        assert_eq!(error.to_string(), "\"pink\" is not a colour: give red, green or blue");
        let error = Error::from(error);
        assert_eq!(error.exit_status(), crate::error::exit::CONFIG);
        assert!(
            std::error::Error::source(&error).is_some_and(|cause| cause.is::<ParseValueError>())
        );
    }
}
