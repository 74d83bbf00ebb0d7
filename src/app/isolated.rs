//! `/isolated/{job}` (`--faults`): the faults again, in processes that may have them. There are none before somebody asks
//! for them: `prefork scale isolated=1`.

use std::time::Duration;

use hyper::{Response, StatusCode};

use super::{faults, routes};
use tokio_prefork::{IsolatedJobError, Worker};

/// The name of the pool.
pub(super) const POOL: &str = "isolated";

/// How long a request waits for its job.
const LIMIT: Duration = Duration::from_secs(5);

/// The job that this path asks for.
pub(super) fn job(path: &str) -> Option<String> {
    path.strip_prefix("/isolated/").map(str::to_string)
}

/// In the isolated process.
pub(super) fn work(job: String) -> Result<String, String> {
    match job.as_str() {
        "pid" => Ok(format!("done by PID {}\n", std::process::id())),
        name => faults::commit(name).ok_or(format!(
            "no such job; there are: pid, {}",
            faults::NAMES[..faults::IN_WORKER].join(", ")
        )),
    }
}

/// In the worker that was asked.
pub(super) async fn answer(worker: &Worker, job: &str) -> Response<routes::Body> {
    let done = match worker.isolated_pool(POOL) {
        Ok(pool) => pool.run::<str, String>(job, LIMIT).await,
        Err(e) => Err(e),
    };
    let status = match &done {
        Ok(_) => StatusCode::OK,
        Err(IsolatedJobError::Full | IsolatedJobError::Closed) => StatusCode::SERVICE_UNAVAILABLE,
        Err(IsolatedJobError::TimedOut) => StatusCode::GATEWAY_TIMEOUT,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let text = match done {
        Ok(text) => text,
        Err(e @ IsolatedJobError::TimedOut) => {
            format!("{e}; is there a process for it? (prefork scale {POOL}=1)\n")
        }
        Err(e) => format!("{e}\n"),
    };
    routes::text(status, text)
}
