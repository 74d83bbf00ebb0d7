//! The addresses of a connection: of its client, of this end, and of the listener that it came by.

#[cfg(feature = "axum")]
pub(crate) mod connect_info;
mod connection_info;
mod listener_names;
mod peer_addr;

pub use connection_info::ConnectionInfo;
pub(crate) use listener_names::{ListenerName, ListenerNames};
pub use peer_addr::{PeerAddr, UnixPeer};
