//! Letting others go first.

use std::future::poll_fn;
use std::task::Poll;

/// Lets tasks that can go on do so first. Unlike tokio's `yield_now` it does not have the kernel asked for news before.
pub(crate) async fn step_aside() {
    let mut aside = false;
    poll_fn(|cx| match std::mem::replace(&mut aside, true) {
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
    fn a_task_that_can_go_on_does_so_first() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let local = tokio::task::LocalSet::new();
        runtime.block_on(local.run_until(async {
            let ran = Rc::new(Cell::new(false));
            let other = Rc::clone(&ran);
            tokio::task::spawn_local(async move {
                tokio::task::spawn_local(async move { other.set(true) });
            });
            let looks = tokio::task::spawn_local(async move {
                step_aside().await;
                ran.get()
            });
            assert!(looks.await.expect("joined"));
        }));
    }
}
