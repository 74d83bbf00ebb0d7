//! Serves HTTP/1 and HTTP/2 connections with hyper.

pub(crate) mod connection_state;
pub(crate) mod half_close;
pub(crate) mod handle_request;
mod http2;
pub(crate) mod hyper_io;
pub(crate) mod into_service;
pub(crate) mod lingering_socket;
mod request_boundary;
pub(crate) mod request_identity;
pub(crate) mod request_observers;
pub(crate) mod request_record;
pub(crate) mod request_tracking;
pub(crate) mod response_chunk;
pub(crate) mod serve_connection;
pub(crate) mod serve_context;
mod serve_http;
pub(crate) mod timeouts;
mod tls_hint;
