//! What the primary says, and what its silence means.

use std::rc::Rc;

use super::drain::DrainOrder;
use super::handover;
use super::local_state::LocalWorkerState;
use crate::channel::{HandOver, Order as Wanted, ToWorker};
use crate::dispatch::reuseport::adopted_sockets as adopt;

/// Obeys the primary until it is gone; then finishes what is in flight and leaves: a worker never outlives
/// its primary for long. Idle connections are kept for requests that are on their way, as in any drain: the sockets
/// may be kept for another primary, and then nobody is to notice.
pub(crate) async fn obey(state: Rc<LocalWorkerState>) {
    while let Some(wanted) = state.channel.hear().await {
        match wanted {
            Wanted::Word(ToWorker::Drain { grace, linger, closing, hand_over }) => {
                release(&state);
                state.begin_drain(DrainOrder::new(grace, linger, closing, hand_over));
            }
            Wanted::Take(fd, unread) => handover::arrive(&state, fd, unread),
            Wanted::Log(file) => {
                if let Err(e) = prefork_os::fd::replace_stderr(&file) {
                    log::error!("{} cannot write to the reopened log: {e}", state.tag);
                }
            }
            Wanted::Adopt { fd, slot, closing } => adopt::adopt(&state, slot, fd, closing),
            Wanted::Word(ToWorker::Adopt { slot, .. }) => {
                log::error!("{} cannot accept for slot {slot}: no descriptor left", state.tag);
                adopt::refuse(&state, slot);
            }
            Wanted::Word(ToWorker::GiveBack(slot)) => adopt::give_back(&state, slot),
            // ARRIVE and LOG come with a descriptor, as `Take` and `Log`.
            Wanted::Word(ToWorker::Released | ToWorker::Arrive(_) | ToWorker::Log) => {
                release(&state);
            }
        }
    }
    state.is_primary_connected.set(false);
    release(&state);
    log::warn!("{} has lost its primary: finishing what is in flight, then leaving", state.tag);
    state.begin_drain(DrainOrder::new(
        state.config.graceful_timeout,
        state.config.linger_timeout,
        // Nobody listens any more: what is in a queue would be reset.
        true,
        HandOver::Never,
    ));
}

/// No connection comes after this.
fn release(state: &LocalWorkerState) {
    state.drain.release();
    state.capacity_freed.notify_waiters();
}
