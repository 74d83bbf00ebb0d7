//! The blocking client of the control socket.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::frame::{self, FrameReader, MAX_REPLY_BYTES};
use super::liveness_probe::{LivenessProbe, ProbeInterval};
use super::protocol::{Event, Reply, Request, Rescale, WorkerCountChange};
use crate::error::{Error, Result};
use crate::stack::WorkerStack;
use crate::status::ClusterStatus;
use crate::text::HumanDuration;
use prefork_os::poll::{self, WatchedFd};
use prefork_os::unix_path::with_unix_addr;

/// How long to wait for replies that the primary sends at once: 5 s.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for stacks: a primary takes up to 15 s for each, four at a time.
const STACK_TIMEOUT: Duration = Duration::from_secs(60);

/// How long reloads and stops may take, unless [`ControlClient::completion_timeout`] says otherwise. They have deadlines of
/// their own, and a primary that dies is noticed at once: this one is for a primary that is frozen.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// How often a waiting client checks whether the primary's process is stopped.
const PRIMARY_STATE_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// A connection to the control socket of a running primary.
///
/// ```no_run
/// use tokio_prefork::control::ControlClient;
///
/// # fn main() -> tokio_prefork::Result<()> {
/// let mut client = ControlClient::connect("/run/prefork/prefork-4711.sock")?;
/// let status = client.status()?;
/// println!("{} workers, {} requests", status.workers.len(), status.totals.requests);
/// client.scale_to(4)?;
/// println!("{}", client.reload()?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ControlClient {
    stream: UnixStream,
    path: PathBuf,
    completion_timeout: Duration,
    /// The timeout of every reply; `None` for the defaults.
    timeout: Option<Duration>,
    /// How often to probe the primary during a long operation.
    probe_interval: ProbeInterval,
    /// Whether the client waits for the end of a long operation.
    is_waiting_for_completion: bool,
}

impl ControlClient {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// No primary answers there; [`Error::exit_status`] is then [`exit::UNAVAILABLE`](crate::exit::UNAVAILABLE).
    pub fn connect(path: impl AsRef<Path>) -> Result<ControlClient> {
        ControlClient::connect_with_timeout(path.as_ref(), REPLY_TIMEOUT)
    }

    /// Connects, and waits up to `limit` while the accept queue of the primary is full.
    pub(super) fn connect_with_timeout(path: &Path, limit: Duration) -> Result<ControlClient> {
        let connect = || -> io::Result<UnixStream> {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // The send timeout also bounds `connect`, which blocks while the accept queue is full.
            socket.set_write_timeout(Some(limit))?;
            with_unix_addr(path, |addr| socket.connect(addr))?;
            socket.set_write_timeout(Some(REPLY_TIMEOUT))?;
            Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
        };
        let stream = connect().map_err(|e| unreachable_error(path, &e))?;
        Ok(ControlClient::new(stream, path))
    }

    fn new(stream: UnixStream, path: &Path) -> ControlClient {
        let path = path.to_path_buf();
        let (completion_timeout, probe_interval) = (COMPLETION_TIMEOUT, ProbeInterval::DEFAULT);
        ControlClient {
            stream,
            path,
            completion_timeout,
            timeout: None,
            probe_interval,
            is_waiting_for_completion: false,
        }
    }

    pub(super) fn socket_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Sets how long any answer may take. Default: 5 s for what a primary answers at once, and one hour for reloads, upgrades and
    /// stops. A primary that a signal has stopped is noticed after a second or two in any case, and one that hangs after a
    /// minute: while a client waits for the end of a reload, an upgrade or a stop without a timeout of its own, it asks every
    /// 10 s over a second connection, and gives up when nothing has been answered for 60 s.
    pub fn timeout(mut self, timeout: Duration) -> ControlClient {
        self.timeout = Some(timeout);
        self
    }

    /// Sets how long reloads, upgrades and stops may take while the primary answers. Default: one hour.
    pub fn completion_timeout(mut self, completion_timeout: Duration) -> ControlClient {
        self.completion_timeout = completion_timeout.max(Duration::from_millis(1));
        self
    }

    /// Returns the status of the cluster.
    ///
    /// # Errors
    /// As all requests: the primary refuses, or does not answer in time, or is gone.
    pub fn status(&mut self) -> Result<ClusterStatus> {
        match self.send_and_receive(&Request::Status {}, REPLY_TIMEOUT)? {
            Reply::Status(status) => Ok(*status),
            other => Err(self.unexpected_reply_error(&other)),
        }
    }

    /// Returns the stacks of the threads of the worker with this id.
    ///
    /// The threads copy their stacks themselves: nothing is stopped, and no debugger is needed. Reading large debug information
    /// takes seconds. A thread that does not answer within 500 ms has a problem in place of frames.
    ///
    /// # Errors
    /// As [`ControlClient::status`]; there is no such worker, or the primary was built without the feature `stack-traces`.
    pub fn stack(&mut self, worker: u64) -> Result<WorkerStack> {
        self.request_stack(&Request::Stack { worker: Some(worker), slot: None })
    }

    /// Returns the stacks of the worker that serves a slot.
    ///
    /// # Errors
    /// As [`ControlClient::stack`].
    pub fn stack_of_slot(&mut self, slot: u32) -> Result<WorkerStack> {
        self.request_stack(&Request::Stack { worker: None, slot: Some(slot) })
    }

    fn request_stack(&mut self, request: &Request) -> Result<WorkerStack> {
        match self.send_and_receive(request, STACK_TIMEOUT)? {
            Reply::Stack(stack) => Ok(*stack),
            other => Err(self.unexpected_reply_error(&other)),
        }
    }

    /// Replaces every worker, and returns when that is done.
    ///
    /// # Errors
    /// As [`ControlClient::status`]; the reload may have failed, and then everything is as it was.
    pub fn reload(&mut self) -> Result<String> {
        self.run_command(&Request::Reload { wait: true })
    }

    /// Starts a reload and returns without waiting for its end.
    ///
    /// # Errors
    /// As [`ControlClient::status`].
    pub fn reload_without_waiting(&mut self) -> Result<String> {
        self.run_command(&Request::Reload { wait: false })
    }

    /// Sets the number of workers of the kind `web`.
    ///
    /// # Errors
    /// As [`ControlClient::status`].
    pub fn scale_to(&mut self, workers: u32) -> Result<String> {
        self.run_command(&Request::Scale(WorkerCountChange::To(workers).into()))
    }

    /// Changes the number of workers, of one kind or of all.
    ///
    /// # Errors
    ///
    /// The primary refuses, or does not answer in time.
    pub fn scale(&mut self, rescale: Rescale) -> Result<String> {
        self.run_command(&Request::Scale(rescale))
    }

    /// Sets the number of workers of another kind than `web`, from 0.
    ///
    /// # Errors
    /// As [`ControlClient::status`]; the program may have no such kind.
    pub fn scale_kind(&mut self, kind: &str, workers: u32) -> Result<String> {
        let kind = Some(kind.to_string());
        self.run_command(&Request::Scale(Rescale { kind, change: WorkerCountChange::To(workers) }))
    }

    /// Adds workers of the kind `web`, or removes them if the number is negative.
    ///
    /// # Errors
    /// As [`ControlClient::status`].
    pub fn scale_by(&mut self, workers: i32) -> Result<String> {
        self.run_command(&Request::Scale(WorkerCountChange::By(workers).into()))
    }

    /// Upgrades the primary to the binary at its path, and returns when workers of the new image serve in every slot. During a
    /// reload, the upgrade starts after the end of the reload.
    ///
    /// # Errors
    /// As [`ControlClient::status`]. The new binary may be unfit, and then nothing has changed; or its workers do not come up, and
    /// then those of the binary before it serve on.
    pub fn upgrade(&mut self) -> Result<String> {
        self.run_command(&Request::Upgrade { wait: true })
    }

    /// Starts an upgrade to the binary at the primary's path, and returns when the new binary has passed its check. The log
    /// and the events show the rest.
    ///
    /// # Errors
    /// As [`ControlClient::status`]; the new binary may be unfit, and then nothing has changed.
    pub fn upgrade_without_waiting(&mut self) -> Result<String> {
        self.run_command(&Request::Upgrade { wait: false })
    }

    /// Stops the cluster: workers finish what is open, or are killed with `now`. Returns what the primary says;
    /// [`ControlClient::wait_for_exit`] waits until it is gone.
    ///
    /// # Errors
    /// As [`ControlClient::status`].
    pub fn stop(&mut self, now: bool) -> Result<String> {
        self.run_command(&Request::Stop { now })
    }

    /// Waits until the primary closes the connection, as it does when it ends.
    ///
    /// # Errors
    /// It lasts longer than [`ControlClient::completion_timeout`] allows.
    pub fn wait_for_exit(mut self) -> Result<()> {
        let mut buffer = [0u8; 256];
        let deadline = self.reply_deadline(self.completion_timeout);
        self.is_waiting_for_completion = true;
        loop {
            self.wait_until_readable(deadline)?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.connection_error(&e)),
            }
        }
    }

    /// Returns the events after number `since` (0: all that are kept), oldest first. With `follow`, the iterator also waits for
    /// new events until the primary exits.
    ///
    /// # Errors
    /// As [`ControlClient::status`].
    pub fn events(mut self, follow: bool, since: u64) -> Result<EventIterator> {
        self.send_request(&Request::Events { follow, since })?;
        Ok(EventIterator { client: Some(self), follow })
    }

    fn run_command(&mut self, request: &Request) -> Result<String> {
        self.is_waiting_for_completion = true;
        let reply = self.send_and_receive(request, self.completion_timeout);
        self.is_waiting_for_completion = false;
        match reply? {
            Reply::Done(what) => Ok(what),
            other => Err(self.unexpected_reply_error(&other)),
        }
    }

    fn send_and_receive(&mut self, request: &Request, limit: Duration) -> Result<Reply> {
        self.send_request(request)?;
        match self.receive_reply(self.reply_deadline(limit))? {
            Some(Reply::Refused(why)) => Err(Error::refused(why)),
            Some(reply) => Ok(reply),
            None => Err(self.closed_early_error()),
        }
    }

    pub(super) fn send_request(&mut self, request: &Request) -> Result<()> {
        match self.stream.write_all(&frame::encode_frame(&request.encode())) {
            // The primary has closed the connection; its refusal can still be read.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent.map_err(|e| self.connection_error(&e)),
        }
    }

    fn reply_deadline(&self, limit: Duration) -> Option<Instant> {
        Instant::now().checked_add(self.timeout.unwrap_or(limit))
    }

    /// Waits until the connection is readable or closed. Fails at the deadline, when two checks in a row find the primary
    /// stopped by a signal, or when the primary leaves probes unanswered.
    fn wait_until_readable(&self, deadline: Option<Instant>) -> Result<()> {
        let began = Instant::now();
        let mut was_stopped = false;
        let is_probing = self.is_waiting_for_completion && self.timeout.is_none();
        let mut liveness = is_probing.then(|| LivenessProbe::new(self.probe_interval, began));
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let slice =
                left.unwrap_or(PRIMARY_STATE_CHECK_INTERVAL).min(PRIMARY_STATE_CHECK_INTERVAL);
            let slice = slice.min(self.probe_interval.interval);
            let ready = poll::poll_fds(&[WatchedFd::readable(self.stream.as_fd())], Some(slice));
            if ready.map_err(|e| self.connection_error(&e))?[0] {
                return Ok(());
            }
            let process = PrimaryProcess::listening_on(&self.stream);
            let is_over = deadline.is_some_and(|at| at <= Instant::now());
            let is_stopped = process.is_stopped();
            if is_over || (is_stopped && was_stopped) {
                let why = process.describe_silence(began.elapsed());
                return Err(Error::unresponsive(&self.path, why));
            }
            was_stopped = is_stopped;
            let silent =
                liveness.as_mut().and_then(|probe| probe.check_primary(&self.path, Instant::now()));
            if let Some(silent) = silent {
                return Err(Error::unresponsive(&self.path, process.describe_silence(silent)));
            }
        }
    }

    /// Receives the next reply; `None` at the end of the connection.
    fn receive_reply(&mut self, deadline: Option<Instant>) -> Result<Option<Reply>> {
        let mut incoming = FrameReader::new(MAX_REPLY_BYTES);
        let mut buffer = [0u8; 16 * 1024];
        loop {
            let wanted = match incoming.missing_bytes() {
                Ok(0) => break,
                Ok(wanted) => wanted.min(buffer.len()),
                Err(e) => {
                    return Err(self.protocol_error(&format!("a reply of {} bytes", e.length)));
                }
            };
            self.wait_until_readable(deadline)?;
            match self.stream.read(&mut buffer[..wanted]) {
                Ok(0) if incoming.has_partial_frame() => return Err(self.closed_early_error()),
                Ok(0) => return Ok(None),
                Ok(n) => incoming.push_bytes(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(e) => return Err(self.connection_error(&e)),
            }
        }
        Reply::decode(&incoming.take_payload()).map(Some).map_err(|why| self.protocol_error(&why))
    }

    fn connection_error(&self, error: &io::Error) -> Error {
        Error::unreachable(&self.path, io_error_text(error)).with_source(clone_io_error(error))
    }

    fn closed_early_error(&self) -> Error {
        Error::refused(format!(
            "the primary at {} closed the connection before it answered",
            self.path.display()
        ))
    }

    fn unexpected_reply_error(&self, reply: &Reply) -> Error {
        self.protocol_error(&format!("an answer to another question, {reply:?}"))
    }

    fn protocol_error(&self, what: &str) -> Error {
        Error::refused(format!("{} does not speak our protocol: {what}", self.path.display()))
    }
}

/// An iterator over events, from [`ControlClient::events`]. Ends after an error.
#[derive(Debug)]
pub struct EventIterator {
    client: Option<ControlClient>,
    follow: bool,
}

impl Iterator for EventIterator {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Result<Event>> {
        let client = self.client.as_mut()?;
        // The next event may be days away; the end of the primary closes the connection.
        let deadline = if self.follow { None } else { client.reply_deadline(REPLY_TIMEOUT) };
        let error = match client.receive_reply(deadline) {
            Ok(Some(Reply::Event(event))) => return Some(Ok(event)),
            Ok(Some(Reply::LastEvent(_)) | None) => None,
            Ok(Some(Reply::Refused(why))) => Some(Error::refused(why)),
            Ok(Some(other)) => Some(client.unexpected_reply_error(&other)),
            Err(e) => Some(e),
        };
        self.client = None;
        error.map(Err)
    }
}

/// The process that listens at the control socket.
struct PrimaryProcess {
    /// The pid; 0 if the process is in another pid namespace.
    pid: u32,
    /// The process state from `/proc`, if it is readable.
    state: Option<char>,
}

impl PrimaryProcess {
    fn listening_on(stream: &UnixStream) -> PrimaryProcess {
        let pid = prefork_os::credentials::peer_credentials(stream).map_or(0, |peer| peer.pid);
        PrimaryProcess { pid, state: prefork_os::process::process_state(pid) }
    }

    /// Returns whether a signal or a debugger has stopped the process.
    fn is_stopped(&self) -> bool {
        matches!(self.state, Some('T' | 't'))
    }

    fn describe_silence(&self, after: Duration) -> String {
        let (pid, after) = (self.pid, HumanDuration(after));
        match self.state {
            Some('T') => format!(
                "it is stopped by a signal (pid {pid}, state T): what was asked is done when it goes on; kill -CONT {pid}"
            ),
            Some('t') => format!("a debugger holds it (pid {pid}, state t): let it go on"),
            Some('D') => format!(
                "no answer within {after}: it waits for a disk or a network file system (pid {pid}, state D)"
            ),
            Some(state) => format!(
                "no answer within {after}: it is busy (pid {pid}, state {state}), in a function of the application perhaps; \
                 wait longer with --timeout"
            ),
            None => format!("no answer within {after}; wait longer with --timeout"),
        }
    }
}

/// Returns the error for a control socket that cannot be reached, with what to do about it.
fn unreachable_error(path: &Path, error: &io::Error) -> Error {
    let is_socket = std::fs::metadata(path).map(|meta| meta.file_type().is_socket());
    let why = match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            let why = "its queue of clients is full: it is stopped by a signal or busy";
            return Error::unresponsive(path, why);
        }
        io::ErrorKind::ConnectionRefused if matches!(is_socket, Ok(false)) => {
            "it is not a socket".to_string()
        }
        io::ErrorKind::ConnectionRefused => "the primary that made this socket is gone".to_string(),
        io::ErrorKind::PermissionDenied => {
            format!("{error}: only root and the user of the primary may ask")
        }
        _ => error.to_string(),
    };
    Error::unreachable(path, why).with_source(clone_io_error(error))
}

/// Describes an I/O error. The timeout of a socket option is reported as `WouldBlock`.
fn io_error_text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in time".to_string(),
        _ => error.to_string(),
    }
}

/// Copies an I/O error, to keep it as the cause of another one.
fn clone_io_error(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests;
