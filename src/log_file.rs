//! The log file, for those who do not let a service manager keep their log. It takes the place of standard error,
//! so that what a panicking handler or a foreign library prints is in it, too.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

use crate::error::{Error, Result};
use crate::sys;

/// Opens `path` to append to, and makes it the standard error of this process. The descriptor is for workers
/// that were forked before.
pub(crate) fn redirect_to(path: &Path) -> Result<OwnedFd> {
    let failed = |e| Error::system(format!("write the log to {}", path.display()), e);
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        // A link in a directory that others can write could lead a privileged process anywhere.
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
        .open(path)
        .map_err(failed)?;
    let file = OwnedFd::from(file);
    sys::fd::replace_stderr(&file).map_err(failed)?;
    Ok(file)
}
