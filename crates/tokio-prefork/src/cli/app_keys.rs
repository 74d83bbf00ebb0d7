//! What a program adds to the keys of the server.

use super::key::{Key, RefusedKey};
use crate::config::{Config, ConfigBuilder, ControlSocket};
use crate::error::Result;

/// The keys of the server that the short help (`-h`) of a program shows by default: those that most users set.
pub const COMMON_SERVER_KEYS: &[&str] = &[
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
    "http2",
    "access-log",
    "user",
    "control",
    "admin",
];

/// The keys of an application beside those of the server, and the defaults of both.
///
/// Implemented by `()` for programs without keys of their own. A value of this type is attached to the configuration:
/// [`Config::app_settings`] returns it in the workers, and a reload brings the new one.
///
/// ```
/// use tokio_prefork::cli::{AppKeys, Field, Key};
/// use tokio_prefork::{Config, ConfigBuilder, ControlSocket};
///
/// #[derive(Debug, Clone, Default)]
/// struct Shop {
///     catalogue: Option<std::path::PathBuf>,
///     read_only: bool,
/// }
///
/// impl AppKeys for Shop {
///     const KEYS: &'static [Key<Shop>] = &[
///         Key::new("catalogue", "Shop", Field::File(|s| &mut s.catalogue), "Read the articles from this file"),
///         Key::new("read-only", "Shop", Field::Switch(|s| &mut s.read_only), "Refuse orders"),
///     ];
///
///     fn server_defaults() -> ConfigBuilder {
///         Config::builder().control(ControlSocket::Auto).bind([([0, 0, 0, 0], 8080)])
///     }
/// }
/// ```
pub trait AppKeys: Default + Clone + Send + Sync + 'static {
    /// The keys of the application. Their names differ from those of the server.
    const KEYS: &'static [Key<Self>] = &[];

    /// Keys that this program does not take, of the server or of other programs that read the same file. They are not in the
    /// help; each of them as a flag, a variable or in the file is an error with its reason. Default: none.
    const REFUSED_KEYS: &'static [RefusedKey] = &[];

    /// Names of the flags that the short help (`-h`) shows, of the server and of the application; `--help` shows all. Default:
    /// [`COMMON_SERVER_KEYS`] and all of the application.
    const SHORT_HELP_KEYS: Option<&'static [&'static str]> = None;

    /// Whether the program reads other names itself: variables with its prefix, and the table `[app]` of the file
    /// ([`Settings::app_table`](super::Settings::app_table)). If not, such a variable gives a warning and such a table an
    /// error. Default: true.
    const READS_OTHER_NAMES: bool = true;

    /// Returns the defaults of the server. By default those of [`Config::builder`], with a control socket in the runtime
    /// directory, so that `prefork status` and the other verbs find the program, and with process titles.
    fn server_defaults() -> ConfigBuilder {
        Config::builder().control(ControlSocket::Auto).titles(true)
    }

    /// Checks the values of the application, after each was parsed. Default: no check.
    ///
    /// # Errors
    ///
    /// What makes the configuration invalid. A text that begins with `KEY = VALUE` gets the source of the value.
    fn check(&self, config: &Config) -> Result<()> {
        let _ = config;
        Ok(())
    }
}

impl AppKeys for () {}
