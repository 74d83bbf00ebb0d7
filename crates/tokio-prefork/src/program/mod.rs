//! Foreign programs as workers: any executable that can use a listening socket which it inherits.
//!
//! A worker is two processes then. The *guard* is forked by the primary like any worker: it has the channel, the heartbeat
//! and the scoreboard page. Its child is the *program*. The guard starts the program with the listening sockets, finds out
//! when it is ready, and stops it. So to the supervisor a foreign program is a worker like any other.

mod arguments;
mod drain;
mod environment;
pub(crate) mod guard;
mod http_probe;
mod node_shim;
mod notify_socket;
pub(crate) mod observe;
pub(crate) mod output;
mod process;
mod readiness;
mod resolve;
mod start;
mod stop;
mod watchdog;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::worker::WorkerApp;
pub(crate) use environment::WORKER_VARIABLE;
pub use output::ProgramOutput;
use prefork_os::signal::Signal;
pub use readiness::Readiness;
pub use stop::StopSignal;

/// A program that runs as the worker of a cluster, for [`ConfigBuilder::program`](crate::ConfigBuilder::program) and
/// [`Cluster::serve_program`](crate::Cluster::serve_program).
///
/// It gets the listening sockets by the protocol of systemd: as descriptors 3, 4, … in the order of the addresses, with
/// `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES` in its environment. In its arguments, `{fd}` stands for the number of the
/// first one, `{fd:N}` for that of the N-th from 0, `{port}` for its port, `{slot}` for the worker's slot, `{worker}` for its id;
/// `{{` is a brace.
///
/// ```no_run
/// use tokio_prefork::program::{Program, Readiness};
/// use tokio_prefork::{Cluster, Config};
///
/// # fn main() -> tokio_prefork::Result<()> {
/// let program = Program::new("uvicorn").args(["app:app", "--fd", "{fd}"]).ready(Readiness::Listening);
/// let config = Config::builder().listen("127.0.0.1:8000")?.workers(4).program(program).build()?;
/// Cluster::new(config).serve_program()
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    executable: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    current_dir: Option<PathBuf>,
    readiness: Readiness,
    stop_signal: StopSignal,
    node_shim: bool,
    output_name: Option<String>,
    output: ProgramOutput,
    is_built: bool,
}

impl Program {
    /// Creates a program without arguments. A name without `/` is looked up in `PATH`.
    pub fn new(executable: impl Into<OsString>) -> Program {
        Program {
            executable: executable.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            current_dir: None,
            readiness: Readiness::default(),
            stop_signal: StopSignal::default(),
            node_shim: true,
            output_name: None,
            output: ProgramOutput::default(),
            is_built: true,
        }
    }

    /// Creates a program that is still to be built. Workers wait without running anything, and so do the clients, until a reload brings a
    /// configuration with the program; its workers serve what waits then.
    ///
    /// Such a worker boots all the time: set a [`boot_timeout`](crate::ConfigBuilder::boot_timeout) that is longer than the
    /// build can take.
    pub fn not_built() -> Program {
        Program { is_built: false, ..Program::new("") }
    }

    /// Returns whether there is something to run: see [`Program::not_built`].
    pub fn is_built(&self) -> bool {
        self.is_built
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Program {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Program {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable of the program, besides those of the primary. Default: none.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Program {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets the current directory of the program. Default: that of the primary.
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Program {
        self.current_dir = Some(dir.into());
        self
    }

    /// Sets what makes a started program ready. Default: [`Readiness::Auto`].
    pub fn ready(mut self, readiness: Readiness) -> Program {
        self.readiness = readiness;
        self
    }

    /// Sets the signal that asks the program to finish its requests and to exit. Default: SIGTERM.
    pub fn stop_signal(mut self, signal: StopSignal) -> Program {
        self.stop_signal = signal;
        self
    }

    /// Sets whether a Node program that binds a port itself is made to use the inherited socket, by a script that Node loads
    /// first. It applies to Node only. Default: true.
    pub fn node_shim(mut self, is_on: bool) -> Program {
        self.node_shim = is_on;
        self
    }

    /// Sets where the standard output and error of the program go. Default: [`ProgramOutput::Prefix`].
    pub fn output(mut self, output: ProgramOutput) -> Program {
        self.output = output;
        self
    }

    /// Sets what `{name}` stands for in the path of [`ProgramOutput::File`]. Default: the name of the executable.
    pub fn output_name(mut self, name: impl Into<String>) -> Program {
        self.output_name = Some(name.into());
        self
    }

    /// Returns the executable as it was given.
    pub fn executable(&self) -> &OsStr {
        &self.executable
    }

    /// Returns the arguments, with templates not yet replaced.
    pub fn arguments(&self) -> &[OsString] {
        &self.arguments
    }

    /// Returns what makes the program ready.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Returns whether Node programs get the script that makes them use the inherited socket.
    pub fn has_node_shim(&self) -> bool {
        self.node_shim
    }

    /// Returns where the output of the program goes.
    pub fn output_target(&self) -> &ProgramOutput {
        &self.output
    }

    /// Returns the current directory of the program, if it is not that of the primary.
    pub fn directory(&self) -> Option<&Path> {
        self.current_dir.as_deref()
    }

    /// Returns the name of the executable without its directory, for logs and the status.
    pub fn name(&self) -> String {
        let path = Path::new(&self.executable);
        path.file_name().unwrap_or(&self.executable).to_string_lossy().into_owned()
    }

    /// Returns the name in the paths of output files.
    pub(crate) fn name_in_paths(&self) -> String {
        self.output_name.clone().unwrap_or_else(|| self.name())
    }

    /// Returns the command line, for people.
    pub fn command_line(&self) -> String {
        let words = std::iter::once(&self.executable).chain(&self.arguments);
        words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
    }

    /// Finds the executable, and checks the templates of the arguments and the files of the output.
    ///
    /// # Errors
    /// There is no such file, it cannot be executed, a template is unknown, or the output cannot be written.
    pub fn check(&self) -> Result<PathBuf> {
        if !self.is_built {
            return Err(Error::refused("the program is not built yet: try again when it is"));
        }
        arguments::check_templates(&self.arguments)?;
        self.output.check()?;
        resolve::find_executable(
            &self.executable,
            self.directory(),
            std::env::var_os("PATH").as_deref(),
        )
    }

    /// Returns whether an argument has the number of a descriptor. Then there is no `LISTEN_FDS`: gunicorn takes both, and fails when it
    /// takes the same socket twice.
    fn names_descriptors(&self) -> bool {
        self.arguments.iter().any(|argument| arguments::names_descriptor(argument))
    }

    fn stop_signal_number(&self) -> Signal {
        self.stop_signal.signal()
    }
}

/// Returns what a web worker would boot without a program. It is not called, as the workers run the guard of the program.
pub(crate) fn program_app() -> WorkerApp {
    Arc::new(|_| {
        Box::pin(async { Err(Error::config("the reloaded configuration has no program to run")) })
    })
}

/// Quotes a word of a command line if a shell would not take it as one word.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,{}".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_shown_as_a_shell_would_take_it() {
        let program =
            Program::new("/usr/bin/node").args(["app.js", "a b", "", "it's", "--fd={fd}"]);
        assert_eq!(program.command_line(), r"/usr/bin/node app.js 'a b' '' 'it'\''s' --fd={fd}");
        assert_eq!(program.name(), "node");
    }
}
