//! What the worker reads from HTTP/2 frames beside hyper, and the tasks of HTTP/2 streams.

mod frame_scanner;
pub(super) mod stream_executor;
pub(super) mod stream_tracking;
