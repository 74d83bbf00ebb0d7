//! The public door: a configuration and an application in, a supervised cluster out.

mod hooks;
mod isolated;
mod kind;
mod preload;
mod sockets;

use std::future::Future;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};

use crate::config::Config;
use crate::error::{Error, Result, exit};
use crate::listener::resolve_hosts;
use crate::log_file::{LogFile, inherited_descriptor};
use crate::log_output;
use crate::pid_file::PidFile;
use crate::primary::{self, Application, Files, Hooks, IsolatedPools, Mail, Primary, Reread};
use crate::runtime::Made;
use crate::systemd;
use crate::upgrade::{self, Inherited, Launcher, Manifest, WaitingClients};
use crate::worker::{self, AcceptedStream, BoxError, ThreadedWorker, Worker, WorkerApp};
pub use kind::Kind;
use kind::Kinds;
use prefork_supervisor::ShutdownReason;
pub use preload::Preloaded;

/// A cluster of forked workers behind one listening socket.
///
/// ```no_run
/// use http_body_util::Full;
/// use hyper::body::{Bytes, Incoming};
/// use hyper::{Request, Response, service::service_fn};
/// use tokio_prefork::{Cluster, Config, Worker};
///
/// fn main() -> std::process::ExitCode {
///     run().unwrap_or_else(|error| error.report())
/// }
///
/// fn run() -> tokio_prefork::Result<std::process::ExitCode> {
///     let config = Config::builder().listen("127.0.0.1:3000")?.build()?;
///     Cluster::new(config).serve(|worker: Worker| async move {
///         let pid = worker.pid();
///         Ok(service_fn(move |_: Request<Incoming>| async move {
///             let body = Full::new(Bytes::from(format!("Handled by PID {pid}\n")));
///             Ok::<_, std::convert::Infallible>(Response::new(body))
///         }))
///     })
/// }
/// ```
#[must_use = "a cluster does nothing until it serves"]
pub struct Cluster {
    config: Config,
    reread: Reread,
    hooks: Hooks,
    mail: Mail,
    kinds: Kinds,
    desks: IsolatedPools,
}

impl Cluster {
    /// A cluster with this configuration.
    pub fn new(config: Config) -> Cluster {
        let same = config.clone();
        let reread = Box::new(move || Ok(same.clone()));
        let (hooks, mail, kinds) = (Hooks::default(), Mail::default(), Kinds::default());
        Cluster { config, reread, hooks, mail, kinds, desks: IsolatedPools::new() }
    }

    /// Where a reload (SIGHUP) finds the configuration for the new workers. An error fails the reload and
    /// changes nothing. Without this the configuration stays as it is, and a reload only replaces the workers.
    pub fn reload_with(mut self, read: impl Fn() -> Result<Config> + 'static) -> Cluster {
        self.reread = Box::new(read);
        self
    }

    /// Loads data once, in the primary, after the sockets are bound and before the first fork: every worker,
    /// the respawned ones too, shares its memory until somebody writes to it (copy-on-write).
    ///
    /// `load` runs in a thread of its own, which ends before the first fork. So what it leaves in
    /// thread-local state, above all the keys of std's hash maps, is not the same in every worker. It must
    /// not use tokio: a worker could not use tokio any more (see "Unix fork" in tokio's documentation).
    pub fn preload<T, L>(self, load: L) -> Preloaded<L>
    where
        L: FnOnce() -> Result<T> + Send + 'static,
        T: Send + 'static,
    {
        Preloaded::new(self, load)
    }

    /// Forks the workers and supervises them until the cluster is told to stop. Returns in the primary only.
    ///
    /// `app` runs once in each worker, inside its runtime, and makes the service that answers the requests;
    /// the worker is ready when it returns. Neither its future nor the service needs to be `Send`. A tower or axum
    /// service fits through `hyper_util::service::TowerToHyperService`.
    ///
    /// `app` itself is `Send` and `Sync`, as under [`Model::ThreadPerCore`](crate::Model::ThreadPerCore) each thread
    /// calls it. For [`Model::Threads`](crate::Model::Threads) there is [`Cluster::serve_threads`].
    ///
    /// # Errors
    /// The address cannot be bound, or the system refuses something at the start. What goes wrong later is
    /// logged, survived if possible, and told by the exit status (see [`exit`](crate::exit)).
    pub fn serve<A, F, S, B>(self, app: A) -> Result<ExitCode>
    where
        A: Fn(Worker) -> F + Send + Sync + 'static,
        F: Future<Output = Result<S>> + 'static,
        S: Service<Request<Incoming>, Response = Response<B>> + 'static,
        S::Future: 'static,
        S::Error: Into<BoxError> + 'static,
        B: Body<Data = Bytes> + 'static,
        B::Error: Into<BoxError>,
    {
        self.run(Made::ForOneThread, || Ok(worker::http_app(app)))
    }

    /// As [`Cluster::serve`], for [`Model::Threads`](crate::Model::Threads): one service, shared by the threads of one
    /// process, each of which may poll any request. Hence `Send` and `Sync`, which is why this is a method of its own:
    /// an application that holds an `Rc` cannot get here by a flag.
    ///
    /// `app` runs once in each worker process, on one of its threads. Connections are not handed over when the
    /// worker is replaced, and a handler that blocks is not named by the watchdog: it holds one thread of several.
    ///
    /// # Errors
    /// As [`Cluster::serve`], and if the configuration names another model.
    pub fn serve_threads<A, F, S, B>(self, app: A) -> Result<ExitCode>
    where
        A: Fn(ThreadedWorker) -> F + Send + Sync + 'static,
        F: Future<Output = Result<S>> + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>> + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError> + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.run(Made::ForThreads, || Ok(crate::runtime::threads::threads_app(app)))
    }

    /// The lower door, for any protocol: `app` is called in a worker with each accepted connection. Its future
    /// is the connection's life; a draining worker waits for it up to the graceful timeout.
    ///
    /// # Errors
    /// As [`Cluster::serve`].
    pub fn serve_connections<A, F>(self, app: A) -> Result<ExitCode>
    where
        A: Fn(Worker, AcceptedStream) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + 'static,
    {
        self.run(Made::ForOneThread, || Ok(worker::raw_connection_app(app)))
    }
}

impl Cluster {
    /// The whole story: bind or take over, load, fork and supervise.
    fn run(mut self, made: Made, make: impl FnOnce() -> Result<WorkerApp>) -> Result<ExitCode> {
        log_output::prepare(None);
        prefork_os::signal::ignore_sigpipe_and_sigxfsz()
            .map_err(|e| Error::system("handle SIGPIPE and SIGXFSZ", e))?;
        self.config = made.fit(self.config)?;
        self.kinds.rules()?;
        let reread = self.reread;
        self.reread = Box::new(move || made.refit(reread()?).and_then(|c| permit(&c).map(|()| c)));
        let launcher = Launcher::of_this_process()?;
        let service = systemd::Service::take()?;
        let left = match Inherited::take()? {
            Some(Inherited::Proof { manifest, answer }) => {
                return Ok(self.show_fitness(&manifest, &answer, make));
            }
            Some(Inherited::Manifest(manifest)) => Some(manifest),
            None => None,
        };
        let waiting = left.as_ref().map_or_else(WaitingClients::default, WaitingClients::of);
        match self.open(launcher, service, left, make) {
            Ok(primary) => {
                // From here on they are answered as all others are.
                drop(waiting);
                Ok(ExitCode::from(match primary.run()? {
                    ShutdownReason::StopRequested => exit::OK,
                    ShutdownReason::WorkersCannotBoot => exit::WORKERS_CANNOT_BOOT,
                }))
            }
            Err(error) => {
                waiting.refuse(&error);
                Err(error)
            }
        }
    }

    /// Takes over or opens all that the primary needs, up to its first turn.
    fn open(
        mut self,
        launcher: Launcher,
        service: systemd::Service,
        left: Option<Manifest>,
        make: impl FnOnce() -> Result<WorkerApp>,
    ) -> Result<Primary> {
        let kinds = self.kinds.rules()?;
        permit(&self.config)?;
        // The first process of a container ends on no signal that it has no handler for.
        let unmanned =
            left.is_none().then(prefork_os::signal::exit_on_signals_if_pid_1).transpose();
        let unmanned = unmanned.map_err(|e| Error::system("catch signals before the start", e))?;
        self.redirect_log(left.is_some()).or_else(|e| forgive(e, left.is_some()))?;
        // Descriptors are connections; a limit that cannot be raised is met when it is reached.
        if let Err(e) = prefork_os::process::raise_open_file_limit() {
            log::warn!("cannot raise the limit on open files: {e}");
        }
        let pid_file = self.take_pid_file(left.as_ref());
        let pid_file = pid_file.or_else(|e| forgive(e, left.is_some()).map(|()| None))?;
        let mut listeners = self.take_sockets(left.as_ref(), &service.passed)?;
        let passed = if left.is_none() { &service.passed[..] } else { &[] };
        let unwanted = listeners.take_stored(passed, &self.config.bind);
        let names = resolve_hosts(&self.config.bind)?;
        listeners.resolve_bind_addrs(&mut self.config.bind, &names);
        let slots = self.slots(left.as_ref());
        listeners.open_missing_sockets(&self.config.bind, self.config.backlog, slots)?;
        let manager = self.manager(service, left.is_some(), &unwanted);
        let entry = self.kinds.entry(make()?);
        let files = Files { listeners, pid_file, mail: self.mail, manager };
        let (reread, hooks, desks) = (self.reread, self.hooks, self.desks);
        let application = Application { entry, reread, hooks, kinds, desks };
        let primary = Primary::new(self.config, application, files, launcher, left)?;
        drop(unmanned);
        Ok(primary)
    }

    /// The pid file of the image before this one, where the configuration names the same; else a new one.
    fn take_pid_file(&self, left: Option<&Manifest>) -> Result<Option<PidFile>> {
        let passed = left.and_then(|manifest| manifest.pid_file.as_ref());
        // Its own file is removed when another one is configured.
        let inherited = passed.and_then(|passed| PidFile::inherit(passed).ok());
        let Some(path) = self.config.pid_file.as_deref() else { return Ok(None) };
        match inherited.filter(|file| file.path() == path && file.is_intact()) {
            Some(file) => Ok(Some(file)),
            None => PidFile::create(path).map(Some),
        }
    }

    fn redirect_log(&self, taken_over: bool) -> Result<()> {
        let Some(path) = self.config.log_file.as_deref() else { return Ok(()) };
        // The image before has left that descriptor as standard error.
        if taken_over && inherited_descriptor(path).is_some() {
            return Ok(());
        }
        let file = LogFile::open(path)?;
        file.redirect()
            .map_err(|e| Error::system(format!("write the log to {}", path.display()), e))?;
        Ok(())
    }

    /// As a child of the primary that wants to become this binary: does all that can fail before it does so,
    /// and tells it how that went.
    fn show_fitness(
        mut self,
        manifest: &Manifest,
        answer: &OwnedFd,
        make: impl FnOnce() -> Result<WorkerApp>,
    ) -> ExitCode {
        let unblocked = prefork_os::signal::unblock_all_signals()
            .map_err(|e| Error::system("let signals in", e));
        let outcome = unblocked.and_then(|()| self.take_sockets(Some(manifest), &[])).and_then(
            |mut listeners| {
                permit(&self.config)?;
                let names = resolve_hosts(&self.config.bind)?;
                listeners.resolve_bind_addrs(&mut self.config.bind, &names);
                let slots = self.slots(Some(manifest));
                listeners.check_bindable(&self.config.bind, self.config.backlog, slots)?;
                drop(listeners);
                primary::prove(self.config, &self.kinds.entry(make()?))
            },
        );
        upgrade::answer(answer, manifest, &outcome);
        ExitCode::from(outcome.map_or_else(|e| e.exit_status(), |()| exit::OK))
    }
}

/// Whether workers can become whom the configuration names.
fn permit(config: &Config) -> Result<()> {
    config.credentials().map_or(Ok(()), |credentials| credentials.permitted())
}

/// What stops a start does not stop a service that was taken over: there is no way back from an exec.
fn forgive(error: Error, taken_over: bool) -> Result<()> {
    if !taken_over {
        return Err(error);
    }
    log::error!("{error}; going on without");
    Ok(())
}
