//! Dispatch policies: how a new connection gets from the kernel to a worker.
//!
//! Each policy has a module of its own:
//!
//! | module | who accepts | from which socket |
//! |---|---|---|
//! | `shared` | the workers, those with fewer connections first | one socket, shared by all |
//! | `round_robin` | the primary, which passes each connection to the next worker | one socket |
//! | `reuseport` | the worker whose slot the kernel's hash selects | one socket per slot |
//! | `least_conn` | the worker with the fewest connections, selected by a BPF program | one socket per slot |
//! | `ip_hash` | the worker whose slot fits the client's address, selected by a BPF program | one socket per slot |
//!
//! All policies share the steps between accept and application: `queue_wait`, then `first_byte`; `accept_budget` limits
//! how long a worker accepts without a pause. `accept_loop` runs them for every listening socket of a worker.
//!
//! # Adding a policy
//!
//! 1. Add a variant to [`Dispatch`] in `policy`, and to `Dispatch::ALL`, which the compiler does not check. Every `match`
//!    over the enum is exhaustive, so the compiler lists what else the policy has to answer: its name, its [`AcceptPath`],
//!    its kernel programs and its [`kernel_selector::SelectorBackend`].
//! 2. Put its code into one module here. A policy that selects a slot in the kernel implements `SelectorBackend`, as
//!    `ip_hash` does. One that moves connections in another way gets its own `AcceptPath`; the compiler then leads to the
//!    code of worker and primary.
//! 3. Describe it in `docs/src/dispatch.md`.

mod accept_budget;
mod accept_loop;
mod bpf;
pub(crate) mod first_byte;
mod full_worker;
mod ip_hash;
mod kernel_programs;
mod kernel_selector;
mod least_conn;
mod policy;
mod proxy_header;
pub(crate) mod queue_wait;
pub(crate) mod reuseport;
pub(crate) mod round_robin;
mod shared;
mod worker_sockets;

use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::listener::Listener;
use crate::worker::BootedApp;
use crate::worker::local_state::LocalWorkerState;
use accept_loop::AcceptLoop;
pub(crate) use first_byte::{AcceptedConnection, ConnectionStart, ConnectionStarter};
pub use kernel_programs::KernelProgram;
pub(crate) use kernel_selector::{KernelSelector, ReuseportGroup, SlotLoad};
pub(crate) use least_conn::load_page::{LoadPage, LoadPageLease};
pub(crate) use policy::AcceptPath;
pub use policy::Dispatch;
use round_robin::ConnectionReceiver;
pub(crate) use worker_sockets::{AttachedTargets, GroupLayout, SocketTarget};

/// Starts the tasks that accept connections in a worker. `queue` is the worker's connection queue if the primary accepts.
pub(crate) fn start_accepting(
    state: &Rc<LocalWorkerState>,
    app: &BootedApp,
    listeners: Vec<Listener>,
    queue: Option<OwnedFd>,
) -> Result<()> {
    for listener in &listeners {
        listener.set_tcp_keep_alive(state.config.tcp_keep_alive);
    }
    if let Some(queue) = queue {
        let receiver =
            ConnectionReceiver::new(state, queue, listeners, app.connection_starter(state))
                .map_err(|e| Error::system("register the queue of connections", e))?;
        tokio::task::spawn_local(receiver.run());
        return Ok(());
    }
    for listener in listeners {
        let is_shared = match state.config.dispatch.accept_path() {
            // Under `Primary` every web worker has a queue, so that this is not reached.
            AcceptPath::SharedSocket | AcceptPath::Primary => true,
            // A Unix socket exists once, whatever the policy.
            AcceptPath::SlotSocket => listener.is_shared_by_all_workers(),
        };
        let starter = app.connection_starter(state);
        let acceptor = AcceptLoop::new(state, listener, starter, is_shared, Rc::default())
            .map_err(|e| Error::system("register a listening socket", e))?;
        tokio::task::spawn_local(acceptor.run());
    }
    Ok(())
}
