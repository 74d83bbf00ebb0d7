//! Adds the processes of an isolated pool to a cluster.

use std::sync::Arc;

use super::{Cluster, WorkerKind};
use crate::isolated::{
    IsolatedJobScheduler, IsolatedPool, PoolDeclaration, ProcessCount, caller_message_kind,
    process_report_kind,
};
use crate::worker;

impl Cluster {
    /// Adds the processes of a pool for isolated jobs. See [`IsolatedPool`](crate::IsolatedPool) for an example.
    ///
    /// They are workers of a kind of their own (see [`Cluster::kind`]): `prefork status` shows them, and reloads and
    /// upgrades replace them. A process that drains lets its job end, up to `graceful-timeout`.
    pub fn isolated_pool<I, O, E, P>(self, pool: &IsolatedPool<I, O, E, P>) -> Cluster {
        self.add_isolated_pool(pool.declaration())
    }

    fn add_isolated_pool(mut self, pool: &Arc<PoolDeclaration>) -> Cluster {
        pool.set_registered();
        let (config, name) = (&pool.config, pool.config.name);
        let limits = &config.limits;
        let ProcessCount { min, max } = config.processes;
        let mut kind = WorkerKind::new(name, max).with_process_limits(limits.process_limits());
        if min < max {
            kind = kind.with_demand_range(min, max);
        }
        if let Some(bytes) = limits.max_rss {
            kind = kind.max_rss_hard(bytes);
        }
        let make_runner = Arc::clone(&pool.make_runner);
        let app = worker::isolated_process_app(make_runner, limits.thread_limits());
        self.kinds.add_pool(kind, app, config.processes);
        self.isolated_pools.insert(name, IsolatedJobScheduler::new(config));
        self.on_message(&caller_message_kind(name), move |primary, from, message| {
            primary.handle_job_caller(name, from, message);
        })
        .on_message(&process_report_kind(name), move |primary, from, message| {
            primary.handle_job_report(name, from, message);
        })
    }
}
