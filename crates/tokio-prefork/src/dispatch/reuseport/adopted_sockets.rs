//! Accepts for other slots: from sockets that the primary sends, until it takes them back.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::sync::Notify;

use crate::channel::WorkerReport;
use crate::dispatch::accept_loop::AcceptLoop;
use crate::error::{Error, Result};
use crate::listener::Listener;
use crate::worker::local_state::LocalWorkerState;
use prefork_supervisor::Slot;

/// An accept loop on a socket of another slot.
pub(crate) struct AdoptedSocket {
    slot: Slot,
    /// Notified to end the loop.
    stop: Rc<Notify>,
}

/// Accepts from a socket of `slot` until [`release_slot_sockets`]; with `closing`, only the connections that are queued.
pub(crate) fn adopt_socket(state: &Rc<LocalWorkerState>, slot: Slot, fd: OwnedFd, closing: bool) {
    if state.drain.current_order().is_some() && state.app.borrow().is_none() {
        // Nothing is left to serve with: this worker has drained and is about to exit.
        return report_not_adopted(state, slot);
    }
    if let Err(e) = start_accept_loop(state, slot, fd, closing) {
        log::error!("{} cannot accept for slot {slot}: {e}", state.tag);
        report_not_adopted(state, slot);
    }
}

fn start_accept_loop(
    state: &Rc<LocalWorkerState>,
    slot: Slot,
    fd: OwnedFd,
    closing: bool,
) -> Result<()> {
    let listener = Listener::from_received_fd(fd, slot)?;
    let app = state.app.borrow().clone();
    let app = app
        .ok_or_else(|| Error::internal("a socket is adopted before the application has booted"))?;
    let stop = Rc::new(Notify::new());
    let starter = app.connection_starter(state);
    let acceptor = AcceptLoop::new(state, listener, starter, false, Rc::clone(&stop))
        .map_err(|e| Error::system("register a listening socket", e))?;
    if closing {
        acceptor.accept_queued(usize::MAX);
        return Ok(());
    }
    log::debug!("{} accepts for slot {slot}, too", state.tag);
    state.active_acceptors.set(state.active_acceptors.get() + 1);
    state.publish_accept_state();
    state.adopted_sockets.borrow_mut().push(AdoptedSocket { slot, stop });
    tokio::task::spawn_local(acceptor.run());
    Ok(())
}

/// Stops accepting from the sockets of `slot`. Queued connections stay for the other processes that hold them.
pub(crate) fn release_slot_sockets(state: &LocalWorkerState, slot: Slot) {
    state.adopted_sockets.borrow_mut().retain(|adopted| {
        if adopted.slot == slot {
            adopted.stop.notify_one();
        }
        adopted.slot != slot
    });
}

/// Reports to the primary that another worker has to accept for the slot.
pub(crate) fn report_not_adopted(state: &LocalWorkerState, slot: Slot) {
    // If the primary does not read this, it gives the slot to the next worker of its own anyway.
    let _ = state.channel.send(&WorkerReport::AdoptSlotFailed(slot));
}
