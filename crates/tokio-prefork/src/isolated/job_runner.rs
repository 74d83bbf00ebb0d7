//! The function of a pool as its processes run it: encoded input to encoded output.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{EncodeError, JobContext, JobHost, JobOutcome, JobPayload, JobValue, ValueSource};
use crate::error::{BoxError, Error};
use crate::text::panic_text;
use prefork_os::cpu_time::CpuTimeLimit;

/// Runs one job after the other, with the state of its thread.
pub(crate) type JobRunner = Box<dyn FnMut(&JobHost, JobPayload) -> (JobOutcome, JobPayload)>;

/// Makes the state of a process, and returns the function that runs jobs with it.
pub(crate) type MakeJobRunner = Arc<dyn Fn() -> Result<JobRunner, BoxError> + Send + Sync>;

thread_local! {
    /// Where the last panic of this thread was.
    static PANIC_LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

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
            let input = match input.decode::<I>(ValueSource::Trusted) {
                Ok(input) => input,
                Err(reason) => return transfer_failed(JobValue::Input, reason),
            };
            host.record_begin();
            let context = JobContext::new(host, max_payload_bytes);
            match catch_unwind(AssertUnwindSafe(|| work(&mut state, input, &context))) {
                Ok(Ok(output)) => encode_result(JobOutcome::Done, &output, max_payload_bytes),
                Ok(Err(error)) => encode_result(JobOutcome::Failed, &error, max_payload_bytes),
                Err(panic) => {
                    let message = panic_text(&*panic).into_owned();
                    let location = PANIC_LOCATION.take();
                    (JobOutcome::Panicked { message, location }, JobPayload::default())
                }
            }
        };
        Ok(Box::new(run) as JobRunner)
    })
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

/// Records where panics of this process are, before the panic hook that is set already.
pub(crate) fn record_panic_locations() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // A thread that ends has no such variable any more.
            let location = panic.location().map(ToString::to_string);
            let _ = PANIC_LOCATION.try_with(|last| last.replace(location));
            next(panic);
        }));
    });
}
