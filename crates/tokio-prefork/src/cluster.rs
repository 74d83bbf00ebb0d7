//! The public entry point: a configuration and an application in, a supervised cluster out.

mod before_fork;
mod event_loop;
mod hooks;
mod initial_sockets;
mod isolated_pool;
mod preload;
mod program_pools;
mod start_checks;
mod worker_kind;
mod worker_process;

use std::future::Future;
use std::os::fd::OwnedFd;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::Service;

use crate::app_name::set_app_name;
use crate::application_sockets;
use crate::config::Config;
use crate::error::{BoxError, Error, Result, exit};
use crate::fork_safety;
use crate::listener::resolve_hosts;
use crate::log_file::{LogFile, inherited_log_fd};
use crate::log_output;
use crate::pid_file::PidFile;
use crate::primary::{
    self, AccessLogSwitch, AdminSockets, AppMessages, Application, Hooks, JobSchedulers,
    OutputHook, Primary, PrimaryResources, ReadConfig,
};
use crate::process_settings::{ProcessOptions, SlotEnvironments};
use crate::runtime::AppThreading;
use crate::shared;
use crate::systemd::ServiceEnvironment;
use crate::upgrade::{self, BinaryLauncher, UpgradeManifest, UpgradeRole, WaitingClients};
use crate::worker::http::into_service::IntoHttpService;
use crate::worker::{self, AcceptedStream, Worker, WorkerApp};
use before_fork::BeforeFork;
use preload::Load;
pub use preload::Preloaded;
pub(crate) use program_pools::program_caller;
pub use program_pools::{IsolatedPools, RunningIsolatedPools};
pub use worker_kind::WorkerKind;
use worker_kind::WorkerKinds;

/// A cluster of forked workers behind one listening socket.
///
/// ```no_run
/// use axum::{Router, routing::get};
/// use tokio_prefork::{Cluster, Config, Main, Worker};
///
/// fn main() -> Main {
///     run().into()
/// }
///
/// fn run() -> tokio_prefork::Result<()> {
///     let config = Config::builder().listen("127.0.0.1:3000")?.build()?;
///     Cluster::new(config).serve(|worker: Worker| async move {
///         let pid = worker.pid();
///         let hello = move || async move { format!("Handled by PID {pid}\n") };
///         Ok(Router::new().route("/", get(hello)))
///     })
/// }
/// ```
#[must_use = "a cluster does nothing until it serves"]
pub struct Cluster {
    config: Config,
    read_config: ReadConfig,
    hooks: Hooks,
    messages: AppMessages,
    kinds: WorkerKinds,
    isolated_pools: JobSchedulers,
    on_output: Option<OutputHook>,
    /// The process settings of `web` workers.
    web_process: ProcessOptions,
    slot_environments: SlotEnvironments,
    before_fork: Vec<BeforeFork>,
    preloads: Vec<Load>,
    /// Whether the application speaks a protocol of its own, not HTTP.
    serves_raw_connections: bool,
}

impl Cluster {
    /// Creates a cluster with this configuration.
    pub fn new(config: Config) -> Cluster {
        let same = config.clone();
        Cluster {
            config,
            read_config: Box::new(move || Ok(same.clone())),
            hooks: Hooks::default(),
            messages: AppMessages::default(),
            kinds: WorkerKinds::default(),
            isolated_pools: JobSchedulers::default(),
            on_output: None,
            web_process: ProcessOptions::default(),
            slot_environments: SlotEnvironments::new(),
            before_fork: Vec::new(),
            preloads: Vec::new(),
            serves_raw_connections: false,
        }
    }

    /// Sets how a reload (SIGHUP) reads the configuration for the new workers. An error fails the reload and changes
    /// nothing. Without this the configuration stays as it is, and a reload only replaces the workers.
    pub fn reload_with(mut self, read: impl Fn() -> Result<Config> + 'static) -> Cluster {
        self.read_config = Box::new(read);
        self
    }

    /// Forks the workers and supervises them until the cluster is told to stop. Returns in the primary only.
    ///
    /// `app` runs once in each worker, inside its runtime, and makes the service that answers the requests: an axum
    /// `Router`, another tower service, or a service of hyper (see [`IntoHttpService`]). The worker is ready when it
    /// returns. Any error converts to its [`BoxError`], so `?` works. Neither its future nor the service needs to be `Send`.
    ///
    /// `app` itself is `Send` and `Sync`, as under
    /// [`ConcurrencyModel::ThreadPerCore`](crate::ConcurrencyModel::ThreadPerCore) each thread calls it. For
    /// [`ConcurrencyModel::Threads`](crate::ConcurrencyModel::Threads) there is [`Cluster::serve_threads`].
    ///
    /// # Errors
    /// The address cannot be bound, the system refuses something at the start, or no worker can boot. The error names
    /// the cause, and [`Error::exit_status`] is the exit status for the service manager; see [`Main`](crate::Main).
    pub fn serve<A, F, S, M>(self, app: A) -> Result<()>
    where
        A: Fn(Worker) -> F + Send + Sync + 'static,
        F: Future<Output = Result<S, BoxError>> + 'static,
        S: IntoHttpService<M>,
    {
        self.run(AppThreading::SingleThread, worker::http_app(app))
    }

    /// Serves like [`Cluster::serve`], for [`ConcurrencyModel::Threads`](crate::ConcurrencyModel::Threads): one service,
    /// shared by the threads of one process, each of which may poll any request. Hence `Send` and `Sync`, which is why this
    /// is a method of its own: an application that holds an `Rc` cannot get here by a flag.
    ///
    /// `app` runs once in each worker process, on one of its threads. Connections are not handed over when the
    /// worker is replaced, and a handler that blocks is not named by the watchdog: it holds one thread of several.
    ///
    /// # Errors
    /// As [`Cluster::serve`], and if the configuration names another model.
    pub fn serve_threads<A, F, S, M>(self, app: A) -> Result<()>
    where
        A: Fn(Worker) -> F + Send + Sync + 'static,
        F: Future<Output = Result<S, BoxError>> + Send + 'static,
        S: IntoHttpService<M, Service: Send + Sync, Body: Send>,
        <S::Service as Service<Request<Incoming>>>::Future: Send,
    {
        self.run(AppThreading::MultiThread, crate::runtime::threads::multi_thread_app(app))
    }

    /// Serves any protocol, at the level of connections.
    ///
    /// `app` runs once in each worker, before its first connection, and returns the function that serves a connection. The
    /// future of that function is the connection's life; a draining worker waits for it up to the graceful timeout.
    /// Each connection counts as a request for `max-requests`, and a panic of the function is logged and ends its connection
    /// only. To speak HTTP on it after all, call [`Worker::serve_http`].
    ///
    /// ```no_run
    /// use tokio::io::AsyncWriteExt;
    /// use tokio_prefork::{AcceptedStream, Cluster, Config, Worker};
    ///
    /// # fn run(config: Config) -> tokio_prefork::Result<()> {
    /// Cluster::new(config).serve_connections(|worker: Worker| async move {
    ///     let greeting = format!("hello from PID {}\n", worker.pid());
    ///     Ok(move |mut stream: AcceptedStream| {
    ///         let greeting = greeting.clone();
    ///         async move {
    ///             // A client that has gone only ends its connection.
    ///             let _ = stream.write_all(greeting.as_bytes()).await;
    ///         }
    ///     })
    /// })
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cluster::serve`].
    pub fn serve_connections<A, F, H, C>(mut self, app: A) -> Result<()>
    where
        A: Fn(Worker) -> F + Send + Sync + 'static,
        F: Future<Output = Result<H, BoxError>> + 'static,
        H: Fn(AcceptedStream) -> C + 'static,
        C: Future<Output = ()> + 'static,
    {
        self.serves_raw_connections = true;
        self.run(AppThreading::SingleThread, worker::raw_connection_app(app))
    }
}

impl Cluster {
    /// Runs the foreign program of the configuration ([`ConfigBuilder::program`](crate::ConfigBuilder::program)) in each worker,
    /// and supervises it until the cluster is told to stop. Returns in the primary only.
    ///
    /// # Errors
    /// As [`Cluster::serve`], and if the configuration has no program, or one that cannot be run.
    pub fn serve_program(mut self) -> Result<()> {
        check_program(&self.config)?;
        let read_config = self.read_config;
        self.read_config = Box::new(move || {
            read_config().and_then(|config| check_program(&config).map(|()| config))
        });
        // So that what the program starts dies with its guard.
        self.web_process.limits.has_own_group = true;
        self.run(AppThreading::SingleThread, crate::program::program_app())
    }

    /// Runs the primary: binds or takes over sockets, loads the application, forks and supervises workers.
    fn run(mut self, threading: AppThreading, app: WorkerApp) -> Result<()> {
        set_app_name(self.config.name());
        start_checks::check_can_fork_workers().inspect_err(upgrade::report_failed_start)?;
        log_output::prepare_log_output();
        prefork_os::signal::ignore_sigpipe_and_sigxfsz()
            .map_err(|e| Error::system("handle SIGPIPE and SIGXFSZ", e))?;
        self.config = threading.adapt_config(self.config)?;
        #[cfg(feature = "testing")]
        crate::testing::prepare_to_serve(&mut self.config)?;
        fork_safety::warn_of_unsafe_fds();
        self.kinds.check_configs()?;
        self.process_settings()?;
        let read_config = self.read_config;
        self.read_config = Box::new(move || {
            threading
                .adapt_reloaded_config(read_config()?)
                .map(adapt_config_for_tests)
                .and_then(|c| check_can_drop_privileges(&c).map(|()| c))
        });
        let launcher = BinaryLauncher::of_this_process()?;
        let mut service = ServiceEnvironment::take()?;
        application_sockets::remove_taken(&mut service.activation_fds);
        let manifest = match UpgradeRole::take()? {
            Some(UpgradeRole::Check { manifest, answer }) => {
                shared::passed_state::record_passed(&manifest);
                self.run_upgrade_check(&manifest, &answer, app);
            }
            Some(UpgradeRole::NewImage(manifest)) => {
                application_sockets::record_passed(&manifest.sockets);
                shared::passed_state::record_passed(&manifest);
                Some(manifest)
            }
            None => None,
        };
        let waiting = manifest.as_ref();
        let waiting = waiting.map_or_else(WaitingClients::default, WaitingClients::from_manifest);
        match self.create_primary(launcher, service, manifest, app) {
            Ok(primary) => {
                // From here on the control server answers them.
                drop(waiting);
                primary.run()
            }
            Err(error) => {
                waiting.refuse(&error);
                Err(error)
            }
        }
    }

    /// Takes over or opens all that the primary needs.
    fn create_primary(
        mut self,
        launcher: BinaryLauncher,
        service: ServiceEnvironment,
        manifest: Option<UpgradeManifest>,
        app: WorkerApp,
    ) -> Result<Primary> {
        let kinds = self.kinds.check_configs()?;
        let process_settings = self.process_settings()?;
        check_can_drop_privileges(&self.config)?;
        // The kernel ignores signals without a handler for process 1, the first process of a container.
        let signal_guard =
            manifest.is_none().then(prefork_os::signal::exit_on_signals_if_pid_1).transpose();
        let signal_guard =
            signal_guard.map_err(|e| Error::system("catch signals before the start", e))?;
        self.redirect_log(manifest.is_some())
            .or_else(|e| log_error_after_upgrade(e, manifest.is_some()))?;
        self.load_tls_certificates(manifest.is_some())?;
        // Each connection is a descriptor; if the limit cannot be raised, accepting pauses when it is reached.
        if let Err(e) = prefork_os::process::raise_open_file_limit() {
            log::warn!("cannot raise the limit on open files: {e}");
        }
        if self.config.pipeline_flush {
            log::warn!(
                "pipeline-flush has no effect, and the next release refuses it: leave it out, as responses of pipelined \
                 requests are always written together"
            );
        }
        let access_log = AccessLogSwitch::open(&self.config.access_log).or_else(|e| {
            log_error_after_upgrade(e, manifest.is_some())
                .map(|()| AccessLogSwitch::not_opened(&self.config.access_log))
        })?;
        let pid_file = self.take_pid_file(manifest.as_ref());
        let pid_file =
            pid_file.or_else(|e| log_error_after_upgrade(e, manifest.is_some()).map(|()| None))?;
        let mut listeners =
            self.take_inherited_sockets(manifest.as_ref(), &service.activation_fds)?;
        listeners.set_serves_raw_connections(self.serves_raw_connections);
        let passed = if manifest.is_none() { &service.activation_fds[..] } else { &[] };
        let per_worker = self.config.has_socket_per_worker();
        let mut unwanted = listeners.take_stored_sockets(passed, &self.config.bind, per_worker);
        if per_worker && manifest.is_none() {
            unwanted.extend(listeners.drop_sockets_after_gaps());
        }
        let resolved = resolve_hosts(&self.config.all_listen_addrs())?;
        listeners.set_ipv6_only(self.config.ipv6_only);
        self.config.resolve_bind_addrs(&mut listeners, &resolved);
        let slots = self.sockets_per_addr(manifest.as_ref());
        listeners.open_missing_sockets(&self.config.bind, self.config.backlog, slots)?;
        let service_manager = self.connect_service_manager(service, manifest.is_some(), &unwanted);
        let (admin_sockets, admin_settings) =
            self.open_admin_sockets(manifest.as_ref(), &resolved)?;
        let resources = PrimaryResources {
            listeners,
            pid_file,
            service_manager,
            access_log,
            admin_sockets,
            admin_settings,
        };
        if manifest.is_none() {
            before_fork::run_all(std::mem::take(&mut self.before_fork))?;
        }
        self.preload_data()?;
        let application = Application {
            worker_entry: self.kinds.into_worker_entry(app),
            read_config: self.read_config,
            hooks: self.hooks,
            kinds,
            messages: self.messages,
            isolated_pools: self.isolated_pools,
            scoreboard: None,
            on_output: self.on_output,
            process_settings,
            slot_environments: self.slot_environments,
        };
        let primary = Primary::new(self.config, application, resources, launcher, manifest)?;
        drop(signal_guard);
        Ok(primary)
    }

    /// Loads the data to preload, and checks that it has left nothing with which no worker can be forked.
    fn preload_data(&mut self) -> Result<()> {
        let loads = std::mem::take(&mut self.preloads);
        fork_safety::warn_of_fds_left_open_by(|| preload::load_all(loads))?;
        start_checks::check_single_thread("cannot start the cluster")
    }

    /// Takes over the pid file of the previous image, if the configuration names the same, or creates one.
    fn take_pid_file(&self, manifest: Option<&UpgradeManifest>) -> Result<Option<PidFile>> {
        let passed = manifest.and_then(|manifest| manifest.pid_file.as_ref());
        // If another path is configured, dropping this removes the old file.
        let inherited = passed.and_then(|passed| PidFile::inherit(passed).ok());
        let Some(path) = self.config.pid_file.as_deref() else { return Ok(None) };
        match inherited.filter(|file| file.path() == path && file.is_intact()) {
            Some(file) => Ok(Some(file)),
            None => PidFile::create(path).map(Some),
        }
    }

    /// Reads the certificates and keys.
    fn load_tls_certificates(&mut self, is_upgrade: bool) -> Result<()> {
        let loaded = self.config.load_tls_certificates();
        let warnings = loaded.or_else(|e| {
            // The check has read them, so they were changed since. No new worker starts, and the old ones serve on.
            self.config.set_tls_unavailable(&e);
            log_error_after_upgrade(e, is_upgrade).map(|()| Vec::new())
        })?;
        warnings.iter().for_each(|warning| log::warn!("{warning}"));
        Ok(())
    }

    fn redirect_log(&self, is_upgrade: bool) -> Result<()> {
        let Some(path) = self.config.log_file.as_deref() else { return Ok(()) };
        // The previous image has left this descriptor as standard error.
        if is_upgrade && inherited_log_fd(path).is_some() {
            return Ok(());
        }
        let file = LogFile::open(path)?;
        file.redirect_stderr()
            .map_err(|e| Error::system(format!("write the log to {}", path.display()), e))?;
        Ok(())
    }

    /// Checks, as a child of the primary, all that can fail before this binary takes over, reports the result and exits.
    ///
    /// It never returns, so that the code after [`Cluster::serve`] runs in the primary only.
    fn run_upgrade_check(
        mut self,
        manifest: &UpgradeManifest,
        answer: &OwnedFd,
        app: WorkerApp,
    ) -> ! {
        let unblocked = prefork_os::signal::unblock_all_signals()
            .map_err(|e| Error::system("unblock signals", e));
        let outcome = unblocked
            .and_then(|()| self.take_inherited_sockets(Some(manifest), &[]))
            .and_then(|mut listeners| {
                check_can_drop_privileges(&self.config)?;
                self.config.load_tls_certificates()?;
                self.config.access_log.check()?;
                let resolved = resolve_hosts(&self.config.all_listen_addrs())?;
                listeners.set_ipv6_only(self.config.ipv6_only);
                self.config.resolve_bind_addrs(&mut listeners, &resolved);
                let slots = self.sockets_per_addr(Some(manifest));
                listeners.check_can_bind(&self.config.bind, self.config.backlog, slots)?;
                drop(listeners);
                AdminSockets::inherit(Some(manifest))?.check_can_open(&self.config, &resolved)?;
                before_fork::run_all(std::mem::take(&mut self.before_fork))?;
                self.preload_data()?;
                match self.config.program() {
                    // It would accept connections of clients, and lose them when the check ends.
                    Some(program) => program.check().map(drop),
                    None => {
                        let entry = self.kinds.into_worker_entry(app);
                        primary::check_worker_boots(self.config, &entry)
                    }
                }
            });
        upgrade::report_check_result(answer, manifest, &outcome);
        std::process::exit(outcome.map_or_else(|e| e.exit_status(), |()| exit::OK).into())
    }
}

/// Keeps what a test needs of a configuration that a reload has read.
fn adapt_config_for_tests(config: Config) -> Config {
    #[cfg(feature = "testing")]
    let config = crate::testing::adapt_config(config);
    config
}

/// Returns whether workers can change to the configured user and group.
fn check_can_drop_privileges(config: &Config) -> Result<()> {
    config.credentials().map_or(Ok(()), |credentials| credentials.check_can_switch_user())
}

/// Logs an error that would prevent a start, if this process was upgraded in place: an exec has no way back.
fn log_error_after_upgrade(error: Error, is_upgrade: bool) -> Result<()> {
    if !is_upgrade {
        return Err(error);
    }
    log::error!("{error}; continuing without");
    Ok(())
}

/// Checks that there is a program and that it can be run.
fn check_program(config: &Config) -> Result<()> {
    match config.program() {
        Some(program) if !program.is_built() => Ok(()),
        Some(program) => program.check().map(drop),
        None => {
            Err(Error::config("there is no program to run: give one with ConfigBuilder::program"))
        }
    }
}
