//! What the tasks of one worker share. One thread, so plain `Rc` and `Cell`.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use tokio::sync::Notify;

use super::Handler;
use super::connection_registry::Registry;
use super::drain::{Drain, Order};
use super::full::Fullness;
use super::http::connection_state::Conn;
use crate::channel::{HandOver, ToPrimary, WorkerEnd};
use crate::config::Config;
use crate::dispatch::SlotMeter;
use crate::dispatch::queue_wait::Shedding;
use crate::dispatch::reuseport::adopted_sockets::Adopted;
use crate::messages::MailEnd;
use crate::pool::Pool;
use crate::scoreboard::{Other, OwnRow, Reader, Row, WorkerState};
use prefork_supervisor::{Slot, WorkerTag};

/// One worker.
pub(crate) struct State {
    pub(crate) tag: WorkerTag,
    /// Where the slots of each other kind than `web` begin.
    pub(crate) kinds: Vec<(&'static str, Slot)>,
    pub(crate) config: Rc<Config>,
    pub(crate) row: OwnRow,
    /// Counts connections for whatever chooses among the slots.
    pub(crate) meter: SlotMeter,
    pub(crate) board: Reader,
    pub(crate) channel: WorkerEnd,
    /// Whether the primary is there.
    pub(crate) connected: Cell<bool>,
    pub(crate) mail: Rc<MailEnd>,
    pub(crate) drain: Drain,
    /// Every open connection.
    pub(crate) conns: RefCell<Registry>,
    /// Rung when a connection is gone.
    pub(crate) room: Notify,
    /// Rung when acceptors are to look after the others and the queue: at each beat, at the latest.
    pub(crate) look: Notify,
    /// How many connections the busiest other worker had when an acceptor last looked.
    pub(crate) most_open: Cell<u64>,
    /// Listening sockets that are still accepted from.
    pub(crate) acceptors: Cell<usize>,
    /// Those among them that nothing can be accepted from.
    pub(crate) failing: Cell<usize>,
    /// Those of other slots among them.
    pub(crate) adopted: RefCell<Vec<Adopted>>,
    /// Where the application computes.
    pub(crate) pool: Pool,
    /// What is done with a connection, once the application has booted.
    pub(crate) handler: OnceCell<Handler>,
    /// Connections that were refused and not reported yet.
    pub(crate) shedding: Shedding,
    /// What was told of the worker having no room for connections.
    pub(crate) fullness: Fullness,
}

impl State {
    /// Begins to drain on our own account, and says so in this word.
    pub(crate) fn leave(&self, word: &ToPrimary) {
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
        self.begin_drain(Order::new(grace, linger, false, hand_over));
    }

    /// Whether connections are to be handed over and there is somebody who serves.
    pub(crate) fn should_hand_over(&self) -> bool {
        match self.drain.order().map(|order| order.hand_over) {
            Some(HandOver::Now) => true,
            Some(HandOver::WhenOthersServe) => {
                self.board.others_serve(&self.row, State::exact_ms())
            }
            Some(HandOver::Never) | None => false,
        }
    }

    /// Whether the client has to be told that this connection ends with its response.
    pub(crate) fn should_announce_close(&self, conn: &Conn) -> bool {
        self.drain.order().is_some_and(|order| {
            !(order.keeps_transferable_open(self.now_ms()) && conn.can_be_handed_over())
        })
    }

    /// Stops accepting from now on; the first order counts.
    pub(crate) fn begin_drain(&self, order: Order) {
        if self.drain.begin(order) {
            self.row.state(WorkerState::Draining);
            self.row.accepting(false);
            self.meter.leave();
        }
        // A later order may say more about where connections can go.
        self.conns.borrow().wake_all();
    }

    /// Whether there are listening sockets and none of them gives connections.
    pub(crate) fn cannot_accept(&self) -> bool {
        self.failing.get() > 0 && self.failing.get() >= self.acceptors.get()
    }

    /// Says on the scoreboard whether new connections can come.
    pub(crate) fn show_accepting(&self) {
        if self.drain.order().is_some() {
            return;
        }
        let cannot = self.cannot_accept();
        self.row.state(if cannot { WorkerState::CannotAccept } else { WorkerState::Serving });
        self.row.accepting(!cannot);
    }

    /// The other workers that could take a connection right now.
    pub(crate) fn others(&self) -> impl Iterator<Item = Other> {
        self.board.others(&self.row, State::exact_ms())
    }

    /// Rings the acceptors if we have far fewer connections now than others.
    pub(crate) fn note_closed(&self) {
        if self.row.open() + 2 <= self.most_open.get() {
            self.look.notify_waiters();
        }
    }

    /// The time as of the last beat: good to a tenth of a second, and free.
    pub(crate) fn now_ms(&self) -> u64 {
        self.row.meter().now_ms()
    }

    /// Milliseconds on the monotonic clock, exactly.
    pub(crate) fn exact_ms() -> u64 {
        prefork_os::system::monotonic_ms()
    }
}
