//! What the primary says, and what its silence means.

use std::rc::Rc;
use std::time::Duration;

use super::drain::Order;
use super::state::State;
use crate::ipc::ToWorker;

/// Obeys the primary until it is gone; then finishes what is in flight and leaves: a worker never outlives
/// its primary. Idle connections are closed at once, as nobody is left to serve them later.
pub(super) async fn obey(state: Rc<State>) {
    while let Some(word) = state.channel.hear().await {
        match word {
            ToWorker::Drain { grace, linger, closing } => {
                state.begin_drain(Order::new(grace, linger, closing));
            }
        }
    }
    log::warn!("{} has lost its primary: finishing what is in flight, then leaving", state.tag);
    state.begin_drain(Order::new(state.config.graceful_timeout, Duration::ZERO, false));
}
