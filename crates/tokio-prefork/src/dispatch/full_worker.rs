//! What happens to connections that come while a worker has as many as it may have, `worker-connections`.
//!
//! They wait in the kernel's queue, where other workers may take them. With `when-full = close`, a full worker refuses them
//! at its next heartbeat, unless another worker that accepts from the same queue is not full. Either is counted.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use prefork_os::poll::{WatchedFd, poll_fds};

use super::queue_wait::REJECTION_RESPONSE;
use crate::config::WhenFull;
use crate::scoreboard::RequestRecorder;
use crate::worker::local_state::LocalWorkerState;

/// How many connections a worker refuses at one heartbeat, so that its other tasks run.
const MAX_REFUSED_PER_HEARTBEAT: usize = 256;

/// Waits until a connection of the worker has closed. Meanwhile refuses those in its queues, if it is configured so.
pub(super) async fn wait_until_freed(
    state: &LocalWorkerState,
    freed: impl Future<Output = ()>,
    refuse_queued: impl Fn(),
) {
    let mut freed = std::pin::pin!(freed);
    loop {
        match state.config.when_full {
            WhenFull::Wait => return freed.await,
            WhenFull::Close => tokio::select! {
                () = &mut freed => return,
                () = state.accept_recheck.notified() => refuse_queued(),
            },
        }
    }
}

/// Refuses the connections in the queue of `listener`, with a response if it `is_http` without TLS. If `is_shared`, leaves them to another worker that is not full.
pub(super) fn refuse_queued(
    state: &LocalWorkerState,
    listener: impl AsFd,
    is_shared: bool,
    is_http: bool,
) {
    if is_shared && state.available_workers().next().is_some() {
        return;
    }
    for _ in 0..MAX_REFUSED_PER_HEARTBEAT {
        let Ok(fd) = prefork_os::socket::accept_connection(&listener) else { return };
        refuse(state, &fd, is_http);
    }
}

/// Refuses a connection. It does not linger: a refused client must not occupy a full worker any longer.
fn refuse(state: &LocalWorkerState, fd: &OwnedFd, is_http: bool) {
    state.worker_page.connection_over_limit();
    if !is_http {
        return;
    }
    // Bytes that are left unread would turn the close into a reset, which can destroy the response.
    let mut discarded = [0; 4096];
    while prefork_os::socket::read_nonblocking(fd, &mut discarded).is_ok_and(|length| length > 0) {}
    // An error means that the client is gone.
    if let Ok(sent) = prefork_os::socket::write_nonblocking(fd, REJECTION_RESPONSE) {
        state.worker_page.byte_meter().add_bytes_out(sent);
    }
}

/// Returns whether a connection waits in one of the queues.
pub(super) fn has_queued<'a>(listeners: impl IntoIterator<Item = BorrowedFd<'a>>) -> bool {
    let watched: Vec<_> = listeners.into_iter().map(WatchedFd::readable).collect();
    poll_fds(&watched, Some(Duration::ZERO)).is_ok_and(|ready| ready.contains(&true))
}
