//! Sockets of other slots: taken when the primary sends them, given back when it says so.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::sync::Notify;

use crate::channel::ToPrimary;
use crate::dispatch::accept_loop::Acceptor;
use crate::error::{Error, Result};
use crate::listener::Listener;
use crate::worker::local_state::LocalWorkerState;
use prefork_supervisor::Slot;

/// An acceptor on a socket that is not our own.
pub(crate) struct Adopted {
    slot: Slot,
    /// Rung to end it.
    stop: Rc<Notify>,
}

/// Accepts from a socket of `slot`, which the primary has sent, until it is given back; or, if nobody listens there any
/// more, only takes what is in its queue.
pub(crate) fn adopt(state: &Rc<LocalWorkerState>, slot: Slot, fd: OwnedFd, closing: bool) {
    if let Err(e) = begin(state, slot, fd, closing) {
        log::error!("{} cannot accept for slot {slot}: {e}", state.tag);
        refuse(state, slot);
    }
}

fn begin(state: &Rc<LocalWorkerState>, slot: Slot, fd: OwnedFd, closing: bool) -> Result<()> {
    let listener = Listener::from_received_fd(fd, slot)?;
    let handler = state.app.get();
    let handler = handler.ok_or_else(|| Error::config("the application has not booted yet"))?;
    let stop = Rc::new(Notify::new());
    let starter = handler.connection_starter(state);
    let acceptor = Acceptor::new(state, listener, starter, false, Rc::clone(&stop))
        .map_err(|e| Error::system("register a listening socket", e))?;
    if closing {
        acceptor.empty_queue(usize::MAX);
        return Ok(());
    }
    log::debug!("{} accepts for slot {slot}, too", state.tag);
    state.active_acceptors.set(state.active_acceptors.get() + 1);
    state.publish_accept_state();
    state.adopted_sockets.borrow_mut().push(Adopted { slot, stop });
    tokio::task::spawn_local(acceptor.run());
    Ok(())
}

/// Ends our share in the sockets of `slot`. What is in their queues stays with whoever else holds them.
pub(crate) fn give_back(state: &LocalWorkerState, slot: Slot) {
    state.adopted_sockets.borrow_mut().retain(|adopted| {
        if adopted.slot == slot {
            adopted.stop.notify_one();
        }
        adopted.slot != slot
    });
}

/// Tells the primary that somebody else has to serve the slot.
pub(crate) fn refuse(state: &LocalWorkerState, slot: Slot) {
    // A primary that cannot be told is stuck; it gives the slot to its own worker in the end.
    let _ = state.channel.send(&ToPrimary::NotAdopted(slot));
}
