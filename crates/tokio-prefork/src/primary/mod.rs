//! The primary process: one thread, blocking, without an async runtime. It waits, asks the supervisor and performs
//! actions.
//!
//! Each part owns its state: the worker table, the control endpoint, the upgrade and so on. What needs several parts is
//! a method of [`Primary`], in the file of the part that it is about.

mod access_log_switch;
mod admin;
mod certificate_expiry;
mod cluster_event;
mod control_requests;
mod empty_cluster;
mod event_format;
pub(crate) mod event_log;
mod event_loop;
mod fork_worker;
mod handover_relay;
mod hooks;
mod isolated_jobs;
mod isolated_upgrade;
mod kernel_selector;
mod log_file_switch;
mod message_handlers;
mod oom_kills;
mod pending_requests;
mod perform_action;
mod primary_handle;
mod program_orphans;
mod reload_config;
mod round_robin;
mod service_manager;
mod signals;
mod slot_sockets;
#[cfg_attr(not(feature = "stack-traces"), path = "stack_captures_off.rs")]
mod stack_captures;
mod supervision_counters;
#[cfg_attr(not(feature = "tls"), path = "ticket_keys_off.rs")]
mod ticket_keys;
mod timers;
mod upgrade;
mod upgrade_check;
mod wait_events;
mod watched_fds;
mod worker_output;
mod worker_sockets;
mod workers;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::application_sockets::{self, ApplicationSocket};
use crate::config::{Config, WorkerCount};
use crate::dispatch::round_robin::RoundRobinAcceptor;
use crate::error::{Error, Result};
use crate::listener::ListenerSet;
use crate::pid_file::{ConfiguredPidFile, PidFile};
use crate::process_settings::{ProcessSettingsByKind, SlotEnvironments};
use crate::scoreboard::Scoreboard;
use crate::shared;
use crate::systemd::ServiceManager;
use crate::upgrade::{BinaryLauncher, UpgradeManifest};
use crate::worker_init::WorkerEntry;
use prefork_supervisor::{Event, ShutdownReason, Supervisor, SupervisorConfig, WorkerKindConfig};
use prefork_supervisor::{Slot, WEB_KIND};

pub(crate) use access_log_switch::AccessLogSwitch;
use admin::AdminListener;
pub use admin::OverlayState;
pub(crate) use admin::{AdminSettings, AdminSockets};
use certificate_expiry::CertificateExpiry;
pub use cluster_event::{ClusterEvent, WorkerExit, WorkerExitReason};
use control_requests::ControlEndpoint;
use event_log::EventLog;
use event_loop::EventLoop;
use handover_relay::HandoverRelay;
use hooks::HookQueue;
pub(crate) use hooks::Hooks;
pub(crate) use isolated_jobs::{JobSchedulers, PROGRAM_ID};
use kernel_selector::ActiveSelector;
use log_file_switch::LogFileSwitch;
pub(crate) use message_handlers::AppMessages;
pub use primary_handle::{PrimaryHandle, WorkerInfo};
use reload_config::ConfigStore;
pub(crate) use reload_config::ReadConfig;
use signals::PrimarySignals;
use stack_captures::StackCaptures;
use ticket_keys::TicketKeys;
pub use timers::TimerId;
use upgrade::UpgradeState;
pub(crate) use upgrade_check::check_worker_boots;
pub use watched_fds::FdWatchId;
pub(crate) use worker_output::OutputHook;
use worker_output::WorkerOutput;
use worker_sockets::WorkerSockets;
use workers::KilledChildren;
pub(crate) use workers::{WorkerProcess, WorkerTable};

/// The resources that the primary takes over from [`Cluster`](crate::Cluster): sockets, files and the service manager.
pub(crate) struct PrimaryResources {
    pub(crate) listeners: ListenerSet,
    pub(crate) pid_file: Option<PidFile>,
    /// `None` if no service manager wants to be notified.
    pub(crate) service_manager: Option<ServiceManager>,
    pub(crate) access_log: AccessLogSwitch,
    pub(crate) admin_sockets: AdminSockets,
    pub(crate) admin_settings: AdminSettings,
}

/// The application's hooks and settings for the primary: its functions, worker kinds and pools.
pub(crate) struct Application {
    pub(crate) worker_entry: WorkerEntry,
    pub(crate) read_config: ReadConfig,
    pub(crate) hooks: Hooks,
    /// The worker kinds besides `web`.
    pub(crate) kinds: Vec<WorkerKindConfig>,
    pub(crate) messages: AppMessages,
    pub(crate) isolated_pools: JobSchedulers,
    /// The scoreboard, if the process that has forked the primary created it to read it. Otherwise the primary does.
    pub(crate) scoreboard: Option<Scoreboard>,
    pub(crate) on_output: Option<OutputHook>,
    /// The process settings of each kind that has some, `web` among them.
    pub(crate) process_settings: ProcessSettingsByKind,
    /// The variables of slots, by kind and number.
    pub(crate) slot_environments: SlotEnvironments,
}

/// The primary process: the supervisor, which decides, and the parts that perform its actions.
pub(crate) struct Primary {
    supervisor: Supervisor,
    /// Events that are queued and not handled yet, oldest first.
    pending_events: VecDeque<Event>,
    signals: PrimarySignals,
    workers: WorkerTable,
    killed_children: KilledChildren,
    scoreboard: Scoreboard,
    /// The stacks of workers that are being taken.
    stacks: StackCaptures,
    listeners: ListenerSet,
    configs: ConfigStore,
    /// The function that runs in each forked worker.
    worker_entry: WorkerEntry,
    round_robin: RoundRobinAcceptor,
    /// `None` if the kernel does not choose among the sockets of slots.
    kernel_selector: Option<ActiveSelector>,
    /// `None` if the workers run no foreign program.
    worker_sockets: Option<WorkerSockets>,
    handover: HandoverRelay,
    messages: AppMessages,
    isolated_pools: JobSchedulers,
    output: WorkerOutput,
    process_settings: ProcessSettingsByKind,
    hooks: HookQueue,
    /// The application's timers and descriptors.
    event_loop: EventLoop,
    /// The error that a hook has stopped the cluster with.
    stop_error: Option<Error>,
    upgrade: UpgradeState,
    /// The sockets of the application that the next image gets, as of the last manifest.
    application_sockets: Vec<ApplicationSocket>,
    control: ControlEndpoint,
    admin: AdminListener,
    pid_file: ConfiguredPidFile,
    service_manager: Option<ServiceManager>,
    event_log: EventLog,
    log_file: LogFileSwitch,
    access_log: AccessLogSwitch,
    ticket_keys: TicketKeys,
    certificate_expiry: CertificateExpiry,
    started: Instant,
}

impl Primary {
    /// Creates a primary that is ready to run. From here on it catches signals.
    ///
    /// `manifest` is what the previous image left, if this process was upgraded in address.
    pub(crate) fn new(
        config: Config,
        application: Application,
        resources: PrimaryResources,
        launcher: BinaryLauncher,
        mut manifest: Option<UpgradeManifest>,
    ) -> Result<Primary> {
        let Application { worker_entry, read_config, hooks, kinds, scoreboard, .. } = application;
        let PrimaryResources { listeners, pid_file, service_manager, access_log, .. } = resources;
        let admin = AdminListener::new(resources.admin_sockets, resources.admin_settings);
        set_primary_title(&config);
        let scoreboard = match scoreboard {
            Some(scoreboard) => scoreboard.into_primary(),
            None => create_scoreboard(!kinds.is_empty())?,
        };
        let signals = PrimarySignals::install_handlers()?;
        let wanted_workers = config.supervisor_config().workers;
        let supervisor = create_supervisor(
            manifest.as_ref(),
            listeners.slots(),
            config.supervisor_config(),
            kinds,
            application.slot_environments,
            &hooks,
        )?;
        let mut event_log = create_event_log(manifest.as_ref());
        let stacks = StackCaptures::new(scoreboard.worker_page_count() + 1, &mut event_log);
        let inherited_workers = manifest.as_ref().map(|one| one.workers.len());
        let locals = listeners.bound_addr_texts();
        event_log.log_primary_started(inherited_workers, wanted_workers, &config, &locals);
        admin.bound_addr_texts().iter().for_each(|local| event_log.log_admin_listening(local));
        let control = match &mut manifest {
            None => ControlEndpoint::open_socket(&config.control, &mut event_log)?,
            Some(manifest) => ControlEndpoint::take_over_socket(
                &config.control,
                manifest.control.take(),
                &mut event_log,
            ),
        };
        let mut primary = Primary {
            supervisor,
            pending_events: VecDeque::from([Event::Started]),
            signals,
            workers: WorkerTable::default(),
            killed_children: KilledChildren::default(),
            scoreboard,
            stacks,
            listeners,
            pid_file: ConfiguredPidFile::new(config.pid_file.clone(), pid_file),
            log_file: LogFileSwitch::new(config.log_file.clone()),
            access_log,
            ticket_keys: TicketKeys::start(manifest.as_ref(), &config, &mut event_log)?,
            worker_sockets: config.program().map(|_| WorkerSockets::default()),
            configs: ConfigStore::new(read_config, Arc::new(config), manifest.as_ref()),
            worker_entry,
            round_robin: RoundRobinAcceptor::default(),
            kernel_selector: None,
            handover: HandoverRelay::default(),
            messages: application.messages,
            isolated_pools: application.isolated_pools,
            output: WorkerOutput::new(application.on_output),
            process_settings: application.process_settings,
            hooks: HookQueue::new(hooks),
            event_loop: EventLoop::default(),
            stop_error: None,
            upgrade: UpgradeState::new(launcher),
            application_sockets: Vec::new(),
            control,
            admin,
            service_manager,
            certificate_expiry: CertificateExpiry::default(),
            started: Instant::now(),
            event_log,
        };
        if let Some(config) = primary.current_config().cloned() {
            primary.output.set_program(&config);
        }
        primary.start(manifest.as_ref())?;
        Ok(primary)
    }

    fn start(&mut self, manifest: Option<&UpgradeManifest>) -> Result<()> {
        self.listeners.set_has_started_serving();
        self.adopt_program_orphans()?;
        if let Some(manifest) = manifest {
            self.restore_state(manifest)?;
            // The SIGCHLD of a worker that exited during the exec may be lost.
            self.reap_children();
        }
        self.admin.want_generation(self.supervisor.wanted_generation())?;
        self.warn_of_expiring_certificates();
        self.publish_isolated_pools();
        self.open_first_worker_sockets()?;
        self.update_kernel_selector();
        self.store_sockets();
        self.run_start_hooks(manifest.is_some())?;
        application_sockets::close_unclaimed();
        shared::passed_state::close_unclaimed();
        prefork_os::signal::unblock_all_signals().map_err(|e| Error::system("unblock signals", e))
    }

    /// Runs the loop of the primary: wait, decide, perform.
    ///
    /// # Errors
    /// No worker can boot, or the system refuses something without which the primary cannot go on.
    pub(crate) fn run(mut self) -> Result<()> {
        loop {
            let event = self.next_event()?;
            let actions = self.supervisor.handle(Instant::now(), event);
            self.publish_cluster_state();
            let mut shutdown = None;
            for action in actions {
                shutdown = shutdown.or(self.perform_action(action));
            }
            self.run_event_hooks();
            if let Some(reason) = shutdown {
                self.killed_children.reap_all_blocking();
                self.output.finish();
                return match (self.stop_error, reason) {
                    (Some(error), _) => Err(error),
                    (None, ShutdownReason::StopRequested) => Ok(()),
                    (None, ShutdownReason::WorkersCannotBoot) => Err(Error::workers_cannot_boot(
                        self.supervisor.boot_failure().unwrap_or("see the log"),
                    )),
                };
            }
        }
    }

    /// Returns the configuration of the wanted generation: during a reload, the new one.
    fn current_config(&self) -> Option<&Arc<Config>> {
        self.configs.config_of_generation(self.supervisor.wanted_generation())
    }

    fn publish_cluster_state(&mut self) {
        let Primary { supervisor, scoreboard, admin, .. } = self;
        admin.cluster_changed(supervisor.is_stop_requested());
        scoreboard.publish(
            supervisor.generation(),
            supervisor.wanted_workers(),
            supervisor.restart_count(),
            supervisor.is_stop_requested(),
        );
        self.publish_losses();
    }
}

/// Sets the title of the process, if the configuration wants titles.
fn set_primary_title(config: &Config) {
    if config.titles {
        let title = prefork_os::process::set_process_title(&format!("{}: primary", config.name()));
        title.unwrap_or_else(|e| event_log::log_title_error(&e));
    }
}

/// What to do if the kernel refuses the scoreboard because of its size.
const FILE_SIZE_HINT: &str = "the limit of the file size counts for shared memory, too: set ulimit -f or LimitFSIZE= to 64 MiB or more";

/// Creates a scoreboard with two pages for each possible worker, as a draining worker keeps its page beside its
/// successor's.
pub(crate) fn create_scoreboard(has_other_kinds: bool) -> Result<Scoreboard> {
    let max_workers = WorkerCount::MAX as usize * if has_other_kinds { 2 } else { 1 };
    Scoreboard::create(2 * max_workers).map_err(|e| {
        let e = match e.kind() {
            io::ErrorKind::FileTooLarge => {
                io::Error::new(e.kind(), format!("{e}: {FILE_SIZE_HINT}"))
            }
            _ => e,
        };
        Error::system("create the scoreboard in shared memory", e)
    })
}

/// Creates an event log, which continues that of the previous image.
fn create_event_log(manifest: Option<&UpgradeManifest>) -> EventLog {
    let mut event_log = EventLog::continue_after(manifest.map_or(0, |one| one.last_event));
    if let Some(passed) = manifest.and_then(|one| one.admin.as_ref()) {
        event_log.history.restore(admin::read_passed_events(passed));
    }
    event_log
}

/// Creates a new supervisor, or one that continues where the previous image stopped.
fn create_supervisor(
    manifest: Option<&UpgradeManifest>,
    socket_slots: u32,
    config: SupervisorConfig,
    kinds: Vec<WorkerKindConfig>,
    slot_environments: SlotEnvironments,
    hooks: &Hooks,
) -> Result<Supervisor> {
    let seed =
        prefork_os::system::random_u64().map_err(|e| Error::system("read random bytes", e))?;
    let supervisor = match manifest {
        None => Supervisor::new(config, seed).with_kinds(kinds),
        Some(manifest) => upgrade::restore_supervisor(manifest, socket_slots, config, kinds, seed),
    };
    let mut supervisor = declare_slot_environments(supervisor, slot_environments);
    supervisor.add_inherited_sockets(socket_slots);
    supervisor.set_confirm_restarts(hooks.on_restart.is_some());
    Ok(supervisor)
}

/// Sets the variables of slots. Those of a kind that the supervisor does not know are dropped.
fn declare_slot_environments(supervisor: Supervisor, declared: SlotEnvironments) -> Supervisor {
    let kinds = supervisor.kind_first_slots();
    let first_slot = |kind: &str| match kinds.iter().find(|one| one.0 == kind) {
        Some((_, first)) => Some(*first),
        None => (kind == WEB_KIND).then_some(Slot(0)),
    };
    let slots = declared.into_iter().filter_map(|((kind, number), environment)| {
        Some((first_slot(kind)?.checked_add(number)?, environment))
    });
    let slots = slots.collect();
    supervisor.with_slot_environments(slots)
}
