//! `reuseport`: a listening socket for each slot.

pub(crate) mod adopted_sockets;
