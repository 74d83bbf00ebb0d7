//! The processes that tests start: their programs, arguments and environment.

use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::server::{Server, create_log};
use super::{overrides, wait};

/// Builds the command line and environment of a process. Servers bind port 0 of 127.0.0.1 by default.
pub struct ProcessBuilder {
    program: PathBuf,
    /// A shell script that runs first and ends with `exec "$0" "$@"`.
    script: Option<&'static str>,
    has_own_group: bool,
    verb: Vec<OsString>,
    binds: Vec<String>,
    args: Vec<OsString>,
    /// Arguments after all others.
    last_args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    workers: usize,
    /// Workers of other kinds than `web`.
    other_workers: usize,
    /// Whether `--workers` is passed.
    passes_workers: bool,
    /// Whether the configuration file sets the dispatch policy.
    config_sets_dispatch: bool,
    stdin: Option<OwnedFd>,
    /// Descriptors 0, 1 and 2 of the script, instead of /dev/null and the log.
    standard_streams: Vec<OwnedFd>,
    uid: Option<u32>,
    control: PathBuf,
    /// Whether the program has a control socket at all: the examples have none.
    has_control: bool,
    dir: TempDir,
}

/// Exit status and output of a process that has ended.
#[derive(Debug)]
pub struct ProcessOutput {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl ProcessBuilder {
    /// Builds `prefork serve`.
    pub fn serve() -> ProcessBuilder {
        ProcessBuilder::new(PathBuf::from(env!("CARGO_BIN_EXE_prefork")), "serve")
    }

    /// Builds `prefork run` with `test_programs foreign-server` and these words.
    pub fn run_foreign_server(words: &[&str]) -> ProcessBuilder {
        ProcessBuilder::run_test_program("foreign-server", words)
    }

    /// Builds `prefork run` with `test_programs foreign-program` and these words, the first of which is the mode.
    pub fn run_foreign_program(words: &[&str]) -> ProcessBuilder {
        ProcessBuilder::run_test_program("foreign-program", words)
    }

    fn run_test_program(name: &str, words: &[&str]) -> ProcessBuilder {
        let mut builder = ProcessBuilder::run_configured();
        builder.last_args = vec!["--".into(), test_programs().into(), name.into()];
        builder.last_args.extend(words.iter().map(Into::into));
        builder
    }

    /// Builds `prefork run` with a program that the configuration file names.
    pub fn run_configured() -> ProcessBuilder {
        let mut builder = ProcessBuilder::new(PathBuf::from(env!("CARGO_BIN_EXE_prefork")), "run");
        builder.config_sets_dispatch = true;
        builder
    }

    /// Builds `prefork dev` with a program and its arguments.
    pub fn dev(command: &[&str]) -> ProcessBuilder {
        let mut builder = ProcessBuilder::new(PathBuf::from(env!("CARGO_BIN_EXE_prefork")), "dev");
        builder.config_sets_dispatch = true;
        builder.last_args =
            std::iter::once("--").chain(command.iter().copied()).map(Into::into).collect();
        builder.workers(1).other_workers(1)
    }

    /// Builds a program of `tests/programs`.
    pub fn program(name: &str) -> ProcessBuilder {
        ProcessBuilder::new(test_programs(), name)
    }

    /// Builds an example of this package, on port 0.
    pub fn example(name: &str) -> ProcessBuilder {
        let bin = Path::new(env!("CARGO_BIN_EXE_prefork"));
        let path = bin.with_file_name("examples").join(name);
        assert!(path.exists(), "run: cargo build --examples");
        let mut builder = ProcessBuilder::new(path, "127.0.0.1:0");
        builder.binds.clear();
        builder.passes_workers = false;
        builder.has_control = false;
        builder.workers = std::thread::available_parallelism().map_or(1, usize::from);
        builder
    }

    /// Builds an example that takes the flags of `prefork serve`.
    pub fn example_with_flags(name: &str) -> ProcessBuilder {
        let mut builder = ProcessBuilder::example(name);
        builder.verb.clear();
        builder.binds = vec!["127.0.0.1:0".to_string()];
        (builder.workers, builder.passes_workers, builder.has_control) = (2, true, true);
        builder
    }

    /// Builds `prefork VERB`, for verbs that end by themselves.
    pub fn verb(verb: &str) -> ProcessBuilder {
        let mut builder = ProcessBuilder::new(PathBuf::from(env!("CARGO_BIN_EXE_prefork")), verb);
        builder.binds.clear();
        builder.workers = 0;
        builder.has_control = false;
        builder
    }

    fn new(program: PathBuf, verb: &str) -> ProcessBuilder {
        let dir = tempfile::Builder::new().prefix("prefork-it-").tempdir().expect("directory");
        ProcessBuilder {
            program,
            script: None,
            has_own_group: false,
            verb: vec![verb.into()],
            binds: vec!["127.0.0.1:0".to_string()],
            args: Vec::new(),
            last_args: Vec::new(),
            env: Vec::new(),
            workers: 2,
            other_workers: 0,
            passes_workers: true,
            config_sets_dispatch: false,
            stdin: None,
            standard_streams: Vec::new(),
            uid: None,
            control: dir.path().join("control"),
            has_control: true,
            dir,
        }
    }

    pub fn workers(mut self, workers: usize) -> ProcessBuilder {
        self.workers = workers;
        self
    }

    /// Sets how many workers of other kinds than `web` the program has.
    pub fn other_workers(mut self, count: usize) -> ProcessBuilder {
        self.other_workers = count;
        self
    }

    /// Passes a configuration file with this text, which sets the addresses and the number of `workers`.
    pub fn config(mut self, workers: usize, text: &str) -> ProcessBuilder {
        fs::write(self.dir.path().join("prefork.toml"), text).expect("write");
        self.binds.clear();
        self.workers = workers;
        self.passes_workers = false;
        self.config_sets_dispatch = text.contains("dispatch = ");
        self.args(["--config", "prefork.toml"])
    }

    /// Puts the control socket at this path instead of into the server's directory.
    pub fn control_at(mut self, path: PathBuf) -> ProcessBuilder {
        self.control = path;
        self
    }

    /// Sets the concurrency model, with `count` processes or threads where the model has several.
    pub fn model(mut self, model: &str, count: usize) -> ProcessBuilder {
        (self.workers, self.passes_workers) = (if model == "prefork" { count } else { 1 }, false);
        let count = if model == "single" { 1 } else { count };
        self.args(["--model", model, "--workers", &count.to_string()])
    }

    /// Sets the dispatch policy.
    pub fn dispatch(self, policy: &str) -> ProcessBuilder {
        self.args(["--dispatch", policy])
    }

    /// Sets the bind addresses, instead of port 0 of 127.0.0.1.
    pub fn bind<S: Into<String>>(
        mut self,
        addresses: impl IntoIterator<Item = S>,
    ) -> ProcessBuilder {
        self.binds = addresses.into_iter().map(Into::into).collect();
        self
    }

    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> ProcessBuilder {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> ProcessBuilder {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts the process in a process group of its own. The kernel drops SIGTSTP in an orphaned process group, which
    /// the group of the tests may be.
    pub fn own_process_group(mut self) -> ProcessBuilder {
        self.has_own_group = true;
        self
    }

    /// Starts the program by a shell script that ends with `exec "$0" "$@"`.
    pub fn script(mut self, script: &'static str) -> ProcessBuilder {
        self.script = Some(script);
        self
    }

    /// Sets descriptor 0 of the script.
    pub fn stdin(mut self, fd: OwnedFd) -> ProcessBuilder {
        self.stdin = Some(fd);
        self
    }

    /// Sets descriptors 0, 1 and 2 of the script, which has to open the log itself.
    pub fn standard_streams(
        mut self,
        descriptors: impl Iterator<Item = OwnedFd>,
    ) -> ProcessBuilder {
        self.standard_streams = descriptors.collect();
        self
    }

    /// Runs the process as this user, from a copy of the program that the user can read.
    pub fn with_user(mut self, uid: u32) -> ProcessBuilder {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(self.dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        // The primary makes its control socket there.
        std::os::unix::fs::chown(self.dir.path(), Some(uid), Some(uid)).expect("chown");
        self.uid = Some(uid);
        self.with_copied_program()
    }

    /// Runs a copy of the program, at `program` in the server's directory.
    pub fn with_copied_program(mut self) -> ProcessBuilder {
        let copy = self.dir.path().join("program");
        // Copied by another process: a child that another test forks meanwhile would inherit our descriptor, and a file
        // that is open for writing cannot be executed.
        let cp = Command::new("cp").arg(&self.program).arg(&copy).status().expect("cp");
        assert!(cp.success());
        self.program = copy;
        self
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn is_serve(&self) -> bool {
        self.verb.first().is_some_and(|verb| verb == "serve")
    }

    fn is_run(&self) -> bool {
        self.verb.first().is_some_and(|verb| verb == "run" || verb == "dev")
    }

    fn command(&mut self) -> Command {
        let mut command = match self.script {
            Some(script) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(script).arg(&self.program);
                shell
            }
            None => Command::new(&self.program),
        };
        command.args(&self.verb);
        command.args(self.binds.iter().flat_map(|addr| ["--bind", addr]));
        if self.workers > 0 && self.passes_workers {
            command.args(["--workers", &self.workers.to_string()]);
        }
        command.args(&self.args).current_dir(self.dir.path());
        clear_variables(&mut command);
        // Without this, the socket would be in the runtime directory of the machine.
        match self.has_control {
            true if self.is_serve() || self.is_run() => {
                command.env("PREFORK_CONTROL", &self.control)
            }
            true if self.verb.is_empty() => command.arg("--control").arg(&self.control),
            true => command.arg(format!("control={}", self.control.display())),
            false => command.env("PREFORK_CONTROL", "off"),
        };
        if !self.config_sets_dispatch {
            overrides::apply_dispatch_override(&mut command);
        }
        if self.is_serve() && overrides::is_tls() {
            overrides::apply_tls_override(&mut command);
        }
        command.args(&self.last_args);
        command.envs(self.env.drain(..));
        command.stdin(self.stdin.take().map_or_else(Stdio::null, Stdio::from));
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        if self.has_own_group {
            command.process_group(0);
        }
        command
    }

    /// Starts the server and waits until all workers serve.
    #[track_caller]
    pub fn start(self) -> Server {
        self.spawn().ready()
    }

    /// Starts the process without waiting for anything.
    #[track_caller]
    pub fn spawn(mut self) -> Server {
        let can_override = self.is_serve() && self.passes_workers;
        if let Some(model) = overrides::model_override().filter(|_| can_override) {
            let count = self.workers;
            self = self.model(&model, count);
        }
        let mut command = self.command();
        command.stdout(Stdio::null()).stderr(create_log(self.dir.path()));
        let mut streams = self.standard_streams.drain(..).map(Stdio::from);
        streams.next().map(|one| command.stdin(one));
        streams.next().map(|one| command.stdout(one));
        streams.next().map(|one| command.stderr(one));
        drop(streams);
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let is_tls = self.is_serve() && overrides::is_tls();
        let control = self.has_control.then_some(self.control);
        Server::new(child, self.dir, self.workers + self.other_workers, control, is_tls)
    }

    /// Runs a process that ends by itself, and returns its output.
    #[track_caller]
    pub fn run(mut self) -> ProcessOutput {
        let mut command = self.command();
        let (stdout, stderr) = (self.dir.path().join("out"), self.dir.path().join("err"));
        let create = |path: &Path| fs::File::create(path).expect("output file");
        command.stdout(create(&stdout)).stderr(create(&stderr));
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let status = wait::poll_until(|| child.try_wait().expect("a child of this process"));
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let status =
            status.unwrap_or_else(|| panic!("{command:?} does not end:\n{}", read(stderr.clone())));
        ProcessOutput { status: status.code(), stdout: read(stdout), stderr: read(stderr) }
    }
}

/// Returns the path of the programs of `tests/programs`. `cargo test` compiles them; for `cargo test --test it` alone, run
/// `cargo build --example test_programs` first.
pub fn test_programs() -> PathBuf {
    let bin = Path::new(env!("CARGO_BIN_EXE_prefork"));
    let path = bin.with_file_name("examples").join("test_programs");
    assert!(path.exists(), "run: cargo build --example test_programs");
    path
}

/// Returns a command for the `prefork` binary, without the environment variables that it would read.
pub fn prefork() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prefork"));
    clear_variables(&mut command);
    command
}

/// Removes the environment variables that the server reads, such as those that set the length of these tests.
pub fn clear_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if is_read_by_server(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
}

/// Whether the server reads this environment variable.
fn is_read_by_server(name: &str) -> bool {
    const READ_BY_SERVER: [&str; 15] = [
        "RUNTIME_DIRECTORY",
        "XDG_RUNTIME_DIR",
        "PORT",
        "WEB_CONCURRENCY",
        "RUST_LOG",
        "RUST_BACKTRACE",
        "RUST_LIB_BACKTRACE",
        "JOURNAL_STREAM",
        "NOTIFY_SOCKET",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "FDSTORE",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
    ];
    READ_BY_SERVER.contains(&name) || name.starts_with("PREFORK_")
}
