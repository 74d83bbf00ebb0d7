//! `round-robin`: the primary accepts, and passes each connection to the next worker that can take it.
//!
//! - `policy` decides which worker is next. Pure.
//! - `connection_queue` holds the connections on their way to one worker; the worker and the primary can both read it.
//! - `acceptor` runs in the primary: accepts, fills the queues, and takes back what a worker leaves unread.
//! - `receiver` runs in the worker: takes connections out of its queue one by one.
//!
//! The primary calls the acceptor from its event loop, see `primary/round_robin.rs`.

mod acceptor;
mod connection_queue;
mod policy;
mod receiver;

pub(crate) use acceptor::{AcceptorContext, ReceivingWorkers, RoundRobinAcceptor};
pub(crate) use connection_queue::{ConnectionQueue, QueuedConnection};
pub(crate) use receiver::ConnectionReceiver;
