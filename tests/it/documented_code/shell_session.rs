//! A shell in namespaces of its own, in which the commands of one page run as they are written: port 3000 is free, and `/etc` and
//! `/run` can be written. Its end kills everything that was started in it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use tempfile::TempDir;

use super::command_rules::{
    has_no_end, is_server, may_fail, reason_not_run, setups, shortened, without_comment,
};
use super::output_shape::find_shown;
use crate::support::command::{clear_variables, test_programs};
use crate::support::wait;

/// The namespaces of a session. The end of `unshare` kills all processes in them.
const NAMESPACES: [&str; 6] =
    ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Prepares the namespaces: the loopback interface is up, the runtime directory empty, and `/etc` a layer that is thrown away.
const SETUP: &str = r#"
set -m
ip link set lo up && mount -t tmpfs run /run && mount -t tmpfs bin /usr/local/bin && mount -t tmpfs lib /var/lib && mkdir layers &&
mount -t tmpfs layers layers && mkdir layers/upper layers/work &&
mount -t overlay -o lowerdir=/etc,upperdir=layers/upper,workdir=layers/work etc /etc &&
mkdir -p /etc/prefork /etc/app /run/app logs && mount --bind logs /var/log && mkdir /var/log/prefork &&
ln -s "$PREFORK" /usr/local/bin/prefork && printf 'workers = 2\ndispatch = "ip-hash"\n' >/etc/prefork.toml &&
printf 'program = ["node", "/srv/api/app.js"]\nbind = "0.0.0.0:3000"\n' >/etc/prefork/api.toml &&
mkdir -p work/public work/src work/target/release && ln -s "$PREFORK" work/target/release/prefork &&
printf 'hello\n' >work/public/index.html && cd work && echo done >../ready
"#;

/// Programs that pages start as examples. A server that takes the inherited socket, or prints nothing, stands for each.
const SERVERS_OF_PAGES: [&str; 7] =
    ["node", "uvicorn", "gunicorn", "puma", "bundle", "npm", "work/server"];

/// A line that a primary logs when all workers serve.
const READY_LOG_TEXT: &str = " serve; stop with ";

/// What came of a command.
#[derive(Debug, PartialEq)]
pub enum CommandOutcome {
    Ran,
    /// It ran with a shorter duration or fewer rounds.
    RanShortened,
    /// It was not run, and why.
    NotRun(String),
}

/// A shell and what it has started.
pub struct ShellSession {
    unshare: Child,
    stdin: ChildStdin,
    dir: TempDir,
    /// How many commands were started.
    count: usize,
    /// Number of the command that started the running server.
    server: Option<usize>,
    /// Numbers of the commands that have started servers.
    all_servers: Vec<usize>,
    /// The pids of this run, by those that the page shows.
    known_pids: BTreeMap<String, String>,
}

impl ShellSession {
    /// Starts the shell; an error says why this machine cannot.
    pub fn start() -> Result<ShellSession, String> {
        let dir = tempfile::Builder::new().prefix("prefork-it-").tempdir().expect("directory");
        write_stand_ins(dir.path());
        let mut command = Command::new("unshare");
        if !nix::unistd::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command.args(NAMESPACES).arg("bash").current_dir(dir.path());
        clear_variables(&mut command);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:/usr/local/bin:{path}", dir.path().join("bin").display()))
            .env("PREFORK", env!("CARGO_BIN_EXE_prefork"))
            .env("HOME", dir.path())
            .env("TERM", "dumb")
            .env("TEST_PROGRAMS", test_programs());
        let log = fs::File::create(dir.path().join("shell.log")).expect("log");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        let mut unshare = command.spawn().map_err(|e| format!("unshare: {e}"))?;
        let stdin = unshare.stdin.take().expect("a pipe");
        let mut session = ShellSession {
            unshare,
            stdin,
            dir,
            count: 0,
            server: None,
            all_servers: Vec::new(),
            known_pids: BTreeMap::new(),
        };
        session.write_line(&format!("{} || exit 1", SETUP.trim_end()));
        let is_ready = wait::poll_until(|| {
            let has_ended = session.unshare.try_wait().expect("a child").is_some();
            (session.path("ready").exists() || has_ended).then_some(!has_ended)
        });
        if is_ready == Some(true) { Ok(session) } else { Err(session.read("shell.log")) }
    }

    /// Returns a path in the directory of the session.
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read(self.path(name))
            .map_or(String::new(), |b| String::from_utf8_lossy(&b).into_owned())
    }

    /// Writes a file of the page.
    pub fn write_file(&self, name: &str, text: &str) {
        let path = self.path("work").join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("directory");
        fs::write(path, text).expect("file");
    }

    fn write_line(&mut self, line: &str) {
        // The shell may have ended, which the next wait reports.
        let _ = writeln!(self.stdin, "{line}");
    }

    /// Runs a command in the shell; returns its exit status and output.
    fn execute(&mut self, command: &str) -> Result<(i32, String), String> {
        self.count += 1;
        let n = self.count;
        self.write_line(&format!(
            "{{\n{command}\n}} >../out.{n} 2>&1 </dev/null; echo $? >../s; mv ../s ../status.{n}"
        ));
        let status = wait::poll_until(|| self.read(&format!("status.{n}")).trim().parse().ok());
        let output = self.read(&format!("out.{n}"));
        let status =
            status.ok_or_else(|| format!("does not end:\n{output}{}", self.read("shell.log")))?;
        Ok((status, output))
    }

    /// Runs a command of a page, and compares its output with the lines that the page shows.
    pub fn run(&mut self, command: &str, shown: &[&str]) -> Result<CommandOutcome, String> {
        if let Some(reason) = reason_not_run(command) {
            let command = without_comment(command);
            return Ok(CommandOutcome::NotRun(format!("{command}: {reason}")));
        }
        for setup in setups(command) {
            let (status, output) = self.execute(setup)?;
            if status != 0 {
                return Err(format!("{setup} exits with {status}:\n{output}"));
            }
        }
        let mut command = without_comment(command).to_string();
        for (shown, real) in &self.known_pids {
            command = replace_number(&command, shown, real);
        }
        if is_server(&command) {
            self.start_server(&command, shown)?;
            return Ok(CommandOutcome::Ran);
        }
        let shorter = shortened(&command);
        let command_run = shorter.as_deref().unwrap_or(&command);
        let (status, output) = match has_no_end(command_run) {
            true => self.execute(&format!(
                "timeout -s INT 1 bash -c {} || (($? == 124 || $? == 130))",
                quote(command_run)
            ))?,
            false => self.execute(command_run)?,
        };
        if status == 127 {
            let program = missing_program(&output);
            return Ok(CommandOutcome::NotRun(format!("{program} is not installed here")));
        }
        let shows_failure = shown.iter().any(|line| line.starts_with("prefork: "));
        let is_expected = (status != 0) == shows_failure || (status == 1 && may_fail(&command));
        if !is_expected {
            return Err(format!("exits with {status}:\n{output}"));
        }
        find_shown(shown, &output, &mut self.known_pids)
            .map_err(|line| format!("does not print {line:?}:\n{output}"))?;
        Ok(if shorter.is_some() { CommandOutcome::RanShortened } else { CommandOutcome::Ran })
    }

    /// Runs a script of several lines, which must succeed.
    pub fn run_script(&mut self, script: &str) -> Result<CommandOutcome, String> {
        match self.execute(script)? {
            (0, _) => Ok(CommandOutcome::Ran),
            (127, output) => {
                let program = missing_program(&output);
                Ok(CommandOutcome::NotRun(format!("{program} is not installed here")))
            }
            (status, output) => Err(format!("exits with {status}:\n{output}")),
        }
    }

    /// Starts a server instead of the running one, and waits until it serves and has printed the lines shown.
    fn start_server(&mut self, command: &str, shown: &[&str]) -> Result<(), String> {
        self.stop_server()?;
        self.count += 1;
        let n = self.count;
        let command = command.trim_end().trim_end_matches('&');
        self.write_line(&format!("{command} >../out.{n} 2>&1 </dev/null &"));
        self.write_line(&format!("server=$!; echo >../started.{n}"));
        let shown: Vec<&str> = shown.to_vec();
        let log = format!("out.{n}");
        let found = wait::poll_until(|| {
            let printed = self.read(&log);
            if printed.lines().any(|line| line.starts_with("prefork: ")) {
                return Some(false);
            }
            let serves =
                printed.contains(READY_LOG_TEXT) && self.path(&format!("started.{n}")).exists();
            let mut pids = std::mem::take(&mut self.known_pids);
            let is_complete = find_shown(&shown, &printed, &mut pids).is_ok();
            self.known_pids = pids;
            (serves && is_complete).then_some(true)
        });
        if found != Some(true) {
            return Err(format!("does not serve and print what is shown:\n{}", self.read(&log)));
        }
        self.server = Some(n);
        self.all_servers.push(n);
        Ok(())
    }

    /// Stops the running server gracefully.
    fn stop_server(&mut self) -> Result<(), String> {
        if self.server.take().is_some() {
            // It may have been stopped by the page.
            self.execute("kill -TERM $server 2>/dev/null; wait $server; true")?;
        }
        Ok(())
    }

    /// Waits until the servers of the page have logged these lines.
    pub fn wait_logged(&mut self, shown: &[&str]) -> Result<(), String> {
        let mut pids = std::mem::take(&mut self.known_pids);
        let found = wait::poll_until(|| {
            find_shown(shown, &self.server_output(), &mut pids).is_ok().then_some(())
        });
        self.known_pids = pids;
        found.ok_or_else(|| format!("no server logged this; their logs:\n{}", self.server_output()))
    }

    fn server_output(&self) -> String {
        self.all_servers.iter().map(|n| self.read(&format!("out.{n}"))).collect()
    }
}

impl Drop for ShellSession {
    fn drop(&mut self) {
        // With --kill-child, the first process of the namespace ends with it, and all others with that one.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

/// Writes the programs that stand for those which pages only name.
fn write_stand_ins(dir: &Path) {
    fs::create_dir_all(dir.join("bin")).expect("directory");
    fs::create_dir_all(dir.join("work")).expect("directory");
    let write = |path: PathBuf, text: &str| {
        fs::write(&path, text).expect("script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    };
    // Without LISTEN_FDS the arguments name the descriptor.
    let server =
        "#!/bin/sh\nexport LISTEN_PID=$$ LISTEN_FDS=1\nexec \"$TEST_PROGRAMS\" foreign-server\n";
    for name in SERVERS_OF_PAGES {
        let parent = if name.contains('/') { dir.to_path_buf() } else { dir.join("bin") };
        write(parent.join(name), server);
    }
    write(dir.join("bin/sudo"), "#!/bin/sh\nexec \"$@\"\n");
    write(dir.join("bin/go"), "#!/bin/sh\ntouch server\n");
}

/// Returns the name in `bash: line 3: jq: command not found`.
fn missing_program(output: &str) -> String {
    let line = output.lines().find(|line| line.ends_with("not found")).unwrap_or(output);
    line.rsplit(": ").nth(1).unwrap_or(line).to_string()
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Replaces a whole number in a text.
fn replace_number(text: &str, number: &str, other: &str) -> String {
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(number) {
        let (before, after) = (&rest[..at], &rest[at + number.len()..]);
        let is_whole = !is_digit(before.chars().last()) && !is_digit(after.chars().next());
        result.push_str(before);
        result.push_str(if is_whole { other } else { number });
        rest = after;
    }
    result + rest
}

#[test]
fn only_whole_numbers_are_replaced() {
    assert_eq!(replace_number("kill -9 12; kill 123 12", "12", "7"), "kill -9 7; kill 123 7");
}
