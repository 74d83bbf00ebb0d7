//! Settings of worker processes: standard streams, current directory and variables of slots.

use std::path::PathBuf;

use super::Cluster;
use crate::error::Result;
use crate::primary::PrimaryHandle;
use crate::process_settings::{ProcessSettingsByKind, collect_environment};
use crate::worker_stdio::{OutputStream, WorkerStdio};
use prefork_supervisor::{WEB_KIND, WorkerTag};

impl Cluster {
    /// Sets the standard streams of `web` workers. Default: [`WorkerStdio::Inherit`], those of the primary. Other kinds have
    /// [`WorkerKind::stdio`](crate::WorkerKind::stdio).
    ///
    /// The log of this library is not affected; it goes to the standard error of the primary.
    pub fn worker_stdio(mut self, stdio: WorkerStdio) -> Cluster {
        self.web_process.stdio = stdio;
        self
    }

    /// Sets the current directory of `web` workers. Default: that of the primary. Other kinds have
    /// [`WorkerKind::current_dir`](crate::WorkerKind::current_dir).
    ///
    /// `serve` returns an error if it is no directory. Each worker changes to it with the privileges of its user.
    pub fn worker_current_dir(mut self, dir: impl Into<PathBuf>) -> Cluster {
        self.web_process.current_dir = Some(dir.into());
        self
    }

    /// Calls `hook` in the primary for each line that a worker with [`WorkerStdio::Lines`] prints: the worker, the stream, and
    /// the bytes without the line feed, which need not be UTF-8. Without a hook, the primary logs each line at level
    /// info. The last hook counts.
    ///
    /// - A line longer than 8192 bytes comes in several parts. What a worker prints last counts as a line without a line
    ///   feed too.
    /// - Lines come before the worker's `Exit`, unless the hook takes more than 100 ms for the last ones.
    /// - A worker that prints faster than the hook returns waits in its write, as with any pipe. Its event loop waits
    ///   too, so keep the hook short, as [`Cluster::on_event`] asks for.
    /// - After the death of the primary, the output of its last workers goes to `/dev/null`. An upgrade in place passes the
    ///   pipes on.
    ///
    /// ```no_run
    /// # use tokio_prefork::{Cluster, Config, WorkerStdio};
    /// # fn run(config: Config) {
    /// let cluster = Cluster::new(config).worker_stdio(WorkerStdio::Lines).on_output(
    ///     |_, worker, stream, line| {
    ///         println!("[{} {stream}] {}", worker.id, String::from_utf8_lossy(line));
    ///     },
    /// );
    /// # }
    /// ```
    pub fn on_output(
        mut self,
        hook: impl FnMut(&mut PrimaryHandle<'_>, WorkerTag, OutputStream, &[u8]) + 'static,
    ) -> Cluster {
        self.on_output = Some(Box::new(hook));
        self
    }

    /// Sets environment variables of the `web` workers in slot `slot` (from 0), the first one included, besides those of the
    /// primary. A second call for the slot replaces them. Other kinds have
    /// [`WorkerKind::slot_env`](crate::WorkerKind::slot_env).
    ///
    /// A slot that does not exist yet has them when `scale` adds it. A worker that
    /// [`fork_with`](PrimaryHandle::fork_with) adds has its own variables instead.
    ///
    /// ```no_run
    /// # use tokio_prefork::{Cluster, Config};
    /// # fn run() -> tokio_prefork::Result<()> {
    /// let config = Config::builder().workers(2).build()?;
    /// let cluster = Cluster::new(config).slot_env(0, [("ROLE", "mail")])?.slot_env(1, [("ROLE", "cron")])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// A name is empty or contains `=` or NUL, or a value contains NUL.
    pub fn slot_env<K: Into<String>, V: Into<String>>(
        mut self,
        slot: u32,
        environment: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Cluster> {
        self.slot_environments.insert((WEB_KIND, slot), collect_environment(environment)?);
        Ok(self)
    }

    /// Resolves and checks the settings of all kinds.
    pub(super) fn process_settings(&self) -> Result<ProcessSettingsByKind> {
        let web = [(WEB_KIND, &self.web_process)].into_iter();
        let all = web.chain(self.kinds.process_options());
        all.map(|(kind, options)| Ok((kind, options.resolve(kind)?))).collect()
    }
}
