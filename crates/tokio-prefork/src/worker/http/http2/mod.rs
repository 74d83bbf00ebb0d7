//! HTTP/2: follows the frames of a connection alongside hyper, to enforce timeouts per stream.

mod frame_scanner;
pub(super) mod stream_executor;
pub(super) mod stream_tracking;
