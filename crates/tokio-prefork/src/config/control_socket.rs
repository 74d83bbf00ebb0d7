//! The address of the control socket.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use prefork_os::unix_path::check_path_length;

use super::parse_error::ParseValueError;

/// Where the primary listens for `prefork status` and the other verbs (see [`crate::control`]).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ControlSocket {
    /// Disables the control socket. The default of the library: it opens no socket without a request.
    #[default]
    Off,
    /// `prefork-PID.sock` in the runtime directory, where the `prefork` command finds it. The default of
    /// `prefork serve`.
    Auto,
    /// At this path. A dead socket there is replaced, a live one never touched.
    Path(PathBuf),
}

impl FromStr for ControlSocket {
    type Err = ParseValueError;

    /// # Errors
    ///
    /// The text is empty, or too long or unfit for the path of a socket.
    fn from_str(text: &str) -> Result<ControlSocket, ParseValueError> {
        let error = |reason: &str| Err(ParseValueError::new(text, reason));
        match text.trim() {
            "" => error("is empty: give a path, auto or off"),
            "off" => Ok(ControlSocket::Off),
            "auto" => Ok(ControlSocket::Auto),
            path if path.contains('\0') => error("is not a path: give one without a zero"),
            path => match check_path_length(Path::new(path)) {
                Ok(()) => Ok(ControlSocket::Path(PathBuf::from(path))),
                Err(why) => error(&format!("is too long: {why}")),
            },
        }
    }
}

impl fmt::Display for ControlSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlSocket::Off => f.write_str("off"),
            ControlSocket::Auto => f.write_str("auto"),
            ControlSocket::Path(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_shown_as_it_was_read() {
        for text in ["off", "auto", "/run/prefork.sock", "./off"] {
            assert_eq!(text.parse::<ControlSocket>().expect(text).to_string(), text);
        }
        for text in ["", &"x".repeat(108), "a\0b"] {
            assert!(text.parse::<ControlSocket>().is_err(), "{text}");
        }
    }
}
