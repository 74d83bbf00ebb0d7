//! The first moments of a connection in a worker, by whichever way it came.
//!
//! Just in time: a newcomer that has not sent anything yet holds up the next, for a moment; where some stay silent, a few
//! of them together do (see `manners`). What is not taken can be taken by others.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::link::Link;
use super::manners::Patience;
use super::registry::{Entry, Guard};
use super::state::State;
use super::waited;

/// How long a silent newcomer holds up the next, and how long a polite worker waits. The timer's step.
pub(super) const MOMENT: Duration = Duration::from_millis(1);

/// Who has said nothing for so long is not late, but silent. Many round trips to a client that is not far away.
const LATE: Duration = Duration::from_millis(20);

/// A connection that was accepted, with what it sent already.
pub(super) struct Accepted {
    pub(super) link: Link,
    pub(super) first: Bytes,
    pub(super) entry: Rc<Entry>,
    pub(super) guard: Guard,
}

/// What became of a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is served. Its first turn should come before the next one is taken: what a handler holds up is then left to
    /// others.
    Spoke,
    /// It has sent nothing yet, and is waited for: `State::fresh` says for how long.
    Awaited,
    /// It has sent nothing yet, and is not waited for.
    Silent,
}

/// Where an acceptor puts its connections.
pub(super) struct Newcomers {
    state: Rc<State>,
    /// Whether to wait for a newcomer's first bytes: protocols in which the server speaks first must not.
    client_speaks_first: bool,
    patience: Rc<RefCell<Patience>>,
    handle: Rc<dyn Fn(Accepted)>,
}

impl Newcomers {
    pub(super) fn new(
        state: &Rc<State>,
        client_speaks_first: bool,
        handle: &Rc<dyn Fn(Accepted)>,
    ) -> Newcomers {
        let (state, handle) = (Rc::clone(state), Rc::clone(handle));
        Newcomers { state, client_speaks_first, patience: Rc::default(), handle }
    }

    /// Whether so many are waited for that the next has to wait, too.
    pub(super) fn hold_up(&self) -> bool {
        self.state.fresh.get() >= self.patience.borrow().at_once()
    }

    /// Hands one connection on that waited for so long, with what it has sent already.
    pub(super) fn take(&self, fd: OwnedFd, unix: bool, waited: Option<Duration>) -> Taken {
        let Some(fd) = waited::admit(&self.state, fd, waited, self.client_speaks_first) else {
            // So a queue full of these does not hold the loop.
            return Taken::Spoke;
        };
        let first = self.first_bytes(&fd);
        let spoke = first.is_some();
        let accepted = self.enter(fd, unix, first, self.state.now_ms());
        if spoke {
            self.patience.borrow_mut().has_spoken();
        }
        if spoke || !self.patience.borrow_mut().waits() {
            (self.handle)(accepted);
            return if spoke { Taken::Spoke } else { Taken::Silent };
        }
        self.await_first(accepted);
        Taken::Awaited
    }

    /// Hands one connection on at once: there is no next one to hold up.
    pub(super) fn take_last(&self, fd: OwnedFd, unix: bool) {
        let first = self.first_bytes(&fd);
        (self.handle)(self.enter(fd, unix, first, State::exact_ms()));
    }

    fn first_bytes(&self, fd: impl AsFd) -> Option<Bytes> {
        if self.client_speaks_first { first_bytes(fd) } else { Some(Bytes::new()) }
    }

    /// Into the books with it.
    fn enter(&self, fd: OwnedFd, unix: bool, first: Option<Bytes>, now: u64) -> Accepted {
        let state = &self.state;
        let entry = Entry::new(now);
        state.row.opened();
        let guard = Guard::new(state, &entry);
        let link = Link::new(fd, unix);
        Accepted { link, first: first.unwrap_or_default(), entry, guard }
    }

    /// Waits for a silent newcomer's first bytes beside the acceptor, which it holds up for a moment.
    fn await_first(&self, mut accepted: Accepted) {
        let (state, handle) = (Rc::clone(&self.state), Rc::clone(&self.handle));
        let patience = Rc::clone(&self.patience);
        state.fresh.set(state.fresh.get() + 1);
        tokio::task::spawn_local(async move {
            let in_time = tokio::time::timeout(MOMENT, accepted.link.readable()).await.is_ok();
            patience.borrow_mut().learn(in_time);
            let go_on = || {
                state.fresh.set(state.fresh.get() - 1);
                state.room.notify_waiters();
            };
            if !in_time {
                go_on();
                if tokio::time::timeout(LATE, accepted.link.readable()).await.is_err() {
                    patience.borrow_mut().stays_silent();
                }
            }
            accepted.first = accepted.link.fd().ok().and_then(first_bytes).unwrap_or_default();
            handle(accepted);
            if in_time {
                go_on();
            }
        });
    }
}

thread_local! {
    /// Where first bytes are read to. Kept, as clearing one for each connection costs more than the read.
    static BUFFER: RefCell<[u8; 4096]> = const { RefCell::new([0; 4096]) };
}

/// What the client has sent already; `None` if nothing yet. The end and errors are left for later reads.
fn first_bytes(fd: impl AsFd) -> Option<Bytes> {
    BUFFER.with_borrow_mut(|buffer| match prefork_os::socket::read_nonblocking(fd, buffer) {
        Ok(n) => Some(Bytes::copy_from_slice(&buffer[..n])),
        Err(_) => None,
    })
}
