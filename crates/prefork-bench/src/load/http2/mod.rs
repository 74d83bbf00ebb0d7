//! HTTP/2 of one connection, between bytes in memory and the requests of the load.
//!
//! The load thread does all I/O. Requests are encoded once, and sent as bytes; of responses only what the load counts is
//! kept. So a request costs the generator less than with a general client, and leaves more CPU time to the server.

mod frames;
mod hpack;
mod http2_connection;
mod http2_request;
mod huffman;
mod received_frames;
mod stream_table;

pub(crate) use http2_connection::Http2Connection;
pub(crate) use http2_request::{Http2Request, validate_http2_header};
pub(crate) use stream_table::{StreamEvent, StreamFailure};
