//! The guard of a foreign program: the worker process that starts the program, watches it, and stops it.
//!
//! It stands for the program in everything that the primary knows of workers. It is forked and never executes anything itself,
//! so it has the channel to the primary and notices the primary's death, which the program would not. It is a subreaper: all
//! descendants of the program stay below it, and none survives it.

use std::cell::{Cell, OnceCell, RefCell};
use std::os::fd::AsFd;
use std::process::ExitStatus;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Program;
use super::http_probe::HttpProbe;
use super::node_shim::NodeShim;
use super::notify_socket::{Notification, NotifySocket};
use super::observe::{ListenerUse, ProgramObserver};
use super::process::ProgramProcess;
use super::readiness::Readiness;
use super::start::{StartedProgram, start_program};
use super::watchdog::Watchdog;
use crate::channel::WorkerReport;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, exit};
use crate::listener::Listener;
use crate::status::WorkerState;
use crate::worker::{
    self, AcceptSources, LocalWorkerState, heartbeat, primary_channel, shutdown, worker_shared,
};
use crate::worker_init::WorkerInit;
use prefork_os::child::{PidFd, exit_like};
use prefork_os::process::process_state;
use prefork_os::signal::{Signal, register_signal_flag};
use prefork_supervisor::WorkerTag;

/// How often to look whether the program is ready.
const READY_CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// After how many looks in a row without any process that has an inherited socket open it counts as closed. One look may miss a
/// process that loses its parent in that moment.
const CLOSED_LOOKS: u32 = 25;
/// As [`CLOSED_LOOKS`], as long as the program listens on no other address either: it may say more about it later.
const CLOSED_LOOKS_BEFORE_LISTENING: u32 = 150;
/// After how many looks a program that listens elsewhere is named in the log. It may use its sockets later: an address for metrics
/// or a debugger often comes first.
const LOOKS_BEFORE_HINT: u32 = 100;
/// The time between two probes of a program that is not ready yet.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// How long a program that is not ready may take to answer a probe.
const MAX_PROBE_TIME: Duration = Duration::from_secs(5);
/// The state of a process that a signal has stopped. Under a debugger it is another one.
const STOPPED: char = 'T';
/// How long before the boot timeout the guard itself gives up, to report why.
const BOOT_REPORT_TIME: Duration = Duration::from_millis(300);

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
}

/// Why the guard stops waiting until the program is ready.
enum BootOutcome {
    /// What decided.
    Ready(&'static str),
    Exited(ExitStatus),
    Failed(Error),
    /// The worker is told to drain before it is ready.
    Drained,
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
    tokio::task::spawn_local(primary_channel::follow_primary(Rc::clone(&state)));
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
    });
    let timer =
        heartbeat::create_timer().map_err(|e| Error::system("create the heartbeat timer", e))?;
    tokio::task::spawn_local(Rc::clone(&guard).run_heartbeat(timer, terminate, abort));
    let outcome = guard.run().await;
    shutdown::finish_messages(&guard.state, true).await;
    outcome
}

/// Returns how long a sign of life of the program counts, which is `WATCHDOG_USEC`. Programs give one in half the time.
///
/// After it the guard's heartbeat stops, and the time until the stall is reported begins.
fn watchdog_interval(config: &Config) -> Option<Duration> {
    config.stall_warn.map(|warn| warn * 2).or(config.stall_timeout)
}

impl Guard {
    /// Starts the program, waits until it is ready, and then until it exits or has to stop.
    async fn run(self: &Rc<Self>) -> Result<GuardExit> {
        if let Err(e) = self.start() {
            return Ok(self.report_boot_failure(&e.to_string()));
        }
        let exited = match self.wait_until_ready().await {
            BootOutcome::Ready(by) => {
                self.report_ready(by)?;
                tokio::select! {
                    status = self.wait_for_exit() => Some(status),
                    () = self.follow_notifications() => None,
                    () = self.keep_probing() => None,
                    () = self.state.drain.wait_started() => None,
                }
            }
            BootOutcome::Exited(status) => {
                let why = self.describe_boot_exit(status);
                self.kill_rest().await;
                return Ok(self.report_boot_failure(&why));
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

    async fn wait_until_ready(&self) -> BootOutcome {
        let boot_timeout = self.state.config.boot_timeout;
        let give_up = boot_timeout.saturating_sub(BOOT_REPORT_TIME).max(boot_timeout / 2);
        tokio::select! {
            biased;
            () = self.state.drain.wait_started() => BootOutcome::Drained,
            by = self.decide_readiness() => by.map_or_else(BootOutcome::Failed, BootOutcome::Ready),
            status = self.wait_for_exit() => BootOutcome::Exited(status),
            () = tokio::time::sleep(give_up) => BootOutcome::Failed(self.not_ready_error(give_up)),
        }
    }

    /// Waits until what decides says that the program is ready, and returns what that was.
    async fn decide_readiness(&self) -> Result<&'static str> {
        match self.program.readiness() {
            Readiness::After(time) => {
                tokio::time::sleep(*time).await;
                Ok("ready-after")
            }
            Readiness::Http(path) => {
                let probe = self.create_probe(path)?;
                while !probe.ask(MAX_PROBE_TIME).await.is_ready() {
                    tokio::time::sleep(PROBE_INTERVAL).await;
                }
                self.watchdog.borrow_mut().record_sign(Instant::now());
                Ok("ready-http")
            }
            readiness => {
                let by_notification = readiness.accepts_notification();
                let by_listening = readiness.accepts_listening();
                tokio::select! {
                    () = self.wait_for_notification(), if by_notification => Ok("READY=1"),
                    () = self.wait_for_node_ready(), if by_notification => Ok("process.send('ready')"),
                    seen = self.wait_until_listening(), if by_listening => seen.map(|()| "listening"),
                }
            }
        }
    }

    async fn wait_for_notification(&self) {
        loop {
            let said = self.notify_socket.receive().await;
            self.record_notifications(&said);
            if said.contains(&Notification::Ready) {
                return;
            }
        }
    }

    /// Waits until a Node program says that it is ready as it would say it to PM2.
    async fn wait_for_node_ready(&self) {
        match self.shim.get() {
            Some(shim) => shim.wait_for_ready().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until the kernel shows that the program waits for connections on each of its sockets.
    ///
    /// # Errors
    /// No process of the program has one of them open any more, so it never will.
    async fn wait_until_listening(&self) -> Result<()> {
        let (mut looks, mut closed_looks) = (0u32, 0u32);
        loop {
            tokio::time::sleep(READY_CHECK_INTERVAL).await;
            let uses = self.observer.borrow().listener_uses();
            if uses.iter().all(|one| matches!(one, ListenerUse::Waiting { .. })) {
                return Ok(());
            }
            looks = looks.saturating_add(1);
            closed_looks = if uses.contains(&ListenerUse::Closed) { closed_looks + 1 } else { 0 };
            if looks != LOOKS_BEFORE_HINT && closed_looks < CLOSED_LOOKS {
                continue;
            }
            let Some(unused) = self.observer.borrow().explain_unused_listener() else { continue };
            let listens_elsewhere = !unused.listens_on.is_empty();
            // Without any process the exit of the program decides.
            if unused.listener_use == ListenerUse::Closed
                && closed_looks >= CLOSED_LOOKS
                && (listens_elsewhere || closed_looks >= CLOSED_LOOKS_BEFORE_LISTENING)
            {
                return Err(Error::application("the program cannot be ready", unused.to_string()));
            }
            if listens_elsewhere && looks == LOOKS_BEFORE_HINT {
                log::warn!("{} is not ready: {unused}", self.tag());
            }
        }
    }

    fn report_ready(&self, by: &str) -> Result<()> {
        let state = &self.state;
        self.is_ready.set(true);
        state.worker_page.set_state(WorkerState::Serving);
        state.worker_page.set_accepting(true);
        state.shared.messages.finish_boot();
        log::info!("{} {} is ready; decided_by={by}", self.tag(), self.program.name());
        state.channel.send(&WorkerReport::Ready).map_err(|e| {
            Error::system(format!("report to the primary that {} is ready", state.tag), e)
        })
    }

    /// Reads what the program says, for ever.
    async fn follow_notifications(&self) {
        loop {
            let said = self.notify_socket.receive().await;
            self.record_notifications(&said);
        }
    }

    fn record_notifications(&self, said: &[Notification]) {
        for notification in said {
            let now = Instant::now();
            match notification {
                Notification::Watchdog => self.watchdog.borrow_mut().record_sign(now),
                Notification::WatchdogTrigger => self.watchdog.borrow_mut().trigger(now),
                Notification::Status(text) => {
                    let text = crate::text::printable(text);
                    log::debug!("{} {} says: {text}", self.tag(), self.program.name());
                }
                Notification::Ready | Notification::Stopping => {}
            }
        }
    }

    /// Probes a program with `ready-http` for ever: an answer of any status is a sign of life.
    async fn keep_probing(&self) {
        let Readiness::Http(path) = self.program.readiness() else {
            return std::future::pending().await;
        };
        let Ok(probe) = self.create_probe(path) else { return std::future::pending().await };
        let config = &self.state.config;
        let Some(interval) = watchdog_interval(config) else { return std::future::pending().await };
        // An overloaded program answers late. That is no reason to kill it.
        let answer_timeout = config.stall_timeout.unwrap_or(MAX_PROBE_TIME).max(MAX_PROBE_TIME);
        loop {
            tokio::time::sleep((interval / 2).max(PROBE_INTERVAL)).await;
            if probe.ask(answer_timeout).await.is_answered() {
                self.watchdog.borrow_mut().record_sign(Instant::now());
            }
        }
    }

    fn create_probe(&self, path: &str) -> Result<HttpProbe> {
        let own = self.listeners.iter().find(|one| !one.is_shared_by_all_workers());
        let probe = own.and_then(|one| HttpProbe::new(one.tcp()?, one.slot.0, path));
        probe.ok_or_else(|| {
            Error::config(format!(
                "ready-http {path} cannot reach one worker: that needs a TCP address with IPv4 and dispatch = reuseport or ip-hash; \
                 give one, or ready = notify"
            ))
        })
    }

    /// Waits until the program has exited. Resolves at once, with the same status, from then on.
    async fn wait_for_exit(&self) -> ExitStatus {
        let Some(process) = self.process.borrow().clone() else {
            return std::future::pending().await;
        };
        process.wait_for_exit().await
    }

    /// Asks the program to stop, and kills what is left at the drain deadline.
    async fn stop(&self) -> Result<GuardExit> {
        let process = self.process.borrow().clone();
        let Some(process) = process else { return Ok(GuardExit::Status(exit::OK)) };
        if let Some(shim) = self.shim.get() {
            shim.begin_drain();
        }
        if !self.shim.get().is_some_and(NodeShim::ask_to_stop) {
            process.signal(self.program.stop_signal_number());
        }
        // A stopped process handles its signal only when it continues.
        process.signal(Signal::SIGCONT);
        tokio::select! {
            status = self.wait_for_exit() => {
                self.stop_rest().await;
                Ok(match status.code() {
                    Some(code) if code != 0 => GuardExit::Like(status),
                    // Also if the stop signal has ended it, as it does without a handler.
                    Some(_) | None => GuardExit::Status(exit::OK),
                })
            }
            () = self.state.drain.wait_for_deadline() => {
                log::warn!(
                    "{} {} has not stopped within the graceful timeout, killing it; program_pid={}",
                    self.state.tag, self.program.name(), process.pid()
                );
                self.kill_rest().await;
                Ok(GuardExit::Status(exit::OK))
            }
        }
    }

    /// Asks the descendants that the program has left to stop, waits for them, and kills them at the drain deadline.
    async fn stop_rest(&self) {
        let signal = self.program.stop_signal_number();
        super::process::signal_children(signal);
        super::process::signal_children(Signal::SIGCONT);
        tokio::select! {
            () = super::process::wait_for_children() => {}
            () = self.state.drain.wait_for_deadline() => self.kill_rest().await,
        }
    }

    /// Kills the program and all its descendants.
    async fn kill_rest(&self) {
        // Reaped below, so nothing may be sent to its pid any more.
        self.process.take();
        if !super::process::kill_all_children().await {
            log::error!(
                "{} some processes of {} do not die: they wait for a device; the primary kills their group",
                self.state.tag,
                self.program.name()
            );
        }
    }

    /// Reports a failed boot to the primary, and returns the exit status.
    fn report_boot_failure(&self, reason: &str) -> GuardExit {
        // If sending fails, the primary learns it from the exit status.
        let _ = self.state.channel.send(&WorkerReport::BootFailed(reason.to_string()));
        GuardExit::Status(ErrorKind::WorkersCannotBoot.exit_status())
    }

    /// Describes the exit of a program that was not ready.
    fn describe_boot_exit(&self, status: ExitStatus) -> String {
        let name = self.program.name();
        let left = prefork_os::process::child_pids(std::process::id());
        match (status.code(), left.first()) {
            (Some(0), Some(pid)) => format!(
                "{name} exited with status 0 before it was ready, and left pid {pid} running: it seems to go to the background; make it \
                 stay in the foreground (its option is often --no-daemon, --foreground or 'daemon off')"
            ),
            (Some(code), _) => format!(
                "{name} exited with status {code} before it was ready; if it says that the address is in use, it binds the port itself: \
                 make it use the socket that it inherits as descriptor 3 ({{fd}} in its arguments)"
            ),
            (None, _) => format!("{name} was ended before it was ready: {status}"),
        }
    }

    fn not_ready_error(&self, waited: Duration) -> Error {
        let name = self.program.name();
        let waited = crate::text::HumanDuration(waited);
        let wanted = match self.program.readiness() {
            Readiness::Notify => {
                "it has not sent READY=1 to NOTIFY_SOCKET (ready = notify)".to_string()
            }
            Readiness::Http(path) => {
                format!("GET {path} is not answered with a status from 200 to 399 (ready-http)")
            }
            _ => match self.observer.borrow().explain_unused_listener() {
                Some(unused) => unused.to_string(),
                None => "READY=1 or a wait for connections is missing".to_string(),
            },
        };
        Error::application(format!("{name} is not ready after {waited}"), wanted)
    }

    /// Returns whether the program gives no sign of life, or a signal has stopped it.
    fn is_frozen(&self) -> bool {
        let is_stopped = |process: &ProgramProcess| process_state(process.pid()) == Some(STOPPED);
        self.watchdog.borrow().is_frozen(Instant::now())
            || self.process.borrow().as_ref().is_some_and(is_stopped)
    }

    /// Publishes heartbeats as long as the program is not frozen, reaps orphans, and passes signals on.
    async fn run_heartbeat(
        self: Rc<Self>,
        mut timer: prefork_os::interval_timer::IntervalTimer,
        terminate: Arc<AtomicBool>,
        abort: Arc<AtomicBool>,
    ) {
        let state = &self.state;
        loop {
            let late = timer.tick().await;
            state.worker_page.record_loop_lag(late);
            if !self.is_frozen() {
                state.worker_page.record_heartbeat(LocalWorkerState::monotonic_ms());
            }
            super::process::reap_orphans(self.process.borrow().as_ref().map(ProgramProcess::pid));
            if terminate.swap(false, Ordering::Relaxed) {
                log::info!("{} received SIGTERM directly, and drains", state.tag);
                state.begin_own_drain(&WorkerReport::Retiring);
            }
            // The supervisor aborts a stalled worker so that its core dump shows where it hangs.
            if abort.swap(false, Ordering::Relaxed)
                && let Some(process) = &*self.process.borrow()
            {
                process.signal(Signal::SIGABRT);
            }
        }
    }
}
