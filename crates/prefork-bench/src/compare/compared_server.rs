//! The servers of a comparison: how to start one, detect that it is ready, and stop it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::compare_certificate::CompareCertificate;
use super::{POLL_INTERVAL, SERVER_START_TIMEOUT};
use crate::load::{self, LoadPlan, TargetUrl, TlsOptions};
use prefork_os::signal::{Signal, SignalPipe};
use prefork_os::{child::signal_child, parent_death::set_parent_death_signal};
use tokio_prefork::text::printable;
use tokio_prefork::{ConcurrencyModel, Dispatch};

/// How long a peer may take to answer whether it has a path: 5 s.
const PATH_CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// Length of the load that asks whether a peer has a path: one request.
const PATH_CHECK_DURATION: Duration = Duration::from_millis(100);
/// Longest log line read, in bytes; longer ones are split.
const MAX_LOG_LINE: u64 = 64 * 1024;

/// A server of a comparison, which can be started any number of times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparedServer {
    /// Name in the report.
    pub name: String,
    kind: ServerCommand,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ServerCommand {
    /// `prefork serve` of this program.
    BuiltIn { model: ConcurrencyModel, dispatch: Option<Dispatch>, workers: usize },
    /// A shell command.
    Peer(String),
    /// `prefork run` of this program, with flags and a program that can use the listening socket.
    Run { words: Vec<String>, workers: usize },
}

/// What a peer's command begins with that is for `prefork run`.
const RUN_PREFIX: &str = "run ";

impl ComparedServer {
    /// Returns `prefork serve` with a model, and a dispatch policy if not the default.
    pub fn built_in(
        model: ConcurrencyModel,
        dispatch: Option<Dispatch>,
        workers: usize,
    ) -> ComparedServer {
        let name = match dispatch {
            Some(policy) => format!("{model}/{policy}"),
            None => model.to_string(),
        };
        ComparedServer { name, kind: ServerCommand::BuiltIn { model, dispatch, workers } }
    }

    /// Returns the built-in server that has this name in reports, such as `prefork/ip-hash`; `None` for a peer.
    pub fn built_in_named(name: &str, workers: usize) -> Option<ComparedServer> {
        let (model, policy) = match name.split_once('/') {
            Some((model, policy)) => (model, Some(policy.parse::<Dispatch>().ok()?)),
            None => (name, None),
        };
        Some(ComparedServer::built_in(model.parse().ok()?, policy, workers))
    }

    /// Parses `NAME=COMMAND`. A command with a template such as `{fd}`, or one that begins with `run `, is for `prefork run`, in one
    /// process unless [`with_workers`](ComparedServer::with_workers) says otherwise; any other is for the shell.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse_peer(text: &str) -> Result<ComparedServer, String> {
        const EXPECTED_FORMAT: &str = "give NAME=COMMAND, for example node='node server.js'";
        let (name, command) = text.split_once('=').ok_or(format!("{text:?}: {EXPECTED_FORMAT}"))?;
        let odd = |c: char| !(c.is_ascii_alphanumeric() || "-._+/".contains(c));
        if name.is_empty() || name.len() > 40 || name.contains(odd) || command.trim().is_empty() {
            return Err(format!(
                "{text:?}: {EXPECTED_FORMAT}; a name has up to 40 letters, digits and -._+/"
            ));
        }
        let kind = match words_for_run(command.trim()) {
            Some(words) => ServerCommand::Run {
                words: words.ok_or(format!("{text:?}: a quote of the command has no end"))?,
                workers: 1,
            },
            None => ServerCommand::Peer(command.to_string()),
        };
        Ok(ComparedServer { name: name.to_string(), kind })
    }

    /// Sets the number of workers of a peer that `prefork run` starts.
    pub fn with_workers(mut self, count: usize) -> ComparedServer {
        if let ServerCommand::Run { workers, .. } = &mut self.kind {
            *workers = count;
        }
        self
    }

    /// Returns whether it is another program than `prefork`.
    pub(crate) fn is_peer(&self) -> bool {
        matches!(self.kind, ServerCommand::Peer(_) | ServerCommand::Run { .. })
    }

    /// Returns whether it is the single-process model, the reference of the comparison.
    pub(crate) fn is_single_process(&self) -> bool {
        matches!(self.kind, ServerCommand::BuiltIn { model: ConcurrencyModel::Single, .. })
    }

    fn build_command(&self, certificate: Option<&CompareCertificate>) -> std::io::Result<Command> {
        let mut command = match &self.kind {
            ServerCommand::BuiltIn { model, dispatch, workers } => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args([
                    "serve",
                    "--bind",
                    "127.0.0.1:0",
                    "--control",
                    "off",
                    "--log",
                    "info",
                ]);
                command.args(["--model", model.name()]);
                if *model != ConcurrencyModel::Single {
                    command.args(["--workers", &workers.to_string()]);
                }
                command.args(["--graceful-timeout", "1s"]);
                command.args(dispatch.iter().flat_map(|policy| ["--dispatch", policy.name()]));
                if let Some(certificate) = certificate {
                    command.arg("--tls-cert").arg(certificate.certificate_file());
                    command.arg("--tls-key").arg(certificate.key_file());
                }
                command
            }
            ServerCommand::Run { words, workers } => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["run", "--bind", "127.0.0.1:0", "--control", "off", "--log", "info"]);
                command.args(["--workers", &workers.to_string(), "--graceful-timeout", "1s"]);
                // What the program prints must cost the primary nothing.
                command.args(["--output", "plain"]).args(words);
                command
            }
            ServerCommand::Peer(line) => {
                let mut command = Command::new("/bin/sh");
                // `exec` saves a process, and signals reach the server itself.
                command.args(["-c", &format!("exec {line}")]);
                command
            }
        };
        // Settings of the calling shell are not meant for these servers.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let ours = text.starts_with("PREFORK_");
            if ours || ["PORT", "WEB_CONCURRENCY", "RUST_LOG", "NOTIFY_SOCKET"].contains(&&*text) {
                command.env_remove(name);
            }
        }
        if let Some(certificate) = certificate.filter(|_| self.is_peer()) {
            command.env("TLS_CERT", certificate.certificate_file());
            command.env("TLS_KEY", certificate.key_file());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(command)
    }

    /// Returns the log text that says it is ready.
    fn ready_log_text(&self) -> &'static str {
        match self.kind {
            ServerCommand::Peer(_) => "listening on http",
            ServerCommand::BuiltIn { .. } | ServerCommand::Run { .. } => " serve; stop with ",
        }
    }
}

/// Returns the flags and the program of a command that is for `prefork run`, or `None` within if they cannot be split.
fn words_for_run(command: &str) -> Option<Option<Vec<String>>> {
    if let Some(words) = command.strip_prefix(RUN_PREFIX) {
        return Some(shlex::split(words));
    }
    let has_template = ["{fd}", "{fd:", "{port}"].iter().any(|template| command.contains(template));
    has_template.then(|| {
        let words = shlex::split(command)?;
        Some(std::iter::once("--".to_string()).chain(words).collect())
    })
}

/// Why a server did not become ready.
#[derive(Debug)]
pub(crate) enum ServerStartError {
    /// It could not start, or exited; holds the reason.
    Failed(String),
    /// A signal to this process came first.
    Interrupted,
}

/// A running server; dropping it stops the server.
#[derive(Debug)]
pub(crate) struct RunningServer {
    child: Child,
    stop: Signal,
    url: String,
    tls: Option<TlsOptions>,
}

impl RunningServer {
    /// Starts the server and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready (with its last log line), or a signal arrived.
    pub fn start_server(
        compared: &ComparedServer,
        certificate: Option<&CompareCertificate>,
        signals: &mut SignalPipe,
    ) -> Result<RunningServer, ServerStartError> {
        let broken = |why: String| {
            ServerStartError::Failed(format!("{} did not start: {why}", compared.name))
        };
        let mut command = compared
            .build_command(certificate)
            .map_err(|e| broken(format!("cannot find this program: {e}")))?;
        set_parent_death_signal(&mut command, Signal::SIGTERM);
        let mut child = command.spawn().map_err(|e| broken(e.to_string()))?;
        let stderr = child.stderr.take();
        // SIGQUIT may be the graceful stop of a peer, or make it dump core.
        let stop = if compared.is_peer() { Signal::SIGTERM } else { Signal::SIGQUIT };
        let tls = certificate.map(|certificate| TlsOptions {
            ca_file: Some(certificate.certificate_file()),
            ..TlsOptions::default()
        });
        let mut running = RunningServer { child, stop, url: String::new(), tls };
        let (sender, log_lines) = channel();
        if let Some(stderr) = stderr {
            // The thread ends with the server, which holds the other end of the pipe.
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stderr);
                let mut line = Vec::new();
                while lines
                    .by_ref()
                    .take(MAX_LOG_LINE)
                    .read_until(b'\n', &mut line)
                    .is_ok_and(|n| n > 0)
                {
                    // After startup the channel has no receiver, but reading keeps the server from blocking on a full
                    // pipe.
                    let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_string());
                    line.clear();
                }
            });
        }
        running.url =
            running.wait_until_ready(&log_lines, compared.ready_log_text(), signals, broken)?;
        if certificate.is_some() && matches!(compared.kind, ServerCommand::Run { .. }) {
            // Only the program knows that it speaks TLS.
            running.url = running.url.replacen("http://", "https://", 1);
        }
        if certificate.is_some() != running.url.starts_with("https://") {
            return Err(ServerStartError::Failed(format!(
                "{} listens on {}: with --https a peer must speak TLS with the files that TLS_CERT and TLS_KEY \
                 name, and without it plain HTTP",
                compared.name, running.url
            )));
        }
        Ok(running)
    }

    /// Waits for the ready message and returns the URL from the log.
    fn wait_until_ready(
        &mut self,
        log_lines: &Receiver<String>,
        ready: &str,
        signals: &mut SignalPipe,
        broken: impl Fn(String) -> ServerStartError,
    ) -> Result<String, ServerStartError> {
        let (begun, mut address, mut last) = (Instant::now(), None, String::new());
        loop {
            if signals.read_pending().is_ok_and(|came| !came.is_empty()) {
                return Err(ServerStartError::Interrupted);
            }
            if begun.elapsed() > SERVER_START_TIMEOUT {
                return Err(broken(format!(
                    "not ready after {SERVER_START_TIMEOUT:?}; its last log line: {last}"
                )));
            }
            match log_lines.recv_timeout(POLL_INTERVAL) {
                Ok(line) => {
                    address = address.or_else(|| parse_listen_url(&line));
                    if line.contains(ready)
                        && let Some(address) = address
                    {
                        return Ok(address);
                    }
                    last = printable(&line).chars().take(300).collect();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(broken(format!("it exited; its last log line: {last}")));
                }
            }
        }
    }

    /// Returns a load of requests for `path`.
    ///
    /// # Errors
    /// The server has logged an unusable address.
    pub fn load_plan(&self, path: &str) -> Result<LoadPlan, String> {
        let url = format!("{}{path}", self.url);
        let target = TargetUrl::parse(&url).map_err(|why| format!("{url}: {why}"))?;
        Ok(LoadPlan { tls: self.tls.clone().unwrap_or_default(), ..LoadPlan::new(target) })
    }

    /// Returns whether it answers 200 at this path.
    pub(crate) fn has_path(&self, path: &str, http2_streams: Option<usize>) -> bool {
        let Ok(plan) = self.load_plan(path) else { return false };
        // Ends after the first response.
        let probe = LoadPlan {
            connections: 1,
            threads: 1,
            rate: Some(1),
            warm_up: Duration::ZERO,
            duration: PATH_CHECK_DURATION,
            timeout: PATH_CHECK_TIMEOUT,
            http2_streams: http2_streams.map(|_| 1),
            ..plan
        };
        load::run_load(&probe, |_| {}).is_ok_and(|report| {
            report.statuses.success == report.responses && report.error_count() == 0
        })
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        // Fails if the server has already exited.
        let _ = signal_child(self.child.id(), self.stop);
        drop(self.child.stdin.take());
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > SERVER_START_TIMEOUT / 2 {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

/// Returns the first URL of a log line that says where a server listens.
fn parse_listen_url(line: &str) -> Option<String> {
    let url = line.split_once("listening on ")?.1.split([',', ' ']).next()?;
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    let is_known = ["http", "https"].contains(&scheme) && !authority.is_empty();
    is_known.then(|| format!("{scheme}://{authority}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_urls_are_found_in_logs() {
        for (line, url) in [
            ("INFO  listening on http://127.0.0.1:35297", Some("http://127.0.0.1:35297")),
            ("listening on http://127.0.0.1:1/, http://[::1]:2", Some("http://127.0.0.1:1")),
            ("listening on http://127.0.0.1:1, unix:/a", Some("http://127.0.0.1:1")),
            ("listening on https://127.0.0.1:8443/", Some("https://127.0.0.1:8443")),
            ("listening on unix:/a", None),
            ("listening on h", None),
            ("nothing", None),
        ] {
            assert_eq!(parse_listen_url(line).as_deref(), url, "{line}");
        }
    }

    #[test]
    fn servers_have_names() {
        let own = ComparedServer::built_in(ConcurrencyModel::Prefork, Some(Dispatch::LeastConn), 2);
        assert_eq!((own.name.as_str(), own.is_peer()), ("prefork/least-conn", false));
        let peer = ComparedServer::parse_peer("node-rr=node a.js --x=y").expect("peer");
        assert_eq!(peer.kind, ServerCommand::Peer("node a.js --x=y".to_string()));
        let words =
            |text: &str| match ComparedServer::parse_peer(text).expect(text).with_workers(3).kind {
                ServerCommand::Run { words, workers: 3 } => words.join("|"),
                other => panic!("{other:?}"),
            };
        assert_eq!(words("py=uvicorn 'my app' --fd {fd}"), "--|uvicorn|my app|--fd|{fd}");
        assert_eq!(words("node=run --ready-http / node a.js"), "--ready-http|/|node|a.js");
        for text in ["", "node", "=a", "a=", "a b=c", "<b>=c", "a=run 'b"] {
            assert!(ComparedServer::parse_peer(text).is_err(), "{text}");
        }
    }
}
