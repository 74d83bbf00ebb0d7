//! Handles what the primary sends over the channel, and the end of the channel.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::drain::DrainOrder;
use super::handover;
use super::local_state::LocalWorkerState;
use crate::channel::{HandoverMode, ReceivedCommand, WorkerCommand};
use crate::dispatch::reuseport::adopted_sockets;

/// Handles what the primary sends until the channel closes, then drains: a worker never outlives its primary for long.
///
/// Idle connections stay open for the linger time, as in any drain, because another primary may have inherited the
/// listening sockets and clients shall not notice the change.
pub(crate) async fn follow_primary(state: Rc<LocalWorkerState>) {
    while let Some(wanted) = state.channel.receive().await {
        match wanted {
            ReceivedCommand::Command(WorkerCommand::Drain {
                grace,
                linger,
                closing,
                hand_over,
            }) => {
                set_released(&state);
                state.begin_drain(DrainOrder::new(grace, linger, closing, hand_over));
            }
            ReceivedCommand::TakeOverConnection(fd, unread) => {
                handover::take_over_connection(&state, fd, unread)
            }
            ReceivedCommand::ReopenLog(file) => {
                if let Err(e) = crate::log_output::replace_log_stream(&file) {
                    log::error!("{} cannot switch stderr to the reopened log: {e}", state.tag);
                }
            }
            ReceivedCommand::ReopenAccessLog(file) => {
                if let Some(writer) = &state.access_log_writer {
                    writer.set_file(file);
                }
            }
            ReceivedCommand::AdoptSlot { fd, slot, closing } => {
                adopted_sockets::adopt_socket(&state, slot, fd, closing)
            }
            ReceivedCommand::Command(WorkerCommand::AdoptSlot { slot, .. }) => {
                log::error!("{} cannot accept for slot {slot}: out of file descriptors", state.tag);
                adopted_sockets::report_not_adopted(&state, slot);
            }
            ReceivedCommand::Command(WorkerCommand::ReleaseSlot(slot)) => {
                adopted_sockets::release_slot_sockets(&state, slot)
            }
            // With their descriptors, ARRIVE and LOG are `Take` and `Log` above.
            ReceivedCommand::Command(
                WorkerCommand::RetireAcknowledged
                | WorkerCommand::TakeOverConnection(_)
                | WorkerCommand::ReopenLog
                | WorkerCommand::ReopenAccessLog,
            ) => {
                set_released(&state);
            }
            // For processes of the admin listener only.
            ReceivedCommand::Command(WorkerCommand::StartAccepting) => {}
        }
    }
    state.shared.is_primary_connected.store(false, Ordering::Release);
    set_released(&state);
    log::warn!("{} lost its primary: finishing open requests, then exiting", state.tag);
    state.begin_drain(DrainOrder::new(
        state.config.graceful_timeout,
        state.config.linger_timeout,
        // The listening sockets may close: connections left in an accept queue would be reset.
        true,
        HandoverMode::Never,
    ));
}

/// Records that the primary passes no more connections.
fn set_released(state: &LocalWorkerState) {
    state.drain.set_released();
    state.capacity_freed.notify_waiters();
}
