//! Kinds of workers other than `web`, in the same cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use super::Cluster;
use crate::config::WorkerCount;
use crate::error::{BoxError, Error, Result};
use crate::isolated::ProcessCount;
use crate::process_limits::ProcessLimits;
use crate::process_settings::{ProcessOptions, collect_environment};
use crate::program;
use crate::runtime;
use crate::worker::{self, Worker, WorkerApp};
use crate::worker_init::WorkerEntry;
use crate::worker_stdio::WorkerStdio;
use prefork_supervisor::WEB_KIND;
use prefork_supervisor::{RecycleLimits, WorkerKindConfig, WorkerRange};

/// A kind of workers that serve no connections, such as consumers of a queue: its name, how many there are, and when
/// they are replaced. See [`Cluster::kind`].
#[derive(Debug, Clone)]
pub struct WorkerKind {
    config: WorkerKindConfig,
    process: ProcessOptions,
    environments: BTreeMap<u32, Vec<(String, String)>>,
}

impl WorkerKind {
    /// Creates the kind `name` with `workers` workers, which may be 0. The name stands in the log, in `prefork status` and
    /// in titles: small letters, digits, `-` and `_`; `web` is taken.
    pub fn new(name: &'static str, workers: u32) -> WorkerKind {
        WorkerKind {
            config: WorkerKindConfig {
                name,
                workers,
                demand_range: None,
                limits: RecycleLimits::default(),
                is_kept_by_reload: false,
            },
            process: ProcessOptions::default(),
            environments: BTreeMap::new(),
        }
    }

    /// Sets what the kernel enforces on each worker.
    pub(super) fn with_process_limits(mut self, limits: ProcessLimits) -> WorkerKind {
        self.process.limits = limits;
        self
    }

    /// Lets the number of workers follow the demand.
    pub(super) fn with_demand_range(mut self, min: u32, max: u32) -> WorkerKind {
        self.config.workers = min;
        self.config.demand_range = Some(WorkerRange { min, max });
        self
    }

    /// Leaves the workers of the kind alone in reloads, which then replace the others only. Default: a reload replaces them,
    /// too.
    ///
    /// For what outlives the configuration, such as a watcher that asks for reloads. Such a worker keeps the configuration it
    /// was forked with; one that replaces it after a crash has the current one. An upgrade in place replaces it.
    pub fn keep_on_reload(mut self) -> WorkerKind {
        self.config.is_kept_by_reload = true;
        self
    }

    /// Replaces a worker when it reaches this age, minus jitter. Default: never.
    pub fn max_lifetime(mut self, age: Duration) -> WorkerKind {
        self.config.limits.max_lifetime = Some(age);
        self
    }

    /// Replaces a worker that uses more than this many bytes of memory. Default: never.
    pub fn max_rss(mut self, bytes: u64) -> WorkerKind {
        self.config.limits.max_rss = Some(bytes);
        self
    }

    /// Kills and replaces a worker that uses more than this many bytes of memory. Default: never.
    pub fn max_rss_hard(mut self, bytes: u64) -> WorkerKind {
        self.config.limits.max_rss_hard = Some(bytes);
        self
    }

    /// Sets the standard streams of the workers. Default: [`WorkerStdio::Inherit`], those of the primary.
    pub fn stdio(mut self, stdio: WorkerStdio) -> WorkerKind {
        self.process.stdio = stdio;
        self
    }

    /// Runs the workers as this user: a name or a number. Default: the user of the configuration, or that of the primary.
    ///
    /// Privileges are dropped right after the fork, before any code of the application. `serve` returns an error, before
    /// anything is bound, if the user is unknown or the primary may not become it.
    pub fn user(mut self, user: impl Into<String>) -> WorkerKind {
        self.process.user = Some(user.into());
        self
    }

    /// Runs the workers with this group, a name or a number, besides [`user`](WorkerKind::user), which it requires. Default:
    /// the main group of that user.
    pub fn group(mut self, group: impl Into<String>) -> WorkerKind {
        self.process.group = Some(group.into());
        self
    }

    /// Sets the current directory of the workers. Default: that of the primary.
    ///
    /// `serve` returns an error if it is no directory. Each worker changes to it with the privileges of its user.
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> WorkerKind {
        self.process.current_dir = Some(dir.into());
        self
    }

    /// Makes each worker the leader of a process group of its own. When the worker ends, in whatever way, the programs that
    /// it has started and that still run are killed with it. Default: off, they run on.
    ///
    /// A program that changes its process group or its session, such as a daemon, is not killed. Ctrl-C in a terminal does
    /// not reach the group; the primary, which it reaches, stops all workers. Reading from the terminal fails with EIO.
    pub fn own_process_group(mut self) -> WorkerKind {
        self.process.limits.has_own_group = true;
        self
    }

    /// Limits the private writable memory of a worker in bytes (RLIMIT_DATA), used or only reserved: an allocation beyond
    /// it fails. Default: the limit of the primary.
    pub fn max_data_bytes(mut self, bytes: u64) -> WorkerKind {
        self.process.limits.max_data = Some(bytes);
        self
    }

    /// Limits all memory that a worker maps, in bytes (RLIMIT_AS): private and shared memory, files, and addresses that are
    /// only reserved, of which a Rust program has far more than it uses. Default: the limit of the primary.
    pub fn max_address_space_bytes(mut self, bytes: u64) -> WorkerKind {
        self.process.limits.max_address_space = Some(bytes);
        self
    }

    /// Limits the number of open files and sockets of a worker (RLIMIT_NOFILE). The library needs about 20 of them.
    /// Default: the limit of the primary.
    pub fn open_files(mut self, files: u64) -> WorkerKind {
        self.process.limits.open_files = Some(files);
        self
    }

    /// Sets whether a crash of a worker may leave a core dump, as far as the system allows it. Default: `true`.
    pub fn core_dumps(mut self, may_dump: bool) -> WorkerKind {
        self.process.limits.has_no_core_dumps = !may_dump;
        self
    }

    /// Sets environment variables of the `n`th worker of the kind, counted from 0; see
    /// [`Cluster::slot_env`](crate::Cluster::slot_env).
    ///
    /// # Errors
    /// A name is empty or contains `=` or NUL, or a value contains NUL.
    pub fn slot_env<K: Into<String>, V: Into<String>>(
        mut self,
        n: u32,
        environment: impl IntoIterator<Item = (K, V)>,
    ) -> Result<WorkerKind> {
        self.environments.insert(n, collect_environment(environment)?);
        Ok(self)
    }
}

/// The kinds other than `web` that the program declared.
#[derive(Default)]
pub(super) struct WorkerKinds {
    declared: Vec<(WorkerKind, WorkerApp)>,
    /// The numbers of processes of those that are isolated pools.
    pools: BTreeMap<&'static str, ProcessCount>,
}

impl WorkerKinds {
    pub(super) fn add(&mut self, kind: WorkerKind, app: WorkerApp) {
        self.declared.push((kind, app));
    }

    /// Adds the processes of an isolated pool.
    pub(super) fn add_pool(&mut self, kind: WorkerKind, app: WorkerApp, processes: ProcessCount) {
        self.pools.insert(kind.config.name, processes);
        self.add(kind, app);
    }

    /// Returns the configuration of the kinds for the supervisor.
    pub(super) fn check_configs(&self) -> Result<Vec<WorkerKindConfig>> {
        let (mut names, mut workers) = (BTreeSet::from([WEB_KIND]), 0u32);
        for (WorkerKind { config, .. }, _) in &self.declared {
            let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_".contains(&c);
            let name = config.name;
            if name.is_empty() || !name.bytes().all(plain) {
                return Err(Error::config(format!(
                    "{name:?} is no name for a kind of workers: take small letters, digits, - and _"
                )));
            }
            if let Some(processes) = self.pools.get(name) {
                check_pool(name, *processes)?;
            }
            if !names.insert(name) {
                return Err(Error::config(format!("the kind of workers {name} is there twice")));
            }
            let max = config.demand_range.map_or(config.workers, |range| range.max);
            workers = workers.saturating_add(max);
        }
        if workers > WorkerCount::MAX {
            let most = WorkerCount::MAX;
            return Err(Error::config(format!(
                "{workers} workers of other kinds than web are out of range: give up to {most}"
            )));
        }
        Ok(self.declared.iter().map(|(kind, _)| kind.config.clone()).collect())
    }

    /// Returns the process settings of each kind, as the program gave them.
    pub(super) fn process_options(&self) -> impl Iterator<Item = (&'static str, &ProcessOptions)> {
        self.declared.iter().map(|(kind, _)| (kind.config.name, &kind.process))
    }

    /// The entry function of a worker, by its kind: `web` is the application's that serves, under any concurrency model; a
    /// worker of another kind always is one process with one loop.
    pub(super) fn into_worker_entry(self, web: WorkerApp) -> WorkerEntry {
        let apps: Vec<(&'static str, WorkerApp)> =
            self.declared.into_iter().map(|(kind, app)| (kind.config.name, app)).collect();
        Box::new(move |init| match apps.iter().find(|(name, _)| *name == init.tag.kind) {
            Some((_, app)) => worker::run_worker(init, app),
            None if init.config.program().is_some() => program::guard::run_guard(init),
            None => runtime::enter(init, &web),
        })
    }
}

/// Checks what is particular to an isolated pool.
fn check_pool(name: &str, processes: ProcessCount) -> Result<()> {
    let ProcessCount { min, max } = processes;
    if name == WEB_KIND {
        return Err(Error::config(format!(
            "an isolated pool cannot have the name {name}, which is the kind of the workers that serve: choose another one"
        )));
    }
    if min > max {
        return Err(Error::config(format!(
            "the isolated pool {name} has the range {min}..={max} of processes, which is empty: give {max}..={min}"
        )));
    }
    if max == 0 {
        return Err(Error::config(format!(
            "the isolated pool {name} has no processes and would never run a job: give 1 or more"
        )));
    }
    Ok(())
}

impl Cluster {
    /// Adds workers of another kind beside those that serve (`web`), supervised in the same way: replaced when they die,
    /// with the same back-off; watched for frozen loops; rolled by reloads and upgrades, and drained by stops. They have no
    /// listening sockets and take no part in the dispatch of connections.
    ///
    /// `app` runs once in each, inside its single-threaded runtime. It is ready when its future waits for the first
    /// time, so it should wait for what it needs; an error before that is a boot that failed. When
    /// [`Worker::draining`] resolves it should finish, within `graceful-timeout`; then it is cut. One that ends
    /// without being told to is replaced as one that has died.
    ///
    /// During a reload a new worker is ready before the old one is told to leave: for a moment both run. The trial of
    /// an upgrade boots a `web` worker only.
    ///
    /// ```no_run
    /// # use http_body_util::Full;
    /// # use hyper::body::{Bytes, Incoming};
    /// # use hyper::{Request, Response, service::service_fn};
    /// use tokio_prefork::{Cluster, Config, WorkerKind, Worker};
    ///
    /// # fn run(config: Config) -> tokio_prefork::Result<()> {
    /// Cluster::new(config)
    ///     .kind(WorkerKind::new("consumer", 1), |worker: Worker| async move {
    ///         let mut jobs = worker.open_inbox("job");
    ///         loop {
    ///             tokio::select! {
    ///                 biased; // First the jobs that are here. What is left goes to the next worker.
    ///                 Some(job) = jobs.recv() => println!("{:?}", job.bytes()),
    ///                 () = worker.draining() => return Ok(()),
    ///             }
    ///         }
    ///     })
    ///     .serve(|worker: Worker| async move {
    ///         Ok(service_fn(move |_: Request<Incoming>| {
    ///             let worker = worker.clone();
    ///             async move {
    ///                 if let Some(consumer) = worker.slot_of_kind("consumer", 0) {
    ///                     let _ = worker.send_to(consumer, "job", "a job").await;
    ///                 }
    ///                 Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from("taken\n"))))
    ///             }
    ///         }))
    ///     })
    /// # }
    /// ```
    pub fn kind<A, F>(mut self, kind: WorkerKind, app: A) -> Cluster
    where
        A: Fn(Worker) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), BoxError>> + 'static,
    {
        let name = kind.config.name;
        let environments = kind.environments.iter().map(|(n, own)| ((name, *n), own.clone()));
        self.slot_environments.extend(environments);
        self.kinds.add(kind, worker::custom_kind_app(app));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_kinds(kinds: &[(&'static str, u32)]) -> Result<Vec<WorkerKindConfig>> {
        let mut all = WorkerKinds::default();
        for (name, workers) in kinds {
            all.add(WorkerKind::new(name, *workers), worker::custom_kind_app(|_| async { Ok(()) }));
        }
        all.check_configs()
    }

    #[test]
    fn kinds_have_names_of_their_own_and_not_too_many_workers() {
        assert_eq!(check_kinds(&[("consumer", 2), ("cron-1", 0)]).expect("fine").len(), 2);
        for bad in [&[("web", 1)][..], &[("a", 1), ("a", 1)], &[("", 1)], &[("A b", 1)]] {
            assert!(check_kinds(bad).is_err(), "{bad:?}");
        }
        assert!(check_kinds(&[("a", WorkerCount::MAX), ("b", 1)]).is_err());
    }

    fn check_pool_named(name: &'static str, processes: impl Into<ProcessCount>) -> Result<()> {
        let mut all = WorkerKinds::default();
        let kind = WorkerKind::new(name, 1);
        all.add_pool(kind, worker::custom_kind_app(|_| async { Ok(()) }), processes.into());
        all.check_configs().map(drop)
    }

    #[test]
    fn an_isolated_pool_has_processes_and_a_name_of_its_own() {
        for fine in [ProcessCount::from(1), (0..=1).into(), (2..=2).into()] {
            check_pool_named("danger", fine).expect("fine");
        }
        #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
        let reversed = ProcessCount::from(4..=1);
        for (name, processes, reason) in [
            ("danger", ProcessCount::from(0), "danger has no processes"),
            ("danger", (0..=0).into(), "danger has no processes"),
            ("danger", reversed, "the range 4..=1"),
            ("web", 1.into(), "cannot have the name web"),
        ] {
            let error = check_pool_named(name, processes).expect_err(reason).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
