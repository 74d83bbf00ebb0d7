//! The thread that starts the processes of test clusters.
//!
//! The kernel sends the parent death signal when the *thread* that started the process exits. Each test has a thread of its
//! own, and a cluster in a `static` outlives the test that was first to use it. So all are started by one thread that lives
//! as long as the process.

use std::io;
use std::process::{Child, Command};
use std::sync::{OnceLock, mpsc};

use prefork_os::parent_death::set_parent_death_signal;
use prefork_os::signal::Signal;

use crate::error::{Error, Result};

/// The signal that the primary gets when the test process dies: stop now.
const PARENT_DEATH_SIGNAL: Signal = Signal::SIGQUIT;

/// The name of the thread; the kernel keeps its first 15 bytes.
pub(super) const SPAWNER_THREAD_NAME: &str = "test-cluster-spawner";

struct StartRequest {
    command: Command,
    reply: mpsc::Sender<io::Result<Child>>,
}

/// Starts `command`; its process gets [`PARENT_DEATH_SIGNAL`] when this process dies, by whatever cause.
pub(super) fn spawn_until_process_exit(mut command: Command) -> Result<Child> {
    static REQUESTS: OnceLock<Option<mpsc::Sender<StartRequest>>> = OnceLock::new();
    let failed = |e: io::Error| Error::system("start the process of the test cluster", e);
    set_parent_death_signal(&mut command, PARENT_DEATH_SIGNAL);
    let requests = REQUESTS.get_or_init(start_thread).as_ref();
    let requests = requests.ok_or_else(|| failed(io::Error::other("no thread can be started")))?;
    let (reply, started) = mpsc::channel();
    let sent = requests.send(StartRequest { command, reply }).is_ok();
    match started.recv() {
        Ok(started) if sent => started.map_err(failed),
        Ok(_) | Err(_) => Err(failed(io::Error::other("the thread that starts it is gone"))),
    }
}

fn start_thread() -> Option<mpsc::Sender<StartRequest>> {
    let (sender, requests) = mpsc::channel::<StartRequest>();
    let run = move || {
        for StartRequest { mut command, reply } in requests {
            // If this fails, the test that asked is gone; dropping the child leaves its process to the death signal.
            let _ = reply.send(command.spawn());
        }
    };
    std::thread::Builder::new().name(SPAWNER_THREAD_NAME.to_string()).spawn(run).ok()?;
    Some(sender)
}
