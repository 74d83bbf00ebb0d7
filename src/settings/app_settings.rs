//! Settings of the built-in application, with their checks.

use std::path::{Component, Path, PathBuf};

use crate::dev::WatchKeys;
use tokio_prefork::cli::{AppKeys, Key};
use tokio_prefork::log_output::LogFormat;
use tokio_prefork::{Config, Error, Result, WorkerCount};

/// Settings of the built-in application and of the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AppSettings {
    /// Directory whose files are served.
    pub root: Option<PathBuf>,
    /// File below `root` that is served for paths that do not exist.
    pub fallback: Option<PathBuf>,
    /// File below `root` that is the body of 404 responses.
    pub error_page_404: Option<PathBuf>,
    /// Value of `Cache-Control` in file responses.
    pub cache_control: Option<String>,
    /// Whether files whose names start with a dot are served.
    pub dotfiles: bool,
    /// Whether symbolic links may lead outside `root`.
    pub follow_symlinks: bool,
    /// Whether `/healthz` and `/readyz` are answered.
    pub health_paths: bool,
    /// Maximum size of a request body in bytes; beyond it 413.
    pub max_body_size: u64,
    /// Memory per worker for all request bodies, in bytes; beyond it 503.
    pub max_buffered_bodies: u64,
    /// Whether the paths that crash or hang a worker on purpose are served.
    pub faults: bool,
    /// Whether the demonstration paths are served.
    pub demo: bool,
    /// What is watched, so that a change reloads.
    pub watch: WatchKeys,
    /// Whether pages in the browser show errors and load themselves again.
    pub overlay: bool,
    /// Filter of the logger.
    pub log: String,
    /// Format of the lines of the log.
    pub log_format: LogFormat,
}

impl AppSettings {
    /// Upper bound of `max_body_size`: 1 GiB.
    const MAX_BODY_SIZE_LIMIT: u64 = 1 << 30;

    fn check_values(&self) -> Result<()> {
        if self.max_body_size > AppSettings::MAX_BODY_SIZE_LIMIT {
            return Err(Error::config(format!(
                "max-body-size = {} is out of range: give 0 to 1GiB",
                self.max_body_size
            )));
        }
        if self.faults && !self.demo {
            return Err(Error::config(
                "demo = false conflicts with faults = true, whose paths are part of the demonstration: remove one of them",
            ));
        }
        for (key, page) in [("fallback", &self.fallback), ("error-page-404", &self.error_page_404)]
        {
            if let Some(page) = page {
                self.check_page_file(key, page)?;
            }
        }
        Ok(())
    }

    /// Checks that `page` is a file below the root.
    fn check_page_file(&self, key: &str, page: &Path) -> Result<()> {
        let shown = page.display();
        let Some(root) = &self.root else {
            return Err(Error::config(format!(
                "{key} = {shown} needs a root directory, but root is not set: set root as well"
            )));
        };
        let below = page.strip_prefix("/").unwrap_or(page);
        if below.components().any(|part| part == Component::ParentDir) {
            return Err(Error::config(format!(
                "{key} = {shown} is outside the root directory: give a path below it"
            )));
        }
        let why = match root.join(below).metadata() {
            Ok(found) if found.is_file() => return Ok(()),
            Ok(_) => "it is not a regular file".to_string(),
            Err(error) => error.to_string(),
        };
        Err(Error::config(format!(
            "{key} = {shown} cannot be served from {}: {why}; give the path of a file below root",
            root.display()
        )))
    }
}

impl Default for AppSettings {
    fn default() -> AppSettings {
        AppSettings {
            root: None,
            fallback: None,
            error_page_404: None,
            cache_control: None,
            dotfiles: false,
            follow_symlinks: false,
            health_paths: true,
            max_body_size: 1 << 20,
            max_buffered_bodies: 64 << 20,
            faults: false,
            demo: true,
            watch: WatchKeys::default(),
            overlay: false,
            log: "info".to_string(),
            log_format: LogFormat::Text,
        }
    }
}

/// The flags in `prefork serve -h`.
const SHORT_HELP_KEYS: &[&str] = &[
    "bind",
    "dispatch",
    "tls-cert",
    "tls-key",
    "trusted-proxies",
    "model",
    "workers",
    "worker-connections",
    "max-requests",
    "max-rss",
    "graceful-timeout",
    "keep-alive-timeout",
    "request-timeout",
    "access-log",
    "root",
    "fallback",
    "max-body-size",
    "watch",
    "user",
    "control",
    "admin",
    "log",
];

impl AppKeys for AppSettings {
    const KEYS: &'static [Key<AppSettings>] = super::app_keys::KEYS;

    const SHORT_HELP_KEYS: Option<&'static [&'static str]> = Some(SHORT_HELP_KEYS);

    const READS_OTHER_NAMES: bool = false;

    fn check(&self, config: &Config) -> Result<()> {
        // Nothing forks the workers later, as a program with hooks could.
        if config.workers() == WorkerCount::Count(0) {
            let most = WorkerCount::MAX;
            return Err(Error::config(format!(
                "workers = 0 is out of range: give auto or 1 to {most}"
            )));
        }
        self.check_values()
    }
}
