//! The directory of a test cluster: its control socket, its log and its settings.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// The name of the file with the standard output and standard error of all processes.
const LOG_NAME: &str = "log";

/// How many random names to try.
const CREATE_ATTEMPTS: u32 = 8;

/// A directory in the system's temporary directory that only this user may use. Removed on drop.
#[derive(Debug)]
pub(super) struct TestDirectory {
    path: PathBuf,
    /// The whole log, once the cluster has exited and the directory is removed.
    final_log: OnceLock<String>,
}

impl TestDirectory {
    pub(super) fn create() -> Result<TestDirectory> {
        let parent = std::env::temp_dir();
        let failed = |e| Error::system(format!("make a directory in {}", parent.display()), e);
        let mut error = io::Error::from(io::ErrorKind::AlreadyExists);
        for _ in 0..CREATE_ATTEMPTS {
            let number = prefork_os::system::random_u64().map_err(failed)?;
            let path = parent.join(format!("prefork-test-{number:016x}"));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(TestDirectory { path, final_log: OnceLock::new() }),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => error = e,
                Err(e) => return Err(failed(e)),
            }
        }
        Err(failed(error))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the log file and opens it twice, for standard output and standard error.
    pub(super) fn create_log(&self) -> Result<(File, File)> {
        let path = self.path.join(LOG_NAME);
        let open = || File::options().create(true).append(true).open(&path);
        open()
            .and_then(|stdout| Ok((stdout, open()?)))
            .map_err(|e| Error::system(format!("create {}", path.display()), e))
    }

    /// Returns what has been written to the log so far.
    pub(super) fn read_log(&self) -> String {
        if let Some(log) = self.final_log.get() {
            return log.clone();
        }
        let bytes = std::fs::read(self.path.join(LOG_NAME)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Removes the directory of a cluster that has exited, and keeps its log: a `static` is never dropped.
    pub(super) fn remove(&self) {
        self.final_log.get_or_init(|| self.read_log());
        // If this fails, files are left in the temporary directory.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        self.remove();
    }
}
