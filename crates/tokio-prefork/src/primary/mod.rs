//! The hands: one thread, blocking, no async runtime, ever. It waits, asks the supervisor, and obeys.

mod cluster_event;
mod control_requests;
mod event_format;
pub(crate) mod event_log;
mod fork_worker;
mod handle_mail;
mod handover_relay;
mod hooks;
mod isolated_jobs;
mod kernel_selector;
mod log_reopen;
mod mail_lines;
mod messages;
mod observe;
mod oom_kills;
mod pending_requests;
mod perform;
mod primary_handle;
mod reload_config;
mod round_robin;
mod service_manager;
mod slot_sockets;
mod upgrade;
mod upgrade_check;
mod wait_events;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use crate::channel::PrimaryEnd;
use crate::config::{Config, ControlSocket, Workers};
use crate::control::Server;
use crate::dispatch::LoadPageLease;
use crate::dispatch::round_robin::Queue;
use crate::error::{Error, Result};
use crate::listener::ListenerSet;
use crate::pid_file::PidFile;
use crate::scoreboard::{RowIndex, Scoreboard};
use crate::systemd::Manager;
use crate::upgrade::{Launcher, Manifest, Proof};
use crate::worker_init::WorkerEntry;
use prefork_os::signal::SignalPipe;
use prefork_supervisor::SupervisorConfig;
use prefork_supervisor::{Event, ShutdownReason, Supervisor, WorkerKindConfig};
use prefork_supervisor::{Generation, WorkerId, WorkerTag};

pub use cluster_event::{ClusterEvent, Reason, WorkerExit};
use event_log::EventLog;
use handover_relay::HandoverRelay;
pub(crate) use hooks::Hooks;
pub use hooks::Restart;
pub(crate) use isolated_jobs::IsolatedPools;
use log_reopen::LogSwitch;
pub(crate) use messages::Mail;
use oom_kills::OomKills;
pub use primary_handle::{PrimaryHandle, WorkerInfo};
pub(crate) use upgrade_check::prove;

/// Reads the configuration again, for a reload.
pub(crate) type Reread = Box<dyn Fn() -> Result<Config>>;
use crate::dispatch::round_robin::Dealer;
use kernel_selector::ActiveSelector;

/// A living worker, as the kernel knows it.
pub(crate) struct WorkerProcess {
    tag: WorkerTag,
    /// Ours until it is reaped; forgotten in the same moment.
    pid: u32,
    /// `None` once it was closed by either side.
    pub(crate) channel: Option<PrimaryEnd>,
    pub(crate) row: RowIndex,
    /// New connections for it, if it is dealt to.
    pub(crate) queue: Option<Queue>,
    /// Connections of others that it was sent.
    sent: u64,
    /// It leaves: it is sent no more, and has been told so.
    pub(crate) released: bool,
    /// Where it tells its load to whatever chooses among the slots, if anybody reads it.
    lease: Option<LoadPageLease>,
    /// It has sent connections itself, and may do so faster than they can be passed on.
    sends: bool,
}

impl WorkerProcess {
    /// Whether it serves connections.
    fn serves_web(&self, mind: &Supervisor) -> bool {
        self.tag.slot.is_web() && mind.is_serving(self.tag.id)
    }

    fn new(tag: WorkerTag, pid: u32, channel: Option<PrimaryEnd>, row: RowIndex) -> WorkerProcess {
        WorkerProcess {
            tag,
            pid,
            channel,
            row,
            lease: None,
            queue: None,
            sent: 0,
            released: false,
            sends: false,
        }
    }
}

/// What the primary has besides its configuration: in the file system, and of the application.
pub(crate) struct Files {
    pub(crate) listeners: ListenerSet,
    pub(crate) pid_file: Option<PidFile>,
    pub(crate) mail: Mail,
    /// Whoever wants to know how we are.
    pub(crate) manager: Option<Manager>,
}

/// Settings that take a restart, or an upgrade, to change.
struct Fixed {
    control: ControlSocket,
    pid_file: Option<PathBuf>,
}

impl Fixed {
    fn of(config: &Config) -> Fixed {
        Fixed { control: config.control.clone(), pid_file: config.pid_file.clone() }
    }
}

/// What the application wants to be asked and told in the primary.
pub(crate) struct Application {
    pub(crate) entry: WorkerEntry,
    pub(crate) reread: Reread,
    pub(crate) hooks: Hooks,
    /// The kinds of workers besides `web`.
    pub(crate) kinds: Vec<WorkerKindConfig>,
    pub(crate) desks: IsolatedPools,
}

/// Everything the primary process owns.
pub(crate) struct Primary {
    /// What workers of each generation are forked under; the last is the newest.
    configs: BTreeMap<Generation, Rc<Config>>,
    /// Reads the configuration again.
    reread: Reread,
    supervisor: Supervisor,
    signals: SignalPipe,
    listeners: ListenerSet,
    /// Removed when the primary ends.
    pid_file: Option<PidFile>,
    scoreboard: Scoreboard,
    workers: BTreeMap<WorkerId, WorkerProcess>,
    handover: HandoverRelay,
    /// New connections on their way to a worker.
    dealer: Dealer,
    /// `None` where no program chooses who gets a connection.
    kernel_selector: Option<ActiveSelector>,
    /// The application's messages, and what it does with them here.
    messages: Mail,
    /// Of pools of isolated workers.
    isolated_pools: IsolatedPools,
    /// Events that are known but not yet handled, oldest first.
    pending_events: VecDeque<Event>,
    worker_entry: WorkerEntry,
    hooks: Hooks,
    /// What the hooks have not been told yet, oldest first.
    news: VecDeque<ClusterEvent>,
    /// Why the last worker ended.
    judged: Option<WorkerExit>,
    oom_kills: OomKills,
    stopping_told: bool,
    launcher: Launcher,
    /// The configuration of a reload that waits for host names.
    candidate: Option<reload_config::Candidate>,
    /// The new binary that is being tried.
    proof: Option<Proof>,
    /// Those that were killed, until they are reaped.
    stopped_proofs: Vec<u32>,
    /// To become the new binary as soon as nothing is left to be dealt with.
    taking_over: bool,
    /// The newest revision of the manifest that the proved binary takes over.
    proved_revision: u32,
    /// Until when clients of the control socket may hold up the exec.
    quiet_until: Option<Instant>,
    /// How often this process has become a new image.
    upgrades: u64,
    event_log: EventLog,
    log: LogSwitch,
    /// `None` where nobody may ask.
    control: Option<Server>,
    /// What the configuration says of control socket and pid file. Fixed at the start, whatever a reload reads.
    fixed: Fixed,
    /// `None` where no service manager wants to hear from us.
    manager: Option<Manager>,
    started: Instant,
}

fn scoreboard(rows: usize) -> Result<Scoreboard> {
    Scoreboard::create(rows).map_err(|e| Error::system("create the scoreboard in shared memory", e))
}

/// A supervisor that begins, or goes on where the image before this one stopped, and what it forks workers under.
fn supervision(
    left: Option<&Manifest>,
    sockets: u32,
    policy: SupervisorConfig,
    kinds: Vec<WorkerKindConfig>,
    seed: u64,
    config: &Rc<Config>,
) -> (Supervisor, BTreeMap<Generation, Rc<Config>>) {
    match left {
        None => {
            let configs = BTreeMap::from([(Generation(1), Rc::clone(config))]);
            (Supervisor::new(policy, seed).with_kinds(kinds), configs)
        }
        Some(left) => upgrade::go_on(left, sockets, policy, kinds, seed, config),
    }
}

fn random_seed() -> Result<u64> {
    prefork_os::system::random_u64().map_err(|e| Error::system("read random bytes", e))
}

impl Primary {
    /// Ready to run: signals are caught from here on.
    pub(crate) fn new(
        config: Config,
        application: Application,
        files: Files,
        launcher: Launcher,
        mut left: Option<Manifest>,
    ) -> Result<Primary> {
        let Application { entry, reread, hooks, kinds, desks } = application;
        let (Files { listeners, pid_file, mail, manager }, policy) =
            (files, config.supervisor_config());
        if config.titles {
            prefork_os::process::set_process_title("prefork: primary")
                .unwrap_or_else(|e| event_log::no_title(&e));
        }
        // Twice the workers there can ever be: each may have a predecessor that is still finishing.
        let most = Workers::MAX as usize * if kinds.is_empty() { 1 } else { 2 };
        let board = scoreboard(2 * most)?;
        let signals = SignalPipe::new(&wait_events::SIGNALS)
            .map_err(|e| Error::system("install signal handlers", e))?;
        let seed = random_seed()?;
        let mut journal = EventLog::resume_after(left.as_ref().map_or(0, |m| m.last_event));
        let (fixed, config) = (Fixed::of(&config), Rc::new(config));
        let sockets = listeners.slots();
        let heirs = left.as_ref().map(|manifest| manifest.workers.len());
        journal.begins(heirs, policy.workers, config.dispatch, &listeners.bound_addr_texts());
        let (mut supervisor, configs) =
            supervision(left.as_ref(), sockets, policy, kinds, seed, &config);
        supervisor.add_inherited_sockets(sockets);
        supervisor.set_confirm_restarts(hooks.on_restart.is_some());
        let control = match &mut left {
            None => control_requests::open(&config.control, true, &mut journal)?,
            Some(left) => {
                control_requests::take_over(&config.control, left.control.take(), &mut journal)
            }
        };
        let mut primary = Primary {
            configs,
            reread,
            supervisor,
            signals,
            listeners,
            pid_file,
            scoreboard: board,
            workers: BTreeMap::new(),
            handover: HandoverRelay::default(),
            dealer: Dealer::default(),
            kernel_selector: None,
            messages: mail,
            isolated_pools: desks,
            pending_events: VecDeque::from([Event::Started]),
            worker_entry: entry,
            hooks,
            news: VecDeque::new(),
            judged: None,
            oom_kills: OomKills::of_this_process(),
            stopping_told: false,
            launcher,
            candidate: None,
            proof: None,
            stopped_proofs: Vec::new(),
            taking_over: false,
            proved_revision: 0,
            quiet_until: None,
            upgrades: 0,
            log: LogSwitch::new(&config),
            event_log: journal,
            control,
            fixed,
            manager,
            started: Instant::now(),
        };
        primary.begin(left.as_ref())?;
        Ok(primary)
    }

    fn begin(&mut self, left: Option<&Manifest>) -> Result<()> {
        self.listeners.set_has_started_serving();
        if let Some(manifest) = left {
            self.adopt(manifest)?;
            // Those that died during the exec were reported to nobody, or to a mask that held it back.
            self.reap();
        }
        self.update_kernel_selector();
        self.store_sockets();
        prefork_os::signal::unblock_all_signals().map_err(|e| Error::system("let signals in", e))
    }

    /// The only loop: wait, decide, perform.
    pub(crate) fn run(mut self) -> Result<ShutdownReason> {
        loop {
            let event = self.next_event()?;
            let actions = self.supervisor.handle(Instant::now(), event);
            self.publish();
            let mut end = None;
            for action in actions {
                end = end.or(self.perform(action));
            }
            self.tell_hooks();
            if let Some(outcome) = end {
                self.bury_proofs();
                return Ok(outcome);
            }
        }
    }

    /// The configuration of the workers that are wanted now: in a reload the new one, unless it is given up.
    fn current_config(&self) -> Option<&Rc<Config>> {
        self.configs.get(&self.supervisor.wanted_generation())
    }

    fn publish(&self) {
        let mind = &self.supervisor;
        self.scoreboard.publish(
            mind.wanted_workers(),
            mind.restart_count(),
            mind.is_stop_requested(),
        );
    }
}
