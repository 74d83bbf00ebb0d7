//! A report in a file: the old one stays until the new one is complete.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tokio_prefork::{Error, Result};

/// A file that will be written at the end of a run. That it can be is known before the run.
#[derive(Debug)]
pub(super) struct ReportFile {
    path: PathBuf,
    file: File,
    /// Where a regular file is written until it takes the place of the one at `path`.
    unfinished: Option<PathBuf>,
}

impl ReportFile {
    /// Makes a file beside `path`, or opens what is there if it is no regular file: a device, or a FIFO.
    pub(super) fn create(path: &Path) -> Result<ReportFile> {
        let failed = |e: io::Error| Error::system(format!("create {}", path.display()), e);
        // What a link leads to is replaced, not the link.
        let target = path.canonicalize().unwrap_or(path.to_path_buf());
        if target.metadata().is_ok_and(|meta| !meta.is_file()) {
            let file = OpenOptions::new().write(true).open(&target).map_err(failed)?;
            return Ok(ReportFile { path: target, file, unfinished: None });
        }
        let name = target.file_name().ok_or_else(|| failed(io::ErrorKind::IsADirectory.into()))?;
        let mut unfinished = std::ffi::OsString::from(".");
        unfinished.push(name);
        unfinished.push(format!(".{}", std::process::id()));
        let unfinished = target.with_file_name(unfinished);
        let file = File::create(&unfinished).map_err(failed)?;
        Ok(ReportFile { path: target, file, unfinished: Some(unfinished) })
    }

    /// Writes all of it, and only then replaces what was there.
    pub(super) fn finish(mut self, text: &str) -> Result<()> {
        let mut write = || -> io::Result<()> {
            self.file.write_all(text.as_bytes())?;
            match &self.unfinished {
                Some(unfinished) => std::fs::rename(unfinished, &self.path),
                None => Ok(()),
            }
        };
        write().map_err(|e| Error::system(format!("write {}", self.path.display()), e))
    }
}

impl Drop for ReportFile {
    fn drop(&mut self) {
        if let Some(unfinished) = &self.unfinished {
            // After a rename there is nothing to remove.
            let _ = std::fs::remove_file(unfinished);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_report_stays_until_the_new_one_is_complete() {
        let dir = tempfile::tempdir().expect("directory");
        let (path, link) = (dir.path().join("report.html"), dir.path().join("link"));
        std::fs::write(&path, "old").expect("write");
        std::os::unix::fs::symlink("report.html", &link).expect("link");
        let read = || std::fs::read_to_string(&path).expect("report");
        drop(ReportFile::create(&path).expect("created"));
        assert_eq!(read(), "old");
        let new = ReportFile::create(&link).expect("created");
        assert_eq!(read(), "old");
        new.finish("new").expect("written");
        assert_eq!(read(), "new");
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_dir(dir.path()).expect("directory").count(), 2);
    }

    #[test]
    fn a_device_is_written_and_errors_are_told() {
        ReportFile::create(Path::new("/dev/null")).expect("null").finish("x").expect("written");
        let full = ReportFile::create(Path::new("/dev/full")).expect("full");
        let why = full.finish("x").expect_err("no room").to_string();
        assert!(why.contains("cannot write /dev/full: No space left"), "{why}");
        assert!(ReportFile::create(Path::new("/no/such/directory/a.html")).is_err());
        assert!(ReportFile::create(Path::new("/")).is_err());
    }
}
