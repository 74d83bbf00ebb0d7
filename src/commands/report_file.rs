//! Atomic report file: the old report stays in place until the new one is complete.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tokio_prefork::{Error, Result};

/// File for a report. Opened before a run, so that an unwritable path fails early, and written after it.
#[derive(Debug)]
pub(super) struct ReportFile {
    path: PathBuf,
    file: File,
    /// Temporary file that is renamed to `path` when complete; `None` for a device or FIFO.
    temporary: Option<PathBuf>,
}

impl ReportFile {
    /// Creates a temporary file next to `path`, or opens `path` itself if it is a device or FIFO.
    pub(super) fn create(path: &Path) -> Result<ReportFile> {
        let failed = |e: io::Error| Error::system(format!("create {}", path.display()), e);
        // Replaces the target of a symbolic link, not the link.
        let target = path.canonicalize().unwrap_or(path.to_path_buf());
        if target.metadata().is_ok_and(|meta| !meta.is_file()) {
            let file = OpenOptions::new().write(true).open(&target).map_err(failed)?;
            return Ok(ReportFile { path: target, file, temporary: None });
        }
        let name = target.file_name().ok_or_else(|| failed(io::ErrorKind::IsADirectory.into()))?;
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}", std::process::id()));
        let temporary = target.with_file_name(temporary);
        let file = File::create(&temporary).map_err(failed)?;
        Ok(ReportFile { path: target, file, temporary: Some(temporary) })
    }

    /// Writes the report, then replaces the old file.
    pub(super) fn write_report(mut self, text: &str) -> Result<()> {
        let mut write = || -> io::Result<()> {
            self.file.write_all(text.as_bytes())?;
            match &self.temporary {
                Some(temporary) => std::fs::rename(temporary, &self.path),
                None => Ok(()),
            }
        };
        write().map_err(|e| Error::system(format!("write {}", self.path.display()), e))
    }
}

impl Drop for ReportFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Fails after a successful rename: the temporary file no longer exists.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_report_stays_until_the_new_one_is_complete() {
        let dir = tempfile::tempdir().expect("directory");
        let (path, link) = (dir.path().join("report.html"), dir.path().join("link"));
        std::fs::write(&path, "old").expect("write");
        std::os::unix::fs::symlink("report.html", &link).expect("link");
        let read = || std::fs::read_to_string(&path).expect("report");
        drop(ReportFile::create(&path).expect("created"));
        assert_eq!(read(), "old");
        let new = ReportFile::create(&link).expect("created");
        assert_eq!(read(), "old");
        new.write_report("new").expect("written");
        assert_eq!(read(), "new");
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_dir(dir.path()).expect("directory").count(), 2);
    }

    #[test]
    fn devices_are_written_directly_and_write_errors_are_reported() {
        let null = ReportFile::create(Path::new("/dev/null")).expect("null");
        null.write_report("x").expect("written");
        let full = ReportFile::create(Path::new("/dev/full")).expect("full");
        let why = full.write_report("x").expect_err("no room").to_string();
        assert!(why.contains("cannot write /dev/full: No space left"), "{why}");
        assert!(ReportFile::create(Path::new("/no/such/directory/a.html")).is_err());
        assert!(ReportFile::create(Path::new("/")).is_err());
    }
}
