//! Loads that are more than requests per second: each measures one property of a server.
//!
//! Each kind takes a plan and returns a report, which prints as text and as JSON. Requests are those of a
//! [`LoadPlan`]: its URL, TLS, method, header fields and timeout.

mod beside_load;
pub(crate) mod blocking_client;
pub mod idle_memory;
mod kind_report;
mod prober;
mod quiet_server;
pub mod reloads;
pub mod slow_readers;
#[cfg(test)]
pub(crate) mod test_server;
pub mod websocket_echo;
pub mod worker_kills;

pub(crate) use beside_load::interrupt_loads;
pub use kind_report::KindReport;

use crate::load::LoadPlan;
use crate::load::process_tree::ProcessTree;
use crate::load::target_url::ServerAddress;
use prefork_os::process::raise_open_file_limit;
use tokio_prefork::{Error, Result};

/// File descriptors kept free for other uses than connections.
const RESERVED_FILE_DESCRIPTORS: u64 = 64;

/// Raises the limit on open files, and checks that it has room for the connections.
fn reserve_open_files(connections: usize) -> Result<()> {
    let files =
        raise_open_file_limit().map_err(|e| Error::system("raise the limit on open files", e))?;
    match connections as u64 + RESERVED_FILE_DESCRIPTORS > files {
        true => Err(Error::config(format!(
            "{connections} connections: the limit on open files is {files}; lower the count or raise `ulimit -n`"
        ))),
        false => Ok(()),
    }
}

/// Finds the processes that serve an address of this machine.
fn find_server_tree(plan: &LoadPlan, address: &ServerAddress) -> Result<ProcessTree> {
    let tree = match address.is_local() {
        true => ProcessTree::find_by_listener(&address.listen_addr),
        false => None,
    };
    tree.ok_or_else(|| {
        Error::refused(format!(
            "{}: no process of this user on this machine listens there, so its processes cannot be observed; run \
             this program as the server's user on the server's machine",
            plan.target
        ))
    })
}
