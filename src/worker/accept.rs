//! Accepting: just in time, politely, and patiently.
//!
//! *Just in time*: a connection that has not sent anything yet holds up further accepting, for a moment. What
//! waits, waits in the kernel's queue, where any worker can take it and none can lose it by dying.
//!
//! *Politely*: the workers that share a socket stand in line, and a connection wakes the first of them that sleeps. Who
//! has accepted goes to the end of the line, so the next connection is another's. Who has far fewer connections than
//! others stands in the front: it is always woken, and those who were woken beside it let it go first, for a moment
//! (see `manners`). So connections spread evenly over one plain shared socket, and nobody is woken in vain.
//!
//! A worker may be stopped or killed just when it was woken. The connection it was woken for is found by the next one
//! that is woken, and by everybody at its next beat, a tenth of a second later.
//!
//! *Patiently*: out of file descriptors, it waits for one instead of asking again and again.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use socket2::Domain;
use tokio::sync::Notify;

use super::line::Line;
use super::manners::Patience;
use super::registry::{Entry, Guard};
use super::state::State;
use super::stream::Stream;
use super::waited;
use crate::listener::Listener;
use crate::sys;

/// How long a silent newcomer holds up accepting, and how long another worker is waited for. The timer's step.
pub(super) const MOMENT: Duration = Duration::from_millis(1);

/// How long a handshake that has begun is waited for before a socket is closed for ever: a round trip to a client
/// not too far away.
const HANDSHAKE: Duration = Duration::from_millis(50);

/// How long to wait when the process or the system is out of file descriptors or memory.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// So many times in a row a listener may be ready with nobody to accept.
const MOST_IDLE: u32 = 1000;

/// A connection that was accepted, with what it sent already.
pub(super) struct Accepted {
    pub(super) stream: Stream,
    pub(super) first: Bytes,
    pub(super) entry: Rc<Entry>,
    pub(super) guard: Guard,
}

/// How an acceptor works.
pub(super) struct Manner {
    /// Whether to wait for a newcomer's first bytes: protocols in which the server speaks first must not.
    pub(super) client_speaks_first: bool,
    /// Whether others wait on the same socket, who may come first.
    pub(super) polite: bool,
    /// Rung when it is to end before the worker drains.
    pub(super) stop: Rc<Notify>,
}

/// Accepts from one listening socket until the worker drains. `handle` takes each connection.
pub(super) struct Acceptor {
    state: Rc<State>,
    line: Line,
    name: String,
    unix: bool,
    /// Whether it is the socket of our own slot.
    own: bool,
    manner: Manner,
    patience: Rc<RefCell<Patience>>,
    /// Whether it was told that descriptors have run out, and none came free since.
    exhausted: bool,
}

impl Acceptor {
    pub(super) fn new(
        state: Rc<State>,
        listener: Listener,
        manner: Manner,
    ) -> io::Result<Acceptor> {
        let unix = listener.socket.domain()? == Domain::UNIX;
        let own = !listener.is_everybodys() && listener.slot == state.tag.slot;
        let line = Line::new(&state, listener.socket.into(), manner.polite)?;
        let (name, patience) = (listener.local, Rc::default());
        Ok(Acceptor { state, line, name, unix, own, manner, patience, exhausted: false })
    }

    pub(super) async fn run(mut self, handle: Rc<dyn Fn(Accepted)>) {
        let drain = Rc::clone(&self.state);
        let stop = Rc::clone(&self.manner.stop);
        tokio::select! {
            biased;
            () = drain.drain.begun() => {}
            () = stop.notified() => {}
            () = self.accept_all(&handle) => {}
        }
        match drain.drain.order() {
            Some(order) if order.closing => self.close(&handle).await,
            // We may have been woken for it, and nobody else.
            _ if self.line.is_shared() => self.empty_queue(&handle, 1),
            _ => {}
        }
        let state = Rc::clone(&self.state);
        // Our share in the socket ends here; as long as anybody else has one, it goes on listening.
        drop(self);
        state.acceptors.set(state.acceptors.get() - 1);
        state.room.notify_waiters();
    }

    async fn accept_all(&mut self, handle: &Rc<dyn Fn(Accepted)>) {
        let state = Rc::clone(&self.state);
        let (mut idle, mut took) = (0, false);
        loop {
            self.wait_for_room().await;
            let ready = tokio::select! {
                biased;
                ready = self.line.readable() => match ready {
                    Ok(ready) => Some(ready),
                    Err(_) => return,
                },
                () = state.look.notified() => {
                    if !self.line.look_around() {
                        continue;
                    }
                    // Whoever was woken for it does not take it.
                    None
                }
            };
            let outcome = self.line.accept(ready).await;
            match outcome {
                Ok(Some(fd)) => {
                    (self.exhausted, took) = (false, true);
                    self.take(fd, handle).await;
                }
                Err(e) => self.endure(&e).await,
                Ok(None) => {
                    if std::mem::take(&mut took) {
                        self.line.go_to_the_end();
                    }
                    // Another worker was faster. A listener that somebody shut down is "ready" for ever, too:
                    // it must not take the loop from the rest.
                    idle += 1;
                    if idle > MOST_IDLE {
                        tokio::time::sleep(EXHAUSTED).await;
                    }
                    continue;
                }
            }
            idle = 0;
        }
    }

    async fn wait_for_room(&self) {
        let state = &self.state;
        let limit = u64::from(state.config.worker_connections);
        loop {
            let rung = state.room.notified();
            let full = state.row.open() >= limit;
            state.row.accepting(!full);
            if full {
                self.line.leave();
                rung.await;
            } else if state.fresh.get() > 0 {
                // Its own moment passes, too, so this cannot wait for ever.
                rung.await;
            } else {
                self.line.come_back();
                return;
            }
        }
    }

    /// Hands one connection on, with what it has sent already.
    async fn take(&self, fd: OwnedFd, handle: &Rc<dyn Fn(Accepted)>) {
        let state = &self.state;
        let Some(fd) = waited::admit(state, fd, self.unix, self.manner.client_speaks_first) else {
            self.count();
            // Its close has its first turn before our next accept, so a queue full of these does not hold the loop.
            return tokio::task::yield_now().await;
        };
        let first =
            if self.manner.client_speaks_first { first_bytes(&fd) } else { Some(Bytes::new()) };
        let entry = Entry::new(state.now_ms());
        state.row.opened();
        let guard = Guard::new(state, &entry);
        self.count();
        let stream = match Stream::new(fd, self.unix) {
            Ok(stream) => stream,
            Err(e) => return log::warn!("{} cannot serve a connection: {e}", state.tag),
        };
        match first {
            Some(first) => {
                handle(Accepted { stream, first, entry, guard });
                // Its first turn comes before our next accept: what a handler holds up is left to others.
                tokio::task::yield_now().await;
            }
            None if self.patience.borrow_mut().waits() => {
                self.await_first(stream, entry, guard, Rc::clone(handle));
            }
            None => handle(Accepted { stream, first: Bytes::new(), entry, guard }),
        }
    }

    /// A connection has left the queue; after `Guard`, which counts it as open.
    fn count(&self) {
        if self.own {
            self.state.meter.accepted();
        }
    }

    /// Waits for a silent newcomer's first bytes beside the accept loop, which it holds up for a moment.
    fn await_first(
        &self,
        stream: Stream,
        entry: Rc<Entry>,
        guard: Guard,
        handle: Rc<dyn Fn(Accepted)>,
    ) {
        let (state, patience) = (Rc::clone(&self.state), Rc::clone(&self.patience));
        self.line.step_back();
        state.fresh.set(state.fresh.get() + 1);
        tokio::task::spawn_local(async move {
            let spoke = tokio::time::timeout(MOMENT, stream.readable()).await;
            patience.borrow_mut().learn(spoke.is_ok());
            let first = spoke.ok().and_then(|_| first_bytes(&stream)).unwrap_or_default();
            handle(Accepted { stream, first, entry, guard });
            state.fresh.set(state.fresh.get() - 1);
            state.room.notify_waiters();
        });
    }

    /// Out of descriptors or memory: says so once, and waits until a connection is closed or a while passed.
    /// Anything else concerns the one connection that is gone.
    async fn endure(&mut self, error: &io::Error) {
        if !sys::socket::is_exhaustion(error) {
            log::debug!("{} accept on {}: {error}", self.state.tag, self.name);
            // An error that stays (a listener that somebody shut down) must not take the loop from the rest.
            return tokio::task::yield_now().await;
        }
        if !std::mem::replace(&mut self.exhausted, true) {
            log::error!(
                "{} cannot accept on {}: {error}; waiting for connections to close (raise LimitNOFILE or lower \
                 worker-connections)",
                self.state.tag,
                self.name
            );
        }
        self.state.row.accepting(false);
        self.line.leave();
        let _ = tokio::time::timeout(EXHAUSTED, self.state.room.notified()).await;
    }

    /// The end of the socket: takes what is in its queue, and those who were in the middle of the handshake when it
    /// was closed to newcomers.
    async fn close(&self, handle: &Rc<dyn Fn(Accepted)>) {
        self.empty_queue(handle, usize::MAX);
        tokio::time::sleep(HANDSHAKE).await;
        self.empty_queue(handle, usize::MAX);
    }

    /// Takes up to `most` connections from the queue. What is queued when the last listener closes would be reset.
    pub(super) fn empty_queue(&self, handle: &Rc<dyn Fn(Accepted)>, most: usize) {
        let state = &self.state;
        for _ in 0..most {
            let Ok(fd) = sys::socket::accept(self.line.socket()) else { return };
            let first = match self.manner.client_speaks_first {
                true => first_bytes(&fd).unwrap_or_default(),
                false => Bytes::new(),
            };
            let entry = Entry::new(State::exact_ms());
            state.row.opened();
            let guard = Guard::new(state, &entry);
            self.count();
            if let Ok(stream) = Stream::new(fd, self.unix) {
                handle(Accepted { stream, first, entry, guard });
            }
        }
    }
}

/// What the client has sent already; `None` if nothing yet. The end and errors are left for later reads.
pub(super) fn first_bytes(fd: impl std::os::fd::AsFd) -> Option<Bytes> {
    let mut buffer = [0u8; 4096];
    match sys::socket::read_now(fd, &mut buffer) {
        Ok(n) if n > 0 => Some(Bytes::copy_from_slice(&buffer[..n])),
        Ok(_) => Some(Bytes::new()),
        Err(_) => None,
    }
}
