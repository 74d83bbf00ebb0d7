//! Workers of other kinds than `web`: instead of taking connections they run a future of the application.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::local_state::LocalWorkerState;
use super::{App, BootedApp, LocalFuture, Worker};
use crate::error::Result;

/// The longest wait before the deadline is looked at again: the primary's death brings it forward.
const LOOK: Duration = Duration::from_millis(100);

/// An application that is one loop. It has booted when it waits for something for the first time; an error before
/// that is a boot that failed.
pub(crate) fn kind_app<A, F>(app: A) -> App
where
    A: Fn(Worker) -> F + Send + Sync + 'static,
    F: Future<Output = Result<()>> + 'static,
{
    Arc::new(move |worker: Worker| {
        let mut run: LocalFuture<Result<()>> = Box::pin(app(worker));
        Box::pin(async move {
            match poll_fn(|cx| Poll::Ready(run.as_mut().poll(cx))).await {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => run = Box::pin(async { Ok(()) }),
                Poll::Ready(Err(e)) => return Err(e),
            }
            let handler = BootedApp::new(drop, false);
            handler.run.set(Some(run));
            Ok(handler)
        })
    })
}

/// Runs the loop to its end. Once the worker is told to leave, that has to come within the grace.
pub(crate) async fn run(state: &LocalWorkerState, run: LocalFuture<Result<()>>) -> Result<()> {
    tokio::select! {
        ended = run => {
            if state.drain.order().is_none() {
                log::warn!("{} has ended its loop without being told to", state.tag);
            }
            ended
        }
        () = grace_over(state) => {
            log::warn!("{} cut its loop at the graceful timeout", state.tag);
            Ok(())
        }
    }
}

async fn grace_over(state: &LocalWorkerState) {
    state.drain.started().await;
    while let Some(order) = state.drain.order() {
        let left = Duration::from_millis(
            order.deadline_ms.saturating_sub(LocalWorkerState::monotonic_ms()),
        );
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK)).await;
    }
}
