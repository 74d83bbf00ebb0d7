//! Descriptors that the process was started with.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::listener::ListenAddr;
use crate::log_file::inherited_log_fd;
use crate::{systemd, upgrade};

/// Closes every inherited descriptor that the configuration does not name, and opens `/dev/null` for closed standard streams.
///
/// Call it first in `main`, before the program opens files. Keeps descriptors 0 to 2, those of `fd://N` addresses, of systemd's
/// socket activation and of a `--log-file /dev/fd/N`. So no socket lands on a standard stream, and no descriptor that a
/// shell left open by accident lives on in the workers.
///
/// # Errors
///
/// `/dev/null` or `/proc/self/fd` cannot be opened, or systemd's variables are malformed.
pub fn close_inherited_fds(config: &Config) -> Result<()> {
    prefork_os::fd::open_closed_stdio_as_dev_null()
        .map_err(|e| Error::system("open /dev/null for a closed standard stream", e))?;
    if upgrade::is_started_by_upgrade() {
        // The previous image left open only what this one takes over.
        return Ok(());
    }
    let mut passed: Vec<i32> = config
        .bind
        .iter()
        .filter_map(|addr| match addr {
            ListenAddr::Fd(number) => Some(*number),
            ListenAddr::Tcp(_) | ListenAddr::Host(_) | ListenAddr::Unix(_) => None,
        })
        .collect();
    passed.extend(systemd::activation_fd_numbers()?);
    // `--log-file /dev/fd/5` means what the shell has opened as 5.
    passed.extend(config.log_file.as_deref().and_then(inherited_log_fd));
    prefork_os::fd::close_inherited_fds_except(&passed)
        .map_err(|e| Error::system("close inherited descriptors", e))
}
