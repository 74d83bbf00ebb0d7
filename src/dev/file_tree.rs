//! The watched files as they were last seen, and what has changed since.
//!
//! Events of the kernel only say that it is time to look. So a burst, an editor that writes by rename, and a lost event all come to the
//! same: the tree is read again and compared.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::ignore_rules::{IgnoreRules, file_id, link_target_dir};
use tokio_prefork::Result;

/// Largest file whose content is compared. Larger ones count as changed when they were written.
const MAX_COMPARED_BYTES: u64 = 4 << 20;

/// Device and inode of a directory.
pub(crate) type DirId = (u64, u64);

/// What shows that a file was written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileStamp {
    id: (u64, u64),
    size: u64,
    modified: (i64, i64),
    mode: u32,
}

impl FileStamp {
    fn new(metadata: &Metadata) -> FileStamp {
        FileStamp {
            id: file_id(metadata),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            mode: metadata.mode(),
        }
    }
}

/// What was found on disk.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    files: BTreeMap<PathBuf, FileStamp>,
    /// The directories to watch.
    pub(crate) dirs: BTreeMap<PathBuf, DirId>,
}

/// Reads the files and directories below `roots` that count. A root may be a file, or missing.
///
/// # Errors
/// The globs of the user do not fit a root.
pub(crate) fn scan(rules: &IgnoreRules, roots: &[PathBuf]) -> Result<Scan> {
    let mut scan = Scan::default();
    for root in roots {
        // Shows that the root was replaced, or is there again.
        scan.add_dir(nearest_existing_dir(root.parent().unwrap_or(root)));
        for entry in rules.walk(root, roots)?.flatten() {
            // Follows links. What is gone already is noticed by the next event.
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            if metadata.is_dir() {
                scan.dirs.insert(entry.into_path(), file_id(&metadata));
            } else if metadata.is_file() {
                if let Some(dir) = link_target_dir(entry.path()) {
                    scan.add_dir(&dir);
                }
                scan.files.insert(entry.into_path(), FileStamp::new(&metadata));
            }
        }
    }
    Ok(scan)
}

impl Scan {
    fn add_dir(&mut self, dir: &Path) {
        if let Ok(metadata) = fs::metadata(dir) {
            self.dirs.insert(dir.to_path_buf(), file_id(&metadata));
        }
    }
}

fn nearest_existing_dir(path: &Path) -> &Path {
    let mut ancestors = path.ancestors().filter(|path| !path.as_os_str().is_empty());
    ancestors.find(|dir| dir.is_dir()).unwrap_or(Path::new("."))
}

#[derive(Debug)]
struct KnownFile {
    stamp: FileStamp,
    /// The digest of the content, known since it has changed for the first time.
    digest: Option<[u8; 32]>,
}

/// The files as they were last seen.
#[derive(Debug, Default)]
pub(crate) struct FileTree {
    files: BTreeMap<PathBuf, KnownFile>,
}

impl FileTree {
    pub(crate) fn new(scan: Scan) -> FileTree {
        let known = |(path, stamp)| (path, KnownFile { stamp, digest: None });
        FileTree { files: scan.files.into_iter().map(known).collect() }
    }

    pub(crate) fn file_count(&self) -> usize {
        self.files.len()
    }

    pub(crate) fn contains(&self, path: &Path) -> bool {
        self.files.contains_key(path)
    }

    /// Takes over what was found, and returns the paths of new, changed and removed files.
    ///
    /// With `compares_content`, a file that was written again with the content that it had is not among them: a build writes its output so.
    pub(crate) fn update(&mut self, scan: Scan, compares_content: bool) -> Vec<PathBuf> {
        let mut before = std::mem::take(&mut self.files);
        let mut changed = Vec::new();
        for (path, stamp) in scan.files {
            let known = before.remove(&path);
            let file = match known {
                Some(known) if known.stamp == stamp => known,
                known => {
                    let digest = digest_of(&path, &stamp);
                    let old = known.and_then(|known| known.digest);
                    if !compares_content || digest.is_none() || old != digest {
                        changed.push(path.clone());
                    }
                    KnownFile { stamp, digest }
                }
            };
            self.files.insert(path, file);
        }
        changed.extend(before.into_keys());
        changed.sort();
        changed
    }
}

/// Returns the digest of a file's content. `None` if it is too large or cannot be read.
fn digest_of(path: &Path, stamp: &FileStamp) -> Option<[u8; 32]> {
    if stamp.size > MAX_COMPARED_BYTES {
        return None;
    }
    let mut hasher = Sha256::new();
    // Bounded, as a file can grow while it is read.
    let mut content = io::Read::take(File::open(path).ok()?, MAX_COMPARED_BYTES + 1);
    let mut buffer = [0; 8192];
    loop {
        match io::Read::read(&mut content, &mut buffer).ok()? {
            0 => return Some(hasher.finalize().into()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Project {
        dir: tempfile::TempDir,
        tree: FileTree,
    }

    impl Project {
        fn new() -> Project {
            let dir = tempfile::tempdir().expect("dir");
            Project { dir, tree: FileTree::default() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.path(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            fs::write(path, text).expect("file");
        }

        fn scan(&self) -> Scan {
            let rules = IgnoreRules::new(&[]).expect("rules");
            scan(&rules, &[self.dir.path().to_path_buf()]).expect("scan")
        }

        /// The names of the files that have changed.
        fn changed(&mut self, compares_content: bool) -> Vec<String> {
            let scan = self.scan();
            let changed = self.tree.update(scan, compares_content);
            let name =
                |path: &PathBuf| path.strip_prefix(self.dir.path()).expect("below").to_owned();
            changed.iter().map(|path| name(path).to_string_lossy().into_owned()).collect()
        }
    }

    #[test]
    fn new_written_renamed_and_removed_files_are_changes_and_temporary_ones_are_not() {
        let mut project = Project::new();
        project.write("a", "1");
        project.write("src/b", "1");
        assert_eq!(project.changed(false), ["a", "src/b"]);
        assert!(project.changed(false).is_empty());
        project.write("a", "22");
        assert_eq!(project.changed(false), ["a"]);
        // As editors save: the new file has the size and the time of the old one, at most.
        let before =
            fs::metadata(project.path("src/b")).expect("metadata").modified().expect("time");
        project.write("src/b.new", "2");
        let file = File::options().write(true).open(project.path("src/b.new")).expect("file");
        file.set_modified(before).expect("time");
        fs::rename(project.path("src/b.new"), project.path("src/b")).expect("renamed");
        assert_eq!(project.changed(false), ["src/b"]);
        project.write("src/c", "1");
        fs::remove_file(project.path("src/c")).expect("removed");
        assert!(project.changed(false).is_empty());
        fs::remove_dir_all(project.path("src")).expect("removed");
        assert_eq!(project.changed(false), ["src/b"]);
    }

    #[test]
    fn a_file_written_with_the_same_content_is_no_change_where_contents_are_compared() {
        let mut project = Project::new();
        project.write("out", "1");
        assert_eq!(project.changed(true), ["out"], "its content was not known");
        for (text, changes) in [("1", 0), ("2", 1), ("2", 0)] {
            fs::remove_file(project.path("out")).expect("removed");
            project.write("out", text);
            assert_eq!(project.changed(true).len(), changes, "{text}");
        }
        fs::remove_file(project.path("out")).expect("removed");
        project.write("out", "2");
        assert_eq!(project.changed(false), ["out"], "a touch counts");
    }

    #[test]
    fn a_directory_in_the_place_of_another_one_has_another_id() {
        let project = Project::new();
        project.write("src/a", "1");
        let before = project.scan().dirs;
        fs::rename(project.path("src"), project.path("old")).expect("renamed");
        project.write("src/a", "1");
        let after = project.scan().dirs;
        assert_ne!(before[&project.path("src")], after[&project.path("src")]);
        assert_eq!(before[&project.path("src")], after[&project.path("old")]);
    }

    #[test]
    fn a_missing_root_is_found_when_it_is_there_and_a_root_may_be_a_file() {
        let project = Project::new();
        let (missing, file) = (project.path("a/b"), project.path("prefork.toml"));
        project.write("prefork.toml", "");
        let rules = IgnoreRules::new(&[]).expect("rules");
        let roots = [missing, file.clone()];
        let found = scan(&rules, &roots).expect("scan");
        assert_eq!(found.files.keys().collect::<Vec<_>>(), [&file]);
        assert!(found.dirs.contains_key(project.dir.path()), "{:?}", found.dirs);
        project.write("a/b/c", "1");
        let found = scan(&rules, &roots).expect("scan");
        assert_eq!(found.files.len(), 2);
    }
}
