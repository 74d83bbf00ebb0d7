//! Cleans up the processes and directories that a bench has created: at its end, on Ctrl-C, and when the bench itself
//! is killed.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};

use super::process::children;

/// Servers, by the pid of their first process, and directories to remove.
struct CleanupList {
    servers: Vec<u32>,
    directories: Vec<PathBuf>,
}

static CLEANUP_LIST: Mutex<CleanupList> =
    Mutex::new(CleanupList { servers: Vec::new(), directories: Vec::new() });

/// The argument that makes this program execute another one, which ends with the bench.
const EXEC_ENDED_WITH_BENCH_FLAG: &str = "--exec-tied";

fn with_list<T>(what: impl FnOnce(&mut CleanupList) -> T) -> T {
    what(&mut CLEANUP_LIST.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Registers a server, to be killed unless it is unregistered.
pub fn register_server(pid: u32) {
    with_list(|all| all.servers.push(pid));
}

/// Unregisters a server that was reaped.
pub fn unregister_server(pid: u32) {
    with_list(|all| all.servers.retain(|server| *server != pid));
}

/// Registers a directory, to be removed if the bench ends before its owner drops it.
pub fn register_directory(path: &Path) {
    with_list(|all| all.directories.push(path.to_path_buf()));
}

/// Kills all servers with their children, and removes the directories. The lock is held until the process ends, so that
/// no other server is started.
pub fn clean_up_all() {
    with_list(|all| {
        for server in all.servers.drain(..) {
            let root = Pid::from_raw(server as i32);
            // A stopped server forks no further children. It has not been reaped, so the pid is still its own.
            let _ = kill(root, Signal::SIGSTOP);
            let of_it = children(server);
            for pid in std::iter::once(server).chain(of_it) {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
        }
        for directory in all.directories.drain(..) {
            let _ = std::fs::remove_dir_all(directory);
        }
    });
}

/// Cleans up and exits on SIGINT, SIGTERM and SIGHUP.
pub fn clean_up_on_signals() -> std::io::Result<()> {
    let (mut signals, sender) = UnixStream::pair()?;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signal_hook::low_level::pipe::register(signal as i32, sender.try_clone()?)?;
    }
    std::thread::spawn(move || {
        // The handlers own the writing end, so an error means that no signal can arrive.
        if signals.read_exact(&mut [0]).is_ok() {
            clean_up_all();
            std::process::exit(130);
        }
    });
    Ok(())
}

/// Returns a command for `program` that gets SIGTERM if the bench dies without cleaning up. It is executed through this
/// program, as PR_SET_PDEATHSIG survives an exec.
pub fn command_ended_with_bench(program: impl AsRef<std::ffi::OsStr>) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(EXEC_ENDED_WITH_BENCH_FLAG).arg(std::process::id().to_string()).arg(program);
    Ok(command)
}

/// Executes the program of [`command_ended_with_bench`], if this process was started by it.
pub fn exec_program_ended_with_bench() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|first| first != EXEC_ENDED_WITH_BENCH_FLAG) {
        return;
    }
    let bench = arguments.next().and_then(|pid| pid.to_str()?.parse::<i32>().ok());
    let Some(program) = arguments.next() else { return };
    let tied = set_pdeathsig(Signal::SIGTERM);
    if tied.is_err() || bench != Some(getppid().as_raw()) {
        // The bench has already ended.
        std::process::exit(1);
    }
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("bench: cannot start {}: {error}", program.display());
    std::process::exit(127);
}
