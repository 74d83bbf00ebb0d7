//! The function of a pool as its processes run it: encoded input to encoded output.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{EncodeError, JobContext, JobHost, JobOutcome, JobPayload, JobValue, ValueSource};
use crate::error::{BoxError, Error};
use crate::panic_location::{CaughtPanic, catch_panic_with_location};
use prefork_os::cpu_time::CpuTimeLimit;

/// Runs one job after the other, with the state of its thread.
pub(crate) type JobRunner = Box<dyn FnMut(&JobHost, JobPayload) -> (JobOutcome, JobPayload)>;

/// Makes the state of a process, and returns the function that runs jobs with it.
pub(crate) type MakeJobRunner = Arc<dyn Fn() -> Result<JobRunner, BoxError> + Send + Sync>;

/// Wraps the typed functions of a pool. `max_payload_bytes` is the size of the largest output.
pub(super) fn make_job_runner<S, I, O, E, P, N, W>(
    max_payload_bytes: usize,
    init: N,
    work: W,
) -> MakeJobRunner
where
    S: 'static,
    I: DeserializeOwned + 'static,
    O: Serialize + 'static,
    E: Serialize + 'static,
    P: 'static,
    N: Fn() -> Result<S, BoxError> + Send + Sync + 'static,
    W: Fn(&mut S, I, &JobContext<'_, P>) -> Result<O, E> + Send + Sync + 'static,
{
    let work = Arc::new(work);
    Arc::new(move || {
        let (mut state, work) = (init()?, Arc::clone(&work));
        let run = move |host: &JobHost, input: JobPayload| {
            let input = match catch_panic_with_location(|| input.decode::<I>(ValueSource::Trusted))
            {
                Ok(Ok(input)) => input,
                Ok(Err(reason)) => return transfer_failed(JobValue::Input, reason),
                Err(panic) => {
                    let reason = format!("decoding it panicked: {}", take_panic(panic).0);
                    return transfer_failed(JobValue::Input, reason);
                }
            };
            host.record_begin();
            let context = JobContext::new(host, max_payload_bytes);
            // The encoding and the drop of the output are code of the application too.
            let run = || match work(&mut state, input, &context) {
                Ok(output) => encode_result(JobOutcome::Done, &output, max_payload_bytes),
                Err(error) => encode_result(JobOutcome::Failed, &error, max_payload_bytes),
            };
            catch_panic_with_location(run).unwrap_or_else(|panic| {
                let (message, location) = take_panic(panic);
                (JobOutcome::Panicked { message, location }, JobPayload::default())
            })
        };
        Ok(Box::new(run) as JobRunner)
    })
}

/// Returns the message and the place of a panic.
fn take_panic(panic: CaughtPanic) -> (String, Option<String>) {
    let message = panic.message();
    // Dropping the payload could panic again.
    std::mem::forget(panic.payload);
    (message, panic.location)
}

/// Ends the process with SIGXCPU in a job that takes more CPU time than `limit`. The creation of the state is not limited.
pub(crate) fn limit_cpu_time(make_runner: MakeJobRunner, limit: Duration) -> MakeJobRunner {
    Arc::new(move || {
        let mut run = make_runner()?;
        let timers = CpuTimeLimit::new().map_err(|e| Error::system("create CPU timers", e))?;
        let run = move |host: &JobHost, input: JobPayload| {
            // Neither call can fail for timers that exist.
            let _ = timers.start(limit);
            let result = run(host, input);
            // Before the result is sent: the process must not die of a job that has ended.
            let _ = timers.stop();
            result
        };
        Ok(Box::new(run) as JobRunner)
    })
}

fn encode_result<T: Serialize + 'static>(
    outcome: JobOutcome,
    value: &T,
    max_payload_bytes: usize,
) -> (JobOutcome, JobPayload) {
    match JobPayload::encode(value, max_payload_bytes) {
        Ok(value) => (outcome, value),
        Err(EncodeError::TooLarge { size, most }) => {
            let value = JobValue::Output;
            (JobOutcome::TooLarge { value, size, most }, JobPayload::default())
        }
        Err(EncodeError::Failed(reason)) => transfer_failed(JobValue::Output, reason),
    }
}

fn transfer_failed(value: JobValue, reason: String) -> (JobOutcome, JobPayload) {
    (JobOutcome::Transfer { value, reason }, JobPayload::default())
}
