//! Logs panics of the application's tasks with the tag of the worker.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::task::Poll;

use crate::text::panic_text;
use prefork_supervisor::WorkerTag;

/// Runs `future`; logs a panic in it, and passes it on. `describe` says what panicked.
pub(crate) async fn log_panic<F: Future>(
    tag: WorkerTag,
    describe: impl FnOnce() -> String,
    future: F,
) -> F::Output {
    match catch_panic(future).await {
        Ok(output) => output,
        Err(panic) => {
            log::error!("{tag} {} panicked: {}", describe(), panic_text(&*panic));
            // The panic hook has run for this panic already; this does not call it again.
            resume_unwind(panic)
        }
    }
}

/// Runs `future`, and returns a panic in it as an error.
pub(crate) async fn catch_panic<F: Future>(future: F) -> Result<F::Output, Box<dyn Any + Send>> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}
