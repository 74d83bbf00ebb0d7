//! A directory with the files of a scenario, for servers of static files.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::ScenarioFile;

/// Content of the files, repeated.
const CONTENT: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-\n";

/// A directory with the files of a scenario; removed when dropped.
#[derive(Debug)]
pub(crate) struct StaticRoot {
    dir: TempDir,
}

impl StaticRoot {
    /// Writes the files to a new directory; `None` if there are none.
    ///
    /// # Errors
    /// The directory for temporary files has no room, or cannot be written.
    pub(crate) fn create(files: &[ScenarioFile]) -> io::Result<Option<StaticRoot>> {
        if files.is_empty() {
            return Ok(None);
        }
        let dir = tempfile::Builder::new().prefix("prefork-scenario-").tempdir()?;
        // The servers may run as another user.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        for file in files {
            let path = dir.path().join(&file.path);
            fs::create_dir_all(path.parent().unwrap_or(dir.path()))?;
            write_file(&path, file.size)?;
        }
        Ok(Some(StaticRoot { dir }))
    }

    /// Returns the directory.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().to_path_buf()
    }
}

fn write_file(path: &Path, size: u64) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut left = size;
    while left > 0 {
        let part = left.min(CONTENT.len() as u64);
        file.write_all(&CONTENT[..part as usize])?;
        left -= part;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_their_sizes_and_are_removed() {
        let file = |path: &str, size| ScenarioFile { path: path.to_string(), size };
        assert!(StaticRoot::create(&[]).expect("none").is_none());
        let files = [file("index.html", 100), file("css/a/site.css", 0), file("css/b.css", 64)];
        let root = StaticRoot::create(&files).expect("files").expect("a root");
        let path = root.path();
        for file in files {
            let size = fs::metadata(path.join(&file.path)).expect("a file").len();
            assert_eq!(size, file.size, "{}", file.path);
        }
        drop(root);
        assert!(!path.exists());
    }
}
