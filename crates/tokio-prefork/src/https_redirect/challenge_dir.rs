//! Reads the files of ACME challenges, whose names clients choose.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use prefork_os::system::monotonic_ms;

/// The largest file that is served, in bytes. One has about a hundred.
const MAX_FILE_SIZE: u64 = 1 << 20;

/// The longest name of a file, in bytes, as in the kernel.
const MAX_TOKEN_LENGTH: usize = 255;

/// How many files are read at a time. Each occupies a thread for as long as the disk takes.
const MAX_CONCURRENT_READS: usize = 8;

/// How long a client waits for a file.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The shortest time between two log lines about files that cannot be read.
const LOG_INTERVAL_MS: u64 = 10_000;

/// Where the files are below a web root, as ACME clients write them.
const DIRS_BELOW_WEB_ROOT: [&str; 2] = [".well-known", "acme-challenge"];

/// Why there is no response to a challenge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChallengeError {
    /// No such file, or none that may be served.
    NotFound,
    /// The disk does not answer in time, or too many requests wait for it.
    Unavailable,
}

/// A directory with the files of challenges.
#[derive(Debug)]
pub(super) struct ChallengeDir {
    path: PathBuf,
    /// Files that are being read.
    reads: AtomicUsize,
    /// When a file that cannot be read was logged last, in milliseconds on the monotonic clock; 0 if never.
    logged_ms: AtomicU64,
}

/// One of the files that may be read at a time.
struct ReadPermit(Arc<ChallengeDir>);

impl ChallengeDir {
    pub(super) fn new(path: &Path) -> ChallengeDir {
        let (reads, logged_ms) = (AtomicUsize::new(0), AtomicU64::new(0));
        ChallengeDir { path: path.to_path_buf(), reads, logged_ms }
    }

    /// Reads the file of `token` on a thread for blocking calls.
    pub(super) fn read(
        self: Arc<ChallengeDir>,
        token: &str,
    ) -> impl Future<Output = Result<Vec<u8>, ChallengeError>> + Send + use<> {
        let token = is_token(token).then(|| token.to_string());
        async move {
            let token = token.ok_or(ChallengeError::NotFound)?;
            let permit = self.acquire_permit().ok_or(ChallengeError::Unavailable)?;
            let mut reading = tokio::task::spawn_blocking(move || permit.0.read_blocking(&token));
            match tokio::time::timeout(READ_TIMEOUT, &mut reading).await {
                Ok(Ok(read)) => read,
                // The runtime is shutting down.
                Ok(Err(_)) => Err(ChallengeError::Unavailable),
                Err(_) => {
                    // One that has not begun never does.
                    reading.abort();
                    self.log_failure(&"the disk does not answer in time");
                    Err(ChallengeError::Unavailable)
                }
            }
        }
    }

    fn acquire_permit(self: &Arc<ChallengeDir>) -> Option<ReadPermit> {
        let permit = ReadPermit(Arc::clone(self));
        let others = self.reads.fetch_add(1, Ordering::Relaxed);
        (others < MAX_CONCURRENT_READS).then_some(permit)
    }

    /// Reads the file of `token` in the directory, or else in that of the challenges below it.
    fn read_blocking(&self, token: &str) -> Result<Vec<u8>, ChallengeError> {
        let read = open_dir(&self.path).and_then(|dir| match read_file(&dir, token) {
            Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => {
                read_below_web_root(dir, token)
            }
            read => read,
        });
        read.map_err(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                self.log_failure(&error);
            }
            ChallengeError::NotFound
        })
    }

    /// Logs why a file cannot be read, but not more often than every 10 s: clients could make it many times.
    fn log_failure(&self, why: &dyn std::fmt::Display) {
        let (now, last) = (monotonic_ms().max(1), self.logged_ms.load(Ordering::Relaxed));
        if last == 0 || now.saturating_sub(last) >= LOG_INTERVAL_MS {
            self.logged_ms.store(now, Ordering::Relaxed);
            log::warn!(
                "cannot read the file of an ACME challenge below {}: {why} (workers must be able to read it)",
                self.path.display()
            );
        }
    }
}

impl Drop for ReadPermit {
    fn drop(&mut self) {
        self.0.reads.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns whether `name` may be a token (RFC 8555, section 8.1: base64url). So it is neither hidden, nor a path.
fn is_token(name: &str) -> bool {
    let is_base64url = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=MAX_TOKEN_LENGTH).contains(&name.len()) && name.bytes().all(is_base64url)
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    // The operator has chosen this path, so it may lead over symbolic links.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// Reads `token` where ACME clients put it below a web root. Symbolic links are not followed.
fn read_below_web_root(mut dir: OwnedFd, token: &str) -> io::Result<Vec<u8>> {
    for name in DIRS_BELOW_WEB_ROOT {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        dir = openat(&dir, name, flags, Mode::empty())?;
    }
    read_file(&dir, token)
}

/// Reads a regular file. Symbolic links are not followed, and no FIFO is waited for.
fn read_file(dir: impl AsFd, name: &str) -> io::Result<Vec<u8>> {
    let flags = OFlag::O_RDONLY
        | OFlag::O_NOFOLLOW
        | OFlag::O_NONBLOCK
        | OFlag::O_NOCTTY
        | OFlag::O_CLOEXEC;
    let file = File::from(openat(dir, name, flags, Mode::empty())?);
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other(format!("{name} is not a regular file")));
    }
    let mut content = Vec::new();
    // It may grow.
    file.take(MAX_FILE_SIZE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE_SIZE {
        return Err(io::Error::other(format!("{name} is larger than {MAX_FILE_SIZE} bytes")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const TOKEN: &str = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr_oA";

    fn read_in(dir: &Path, token: &str) -> Result<Vec<u8>, ChallengeError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let read = Arc::new(ChallengeDir::new(dir)).read(token);
        runtime.expect("runtime").block_on(read)
    }

    #[test]
    fn a_token_is_read_from_the_directory_or_from_below_the_web_root() {
        let dir = tempfile::tempdir().expect("directory");
        assert_eq!(read_in(dir.path(), TOKEN), Err(ChallengeError::NotFound));
        let below = dir.path().join(".well-known/acme-challenge");
        fs::create_dir_all(&below).expect("directories");
        fs::write(below.join(TOKEN), "below").expect("write");
        assert_eq!(read_in(dir.path(), TOKEN), Ok(b"below".to_vec()));
        fs::write(dir.path().join(TOKEN), "direct").expect("write");
        assert_eq!(read_in(dir.path(), TOKEN), Ok(b"direct".to_vec()));
        assert_eq!(read_in(&dir.path().join("missing"), TOKEN), Err(ChallengeError::NotFound));
    }

    #[test]
    fn only_regular_files_with_the_names_of_tokens_are_read() {
        let dir = tempfile::tempdir().expect("directory");
        let path = |name: &str| dir.path().join(name);
        fs::write(path(".hidden"), "x").expect("write");
        fs::write(path("index.html"), "x").expect("write");
        fs::create_dir(path("directory")).expect("directory");
        fs::write(path("directory/inner"), "x").expect("write");
        symlink("/etc/passwd", path("link")).expect("link");
        symlink(path("directory"), path("linked-directory")).expect("link");
        nix::unistd::mkfifo(&path("fifo"), Mode::S_IRWXU).expect("FIFO");
        let socket = std::os::unix::net::UnixListener::bind(path("socket")).expect("socket");
        fs::write(path("large"), vec![b'a'; (1 << 20) + 1]).expect("write");
        fs::write(path("largest"), vec![b'a'; 1 << 20]).expect("write");
        for name in [
            "",
            ".",
            "..",
            ".hidden",
            "index.html",
            "directory",
            "directory/inner",
            "../passwd",
            "link",
            "linked-directory",
            "fifo",
            "socket",
            "large",
            "%6cargest",
            "largest\0",
            &"a".repeat(256),
        ] {
            assert_eq!(read_in(dir.path(), name), Err(ChallengeError::NotFound), "{name:?}");
        }
        assert_eq!(read_in(dir.path(), "largest").expect("file").len(), 1 << 20);
        drop(socket);
    }

    #[test]
    fn directories_below_the_web_root_are_not_followed_over_links() {
        let (dir, outside) = (tempfile::tempdir().expect("a"), tempfile::tempdir().expect("b"));
        fs::write(outside.path().join("passwd"), "secret").expect("write");
        fs::create_dir(dir.path().join(".well-known")).expect("directory");
        symlink(outside.path(), dir.path().join(".well-known/acme-challenge")).expect("link");
        assert_eq!(read_in(dir.path(), "passwd"), Err(ChallengeError::NotFound));
        // The directory itself may be a link: the operator names it.
        let link = dir.path().join("link");
        symlink(outside.path(), &link).expect("link");
        assert_eq!(read_in(&link, "passwd"), Ok(b"secret".to_vec()));
    }

    #[test]
    fn reads_beyond_the_limit_are_refused_until_others_end() {
        let challenges = Arc::new(ChallengeDir::new(Path::new("/")));
        let permits: Vec<_> =
            (0..MAX_CONCURRENT_READS).map(|_| challenges.acquire_permit()).collect();
        assert!(permits.iter().all(Option::is_some));
        assert!(challenges.acquire_permit().is_none());
        drop(permits);
        assert!(challenges.acquire_permit().is_some());
    }
}
