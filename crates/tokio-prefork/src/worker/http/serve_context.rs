//! What serving a connection asks of the worker it is served in. `State` answers on the worker's one thread, with
//! `Rc` and plain additions; `Shared` answers on any thread, with `Arc` and locked ones. The code that serves is
//! the same and is compiled for each, so neither pays for the other.

use std::ops::Deref;
use std::rc::Rc;
use std::task::Waker;

use super::connection_state::Conn;
use crate::config::Config;
use crate::scoreboard::{OwnRow, Row};
use crate::worker::connection_registry::Entry;
use crate::worker::local_state::State;
use prefork_supervisor::WorkerTag;

/// A worker, as a connection in it sees it.
pub(crate) trait House: Sized + 'static {
    /// How its connections share what they share.
    type Ptr<T: 'static>: Deref<Target = T> + Clone;
    type Row: Row;

    fn share<T: 'static>(value: T) -> Self::Ptr<T>;

    fn tag(&self) -> WorkerTag;
    fn config(&self) -> &Config;
    /// What its requests are entered in.
    fn row(&self) -> &Self::Row;
    fn is_draining(&self) -> bool;
    /// Whether connections between two requests are to leave for another worker now.
    fn hands_over(&self) -> bool;
    /// Whether the client has to be told that this connection ends with its response.
    fn says_close(&self, conn: &Conn) -> bool;

    /// The time of the last beat: good to a tenth of a second, and free.
    fn now_ms(&self) -> u64 {
        self.row().meter().now_ms()
    }
}

impl House for State {
    type Ptr<T: 'static> = Rc<T>;
    type Row = OwnRow;

    fn share<T: 'static>(value: T) -> Rc<T> {
        Rc::new(value)
    }

    fn tag(&self) -> WorkerTag {
        self.tag
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn row(&self) -> &OwnRow {
        &self.row
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
}

/// How the task that serves a connection hears that it was told something.
pub(crate) trait Seat {
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
