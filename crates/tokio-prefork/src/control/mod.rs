//! The control socket: commands to a running primary over a Unix stream socket of mode 0600. The server accepts only root and
//! the user of the primary (`SO_PEERCRED`); [`ControlClient`] is the client.
//!
//! Requests and replies are frames: a big-endian length of four bytes, then JSON. The request `scale` and its reply:
//!
//! ```text
//! 00 00 00 17 7b 22 76 65 72 62 22 3a 22 73 63 61  ....{"verb":"sca
//! 6c 65 22 2c 22 74 6f 22 3a 34 7d                 le","to":4}
//!
//! 00 00 00 25 7b 22 6d 65 73 73 61 67 65 22 3a 22  ...%{"message":"
//! 34 20 77 6f 72 6b 65 72 73 20 6e 6f 77 22 2c 22  4 workers now","
//! 6f 6b 22 3a 74 72 75 65 7d                       ok":true}
//! ```
//!
//! | request | answer |
//! |---|---|
//! | `{"verb":"status"}` | `{"ok":true,"status":{...}}`, see [`ClusterStatus`](crate::status::ClusterStatus); read from memory, so that no worker can delay it |
//! | `{"verb":"reload","wait":true}` | `{"ok":true,"message":"..."}` when it is done; with `"wait":false` when it has begun |
//! | `{"verb":"scale","to":4}` or `"by":-1` | `{"ok":true,"message":"..."}` |
//! | `{"verb":"stop","now":false}` | `{"ok":true,"message":"..."}`; the primary closes the connection when it exits |
//! | `{"verb":"upgrade","wait":true}` | `{"ok":true,"message":"..."}` when workers of the new image serve, over the same connection; with `"wait":false` when the new binary has passed its check |
//! | `{"verb":"events","follow":false,"since":0}` | `{"ok":true,"event":{...}}` for each entry after `since` that is kept (the last thousand), then `{"ok":true,"last":N}`; with `follow`, each new event instead of the last line |
//! | `{"verb":"stack","worker":3}` or `"slot":1` | `{"ok":true,"stack":{...}}`, see [`WorkerStack`](crate::stack::WorkerStack) |
//! | anything else | `{"ok":false,"error":"..."}` |
//!
//! The server handles one request of a client at a time. An operation that has begun is finished and logged, even if its
//! client has disconnected. Limits: 32 clients and 8 followers, a request of 64 KiB, 5
//! seconds to send it and 5 for each step of reading the reply. When the table is full, the server
//! closes the client that has been idle longest, but never a client that waits for a reply.

mod client;
mod client_connection;
mod event_history;
pub(crate) mod frame;
mod liveness_probe;
mod protocol;
mod server;
mod socket_path;

/// Encodes a reply that refuses a request with a reason.
pub(crate) fn encode_refusal(why: String) -> Vec<u8> {
    frame::encode_frame(&Reply::Refused(why).encode())
}

pub use client::{ControlClient, EventIterator};
pub(crate) use event_history::EventHistory;
pub use protocol::Event;
pub(crate) use protocol::{Reply, Request};
pub use protocol::{Rescale, WorkerCountChange};
pub(crate) use server::{ControlPollToken, ControlServer, ReceivedRequest};
pub(crate) use socket_path::control_socket_of_this_process;
pub use socket_path::{find_control_sockets, runtime_directory};
