//! `round-robin`: the primary accepts, and passes each connection to the next worker that can take it.

mod acceptor;
mod connection_queue;
mod policy;
mod receiver;

pub(crate) use acceptor::{Dealer, Table};
pub(crate) use connection_queue::{Dealt, Newcomer, Queue, read as read_dealt};
pub(crate) use receiver::Taker;
