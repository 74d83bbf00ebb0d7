//! What to watch, as configured.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ignore_rules::IgnoreRules;
use tokio_prefork::{Error, Result};

/// The value of `watch` that stands for the default paths.
pub(crate) const AUTO_PATHS: &str = "auto";

/// The values of the keys `watch`, `watch-ignore` and `watch-poll`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WatchKeys {
    /// Files and directories. Empty: nothing is watched.
    pub(crate) paths: Vec<PathBuf>,
    /// Globs of files that do not count.
    pub(crate) ignored: Vec<String>,
    /// How often to read the files, where the kernel does not tell about changes.
    pub(crate) poll_interval: Option<Duration>,
}

/// What a watcher watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WatchSettings {
    /// Absolute paths.
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) ignored: Vec<String>,
    pub(crate) poll_interval: Option<Duration>,
}

impl WatchKeys {
    /// Adds a path, for the key `watch`.
    pub(crate) fn add_path(&mut self, text: &str) -> Result<(), String> {
        if text.is_empty() {
            return Err("is empty: give a file or a directory".to_string());
        }
        self.paths.push(PathBuf::from(text));
        Ok(())
    }

    /// Adds a glob, for the key `watch-ignore`.
    pub(crate) fn add_ignored(&mut self, glob: &str) -> Result<(), String> {
        if glob.is_empty() {
            return Err("is empty: give a glob such as *.csv".to_string());
        }
        self.ignored.push(glob.to_string());
        Ok(())
    }

    /// Formats the paths, for the key `watch`.
    pub(crate) fn format_paths(&self) -> String {
        let paths: Vec<String> = self.paths.iter().map(|path| path.display().to_string()).collect();
        paths.join(", ")
    }

    /// Returns what to watch, where `auto` stands for `default_paths`. `None`: nothing is configured.
    ///
    /// # Errors
    /// A path does not exist, `auto` stands for nothing, or a glob is invalid.
    pub(crate) fn resolve(&self, default_paths: &[PathBuf]) -> Result<Option<WatchSettings>> {
        IgnoreRules::new(&self.ignored)?;
        if self.paths.is_empty() {
            return Ok(None);
        }
        let mut paths = Vec::new();
        for path in &self.paths {
            if path != Path::new(AUTO_PATHS) {
                paths.push(path.clone());
            } else if default_paths.is_empty() {
                return Err(Error::config(
                    "watch = auto has nothing to watch: give a directory, as in --watch DIR, or set root",
                ));
            } else {
                paths.extend_from_slice(default_paths);
            }
        }
        let paths = paths.iter().map(|path| existing_path(path)).collect::<Result<Vec<_>>>()?;
        let (ignored, poll_interval) = (self.ignored.clone(), self.poll_interval);
        Ok(Some(WatchSettings { paths: without_nested(paths), ignored, poll_interval }))
    }
}

/// Returns the absolute path of what exists.
fn existing_path(path: &Path) -> Result<PathBuf> {
    let failed = |e| Error::config(format!("watch = {} cannot be watched: {e}", path.display()));
    path.metadata().map_err(failed)?;
    std::path::absolute(path).map_err(failed)
}

/// Leaves out paths below another one.
fn without_nested(mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
    paths.sort();
    paths.dedup();
    let all = paths.clone();
    // A hidden directory is only watched if it is named.
    let is_hidden = |below: &Path| below.iter().any(|part| part.to_string_lossy().starts_with('.'));
    paths.retain(|path| {
        let covers = |other: &&PathBuf| {
            *other != path && path.strip_prefix(other).is_ok_and(|below| !is_hidden(below))
        };
        path.is_file() || !all.iter().any(|other| covers(&other))
    });
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(paths: &[&Path]) -> WatchKeys {
        let paths = paths.iter().map(|path| path.to_path_buf()).collect();
        WatchKeys { paths, ..WatchKeys::default() }
    }

    #[test]
    fn auto_stands_for_the_default_paths_and_nothing_is_watched_without_a_path() {
        let dir = tempfile::tempdir().expect("dir");
        let (root, file) = (dir.path().to_path_buf(), dir.path().join("prefork.toml"));
        std::fs::write(&file, "").expect("file");
        std::fs::create_dir(root.join("src")).expect("directory");
        let defaults = [root.join("src"), file.clone()];
        assert_eq!(keys(&[]).resolve(&defaults).expect("fine"), None);
        let paths =
            |given: &[&Path]| keys(given).resolve(&defaults).expect("fine").expect("some").paths;
        let auto = Path::new(AUTO_PATHS);
        assert_eq!(paths(&[auto]), [file.clone(), root.join("src")]);
        assert_eq!(paths(&[auto, &root]), [root.clone(), file.clone()], "src is below the root");
        assert!(keys(&[auto]).resolve(&[]).is_err());
        let error = keys(&[&root.join("no")]).resolve(&defaults).expect_err("missing").to_string();
        assert!(error.contains("cannot be watched"), "{error}");
    }
}
