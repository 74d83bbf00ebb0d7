//! Pools of worker processes for isolated jobs.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Cluster, WorkerKind};
use crate::isolated::{
    IsolatedJobScheduler, IsolatedPoolConfig, job_cancel_kind, job_request_kind, job_result_kind,
};
use crate::worker;

impl Cluster {
    /// Adds a pool of processes for jobs that may crash, leak or never end, which no thread could contain. `work` runs in them, one job at a time in each; any worker that serves gives them jobs with
    /// [`Worker::isolated_pool`](crate::Worker::isolated_pool). A job that ends its process costs nothing but that process,
    /// which is replaced at once, and its caller is told at once.
    ///
    /// They are workers of a kind of their own (see [`Cluster::kind`]): `prefork status` shows them, and reloads and
    /// upgrades replace them. Input and output cross two channels, encoded as messages are (see
    /// [`IntoPayload`](crate::IntoPayload)), so give large data by name. `work` runs in a thread beside the worker's loop; it is not interrupted when the worker drains, up
    /// to `graceful-timeout`.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// # use http_body_util::Full;
    /// # use hyper::body::{Bytes, Incoming};
    /// # use hyper::{Request, Response, service::service_fn};
    /// use tokio_prefork::{Cluster, Config, IsolatedPoolConfig, Worker};
    ///
    /// # fn run(config: Config) -> tokio_prefork::Result<()> {
    /// let pool = IsolatedPoolConfig::new("thumbnails", 2).deadline(Duration::from_secs(5)).queue(16);
    /// Cluster::new(config)
    ///     .isolated_pool(pool, |size: u32| Ok::<u32, String>(size / 10))
    ///     .serve(|worker: Worker| async move {
    ///         Ok(service_fn(move |_: Request<Incoming>| {
    ///             let worker = worker.clone();
    ///             async move {
    ///                 let said = match worker.isolated_pool("thumbnails") {
    ///                     Ok(pool) => pool.run::<u32>(&640, Duration::from_secs(1)).await,
    ///                     Err(e) => Err(e),
    ///                 };
    ///                 let text = said.map_or_else(|e| e.to_string(), |size| size.to_string());
    ///                 Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(text))))
    ///             }
    ///         }))
    ///     })
    /// # }
    /// ```
    pub fn isolated_pool<I, O, W>(mut self, pool: IsolatedPoolConfig, work: W) -> Cluster
    where
        I: DeserializeOwned + 'static,
        O: Serialize + 'static,
        W: Fn(I) -> Result<O, String> + Send + Sync + 'static,
    {
        let name = pool.name;
        let mut kind = WorkerKind::new(name, pool.workers);
        if let Some(bytes) = pool.max_rss {
            kind = kind.max_rss_hard(bytes);
        }
        self.kinds.add(kind, worker::isolated_worker_app(worker::isolated_job_fn(work)));
        self.isolated_pools.insert(name, IsolatedJobScheduler::new(&pool));
        self.on_message(&job_request_kind(name), move |primary, from, message| {
            primary.submit_isolated_job(name, from, &message);
        })
        .on_message(&job_cancel_kind(name), move |primary, from, message| {
            primary.cancel_isolated_job(name, from, &message);
        })
        .on_message(&job_result_kind(name), move |primary, from, message| {
            primary.finish_isolated_job(name, from, &message);
        })
    }
}
