//! Yields to other tasks without polling the I/O driver.

use std::future::poll_fn;
use std::task::Poll;

/// Yields once to the tasks that are ready. Unlike tokio's `yield_now`, does not poll the I/O driver before.
pub(crate) async fn yield_to_ready_tasks() {
    let mut yielded = false;
    poll_fn(|cx| match std::mem::replace(&mut yielded, true) {
        true => Poll::Ready(()),
        false => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn ready_tasks_run_before_the_yielding_one() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let local = tokio::task::LocalSet::new();
        runtime.block_on(local.run_until(async {
            let has_run = Rc::new(Cell::new(false));
            let other = Rc::clone(&has_run);
            tokio::task::spawn_local(async move {
                tokio::task::spawn_local(async move { other.set(true) });
            });
            let yields = tokio::task::spawn_local(async move {
                yield_to_ready_tasks().await;
                has_run.get()
            });
            assert!(yields.await.expect("joined"));
        }));
    }
}
