//! Settings of `prefork run` besides those of the server: the program, when it is ready, how it stops, where its output goes.

use std::path::PathBuf;
use std::time::Duration;

use tokio_prefork::cli::{AppKeys, Key, RefusedKey};
use tokio_prefork::log_output::LogFormat;
use tokio_prefork::program::{Program, ProgramOutput, Readiness, StopSignal};
use tokio_prefork::{Config, ConfigBuilder, Dispatch, Error, Result, WorkerCount};

use crate::dev::WatchKeys;

use super::env_file::{Variable, read_env_file};

/// The longest time of `ready-after`.
const MAX_READY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Settings of `prefork run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProgramSettings {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Current directory of the program.
    pub directory: Option<PathBuf>,
    /// Environment variables of the program.
    pub env: Vec<Variable>,
    /// File with environment variables of the program. Those of `env` override them.
    pub env_file: Option<PathBuf>,
    /// What makes a started program ready, if neither of the next two is set.
    pub ready: ReadyMode,
    /// Path whose successful answer makes the program ready.
    pub ready_http: Option<String>,
    /// Time after its start at which the program counts as ready.
    pub ready_after: Option<Duration>,
    /// Signal that asks the program to stop.
    pub stop_signal: StopSignal,
    /// Whether Node programs that bind a port get the inherited socket instead.
    pub node_shim: bool,
    /// Where the output of the program goes.
    pub output: ProgramOutput,
    /// What is watched, so that a change reloads.
    pub watch: WatchKeys,
    /// Command of the shell that runs before a reload.
    pub build: Option<String>,
    /// Whether pages in the browser show errors and load themselves again.
    pub overlay: bool,
    /// Name of the service; that of the command without it.
    pub name: Option<String>,
    /// Filter of the logger.
    pub log: String,
    /// Format of the lines of the log.
    pub log_format: LogFormat,
}

/// What makes a started program ready, without a probe or a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ReadyMode {
    /// Whichever of the others comes first.
    #[default]
    Auto,
    /// `READY=1` on `NOTIFY_SOCKET`.
    Notify,
    /// The program waits for connections on the inherited socket.
    Listening,
}

impl ReadyMode {
    /// The modes with their names.
    const ALL: [(&str, ReadyMode); 3] = [
        ("auto", ReadyMode::Auto),
        ("notify", ReadyMode::Notify),
        ("listening", ReadyMode::Listening),
    ];

    /// Parses a name. An error completes a sentence that begins with the text.
    pub(super) fn parse(text: &str) -> Result<ReadyMode, String> {
        let found = ReadyMode::ALL.iter().find(|(name, _)| name.eq_ignore_ascii_case(text.trim()));
        found.map(|(_, mode)| *mode).ok_or_else(|| {
            "is no sign of readiness: give auto, notify or listening; a path belongs to ready-http, a time to ready-after"
                .to_string()
        })
    }

    pub(super) fn name(self) -> &'static str {
        ReadyMode::ALL.iter().find(|(_, mode)| *mode == self).map_or("", |(name, _)| name)
    }
}

impl ProgramSettings {
    /// Returns the program for the cluster's configuration. Reads the file of variables.
    ///
    /// # Errors
    ///
    /// The file of variables cannot be read.
    pub(crate) fn to_program(&self) -> Result<Program> {
        let mut words = self.command.iter();
        let program = Program::new(words.next().map_or("", String::as_str)).args(words);
        let mut program = program
            .ready(self.readiness())
            .stop_signal(self.stop_signal)
            .node_shim(self.node_shim)
            .output(self.output.clone());
        if let Some(name) = &self.name {
            program = program.output_name(name);
        }
        if let Some(directory) = &self.directory {
            program = program.current_dir(directory);
        }
        let of_file = self.env_file.as_deref().map(read_env_file).transpose()?;
        for (name, value) in of_file.iter().flatten().chain(&self.env) {
            program = program.env(name, value);
        }
        Ok(program)
    }

    fn readiness(&self) -> Readiness {
        match (&self.ready_http, self.ready_after, self.ready) {
            (Some(path), ..) => Readiness::Http(path.clone()),
            (None, Some(time), _) => Readiness::After(time),
            (None, None, ReadyMode::Auto) => Readiness::Auto,
            (None, None, ReadyMode::Notify) => Readiness::Notify,
            (None, None, ReadyMode::Listening) => Readiness::Listening,
        }
    }

    /// Checks that one thing decides when the program is ready.
    fn check_readiness(&self, config: &Config) -> Result<()> {
        let after = self.ready_after.map(|time| format!("ready-after = {time:?}"));
        let http = self.ready_http.as_ref().map(|path| format!("ready-http = {path}"));
        let ready =
            (self.ready != ReadyMode::Auto).then(|| format!("ready = {}", self.ready.name()));
        let given: Vec<String> = [http, after, ready].into_iter().flatten().collect();
        if let [one, other, ..] = given.as_slice() {
            return Err(Error::config(format!(
                "{one} conflicts with {other}: one thing decides when the program is ready; leave one of them out"
            )));
        }
        match self.ready_after {
            Some(time) if time > MAX_READY_AFTER => Err(Error::config(format!(
                "ready-after = {time:?} is out of range: give 0s to {MAX_READY_AFTER:?}"
            ))),
            Some(time) if time >= config.boot_timeout() => Err(Error::config(format!(
                "ready-after = {time:?} is not within boot-timeout = {:?}, so no worker would become ready: give a longer \
                 boot-timeout",
                config.boot_timeout()
            ))),
            _ => Ok(()),
        }
    }
}

impl Default for ProgramSettings {
    fn default() -> ProgramSettings {
        ProgramSettings {
            command: Vec::new(),
            directory: None,
            env: Vec::new(),
            env_file: None,
            ready: ReadyMode::Auto,
            ready_http: None,
            ready_after: None,
            stop_signal: StopSignal::default(),
            node_shim: true,
            output: ProgramOutput::default(),
            watch: WatchKeys::default(),
            build: None,
            overlay: false,
            name: None,
            log: "info".to_string(),
            log_format: LogFormat::Text,
        }
    }
}

/// The flags in `prefork run -h` and `prefork dev -h`.
const SHORT_HELP_KEYS: &[&str] = &[
    "bind",
    "dispatch",
    "workers",
    "max-rss",
    "graceful-timeout",
    "ready",
    "ready-http",
    "stop-signal",
    "output",
    "env-file",
    "build",
    "name",
    "watch",
    "user",
    "control",
    "admin",
    "log",
];

impl AppKeys for ProgramSettings {
    const KEYS: &'static [Key<ProgramSettings>] = super::program_keys::KEYS;

    const REFUSED_KEYS: &'static [RefusedKey] = super::refused_keys::REFUSED_KEYS;

    const SHORT_HELP_KEYS: Option<&'static [&'static str]> = Some(SHORT_HELP_KEYS);

    const READS_OTHER_NAMES: bool = false;

    fn server_defaults() -> ConfigBuilder {
        <()>::server_defaults().dispatch(Dispatch::Reuseport)
    }

    fn check(&self, config: &Config) -> Result<()> {
        if config.workers() == WorkerCount::Count(0) {
            let most = WorkerCount::MAX;
            return Err(Error::config(format!(
                "workers = 0 is out of range: give auto or 1 to {most}"
            )));
        }
        if self.command.first().is_none_or(String::is_empty) {
            return Err(Error::config(
                "program = (none) cannot be run: give it after the flags, as in prefork run -w 4 -- node app.js, or as the key \
                 program of the file",
            ));
        }
        self.check_readiness(config)?;
        // The checks of the library that need both, such as that of dispatch.
        config.clone().into_builder().program(self.to_program()?).build().map(drop)
    }
}

#[cfg(test)]
mod tests;
