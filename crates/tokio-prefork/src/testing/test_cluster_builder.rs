//! The builder of a test cluster, and its start.

use std::ffi::OsString;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cluster_process::{self, DIRECTORY_VARIABLE, StartSettings};
use super::spawner::spawn_until_process_exit;
use super::test_cluster::ClusterProcess;
use super::test_directory::TestDirectory;
use super::{StartError, TestCluster};
use crate::cluster::Cluster;
use crate::config::ConfigBuilder;
use crate::error::{BoxError, Error, Result};
use crate::systemd::SERVICE_MANAGER_VARIABLES;
use crate::worker::Worker;
use crate::worker::http::into_service::IntoHttpService;
use prefork_os::process_entry::{ProcessEntry, require_no_captures};

/// How long a cluster may take to start, and how long waits of the test last at most, unless the test sets another time.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Sets how a [`TestCluster`] starts. Created by [`TestCluster::builder`].
///
/// ```
/// use axum::{Router, routing::get};
/// use tokio_prefork::Cluster;
/// use tokio_prefork::testing::TestCluster;
///
/// let greeting = "hello".to_string();
/// let cluster = TestCluster::builder()
///     .workers(3)
///     .env("REGION", "eu")
///     .spawn_program_with(greeting, |config, greeting: String| {
///         let config = config.graceful_timeout(std::time::Duration::from_secs(5)).build()?;
///         Cluster::new(config).serve(move |_worker| {
///             let greeting = greeting.clone();
///             async move {
///                 let text = format!("{greeting} from {}", std::env::var("REGION")?);
///                 Ok(Router::new().route("/", get(text)))
///             }
///         })
///     })?;
/// assert_eq!(cluster.get("/").body(), "hello from eu");
/// # Ok::<(), tokio_prefork::testing::StartError>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct TestClusterBuilder {
    workers: u32,
    timeout: Duration,
    variables: Vec<(OsString, Option<OsString>)>,
}

impl TestClusterBuilder {
    pub(super) fn new() -> TestClusterBuilder {
        TestClusterBuilder { workers: 2, timeout: DEFAULT_TIMEOUT, variables: Vec::new() }
    }

    /// Sets the number of workers. Default: 2.
    pub fn workers(mut self, workers: u32) -> TestClusterBuilder {
        self.workers = workers;
        self
    }

    /// Sets how long the start, and each wait on the [`TestCluster`], may take. Default: 30 s.
    pub fn timeout(mut self, timeout: Duration) -> TestClusterBuilder {
        self.timeout = timeout;
        self
    }

    /// Sets an environment variable of the cluster's processes, which have those of the test besides.
    pub fn env(
        mut self,
        name: impl Into<OsString>,
        value: impl Into<OsString>,
    ) -> TestClusterBuilder {
        self.variables.push((name.into(), Some(value.into())));
        self
    }

    /// Removes an environment variable from those of the cluster's processes.
    pub fn env_remove(mut self, name: impl Into<OsString>) -> TestClusterBuilder {
        self.variables.push((name.into(), None));
        self
    }

    /// Starts a cluster that serves `app`, as [`Cluster::serve`] would, and waits until all workers serve.
    ///
    /// `app` captures nothing; see the [module](super).
    ///
    /// # Errors
    ///
    /// The cluster does not start within the timeout. The text of the error has the end of its log.
    pub fn spawn<A, F, S, M>(self, app: A) -> Result<TestCluster, StartError>
    where
        A: Fn(Worker) -> F + Send + Sync + 'static,
        F: Future<Output = Result<S, BoxError>> + 'static,
        S: IntoHttpService<M>,
    {
        const { require_no_captures::<A>() };
        self.spawn_program(move |config| Cluster::new(config.build()?).serve(app))
    }

    /// Starts a program that makes its [`Cluster`] itself, with hooks, worker kinds or messages, and waits until all workers
    /// serve.
    ///
    /// `program` gets a configuration with a free port of 127.0.0.1, the number of workers, and one attempt to boot; it may
    /// change it or use another. It returns what [`Cluster::serve`] returns. It captures nothing; see the [module](super).
    ///
    /// # Errors
    ///
    /// As [`TestClusterBuilder::spawn`].
    pub fn spawn_program<P, T, E>(self, program: P) -> Result<TestCluster, StartError>
    where
        P: FnOnce(ConfigBuilder) -> Result<T, E> + 'static,
        E: Into<BoxError>,
    {
        const { require_no_captures::<P>() };
        self.spawn_program_with((), move |config, ()| program(config))
    }

    /// Starts a program with an input from the test, which is any value that serde can write as JSON: paths, addresses,
    /// settings.
    ///
    /// # Errors
    ///
    /// As [`TestClusterBuilder::spawn`]; or the input cannot be encoded.
    pub fn spawn_program_with<P, I, T, E>(
        self,
        input: I,
        program: P,
    ) -> Result<TestCluster, StartError>
    where
        P: FnOnce(ConfigBuilder, I) -> Result<T, E> + 'static,
        I: Serialize + DeserializeOwned + 'static,
        E: Into<BoxError>,
    {
        const { require_no_captures::<P>() };
        let input = serde_json::to_value(input)
            .map_err(|e| Error::application("encode the input of the test cluster", e))?;
        let entry = ProcessEntry::new(move || cluster_process::run_program(program))
            .map_err(|e| Error::system("find the program of the test cluster", e))?;
        let directory = TestDirectory::create()?;
        let settings = StartSettings { workers: self.workers, test_pid: std::process::id(), input };
        settings.write_to(directory.path())?;
        let child = self.start_process(entry, &directory)?;
        let process = ClusterProcess::new(child, directory, self.timeout);
        let addresses = process.wait_until_ready()?;
        Ok(TestCluster::new(process, addresses))
    }

    fn start_process(&self, entry: ProcessEntry, directory: &TestDirectory) -> Result<Child> {
        let mut command =
            entry.command().map_err(|e| Error::system("find the program of this test", e))?;
        let (stdout, stderr) = directory.create_log()?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        for name in SERVICE_MANAGER_VARIABLES {
            command.env_remove(name);
        }
        command.env(DIRECTORY_VARIABLE, directory.path());
        for (name, value) in &self.variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        spawn_until_process_exit(command)
    }
}
