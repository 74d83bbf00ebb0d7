//! Starts the program of a worker with its sockets.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};

use super::arguments::{self, TemplateValues};
use super::environment::{LISTEN_PID, program_environment};
use super::{Program, resolve};
use crate::error::{Error, Result};
use crate::listener::Listener;
use prefork_os::program_start::ProgramStart;
use prefork_supervisor::WorkerTag;

/// Starts `program` and returns its pid. The sockets block, as those of systemd do: a program that accepts in a thread
/// expects it, and event loops change it.
///
/// # Errors
/// The program cannot be found or executed, or a template of an argument has no value here.
pub(super) fn start_program(
    program: &Program,
    tag: WorkerTag,
    listeners: &[Listener],
    service_variables: &[(&str, String)],
) -> Result<u32> {
    for listener in listeners {
        listener.socket.set_nonblocking(false).map_err(|e| {
            Error::system(format!("make the socket of {} blocking", listener.real_addr()), e)
        })?;
    }
    let environment = program_environment(program, tag, listeners, service_variables);
    let path =
        environment.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_os_str());
    let executable = resolve::find_executable(program.executable(), program.directory(), path)?;
    let values = TemplateValues {
        sockets: listeners.len(),
        port: listeners.first().and_then(Listener::tcp).map(|addr| addr.port()),
        slot: tag.slot.0,
        worker: tag.id.0,
    };
    let expanded = program.arguments().iter().map(|argument| arguments::expand(argument, &values));
    let mut arguments: Vec<OsString> = vec![program.executable().to_owned()];
    arguments.extend(expanded.collect::<Result<Vec<_>>>()?);
    let fds: Vec<BorrowedFd<'_>> = listeners.iter().map(AsFd::as_fd).collect();
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
    start.set_pid_variable(LISTEN_PID);
    start.start(&fds).map_err(cannot)
}
