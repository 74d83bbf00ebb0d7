//! Upgrade in place: the same process becomes the binary that now stands at its path.
//!
//! ```text
//! old image                          new binary, as a child              new image, same pid
//! ---------                          ----------------------              -------------------
//! asked to upgrade
//! fork, exec the path     -------->  reads the manifest,
//!   with PREFORK_PROOF                configuration, boots the
//!                                     application once
//!                         <--------  "READY" on a pipe, exit 0
//! signals blocked, manifest sealed
//! execve the path with PREFORK_MANIFEST  ----------------------------->  adopts sockets, workers
//!                                                                        and counters, lets signals
//!                                                                        in, rolls the workers over
//! ```
//!
//! An exec cannot be undone, so everything that can be proved is proved before, by a child that is thrown away:
//! a binary that is missing, broken, hanging or crashing changes nothing. What remains is a binary that boots as a
//! child and dies as a primary; then the service manager starts it anew.
//!
//! Workers are children before and after: the kernel keeps that over an exec, as it does the pid, pending signals
//! and open descriptors.

mod launcher;
mod manifest;

pub use launcher::report_failed_start;
pub(crate) use launcher::{Inherited, Launcher, Proof, WaitingClients, answer, is_inherited};
pub(crate) use manifest::{
    Manifest, PassedClient, PassedConnection, PassedControl, PassedFile, PassedListener,
    PassedState, PassedWorker, REVISION,
};
