//! The signal that asks a program to stop.

use std::fmt;
use std::str::FromStr;

use crate::config::ParseValueError;
use prefork_os::signal::Signal;

/// The signals that a program may be told to stop by.
const STOP_SIGNALS: [(&str, Signal); 7] = [
    ("TERM", Signal::SIGTERM),
    ("INT", Signal::SIGINT),
    ("QUIT", Signal::SIGQUIT),
    ("HUP", Signal::SIGHUP),
    ("USR1", Signal::SIGUSR1),
    ("USR2", Signal::SIGUSR2),
    ("WINCH", Signal::SIGWINCH),
];

/// The signal that asks a program to finish its requests and to exit: `TERM`, `INT`, `QUIT`, `HUP`, `USR1`, `USR2` or
/// `WINCH`. Default: `TERM`. In text, with or without `SIG`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopSignal(Signal);

impl StopSignal {
    pub(crate) fn signal(self) -> Signal {
        self.0
    }
}

impl Default for StopSignal {
    fn default() -> StopSignal {
        StopSignal(Signal::SIGTERM)
    }
}

/// Writes the name without `SIG`.
impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0.as_str().trim_start_matches("SIG"))
    }
}

impl FromStr for StopSignal {
    type Err = ParseValueError;

    /// # Errors
    /// The text names none of the signals; the error lists them.
    fn from_str(text: &str) -> Result<StopSignal, ParseValueError> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        crate::config::parse_choice(name, "a stop signal", &STOP_SIGNALS).map(StopSignal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_named_with_or_without_sig_in_any_case() {
        for (text, name) in
            [("TERM", "TERM"), ("SIGINT", "INT"), ("sigquit", "QUIT"), ("usr2", "USR2")]
        {
            assert_eq!(text.parse::<StopSignal>().expect(text).to_string(), name);
        }
        assert!("KILL".parse::<StopSignal>().is_err() && "15".parse::<StopSignal>().is_err());
    }
}
