//! Starts the new binary, first as a child that checks it, then in place of this process; and the new binary's side of
//! both.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::manifest::{MANIFEST_REVISION, MAX_MANIFEST_BYTES};
use super::{PassedClientState, PassedSocket, UpgradeManifest};
use crate::control;
use crate::error::{Error, Result, exit};
use crate::text::printable;
use prefork_os::child::ForkResult;
use prefork_os::signal::BlockedSignals;

/// The variable that starts an upgrade check: the descriptors of manifest and pipe, as `FD,FD`.
const UPGRADE_CHECK_VARIABLE: &str = "PREFORK_PROOF";
/// The variable that names the descriptor of the manifest to a new image.
const MANIFEST_VARIABLE: &str = "PREFORK_MANIFEST";
/// The answer of a child that can take over. Any other text is the reason why it cannot.
const CHECK_PASSED_ANSWER: &str = "READY";
/// Precedes, in the same answer, the newest manifest revision that the new binary understands.
const MANIFEST_REVISION_FIELD: &str = " revision=";
/// How many bytes of the new binary's answer and of the end of its standard error are kept.
const MAX_OUTPUT_BYTES: usize = 4096;
/// How many bytes are read from the new binary at a time: it may print without end.
const MAX_BYTES_PER_READ: usize = 64 * 1024;
/// How many of the last lines of its standard error are quoted.
const STDERR_LINES_SHOWN: usize = 6;

/// Path, arguments and environment of this program, to start the binary at its path in the same way.
pub(crate) struct BinaryLauncher {
    /// The path, not the file behind it: a package upgrade puts another file there. Empty for a primary that cannot be upgraded.
    path: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

/// A child that checks whether the new binary can take over.
pub(crate) struct UpgradeCheck {
    pub(crate) pid: u32,
    answer: ChildOutput,
    /// The only reason if there is no answer: the new binary cannot read its configuration, panics, or is another
    /// program.
    stderr: ChildOutput,
}

/// The reading end of a pipe from the child, and the bytes read from it.
#[derive(Debug)]
struct ChildOutput {
    reader: io::PipeReader,
    /// Whether the child has closed its end. Polling would always report the pipe as readable.
    is_closed: bool,
    /// The last `MAX_OUTPUT_BYTES` that were read.
    tail: Vec<u8>,
}

/// The role of a process that an upgrade has started.
pub(crate) enum UpgradeRole {
    /// Check that this binary can take over from the primary that wrote the manifest.
    Check { manifest: UpgradeManifest, answer: OwnedFd },
    /// Continue as the primary that wrote the manifest.
    NewImage(UpgradeManifest),
}

impl BinaryLauncher {
    /// Remembers path, arguments and environment. Must be called before anything changes them.
    pub(crate) fn of_this_process() -> Result<BinaryLauncher> {
        let path = program_path().map_err(|e| Error::system("find the path of this program", e))?;
        let is_of_upgrade =
            |name: &OsString| name == UPGRADE_CHECK_VARIABLE || name == MANIFEST_VARIABLE;
        let env = std::env::vars_os().filter(|(name, _)| !is_of_upgrade(name)).collect();
        Ok(BinaryLauncher { path, args: std::env::args_os().collect(), env })
    }

    /// For a primary that is a part of another program: starting that program again would not start this primary.
    pub(crate) fn disabled() -> BinaryLauncher {
        BinaryLauncher { path: PathBuf::new(), args: Vec::new(), env: Vec::new() }
    }

    /// Starts the binary as a child that checks whether it can take over. The child inherits `fds`.
    pub(crate) fn start_check(
        &self,
        manifest: &UpgradeManifest,
        fds: &[BorrowedFd<'_>],
    ) -> Result<UpgradeCheck> {
        if self.path.as_os_str().is_empty() {
            return Err(Error::refused(
                "this primary is a part of another program: restart that program",
            ));
        }
        let failed = |what: &str, e| Error::system(format!("{what} {}", self.path.display()), e);
        let sealed = create_manifest_fd(manifest)?;
        // Until the child has reset them, it has the primary's handlers, which write to the primary's pipe.
        let _blocked = BlockedSignals::block_all().map_err(|e| failed("block signals for", e))?;
        let pipe = || -> Result<(ChildOutput, io::PipeWriter)> {
            ChildOutput::create_pipe().map_err(|e| failed("make a pipe to", e))
        };
        let ((answer, answer_writer), (stderr, stderr_writer)) = (pipe()?, pipe()?);
        let primary = std::process::id();
        match prefork_os::child::fork_process()? {
            ForkResult::Parent(pid) => Ok(UpgradeCheck { pid, answer, stderr }),
            ForkResult::Child => {
                if !matches!(prefork_os::parent_death::kill_on_parent_death(primary), Ok(true)) {
                    prefork_os::child::exit_without_cleanup(exit::OS);
                }
                // If this fails, the output goes to the primary's own log.
                let _ = prefork_os::fd::replace_stderr(OwnedFd::from(stderr_writer));
                // Otherwise a program that does not unblock them, such as a shell script, could not be ended by a signal.
                let _ = prefork_os::signal::reset_handlers_and_unblock();
                let value = format!("{},{}", sealed.as_raw_fd(), answer_writer.as_raw_fd());
                let inherited = [sealed.as_fd(), answer_writer.as_fd()];
                let error = self.exec_binary(
                    UPGRADE_CHECK_VARIABLE,
                    &value,
                    fds.iter().copied().chain(inherited),
                );
                let _ = io::Write::write_all(&mut &answer_writer, error.to_string().as_bytes());
                prefork_os::child::exit_without_cleanup(exit::OS)
            }
        }
    }

    /// Replaces this process by the binary, which inherits `fds`. Returns only if that fails, with everything as
    /// before.
    pub(crate) fn exec_new_image(
        &self,
        manifest: &UpgradeManifest,
        fds: &[BorrowedFd<'_>],
    ) -> Error {
        let sealed = match create_manifest_fd(manifest) {
            Ok(sealed) => sealed,
            Err(e) => return e,
        };
        let value = sealed.as_raw_fd().to_string();
        let error = self.exec_binary(
            MANIFEST_VARIABLE,
            &value,
            fds.iter().copied().chain([sealed.as_fd()]),
        );
        for fd in fds {
            // Close-on-exec, as before. This cannot fail for an open descriptor.
            let _ = prefork_os::fd::set_inheritable(fd, false);
        }
        error
    }

    fn exec_binary<'a>(
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

/// Returns the path that this program was called by, if it leads to this program: it may be a link that later points to
/// a new version. Otherwise returns the path that the kernel knows.
fn program_path() -> io::Result<PathBuf> {
    let real = std::env::current_exe()?;
    let called = std::env::args_os().next().map(PathBuf::from);
    let called = called.filter(|path| path.components().count() > 1);
    let called = called.and_then(|path| std::path::absolute(path).ok());
    Ok(match called {
        Some(path) if path.canonicalize().is_ok_and(|found| found == real) => path,
        Some(_) | None => real,
    })
}

fn create_manifest_fd(manifest: &UpgradeManifest) -> Result<OwnedFd> {
    prefork_os::exec::create_sealed_memfd("prefork-manifest", &manifest.encode()?)
        .map_err(|e| Error::system("write the upgrade manifest", e))
}

impl ChildOutput {
    fn create_pipe() -> io::Result<(ChildOutput, io::PipeWriter)> {
        let (reader, writer) = io::pipe()?;
        // A process that the child has started may keep the pipe open: reading must not block.
        prefork_os::fd::set_nonblocking(&reader)?;
        Ok((ChildOutput { reader, is_closed: false, tail: Vec::new() }, writer))
    }

    /// Reads up to `MAX_BYTES_PER_READ` and keeps the end. Never blocks.
    fn read_available(&mut self) {
        let mut buffer = [0u8; 4096];
        for _ in 0..MAX_BYTES_PER_READ / buffer.len() {
            match self.reader.read(&mut buffer) {
                Ok(0) => self.is_closed = true,
                Ok(n) => {
                    self.tail.extend_from_slice(&buffer[..n]);
                    let surplus = self.tail.len().saturating_sub(MAX_OUTPUT_BYTES);
                    self.tail.drain(..surplus);
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => {}
            }
            return;
        }
    }

    /// Returns the last lines as one line with control characters escaped; empty without output.
    fn last_lines(&self) -> String {
        let text = String::from_utf8_lossy(&self.tail);
        let lines: Vec<&str> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let shown = &lines[lines.len().saturating_sub(STDERR_LINES_SHOWN)..];
        // Escaped here, so that the length is bounded after escaping too.
        printable(&shown.join("; ")).into_owned()
    }
}

impl UpgradeCheck {
    /// Returns the pipes that the child has not closed.
    pub(crate) fn open_outputs(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let open = [&self.answer, &self.stderr].into_iter().filter(|output| !output.is_closed);
        open.map(|output| output.reader.as_fd())
    }

    /// Reads what the child has written so far. Never blocks.
    pub(crate) fn read_outputs(&mut self) {
        self.answer.read_available();
        self.stderr.read_available();
    }

    /// Returns the end of the child's standard error on one line.
    pub(crate) fn stderr_tail(&mut self) -> String {
        self.stderr.read_available();
        self.stderr.last_lines()
    }

    /// Returns the result of a child that has exited: the newest manifest revision that it understands, or the reason
    /// why it cannot take over.
    pub(crate) fn into_result(mut self, status: std::process::ExitStatus) -> Result<u32, String> {
        // The pipes hold all that was written, even if another process has them open.
        self.read_outputs();
        let answer = String::from_utf8_lossy(&self.answer.tail);
        let answer = answer.trim();
        if let Some(rest) = answer.strip_prefix(CHECK_PASSED_ANSWER).filter(|_| status.success()) {
            let revision =
                rest.strip_prefix(MANIFEST_REVISION_FIELD).map_or(Some(0), |n| n.parse().ok());
            if let Some(revision) = revision.filter(|n| rest.is_empty() == (*n == 0)) {
                return Ok(revision);
            }
        }
        if !answer.is_empty() && !answer.starts_with(CHECK_PASSED_ANSWER) {
            return Err(format!("the new binary cannot take over: {}", printable(answer)));
        }
        let ended = format!("the new binary ended before it was ready ({status})");
        Err(match self.stderr.last_lines() {
            output if output.is_empty() => ended,
            output => format!("{ended}: {output}"),
        })
    }
}

/// Clients of the control socket that wait for the end of this upgrade, until the new image's control server answers
/// them.
///
/// There is no way back from an exec, so a new image that cannot start can only tell them and the log.
#[derive(Debug, Default)]
pub(crate) struct WaitingClients(Vec<OwnedFd>);

impl WaitingClients {
    /// Duplicates the descriptors of the waiting clients in `manifest`.
    pub(crate) fn from_manifest(manifest: &UpgradeManifest) -> WaitingClients {
        let clients = manifest.control.iter().flat_map(|control| &control.clients);
        let waiting = clients
            .filter(|client| matches!(client.state, PassedClientState::WaitingForReply { .. }));
        WaitingClients(
            waiting.filter_map(|client| prefork_os::fd::duplicate_fd(client.fd).ok()).collect(),
        )
    }

    /// Reads the manifest of this process, which it has not taken over yet.
    fn of_this_process() -> WaitingClients {
        let number = std::env::var(MANIFEST_VARIABLE).ok().and_then(|number| number.parse().ok());
        let manifest = number
            .and_then(|number| prefork_os::fd::duplicate_fd(number).ok())
            .and_then(|file| prefork_os::exec::read_memfd(&file, MAX_MANIFEST_BYTES).ok())
            .and_then(|bytes| UpgradeManifest::decode(&bytes).ok());
        let own = manifest.filter(|manifest| manifest.pid == std::process::id());
        own.as_ref().map_or_else(WaitingClients::default, WaitingClients::from_manifest)
    }

    /// Replies to the waiting clients that the new image ends. Never blocks: their sockets' buffers are empty.
    pub(crate) fn refuse(&self, error: &Error) {
        let reason = format!("the new binary failed after it had taken over: {error}");
        let reply = control::encode_refusal(reason);
        for client in &self.0 {
            let _ = prefork_os::socket::write_nonblocking(client, &reply);
        }
    }
}

/// Tells those who wait for an upgrade that this new binary ends it with `error`: the primary that checks the binary, or
/// the clients of the control socket. Does nothing in other processes, and nothing the second time.
pub fn report_failed_start(error: &Error) {
    static IS_REPORTED: AtomicBool = AtomicBool::new(false);
    if !is_started_by_upgrade() || IS_REPORTED.swap(true, Ordering::Relaxed) {
        return;
    }
    WaitingClients::of_this_process().refuse(error);
    let check = std::env::var(UPGRADE_CHECK_VARIABLE).ok();
    let answer = check.as_deref().and_then(|fds| fds.split_once(',')?.1.parse().ok());
    if let Some(answer) = answer.and_then(|number| prefork_os::fd::duplicate_fd(number).ok()) {
        write_answer(&answer, &error.to_string());
    }
}

/// Reads the sockets of the application from the manifest, which stays for [`UpgradeRole::take`].
pub(crate) fn read_passed_sockets() -> Result<Vec<PassedSocket>> {
    read_passed_manifest().map(|manifest| manifest.map_or(Vec::new(), |manifest| manifest.sockets))
}

/// Reads the manifest that was passed to this process, which stays for [`UpgradeRole::take`].
pub(crate) fn read_passed_manifest() -> Result<Option<UpgradeManifest>> {
    let check = std::env::var(UPGRADE_CHECK_VARIABLE).ok();
    let (variable, number) = match (check, std::env::var(MANIFEST_VARIABLE)) {
        (Some(fds), _) => {
            let manifest = fds.split(',').next().unwrap_or_default().to_string();
            (UPGRADE_CHECK_VARIABLE, manifest)
        }
        (None, Ok(number)) => (MANIFEST_VARIABLE, number),
        (None, Err(_)) => return Ok(None),
    };
    let number = number.parse().map_err(|_| malformed_variable(variable))?;
    let copy = prefork_os::fd::duplicate_fd(number).map_err(|_| malformed_variable(variable))?;
    decode_manifest(&copy).map(Some)
}

/// Returns whether an upgrade has started this process and passed it open descriptors.
pub(crate) fn is_started_by_upgrade() -> bool {
    [UPGRADE_CHECK_VARIABLE, MANIFEST_VARIABLE]
        .into_iter()
        .any(|name| std::env::var_os(name).is_some())
}

impl UpgradeRole {
    /// Returns the role of this process, if an upgrade has started it, and removes the variables from the environment,
    /// so that its children do not inherit them. Must be called once, at the start.
    pub(crate) fn take() -> Result<Option<UpgradeRole>> {
        let (check, manifest) =
            (std::env::var(UPGRADE_CHECK_VARIABLE), std::env::var(MANIFEST_VARIABLE));
        prefork_os::process::remove_env_vars(|name| {
            name == UPGRADE_CHECK_VARIABLE || name == MANIFEST_VARIABLE
        })?;
        match (check, manifest) {
            (Ok(fds), _) => {
                let (manifest, answer) = fds
                    .split_once(',')
                    .ok_or_else(|| malformed_variable(UPGRADE_CHECK_VARIABLE))?;
                let answer = take_fd(UPGRADE_CHECK_VARIABLE, answer)?;
                match read_manifest(UPGRADE_CHECK_VARIABLE, manifest) {
                    Ok(manifest) => Ok(Some(UpgradeRole::Check { manifest, answer })),
                    Err(e) => {
                        write_answer(&answer, &e.to_string());
                        Err(e)
                    }
                }
            }
            (_, Ok(fd)) => {
                let manifest = read_manifest(MANIFEST_VARIABLE, &fd)?;
                if manifest.pid != std::process::id() {
                    return Err(malformed_variable(MANIFEST_VARIABLE));
                }
                Ok(Some(UpgradeRole::NewImage(manifest)))
            }
            (Err(_), Err(_)) => Ok(None),
        }
    }
}

/// Reports the result of the check to the primary that wrote `manifest`.
pub(crate) fn report_check_result(to: &OwnedFd, manifest: &UpgradeManifest, result: &Result<()>) {
    match result {
        // A primary without revisions takes any other text for a refusal.
        Ok(()) if manifest.revision == 0 => write_answer(to, CHECK_PASSED_ANSWER),
        Ok(()) => write_answer(
            to,
            &format!("{CHECK_PASSED_ANSWER}{MANIFEST_REVISION_FIELD}{MANIFEST_REVISION}"),
        ),
        Err(e) => write_answer(to, &e.to_string()),
    }
}

fn write_answer(to: &OwnedFd, text: &str) {
    // A closed pipe means that the primary has stopped the check.
    let _ = nix::unistd::write(to, text.as_bytes());
}

fn read_manifest(variable: &str, number: &str) -> Result<UpgradeManifest> {
    decode_manifest(&take_fd(variable, number)?)
}

fn decode_manifest(file: &OwnedFd) -> Result<UpgradeManifest> {
    let bytes = prefork_os::exec::read_memfd(file, MAX_MANIFEST_BYTES)
        .map_err(|e| Error::system("read the upgrade manifest", e))?;
    UpgradeManifest::decode(&bytes)
}

fn take_fd(variable: &str, number: &str) -> Result<OwnedFd> {
    let number =
        number.parse().ok().filter(|n| *n >= 3).ok_or_else(|| malformed_variable(variable))?;
    prefork_os::fd::take_inherited_fd(number).map_err(|_| malformed_variable(variable))
}

fn malformed_variable(variable: &str) -> Error {
    Error::config(format!(
        "{variable} is set, but not by a primary that is being upgraded; unset it"
    ))
}
