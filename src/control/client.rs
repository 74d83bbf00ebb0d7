//! The blocking client: for the `prefork` command, tests and other people's tools.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::frame::{self, Incoming, REPLY_MAX};
use super::protocol::{Change, Event, Reply, Request, Rescale};
use super::status::Status;
use crate::error::{Error, Result};

/// A primary that lives answers at once what needs no waiting.
const PROMPT: Duration = Duration::from_secs(5);

/// How long reloads and stops may take, unless [`Client::patience`] says otherwise. They have deadlines of
/// their own, and a primary that dies is noticed at once: this one is for a primary that is frozen.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

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
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// Nobody answers there; [`Error::exit_status`] is then [`exit::UNAVAILABLE`](crate::exit::UNAVAILABLE).
    pub fn connect(path: impl AsRef<Path>) -> Result<Client> {
        let path = path.as_ref();
        let connect = || -> io::Result<UnixStream> {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // The kernel heeds it for connect, too, which waits while the queue of a frozen primary is full.
            socket.set_write_timeout(Some(PROMPT))?;
            socket.connect(&SockAddr::unix(path)?)?;
            Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
        };
        let stream = connect().map_err(|e| Error::unreachable(path, readable(&e)))?;
        Ok(Client { stream, path: path.to_path_buf(), patience: PATIENCE })
    }

    /// Sets how long reloads and stops may take. Default: one hour.
    pub fn patience(mut self, patience: Duration) -> Client {
        self.patience = patience.max(Duration::from_millis(1));
        self
    }

    /// How things are.
    ///
    /// # Errors
    /// As all requests: the primary refuses, or does not answer in time, or is gone.
    pub fn status(&mut self) -> Result<Status> {
        match self.ask(&Request::Status {}, PROMPT)? {
            Reply::Status(status) => Ok(*status),
            other => Err(self.odd(&other)),
        }
    }

    /// Replaces every worker, and returns when that is done.
    ///
    /// # Errors
    /// As [`Client::status`]; the reload may have failed, and then everything is as it was.
    pub fn reload(&mut self) -> Result<String> {
        self.order(&Request::Reload { wait: true })
    }

    /// Has every worker replaced, without waiting for it.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn reload_without_waiting(&mut self) -> Result<String> {
        self.order(&Request::Reload { wait: false })
    }

    /// So many workers from now on.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn scale_to(&mut self, workers: u32) -> Result<String> {
        self.order(&Request::Scale(Change::To(workers).into()))
    }

    pub(crate) fn scale(&mut self, rescale: Rescale) -> Result<String> {
        self.order(&Request::Scale(rescale))
    }

    /// So many workers of another kind than `web` from now on, from 0.
    ///
    /// # Errors
    /// As [`Client::status`]; the program may have no such kind.
    pub fn scale_kind(&mut self, kind: &str, workers: u32) -> Result<String> {
        let kind = Some(kind.to_string());
        self.order(&Request::Scale(Rescale { kind, change: Change::To(workers) }))
    }

    /// So many workers more, or fewer if it is negative.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn scale_by(&mut self, workers: i32) -> Result<String> {
        self.order(&Request::Scale(Change::By(workers).into()))
    }

    /// Has the primary become the binary that now stands at its path, and returns when workers of the new image serve in
    /// every slot. An order that comes during a reload waits for its end first.
    ///
    /// # Errors
    /// As [`Client::status`]. The new binary may be unfit, and then nothing has changed; or its workers do not come up, and
    /// then those of the binary before it serve on.
    pub fn upgrade(&mut self) -> Result<String> {
        self.order(&Request::Upgrade { wait: true })
    }

    /// Has the primary become the binary that now stands at its path, and returns when that is proved to be fit. What comes
    /// after that is in the log and in the events.
    ///
    /// # Errors
    /// As [`Client::status`]; the new binary may be unfit, and then nothing has changed.
    pub fn upgrade_without_waiting(&mut self) -> Result<String> {
        self.order(&Request::Upgrade { wait: false })
    }

    /// Stops the cluster: workers finish what is open, or are killed with `now`. Returns what the primary says;
    /// [`Client::wait_for_the_end`] waits until it is gone.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn stop(&mut self, now: bool) -> Result<String> {
        self.order(&Request::Stop { now })
    }

    /// Waits until the primary closes the connection, as it does when it ends.
    ///
    /// # Errors
    /// It lasts longer than [`Client::patience`] allows.
    pub fn wait_for_the_end(mut self) -> Result<()> {
        let mut buffer = [0u8; 256];
        let limit = self.patience;
        self.stream.set_read_timeout(Some(limit)).map_err(|e| self.lost(&e))?;
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.lost(&e)),
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
        // No news may be no news for days; a primary that dies is noticed at once.
        let limit = (!follow).then_some(PROMPT);
        self.stream.set_read_timeout(limit).map_err(|e| self.lost(&e))?;
        Ok(Events { client: Some(self) })
    }

    fn order(&mut self, request: &Request) -> Result<String> {
        match self.ask(request, self.patience)? {
            Reply::Done(what) => Ok(what),
            other => Err(self.odd(&other)),
        }
    }

    fn ask(&mut self, request: &Request, limit: Duration) -> Result<Reply> {
        self.send(request)?;
        self.stream.set_read_timeout(Some(limit)).map_err(|e| self.lost(&e))?;
        match self.receive()? {
            Some(Reply::Refused(why)) => Err(Error::refused(why)),
            Some(reply) => Ok(reply),
            None => Err(self.ended()),
        }
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        match self.stream.write_all(&frame::encode(&request.encode())) {
            // It has closed our connection; what it had to say about that can still be read.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent.map_err(|e| self.lost(&e)),
        }
    }

    /// The next reply; `None` at the end of the connection.
    fn receive(&mut self) -> Result<Option<Reply>> {
        let mut incoming = Incoming::new(REPLY_MAX);
        let mut buffer = [0u8; 16 * 1024];
        loop {
            let wanted = match incoming.wanted() {
                Ok(0) => break,
                Ok(wanted) => wanted.min(buffer.len()),
                Err(e) => return Err(self.babble(&format!("a reply of {} bytes", e.claimed))),
            };
            match self.stream.read(&mut buffer[..wanted]) {
                Ok(0) if incoming.begun() => return Err(self.ended()),
                Ok(0) => return Ok(None),
                Ok(n) => incoming.push(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(e) => return Err(self.lost(&e)),
            }
        }
        Reply::decode(&incoming.take()).map(Some).map_err(|why| self.babble(&why))
    }

    fn lost(&self, error: &io::Error) -> Error {
        Error::unreachable(&self.path, readable(error))
    }

    fn ended(&self) -> Error {
        Error::refused(format!(
            "the primary at {} closed the connection before it answered",
            self.path.display()
        ))
    }

    fn odd(&self, reply: &Reply) -> Error {
        self.babble(&format!("an answer to another question, {reply:?}"))
    }

    fn babble(&self, what: &str) -> Error {
        Error::refused(format!("{} does not speak our protocol: {what}", self.path.display()))
    }
}

/// What happened, one after the other; made by [`Client::events`]. Ends after an error.
#[derive(Debug)]
pub struct Events {
    client: Option<Client>,
}

impl Iterator for Events {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Result<Event>> {
        let client = self.client.as_mut()?;
        let error = match client.receive() {
            Ok(Some(Reply::Event(event))) => return Some(Ok(event)),
            Ok(Some(Reply::LastEvent(_)) | None) => None,
            Ok(Some(Reply::Refused(why))) => Some(Error::refused(why)),
            Ok(Some(other)) => Some(client.odd(&other)),
            Err(e) => Some(e),
        };
        self.client = None;
        error.map(Err)
    }
}

/// A timeout of a socket option is told as `WouldBlock`, which helps nobody.
fn readable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in time".to_string(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
