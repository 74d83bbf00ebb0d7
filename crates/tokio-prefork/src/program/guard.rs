//! The guard of a foreign program: the worker process that starts the program, watches it, and stops it.
//!
//! It stands for the program in everything that the primary knows of workers. It is forked and never executes anything itself,
//! so it has the channel to the primary and notices the primary's death, which the program would not. It is a subreaper: all
//! descendants of the program stay below it, and none survives it.

mod boot;
mod liveness;
mod orphan_output;
mod stop;

use std::cell::{Cell, OnceCell, RefCell};
use std::os::fd::AsFd;
use std::process::ExitStatus;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

use super::Program;
use super::http_probe::ProbeResult;
use super::node_shim::NodeShim;
use super::notify_socket::NotifySocket;
use super::observe::ProgramObserver;
use super::process::ProgramProcess;
use super::start::{StartedProgram, start_program};
use super::watchdog::Watchdog;
use crate::channel::WorkerReport;
use crate::error::{Error, ErrorKind, Result};
use crate::listener::Listener;
use crate::log_output::ProcessRole;
use crate::worker::{
    self, AcceptSources, LocalWorkerState, heartbeat, primary_channel, shutdown, worker_shared,
};
use crate::worker_init::WorkerInit;
use boot::BootOutcome;
use liveness::watchdog_interval;
use prefork_os::child::{PidFd, exit_like};
use prefork_os::signal::{Signal, register_signal_flag};
use prefork_supervisor::WorkerTag;

/// Runs the guard of a program from its `WorkerInit` to its exit status. If a signal has ended the program, it ends this process,
/// too.
pub(crate) fn run_guard(init: WorkerInit) -> u8 {
    let tag = init.tag;
    let run = || -> Result<GuardExit> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default())
            .map_err(|e| Error::system("build the runtime of the guard", e))?;
        let outcome = runtime.block_on(guard_program(init));
        runtime.shutdown_background();
        outcome
    };
    match run() {
        Ok(GuardExit::Status(status)) => status,
        Ok(GuardExit::Like(status)) => exit_like(status),
        Err(e) => {
            log::error!("{tag} {e}");
            e.exit_status()
        }
    }
}

/// How the guard exits.
enum GuardExit {
    Status(u8),
    /// As its program has.
    Like(ExitStatus),
}

/// The state that the tasks of a guard share.
struct Guard {
    state: Rc<LocalWorkerState>,
    program: Program,
    listeners: Vec<Listener>,
    observer: RefCell<ProgramObserver>,
    notify_socket: NotifySocket,
    watchdog: RefCell<Watchdog>,
    /// The running program, from its start to its exit.
    process: RefCell<Option<ProgramProcess>>,
    /// The script that a Node program has been started with.
    shim: OnceCell<NodeShim>,
    is_ready: Cell<bool>,
    /// Whether the program has said `READY=1`.
    has_said_ready: Cell<bool>,
    said_ready: Notify,
    /// How many listening sockets the program had closed when it was ready: it does not need them.
    closed_when_ready: Cell<usize>,
    /// How many measurements in a row have shown more.
    closed_looks: Cell<u32>,
    /// What the last probe before the program was ready has found.
    last_probe: Cell<Option<ProbeResult>>,
}

async fn guard_program(init: WorkerInit) -> Result<GuardExit> {
    let terminate = Arc::clone(&init.terminate);
    let abort = register_signal_flag(Signal::SIGABRT)
        .map_err(|e| Error::system("catch SIGABRT in the guard", e))?;
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|e| Error::system("become the reaper of the program's descendants", e))?;
    let program = init.config.program().cloned();
    let program = program.ok_or_else(|| Error::internal("a guard without a program"))?;
    let (state, AcceptSources { listeners, .. }, loop_jobs) = worker::create_state(init)?;
    worker_shared::set_current(&state);
    tokio::task::spawn_local(worker_shared::run_loop_jobs(Rc::clone(&state), loop_jobs));
    // If this fails, the task that reads the channel notices that the primary is gone.
    let _ = state.channel.send(&WorkerReport::Online);
    let followed = primary_channel::follow_primary(Rc::clone(&state));
    tokio::task::spawn_local(async {
        followed.await;
        orphan_output::discard_output();
    });
    tokio::task::spawn_local(worker_shared::follow_drain_requests(Rc::clone(&state)));
    let notify_socket = NotifySocket::bind()
        .map_err(|e| Error::system("bind the socket for READY=1 of the program", e))?;
    let watchdog = RefCell::new(Watchdog::new(watchdog_interval(&state.config), Instant::now()));
    let observer = ProgramObserver::new(listeners.iter().map(AsFd::as_fd))
        .map_err(|e| Error::system("look at the sockets of the program", e))?;
    let guard = Rc::new(Guard {
        state,
        program,
        listeners,
        observer: RefCell::new(observer),
        notify_socket,
        watchdog,
        process: RefCell::default(),
        shim: OnceCell::new(),
        is_ready: Cell::new(false),
        has_said_ready: Cell::new(false),
        said_ready: Notify::new(),
        closed_when_ready: Cell::new(0),
        closed_looks: Cell::new(0),
        last_probe: Cell::new(None),
    });
    // Reads the socket until the guard exits. Otherwise a program that writes to it would block.
    tokio::task::spawn_local(Rc::clone(&guard).follow_notifications());
    let timer =
        heartbeat::create_timer().map_err(|e| Error::system("create the heartbeat timer", e))?;
    tokio::task::spawn_local(Rc::clone(&guard).run_heartbeat(timer, terminate, abort));
    let outcome = guard.run().await;
    shutdown::finish_messages(&guard.state, true).await;
    outcome
}

impl Guard {
    /// Starts the program, waits until it is ready, and then until it exits or has to stop.
    async fn run(self: &Rc<Self>) -> Result<GuardExit> {
        if !self.program.is_built() {
            self.state.drain.wait_started().await;
            return Ok(GuardExit::Status(crate::error::exit::OK));
        }
        if let Err(e) = self.start() {
            return Ok(self.report_boot_failure(&e.to_string()));
        }
        let exited = match self.wait_until_ready().await {
            BootOutcome::Ready(by) => {
                if let Err(error) = self.report_ready(by) {
                    self.kill_rest().await;
                    return Err(error);
                }
                tokio::select! {
                    status = self.wait_for_exit() => Some(status),
                    () = self.keep_probing() => None,
                    () = self.state.drain.wait_started() => None,
                }
            }
            BootOutcome::Exited(status) => {
                let why = self.describe_boot_exit(status);
                self.kill_rest().await;
                self.report_failed_attempt(&why);
                return Ok(GuardExit::Like(status));
            }
            BootOutcome::TimedOut(error) => {
                self.kill_rest().await;
                self.report_failed_attempt(&error.to_string());
                return Ok(GuardExit::Status(ErrorKind::WorkersCannotBoot.exit_status()));
            }
            BootOutcome::Failed(error) => {
                self.kill_rest().await;
                return Ok(self.report_boot_failure(&error.to_string()));
            }
            BootOutcome::Drained => None,
        };
        match exited {
            Some(status) => {
                self.kill_rest().await;
                Ok(GuardExit::Like(status))
            }
            None => self.stop().await,
        }
    }

    /// Returns the worker's tag with the pid of the program, as the primary shows it.
    fn tag(&self) -> WorkerTag {
        let program = self.process.borrow().as_ref().map(ProgramProcess::pid);
        WorkerTag { pid: program.or(self.state.tag.pid), ..self.state.tag }
    }

    /// Starts the program, and tells the primary its pid.
    fn start(&self) -> Result<()> {
        let tag = self.state.tag;
        let backlog = self.state.config.backlog;
        let variables = self.service_variables();
        let StartedProgram { pid, shim } =
            start_program(&self.program, tag, &self.listeners, &variables, backlog)?;
        if let Some(shim) = shim {
            let _ = self.shim.set(shim);
        }
        let process = PidFd::open(pid).and_then(|pidfd| ProgramProcess::new(pid, pidfd));
        let process = process
            .map_err(|e| Error::system(format!("watch {} (pid {pid})", self.program.name()), e))?;
        self.process.replace(Some(process));
        // Lines of the log have the pid that the primary shows.
        ProcessRole::Worker(self.tag()).set();
        self.state.worker_page.set_program_pid(pid);
        // If this fails, the primary is gone, which the task that reads the channel notices.
        let _ = self.state.channel.send(&WorkerReport::ProgramStarted { pid });
        log::debug!("{tag} started {}; program_pid={pid}", self.program.command_line());
        Ok(())
    }

    /// Returns the variables by which the program reports to this guard.
    fn service_variables(&self) -> Vec<(&'static str, String)> {
        let interval = watchdog_interval(&self.state.config);
        let watchdog = interval.map(|time| ("WATCHDOG_USEC", time.as_micros().to_string()));
        let notify_socket = self.notify_socket.address().to_string();
        [("NOTIFY_SOCKET", notify_socket)].into_iter().chain(watchdog).collect()
    }

    /// Waits until the program has exited. Resolves at once, with the same status, from then on.
    async fn wait_for_exit(&self) -> ExitStatus {
        let Some(process) = self.process.borrow().clone() else {
            return std::future::pending().await;
        };
        process.wait_for_exit().await
    }
}
