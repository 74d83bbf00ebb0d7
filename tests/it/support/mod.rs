//! What all tests share: a server that cleans up after itself, a client that tells failures apart, and waits
//! that end.

pub mod command;
pub mod control;
pub mod gate;
pub mod h2;
pub mod held;
pub mod http;
pub mod load;
pub mod log;
pub mod manager;
pub mod process;
pub mod server;
pub mod source;
pub mod storm;
pub mod under;
pub mod wait;

pub use command::prefork;
pub use http::{Address, Client, Failure};
pub use server::Server;

/// How much of something a test does: the variable `name`, which a heavier run sets, or `usual`.
pub fn amount(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |text| text.parse().expect(name))
}
