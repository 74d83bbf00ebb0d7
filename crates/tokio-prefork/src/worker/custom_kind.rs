//! Workers of custom kinds: they run a main loop of the application instead of serving connections.

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use super::local_state::LocalWorkerState;
use super::{BootedApp, LocalFuture, Worker, WorkerApp};
use crate::error::{BoxError, Error, Result};

/// Creates an application that is one main loop.
///
/// It has booted when it first waits for something. An error before that is a failed boot.
pub(crate) fn custom_kind_app<A, F>(app: A) -> WorkerApp
where
    A: Fn(Worker) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), BoxError>> + 'static,
{
    Arc::new(move |state: Rc<LocalWorkerState>| {
        let main_loop = app(Worker(Arc::clone(&state.shared)));
        let mut main_loop: LocalFuture<Result<()>> =
            Box::pin(async { main_loop.await.map_err(Error::from_app) });
        Box::pin(async move {
            match poll_fn(|cx| Poll::Ready(main_loop.as_mut().poll(cx))).await {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => main_loop = Box::pin(async { Ok(()) }),
                Poll::Ready(Err(e)) => return Err(e),
            }
            let booted = BootedApp::new(drop, false);
            booted.main_loop.set(Some(main_loop));
            Ok(booted)
        })
    })
}

/// Runs the main loop until it returns, or until the drain deadline.
pub(crate) async fn run_main_loop(
    state: &LocalWorkerState,
    main_loop: LocalFuture<Result<()>>,
) -> Result<()> {
    tokio::select! {
        result = main_loop => {
            if state.drain.current_order().is_none() {
                log::warn!("{} returned from its main loop without a drain", state.tag);
            }
            result
        }
        () = state.drain.wait_for_deadline() => {
            log::warn!("{} stopped its main loop at the graceful timeout", state.tag);
            Ok(())
        }
    }
}
