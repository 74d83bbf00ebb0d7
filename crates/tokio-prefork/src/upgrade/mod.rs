//! Upgrade in place: the primary process execs the binary that is now at its path.
//!
//! ```text
//! old image                          new binary, as a child              new image, same pid
//! ---------                          ----------------------              -------------------
//! asked to upgrade
//! fork, exec the path     -------->  reads the manifest,
//!   with PREFORK_PROOF                configuration, boots
//!                                     the application once
//!                         <--------  "READY" on a pipe, exit 0
//! signals blocked, manifest sealed
//! execve the path with PREFORK_MANIFEST  ----------------------------->  takes over sockets, workers
//!                                                                        and counters, unblocks
//!                                                                        signals, replaces the workers
//! ```
//!
//! An exec cannot be undone, so a child checks first all that can be checked: a binary that is missing, broken, hanging or
//! crashing changes nothing. What remains is a binary that boots as a child and fails as the primary; then the service manager
//! starts it again.
//!
//! The kernel keeps children, pid, pending signals and open descriptors across an exec, so the workers stay children of the
//! primary.

mod launcher;
mod manifest;

pub use launcher::report_failed_start;
pub(crate) use launcher::{
    BinaryLauncher, UpgradeCheck, UpgradeRole, WaitingClients, is_started_by_upgrade,
    read_passed_manifest, read_passed_sockets, report_check_result,
};
pub(crate) use manifest::{
    ADMIN_REVISION, ISOLATED_JOBS_REVISION, MANIFEST_REVISION, MANIFEST_VERSION, MESSAGES_REVISION,
    PassedAdmin, PassedAdminProcess, PassedClient, PassedClientState, PassedConnection,
    PassedControl, PassedFile, PassedIsolatedJobs, PassedKind, PassedListener, PassedLockFile,
    PassedMemory, PassedMessages, PassedOutput, PassedPiece, PassedSharedState, PassedSocket,
    PassedWorker, SHARED_STATE_REVISION, TICKET_KEYS_REVISION, UpgradeManifest,
};
