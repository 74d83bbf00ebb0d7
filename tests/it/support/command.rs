//! What is started, and with what.

use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::server::{Server, create_log};
use super::{overrides, wait};

/// A server to be started, on port 0 of the loopback address unless it is told otherwise.
pub struct Builder {
    program: PathBuf,
    /// Runs before the program, as a shell script that ends with `exec "$0" "$@"`.
    script: Option<&'static str>,
    has_own_group: bool,
    verb: Vec<OsString>,
    binds: Vec<String>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    workers: usize,
    /// Workers of other kinds that are to be ready, too.
    others: usize,
    /// Whether a flag says how many workers there are to be.
    tells_workers: bool,
    /// Whether the configuration file says which dispatch policy there is to be.
    tells_policy: bool,
    stdin: Option<OwnedFd>,
    /// Descriptors 0 and up when the script begins, instead of the log and all else.
    streams: Vec<OwnedFd>,
    user: Option<u32>,
    control: PathBuf,
    /// Whether the program has a control socket at all: the examples have none.
    has_control: bool,
    dir: TempDir,
}

/// How a command that was not to stay ended.
#[derive(Debug)]
pub struct Ended {
    pub status: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Builder {
    /// `prefork serve`.
    pub fn serve() -> Builder {
        Builder::new(PathBuf::from(env!("CARGO_BIN_EXE_prefork")), "serve")
    }

    /// One of the programs in `tests/programs`, an example of this package: built by `cargo test`, and by
    /// `cargo build --example test_programs` for `cargo test --test it`.
    pub fn program(name: &str) -> Builder {
        let bin = Path::new(env!("CARGO_BIN_EXE_prefork"));
        let path = bin.with_file_name("examples").join("test_programs");
        assert!(path.exists(), "run: cargo build --example test_programs");
        Builder::new(path, name)
    }

    /// One of the examples of this package, on port 0; built like the programs.
    pub fn example(name: &str) -> Builder {
        let bin = Path::new(env!("CARGO_BIN_EXE_prefork"));
        let path = bin.with_file_name("examples").join(name);
        assert!(path.exists(), "run: cargo build --examples");
        let mut builder = Builder::new(path, "127.0.0.1:0");
        builder.binds.clear();
        builder.tells_workers = false;
        builder.has_control = false;
        builder.workers = std::thread::available_parallelism().map_or(1, usize::from);
        builder
    }

    /// `prefork VERB`, for verbs that end by themselves.
    pub fn verb(verb: &str) -> Builder {
        let mut builder = Builder::new(PathBuf::from(env!("CARGO_BIN_EXE_prefork")), verb);
        builder.binds.clear();
        builder.workers = 0;
        builder.has_control = false;
        builder
    }

    fn new(program: PathBuf, verb: &str) -> Builder {
        let dir = tempfile::Builder::new().prefix("prefork-it-").tempdir().expect("directory");
        Builder {
            program,
            script: None,
            has_own_group: false,
            verb: vec![verb.into()],
            binds: vec!["127.0.0.1:0".to_string()],
            args: Vec::new(),
            env: Vec::new(),
            workers: 2,
            others: 0,
            tells_workers: true,
            tells_policy: false,
            stdin: None,
            streams: Vec::new(),
            user: None,
            control: dir.path().join("control"),
            has_control: true,
            dir,
        }
    }

    pub fn workers(mut self, workers: usize) -> Builder {
        self.workers = workers;
        self
    }

    /// A program with so many workers of other kinds than those that serve.
    pub fn others(mut self, others: usize) -> Builder {
        self.others = others;
        self
    }

    /// With this text as configuration file, which has the addresses and says that there are `workers` workers.
    pub fn config(mut self, workers: usize, text: &str) -> Builder {
        fs::write(self.dir.path().join("prefork.toml"), text).expect("write");
        self.binds.clear();
        self.workers = workers;
        self.tells_workers = false;
        self.tells_policy = text.contains("dispatch = ");
        self.args(["--config", "prefork.toml"])
    }

    /// With the control socket at this path, and not in the server's directory.
    pub fn control_at(mut self, path: PathBuf) -> Builder {
        self.control = path;
        self
    }

    /// Under this concurrency model: `count` processes or threads, or one loop alone.
    pub fn model(mut self, model: &str, count: usize) -> Builder {
        (self.workers, self.tells_workers) = (if model == "prefork" { count } else { 1 }, false);
        let count = if model == "single" { 1 } else { count };
        self.args(["--model", model, "--workers", &count.to_string()])
    }

    /// Under another dispatch policy than the default.
    pub fn dispatch(self, policy: &str) -> Builder {
        self.args(["--dispatch", policy])
    }

    /// Instead of port 0 of the loopback address.
    pub fn bind<S: Into<String>>(mut self, addresses: impl IntoIterator<Item = S>) -> Builder {
        self.binds = addresses.into_iter().map(Into::into).collect();
        self
    }

    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Builder {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Builder {
        self.env.push((name.into(), value.into()));
        self
    }

    /// In a process group of its own, whose parent is in another one of the same session: the kernel drops SIGTSTP and
    /// its like in a group without such a parent, as the one of these tests may be.
    pub fn own_group(mut self) -> Builder {
        self.has_own_group = true;
        self
    }

    /// A shell script that ends with `exec "$0" "$@"` and starts the program.
    pub fn script(mut self, script: &'static str) -> Builder {
        self.script = Some(script);
        self
    }

    /// Open as descriptor 0 when the script begins.
    pub fn stdin(mut self, fd: OwnedFd) -> Builder {
        self.stdin = Some(fd);
        self
    }

    /// Open as descriptors 0, 1 and 2 when the script begins, which then has to open the log.
    pub fn streams(mut self, descriptors: impl Iterator<Item = OwnedFd>) -> Builder {
        self.streams = descriptors.collect();
        self
    }

    /// As this user, and with a copy of the program that the user can reach.
    pub fn user(mut self, uid: u32) -> Builder {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(self.dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        // The primary makes its control socket there.
        std::os::unix::fs::chown(self.dir.path(), Some(uid), Some(uid)).expect("chown");
        self.user = Some(uid);
        self.copied()
    }

    /// From a copy of the program, `program` in the server's directory.
    pub fn copied(mut self) -> Builder {
        let copy = self.dir.path().join("program");
        // Not by ourselves: a process that another test forks meanwhile would hold the copy open for writing
        // for a moment, and what is open for writing cannot be executed.
        let cp = Command::new("cp").arg(&self.program).arg(&copy).status().expect("cp");
        assert!(cp.success());
        self.program = copy;
        self
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
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
        if self.workers > 0 && self.tells_workers {
            command.args(["--workers", &self.workers.to_string()]);
        }
        command.args(&self.args).current_dir(self.dir.path());
        clear_variables(&mut command);
        // No socket of a test belongs into the runtime directory of the machine.
        match self.has_control {
            true if self.verb[0] == "serve" => command.env("PREFORK_CONTROL", &self.control),
            true => command.arg(format!("control={}", self.control.display())),
            false => command.env("PREFORK_CONTROL", "off"),
        };
        if !self.tells_policy {
            overrides::set_policy(&mut command);
        }
        command.envs(self.env.drain(..));
        command.stdin(self.stdin.take().map_or_else(Stdio::null, Stdio::from));
        if let Some(uid) = self.user {
            command.uid(uid).gid(uid);
        }
        if self.has_own_group {
            command.process_group(0);
        }
        command
    }

    /// Starts it and waits until all workers serve.
    #[track_caller]
    pub fn start(self) -> Server {
        self.spawn().ready()
    }

    /// Starts it, and leaves it to the test to wait for something.
    #[track_caller]
    pub fn spawn(mut self) -> Server {
        let usual = self.verb[0] == "serve" && self.tells_workers;
        if let Some(model) = overrides::model().filter(|_| usual) {
            let count = self.workers;
            self = self.model(&model, count);
        }
        let mut command = self.command();
        command.stdout(Stdio::null()).stderr(create_log(self.dir.path()));
        let mut streams = self.streams.drain(..).map(Stdio::from);
        streams.next().map(|one| command.stdin(one));
        streams.next().map(|one| command.stdout(one));
        streams.next().map(|one| command.stderr(one));
        drop(streams);
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let control = self.has_control.then_some(self.control);
        Server::new(child, self.dir, self.workers + self.others, control)
    }

    /// Runs something that ends by itself.
    #[track_caller]
    pub fn run(mut self) -> Ended {
        let mut command = self.command();
        let (out, err) = (self.dir.path().join("out"), self.dir.path().join("err"));
        let create = |path: &Path| fs::File::create(path).expect("output file");
        command.stdout(create(&out)).stderr(create(&err));
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let status = wait::try_for(|| child.try_wait().expect("our own child"));
        if status.is_none() {
            // It was to end and did not: it must not stay.
            let _ = child.kill();
            let _ = child.wait();
        }
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let status =
            status.unwrap_or_else(|| panic!("{command:?} goes on:\n{}", read(err.clone())));
        Ended { status: status.code(), out: read(out), err: read(err) }
    }
}

/// The real binary, with nothing in its environment that it reads: those variables are for the tests.
pub fn prefork() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prefork"));
    clear_variables(&mut command);
    command
}

fn clear_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if is_heard(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
}

/// Whether a variable of the environment would change what the server does, or what it says.
fn is_heard(name: &str) -> bool {
    const HEARD: [&str; 15] = [
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
    HEARD.contains(&name) || name.starts_with("PREFORK_")
}
