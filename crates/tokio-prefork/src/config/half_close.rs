//! How to handle clients that close their sending side.

use std::fmt;
use std::str::FromStr;

use super::parse_error::{ParseValueError, parse_choice};

/// How an HTTP/1 worker handles a client that closes its sending side while its request is in progress. The kernel sends
/// the same FIN for a client that has closed its socket as for one that only has nothing more to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum HalfClosePolicy {
    /// Finishes the response, unless a reset or a failed write shows that the client is gone.
    Finish,
    /// Finishes the response, and sends an HTTP/1.1 client one `102 Processing` if the response has not begun 200 ms after
    /// the FIN: a client that has closed its socket answers with a reset, which cancels the request.
    #[default]
    Probe,
    /// Cancels the request at once.
    Cancel,
}

const NAMES: [(&str, HalfClosePolicy); 3] = [
    ("finish", HalfClosePolicy::Finish),
    ("probe", HalfClosePolicy::Probe),
    ("cancel", HalfClosePolicy::Cancel),
];

impl fmt::Display for HalfClosePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, value)| value == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for HalfClosePolicy {
    type Err = ParseValueError;

    /// # Errors
    ///
    /// Another word than `finish`, `probe` and `cancel`.
    fn from_str(text: &str) -> Result<HalfClosePolicy, ParseValueError> {
        parse_choice(text, "a way to treat half-closed clients", &NAMES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_read_as_it_is_printed() {
        for (name, value) in NAMES {
            assert_eq!((name.parse(), value.to_string()), (Ok(value), name.to_string()));
        }
        assert!("close".parse::<HalfClosePolicy>().is_err());
    }
}
