//! The blocking client of the control socket.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::frame::{self, FrameReader, MAX_REPLY_BYTES};
use super::liveness_probe::{LivenessProbe, ProbeInterval};
use super::protocol::{Change, Event, Reply, Request, Rescale};
use crate::error::{Error, Result};
use crate::status::ClusterStatus;
use crate::text::HumanDuration;
use prefork_os::poll::{self, WatchedFd};

/// How long to wait for replies that need no waiting in the primary: 5 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long reloads and stops may take, unless [`Client::patience`] says otherwise. They have deadlines of
/// their own, and a primary that dies is noticed at once: this one is for a primary that is frozen.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// How often a client that waits looks at the state of the primary's process.
const STATE_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// A connection to the control socket of a running primary.
///
/// ```no_run
/// use tokio_prefork::control::Client;
///
/// # fn main() -> tokio_prefork::Result<()> {
/// let mut client = Client::connect("/run/prefork/prefork-4711.sock")?;
/// let status = client.status()?;
/// println!("{} workers, {} requests", status.workers.len(), status.totals.requests);
/// client.scale_to(4)?;
/// println!("{}", client.reload()?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    patience: Duration,
    /// Bounds every answer, if it is set.
    timeout: Option<Duration>,
    /// How a primary that is waited for is asked whether it still answers.
    pace: ProbeInterval,
    /// Whether it is waited for.
    is_waiting_for_completion: bool,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// Nobody answers there; [`Error::exit_status`] is then [`exit::UNAVAILABLE`](crate::exit::UNAVAILABLE).
    pub fn connect(path: impl AsRef<Path>) -> Result<Client> {
        Client::connect_within(path.as_ref(), ANSWER_TIMEOUT)
    }

    /// Connects, and waits for that long while the primary's queue of clients is full.
    pub(super) fn connect_within(path: &Path, limit: Duration) -> Result<Client> {
        let connect = || -> io::Result<UnixStream> {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // The kernel heeds it for connect, too, which waits while the queue of a frozen primary is full.
            socket.set_write_timeout(Some(limit))?;
            socket.connect(&SockAddr::unix(path)?)?;
            socket.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
        };
        let stream = connect().map_err(|e| unreachable(path, &e))?;
        Ok(Client::new(stream, path))
    }

    fn new(stream: UnixStream, path: &Path) -> Client {
        let path = path.to_path_buf();
        let (patience, pace) = (COMPLETION_TIMEOUT, ProbeInterval::DEFAULT);
        Client { stream, path, patience, timeout: None, pace, is_waiting_for_completion: false }
    }

    pub(super) fn stream_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Sets how long any answer may take. Default: 5 s for what a primary answers at once, and one hour for reloads, upgrades and
    /// stops. A primary that a signal has stopped is noticed after a second or two in any case, and one that hangs after a
    /// minute: while a client waits for the end of a reload, an upgrade or a stop without a timeout of its own, it asks every
    /// 10 s over a second connection, and gives up when nothing has been answered for 60 s.
    pub fn timeout(mut self, timeout: Duration) -> Client {
        self.timeout = Some(timeout);
        self
    }

    /// Sets how long reloads, upgrades and stops may take while the primary answers. Default: one hour.
    pub fn patience(mut self, patience: Duration) -> Client {
        self.patience = patience.max(Duration::from_millis(1));
        self
    }

    /// Returns the status of the cluster.
    ///
    /// # Errors
    /// As all requests: the primary refuses, or does not answer in time, or is gone.
    pub fn status(&mut self) -> Result<ClusterStatus> {
        match self.send_and_receive(&Request::Status {}, ANSWER_TIMEOUT)? {
            Reply::Status(status) => Ok(*status),
            other => Err(self.unexpected_reply(&other)),
        }
    }

    /// Replaces every worker, and returns when that is done.
    ///
    /// # Errors
    /// As [`Client::status`]; the reload may have failed, and then everything is as it was.
    pub fn reload(&mut self) -> Result<String> {
        self.run_command(&Request::Reload { wait: true })
    }

    /// Has every worker replaced, without waiting for it.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn reload_without_waiting(&mut self) -> Result<String> {
        self.run_command(&Request::Reload { wait: false })
    }

    /// Sets the number of workers of the kind `web`.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn scale_to(&mut self, workers: u32) -> Result<String> {
        self.run_command(&Request::Scale(Change::To(workers).into()))
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
    /// As [`Client::status`]; the program may have no such kind.
    pub fn scale_kind(&mut self, kind: &str, workers: u32) -> Result<String> {
        let kind = Some(kind.to_string());
        self.run_command(&Request::Scale(Rescale { kind, change: Change::To(workers) }))
    }

    /// Adds workers of the kind `web`, or removes them if the number is negative.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn scale_by(&mut self, workers: i32) -> Result<String> {
        self.run_command(&Request::Scale(Change::By(workers).into()))
    }

    /// Has the primary become the binary that now stands at its path, and returns when workers of the new image serve in
    /// every slot. An order that comes during a reload waits for its end first.
    ///
    /// # Errors
    /// As [`Client::status`]. The new binary may be unfit, and then nothing has changed; or its workers do not come up, and
    /// then those of the binary before it serve on.
    pub fn upgrade(&mut self) -> Result<String> {
        self.run_command(&Request::Upgrade { wait: true })
    }

    /// Has the primary become the binary that now stands at its path, and returns when that is proved to be fit. What comes
    /// after that is in the log and in the events.
    ///
    /// # Errors
    /// As [`Client::status`]; the new binary may be unfit, and then nothing has changed.
    pub fn upgrade_without_waiting(&mut self) -> Result<String> {
        self.run_command(&Request::Upgrade { wait: false })
    }

    /// Stops the cluster: workers finish what is open, or are killed with `now`. Returns what the primary says;
    /// [`Client::wait_for_exit`] waits until it is gone.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn stop(&mut self, now: bool) -> Result<String> {
        self.run_command(&Request::Stop { now })
    }

    /// Waits until the primary closes the connection, as it does when it ends.
    ///
    /// # Errors
    /// It lasts longer than [`Client::patience`] allows.
    pub fn wait_for_exit(mut self) -> Result<()> {
        let mut buffer = [0u8; 256];
        let deadline = self.deadline(self.patience);
        self.is_waiting_for_completion = true;
        loop {
            self.await_bytes(deadline)?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.connection_error(&e)),
            }
        }
    }

    /// What happened after entry `since` (0: all that is kept), oldest first. With `follow` it goes on, waiting
    /// for the next event as long as the primary lives.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn events(mut self, follow: bool, since: u64) -> Result<Events> {
        self.send(&Request::Events { follow, since })?;
        Ok(Events { client: Some(self), follow })
    }

    fn run_command(&mut self, request: &Request) -> Result<String> {
        self.is_waiting_for_completion = true;
        let reply = self.send_and_receive(request, self.patience);
        self.is_waiting_for_completion = false;
        match reply? {
            Reply::Done(what) => Ok(what),
            other => Err(self.unexpected_reply(&other)),
        }
    }

    fn send_and_receive(&mut self, request: &Request, limit: Duration) -> Result<Reply> {
        self.send(request)?;
        match self.receive(self.deadline(limit))? {
            Some(Reply::Refused(why)) => Err(Error::refused(why)),
            Some(reply) => Ok(reply),
            None => Err(self.closed_early()),
        }
    }

    pub(super) fn send(&mut self, request: &Request) -> Result<()> {
        match self.stream.write_all(&frame::encode_frame(&request.encode())) {
            // It has closed our connection; what it had to say about that can still be read.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent.map_err(|e| self.connection_error(&e)),
        }
    }

    fn deadline(&self, limit: Duration) -> Option<Instant> {
        Instant::now().checked_add(self.timeout.unwrap_or(limit))
    }

    /// Waits until there is something to read, or the end. Fails at the deadline, and as soon as the primary is seen to be
    /// stopped by a signal twice in a row: nobody knows when it goes on. Where the deadline is far, fails when the primary has
    /// not answered anybody for long.
    fn await_bytes(&self, deadline: Option<Instant>) -> Result<()> {
        let began = Instant::now();
        let mut was_stopped = false;
        let is_probing = self.is_waiting_for_completion && self.timeout.is_none();
        let mut liveness = is_probing.then(|| LivenessProbe::new(self.pace, began));
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let slice = left.unwrap_or(STATE_CHECK_INTERVAL).min(STATE_CHECK_INTERVAL);
            let slice = slice.min(self.pace.interval);
            let ready = poll::poll_fds(&[WatchedFd::readable(self.stream.as_fd())], Some(slice));
            if ready.map_err(|e| self.connection_error(&e))?[0] {
                return Ok(());
            }
            let process = PrimaryProcess::of(&self.stream);
            let is_over = deadline.is_some_and(|at| at <= Instant::now());
            let is_stopped = process.is_stopped();
            if is_over || (is_stopped && was_stopped) {
                let why = process.why_silent(began.elapsed());
                return Err(Error::unresponsive(&self.path, why));
            }
            was_stopped = is_stopped;
            let silent = liveness.as_mut().and_then(|one| one.check(&self.path, Instant::now()));
            if let Some(silent) = silent {
                return Err(Error::unresponsive(&self.path, process.why_silent(silent)));
            }
        }
    }

    /// The next reply; `None` at the end of the connection.
    fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<Reply>> {
        let mut incoming = FrameReader::new(MAX_REPLY_BYTES);
        let mut buffer = [0u8; 16 * 1024];
        loop {
            let wanted = match incoming.wanted() {
                Ok(0) => break,
                Ok(wanted) => wanted.min(buffer.len()),
                Err(e) => {
                    return Err(self.protocol_error(&format!("a reply of {} bytes", e.claimed)));
                }
            };
            self.await_bytes(deadline)?;
            match self.stream.read(&mut buffer[..wanted]) {
                Ok(0) if incoming.begun() => return Err(self.closed_early()),
                Ok(0) => return Ok(None),
                Ok(n) => incoming.push(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(e) => return Err(self.connection_error(&e)),
            }
        }
        Reply::decode(&incoming.take()).map(Some).map_err(|why| self.protocol_error(&why))
    }

    fn connection_error(&self, error: &io::Error) -> Error {
        Error::unreachable(&self.path, io_error_text(error)).with_source(clone_io_error(error))
    }

    fn closed_early(&self) -> Error {
        Error::refused(format!(
            "the primary at {} closed the connection before it answered",
            self.path.display()
        ))
    }

    fn unexpected_reply(&self, reply: &Reply) -> Error {
        self.protocol_error(&format!("an answer to another question, {reply:?}"))
    }

    fn protocol_error(&self, what: &str) -> Error {
        Error::refused(format!("{} does not speak our protocol: {what}", self.path.display()))
    }
}

/// An iterator over events, from [`Client::events`]. Ends after an error.
#[derive(Debug)]
pub struct Events {
    client: Option<Client>,
    follow: bool,
}

impl Iterator for Events {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Result<Event>> {
        let client = self.client.as_mut()?;
        // No news may be no news for days; a primary that dies is noticed at once.
        let deadline = if self.follow { None } else { client.deadline(ANSWER_TIMEOUT) };
        let error = match client.receive(deadline) {
            Ok(Some(Reply::Event(event))) => return Some(Ok(event)),
            Ok(Some(Reply::LastEvent(_)) | None) => None,
            Ok(Some(Reply::Refused(why))) => Some(Error::refused(why)),
            Ok(Some(other)) => Some(client.unexpected_reply(&other)),
            Err(e) => Some(e),
        };
        self.client = None;
        error.map(Err)
    }
}

/// The process that listens at the control socket.
struct PrimaryProcess {
    /// 0 if it is not visible from here.
    pid: u32,
    /// As `/proc` shows it, if it does.
    state: Option<char>,
}

impl PrimaryProcess {
    fn of(stream: &UnixStream) -> PrimaryProcess {
        let pid = prefork_os::credentials::peer_credentials(stream).map_or(0, |peer| peer.pid);
        PrimaryProcess { pid, state: prefork_os::process::process_state(pid) }
    }

    /// Stopped by a signal, or held by a debugger.
    fn is_stopped(&self) -> bool {
        matches!(self.state, Some('T' | 't'))
    }

    fn why_silent(&self, after: Duration) -> String {
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
fn unreachable(path: &Path, error: &io::Error) -> Error {
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
