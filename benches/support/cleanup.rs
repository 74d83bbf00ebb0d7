//! Nothing that a bench starts outlives it: not when it fails, nor on Ctrl-C, nor when it is killed itself.

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

/// What is to be removed: servers by the pid of their first process, and directories.
struct Started {
    servers: Vec<u32>,
    directories: Vec<PathBuf>,
}

static STARTED: Mutex<Started> =
    Mutex::new(Started { servers: Vec::new(), directories: Vec::new() });

/// The argument that makes this program become another one that ends when the bench does.
const BECOME: &str = "--become";

fn with<T>(what: impl FnOnce(&mut Started) -> T) -> T {
    what(&mut STARTED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Remembers a server until `ended` is called.
pub fn started(pid: u32) {
    with(|all| all.servers.push(pid));
}

/// It was reaped, and the pid is nobody's now.
pub fn ended(pid: u32) {
    with(|all| all.servers.retain(|server| *server != pid));
}

/// Remembers a directory to remove, if the bench ends before its owner drops it.
pub fn directory(path: &Path) {
    with(|all| all.directories.push(path.to_path_buf()));
}

/// Kills all servers with their children, and removes the directories. Held until the process ends, so
/// that nobody starts one more.
pub fn all() {
    with(|all| {
        for server in all.servers.drain(..) {
            let root = Pid::from_raw(server as i32);
            // Stopped, it forks nobody whom we would miss. We have not reaped it: the pid is its own.
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

/// Cleans up on SIGINT, SIGTERM and SIGHUP, and ends.
pub fn on_signals() -> std::io::Result<()> {
    let (mut told, tell) = UnixStream::pair()?;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signal_hook::low_level::pipe::register(signal as i32, tell.try_clone()?)?;
    }
    std::thread::spawn(move || {
        // `tell` lives in the handlers; an error would mean that there is nothing to wait for.
        if told.read_exact(&mut [0]).is_ok() {
            all();
            std::process::exit(130);
        }
    });
    Ok(())
}

/// `program`, which gets SIGTERM should the bench die without a chance to clean up. Its way is through this
/// program: what is set before an exec stays.
pub fn tied(program: impl AsRef<std::ffi::OsStr>) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(BECOME).arg(std::process::id().to_string()).arg(program);
    Ok(command)
}

/// The other half of [`tied`]: does not return if this program was started by it.
pub fn become_other() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|first| first != BECOME) {
        return;
    }
    let bench = arguments.next().and_then(|pid| pid.to_str()?.parse::<i32>().ok());
    let Some(program) = arguments.next() else { return };
    let tied = set_pdeathsig(Signal::SIGTERM);
    if tied.is_err() || bench != Some(getppid().as_raw()) {
        // The bench is gone already.
        std::process::exit(1);
    }
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("bench: cannot start {}: {error}", program.display());
    std::process::exit(127);
}
