//! Boots the application in a worker, and contains its panics.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::Poll;

use super::local_state::LocalWorkerState;
use super::{BootedApp, WorkerApp};
use crate::error::{Error, Result};
use crate::text::panic_text;

/// Boots the application. A panic becomes an error, so that the primary gets its text as that of any other failed boot.
pub(super) async fn boot_app(app: &WorkerApp, state: Rc<LocalWorkerState>) -> Result<BootedApp> {
    let booting = catch_unwind(AssertUnwindSafe(|| app(state)));
    let mut booting = booting.map_err(|panic| boot_panic_error(&*panic))?;
    poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| booting.as_mut().poll(cx)));
        polled.unwrap_or_else(|panic| Poll::Ready(Err(boot_panic_error(&*panic))))
    })
    .await
}

/// Creates the error of a boot that panicked.
pub(crate) fn boot_panic_error(panic: &(dyn Any + Send)) -> Error {
    Error::application("the boot function panicked", panic_text(panic).into_owned())
}
