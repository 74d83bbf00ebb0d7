//! `shared`: all workers accept from one listening socket.

pub(super) mod accept_fairness;
pub(super) mod accept_queue;
