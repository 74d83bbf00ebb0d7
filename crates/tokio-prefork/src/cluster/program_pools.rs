//! Isolated pools in a program without a cluster: a primary of their own, forked before the program's first thread.
//!
//! ```text
//! program  -> primary   message channel    requests for jobs, as a worker sends them
//! program  -> primary   stop pipe          one byte: stop; the end of the pipe: the program has ended
//! primary  -> program   ready pipe         empty: all processes are ready; else the error; its end without `READY`: it died
//! ```

use std::collections::BTreeSet;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Cluster, start_checks};
use crate::access_log::AccessLog;
use crate::config::{Config, ControlSocket};
use crate::error::{Error, Result, exit};
use crate::isolated::IsolatedPool;
use crate::log_output::ProcessRole;
use crate::messages::{MessageThread, WorkerMessageEnd};
use crate::primary::{
    AccessLogSwitch, AdminSettings, AdminSockets, Application, ClusterEvent, PROGRAM_ID, Primary,
    PrimaryResources, create_scoreboard,
};
use crate::scoreboard::{Scoreboard, ScoreboardReader};
use crate::upgrade::BinaryLauncher;
use crate::worker_init::WorkerEntry;
use crate::{WorkerExit, WorkerExitReason};
use prefork_os::child::{ForkResult, PidFd, exit_without_cleanup, fork_process, reap_child};
use prefork_os::fd_passing::create_seqpacket_pair;
use prefork_os::poll::{WatchedFd, poll_fds};
use prefork_os::signal::{BlockedSignals, Signal};
use prefork_supervisor::{Generation, Slot, WorkerTag};

/// What the primary writes to the ready pipe when every process has booted. Any other text is an error.
const READY: &[u8] = b"READY";

/// How long after `graceful_timeout` the primary may take to end, before it is killed.
const PRIMARY_EXIT_GRACE: Duration = Duration::from_secs(5);

/// The program's side while its pools run: what its jobs are sent through, and where it reads their figures.
static CALLER: Mutex<Option<Arc<ProgramCaller>>> = Mutex::new(None);

/// A program with isolated pools, as the caller of their jobs.
#[derive(Debug)]
pub(crate) struct ProgramCaller {
    pub(crate) messages: Arc<WorkerMessageEnd>,
    /// The runtime that reads and writes the messages.
    pub(crate) runtime: tokio::runtime::Handle,
    /// Reads the figures of the pools.
    pub(crate) scoreboard: ScoreboardReader,
}

/// Returns the caller of this process, if it is a program whose isolated pools run.
pub(crate) fn program_caller() -> Option<Arc<ProgramCaller>> {
    lock_caller().clone()
}

fn lock_caller() -> MutexGuard<'static, Option<Arc<ProgramCaller>>> {
    // No code panics with the lock held.
    CALLER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Isolated pools of a program that is no cluster, such as a script, a batch job or a test: see [`IsolatedPools::start`].
///
/// ```no_run
/// use tokio_prefork::isolated::{IsolatedPool, IsolatedPoolConfig, IsolatedPools};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let config = IsolatedPoolConfig::new("squares", 1..=4);
///     let squares = IsolatedPool::new(config, || Ok(()), |(): &mut (), n: u64| Ok::<_, String>(n * n));
///     let pools = IsolatedPools::new().pool(&squares).start()?;
///     println!("{}", squares.job(12).wait()?);
///     pools.stop()?;
///     Ok(())
/// }
/// ```
#[must_use = "the pools do not run until they are started"]
pub struct IsolatedPools {
    cluster: Cluster,
    /// How many processes the pools start with.
    processes: u32,
}

impl Default for IsolatedPools {
    fn default() -> IsolatedPools {
        IsolatedPools::new()
    }
}

impl IsolatedPools {
    /// Creates a set without pools.
    pub fn new() -> IsolatedPools {
        let mut config = Config::default();
        config.bind = Vec::new();
        config.workers = 0.into();
        config.control = ControlSocket::Off;
        IsolatedPools { cluster: Cluster::new(config), processes: 0 }
    }

    /// Adds a pool.
    pub fn pool<I, O, E, P>(mut self, pool: &IsolatedPool<I, O, E, P>) -> IsolatedPools {
        self.processes += pool.declaration().config.processes.min;
        self.cluster = self.cluster.isolated_pool(pool);
        self
    }

    /// Sets how long running jobs may take to finish when the pools are stopped. Default: 30 s.
    pub fn graceful_timeout(mut self, limit: Duration) -> IsolatedPools {
        self.cluster.config.graceful_timeout = limit;
        self
    }

    /// Forks the primary of the pools, and waits until their processes are ready.
    ///
    /// Call it at the start of `main`, before the first thread and outside of any async runtime: a process with threads cannot be
    /// forked safely. What the functions of the pools capture is what it is now; later changes are not seen by their processes.
    /// Afterwards the program may do anything, start runtimes among it. The processes also hold the descriptors that are open now.
    ///
    /// The primary has one thread and a process group of its own, so Ctrl-C at a terminal ends the program, not its jobs. It ends
    /// with the program, however that ends. It logs warnings and errors. A program has one set of pools at a time.
    ///
    /// # Errors
    /// The process has several threads, is a worker, or has running pools; a pool has a bad configuration; the system refuses a
    /// process; or the `init` function of a pool fails, with its error.
    pub fn start(self) -> Result<RunningIsolatedPools> {
        check_can_start()?;
        self.cluster.kinds.check_configs()?;
        let failed = |e| Error::system("create the pipes of isolated pools", e);
        let (ours, theirs) = create_seqpacket_pair().map_err(failed)?;
        let (ready, ready_writer) = io::pipe().map_err(failed)?;
        let (stop_reader, stop) = io::pipe().map_err(failed)?;
        let grace = self.cluster.config.graceful_timeout;
        let scoreboard = create_scoreboard(true)?;
        let blocked = BlockedSignals::block_all().map_err(|e| Error::system("block signals", e))?;
        match fork_process().map_err(|e| Error::application("cannot start isolated pools", e))? {
            ForkResult::Child => {
                ProcessRole::PoolsPrimary.set();
                drop((ours, ready, stop));
                let (messages, ready, stop) = (theirs, ready_writer, stop_reader);
                let ends = PrimaryEnds { messages, ready, stop, scoreboard };
                let run = AssertUnwindSafe(|| self.run_primary(ends));
                // A panic must not unwind into the frames of the program.
                exit_without_cleanup(catch_unwind(run).unwrap_or(exit::FAILURE))
            }
            ForkResult::Parent(pid) => {
                drop((blocked, theirs, ready_writer, stop_reader));
                let process = PidFd::open(pid).map_err(|e| Error::system("open a pidfd", e))?;
                let (owner, stop) = (std::process::id(), Some(stop));
                let primary = ProgramPrimary { pid, process, owner, stop, grace };
                wait_until_ready(ready)?;
                let failed = |e| Error::system("unmap the pages of the primary", e);
                let scoreboard = scoreboard.into_reader().map_err(failed)?;
                let thread = MessageThread::start("isolated-jobs", program_tag(), vec![ours]);
                let thread = thread.map_err(|e| Error::system("start the message thread", e))?;
                let messages = thread.ends.first().map(Arc::clone);
                let messages =
                    messages.ok_or_else(|| Error::internal("a message thread without end"))?;
                let runtime = thread.runtime.clone();
                *lock_caller() = Some(Arc::new(ProgramCaller { messages, runtime, scoreboard }));
                Ok(RunningIsolatedPools { primary, _messages: thread })
            }
        }
    }

    /// Runs the primary in the forked child. Returns its exit status.
    fn run_primary(mut self, ends: PrimaryEnds) -> u8 {
        let mut ready = ends.ready.try_clone();
        let outcome = self.create_primary(ends).and_then(Primary::run);
        let Err(error) = outcome else { return exit::OK };
        if let Ok(ready) = &mut ready {
            // If this fails, the program has all its processes already, or is gone.
            let _ = ready.write_all(error.to_string().as_bytes());
        }
        log::error!("the primary of the isolated pools ended: {error}");
        error.exit_status()
    }

    fn create_primary(&mut self, ends: PrimaryEnds) -> Result<Primary> {
        let failed =
            |what: &str, e| Error::system(format!("{what} in the primary of isolated pools"), e);
        prefork_os::process_group::become_group_leader()
            .map_err(|e| failed("create a process group", e))?;
        prefork_os::signal::reset_handlers_and_unblock().map_err(|e| failed("reset signals", e))?;
        prefork_os::signal::ignore_sigpipe_and_sigxfsz()
            .map_err(|e| failed("ignore SIGPIPE", e))?;
        let cluster = std::mem::replace(&mut self.cluster, Cluster::new(Config::default()));
        let cluster = report_ready(cluster, self.processes, ends.ready);
        let mut cluster = cluster.on_readable(ends.stop, |primary, stop| {
            // The end of the pipe: the program has ended, so nobody waits for its jobs.
            if stop.read(&mut [0]).is_ok_and(|length| length == 0) {
                primary.abandon_jobs_of_program();
            }
            primary.cancel_current();
            primary.stop();
        });
        let kinds = cluster.kinds.check_configs()?;
        cluster.messages.add_program(program_tag(), ends.messages);
        let process_settings = cluster.process_settings()?;
        let web = crate::worker::app_without_connections();
        let worker_entry = log_warnings_only(cluster.kinds.into_worker_entry(web));
        let application = Application {
            worker_entry,
            read_config: cluster.read_config,
            hooks: cluster.hooks,
            kinds,
            messages: cluster.messages,
            isolated_pools: cluster.isolated_pools,
            scoreboard: Some(ends.scoreboard),
            on_output: None,
            process_settings,
            slot_environments: cluster.slot_environments,
        };
        let resources = PrimaryResources {
            listeners: crate::listener::ListenerSet::default(),
            pid_file: None,
            service_manager: None,
            admin_sockets: AdminSockets::default(),
            admin_settings: AdminSettings::default(),
            access_log: AccessLogSwitch::open(&AccessLog::Off)?,
        };
        Primary::new(cluster.config, application, resources, BinaryLauncher::disabled(), None)
    }
}

/// The primary's ends of what connects it with the program.
struct PrimaryEnds {
    messages: OwnedFd,
    ready: PipeWriter,
    stop: PipeReader,
    /// Created by the program, which reads the figures of the pools there.
    scoreboard: Scoreboard,
}

fn program_tag() -> WorkerTag {
    WorkerTag {
        id: PROGRAM_ID,
        slot: Slot(u32::MAX),
        generation: Generation(0),
        pid: Some(std::process::id()),
        kind: "program",
    }
}

/// Keeps the start and the stop of every process out of the program's log, but not what its jobs log.
fn log_warnings_only(worker_entry: WorkerEntry) -> WorkerEntry {
    let level = log::max_level();
    log::set_max_level(level.min(log::LevelFilter::Warn));
    Box::new(move |init| {
        log::set_max_level(level);
        worker_entry(init)
    })
}

/// Checks that this process may fork a primary for its pools.
fn check_can_start() -> Result<()> {
    let refused = |why: &str| Err(Error::refused(format!("cannot start isolated pools: {why}")));
    if crate::is_worker() {
        return refused(
            "this process is a worker of a cluster; declare them with Cluster::isolated_pool",
        );
    }
    if lock_caller().is_some() {
        return refused("those that were started before still run; add all pools to one set");
    }
    start_checks::check_single_thread("cannot start isolated pools")
}

/// Writes to the ready pipe when as many processes have booted as the pools start with. Stops the primary if one cannot boot.
fn report_ready(cluster: Cluster, processes: u32, mut ready: PipeWriter) -> Cluster {
    if processes == 0 {
        // If this fails, the program is gone, which the stop pipe tells as well.
        let _ = ready.write_all(READY);
        return cluster;
    }
    let (mut booted, mut waiting) = (BTreeSet::new(), Some(ready));
    cluster.on_event(move |primary, event| match event {
        ClusterEvent::Listening { worker, .. } => {
            booted.insert(worker.id);
            if booted.len() >= processes as usize
                && let Some(mut ready) = waiting.take()
            {
                let _ = ready.write_all(READY);
            }
        }
        // One that was ready is replaced. Another would be tried again and again, while the program waits.
        ClusterEvent::Exit(exit) if !booted.remove(&exit.worker.id) && waiting.is_some() => {
            waiting = None;
            primary.stop_with(boot_error(exit));
        }
        _ => {}
    })
}

fn boot_error(exit: &WorkerExit) -> Error {
    Error::workers_cannot_boot(match &exit.reason {
        WorkerExitReason::BootFailed(reason) => reason.clone(),
        reason => format!(
            "a process of the pool {} ended before it was ready: {reason:?}, exit status {:?}, signal {:?}",
            exit.worker.kind, exit.code, exit.signal
        ),
    })
}

/// Waits until the primary reports that the processes are ready.
///
/// # Errors
/// The primary reports an error, or has died.
fn wait_until_ready(mut ready: PipeReader) -> Result<()> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while text != READY {
        match ready.read(&mut buffer) {
            Ok(0) => {
                let why = String::from_utf8_lossy(&text).into_owned();
                let why = if why.is_empty() { "their primary has died".into() } else { why };
                return Err(Error::application("cannot start isolated pools", why));
            }
            Ok(length) => text.extend_from_slice(&buffer[..length]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::system("wait for the isolated pools", e)),
        }
    }
    Ok(())
}

/// The isolated pools of a program, which run until this is dropped or [stopped](RunningIsolatedPools::stop).
#[derive(Debug)]
#[must_use = "the pools run until this is dropped"]
pub struct RunningIsolatedPools {
    primary: ProgramPrimary,
    /// Delivers results until the primary has ended.
    _messages: MessageThread,
}

impl RunningIsolatedPools {
    /// Returns the pid of the primary of the pools.
    pub fn primary_pid(&self) -> u32 {
        self.primary.pid
    }

    /// Rejects queued and new jobs, waits for running ones for up to the graceful timeout, and until all processes have ended.
    ///
    /// Blocks the calling thread; other threads get the results of running jobs meanwhile. Dropping does the same, without error.
    ///
    /// # Errors
    /// The primary did not end in time and was killed, or it had ended with an error before.
    pub fn stop(mut self) -> Result<()> {
        self.primary.stop()
    }
}

impl Drop for RunningIsolatedPools {
    fn drop(&mut self) {
        if let Err(e) = self.primary.stop() {
            log::error!("{e}");
        }
    }
}

/// The primary of a program's pools, as the program sees it.
#[derive(Debug)]
struct ProgramPrimary {
    pid: u32,
    process: PidFd,
    /// The process that has started it. In a fork of the program, this is a copy that must not stop it.
    owner: u32,
    /// `None` once it was told to stop.
    stop: Option<PipeWriter>,
    grace: Duration,
}

impl ProgramPrimary {
    /// Tells the primary to stop, and reaps it.
    fn stop(&mut self) -> Result<()> {
        let Some(mut stop) = self.stop.take().filter(|_| self.owner == std::process::id()) else {
            return Ok(());
        };
        // If this fails, it has ended.
        let _ = stop.write_all(b"s");
        let failed = |e| {
            Error::system(
                format!("wait for the primary of the isolated pools, pid {}", self.pid),
                e,
            )
        };
        let has_ended = self.wait_exited().map_err(failed)?;
        *lock_caller() = None;
        // The program may have reaped it: it is no child any more then.
        match reap_child(self.pid) {
            _ if !has_ended => Err(failed(io::ErrorKind::TimedOut.into())),
            Ok(Some(status)) if !status.success() => Err(Error::application(
                "stop isolated pools",
                format!("their primary ended with {status}; see the log"),
            )),
            _ => Ok(()),
        }
    }

    /// Waits until the primary has exited, and kills it if it takes too long. Returns whether it exited in time.
    fn wait_exited(&self) -> io::Result<bool> {
        let exited = |limit| poll_fds(&[WatchedFd::readable(self.process.as_fd())], Some(limit));
        if exited(self.grace.saturating_add(PRIMARY_EXIT_GRACE))?[0] {
            return Ok(true);
        }
        self.process.send_signal(Signal::SIGKILL)?;
        exited(PRIMARY_EXIT_GRACE).map(|_| false)
    }
}
