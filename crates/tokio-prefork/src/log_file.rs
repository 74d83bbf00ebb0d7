//! The log file, for installations without a service manager that keeps the log. It becomes standard error, so that it
//! also has what a foreign library prints.
//!
//! The path may name a descriptor that is open already (`/dev/stderr`, `/dev/stdout`, `/dev/fd/N`), which is then used
//! as it is: opening it again fails where it is a socket or belongs to another user. A link is followed if it belongs to
//! root or to the user of this process, as the kernel does it in shared directories (`protected_symlinks`); the link of
//! somebody else could lead a privileged process anywhere.

use std::fs::{Metadata, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::error::{Error, Result};
use prefork_os::nonblocking_writer::FileKind;

/// Links that are followed before they count as a circle, as in the kernel.
const MAX_SYMLINKS: usize = 40;

/// Where a log can go.
const LOG_DESTINATIONS: &str = "name a regular file, /dev/null, /dev/stdout or /dev/stderr";

/// A file or a descriptor that takes the log.
#[derive(Debug)]
pub struct LogFile {
    file: OwnedFd,
    /// The descriptor that the path names, instead of a file.
    fd: Option<i32>,
}

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
enum LogDestination {
    Descriptor(i32),
    File(PathBuf),
}

impl LogFile {
    /// Opens `path` to append to. Nothing is redirected yet.
    pub(crate) fn open(path: &Path) -> Result<LogFile> {
        let cannot = |why: String| {
            Error::system(format!("write the log to {}", path.display()), io::Error::other(why))
        };
        match resolve_log_destination(path).map_err(cannot)? {
            LogDestination::Descriptor(fd) => {
                let file = duplicate_log_fd(fd).map_err(cannot)?;
                Ok(LogFile { file, fd: Some(fd) })
            }
            LogDestination::File(found) => {
                let file = open_log_path(&found).map_err(cannot)?;
                Ok(LogFile { file, fd: None })
            }
        }
    }

    /// Checks whether the file could be opened, as far as that can be told without creating it. The descriptors of
    /// another process are not looked at.
    pub fn check(path: &Path) -> Result<()> {
        let cannot = |why: String| {
            Error::system(format!("write the log to {}", path.display()), io::Error::other(why))
        };
        let LogDestination::File(found) = resolve_log_destination(path).map_err(cannot)? else {
            return Ok(());
        };
        if found.symlink_metadata().is_ok() {
            return open_log_path(&found).map(drop).map_err(cannot);
        }
        let directory = found.parent().unwrap_or(Path::new("/"));
        let can_write = nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK;
        nix::unistd::eaccess(directory, can_write)
            .map_err(|e| cannot(open_error_text(&found, &io::Error::from(e))))
    }

    /// As [`open`](LogFile::open), but not at the start: of descriptors, only the standard streams are still what the path
    /// means. For any other the log stays where it is.
    pub(crate) fn reopen(path: &Path) -> Result<LogFile> {
        match inherited_log_fd(path) {
            None => LogFile::open(path),
            Some(fd) => Err(Error::config(format!(
                "log-file = {} can only be opened at the start: descriptor {fd} may be anything by now; restart to \
                 change to it",
                path.display()
            ))),
        }
    }

    /// Makes it the standard error of this process. The descriptor is for workers that were forked before.
    pub(crate) fn redirect_stderr(self) -> io::Result<OwnedFd> {
        prefork_os::fd::replace_stderr(&self.file)?;
        if let Some(fd @ 3..) = self.fd {
            // It has become descriptor 2: no program that is started needs it twice.
            prefork_os::fd::set_close_on_exec(fd)?;
        }
        Ok(self.file)
    }
}

/// The descriptor that `path` names, other than the standard streams: it has to stay open at the start.
pub(crate) fn inherited_log_fd(path: &Path) -> Option<i32> {
    match resolve_log_destination(path) {
        Ok(LogDestination::Descriptor(fd @ 3..)) => Some(fd),
        Ok(_) | Err(_) => None,
    }
}

/// Whether both paths lead to the same file, or would once it is made.
pub(crate) fn is_same_file(one: &Path, other: &Path) -> bool {
    if let (Ok(one), Ok(other)) = (one.metadata(), other.metadata()) {
        return (one.dev(), one.ino()) == (other.dev(), other.ino());
    }
    matches!((resolve_log_destination(one), resolve_log_destination(other)), (Ok(one), Ok(other)) if one == other)
}

/// Follows links, with the checks that the kernel leaves out in directories that are not sticky.
fn resolve_log_destination(path: &Path) -> std::result::Result<LogDestination, String> {
    let mut path = path.to_path_buf();
    for _ in 0..MAX_SYMLINKS {
        if let Some(fd) = parse_fd_path(&path) {
            return Ok(LogDestination::Descriptor(fd));
        }
        let directory = match path.parent() {
            None => return Err(unusable_text("a directory")),
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
        };
        let Some(name) = path.file_name() else { return Err(unusable_text("a directory")) };
        let directory = directory.canonicalize().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                format!("the directory {} does not exist; make it", directory.display())
            }
            _ => format!("the directory {} cannot be reached: {e}", directory.display()),
        })?;
        path = directory.join(name);
        if let Some(fd) = parse_fd_path(&path) {
            return Ok(LogDestination::Descriptor(fd));
        }
        let meta = match path.symlink_metadata() {
            Ok(meta) if meta.is_symlink() => meta,
            Ok(_) => return Ok(LogDestination::File(path)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(LogDestination::File(path)),
            Err(e) => return Err(e.to_string()),
        };
        path = follow_symlink(&path, &directory, &meta)?;
    }
    Err("too many links, or a circle of them".to_string())
}

fn follow_symlink(
    link: &Path,
    directory: &Path,
    meta: &Metadata,
) -> std::result::Result<PathBuf, String> {
    if ![0, nix::unistd::geteuid().as_raw()].contains(&meta.uid()) {
        return Err(format!(
            "{} is a link of another user (uid {}), which is not followed; name the file itself",
            link.display(),
            meta.uid()
        ));
    }
    let target = std::fs::read_link(link).map_err(|e| format!("{}: {e}", link.display()))?;
    Ok(directory.join(target))
}

/// The number in `/dev/stderr`, `/dev/fd/2`, `/proc/self/fd/2` and the like.
fn parse_fd_path(path: &Path) -> Option<i32> {
    let parts: Option<Vec<&str>> = path
        .components()
        .map(|part| match part {
            Component::RootDir => Some("/"),
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    let own = std::process::id().to_string();
    match parts?[..] {
        ["/", "dev", "stdin"] => Some(0),
        ["/", "dev", "stdout"] => Some(1),
        ["/", "dev", "stderr"] => Some(2),
        ["/", "dev", "fd", fd] => fd.parse().ok(),
        ["/", "proc", process, "fd", fd] if process == "self" || process == own => fd.parse().ok(),
        ["/", "proc", process, "task", _, "fd", fd] if process == own => fd.parse().ok(),
        ["/", "proc", "thread-self", "fd", fd] => fd.parse().ok(),
        _ => None,
    }
}

/// A duplicate of descriptor `number`, if a log can go there.
fn duplicate_log_fd(fd: i32) -> std::result::Result<OwnedFd, String> {
    let file = prefork_os::fd::duplicate_fd(fd).map_err(|e| match Errno::try_from(e) {
        Ok(Errno::EBADF) => format!("descriptor {fd} is not open; {LOG_DESTINATIONS}"),
        Ok(e) => e.desc().to_string(),
        Err(e) => e.to_string(),
    })?;
    let kind = file_kind(&file)?;
    // Beyond the standard streams, sockets are connections or listen.
    if fd > 2 && kind == FileKind::Socket {
        return Err(unusable_text("a socket"));
    }
    match kind {
        FileKind::Directory => Err(unusable_text("a directory")),
        FileKind::BlockDevice => Err(unusable_text("a block device")),
        _ if !prefork_os::fd::is_open_for_writing(&file).map_err(|e| e.to_string())? => {
            Err(format!("descriptor {fd} is open for reading only; {LOG_DESTINATIONS}"))
        }
        _ => Ok(file),
    }
}

/// Opens a regular file, which is made if it does not exist, or a character device.
fn open_log_path(path: &Path) -> std::result::Result<OwnedFd, String> {
    // Before it is opened, as that alone does something to some devices.
    if let Ok(meta) = path.symlink_metadata() {
        check_can_hold_log(prefork_os::nonblocking_writer::file_kind_of_mode(meta.mode()))?;
    }
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(flags.bits())
        .open(path)
        .map_err(|e| open_error_text(path, &e))?;
    let file = OwnedFd::from(file);
    // Another file may have taken its place before it was opened.
    check_can_hold_log(file_kind(&file)?)?;
    prefork_os::fd::set_append_mode(&file).map_err(|e| e.to_string())?;
    Ok(file)
}

fn file_kind(file: &OwnedFd) -> std::result::Result<FileKind, String> {
    prefork_os::nonblocking_writer::identify_file(file)
        .map(|(kind, _)| kind)
        .map_err(|e| e.to_string())
}

fn check_can_hold_log(kind: FileKind) -> std::result::Result<(), String> {
    match kind {
        FileKind::Regular | FileKind::CharacterDevice | FileKind::Terminal => Ok(()),
        FileKind::Directory => Err(unusable_text("a directory")),
        FileKind::Pipe => Err(unusable_text("a FIFO")),
        FileKind::Socket => Err(unusable_text("a socket")),
        FileKind::BlockDevice => Err(unusable_text("a block device")),
    }
}

fn unusable_text(what: &str) -> String {
    format!("it is {what}; {LOG_DESTINATIONS}")
}

fn open_error_text(path: &Path, error: &io::Error) -> String {
    let directory = path.parent().unwrap_or(Path::new("/")).display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let uid = nix::unistd::geteuid();
            format!(
                "{error}; let uid {uid} write to it, or to the directory {directory} if it does not exist"
            )
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            format!("{error}; choose a directory of another file system than that of {directory}")
        }
        io::ErrorKind::StorageFull => {
            format!("{error}; make room in the file system of {directory}")
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path) -> String {
        LogFile::open(path).expect_err("no log").to_string()
    }

    #[test]
    fn names_of_descriptors_are_recognised_through_links_and_dots() {
        let dir = tempfile::tempdir().expect("directory");
        let link = dir.path().join("log");
        std::os::unix::fs::symlink("/dev/stdout", &link).expect("link");
        for (path, fd) in [
            ("/dev/stderr", 2),
            ("/dev//./stdout", 1),
            ("/dev/fd/2", 2),
            ("/proc/self/fd/1", 1),
            ("/dev/../dev/stderr", 2),
            (&format!("/proc/{}/fd/2", std::process::id()), 2),
            (link.to_str().expect("UTF-8"), 1),
        ] {
            let found = resolve_log_destination(Path::new(path));
            assert_eq!(found, Ok(LogDestination::Descriptor(fd)), "{path}");
        }
    }

    #[test]
    fn what_cannot_be_a_log_is_named_and_not_waited_for() {
        let dir = tempfile::tempdir().expect("directory");
        let path = |name: &str| dir.path().join(name);
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("FIFO");
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).expect("socket");
        std::os::unix::fs::symlink("circle", path("circle")).expect("link");
        for (name, what) in [
            ("", "a directory"),
            ("fifo", "a FIFO"),
            ("socket", "a socket"),
            ("no/log", "does not exist; make it"),
            ("circle", "a circle"),
        ] {
            let why = refused(&path(name));
            assert!(why.starts_with("cannot write the log to /") && why.contains(what), "{why}");
        }
        let why = refused(Path::new("/dev/fd/999"));
        assert!(why.contains("descriptor 999 is not open"), "{why}");
    }

    #[test]
    fn a_check_names_what_cannot_be_a_log_and_makes_no_file() {
        let dir = tempfile::tempdir().expect("directory");
        let path = |name: &str| dir.path().join(name);
        LogFile::check(&path("log")).expect("can be made");
        assert!(!path("log").exists());
        std::fs::write(path("log"), "kept").expect("write");
        LogFile::check(&path("log")).expect("is there");
        assert_eq!(std::fs::read(path("log")).expect("read"), b"kept");
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("FIFO");
        for (name, what) in [("", "a directory"), ("fifo", "a FIFO"), ("no/log", "does not exist")]
        {
            let why = LogFile::check(&path(name)).expect_err("no log").to_string();
            assert!(why.contains(what), "{why}");
        }
        LogFile::check(Path::new("/dev/fd/999")).expect("that of another process");
    }

    #[test]
    fn ones_own_link_to_a_file_is_followed_whether_the_file_exists_or_not() {
        let dir = tempfile::tempdir().expect("directory");
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::os::unix::fs::symlink("file", &link).expect("link");
        for _ in 0..2 {
            LogFile::open(&link).expect("a log");
            assert!(file.symlink_metadata().expect("made").is_file());
        }
        assert!(is_same_file(&link, &file) && !is_same_file(&file, dir.path()));
        assert!(is_same_file(&dir.path().join("a"), &dir.path().join("./a")));
    }

    #[test]
    fn a_device_can_be_a_log() {
        LogFile::open(Path::new("/dev/null")).expect("a log");
    }
}
