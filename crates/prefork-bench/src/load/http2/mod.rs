//! HTTP/2 of one connection: the `h2` crate between bytes in memory and the requests of the load.

mod http2_connection;
mod http2_request;
mod memory_pipe;

pub(crate) use http2_connection::{Http2Connection, StreamEvent, StreamFailure};
pub(crate) use http2_request::{Http2Request, validate_http2_header};
