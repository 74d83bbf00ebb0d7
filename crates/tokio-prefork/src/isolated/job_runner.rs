//! The function of a pool as its processes run it: encoded input to encoded output.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{JobContext, JobHost, JobOutcome, JobPayload, JobValue};
use crate::error::BoxError;
use crate::text::panic_text;

/// Runs one job after the other, with the state of its thread.
pub(crate) type JobRunner = Box<dyn FnMut(&JobHost, JobPayload) -> (JobOutcome, JobPayload)>;

/// Makes the state of a process, and returns the function that runs jobs with it.
pub(crate) type MakeJobRunner = Arc<dyn Fn() -> Result<JobRunner, BoxError> + Send + Sync>;

thread_local! {
    /// Where the last panic of this thread was.
    static PANIC_LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Wraps the typed functions of a pool.
pub(super) fn make_job_runner<S, I, O, E, P, N, W>(init: N, work: W) -> MakeJobRunner
where
    S: 'static,
    I: DeserializeOwned,
    O: Serialize,
    E: Serialize,
    N: Fn() -> Result<S, BoxError> + Send + Sync + 'static,
    W: Fn(&mut S, I, &JobContext<'_, P>) -> Result<O, E> + Send + Sync + 'static,
{
    let work = Arc::new(work);
    Arc::new(move || {
        let (mut state, work) = (init()?, Arc::clone(&work));
        let run = move |host: &JobHost, input: JobPayload| {
            let input = match input.decode::<I>() {
                Ok(input) => input,
                Err(reason) => return transfer_failed(JobValue::Input, reason),
            };
            host.record_begin();
            let context = JobContext::new(host);
            match catch_unwind(AssertUnwindSafe(|| work(&mut state, input, &context))) {
                Ok(Ok(output)) => encode_result(JobOutcome::Done, &output),
                Ok(Err(error)) => encode_result(JobOutcome::Failed, &error),
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

fn encode_result<T: Serialize>(outcome: JobOutcome, value: &T) -> (JobOutcome, JobPayload) {
    match JobPayload::encode(value) {
        Ok(value) => (outcome, value),
        Err(reason) => transfer_failed(JobValue::Output, reason),
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
