//! What serving a connection asks of the worker it is served in. `State` answers on the worker's one thread, with
//! `Rc` and plain additions; `Shared` answers on any thread, with `Arc` and locked ones. The code that serves is
//! the same and is compiled for each, so neither pays for the other.

use std::ops::Deref;
use std::rc::Rc;
use std::task::Waker;

use super::conn::Conn;
use super::registry::Entry;
use super::state::State;
use crate::config::Config;
use crate::identity::WorkerTag;
use crate::scoreboard::{Meter, Ticket};

/// A worker, as a connection in it sees it.
pub(super) trait House: Sized + 'static {
    /// How its connections share what they share.
    type Ptr<T: 'static>: Deref<Target = T> + Clone;

    fn share<T: 'static>(value: T) -> Self::Ptr<T>;

    fn tag(&self) -> WorkerTag;
    fn config(&self) -> &Config;
    fn meter(&self) -> Meter;
    fn is_draining(&self) -> bool;
    /// Whether connections between two requests are to leave for another worker now.
    fn hands_over(&self) -> bool;
    /// Whether the client has to be told that this connection ends with its response.
    fn says_close(&self, conn: &Conn) -> bool;

    /// A request begins, and gets its line on the scoreboard if there is one left.
    fn begin(&self, method: &str, path: &str, now_ms: u64) -> Option<Ticket>;
    /// Its handler runs now, until the next call.
    fn running(&self, ticket: Option<Ticket>);
    fn describe(&self, ticket: Option<Ticket>) -> Option<String>;
    fn panicked(&self);
    fn responded(&self, status: u16);
    fn finish(&self, ticket: Option<Ticket>);

    /// The time of the last beat: good to a tenth of a second, and free.
    fn now_ms(&self) -> u64 {
        self.meter().now_ms()
    }
}

impl House for State {
    type Ptr<T: 'static> = Rc<T>;

    fn share<T: 'static>(value: T) -> Rc<T> {
        Rc::new(value)
    }

    fn tag(&self) -> WorkerTag {
        self.tag
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn meter(&self) -> Meter {
        self.row.meter()
    }

    fn is_draining(&self) -> bool {
        self.drain.order().is_some()
    }

    fn hands_over(&self) -> bool {
        State::hands_over(self)
    }

    fn says_close(&self, conn: &Conn) -> bool {
        State::says_close(self, conn)
    }

    fn begin(&self, method: &str, path: &str, now_ms: u64) -> Option<Ticket> {
        self.row.begin(method, path, now_ms)
    }

    fn running(&self, ticket: Option<Ticket>) {
        self.row.running(ticket);
    }

    fn describe(&self, ticket: Option<Ticket>) -> Option<String> {
        self.row.describe(ticket)
    }

    fn panicked(&self) {
        self.row.panicked();
    }

    fn responded(&self, status: u16) {
        self.row.responded(status);
    }

    fn finish(&self, ticket: Option<Ticket>) {
        self.row.finish(ticket);
    }
}

/// How the task that serves a connection hears that it was told something.
pub(super) trait Seat {
    fn conn(&self) -> &std::sync::Arc<Conn>;

    /// Called in each poll.
    fn watch(&self, waker: &Waker);
}

impl Seat for Entry {
    fn conn(&self) -> &std::sync::Arc<Conn> {
        &self.conn
    }

    fn watch(&self, waker: &Waker) {
        Entry::watch(self, waker);
    }
}
