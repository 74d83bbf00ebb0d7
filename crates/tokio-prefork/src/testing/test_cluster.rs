//! `TestCluster`: the test's handle to a running cluster.

use std::net::SocketAddr;
use std::process::{Child, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response};

use super::cluster_process::control_path;
use super::start_error::end_of_log;
use super::test_directory::TestDirectory;
use super::{StartError, TestClusterBuilder, http_client};
use crate::config::ConfigBuilder;
use crate::control::ControlClient;
use crate::error::{BoxError, Result};
use crate::listener::ListenAddr;
use crate::status::{ClusterStatus, PrimaryPhase, WorkerState, WorkerStatus};
use crate::worker::Worker;
use crate::worker::http::into_service::IntoHttpService;
use prefork_os::child::PidFd;
use prefork_os::process_entry::require_no_captures;
use prefork_os::signal::Signal;
use prefork_supervisor::WorkerId;

/// How often a wait looks again.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How long a dropped cluster has to stop before its processes are killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A running cluster, for tests. See the [module](super).
///
/// Dropping it stops the cluster at once. `Send` and `Sync`: several tests may share one in a `static`
/// [`LazyLock`](std::sync::LazyLock).
///
/// # Panics
///
/// The methods that wait or ask panic if the cluster has exited, refuses, or does not do what is waited for within the
/// [timeout](TestClusterBuilder::timeout). The message has the end of the cluster's log.
#[derive(Debug)]
pub struct TestCluster {
    process: ClusterProcess,
    addresses: Vec<ListenAddr>,
}

/// The process of the primary, and the directory that it shares with the test.
#[derive(Debug)]
pub(super) struct ClusterProcess {
    pid: u32,
    child: Mutex<Child>,
    directory: TestDirectory,
    timeout: Duration,
}

impl TestCluster {
    /// Returns a builder, to set the number of workers, environment variables, and more.
    pub fn builder() -> TestClusterBuilder {
        TestClusterBuilder::new()
    }

    /// Starts a cluster of two workers that serves `app`, as [`Cluster::serve`](crate::Cluster::serve) would, and waits
    /// until they serve.
    ///
    /// # Panics
    ///
    /// The cluster does not start. [`TestClusterBuilder::spawn`] returns the error instead.
    #[track_caller]
    pub fn spawn<A, F, S, M>(app: A) -> TestCluster
    where
        A: Fn(Worker) -> F + Send + Sync + 'static,
        F: Future<Output = Result<S, BoxError>> + 'static,
        S: IntoHttpService<M>,
    {
        const { require_no_captures::<A>() };
        TestCluster::builder().spawn(app).unwrap_or_else(|e| panic!("{e:?}"))
    }

    /// Starts a program that makes its [`Cluster`](crate::Cluster) itself, with two workers, and waits until they serve.
    ///
    /// # Panics
    ///
    /// The cluster does not start. [`TestClusterBuilder::spawn_program`] returns the error instead.
    #[track_caller]
    pub fn spawn_program<P, T, E>(program: P) -> TestCluster
    where
        P: FnOnce(ConfigBuilder) -> Result<T, E> + 'static,
        E: Into<BoxError>,
    {
        const { require_no_captures::<P>() };
        TestCluster::builder().spawn_program(program).unwrap_or_else(|e| panic!("{e:?}"))
    }

    pub(super) fn new(process: ClusterProcess, addresses: Vec<ListenAddr>) -> TestCluster {
        TestCluster { process, addresses }
    }

    /// Returns the addresses on which the cluster listened when it had started, with their real ports.
    pub fn addresses(&self) -> &[ListenAddr] {
        &self.addresses
    }

    /// Returns the first TCP address.
    ///
    /// # Panics
    ///
    /// The cluster listens on Unix sockets only.
    #[track_caller]
    pub fn addr(&self) -> SocketAddr {
        let tcp = self.addresses.iter().find_map(|addr| match addr {
            ListenAddr::Tcp(addr) => Some(*addr),
            ListenAddr::Host(_) | ListenAddr::Unix(_) | ListenAddr::Fd(_) => None,
        });
        tcp.expect("the test cluster listens on no TCP address")
    }

    /// Returns the port of [`TestCluster::addr`].
    #[track_caller]
    pub fn port(&self) -> u16 {
        self.addr().port()
    }

    /// Returns `http://ADDR` followed by `path`, for an HTTP client.
    #[track_caller]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr())
    }

    /// Returns the pid of the primary.
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Sends a GET request to the first address, on a new connection, and returns the response with its body.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response<Bytes> {
        let request = Request::get(path).body(Full::default());
        self.send(request.unwrap_or_else(|e| panic!("{path:?} is not a path for a request: {e}")))
    }

    /// Sends a request to the first address, on a new HTTP/1.1 connection, and returns the response with its body. Adds the
    /// header `Host` if it is missing.
    #[track_caller]
    pub fn send(&self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        let shown = format!("{} {}", request.method(), request.uri());
        let addr = self.addresses.first().expect("the test cluster listens on no address");
        http_client::send_request(addr, request, self.process.timeout)
            .unwrap_or_else(|e| self.process.fail(&format!("no response to {shown}: {e}")))
    }

    /// Connects to the control socket, for requests whose failure the test expects, and for scaling, upgrades and events.
    #[track_caller]
    pub fn control(&self) -> ControlClient {
        self.process.connect().unwrap_or_else(|e| self.process.fail(&e.to_string()))
    }

    /// Returns the status of the cluster.
    #[track_caller]
    pub fn status(&self) -> ClusterStatus {
        self.control().status().unwrap_or_else(|e| self.process.fail(&e.to_string()))
    }

    /// Returns the workers that serve, oldest first: those of all kinds, but none that starts or drains.
    #[track_caller]
    pub fn workers(&self) -> Vec<WorkerStatus> {
        let mut workers = self.status().workers;
        workers.retain(|worker| worker.state == WorkerState::Serving);
        workers
    }

    /// Kills the worker with this [id](WorkerStatus::id) with SIGKILL. Returns before the primary has noticed: see
    /// [`TestCluster::wait_for_replacement`].
    #[track_caller]
    pub fn kill(&self, worker: WorkerId) {
        self.signal(worker, Signal::SIGKILL as i32);
    }

    /// Sends a signal, by its number, to the worker with this [id](WorkerStatus::id).
    #[track_caller]
    pub fn signal(&self, worker: WorkerId, signal: i32) {
        let signal =
            Signal::try_from(signal).unwrap_or_else(|_| panic!("there is no signal {signal}"));
        let find_pid = || self.status().workers.iter().find(|w| w.id == worker)?.pid;
        let failed =
            |why: &str| self.process.fail(&format!("cannot signal worker {worker}: {why}"));
        let Some(pid) = find_pid() else { failed("there is none with this id") };
        let process = PidFd::open(pid).unwrap_or_else(|e| failed(&e.to_string()));
        // The pid may have been reused between the status and the open.
        if find_pid() != Some(pid) {
            failed("it has exited");
        }
        process.send_signal(signal).unwrap_or_else(|e| failed(&e.to_string()));
    }

    /// Sends a signal, by its number, to the primary.
    #[track_caller]
    pub fn signal_primary(&self, signal: i32) {
        let signal =
            Signal::try_from(signal).unwrap_or_else(|_| panic!("there is no signal {signal}"));
        self.process.signal(signal);
    }

    /// Replaces all workers, as SIGHUP does, and returns when the new ones serve and the old ones have exited, so that the next
    /// response is a new worker's.
    ///
    /// Old workers wait for their open requests: a test that holds one open reloads with [`TestCluster::control`].
    #[track_caller]
    pub fn reload(&self) {
        let timeout = self.process.timeout;
        let reloaded = self.control().timeout(timeout).reload();
        reloaded.unwrap_or_else(|e| self.process.fail(&format!("the reload failed: {e}")));
        self.wait_until("the workers of before the reload have exited", |status| {
            status.workers.iter().all(|worker| worker.generation == status.primary.generation)
        });
    }

    /// Changes the number of workers that serve connections, and returns when as many serve.
    #[track_caller]
    pub fn scale(&self, workers: u32) {
        let scaled = self.control().scale_to(workers);
        scaled.unwrap_or_else(|e| self.process.fail(&format!("cannot scale: {e}")));
        self.wait_until(&format!("{workers} workers serve"), |status| {
            is_settled(status) && status.primary.workers_wanted == workers
        });
    }

    /// Stops the cluster gracefully, waits until the primary has exited and returns its exit status. [`TestCluster::log`]
    /// stays readable.
    #[track_caller]
    pub fn stop(&self) -> ExitStatus {
        self.process.signal(Signal::SIGTERM);
        self.wait_for_exit()
    }

    /// Waits until the primary has exited, and returns its exit status.
    #[track_caller]
    pub fn wait_for_exit(&self) -> ExitStatus {
        let deadline = Instant::now() + self.process.timeout;
        loop {
            if let Some(status) = self.process.exit_status() {
                self.process.directory.remove();
                return status;
            }
            self.process.pause(deadline, "the exit of the primary");
        }
    }

    /// Waits until `condition` holds for the status, and returns that status. `what` names the condition in the message of the
    /// panic: "two requests are in progress".
    #[track_caller]
    pub fn wait_until(
        &self,
        what: &str,
        mut condition: impl FnMut(&ClusterStatus) -> bool,
    ) -> ClusterStatus {
        let deadline = Instant::now() + self.process.timeout;
        loop {
            let status = self.status();
            if condition(&status) {
                return status;
            }
            self.process.pause(deadline, what);
        }
    }

    /// Waits until the worker with this [id](WorkerStatus::id) is gone and all slots have a serving worker, and returns the
    /// new worker in its slot.
    #[track_caller]
    pub fn wait_for_replacement(&self, worker: WorkerId) -> WorkerStatus {
        let known = self.status().workers.into_iter().find(|known| known.id == worker);
        let slot = known.map(|known| known.slot);
        let status = self.wait_until(&format!("worker {worker} is replaced"), |status| {
            let is_gone = status.workers.iter().all(|other| other.id != worker);
            is_gone && is_settled(status)
        });
        let newest = |slot| status.workers.iter().filter(|w| w.slot == slot).max_by_key(|w| w.id);
        // A worker that was gone before: the newest of all is the most likely.
        let found = slot.and_then(newest).or(status.workers.iter().max_by_key(|w| w.id));
        found.cloned().unwrap_or_else(|| self.process.fail("no worker is left"))
    }

    /// Waits until a line of the log contains `text`, and returns that line.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) -> String {
        let deadline = Instant::now() + self.process.timeout;
        loop {
            // Read before the log, so that nothing is written after the last look.
            let is_over = self.process.exit_status().is_some();
            if let Some(line) = self.log().lines().find(|line| line.contains(text)) {
                return line.to_string();
            }
            if is_over {
                self.process.fail(&format!("the cluster exited without {text:?} in its log"));
            }
            self.process.pause(deadline, &format!("{text:?} in the log"));
        }
    }

    /// Returns what all processes of the cluster have written to standard output and standard error so far.
    pub fn log(&self) -> String {
        self.process.directory.read_log()
    }
}

/// Returns whether as many workers serve as are wanted, of each kind, and no others exist.
fn is_settled(status: &ClusterStatus) -> bool {
    let filled_slots = wanted_workers(status).saturating_sub(status.primary.empty_slots.len());
    status.primary.phase == PrimaryPhase::Running
        && status.workers.len() == filled_slots
        && status.workers.iter().all(|worker| worker.state == WorkerState::Serving)
}

/// Returns how many workers of all kinds there should be.
fn wanted_workers(status: &ClusterStatus) -> usize {
    let kinds = status.primary.kinds.iter().map(|kind| kind.workers_wanted).sum::<u32>();
    (status.primary.workers_wanted + kinds) as usize
}

/// Returns whether there were more workers than are wanted: ids are never reused.
fn has_replaced_worker(status: &ClusterStatus) -> bool {
    status.workers.iter().any(|worker| worker.id.0 > wanted_workers(status) as u64)
}

impl ClusterProcess {
    pub(super) fn new(child: Child, directory: TestDirectory, timeout: Duration) -> ClusterProcess {
        ClusterProcess { pid: child.id(), child: Mutex::new(child), directory, timeout }
    }

    /// Waits until all workers serve, and returns the addresses of the cluster.
    pub(super) fn wait_until_ready(&self) -> Result<Vec<ListenAddr>, StartError> {
        let deadline = Instant::now() + self.timeout;
        loop {
            // Asked before the status, so that a cluster that exits meanwhile is noticed in the next round.
            let exit_status = self.exit_status();
            let status = self.connect().and_then(|mut client| client.status()).ok();
            let reason = match (&status, exit_status) {
                (_, Some(status)) => {
                    Some(format!("it exited before all workers served ({status})"))
                }
                (Some(status), _) if is_settled(status) => {
                    let addrs = status.listeners.iter().map(|addr| parse_bound_addr(addr));
                    return Ok(addrs.collect::<Result<_>>()?);
                }
                (Some(status), _) if has_replaced_worker(status) => {
                    Some("a worker exited before all workers served".to_string())
                }
                _ if Instant::now() >= deadline => {
                    Some(format!("not all workers serve after {:?}", self.timeout))
                }
                _ => None,
            };
            if let Some(reason) = reason {
                return Err(StartError { reason, exit_status, log: self.directory.read_log() });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn connect(&self) -> Result<ControlClient> {
        ControlClient::connect(control_path(self.directory.path()))
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        // No code panics with the lock held.
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the exit status of the primary if it has exited.
    fn exit_status(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// Signals the primary, unless it has exited.
    fn signal(&self, signal: Signal) {
        let mut child = self.child();
        // Only `try_wait` reaps the child, so that its pid cannot be another process's here.
        if matches!(child.try_wait(), Ok(None)) {
            // It may have become a zombie meanwhile.
            let _ = prefork_os::child::signal_child(self.pid, signal);
        }
    }

    /// Sleeps before the next look, or fails if the deadline has passed.
    #[track_caller]
    fn pause(&self, deadline: Instant, what: &str) {
        if Instant::now() >= deadline {
            self.fail(&format!("waited {:?} for: {what}", self.timeout));
        }
        std::thread::sleep(POLL_INTERVAL);
    }

    #[track_caller]
    fn fail(&self, why: &str) -> ! {
        let exited =
            self.exit_status().map(|status| format!(" (the primary has exited: {status})"));
        panic!("{why}{}", exited.unwrap_or_default())
    }

    /// Stops the primary at once; kills it and its workers if it does not stop in time.
    fn end(&self) {
        self.signal(Signal::SIGQUIT);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.exit_status().is_none() {
            if Instant::now() >= deadline {
                let workers: Vec<PidFd> = prefork_os::process::child_pids(self.pid)
                    .into_iter()
                    .filter_map(|pid| PidFd::open(pid).ok())
                    .collect();
                let mut child = self.child();
                // It may have exited at this moment.
                let _ = child.kill();
                let _ = child.wait();
                for worker in workers {
                    let _ = worker.send_signal(Signal::SIGKILL);
                }
                return;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for ClusterProcess {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!(
                "test cluster with pid {}: {}",
                self.pid,
                end_of_log(&self.directory.read_log())
            );
        }
    }
}

/// Parses an address of the status: `http://127.0.0.1:3000` or `unix:/run/app.sock`.
fn parse_bound_addr(text: &str) -> Result<ListenAddr> {
    text.strip_prefix("http://").unwrap_or(text).parse()
}
