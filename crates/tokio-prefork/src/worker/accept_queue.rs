//! A worker's place among the others at a listening socket: in line, in the front, or away for a while.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::unix::AsyncFdReadyGuard;

use super::accept_fairness::{self, Manners};
use super::heartbeat;
use super::local_state::State;
use crate::scoreboard::Other;
use prefork_os::readiness::{Door, Stance};

/// How long a worker lets another one accept first: one step of tokio's timer.
const MOMENT: Duration = Duration::from_millis(1);

/// One listening socket, as this worker stands at it.
pub(crate) struct Line {
    state: Rc<State>,
    door: Door,
    /// Whether all workers accept from this socket.
    shared: bool,
    /// Who has so many connections fewer is let go first.
    apart: u64,
    manners: RefCell<Manners>,
    /// The time of the beat at which the others were looked at, or passed over, last.
    beat_ms: Cell<u64>,
}

/// Rows of the scoreboard that a worker reads at each beat on average. Each row is a page of its own. With more workers than
/// that, each reads all rows only at each second beat, third beat and so on: otherwise 1024 workers that do nothing keep a
/// processor busy with reading each other's rows, and a reload, which brings more of them, can stand still.
const ROWS_PER_BEAT: usize = 64;

impl Line {
    pub(crate) fn new(state: &Rc<State>, socket: OwnedFd, shared: bool) -> io::Result<Line> {
        let door = Door::new(socket)?;
        let lines_up = door.lines_up();
        if shared && !lines_up {
            log::debug!(
                "{} is woken for every connection: /proc/self/fdinfo does not show tokio's epoll",
                state.tag
            );
        }
        // Without a line everybody is woken, so each one that has fewer connections can come.
        let apart = if lines_up { accept_fairness::APART } else { 1 };
        let manners = RefCell::default();
        let beat_ms = Cell::new(0);
        let line = Line { state: Rc::clone(state), door, shared, apart, manners, beat_ms };
        if shared {
            line.stand(Stance::InLine);
        }
        Ok(line)
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        self.door.socket()
    }

    /// Resolves when there may be a connection.
    pub(crate) async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.door.readable().await
    }

    /// Takes one connection, when those who should have it have had their chance; `None` if there is none left.
    pub(crate) async fn accept(
        &self,
        ready: Option<AsyncFdReadyGuard<'_, OwnedFd>>,
    ) -> io::Result<Option<OwnedFd>> {
        let first = self.let_first().await;
        let outcome = self.door.accept(ready);
        if let Some(first) = first {
            let accepted = self.state.board.accepted(first.row, State::exact_ms());
            self.manners.borrow_mut().learn(first, accepted);
        }
        outcome
    }

    /// Lets another worker that has far fewer connections go first.
    async fn let_first(&self) -> Option<Other> {
        if !self.shared {
            return None;
        }
        let own = self.state.row.open();
        let first = self.manners.borrow_mut().let_first(own, self.apart, self.state.others())?;
        self.step_back();
        tokio::time::sleep(MOMENT).await;
        Some(first)
    }

    /// Does not sleep for want of connections in the next moment: those that come are for others.
    pub(crate) fn step_back(&self) {
        if self.shared && self.door.stance() == Stance::InLine {
            self.stand(Stance::InLine);
        }
    }

    /// Is not woken until it comes back.
    pub(crate) fn leave(&self) {
        self.stand(Stance::Away);
    }

    /// Is woken again, if it had left.
    pub(crate) fn come_back(&self) {
        if self.door.stance() == Stance::Away {
            self.stand(if self.shared { Stance::InLine } else { Stance::Front });
        }
    }

    /// Lets the others be woken before us, if somebody has fewer connections.
    pub(crate) fn go_to_the_end(&self) {
        if self.door.stance() != Stance::InLine {
            return self.choose_stance();
        }
        let own = self.state.row.open();
        let (mut freer, mut most) = (false, 0);
        for other in self.state.others() {
            freer |= other.open < own;
            most = most.max(other.open);
        }
        self.state.most_open.set(most);
        if freer {
            self.stand(Stance::InLine);
        }
    }

    /// Looks after the others. Whether there is a connection that whoever was woken for it has left.
    pub(crate) fn look_around(&self) -> bool {
        if !self.shared || self.is_time_to_scan() {
            self.choose_stance();
        }
        self.shared && self.door.has_connection()
    }

    /// Whether to read the rows of all workers now: when a connection has ended between two beats, or when it is the turn of
    /// this worker. Workers take turns by their rows.
    fn is_time_to_scan(&self) -> bool {
        let now = self.state.now_ms();
        let period = 1 + self.state.board.row_count() / ROWS_PER_BEAT;
        if period == 1 || self.beat_ms.replace(now) == now {
            return true;
        }
        let beat = now / heartbeat::INTERVAL.as_millis() as u64;
        (beat + self.state.row.number() as u64).is_multiple_of(period as u64)
    }

    /// In the front or in line, as others have far more connections or not.
    fn choose_stance(&self) {
        if !self.shared {
            return self.come_back();
        }
        let state = &self.state;
        let (own, row) = (state.row.open(), state.row.number());
        let (front, most) = accept_fairness::stands_in_front(own, row, state.others());
        if front {
            self.stand(Stance::Front);
        } else if self.door.stance() != Stance::InLine {
            self.stand(Stance::InLine);
        }
        // In the front there is nothing more to be noticed.
        state.most_open.set(if front { 0 } else { most });
    }

    fn stand(&self, stance: Stance) {
        if let Err(e) = self.door.take(stance) {
            // It is tried again at the next beat.
            log::warn!("{} cannot register a listening socket with epoll: {e}", self.state.tag);
        }
    }
}
