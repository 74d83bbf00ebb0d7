//! `/isolated/{job}` (`--faults`): runs the faults as isolated jobs, in processes of their own.
//!
//! The pool starts with no process; its first job starts one.

use std::time::Duration;

use hyper::{Response, StatusCode};

use super::{faults, routes};
use tokio_prefork::{IsolatedJobError, IsolatedPool, IsolatedPoolConfig};

/// Name of the isolated pool.
const ISOLATED_POOL: &str = "isolated";

/// How long a request waits for its isolated job.
const JOB_TIMEOUT: Duration = Duration::from_secs(5);

/// The pool: the name of a fault in, a text out.
pub(super) type FaultPool = IsolatedPool<String, String>;

/// Declares the pool.
pub(super) fn declare_pool() -> FaultPool {
    let config = IsolatedPoolConfig::new(ISOLATED_POOL, 0..=1);
    IsolatedPool::new(config, || Ok(()), |(), job: String| run_isolated_job(&job))
}

/// Returns the name of the isolated job in a path, if it has one.
pub(super) fn isolated_job_name(path: &str) -> Option<String> {
    path.strip_prefix("/isolated/").map(str::to_string)
}

/// Runs a job; called in the isolated process.
fn run_isolated_job(job: &str) -> Result<String, String> {
    match job {
        "pid" => Ok(format!("done by PID {}\n", std::process::id())),
        name => faults::inject_fault(name).ok_or(format!(
            "unknown job; available jobs: pid, {}",
            faults::FAULT_NAMES[..faults::PROCESS_FAULT_COUNT].join(", ")
        )),
    }
}

/// Submits a job to the isolated pool and answers with its result; called in the web worker.
pub(super) async fn respond_with_isolated_job(
    pool: &FaultPool,
    job: String,
) -> Response<routes::AppBody> {
    let result = pool.job(job).timeout(JOB_TIMEOUT).await;
    let status = match &result {
        Ok(_) => StatusCode::OK,
        Err(IsolatedJobError::Full | IsolatedJobError::Closed) => StatusCode::SERVICE_UNAVAILABLE,
        Err(IsolatedJobError::TimedOut { .. }) => StatusCode::GATEWAY_TIMEOUT,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let text = match result {
        Ok(text) => text,
        Err(e @ IsolatedJobError::TimedOut { has_begun: false }) => {
            format!("{e}; start a process for it with: prefork scale {ISOLATED_POOL}=1\n")
        }
        Err(e) => format!("{e}\n"),
    };
    routes::text_response(status, text)
}
