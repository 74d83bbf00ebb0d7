//! The draft: all values, first the defaults, then overwritten by what was said, then checked.

use std::path::PathBuf;

use super::{Config, ConfigBuilder, ControlSocket};
use crate::error::{Error, Result};

/// What the built-in application needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AppSettings {
    /// The directory whose files are served, if any.
    pub root: Option<PathBuf>,
    /// Largest request body in bytes; beyond it, 413.
    pub max_body_size: u64,
    /// Whether the paths that crash or hang a worker on purpose are there.
    pub faults: bool,
    /// Whether the paths of the demonstration are there, besides those for health checks.
    pub demo: bool,
}

impl AppSettings {
    /// 1 GiB.
    const MAX_BODY_SIZE_MOST: u64 = 1 << 30;

    fn check(self) -> Result<AppSettings> {
        if self.max_body_size > AppSettings::MAX_BODY_SIZE_MOST {
            return Err(Error::config(format!(
                "max-body-size = {} is out of range: give 0 to 1GiB",
                self.max_body_size
            )));
        }
        if self.faults && !self.demo {
            return Err(Error::config(
                "demo = false does not fit faults = true, whose paths belong to the demonstration: leave one of them out",
            ));
        }
        Ok(self)
    }
}

impl Default for AppSettings {
    fn default() -> AppSettings {
        AppSettings { root: None, max_body_size: 1 << 20, faults: false, demo: true }
    }
}

/// Values that are read, but not yet held against their bounds.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    /// For the library.
    pub config: Config,
    /// For the built-in application.
    pub app: AppSettings,
    /// For the logger of the binary.
    pub log: String,
}

impl Draft {
    /// Checks every value against its bounds. Errors begin with `KEY = VALUE`.
    pub(crate) fn check(self) -> Result<(Config, AppSettings, String)> {
        let config = ConfigBuilder { config: self.config }.build()?;
        Ok((config, self.app.check()?, self.log))
    }
}

impl Default for Draft {
    fn default() -> Draft {
        let config = Config { control: ControlSocket::Auto, ..Config::default() };
        Draft { config, app: AppSettings::default(), log: "info".to_string() }
    }
}
