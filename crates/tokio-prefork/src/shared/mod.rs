//! State that all workers share without sending messages: in shared memory, declared before the fork.
//!
//! A worker of this cluster is a process, so an ordinary counter, cache or limiter counts, caches or limits for
//! that worker only. What is declared here, before [`Cluster::serve`](crate::Cluster::serve), every worker has:
//! those of the start, and those that are forked later for a dead one, a reload or a larger `scale`. The
//! handles are small and `Copy`; move them into the function that serves.
//!
//! ```no_run
//! use std::time::Duration;
//! use tokio_prefork::{Cluster, Config, RateLimiter, SharedCounter, Worker};
//! # use hyper::{Request, Response, StatusCode, service::service_fn};
//! # fn run() -> tokio_prefork::Result<std::process::ExitCode> {
//!
//! let answered = SharedCounter::new("answered_total")?;
//! let limit = RateLimiter::new("limit", 1000, Duration::from_secs(1), 100)?;
//! Cluster::new(Config::builder().build()?).serve(move |_: Worker| async move {
//!     Ok(service_fn(move |_: Request<hyper::body::Incoming>| async move {
//!         let (status, text) = match limit.try_acquire(1) {
//!             Ok(()) => (StatusCode::OK, format!("{}\n", answered.value())),
//!             Err(_) => (StatusCode::TOO_MANY_REQUESTS, String::new()),
//!         };
//!         answered.add(1);
//!         let mut response = Response::new(text);
//!         *response.status_mut() = status;
//!         Ok::<_, std::convert::Infallible>(response)
//!     }))
//! })
//! # }
//! ```
//!
//! **What a death does.** A worker may be killed between any two instructions. Each change is one atomic
//! instruction, or is made so that the survivors see that it was not finished. No lock of a dead worker holds
//! up anybody.
//!
//! **What it does not protect from.** Unlike its own page of the scoreboard, this memory every worker can
//! write. One that writes through wild pointers can make these figures wrong and values of a cache false; no
//! figure is used as a length, an index or a pid without a check, so it can not crash the others through them.
//!
//! **An upgrade begins anew.** A new binary executed in place gets fresh memory: counters at zero, an empty
//! cache, a full bucket. What must go on belongs in a store outside. A role that must not be had twice
//! meanwhile can be tied to a file: [`Leadership::with_lock_file`].
//!
//! [`read_shared_metrics`] reads everything that was declared, by name.

mod cache;
mod counter;
mod flag;
mod gauge;
mod gcra;
mod histogram;
mod leadership;
mod leadership_lock;
mod live_processes;
mod rate_limiter;
mod registry;
mod striped_counters;

pub use cache::{CacheWriteError, SharedCache};
pub use counter::SharedCounter;
pub use flag::SharedFlag;
pub use gauge::{GaugeGuard, SharedGauge};
pub use histogram::{HistogramSnapshot, SharedHistogram};
pub use leadership::{Leadership, LeadershipGuard};
pub use rate_limiter::{KeyedRateLimiter, RateLimited, RateLimiter};
pub use registry::{SharedMetric, SharedMetricValue, read_shared_metrics};
