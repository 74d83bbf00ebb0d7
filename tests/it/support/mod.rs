//! Support code of the integration tests: servers, clients, load, waiting, and `/proc`.

pub mod admin;
pub mod admin_listener;
pub mod boot_barrier;
pub mod command;
pub mod control;
pub mod fault_load;
pub mod grpc;
pub mod http;
pub mod http2;
pub mod kept_connections;
pub mod load;
pub mod log;
pub mod overlay_stream;
pub mod overrides;
pub mod process;
pub mod scrape;
pub mod server;
pub mod service_manager;
pub mod source_code;
pub mod tls;
pub mod tls_client;
pub mod tls_server;
pub mod wait;
pub mod websocket;

pub use command::prefork;
pub use http::{Address, Client, Failure};
pub use server::Server;

/// Returns the number in the environment variable `name`, which heavier runs set, or `default`.
pub fn env_count(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}
