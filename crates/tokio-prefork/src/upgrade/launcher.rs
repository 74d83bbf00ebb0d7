//! Starting the new binary, first as a proof, then in our place; and the other side of both.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use super::manifest::{CAP, REVISION};
use super::{Manifest, PassedState};
use crate::control;
use crate::error::{Error, Result, exit};
use crate::text::printable;
use prefork_os::child::ForkResult;
use prefork_os::signal::BlockedSignals;

/// Says to the child that proves a new binary: manifest and pipe, as `FD,FD`.
const PROOF: &str = "PREFORK_PROOF";
/// Says to a new image where its manifest is.
const MANIFEST: &str = "PREFORK_MANIFEST";
/// What a child that is fit to take over says. Anything else is the reason why it is not.
const READY: &str = "READY";
/// Precedes, in the same answer, the newest revision of the manifest that the new binary takes over.
const REVISION_FIELD: &str = " revision=";
/// Longest reason in bytes that is read from the new binary, and longest end of its standard error that is kept.
const MAX_REASON_BYTES: usize = 4096;
/// Bytes that are read from the new binary in one turn of the primary's loop: it may print without end.
const MAX_BYTES_PER_TURN: usize = 64 * 1024;
/// How many of the last lines of its standard error stand in the reason.
const STDERR_LINES_SHOWN: usize = 6;

/// How this program was started, and so how it is started anew.
pub(crate) struct Launcher {
    /// The path, not the file behind it: after an upgrade of the package another one stands there.
    path: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

/// A child that proves the new binary.
pub(crate) struct Proof {
    pub(crate) pid: u32,
    answer: Output,
    /// What it prints to standard error. Where it says nothing in its answer (it cannot read its configuration, it panics,
    /// it is another program), this is the only reason there is.
    stderr: Output,
}

/// The reading end of a pipe to the child, and what came out of it.
#[derive(Debug)]
struct Output {
    reader: io::PipeReader,
    /// The child has closed its end; the pipe would be readable for ever.
    is_closed: bool,
    /// The last `MAX_REASON_BYTES` of it.
    said: Vec<u8>,
}

/// What this process was started to do by another image, if it was.
pub(crate) enum Inherited {
    /// Prove that this binary can take over from the primary that wrote the manifest.
    Proof { manifest: Manifest, answer: OwnedFd },
    /// Be the primary that wrote the manifest.
    Manifest(Manifest),
}

impl Launcher {
    /// Remembers path, arguments and environment. To be called before anything changes them.
    pub(crate) fn of_this_process() -> Result<Launcher> {
        let path = own_path().map_err(|e| Error::system("find the path of this program", e))?;
        let ours = |name: &OsString| name == PROOF || name == MANIFEST;
        let env = std::env::vars_os().filter(|(name, _)| !ours(name)).collect();
        Ok(Launcher { path, args: std::env::args_os().collect(), env })
    }

    /// Starts the binary at our path as a child that shows whether it can take over.
    pub(crate) fn prove(&self, manifest: &Manifest, fds: &[BorrowedFd<'_>]) -> Result<Proof> {
        let failed = |what: &str, e| Error::system(format!("{what} {}", self.path.display()), e);
        let sealed = seal(manifest)?;
        // The child has our handlers until it has become the new binary, which lets signals in itself.
        let _blocked =
            BlockedSignals::block_all().map_err(|e| failed("hold back signals for", e))?;
        let pipe = || -> Result<(Output, io::PipeWriter)> {
            Output::pipe().map_err(|e| failed("make a pipe to", e))
        };
        let ((answer, answering), (stderr, printing)) = (pipe()?, pipe()?);
        let primary = std::process::id();
        match prefork_os::child::fork_process()? {
            ForkResult::Parent(pid) => Ok(Proof { pid, answer, stderr }),
            ForkResult::Child => {
                if !matches!(prefork_os::parent_death::kill_on_parent_death(primary), Ok(true)) {
                    prefork_os::child::exit_without_cleanup(exit::OS);
                }
                // What is printed is less important than what is answered: without the pipe it goes to our own log.
                let _ = prefork_os::fd::replace_stderr(&OwnedFd::from(printing));
                let value = format!("{},{}", sealed.as_raw_fd(), answering.as_raw_fd());
                let inherited = [sealed.as_fd(), answering.as_fd()];
                let error = self.exec(PROOF, &value, fds.iter().copied().chain(inherited));
                let _ = io::Write::write_all(&mut &answering, error.to_string().as_bytes());
                prefork_os::child::exit_without_cleanup(exit::OS)
            }
        }
    }

    /// Becomes the binary at our path. Returns only if that failed, with everything as before.
    pub(crate) fn take_over(&self, manifest: &Manifest, fds: &[BorrowedFd<'_>]) -> Error {
        let sealed = match seal(manifest) {
            Ok(sealed) => sealed,
            Err(e) => return e,
        };
        let value = sealed.as_raw_fd().to_string();
        let error = self.exec(MANIFEST, &value, fds.iter().copied().chain([sealed.as_fd()]));
        for fd in fds {
            // It was close-on-exec before, and a descriptor that is open can be marked.
            let _ = prefork_os::fd::set_inheritable(fd, false);
        }
        error
    }

    fn exec<'a>(
        &self,
        name: &str,
        value: &str,
        fds: impl Iterator<Item = BorrowedFd<'a>>,
    ) -> Error {
        for fd in fds {
            if let Err(e) = prefork_os::fd::set_inheritable(fd, true) {
                return Error::system("pass a descriptor to the new binary", e);
            }
        }
        let mut env = self.env.clone();
        env.push((name.into(), value.into()));
        let error = prefork_os::exec::exec_program(&self.path, &self.args, &env);
        let hint = match error.kind() {
            _ if self.path.is_dir() => " (it is a directory)",
            io::ErrorKind::NotFound => " (is it, or the interpreter that it names, installed?)",
            io::ErrorKind::PermissionDenied => " (is it marked as executable?)",
            _ if error.raw_os_error() == Some(prefork_os::exec::ENOEXEC) => {
                " (is it a program for this architecture?)"
            }
            _ => "",
        };
        Error::system(format!("execute {}{hint}", self.path.display()), error)
    }
}

/// The path we were called by if it leads to this program, as it may go over a link that is pointed to a new
/// version later; otherwise the one that the kernel knows.
fn own_path() -> io::Result<PathBuf> {
    let real = std::env::current_exe()?;
    let called = std::env::args_os().next().map(PathBuf::from);
    let called = called.filter(|path| path.components().count() > 1);
    let called = called.and_then(|path| std::path::absolute(path).ok());
    Ok(match called {
        Some(path) if path.canonicalize().is_ok_and(|found| found == real) => path,
        Some(_) | None => real,
    })
}

fn seal(manifest: &Manifest) -> Result<OwnedFd> {
    prefork_os::exec::create_sealed_memfd("prefork-manifest", &manifest.encode()?)
        .map_err(|e| Error::system("write the upgrade manifest", e))
}

impl Output {
    fn pipe() -> io::Result<(Output, io::PipeWriter)> {
        let (reader, writer) = io::pipe()?;
        // What the child started may outlive it with the pipe in its hands; that must not hold us up.
        prefork_os::fd::set_nonblocking(&reader)?;
        Ok((Output { reader, is_closed: false, said: Vec::new() }, writer))
    }

    /// Reads what is there, up to `MAX_BYTES_PER_TURN`, and keeps the end of it. Never blocks.
    fn read(&mut self) {
        let mut buffer = [0u8; 4096];
        for _ in 0..MAX_BYTES_PER_TURN / buffer.len() {
            match self.reader.read(&mut buffer) {
                Ok(0) => self.is_closed = true,
                Ok(n) => {
                    self.said.extend_from_slice(&buffer[..n]);
                    let surplus = self.said.len().saturating_sub(MAX_REASON_BYTES);
                    self.said.drain(..surplus);
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => {}
            }
            return;
        }
    }

    /// The last lines of it, as one line with control characters escaped; empty if nothing was said.
    fn last_lines(&self) -> String {
        let text = String::from_utf8_lossy(&self.said);
        let lines: Vec<&str> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let shown = &lines[lines.len().saturating_sub(STDERR_LINES_SHOWN)..];
        // Once here, so that its length is bounded after escaping, too.
        printable(&shown.join("; ")).into_owned()
    }
}

impl Proof {
    /// The pipes on which it may still say something.
    pub(crate) fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let open = [&self.answer, &self.stderr].into_iter().filter(|output| !output.is_closed);
        open.map(|output| output.reader.as_fd())
    }

    /// Takes in what the child has said so far; never blocks.
    pub(crate) fn listen(&mut self) {
        self.answer.read();
        self.stderr.read();
    }

    /// The end of what it has printed to standard error so far, on one line.
    pub(crate) fn printed(&mut self) -> String {
        self.stderr.read();
        self.stderr.last_lines()
    }

    /// What it comes to, once the child is dead: the newest revision of the manifest that it takes over, or the reason why
    /// it cannot.
    pub(crate) fn verdict(mut self, status: std::process::ExitStatus) -> Result<u32, String> {
        // All that was written is in the pipes, whoever else may hold their other ends.
        self.listen();
        let said = String::from_utf8_lossy(&self.answer.said);
        let said = said.trim();
        if let Some(rest) = said.strip_prefix(READY).filter(|_| status.success()) {
            let revision = rest.strip_prefix(REVISION_FIELD).map_or(Some(0), |n| n.parse().ok());
            if let Some(revision) = revision.filter(|n| rest.is_empty() == (*n == 0)) {
                return Ok(revision);
            }
        }
        if !said.is_empty() && !said.starts_with(READY) {
            return Err(format!("the new binary cannot take over: {}", printable(said)));
        }
        let ended = format!("the new binary ended before it was ready ({status})");
        Err(match self.stderr.last_lines() {
            printed if printed.is_empty() => ended,
            printed => format!("{ended}: {printed}"),
        })
    }
}

/// Clients of the control socket that wait for the end of this upgrade, as long as nobody else answers them: there is no way
/// back from an exec, so a new image that cannot begin has only them to tell, and the log.
#[derive(Debug, Default)]
pub(crate) struct WaitingClients(Vec<OwnedFd>);

impl WaitingClients {
    /// Those that `manifest` names. Their descriptors stay as they are; these are copies.
    pub(crate) fn of(manifest: &Manifest) -> WaitingClients {
        let clients = manifest.control.iter().flat_map(|control| &control.clients);
        let waiting = clients.filter(|client| matches!(client.state, PassedState::Waiting { .. }));
        WaitingClients(
            waiting.filter_map(|client| prefork_os::fd::duplicate_fd(client.fd).ok()).collect(),
        )
    }

    /// Those of the manifest that this process was left and has not taken over yet.
    fn of_this_process() -> WaitingClients {
        let number = std::env::var(MANIFEST).ok().and_then(|number| number.parse().ok());
        let manifest = number
            .and_then(|number| prefork_os::fd::duplicate_fd(number).ok())
            .and_then(|file| prefork_os::exec::read_memfd(&file, CAP).ok())
            .and_then(|bytes| Manifest::decode(&bytes).ok());
        let ours = manifest.filter(|manifest| manifest.pid == std::process::id());
        ours.as_ref().map_or_else(WaitingClients::default, WaitingClients::of)
    }

    /// Tells them that the new image ends. Never blocks: they read nothing else, so there is room.
    pub(crate) fn refuse(&self, error: &Error) {
        let why = format!("the new binary failed after it had taken over: {error}");
        let reply = control::refusal(why);
        for client in &self.0 {
            let _ = prefork_os::socket::write_nonblocking(client, &reply);
        }
    }
}

/// This process ends with `error`. If it was to go on as the primary of another image, whoever waits for that is told.
pub fn report_failed_start(error: &Error) {
    if is_inherited() {
        WaitingClients::of_this_process().refuse(error);
    }
}

/// Whether another image of this program left open descriptors to this process.
pub(crate) fn is_inherited() -> bool {
    [PROOF, MANIFEST].into_iter().any(|name| std::env::var_os(name).is_some())
}

impl Inherited {
    /// What another image left to this process, if it did. Takes the variables out of the environment: what
    /// this process starts is none of their business. To be called once, at the start.
    pub(crate) fn take() -> Result<Option<Inherited>> {
        let (proof, manifest) = (std::env::var(PROOF), std::env::var(MANIFEST));
        prefork_os::process::remove_env_vars(|name| name == PROOF || name == MANIFEST)?;
        match (proof, manifest) {
            (Ok(fds), _) => {
                let (manifest, answer) = fds.split_once(',').ok_or_else(|| malformed(PROOF))?;
                let answer = adopt(PROOF, answer)?;
                match read(PROOF, manifest) {
                    Ok(manifest) => Ok(Some(Inherited::Proof { manifest, answer })),
                    Err(e) => {
                        say(&answer, &e.to_string());
                        Err(e)
                    }
                }
            }
            (_, Ok(fd)) => {
                let manifest = read(MANIFEST, &fd)?;
                if manifest.pid != std::process::id() {
                    return Err(malformed(MANIFEST));
                }
                Ok(Some(Inherited::Manifest(manifest)))
            }
            (Err(_), Err(_)) => Ok(None),
        }
    }
}

/// Tells the primary that wrote `manifest` how the proof went.
pub(crate) fn answer(to: &OwnedFd, manifest: &Manifest, outcome: &Result<()>) {
    match outcome {
        // A primary that knows no revisions takes any other word for a refusal.
        Ok(()) if manifest.revision == 0 => say(to, READY),
        Ok(()) => say(to, &format!("{READY}{REVISION_FIELD}{REVISION}")),
        Err(e) => say(to, &e.to_string()),
    }
}

fn say(to: &OwnedFd, text: &str) {
    // If nobody listens any more the upgrade was given up.
    let _ = nix::unistd::write(to, text.as_bytes());
}

fn read(variable: &str, number: &str) -> Result<Manifest> {
    let file = adopt(variable, number)?;
    let bytes = prefork_os::exec::read_memfd(&file, CAP)
        .map_err(|e| Error::system("read the upgrade manifest", e))?;
    Manifest::decode(&bytes)
}

fn adopt(variable: &str, number: &str) -> Result<OwnedFd> {
    let number = number.parse().ok().filter(|n| *n >= 3).ok_or_else(|| malformed(variable))?;
    prefork_os::fd::take_inherited_fd(number).map_err(|_| malformed(variable))
}

fn malformed(variable: &str) -> Error {
    Error::config(format!("{variable} is set, but not by a primary that upgrades; unset it"))
}
