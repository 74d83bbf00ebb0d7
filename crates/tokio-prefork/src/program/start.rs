//! Starts the program of a worker with its sockets.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};

use super::arguments::{self, TemplateValues};
use super::environment::{LISTEN_PID, program_environment};
use super::node_shim::{self, NodeShim};
use super::{Program, resolve};
use crate::error::{Error, Result};
use crate::listener::Listener;
use prefork_os::program_start::ProgramStart;
use prefork_supervisor::WorkerTag;

/// A program that runs.
pub(super) struct StartedProgram {
    pub(super) pid: u32,
    /// The script that a Node program has been started with.
    pub(super) shim: Option<NodeShim>,
}

/// Starts `program`. The sockets block, as those of systemd do: a program that accepts in a thread
/// expects it, and event loops change it.
///
/// # Errors
/// The program cannot be found or executed, a template of an argument has no value here, or the script for a Node program cannot be
/// written.
pub(super) fn start_program(
    program: &Program,
    tag: WorkerTag,
    listeners: &[Listener],
    service_variables: &[(&str, String)],
    backlog: u32,
) -> Result<StartedProgram> {
    // A socket of this worker alone may have been made non-blocking by its predecessor. Another program may use a shared one, and
    // may have changed its mode for its event loop.
    for listener in listeners.iter().filter(|one| !one.is_shared_by_all_workers()) {
        listener.socket.set_nonblocking(false).map_err(|e| {
            Error::system(format!("make the socket of {} blocking", listener.real_addr()), e)
        })?;
    }
    let mut environment = program_environment(program, tag, listeners, service_variables);
    let path =
        environment.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_os_str());
    let executable = resolve::find_executable(program.executable(), program.directory(), path)?;
    let has_shim = program.has_node_shim() && node_shim::applies_to(&executable, program);
    let shim = has_shim
        .then(|| NodeShim::prepare(listeners, tag.slot, backlog, program.stop_signal))
        .transpose()?;
    if let Some(shim) = &shim {
        shim.add_variables(&mut environment);
    }
    let values = TemplateValues {
        sockets: listeners.len(),
        port: listeners.first().and_then(Listener::tcp).map(|addr| addr.port()),
        slot: tag.slot.0,
        worker: tag.id.0,
    };
    let expanded = program.arguments().iter().map(|argument| arguments::expand(argument, &values));
    let mut arguments: Vec<OsString> = vec![program.executable().to_owned()];
    arguments.extend(expanded.collect::<Result<Vec<_>>>()?);
    let channel = shim.as_ref().and_then(NodeShim::take_program_end);
    let fds: Vec<BorrowedFd<'_>> =
        listeners.iter().map(AsFd::as_fd).chain(channel.as_ref().map(AsFd::as_fd)).collect();
    let cannot = |e: std::io::Error| {
        let hint = match e.raw_os_error() {
            Some(prefork_os::exec::ENOEXEC) => {
                ": it is neither a binary of this machine nor a script that begins with #!"
            }
            _ => "",
        };
        Error::system(format!("start {}{hint}", executable.display()), e)
    };
    let mut start = ProgramStart::new(&executable, &arguments, &environment, program.directory())
        .map_err(cannot)?;
    if !program.names_descriptors() {
        start.set_pid_variable(LISTEN_PID);
    }
    let pid = start.start(&fds).map_err(cannot)?;
    Ok(StartedProgram { pid, shim })
}
