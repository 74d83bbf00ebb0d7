//! What an operator may ask while the cluster runs, over a Unix stream socket of mode 0600 that the primary
//! serves between its other duties. Root and the primary's own user may ask (`SO_PEERCRED`); [`Client`] asks.
//!
//! A frame is a big-endian length of four bytes and that many bytes of JSON, both ways. `scale` and its
//! answer:
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
//! | `{"verb":"status"}` | `{"ok":true,"status":{...}}`, see [`ClusterStatus`](crate::status::ClusterStatus); asks no worker, so none can delay it |
//! | `{"verb":"reload","wait":true}` | `{"ok":true,"message":"..."}` when it is done; with `"wait":false` when it has begun |
//! | `{"verb":"scale","to":4}` or `"by":-1` | `{"ok":true,"message":"..."}` |
//! | `{"verb":"stop","now":false}` | `{"ok":true,"message":"..."}`; the end of the connection is the primary's |
//! | `{"verb":"upgrade","wait":true}` | `{"ok":true,"message":"..."}` when workers of the new image serve, over the same connection; with `"wait":false` when the new binary is proved |
//! | `{"verb":"events","follow":false,"since":0}` | `{"ok":true,"event":{...}}` for each entry after `since` that is kept (the last thousand), then `{"ok":true,"last":N}`; with `follow` no last one, but each new one as it happens |
//! | anything else | `{"ok":false,"error":"..."}` |
//!
//! One request at a time; the next one is read when its answer is written. What is begun is finished, and
//! logged, even if who asked for it has gone. Limits: 32 clients and 8 followers, a request of 64 KiB, 5
//! seconds to send it and 5 for each step of reading the reply. When the table is full, the client that has
//! been silent for longest makes room; who waits for an answer never does.

mod client;
mod client_connection;
mod event_history;
pub(crate) mod frame;
mod liveness_probe;
mod protocol;
mod server;
mod socket_path;

/// A reply that says why something was not done, as it is sent.
pub(crate) fn encode_refusal(why: String) -> Vec<u8> {
    frame::encode_frame(&Reply::Refused(why).encode())
}

pub use client::{Client, Events};
pub(crate) use event_history::EventHistory;
pub use protocol::Event;
pub use protocol::{Change, Rescale};
pub(crate) use protocol::{Reply, Request};
pub(crate) use server::{ControlPollToken, ControlServer, ReceivedRequest};
pub(crate) use socket_path::control_socket_of_this_process;
pub use socket_path::{find_control_sockets, runtime_directory};
