//! State in shared memory that all workers share: counters, gauges, histograms, flags, rate limiters, caches,
//! numbers, bytes, locks and leaderships.
//!
//! Workers are processes, so an ordinary counter, cache or limiter works for one worker only. State that is declared with the types
//! of this module before [`Cluster::serve`](crate::Cluster::serve) is shared by all workers, including those that are forked later
//! after a crash, for a reload or a larger `scale`. The handles are small and `Copy`; move them into the function that serves.
//!
//! ```no_run
//! use std::time::Duration;
//! use tokio_prefork::{Cluster, Config, RateLimiter, SharedCounter, Worker};
//! # use hyper::{Request, Response, StatusCode, service::service_fn};
//! # fn run() -> tokio_prefork::Result<()> {
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
//! **Death of a worker.** A worker may be killed between any two instructions. Each change is one atomic instruction, or other
//! processes can see that it was not finished. No lock of a dead worker blocks another process.
//!
//! **No protection from memory errors.** Every worker can write to this memory, unlike to other workers' scoreboard pages. A worker
//! with wild pointers can corrupt these values, but not crash other processes: no value is used as a length, an index or a pid
//! without a check.
//!
//! **Upgrades in place.** A new binary continues with the same memory where it declares the same name, type and size, in any order. The
//! workers of the old binary use it too until they have drained, so limits stay exact and leaderships exclusive. A piece whose size or
//! layout has changed begins anew, which the log says; a piece that is no longer declared is closed. The check of a new binary has
//! memory of its own and changes no value, but its worker waits for leaderships like any other. After a restart all begins anew.
//!
//! **Waiting.** Changes of a [`SharedFlag`], a [`SharedNumber`] and the atomics of [`SharedBytes`] can be waited for, without polling.
//!
//! [`read_shared_metrics`] reads all declared state, by name.

mod bytes;
mod cache;
mod counter;
mod description;
mod flag;
mod gauge;
mod gcra;
mod histogram;
mod leadership;
mod leadership_lock;
mod live_processes;
mod lock_files;
mod locks;
mod memory;
mod number;
pub(crate) mod passed_state;
mod process_lock;
mod rate_limiter;
mod registry;
mod shared_hasher;
mod striped_counters;
mod wait;

pub use bytes::{LockError, SharedBytes, SharedBytesGuard, SharedBytesReadGuard};
pub use cache::{CacheWriteError, SharedCache};
pub use counter::SharedCounter;
pub use description::MetricDescription;
pub use flag::SharedFlag;
pub use gauge::{GaugeGuard, SharedGauge};
pub use histogram::{HistogramSnapshot, SharedHistogram};
pub use leadership::{Leadership, LeadershipGuard};
pub use locks::{LocalLockState, LockMode, SharedLockGuard, SharedLocks};
pub use number::SharedNumber;
pub use rate_limiter::{KeyedRateLimiter, RateLimited, RateLimiter};
#[cfg(feature = "testing")]
pub(crate) use registry::refuse_repeated_declarations;
pub use registry::{MetricScale, SharedMetric, SharedMetricValue, read_shared_metrics};
pub(crate) use shared_hasher::SharedHasher;
pub(crate) use wait::wake_after_exit;
