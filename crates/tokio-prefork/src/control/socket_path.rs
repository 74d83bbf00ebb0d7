//! Paths of control sockets in the runtime directory of the system or the user.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use super::server;
use crate::error::{Error, Result};
use crate::socket_file;

/// The runtime directory for root: created by systemd (`RuntimeDirectory=prefork`) or by a primary that runs as root.
const SYSTEM_RUNTIME_DIRECTORY: &str = "/run/prefork";

/// Returns the socket path of this process. Creates the runtime directory and removes stale sockets in it.
/// `None` if this user has no runtime directory.
pub(crate) fn control_socket_of_this_process() -> Result<Option<PathBuf>> {
    let Some(directory) =
        RuntimeDirectories::from_environment().candidate_directories().into_iter().next()
    else {
        return Ok(None);
    };
    if directory == Path::new(SYSTEM_RUNTIME_DIRECTORY) {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(&directory);
        made.map_err(|e| Error::system(format!("make the directory {}", directory.display()), e))?;
    }
    for (path, pid) in list_control_sockets(&directory) {
        // Checks both the pid and the socket: a starting primary does not listen yet, and the pid of a primary in another
        // container is not visible.
        if prefork_os::process::process_command_name(pid).is_none() {
            // A stale socket that cannot be removed does no harm.
            let _ = socket_file::remove_stale_socket(&path);
        }
    }
    Ok(Some(directory.join(socket_file_name(std::process::id()))))
}

/// Finds the control sockets of primaries in the runtime directories of this user, with the pids of the primaries.
pub fn find_control_sockets() -> Vec<(PathBuf, u32)> {
    let mut directories = RuntimeDirectories::from_environment().candidate_directories();
    if !directories.iter().any(|dir| dir == Path::new(SYSTEM_RUNTIME_DIRECTORY)) {
        directories.push(PathBuf::from(SYSTEM_RUNTIME_DIRECTORY));
    }
    directories.iter().flat_map(|directory| list_control_sockets(directory)).collect()
}

/// Returns the directory in which a primary of this user puts its control socket, for messages.
pub fn runtime_directory() -> PathBuf {
    let mut directories =
        RuntimeDirectories::from_environment().candidate_directories().into_iter();
    directories.next().unwrap_or_else(|| PathBuf::from(SYSTEM_RUNTIME_DIRECTORY))
}

/// The settings that decide where the runtime directory is.
struct RuntimeDirectories {
    /// `RUNTIME_DIRECTORY`, as systemd sets it: one or more paths with colons between them.
    service: Option<OsString>,
    root: bool,
    /// `XDG_RUNTIME_DIR`.
    user: Option<OsString>,
}

impl RuntimeDirectories {
    fn from_environment() -> RuntimeDirectories {
        RuntimeDirectories {
            service: std::env::var_os("RUNTIME_DIRECTORY"),
            root: server::effective_uid() == 0,
            user: std::env::var_os("XDG_RUNTIME_DIR"),
        }
    }

    /// Returns the runtime directories, the preferred one first.
    fn candidate_directories(&self) -> Vec<PathBuf> {
        let absolute = |path: &PathBuf| path.is_absolute();
        let service = self.service.as_ref().and_then(|list| std::env::split_paths(list).next());
        let own = match self.root {
            true => Some(PathBuf::from(SYSTEM_RUNTIME_DIRECTORY)),
            false => self.user.as_ref().map(PathBuf::from),
        };
        service.into_iter().chain(own).filter(absolute).collect()
    }
}

fn socket_file_name(pid: u32) -> String {
    format!("prefork-{pid}.sock")
}

fn list_control_sockets(directory: &Path) -> Vec<(PathBuf, u32)> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut sockets: Vec<(PathBuf, u32)> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .filter_map(|entry| {
            let name = entry.file_name();
            let pid = name.to_str()?.strip_prefix("prefork-")?.strip_suffix(".sock")?;
            Some((entry.path(), pid.parse().ok()?))
        })
        .collect();
    sockets.sort_by_key(|(_, pid)| *pid);
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate_directories(
        service: Option<&str>,
        root: bool,
        user: Option<&str>,
    ) -> Vec<PathBuf> {
        let os = |text: &str| OsString::from(text);
        RuntimeDirectories { service: service.map(os), root, user: user.map(os) }
            .candidate_directories()
    }

    #[test]
    fn the_runtime_directory_depends_on_service_manager_user_and_root() {
        let paths = |texts: &[&str]| texts.iter().map(PathBuf::from).collect::<Vec<_>>();
        let user = Some("/run/user/7");
        assert_eq!(
            candidate_directories(Some("/run/a:/run/b"), false, user),
            paths(&["/run/a", "/run/user/7"])
        );
        assert_eq!(candidate_directories(Some(""), true, user), paths(&["/run/prefork"]));
        assert_eq!(candidate_directories(None, false, user), paths(&["/run/user/7"]));
        assert_eq!(candidate_directories(None, false, Some("here")), paths(&[]));
        assert_eq!(candidate_directories(None, false, None), paths(&[]));
    }

    #[test]
    fn only_control_sockets_are_found() {
        let dir = tempfile::tempdir().expect("dir");
        for name in ["prefork-12.sock", "prefork-3.sock", "prefork-x.sock", "other.sock"] {
            drop(std::os::unix::net::UnixListener::bind(dir.path().join(name)).expect("bind"));
        }
        std::fs::write(dir.path().join("prefork-4.sock"), "data").expect("write");
        let pids: Vec<u32> =
            list_control_sockets(dir.path()).into_iter().map(|(_, pid)| pid).collect();
        assert_eq!(pids, [3, 12]);
    }
}
