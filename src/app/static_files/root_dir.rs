//! The directory whose files are served: opens paths below it and nothing outside.
//!
//! `openat2` confines the lookup (Linux 5.6). Where the kernel or a seccomp filter refuses that call, the path is walked
//! component by component with the same result.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Maximum number of symbolic links in one path, as in the kernel.
const MAX_SYMLINKS: usize = 40;
/// Number of attempts when a concurrent rename makes a lookup fail.
const RENAME_RETRIES: usize = 32;

/// Milliseconds after which the path of the root is opened again.
const REOPEN_INTERVAL_MS: u64 = 250;

/// Whether a call may wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskWait {
    /// It may: the caller is a thread for that.
    Allowed,
    /// It returns [`Errno::AGAIN`] instead.
    Never,
}

/// An open root directory. Its symbolic links are resolved when the configuration is read, so that all workers of a
/// generation serve the same directory, whatever the links lead to later.
#[derive(Debug)]
pub(crate) struct RootDir {
    dir: RwLock<Arc<OwnedFd>>,
    /// The path without symbolic links.
    path: PathBuf,
    opened_at: Instant,
    /// Milliseconds after `opened_at` at which `path` was last opened.
    checked_ms: AtomicU64,
    /// Whether symbolic links may lead out of the root.
    follow_symlinks: bool,
    has_openat2: AtomicBool,
    /// `RESOLVE_CACHED` (Linux 5.12).
    has_cached_lookup: AtomicBool,
}

impl RootDir {
    /// Opens the directory at `path`, which may be a symbolic link.
    pub(crate) fn open(path: &Path, follow_symlinks: bool) -> io::Result<RootDir> {
        let path = path.canonicalize()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = Arc::new(rustix::fs::open(&path, flags, Mode::empty())?);
        let (has_openat2, has_cached_lookup) = (AtomicBool::new(true), AtomicBool::new(true));
        Ok(RootDir {
            dir: RwLock::new(dir),
            path,
            opened_at: Instant::now(),
            checked_ms: AtomicU64::new(0),
            follow_symlinks,
            has_openat2,
            has_cached_lookup,
        })
    }

    /// The directory, opened anew from time to time: builds remove and create the directory that they write to.
    fn current_dir(&self, wait: DiskWait) -> Result<Arc<OwnedFd>, Errno> {
        let now_ms = u64::try_from(self.opened_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let is_due =
            now_ms >= self.checked_ms.load(Ordering::Relaxed).saturating_add(REOPEN_INTERVAL_MS);
        if is_due {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            match self.try_openat2(
                rustix::fs::CWD,
                self.path.as_os_str().as_bytes(),
                flags,
                ResolveFlags::NO_SYMLINKS,
                wait,
            ) {
                Some(Err(Errno::AGAIN)) if wait == DiskWait::Never => return Err(Errno::AGAIN),
                None if wait == DiskWait::Never => return Err(Errno::AGAIN),
                Some(Ok(dir)) => {
                    *self.dir.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(dir);
                }
                None => {
                    let opened =
                        rustix::fs::open(&self.path, flags | OFlags::CLOEXEC, Mode::empty());
                    if let Ok(dir) = opened {
                        *self.dir.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(dir);
                    }
                }
                // It is gone, or this user may not look there: what was opened at the start goes on being served.
                Some(Err(_)) => {}
            }
            self.checked_ms.store(now_ms, Ordering::Relaxed);
        }
        Ok(Arc::clone(&self.dir.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Opens `path`, relative to the root, with `flags`. A symbolic link that leads out gives [`Errno::XDEV`].
    pub(super) fn open_below(
        &self,
        path: &[u8],
        flags: OFlags,
        wait: DiskWait,
    ) -> Result<OwnedFd, Errno> {
        match self.open_beneath(path, flags, wait) {
            // An absolute link counts as leading out, even if its target is in the root.
            Err(Errno::XDEV) if wait == DiskWait::Never => Err(Errno::AGAIN),
            Err(Errno::XDEV) => {
                let target = self.resolve_below_root(path)?;
                self.open_beneath(&target, flags, wait)
            }
            outcome => outcome,
        }
    }

    /// Returns where `path` ends, relative to the root; `None` outside of the root.
    fn resolve_below_root(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let target = self.path.join(OsStr::from_bytes(path)).canonicalize();
        let target = target.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::INVAL))?;
        let below = target.strip_prefix(&self.path).map_err(|_| Errno::XDEV)?;
        Ok(if below.as_os_str().is_empty() {
            b".".to_vec()
        } else {
            below.as_os_str().as_bytes().to_vec()
        })
    }

    fn open_beneath(&self, path: &[u8], flags: OFlags, wait: DiskWait) -> Result<OwnedFd, Errno> {
        let dir = self.current_dir(wait)?;
        let mut resolve = ResolveFlags::NO_MAGICLINKS;
        resolve.set(ResolveFlags::BENEATH, !self.follow_symlinks);
        self.try_openat2(dir.as_fd(), path, flags, resolve, wait)
            .unwrap_or_else(|| self.open_by_component(dir.as_fd(), path, flags, wait))
    }

    /// Calls `openat2`; `None` if the system does not have it.
    fn try_openat2(
        &self,
        dir: BorrowedFd<'_>,
        path: &[u8],
        flags: OFlags,
        mut resolve: ResolveFlags,
        wait: DiskWait,
    ) -> Option<Result<OwnedFd, Errno>> {
        if !self.has_openat2.load(Ordering::Relaxed) {
            return None;
        }
        if wait == DiskWait::Never {
            if !self.has_cached_lookup.load(Ordering::Relaxed) {
                return Some(Err(Errno::AGAIN));
            }
            resolve |= ResolveFlags::CACHED;
        }
        let mut attempts = 0;
        loop {
            let flags = flags | OFlags::CLOEXEC;
            let outcome = rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve);
            attempts += 1;
            match outcome {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if wait == DiskWait::Allowed && attempts < RENAME_RETRIES => {}
                Err(Errno::INVAL) if wait == DiskWait::Never => {
                    self.has_cached_lookup.store(false, Ordering::Relaxed);
                    return Some(Err(Errno::AGAIN));
                }
                // What is opened is never executed, mounted or written: no file system gives EPERM.
                Err(Errno::NOSYS | Errno::PERM) => {
                    self.has_openat2.store(false, Ordering::Relaxed);
                    return None;
                }
                outcome => return Some(outcome),
            }
        }
    }

    /// The same without `openat2`: no component is looked up outside of the root.
    fn open_by_component(
        &self,
        root: BorrowedFd<'_>,
        path: &[u8],
        flags: OFlags,
        wait: DiskWait,
    ) -> Result<OwnedFd, Errno> {
        if wait == DiskWait::Never {
            return Err(Errno::AGAIN);
        }
        if self.follow_symlinks {
            return rustix::fs::openat(root, path, flags | OFlags::CLOEXEC, Mode::empty());
        }
        // A slash at the end asks for a directory.
        let flags = if path.ends_with(b"/") { flags | OFlags::DIRECTORY } else { flags };
        let mut left = split_components(path);
        let mut dirs: Vec<OwnedFd> = Vec::new();
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            let here = dirs.last().map_or(root, AsFd::as_fd);
            if name == b".." {
                // Of the root itself it would lead out.
                dirs.pop().ok_or(Errno::XDEV)?;
                continue;
            }
            let found = open_component(here, &name, OFlags::PATH)?;
            let kind = file_type(&found)?;
            if kind.is_symlink() {
                links += 1;
                let target = rustix::fs::readlinkat(&found, c"", Vec::new())?.into_bytes();
                match target.first() {
                    _ if links > MAX_SYMLINKS => return Err(Errno::LOOP),
                    Some(b'/') => return Err(Errno::XDEV),
                    _ => {}
                }
                for component in split_components(&target).into_iter().rev() {
                    left.push_front(component);
                }
            } else if left.is_empty() && !flags.contains(OFlags::PATH) {
                return open_component(here, &name, flags);
            } else if left.is_empty() && flags.contains(OFlags::DIRECTORY) && !kind.is_dir() {
                return Err(Errno::NOTDIR);
            } else {
                dirs.push(found);
            }
        }
        match dirs.pop() {
            Some(found) if flags.contains(OFlags::PATH) => Ok(found),
            Some(found) => open_component(found.as_fd(), b".", flags),
            None => open_component(root, b".", flags),
        }
    }
}

fn split_components(path: &[u8]) -> VecDeque<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    names.map(<[u8]>::to_vec).collect()
}

fn open_component(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn file_type(fd: &OwnedFd) -> Result<rustix::fs::FileType, Errno> {
    Ok(rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A root with links of every kind, and what each path below it gives.
    fn create_test_tree() -> (tempfile::TempDir, PathBuf) {
        let home = tempfile::tempdir().expect("directory");
        let root = home.path().join("releases/7");
        fs::create_dir_all(root.join("dir/sub")).expect("directories");
        fs::write(home.path().join("secret"), "secret").expect("write");
        fs::write(root.join("file"), "file").expect("write");
        fs::write(root.join("dir/file"), "dir/file").expect("write");
        for (name, target) in [
            ("inside", "dir/file"),
            ("dir/up", "../file"),
            ("dir/sub/dot", "./../../dir/./file"),
            ("chain", "inside"),
            ("to-dir", "dir"),
            ("out", "../../secret"),
            ("out-and-back", "../7/file"),
            ("loop", "loop"),
            ("absolute-out", "/etc/passwd"),
            ("dangling", "nothing"),
        ] {
            symlink(target, root.join(name)).expect("link");
        }
        symlink(root.join("file"), root.join("absolute-in")).expect("link");
        symlink("releases/7", home.path().join("current")).expect("link");
        let current = home.path().join("current");
        (home, current)
    }

    fn read(root: &RootDir, path: &str) -> Result<String, Errno> {
        let fd = root.open_below(path.as_bytes(), OFlags::RDONLY, DiskWait::Allowed)?;
        io::read_to_string(fs::File::from(fd)).map_err(|e| Errno::from_io_error(&e).expect("errno"))
    }

    #[test]
    fn symlinks_are_followed_only_within_the_root() {
        let (_home, current) = create_test_tree();
        for has_openat2 in [true, false] {
            let root = RootDir::open(&current, false).expect("root");
            root.has_openat2.store(has_openat2, Ordering::Relaxed);
            for (path, content) in [
                ("file", "file"),
                ("dir//./file", "dir/file"),
                ("inside", "dir/file"),
                ("dir/up", "file"),
                ("dir/sub/dot", "dir/file"),
                ("chain", "dir/file"),
                ("to-dir/file", "dir/file"),
                ("to-dir/up", "file"),
                ("absolute-in", "file"),
                // Leaves the root on its way, but ends in it.
                ("out-and-back", "file"),
            ] {
                assert_eq!(read(&root, path).as_deref(), Ok(content), "{path} {has_openat2}");
            }
            for (path, errno) in [
                ("out", Errno::XDEV),
                ("absolute-out", Errno::XDEV),
                ("loop", Errno::LOOP),
                ("dangling", Errno::NOENT),
                ("nothing", Errno::NOENT),
                ("file/", Errno::NOTDIR),
                ("file/more", Errno::NOTDIR),
                ("inside/", Errno::NOTDIR),
            ] {
                assert_eq!(read(&root, path), Err(errno), "{path} {has_openat2}");
            }
            let long = "x".repeat(300);
            assert_eq!(read(&root, &long), Err(Errno::NAMETOOLONG));
            for path in [".", "dir", "dir/", "to-dir/"] {
                let opened = root.open_below(path.as_bytes(), OFlags::PATH, DiskWait::Allowed);
                assert!(file_type(&opened.expect(path)).expect("type").is_dir(), "{path}");
            }
            assert_eq!(root.has_openat2.load(Ordering::Relaxed), has_openat2);
        }
    }

    #[test]
    fn symlinks_out_of_the_root_are_followed_if_allowed() {
        let (_home, current) = create_test_tree();
        for has_openat2 in [true, false] {
            let root = RootDir::open(&current, true).expect("root");
            root.has_openat2.store(has_openat2, Ordering::Relaxed);
            assert_eq!(read(&root, "out").as_deref(), Ok("secret"));
            assert_eq!(read(&root, "inside").as_deref(), Ok("dir/file"));
        }
    }

    #[test]
    fn recreated_root_is_served_again() {
        let (home, current) = create_test_tree();
        for has_openat2 in [true, false] {
            let root = RootDir::open(&current, false).expect("root");
            root.has_openat2.store(has_openat2, Ordering::Relaxed);
            let release = home.path().join("releases/7");
            fs::remove_dir_all(&release).expect("remove");
            fs::create_dir(&release).expect("directory");
            fs::write(release.join("file"), "again").expect("write");
            let give_up = Instant::now() + std::time::Duration::from_secs(30);
            while read(&root, "file").is_err() && Instant::now() < give_up {
                std::thread::yield_now();
            }
            assert_eq!(read(&root, "file").as_deref(), Ok("again"), "{has_openat2}");
        }
    }

    #[test]
    fn symlink_to_the_root_is_resolved_only_once() {
        let (home, current) = create_test_tree();
        let root = RootDir::open(&current, false).expect("root");
        fs::create_dir(home.path().join("releases/8")).expect("directory");
        fs::remove_file(&current).expect("unlink");
        symlink("releases/8", &current).expect("link");
        assert_eq!(read(&root, "file").as_deref(), Ok("file"));
        let again = RootDir::open(&current, false).expect("root");
        assert_eq!(read(&again, "file"), Err(Errno::NOENT));
    }
}
