//! Dispatch policies: how new connections reach the workers.

mod accept_budget;
mod accept_loop;
mod bpf;
pub(crate) mod first_byte;
mod ip_hash;
mod kernel_programs;
mod kernel_selector;
mod least_conn;
pub(crate) mod queue_wait;
pub(crate) mod reuseport;
pub(crate) mod round_robin;
mod selector_backend;
mod shared;

pub(crate) use accept_loop::Acceptor;
pub(crate) use first_byte::{AcceptedConnection, ConnectionStarter};
pub use kernel_programs::KernelProgram;
pub(crate) use kernel_selector::{Group, Lease, Load, SlotMeter, Steering};
