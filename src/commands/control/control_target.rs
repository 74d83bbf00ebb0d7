//! Which primary a control verb talks to: the flags, and the search for its control socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, value_parser};

use tokio_prefork::cli::parse_duration;
use tokio_prefork::control::{self, ControlClient};
use tokio_prefork::{Error, Result};

/// A primary, by the path of its control socket or by name. With neither it is the only one that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ControlTarget {
    pub(super) control: Option<PathBuf>,
    name: Option<String>,
    timeout: Option<Duration>,
}

/// A connection to a primary, and the socket that it was found at.
pub(crate) struct ConnectedPrimary {
    pub(crate) client: ControlClient,
    pub(crate) path: PathBuf,
}

impl ControlTarget {
    /// Returns the definitions of `--control`, `--name` and `--timeout`.
    pub(crate) fn args() -> [Arg; 3] {
        let control = Arg::new("control")
            .long("control")
            .value_name("PATH")
            .env("PREFORK_CONTROL")
            .value_parser(value_parser!(PathBuf))
            .help("Path of the control socket [default: the only one in the runtime directory]");
        let name = Arg::new("name")
            .long("name")
            .value_name("NAME")
            .help("Name of the application: find its control socket in the runtime directory");
        let timeout = Arg::new("timeout")
            .long("timeout")
            .value_name("DURATION")
            .value_parser(parse_duration)
            .help("Timeout for the response [default: 5s; 1h for reload, upgrade and stop]");
        [control, name, timeout]
    }

    /// Reads `--control`, `--name` and `--timeout`.
    pub(crate) fn from_matches(matches: &ArgMatches) -> ControlTarget {
        let timeout = matches.get_one::<Duration>("timeout").copied();
        let name = matches.get_one::<String>("name").cloned();
        let control = matches.get_one::<PathBuf>("control").cloned();
        // The variable is for the service's own socket; a name on the command line asks for another one.
        let is_flag = matches.value_source("control") == Some(ValueSource::CommandLine);
        let control = control.filter(|_| is_flag || name.is_none());
        ControlTarget { control, name, timeout }
    }

    /// Connects to the primary.
    ///
    /// # Errors
    ///
    /// No primary answers, or several run and none of the flags chooses one.
    pub(crate) fn connect(&self) -> Result<ConnectedPrimary> {
        // `PREFORK_CONTROL` is shared with `serve`, which also accepts `auto` and `off`.
        let path = self.control.as_deref();
        let path = path.filter(|path| *path != Path::new("auto") && *path != Path::new("off"));
        match path {
            Some(path) => self.connect_to(path),
            None => self.search(),
        }
    }

    /// Connects to the primary at `path`, whatever its name is.
    ///
    /// # Errors
    ///
    /// No primary answers there.
    pub(crate) fn connect_to(&self, path: &Path) -> Result<ConnectedPrimary> {
        let client = self.with_timeout(ControlClient::connect(path)?);
        Ok(ConnectedPrimary { client, path: path.to_path_buf() })
    }

    fn with_timeout(&self, client: ControlClient) -> ControlClient {
        match self.timeout {
            Some(timeout) => client.timeout(timeout),
            None => client,
        }
    }

    /// Connects to the only live control socket in the runtime directory, or the only one whose application has the name.
    fn search(&self) -> Result<ConnectedPrimary> {
        let mut last_error = None;
        let mut connected = Vec::new();
        for (path, pid) in control::find_control_sockets() {
            match self.connect_to(&path).and_then(|primary| self.filter_by_name(primary)) {
                Ok(Some(primary)) => connected.push((primary, pid)),
                Ok(None) => {}
                Err(e) => last_error = Some(e),
            }
        }
        match connected.len() {
            0 => Err(last_error.unwrap_or_else(|| self.not_found_error())),
            1 => Ok(connected.remove(0).0),
            _ => {
                let list = connected.into_iter().map(|(mut primary, pid)| {
                    let status = primary.client.status();
                    let about = status.map_or(String::new(), |status| {
                        format!(", {}, {}", status.primary.name, status.listeners.join(" "))
                    });
                    format!("{} (pid {pid}{about})", primary.path.display())
                });
                let list = list.collect::<Vec<_>>().join(", ");
                Err(Error::refused(format!(
                    "several primaries are running; choose one with --control or --name: {list}"
                )))
            }
        }
    }

    /// Returns the primary if it runs the wanted application, or if no name is given.
    fn filter_by_name(&self, mut primary: ConnectedPrimary) -> Result<Option<ConnectedPrimary>> {
        let Some(name) = &self.name else { return Ok(Some(primary)) };
        Ok((primary.client.status()?.primary.name == *name).then_some(primary))
    }

    fn not_found_error(&self) -> Error {
        let directory = control::runtime_directory();
        let reason = match &self.name {
            Some(name) => format!("no running application is named {name}"),
            None if has_no_runtime_directory() => {
                "there is no such socket; where XDG_RUNTIME_DIR is not set, start the server with --control PATH".to_string()
            }
            None => "there is no such socket".to_string(),
        };
        Error::unreachable(&directory.join("prefork-*.sock"), reason)
    }
}

/// Whether a server of this user has no directory for its control socket, as in a container without root.
fn has_no_runtime_directory() -> bool {
    std::env::var_os("XDG_RUNTIME_DIR").is_none() && !nix::unistd::geteuid().is_root()
}
