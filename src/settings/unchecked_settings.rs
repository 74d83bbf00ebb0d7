//! The unchecked: all values, first the defaults, then overwritten by what was said, then checked.

use std::path::{Component, Path, PathBuf};

use tokio_prefork::{Config, ControlSocket, Error, Result};

/// What the built-in application needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AppSettings {
    /// The directory whose files are served, if any.
    pub root: Option<PathBuf>,
    /// The file below `root` that answers for paths that do not exist, if any.
    pub fallback: Option<PathBuf>,
    /// The file below `root` that is the body of a 404, if any.
    pub error_page_404: Option<PathBuf>,
    /// The value of `Cache-Control` of files, if any.
    pub cache_control: Option<String>,
    /// Whether files are served whose names begin with a dot.
    pub dotfiles: bool,
    /// Whether symbolic links may lead out of `root`.
    pub follow_symlinks: bool,
    /// Whether `/healthz` and `/readyz` are answered.
    pub health_paths: bool,
    /// Largest request body in bytes; beyond it, 413.
    pub max_body_size: u64,
    /// Bytes that all request bodies of a worker may take in memory together; beyond it, 503.
    pub max_buffered_bodies: u64,
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
        for (key, page) in [("fallback", &self.fallback), ("error-page-404", &self.error_page_404)]
        {
            if let Some(page) = page {
                self.check_page(key, page)?;
            }
        }
        Ok(self)
    }

    /// Whether `page` is a file below the root.
    fn check_page(&self, key: &str, page: &Path) -> Result<()> {
        let shown = page.display();
        let Some(root) = &self.root else {
            return Err(Error::config(format!(
                "{key} = {shown} is a file of the root, and there is none: give root, too"
            )));
        };
        let below = page.strip_prefix("/").unwrap_or(page);
        if below.components().any(|part| part == Component::ParentDir) {
            return Err(Error::config(format!(
                "{key} = {shown} leads out of the root: give a path below it"
            )));
        }
        let why = match root.join(below).metadata() {
            Ok(found) if found.is_file() => return Ok(()),
            Ok(_) => "it is no regular file".to_string(),
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
        }
    }
}

/// Values that are read, but not yet held against their bounds.
#[derive(Debug, Clone)]
pub(crate) struct UncheckedSettings {
    /// For the library.
    pub config: Config,
    /// For the built-in application.
    pub app: AppSettings,
    /// For the logger of the binary.
    pub log: String,
}

impl UncheckedSettings {
    /// Checks every value against its bounds. Errors begin with `KEY = VALUE`.
    pub(crate) fn check(self) -> Result<(Config, AppSettings, String)> {
        let config = self.config.into_builder().build()?;
        Ok((config, self.app.check()?, self.log))
    }
}

impl Default for UncheckedSettings {
    fn default() -> UncheckedSettings {
        let config = {
            let mut config = Config::default();
            config.control = ControlSocket::Auto;
            config
        };
        UncheckedSettings { config, app: AppSettings::default(), log: "info".to_string() }
    }
}
