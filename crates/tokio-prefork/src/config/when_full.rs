//! What to do with connections that come while all workers are full.

use std::fmt;
use std::str::FromStr;

use super::parse_error::{ParseValueError, parse_choice};

/// What happens to new connections while every worker that could take them has
/// [`worker_connections`](crate::ConfigBuilder::worker_connections).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WhenFull {
    /// They wait in the kernel's queue until a connection closes.
    #[default]
    Wait,
    /// They are refused within 100 ms: an HTTP client gets 503 with `Retry-After`, others are closed.
    Close,
}

const NAMES: [(&str, WhenFull); 2] = [("wait", WhenFull::Wait), ("close", WhenFull::Close)];

impl fmt::Display for WhenFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, value)| value == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for WhenFull {
    type Err = ParseValueError;

    /// # Errors
    ///
    /// Another word than `wait` and `close`.
    fn from_str(text: &str) -> Result<WhenFull, ParseValueError> {
        parse_choice(text, "a policy for full workers", &NAMES)
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
        assert!("drop".parse::<WhenFull>().is_err());
    }
}
