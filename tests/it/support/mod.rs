//! What all tests share: a server that cleans up after itself, a client that tells failures apart, and waits
//! that end.

pub mod boot_barrier;
pub mod command;
pub mod control;
pub mod fault_load;
pub mod http;
pub mod http2;
pub mod kept_connections;
pub mod load;
pub mod log;
pub mod overrides;
pub mod process;
pub mod server;
pub mod service_manager;
pub mod source_code;
pub mod wait;

pub use command::prefork;
pub use http::{Address, Client, Failure};
pub use server::Server;

/// How much of something a test does: the variable `name`, which a heavier run sets, or `usual`.
pub fn amount(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |text| text.parse().expect(name))
}
