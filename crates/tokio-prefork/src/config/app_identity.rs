//! Name and version of the application, for everything that people see.

use std::fmt;

use crate::app_name::executable_name;
use crate::error::{Error, Result};

/// Longest name or version in bytes.
const MAX_BYTES: usize = 64;

/// Name and version of the application. The name is that of the executable by default.
#[derive(Debug, Clone)]
pub(crate) struct AppIdentity {
    pub(super) name: String,
    pub(super) version: Option<String>,
}

impl Default for AppIdentity {
    fn default() -> AppIdentity {
        AppIdentity { name: executable_name().to_string(), version: None }
    }
}

impl AppIdentity {
    /// Checks that both fit into a process title, a log line and a status line.
    pub(super) fn check(&self) -> Result<()> {
        let texts = [("name", Some(&self.name)), ("version", self.version.as_ref())];
        for (key, text) in texts {
            let Some(text) = text else { continue };
            if text.is_empty() || text.len() > MAX_BYTES || text.contains(char::is_control) {
                return Err(Error::config(format!(
                    "{key} = {text:?} cannot be shown: give 1 to {MAX_BYTES} printable bytes"
                )));
            }
        }
        Ok(())
    }
}

impl fmt::Display for AppIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{} {version}", self.name),
            None => f.write_str(&self.name),
        }
    }
}
