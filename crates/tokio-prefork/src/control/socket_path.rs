//! Where control sockets are: the runtime directory of the system or the user.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use super::server;
use crate::error::{Error, Result};
use crate::socket_file;

/// Of the system; made by systemd (`RuntimeDirectory=prefork`) or by a primary that root started.
const OF_THE_SYSTEM: &str = "/run/prefork";

/// The socket of this process in the runtime directory, which exists then; stale ones of others are removed.
/// `None` if there is no such directory for us.
pub(crate) fn of_this_process() -> Result<Option<PathBuf>> {
    let Some(directory) = Surroundings::of_this_process().directories().into_iter().next() else {
        return Ok(None);
    };
    if directory == Path::new(OF_THE_SYSTEM) {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(&directory);
        made.map_err(|e| Error::system(format!("make the directory {}", directory.display()), e))?;
    }
    for (path, pid) in sockets_in(&directory) {
        // Two witnesses: nobody answers, and there is no such process. A start that is about to listen has
        // the one against it, a primary in another container that shares the directory the other.
        if prefork_os::process::process_command_name(pid).is_none() {
            // One that lives is not ours to judge, and one that stays does no harm.
            let _ = socket_file::remove_stale_socket(&path);
        }
    }
    Ok(Some(directory.join(file_name(std::process::id()))))
}

/// Every socket that a primary on this machine may have made for this user, with its pid.
pub fn candidates() -> Vec<(PathBuf, u32)> {
    let mut directories = Surroundings::of_this_process().directories();
    if !directories.iter().any(|dir| dir == Path::new(OF_THE_SYSTEM)) {
        directories.push(PathBuf::from(OF_THE_SYSTEM));
    }
    directories.iter().flat_map(|directory| sockets_in(directory)).collect()
}

/// Where the socket of this user's primary would be, for messages.
pub fn runtime_directory() -> PathBuf {
    let mut directories = Surroundings::of_this_process().directories().into_iter();
    directories.next().unwrap_or_else(|| PathBuf::from(OF_THE_SYSTEM))
}

/// What decides where the runtime directory is.
struct Surroundings {
    /// `RUNTIME_DIRECTORY`, as systemd sets it: one or more paths with colons between them.
    service: Option<OsString>,
    root: bool,
    /// `XDG_RUNTIME_DIR`.
    user: Option<OsString>,
}

impl Surroundings {
    fn of_this_process() -> Surroundings {
        Surroundings {
            service: std::env::var_os("RUNTIME_DIRECTORY"),
            root: server::own_uid() == 0,
            user: std::env::var_os("XDG_RUNTIME_DIR"),
        }
    }

    /// The best first.
    fn directories(&self) -> Vec<PathBuf> {
        let absolute = |path: &PathBuf| path.is_absolute();
        let service = self.service.as_ref().and_then(|list| std::env::split_paths(list).next());
        let own = match self.root {
            true => Some(PathBuf::from(OF_THE_SYSTEM)),
            false => self.user.as_ref().map(PathBuf::from),
        };
        service.into_iter().chain(own).filter(absolute).collect()
    }
}

fn file_name(pid: u32) -> String {
    format!("prefork-{pid}.sock")
}

fn sockets_in(directory: &Path) -> Vec<(PathBuf, u32)> {
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

    fn directories(service: Option<&str>, root: bool, user: Option<&str>) -> Vec<PathBuf> {
        let os = |text: &str| OsString::from(text);
        Surroundings { service: service.map(os), root, user: user.map(os) }.directories()
    }

    #[test]
    fn the_runtime_directory_is_the_service_managers_the_systems_or_the_users() {
        let paths = |texts: &[&str]| texts.iter().map(PathBuf::from).collect::<Vec<_>>();
        let user = Some("/run/user/7");
        assert_eq!(
            directories(Some("/run/a:/run/b"), false, user),
            paths(&["/run/a", "/run/user/7"])
        );
        assert_eq!(directories(Some(""), true, user), paths(&["/run/prefork"]));
        assert_eq!(directories(None, false, user), paths(&["/run/user/7"]));
        assert_eq!(directories(None, false, Some("here")), paths(&[]));
        assert_eq!(directories(None, false, None), paths(&[]));
    }

    #[test]
    fn only_sockets_with_our_kind_of_name_are_found() {
        let dir = tempfile::tempdir().expect("dir");
        for name in ["prefork-12.sock", "prefork-3.sock", "prefork-x.sock", "other.sock"] {
            drop(std::os::unix::net::UnixListener::bind(dir.path().join(name)).expect("bind"));
        }
        std::fs::write(dir.path().join("prefork-4.sock"), "data").expect("write");
        let pids: Vec<u32> = sockets_in(dir.path()).into_iter().map(|(_, pid)| pid).collect();
        assert_eq!(pids, [3, 12]);
    }
}
