//! Accepting: just in time, politely, and patiently.
//!
//! *Just in time*: a connection that has not sent anything yet holds up further accepting, for a moment. What
//! waits, waits in the kernel's queue, where any worker can take it and none can lose it by dying.
//!
//! *Politely*: a worker that has more open connections than another one that could take the newcomer lets it
//! go first, for a moment, and takes the connection if it is still there then. So connections spread evenly
//! over one plain shared socket. Politeness that was wasted (nobody came) is not repeated for a while.
//!
//! *Patiently*: out of file descriptors, it waits for one instead of asking again and again.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use socket2::Domain;
use tokio::io::unix::AsyncFd;

use super::registry::Entry;
use super::state::State;
use super::stream::Stream;
use crate::listener::Listener;
use crate::sys;

/// How long a silent newcomer holds up accepting, and how long a polite worker waits. The timer's step.
const MOMENT: Duration = Duration::from_millis(1);

/// How long a handshake that has begun is waited for before a socket is closed for ever: a round trip to a client
/// not too far away.
const HANDSHAKE: Duration = Duration::from_millis(50);

/// How long to wait when the process or the system is out of file descriptors or memory.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// After so many wasted waits in a row politeness rests for the longest time, 2^6 connections.
const MOST_WASTED: u32 = 6;

/// So many times in a row a listener may be ready with nobody to accept.
const MOST_IDLE: u32 = 1000;

/// A connection that was accepted, with what it sent already.
pub(super) struct Accepted {
    pub(super) stream: Stream,
    pub(super) first: Bytes,
    pub(super) entry: Rc<Entry>,
    pub(super) guard: Guard,
}

/// Keeps the connection in the worker's books; gone when this is dropped.
pub(super) struct Guard {
    state: Rc<State>,
    entry: Rc<Entry>,
}

impl Guard {
    /// For a connection that was just accepted or taken over.
    pub(super) fn new(state: &Rc<State>, entry: &Rc<Entry>) -> Guard {
        state.conns.borrow_mut().add(entry);
        Guard { state: Rc::clone(state), entry: Rc::clone(entry) }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.state.conns.borrow_mut().remove(&self.entry);
        self.state.row.closed();
        self.state.room.notify_waiters();
    }
}

/// Accepts from one listening socket until the worker drains. `handle` takes each connection.
pub(super) struct Acceptor {
    state: Rc<State>,
    socket: AsyncFd<OwnedFd>,
    name: String,
    unix: bool,
    /// Whether to wait for a newcomer's first bytes: protocols in which the server speaks first must not.
    client_speaks_first: bool,
    wasted: u32,
    rest: u32,
    /// Whether it was told that descriptors have run out, and none came free since.
    exhausted: bool,
}

impl Acceptor {
    pub(super) fn new(
        state: Rc<State>,
        listener: Listener,
        client_speaks_first: bool,
    ) -> io::Result<Acceptor> {
        let unix = listener.socket.domain()? == Domain::UNIX;
        let socket = sys::readiness::readable(listener.socket.into())?;
        let name = listener.local;
        Ok(Acceptor {
            state,
            socket,
            name,
            unix,
            client_speaks_first,
            wasted: 0,
            rest: 0,
            exhausted: false,
        })
    }

    pub(super) async fn run(mut self, handle: Rc<dyn Fn(Accepted)>) {
        let drain = Rc::clone(&self.state);
        tokio::select! {
            biased;
            () = drain.drain.begun() => {}
            () = self.accept_all(&handle) => {}
        }
        if drain.drain.order().is_some_and(|order| order.closing) {
            self.empty_queue(&handle);
            // Those that were in the middle of the handshake when newcomers were shut out.
            tokio::time::sleep(HANDSHAKE).await;
            self.empty_queue(&handle);
        }
        let state = Rc::clone(&self.state);
        // Our share in the socket ends here; as long as anybody else has one, it goes on listening.
        drop(self);
        state.acceptors.set(state.acceptors.get() - 1);
        state.room.notify_waiters();
    }

    async fn accept_all(&mut self, handle: &Rc<dyn Fn(Accepted)>) {
        let state = Rc::clone(&self.state);
        let mut idle = 0;
        loop {
            self.wait_for_room().await;
            let Ok(mut ready) = self.socket.readable().await else { return };
            let waited = self.rest == 0 && state.others_are_freer();
            if waited {
                tokio::time::sleep(MOMENT).await;
            }
            let outcome = ready.try_io(|socket| sys::socket::accept(socket.get_ref()));
            drop(ready);
            self.learn(waited, outcome.is_ok());
            match outcome {
                Ok(Ok(fd)) => {
                    self.exhausted = false;
                    self.take(fd, handle).await;
                }
                Ok(Err(e)) => self.endure(&e).await,
                Err(_would_block) => {
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

    /// Whether waiting was worth it: nobody took the connection, so we had to.
    fn learn(&mut self, waited: bool, still_there: bool) {
        match (waited, still_there) {
            (true, true) => {
                self.wasted = (self.wasted + 1).min(MOST_WASTED);
                self.rest = (1 << self.wasted) - 2;
            }
            (true, false) => self.wasted = 0,
            (false, _) => self.rest = self.rest.saturating_sub(1),
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
                rung.await;
            } else if state.fresh.get() > 0 {
                // Its own moment passes, too, so this cannot wait for ever.
                rung.await;
            } else {
                return;
            }
        }
    }

    /// Hands one connection on, with what it has sent already.
    async fn take(&self, fd: OwnedFd, handle: &Rc<dyn Fn(Accepted)>) {
        let state = &self.state;
        let first = if self.client_speaks_first { first_bytes(&fd) } else { Some(Bytes::new()) };
        let entry = Entry::new(state.now_ms());
        state.row.opened();
        let guard = Guard::new(state, &entry);
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
            None => self.await_first(stream, entry, guard, Rc::clone(handle)),
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
        let state = Rc::clone(&self.state);
        state.fresh.set(state.fresh.get() + 1);
        tokio::task::spawn_local(async move {
            let spoke = tokio::time::timeout(MOMENT, stream.readable()).await;
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
        let _ = tokio::time::timeout(EXHAUSTED, self.state.room.notified()).await;
    }

    /// What is queued when the last listener closes would be reset: it is taken now.
    fn empty_queue(&self, handle: &Rc<dyn Fn(Accepted)>) {
        let state = &self.state;
        while let Ok(fd) = sys::socket::accept(self.socket.get_ref()) {
            let first = match self.client_speaks_first {
                true => first_bytes(&fd).unwrap_or_default(),
                false => Bytes::new(),
            };
            let entry = Entry::new(State::exact_ms());
            state.row.opened();
            let guard = Guard::new(state, &entry);
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
