//! The log file: opens it and redirects standard error to it, so that it also gets the output of other libraries.
//!
//! The path may name an open descriptor (`/dev/stderr`, `/dev/stdout`, `/dev/fd/N`), which is duplicated: opening it again
//! fails if it is a socket or belongs to another user. Symbolic links are followed only if they belong to root or to the user
//! of this process, as with the kernel's `protected_symlinks`, because a link of another user could make a privileged
//! process write to any file.

use std::fs::{Metadata, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::error::{Error, Result};
use prefork_os::nonblocking_writer::FileKind;

/// How many symbolic links are followed before they count as a loop, as in the kernel.
const MAX_SYMLINKS: usize = 40;

/// The advice at the end of errors: what a log path may name.
const LOG_DESTINATIONS: &str = "name a regular file, /dev/null, /dev/stdout or /dev/stderr";

/// An open file or descriptor to write the log to.
#[derive(Debug)]
pub struct LogFile {
    file: OwnedFd,
    /// The descriptor that the path names; `None` if the path names a file.
    fd: Option<i32>,
}

/// What a log path names.
#[derive(Debug, PartialEq, Eq)]
enum LogDestination {
    Descriptor(i32),
    File(PathBuf),
}

impl LogFile {
    /// Opens `path` for appending, without redirecting anything yet.
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

    /// Opens `path` after the start. Fails for descriptors other than the standard streams, whose numbers may be reused by
    /// now.
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

    /// Redirects standard error to the file. Returns the descriptor, to be sent to the workers.
    pub(crate) fn redirect_stderr(self) -> io::Result<OwnedFd> {
        prefork_os::fd::replace_stderr(&self.file)?;
        if let Some(fd @ 3..) = self.fd {
            // It is duplicated as descriptor 2; programs that are started do not need it twice.
            prefork_os::fd::set_close_on_exec(fd)?;
        }
        Ok(self.file)
    }
}

/// Opens `path` for the access log: a regular file, a FIFO, a character device or a standard stream.
///
/// A FIFO is opened for reading as well: that needs no reader, and its readers may come and go.
pub(crate) fn open_access_log(path: &Path) -> Result<OwnedFd> {
    let opened = match resolve_log_destination(path) {
        Ok(LogDestination::Descriptor(fd @ 0..=2)) => duplicate_log_fd(fd),
        Ok(LogDestination::Descriptor(fd)) => Err(format!(
            "descriptor {fd} is not a standard stream, and may be anything later; {LOG_DESTINATIONS}"
        )),
        Ok(LogDestination::File(found)) if is_fifo(&found) => open_fifo(&found),
        Ok(LogDestination::File(found)) => open_log_path(&found),
        Err(why) => Err(why),
    };
    opened.map_err(|why| access_log_error(path, why))
}

/// Checks whether the access log could be opened, as far as that can be told without creating it.
pub(crate) fn check_access_log(path: &Path) -> Result<()> {
    match resolve_log_destination(path) {
        Ok(LogDestination::Descriptor(0..=2)) => Ok(()),
        Ok(LogDestination::File(found)) if is_fifo(&found) => open_access_log(path).map(drop),
        Ok(LogDestination::File(_)) => LogFile::check(path),
        Ok(LogDestination::Descriptor(_)) | Err(_) => open_access_log(path).map(drop),
    }
}

fn access_log_error(path: &Path, why: String) -> Error {
    let operation = format!("write the log to {}", path.display());
    Error::system(operation, io::Error::other(why))
}

fn is_fifo(path: &Path) -> bool {
    let kind = path.symlink_metadata();
    let kind = kind.map(|meta| prefork_os::nonblocking_writer::file_kind_of_mode(meta.mode()));
    kind.is_ok_and(|kind| kind == FileKind::Pipe)
}

fn open_fifo(path: &Path) -> std::result::Result<OwnedFd, String> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags.bits()).open(path);
    let file = OwnedFd::from(file.map_err(|e| open_error_text(path, &e))?);
    // It may have been replaced meanwhile.
    match file_kind(&file)? {
        FileKind::Pipe => Ok(file),
        kind => check_can_hold_log(kind).map(|()| file),
    }
}

/// Returns the descriptor that `path` names, if it is not a standard stream. It must not be closed at the start.
pub(crate) fn inherited_log_fd(path: &Path) -> Option<i32> {
    match resolve_log_destination(path) {
        Ok(LogDestination::Descriptor(fd @ 3..)) => Some(fd),
        Ok(_) | Err(_) => None,
    }
}

/// Returns whether both paths lead to the same file, or would if it existed.
pub(crate) fn is_same_file(one: &Path, other: &Path) -> bool {
    if let (Ok(one), Ok(other)) = (one.metadata(), other.metadata()) {
        return (one.dev(), one.ino()) == (other.dev(), other.ino());
    }
    matches!((resolve_log_destination(one), resolve_log_destination(other)), (Ok(one), Ok(other)) if one == other)
}

/// Resolves links one by one, checking their owner, which the kernel does only in sticky directories.
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
                format!("the directory {} does not exist; create it", directory.display())
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
    Err("too many links, or a loop of them".to_string())
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

/// Parses the descriptor number in `/dev/stderr`, `/dev/fd/2`, `/proc/self/fd/2` and the like.
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

/// Duplicates a descriptor, if a log can be written to it.
fn duplicate_log_fd(fd: i32) -> std::result::Result<OwnedFd, String> {
    let file = prefork_os::fd::duplicate_fd(fd).map_err(|e| match Errno::try_from(e) {
        Ok(Errno::EBADF) => format!("descriptor {fd} is not open; {LOG_DESTINATIONS}"),
        Ok(e) => e.desc().to_string(),
        Err(e) => e.to_string(),
    })?;
    let kind = file_kind(&file)?;
    // Sockets other than the standard streams are connections or listening sockets.
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

/// Opens a character device or a regular file, which is created if it does not exist.
fn open_log_path(path: &Path) -> std::result::Result<OwnedFd, String> {
    // Checked before opening, because opening alone has effects on some devices.
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
    // Checked again, because the file may have been replaced meanwhile.
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
            format!("{error}; free space in the file system of {directory}")
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
    fn descriptor_paths_are_recognized_through_links_and_dots() {
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
    fn unusable_paths_fail_with_the_file_type() {
        let dir = tempfile::tempdir().expect("directory");
        let path = |name: &str| dir.path().join(name);
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("FIFO");
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).expect("socket");
        std::os::unix::fs::symlink("circle", path("circle")).expect("link");
        for (name, what) in [
            ("", "a directory"),
            ("fifo", "a FIFO"),
            ("socket", "a socket"),
            ("no/log", "does not exist; create it"),
            ("circle", "a loop"),
        ] {
            let why = refused(&path(name));
            assert!(why.starts_with("cannot write the log to /") && why.contains(what), "{why}");
        }
        let why = refused(Path::new("/dev/fd/999"));
        assert!(why.contains("descriptor 999 is not open"), "{why}");
    }

    #[test]
    fn check_reports_unusable_paths_and_creates_no_file() {
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
    fn own_links_are_followed_even_if_the_file_is_missing() {
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
    fn a_character_device_is_accepted() {
        LogFile::open(Path::new("/dev/null")).expect("a log");
    }
}
