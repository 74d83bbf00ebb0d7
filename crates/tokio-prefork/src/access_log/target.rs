//! Where the access log goes.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::config::ParseValueError;
use crate::error::Result;
use crate::log_file::check_access_log;

/// Where the access log goes. Default: nowhere.
///
/// In text: `off`, `-` for standard output, or a path; a file called `off` is `./off`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AccessLog {
    /// There is no access log.
    #[default]
    Off,
    /// Standard output of the primary.
    Stdout,
    /// A regular file, which is created if it does not exist, a FIFO, `/dev/stdout` or `/dev/stderr`.
    Path(PathBuf),
}

impl AccessLog {
    /// Checks whether it can be opened, as far as that can be told without creating it.
    pub(crate) fn check(&self) -> Result<()> {
        self.path().map_or(Ok(()), |path| check_access_log(&path))
    }

    /// Returns the path to open; `None` if there is no access log.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        match self {
            AccessLog::Off => None,
            AccessLog::Stdout => Some(PathBuf::from("/dev/stdout")),
            AccessLog::Path(path) => Some(path.clone()),
        }
    }
}

impl From<&str> for AccessLog {
    /// Takes a path.
    fn from(path: &str) -> AccessLog {
        AccessLog::Path(path.into())
    }
}

impl From<PathBuf> for AccessLog {
    fn from(path: PathBuf) -> AccessLog {
        AccessLog::Path(path)
    }
}

impl FromStr for AccessLog {
    type Err = ParseValueError;

    /// # Errors
    ///
    /// The text is empty, or has a zero byte.
    fn from_str(text: &str) -> std::result::Result<AccessLog, ParseValueError> {
        match text {
            "" => Err(ParseValueError::new(
                text,
                "is empty: give a path, - for standard output, or off",
            )),
            "off" => Ok(AccessLog::Off),
            "-" => Ok(AccessLog::Stdout),
            path if path.contains('\0') => {
                Err(ParseValueError::new(text, "is not a path: give one without a zero"))
            }
            path => Ok(AccessLog::Path(path.into())),
        }
    }
}

impl fmt::Display for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AccessLog::Off => f.write_str("off"),
            AccessLog::Stdout => f.write_str("-"),
            AccessLog::Path(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_shown_as_it_was_read() {
        for text in ["off", "-", "/var/log/access.log", "./off"] {
            assert_eq!(text.parse::<AccessLog>().expect(text).to_string(), text);
        }
        for text in ["", "a\0b"] {
            assert!(text.parse::<AccessLog>().is_err());
        }
        assert_eq!(AccessLog::Off.path(), None);
        assert_eq!(AccessLog::Stdout.path(), Some("/dev/stdout".into()));
    }
}
