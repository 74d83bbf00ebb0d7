//! A server that takes part: how it is started, how it is known to serve, and that it is gone afterwards.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::{POLL_INTERVAL, SERVER_START_TIMEOUT};
use prefork_os::signal::{Signal, SignalPipe};
use prefork_os::{child::signal_child, parent_death::set_parent_death_signal};
use tokio_prefork::text::printable;
use tokio_prefork::{ConcurrencyModel, Dispatch};

/// How long a peer may take to answer the question whether it knows a path.
const PATH_CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a log line; servers that say more are cut off.
const MAX_LOG_LINE: u64 = 64 * 1024;

/// A server that can be started as often as need be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparedServer {
    /// How it is called in the report.
    pub name: String,
    kind: ServerCommand,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ServerCommand {
    /// `prefork serve` of this very program.
    BuiltIn { model: ConcurrencyModel, dispatch: Option<Dispatch>, workers: usize },
    /// A command for the shell.
    Peer(String),
}

impl ComparedServer {
    /// `prefork serve` with a model, and a policy if it is not the standard one that is meant.
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

    /// Reads `NAME=COMMAND`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse_peer(text: &str) -> Result<ComparedServer, String> {
        const FORM: &str = "give NAME=COMMAND, as node='node server.js'";
        let (name, command) = text.split_once('=').ok_or(format!("{text:?}: {FORM}"))?;
        let odd = |c: char| !(c.is_ascii_alphanumeric() || "-._+/".contains(c));
        if name.is_empty() || name.len() > 40 || name.contains(odd) || command.trim().is_empty() {
            return Err(format!("{text:?}: {FORM}; a name has up to 40 letters, digits and -._+/"));
        }
        Ok(ComparedServer {
            name: name.to_string(),
            kind: ServerCommand::Peer(command.to_string()),
        })
    }

    /// Whether it is somebody else's program.
    pub(crate) fn is_peer(&self) -> bool {
        matches!(self.kind, ServerCommand::Peer(_))
    }

    /// Whether it is what others are compared with.
    pub(crate) fn is_single(&self) -> bool {
        matches!(self.kind, ServerCommand::BuiltIn { model: ConcurrencyModel::Single, .. })
    }

    fn build_command(&self) -> std::io::Result<Command> {
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
                command
            }
            ServerCommand::Peer(line) => {
                let mut command = Command::new("/bin/sh");
                // One process less, and signals reach the server itself.
                command.args(["-c", &format!("exec {line}")]);
                command
            }
        };
        // What this shell sets for its own server is not meant for these.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let ours = text.starts_with("PREFORK_");
            if ours || ["PORT", "WEB_CONCURRENCY", "RUST_LOG", "NOTIFY_SOCKET"].contains(&&*text) {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(command)
    }

    /// What its log says when all of it serves.
    fn ready_log_text(&self) -> &'static str {
        if self.is_peer() { "listening on http://" } else { " serve; stop with " }
    }
}

/// Why a server does not serve.
#[derive(Debug)]
pub enum ServerStartError {
    Failed(String),
    /// A signal came first; whoever asked knows.
    Interrupted,
}

/// A contestant that serves; stopped when dropped.
#[derive(Debug)]
pub struct RunningServer {
    child: Child,
    stop: Signal,
    url: String,
}

impl RunningServer {
    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// It does not, with what it said last; or a signal came.
    pub fn start(
        who: &ComparedServer,
        signals: &mut SignalPipe,
    ) -> Result<RunningServer, ServerStartError> {
        let broken =
            |why: String| ServerStartError::Failed(format!("{} does not serve: {why}", who.name));
        let mut command =
            who.build_command().map_err(|e| broken(format!("our own program: {e}")))?;
        set_parent_death_signal(&mut command, Signal::SIGTERM);
        let mut child = command.spawn().map_err(|e| broken(e.to_string()))?;
        let stderr = child.stderr.take();
        // A peer's QUIT may be its graceful stop, or a core dump.
        let stop = if who.is_peer() { Signal::SIGTERM } else { Signal::SIGQUIT };
        let mut running = RunningServer { child, stop, url: String::new() };
        let (tell, told) = channel();
        if let Some(stderr) = stderr {
            // It ends with the server, which has the other end.
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stderr);
                let mut line = Vec::new();
                while lines
                    .by_ref()
                    .take(MAX_LOG_LINE)
                    .read_until(b'\n', &mut line)
                    .is_ok_and(|n| n > 0)
                {
                    // Nobody listens once it serves; it is read on so that it can go on writing.
                    let _ = tell.send(String::from_utf8_lossy(&line).trim_end().to_string());
                    line.clear();
                }
            });
        }
        running.url = running.wait_until_ready(&told, who.ready_log_text(), signals, broken)?;
        Ok(running)
    }

    /// Its address, from the log.
    fn wait_until_ready(
        &mut self,
        told: &Receiver<String>,
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
                    "not ready after {SERVER_START_TIMEOUT:?}; it last said: {last}"
                )));
            }
            match told.recv_timeout(POLL_INTERVAL) {
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
                    return Err(broken(format!("it ended; it last said: {last}")));
                }
            }
        }
    }

    /// As `http://127.0.0.1:4711`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether it has something at this path.
    pub(crate) fn has_path(&self, path: &str) -> bool {
        let ask = || -> std::io::Result<[u8; 12]> {
            let host = self.url.trim_start_matches("http://");
            let mut stream = TcpStream::connect(host)?;
            stream.set_read_timeout(Some(PATH_CHECK_TIMEOUT))?;
            stream.set_write_timeout(Some(PATH_CHECK_TIMEOUT))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
            let mut status = [0; 12];
            stream.read_exact(&mut status)?;
            Ok(status)
        };
        ask().is_ok_and(|status| &status == b"HTTP/1.1 200")
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        // It may have ended by itself.
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

/// The first URL of a line that tells where a server listens.
fn parse_listen_url(line: &str) -> Option<String> {
    let authority = line.split_once("listening on http://")?.1.split([',', ' ', '/']).next()?;
    (!authority.is_empty()).then(|| format!("http://{authority}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_logs() {
        for (line, url) in [
            ("INFO  listening on http://127.0.0.1:35297", Some("http://127.0.0.1:35297")),
            ("listening on http://127.0.0.1:1/, http://[::1]:2", Some("http://127.0.0.1:1")),
            ("listening on http://127.0.0.1:1, unix:/a", Some("http://127.0.0.1:1")),
            ("listening on unix:/a", None),
            ("listening on h", None),
            ("nothing", None),
        ] {
            assert_eq!(parse_listen_url(line).as_deref(), url, "{line}");
        }
    }

    #[test]
    fn contestants_have_names() {
        let own = ComparedServer::built_in(ConcurrencyModel::Prefork, Some(Dispatch::LeastConn), 2);
        assert_eq!((own.name.as_str(), own.is_peer()), ("prefork/least-conn", false));
        let peer = ComparedServer::parse_peer("node-rr=node a.js --x=y").expect("peer");
        assert_eq!(peer.kind, ServerCommand::Peer("node a.js --x=y".to_string()));
        for text in ["", "node", "=a", "a=", "a b=c", "<b>=c"] {
            assert!(ComparedServer::parse_peer(text).is_err(), "{text}");
        }
    }
}
