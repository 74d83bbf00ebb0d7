//! A running server of a comparison: starts it, detects that it is ready, and stops it.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::compared_server::{ComparedServer, ReadySign};
use super::free_port::ReservedPort;
use super::run_resources::RunResources;
use super::{POLL_INTERVAL, SERVER_START_TIMEOUT};
use crate::load::{self, LoadPlan, TargetUrl, TlsOptions};
use crate::scenario::ScenarioRequest;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use prefork_os::process_group::kill_group_of_child;
use prefork_os::signal::{Signal, SignalPipe};
use prefork_os::{child::signal_child, parent_death::set_parent_death_signal};
use tokio_prefork::text::printable;

/// How long a peer may take to answer a request of a load before it is measured: 5 s.
const PATH_CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// Length of the load that asks whether a peer answers a request: one request.
const PATH_CHECK_DURATION: Duration = Duration::from_millis(100);
/// How long to wait for the answers of all processes after the first one: 3 s. Those that answer later are not needed.
const ALL_PROCESSES_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a server may take to stop before it is killed: 5 s.
const SERVER_STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest log line read, in bytes; longer ones are split.
const MAX_LOG_LINE: u64 = 64 * 1024;

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
pub(crate) struct RunningServer<'a> {
    child: Child,
    stop: Signal,
    /// Holds the process group that the server leads, if it leads one.
    group: Option<&'a RunResources>,
    url: String,
    tls: Option<TlsOptions>,
    port: Option<ReservedPort>,
}

impl<'a> RunningServer<'a> {
    /// Starts the server and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready (with its last log line), or a signal arrived.
    pub fn start_server(
        compared: &ComparedServer,
        resources: &'a RunResources,
        signals: &mut SignalPipe,
    ) -> Result<RunningServer<'a>, ServerStartError> {
        let broken = |why: String| {
            let hint = compared.known_peer().map_or(String::new(), |peer| {
                format!("; if a part of it is missing: {}", peer.install)
            });
            ServerStartError::Failed(format!("{} did not start: {why}{hint}", compared.name))
        };
        let mut start = compared
            .prepare_start(resources)
            .map_err(|e| broken(format!("cannot prepare its start: {e}")))?;
        set_parent_death_signal(&mut start.command, Signal::SIGTERM);
        if compared.has_own_group() {
            start.command.process_group(0);
        }
        if let Some(directory) = resources.directory.as_ref().filter(|_| compared.is_peer()) {
            // Its temporary files go with the comparison, also those of a process that was killed.
            start.command.env("TMPDIR", directory.path());
        }
        let mut child = start.command.spawn().map_err(|e| broken(e.to_string()))?;
        let group = resources.directory.is_some() && compared.has_own_group();
        let group = group.then_some(resources);
        if let Some(directory) = group.and_then(|resources| resources.directory.as_ref()) {
            directory.set_group(Some(child.id()));
        }
        let stderr = child.stderr.take();
        // SIGQUIT may be the graceful stop of a peer, or make it dump core.
        let stop = if compared.is_peer() { Signal::SIGTERM } else { Signal::SIGQUIT };
        let tls = resources.certificate.as_ref().map(|certificate| TlsOptions {
            ca_file: Some(certificate.certificate_file()),
            ..TlsOptions::default()
        });
        let url = String::new();
        let mut running = RunningServer { child, stop, group, url, tls, port: start.port };
        let log_lines = stderr.map(read_log_lines);
        running.url = match start.ready {
            ReadySign::LogText(text) => {
                running.wait_until_logged(log_lines.as_ref(), text, signals, broken)?
            }
            ReadySign::Responses { url, processes } => {
                running.url = url.clone();
                running.wait_until_answered(log_lines.as_ref(), processes, signals, broken)?;
                url
            }
        };
        let is_https = resources.certificate.is_some();
        if is_https && compared.is_run_by_prefork() {
            // Only the program knows that it speaks TLS.
            running.url = running.url.replacen("http://", "https://", 1);
        }
        if is_https != running.url.starts_with("https://") {
            return Err(ServerStartError::Failed(format!(
                "{} listens on {}: with --https a peer must speak TLS with the files that TLS_CERT and TLS_KEY \
                 name, and without it plain HTTP",
                compared.name, running.url
            )));
        }
        Ok(running)
    }

    /// Waits for the ready message and returns the URL from the log.
    fn wait_until_logged(
        &mut self,
        log_lines: Option<&Receiver<String>>,
        ready: &str,
        signals: &mut SignalPipe,
        broken: impl Fn(String) -> ServerStartError,
    ) -> Result<String, ServerStartError> {
        let mut wait = StartWait::new(log_lines);
        let mut address = None;
        loop {
            if let Some(line) = wait.next_line(signals, &broken)? {
                address = address.or_else(|| parse_listen_url(&line));
                if line.contains(ready)
                    && let Some(address) = address
                {
                    return Ok(address);
                }
            }
        }
    }

    /// Waits until `processes` processes have answered; at most three seconds after the first answer.
    fn wait_until_answered(
        &mut self,
        log_lines: Option<&Receiver<String>>,
        processes: usize,
        signals: &mut SignalPipe,
        broken: impl Fn(String) -> ServerStartError,
    ) -> Result<(), ServerStartError> {
        let plan = self.load_plan("/").map_err(&broken)?;
        let port = self.port.as_ref().map_or(0, ReservedPort::port);
        // Many connections at once, so that each process gets some.
        let probe = LoadPlan {
            connections: 16 * processes,
            threads: 1,
            reconnect_each_request: true,
            warm_up: Duration::ZERO,
            duration: PATH_CHECK_DURATION,
            timeout: PATH_CHECK_TIMEOUT,
            ..plan
        };
        let mut wait = StartWait::new(log_lines);
        let mut first_answer: Option<Instant> = None;
        loop {
            wait.next_line(signals, &broken)?;
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
                continue;
            }
            let Ok(report) = load::run_load(&probe, |_| {}) else { continue };
            if report.statuses.success == 0 {
                continue;
            }
            let since = *first_answer.get_or_insert_with(Instant::now);
            if report.pids.len() >= processes || since.elapsed() > ALL_PROCESSES_TIMEOUT {
                return Ok(());
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

    /// Returns whether it answers a request with 200.
    pub(crate) fn answers(&self, request: &ScenarioRequest, http2: bool) -> bool {
        let base = self.load_plan("/");
        let Ok(plan) = base.and_then(|base| request.plan(&base, PATH_CHECK_TIMEOUT)) else {
            return false;
        };
        // Ends after the first response.
        let probe = LoadPlan {
            connections: 1,
            threads: 1,
            rate: Some(1),
            warm_up: Duration::ZERO,
            duration: PATH_CHECK_DURATION,
            http2_streams: http2.then_some(1),
            ..plan
        };
        load::run_load(&probe, |_| {}).is_ok_and(|report| {
            report.statuses.success == report.responses && report.error_count() == 0
        })
    }
}

impl Drop for RunningServer<'_> {
    fn drop(&mut self) {
        // Fails if the server has already exited.
        let _ = signal_child(self.child.id(), self.stop);
        drop(self.child.stdin.take());
        let begun = Instant::now();
        while !has_exited(&self.child) {
            if begun.elapsed() > SERVER_STOP_TIMEOUT {
                let _ = self.child.kill();
                break;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        if let Some(resources) = self.group {
            // The child is not reaped yet, so its number still means its group.
            let _ = kill_group_of_child(self.child.id());
            if let Some(directory) = &resources.directory {
                directory.set_group(None);
            }
        }
        let _ = self.child.wait();
    }
}

/// Returns whether a child has ended, without reaping it.
fn has_exited(child: &Child) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let state = waitid(Id::Pid(Pid::from_raw(child.id() as i32)), flags);
    !matches!(state, Ok(WaitStatus::StillAlive))
}

/// Waits for the start of a server, with its log.
struct StartWait<'a> {
    begun: Instant,
    log_lines: Option<&'a Receiver<String>>,
    last_line: String,
}

impl<'a> StartWait<'a> {
    fn new(log_lines: Option<&'a Receiver<String>>) -> StartWait<'a> {
        StartWait { begun: Instant::now(), log_lines, last_line: String::new() }
    }

    /// Waits a moment for the next line of the log.
    ///
    /// # Errors
    /// A signal arrived, the time is up, or the server has exited.
    fn next_line(
        &mut self,
        signals: &mut SignalPipe,
        broken: impl Fn(String) -> ServerStartError,
    ) -> Result<Option<String>, ServerStartError> {
        if signals.read_pending().is_ok_and(|came| !came.is_empty()) {
            return Err(ServerStartError::Interrupted);
        }
        if self.begun.elapsed() > SERVER_START_TIMEOUT {
            return Err(broken(format!(
                "not ready after {SERVER_START_TIMEOUT:?}; its last log line: {}",
                self.last_line
            )));
        }
        let received = self
            .log_lines
            .map_or(Err(RecvTimeoutError::Disconnected), |lines| lines.recv_timeout(POLL_INTERVAL));
        match received {
            Ok(line) => {
                self.last_line = printable(&line).chars().take(300).collect();
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(broken(format!("it exited; its last log line: {}", self.last_line)))
            }
        }
    }
}

/// Reads the log of a server in a thread, which ends with the server.
fn read_log_lines(stderr: ChildStderr) -> Receiver<String> {
    let (sender, log_lines) = channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stderr);
        let mut line = Vec::new();
        while lines.by_ref().take(MAX_LOG_LINE).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            // After startup the channel has no receiver, but reading keeps the server from blocking on a full pipe.
            let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_string());
            line.clear();
        }
    });
    log_lines
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
}
