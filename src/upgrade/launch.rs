//! Starting the new binary, first as a proof, then in our place; and the other side of both.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use super::Manifest;
use super::manifest::CAP;
use crate::error::{Error, Result, exit};
use crate::printable::printable;
use crate::sys;
use crate::sys::fork::Fork;
use crate::sys::signal::Blocked;

/// Says to the child that proves a new binary: manifest and pipe, as `FD,FD`.
const PROOF: &str = "PREFORK_PROOF";
/// Says to a new image where its manifest is.
const MANIFEST: &str = "PREFORK_MANIFEST";
/// What a child that is fit to take over says. Anything else is the reason why it is not.
const READY: &str = "READY";
/// The longest reason that is read.
const LONGEST_REASON: usize = 4096;

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
    reader: io::PipeReader,
    /// It has closed its end; the pipe would be readable for ever.
    closed: bool,
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
        let _blocked = Blocked::all().map_err(|e| failed("hold back signals for", e))?;
        let (reader, writer) = io::pipe().map_err(|e| failed("make a pipe to", e))?;
        // What the child started may outlive it with the pipe in its hands; that must not hold us up.
        sys::fd::nonblocking(&reader).map_err(|e| failed("make a pipe to", e))?;
        let primary = std::process::id();
        match sys::fork::fork()? {
            Fork::Parent(pid) => Ok(Proof { pid, reader, closed: false, said: Vec::new() }),
            Fork::Child => {
                if !matches!(sys::process::killed_with(primary), Ok(true)) {
                    sys::fork::exit_now(exit::OS);
                }
                let value = format!("{},{}", sealed.as_raw_fd(), writer.as_raw_fd());
                let inherited = [sealed.as_fd(), writer.as_fd()];
                let error = self.exec(PROOF, &value, fds.iter().copied().chain(inherited));
                let _ = io::Write::write_all(&mut &writer, error.to_string().as_bytes());
                sys::fork::exit_now(exit::OS)
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
            let _ = sys::exec::inherit(fd, false);
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
            if let Err(e) = sys::exec::inherit(fd, true) {
                return Error::system("pass a descriptor to the new binary", e);
            }
        }
        let mut env = self.env.clone();
        env.push((name.into(), value.into()));
        let error = sys::exec::exec(&self.path, &self.args, &env);
        Error::system(format!("execute {}", self.path.display()), error)
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
    sys::exec::sealed("prefork-manifest", &manifest.encode()?)
        .map_err(|e| Error::system("write the upgrade manifest", e))
}

impl Proof {
    /// Whether it may still say something.
    pub(crate) fn is_open(&self) -> bool {
        !self.closed
    }

    /// Takes in what the child has said so far; never blocks for long, as the child's end is a pipe that was
    /// reported readable.
    pub(crate) fn listen(&mut self) {
        let mut buffer = [0u8; 1024];
        if let Ok(n) = self.reader.read(&mut buffer) {
            self.closed = n == 0;
            let room = LONGEST_REASON.saturating_sub(self.said.len());
            self.said.extend_from_slice(&buffer[..n.min(room)]);
        }
    }

    /// What it comes to, once the child is dead.
    pub(crate) fn verdict(mut self, status: std::process::ExitStatus) -> Result<(), String> {
        // All that was written is in the pipe. The error of an end that is still open elsewhere is none of ours.
        let _ = self.reader.by_ref().take(LONGEST_REASON as u64).read_to_end(&mut self.said);
        let said = String::from_utf8_lossy(&self.said);
        match said.trim() {
            READY if status.success() => Ok(()),
            "" | READY => Err(format!("the new binary ended before it was ready ({status})")),
            why => Err(format!("the new binary cannot take over: {}", printable(why))),
        }
    }
}

impl AsFd for Proof {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
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
        sys::process::forget_env(|name| name == PROOF || name == MANIFEST)?;
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

/// Tells the primary how the proof went.
pub(crate) fn answer(to: &OwnedFd, outcome: &Result<()>) {
    match outcome {
        Ok(()) => say(to, READY),
        Err(e) => say(to, &e.to_string()),
    }
}

fn say(to: &OwnedFd, text: &str) {
    // If nobody listens any more the upgrade was given up.
    let _ = nix::unistd::write(to, text.as_bytes());
}

fn read(variable: &str, number: &str) -> Result<Manifest> {
    let file = adopt(variable, number)?;
    let bytes = sys::exec::contents(&file, CAP)
        .map_err(|e| Error::system("read the upgrade manifest", e))?;
    Manifest::decode(&bytes)
}

fn adopt(variable: &str, number: &str) -> Result<OwnedFd> {
    let number = number.parse().ok().filter(|n| *n >= 3).ok_or_else(|| malformed(variable))?;
    sys::fd::adopt(number).map_err(|_| malformed(variable))
}

fn malformed(variable: &str) -> Error {
    Error::config(format!("{variable} is set, but not by a primary that upgrades; unset it"))
}
