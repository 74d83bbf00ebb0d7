//! What the tasks of one worker share. One thread, so plain `Rc` and `Cell`.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use tokio::sync::Notify;

use super::BootedApp;
use super::connection_registry::ConnectionRegistry;
use super::drain::{Drain, DrainOrder};
use super::full::Fullness;
use super::http::connection_state::ConnectionState;
use crate::channel::{HandOver, ToPrimary, WorkerEnd};
use crate::config::Config;
use crate::dispatch::LoadPage;
use crate::dispatch::queue_wait::Shedding;
use crate::dispatch::reuseport::adopted_sockets::Adopted;
use crate::messages::MailEnd;
use crate::pool::Pool;
use crate::scoreboard::{Other, OwnRow, Reader, Row, WorkerState};
use prefork_supervisor::{Slot, WorkerTag};

/// One worker.
pub(crate) struct LocalWorkerState {
    pub(crate) tag: WorkerTag,
    /// Where the slots of each other kind than `web` begin.
    pub(crate) kinds: Vec<(&'static str, Slot)>,
    pub(crate) config: Rc<Config>,
    pub(crate) row: OwnRow,
    /// Counts connections for whatever chooses among the slots.
    pub(crate) load_page: LoadPage,
    pub(crate) scoreboard: Reader,
    pub(crate) channel: WorkerEnd,
    /// Whether the primary is there.
    pub(crate) is_primary_connected: Cell<bool>,
    pub(crate) messages: Rc<MailEnd>,
    pub(crate) drain: Drain,
    /// Every open connection.
    pub(crate) connections: RefCell<ConnectionRegistry>,
    /// Rung when a connection is gone.
    pub(crate) capacity_freed: Notify,
    /// Rung when acceptors are to look after the others and the queue: at each beat, at the latest.
    pub(crate) accept_recheck: Notify,
    /// How many connections the busiest other worker had when an acceptor last looked.
    pub(crate) busiest_worker_connections: Cell<u64>,
    /// Listening sockets that are still accepted from.
    pub(crate) active_acceptors: Cell<usize>,
    /// Those among them that nothing can be accepted from.
    pub(crate) failing_acceptors: Cell<usize>,
    /// Those of other slots among them.
    pub(crate) adopted_sockets: RefCell<Vec<Adopted>>,
    /// Where the application computes.
    pub(crate) pool: Pool,
    /// What is done with a connection, once the application has booted.
    pub(crate) app: OnceCell<BootedApp>,
    /// Connections that were refused and not reported yet.
    pub(crate) shedding: Shedding,
    /// What was told of the worker having no room for connections.
    pub(crate) capacity_warning: Fullness,
}

impl LocalWorkerState {
    /// Begins to drain on our own account, and says so in this word.
    pub(crate) fn begin_own_drain(&self, word: &ToPrimary) {
        if self.drain.order().is_some() {
            return;
        }
        // A primary that cannot be told is gone or stuck; leaving is right all the same.
        if let Err(e) = self.channel.send(word) {
            log::warn!("{} cannot tell the primary that it leaves: {e}", self.tag);
        }
        let hand_over = match self.config.hand_over {
            true => HandOver::WhenOthersServe,
            false => HandOver::Never,
        };
        let (grace, linger) = (self.config.graceful_timeout, self.config.linger_timeout);
        self.begin_drain(DrainOrder::new(grace, linger, false, hand_over));
    }

    /// Whether connections are to be handed over and there is somebody who serves.
    pub(crate) fn should_hand_over(&self) -> bool {
        match self.drain.order().map(|order| order.hand_over) {
            Some(HandOver::Now) => true,
            Some(HandOver::WhenOthersServe) => {
                self.scoreboard.others_serve(&self.row, LocalWorkerState::monotonic_ms())
            }
            Some(HandOver::Never) | None => false,
        }
    }

    /// Whether the client has to be told that this connection ends with its response.
    pub(crate) fn should_announce_close(&self, conn: &ConnectionState) -> bool {
        self.drain.order().is_some_and(|order| {
            !(order.keeps_transferable_open(self.now_ms()) && conn.can_be_handed_over())
        })
    }

    /// Stops accepting from now on; the first order counts.
    pub(crate) fn begin_drain(&self, order: DrainOrder) {
        if self.drain.begin(order) {
            self.row.state(WorkerState::Draining);
            self.row.accepting(false);
            self.load_page.stop_counting();
        }
        // A later order may say more about where connections can go.
        self.connections.borrow().wake_all();
    }

    /// Whether there are listening sockets and none of them gives connections.
    pub(crate) fn cannot_accept(&self) -> bool {
        self.failing_acceptors.get() > 0
            && self.failing_acceptors.get() >= self.active_acceptors.get()
    }

    /// Says on the scoreboard whether new connections can come.
    pub(crate) fn publish_accept_state(&self) {
        if self.drain.order().is_some() {
            return;
        }
        let cannot = self.cannot_accept();
        self.row.state(if cannot { WorkerState::CannotAccept } else { WorkerState::Serving });
        self.row.accepting(!cannot);
    }

    /// The other workers that could take a connection right now.
    pub(crate) fn available_workers(&self) -> impl Iterator<Item = Other> {
        self.scoreboard.others(&self.row, LocalWorkerState::monotonic_ms())
    }

    /// Rings the acceptors if we have far fewer connections now than others.
    pub(crate) fn wake_acceptors_if_least_loaded(&self) {
        if self.row.open() + 2 <= self.busiest_worker_connections.get() {
            self.accept_recheck.notify_waiters();
        }
    }

    /// The time as of the last beat: good to a tenth of a second, and free.
    pub(crate) fn now_ms(&self) -> u64 {
        self.row.meter().now_ms()
    }

    /// Milliseconds on the monotonic clock, exactly.
    pub(crate) fn monotonic_ms() -> u64 {
        prefork_os::system::monotonic_ms()
    }
}
