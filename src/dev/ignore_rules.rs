//! Which files count: not those that `.gitignore`, `.ignore` and the rules of this module exclude.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ignore::overrides::{Override, OverrideBuilder};
use ignore::{DirEntry, WalkBuilder};

use tokio_prefork::{Error, Result};

/// The file that marks a directory as a cache (<https://bford.info/cachedir/>): Cargo's `target` has it.
const CACHE_MARKER: &str = "CACHEDIR.TAG";

/// Directories that hold dependencies or caches, whatever `.gitignore` says.
const IGNORED_DIRS: [&str; 3] = ["node_modules", "__pycache__", "bower_components"];

/// Files beside which a directory `target` is the output of a build.
const BUILD_FILES: [&str; 3] = ["Cargo.toml", "pom.xml", "build.sbt"];

/// The one hidden directory that counts: it holds the configuration of Cargo.
const CARGO_CONFIG_DIR: &str = ".cargo";

/// Ends of the names of files that editors, interpreters, databases and logs write while a program runs.
const IGNORED_ENDINGS: [&str; 15] = [
    "~", ".swp", ".swo", ".swx", ".tmp", ".pyc", ".pyo", ".log", ".pid", ".db", ".sqlite",
    ".sqlite3", "-journal", "-wal", "-shm",
];

/// The rules of one watch: the globs of the user besides those of the files and of this module.
#[derive(Debug, Clone)]
pub(crate) struct IgnoreRules {
    globs: Vec<String>,
}

impl IgnoreRules {
    /// Creates the rules with these additional globs, in the syntax of `.gitignore`.
    ///
    /// # Errors
    /// A glob is invalid.
    pub(crate) fn new(globs: &[String]) -> Result<IgnoreRules> {
        let rules = IgnoreRules { globs: globs.to_vec() };
        rules.overrides(Path::new("/")).map(|_| rules)
    }

    fn overrides(&self, root: &Path) -> Result<Override> {
        let mut builder = OverrideBuilder::new(root);
        for glob in &self.globs {
            builder.add(&format!("!{glob}")).map_err(|e| invalid_glob(glob, &e))?;
        }
        builder.build().map_err(|e| invalid_glob(&self.globs.join(", "), &e))
    }

    /// Returns a walk through the files and directories of `root` that count. `roots` are all watched ones.
    pub(crate) fn walk(&self, root: &Path, roots: &[PathBuf]) -> Result<ignore::Walk> {
        let roots: Vec<PathBuf> = roots.iter().filter_map(|one| one.canonicalize().ok()).collect();
        let is_wanted =
            move |entry: &DirEntry| entry.depth() == 0 || is_entry_wanted(entry, &roots);
        let walk = WalkBuilder::new(root)
            .hidden(false)
            .follow_links(true)
            // A project need not be a repository to have a .gitignore.
            .require_git(false)
            .overrides(self.overrides(root)?)
            .filter_entry(is_wanted)
            .build();
        Ok(walk)
    }
}

fn invalid_glob(glob: &str, error: &ignore::Error) -> Error {
    Error::config(format!("watch-ignore = {glob} is no glob: {error}"))
}

/// Returns whether a file counts by its name.
pub(crate) fn is_file_name_wanted(name: &str) -> bool {
    let is_of_editor = name.starts_with(".#") || (name.starts_with('#') && name.ends_with('#'));
    let is_ignored = is_of_editor || name == ".DS_Store" || name == CACHE_MARKER;
    // Vim tries with it whether it can write to the directory.
    let is_probe = name == "4913";
    !is_ignored && !is_probe && !IGNORED_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

fn is_entry_wanted(entry: &DirEntry, roots: &[PathBuf]) -> bool {
    let name = entry.file_name().to_string_lossy();
    // The type of a link is that of its target here, as links are followed.
    if entry.file_type().is_some_and(|kind| kind.is_dir()) {
        is_dir_wanted(&name, entry.path())
            && (!entry.path_is_symlink() || is_link_wanted(entry.path(), roots))
    } else {
        is_file_name_wanted(&name)
    }
}

fn is_dir_wanted(name: &str, path: &Path) -> bool {
    let is_hidden = name.starts_with('.') && name != CARGO_CONFIG_DIR;
    let is_build_output = || {
        let parent = path.parent().unwrap_or(path);
        name == "target" && BUILD_FILES.iter().any(|file| parent.join(file).is_file())
    };
    !is_hidden
        && !IGNORED_DIRS.contains(&name)
        && !is_build_output()
        && !path.join(CACHE_MARKER).is_file()
        // A virtual environment of Python.
        && !path.join("pyvenv.cfg").is_file()
}

/// Returns whether to follow a link to a directory: not to one that is watched anyway, and not upwards, out of the project.
fn is_link_wanted(link: &Path, roots: &[PathBuf]) -> bool {
    let Ok(target) = link.canonicalize() else { return false };
    !roots.iter().any(|root| root.starts_with(&target) || target.starts_with(root))
        && !target.starts_with("/nix/store")
}

/// Returns the directory of the file that a link points to. `None` for what is no link.
pub(crate) fn link_target_dir(path: &Path) -> Option<PathBuf> {
    let is_link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    if !is_link {
        return None;
    }
    path.canonicalize().ok()?.parent().map(Path::to_path_buf)
}

/// Device and inode, which tell a directory from another one that took its path.
pub(crate) fn file_id(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn write(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            fs::write(path, "x").expect("file");
        }
    }

    fn files_of(root: &Path, globs: &[&str]) -> Vec<String> {
        let globs: Vec<String> = globs.iter().map(ToString::to_string).collect();
        let rules = IgnoreRules::new(&globs).expect("rules");
        let walk = rules.walk(root, &[root.to_path_buf()]).expect("walk");
        let files = walk.flatten().filter(|entry| entry.file_type().is_some_and(|t| t.is_file()));
        let name = |entry: DirEntry| {
            entry.path().strip_prefix(root).expect("below").to_string_lossy().into_owned()
        };
        let mut names: Vec<String> = files.map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn sources_and_hidden_files_count_and_outputs_do_not() {
        let dir = tempfile::tempdir().expect("dir");
        let wanted = [".cargo/config.toml", ".env", "Cargo.toml", "src/main.rs", "src/target/a.rs"];
        write(dir.path(), &wanted);
        write(
            dir.path(),
            &[
                ".git/index",
                ".idea/workspace.xml",
                "target/debug/app",
                "web/node_modules/a/index.js",
                "lib/__pycache__/a.pyc",
                "cache/CACHEDIR.TAG",
                "cache/a",
                "env/pyvenv.cfg",
                "env/bin/python",
                "app.log",
                "dev.sqlite3-wal",
                "src/.main.rs.swp",
                "src/main.rs~",
                "src/.#main.rs",
                "src/#main.rs#",
                "src/4913",
            ],
        );
        assert_eq!(files_of(dir.path(), &[]), wanted);
    }

    #[test]
    fn gitignore_and_ignore_files_hold_at_every_level_without_a_repository() {
        let dir = tempfile::tempdir().expect("dir");
        write(
            dir.path(),
            &["a.rs", "dist/a.js", "lib/b.rs", "lib/gen/c.rs", "lib/keep.out", "x.out"],
        );
        fs::write(dir.path().join(".gitignore"), "/dist\n*.out\n").expect("file");
        fs::write(dir.path().join("lib/.gitignore"), "gen/\n!keep.out\n").expect("file");
        let expected = [".gitignore", "a.rs", "lib/.gitignore", "lib/b.rs", "lib/keep.out"];
        assert_eq!(files_of(dir.path(), &[]), expected);
        fs::write(dir.path().join(".ignore"), "lib\n").expect("file");
        assert_eq!(files_of(dir.path(), &[]), [".gitignore", ".ignore", "a.rs"]);
    }

    #[test]
    fn globs_of_the_user_are_ignored_too_and_a_wrong_one_is_an_error() {
        let dir = tempfile::tempdir().expect("dir");
        write(dir.path(), &["a.rs", "notes.md", "docs/b.md", "data/c.csv"]);
        assert_eq!(files_of(dir.path(), &["*.md", "data/"]), ["a.rs"]);
        let error = IgnoreRules::new(&["a[".to_string()]).expect_err("invalid").to_string();
        assert!(error.starts_with("watch-ignore = a[ is no glob"), "{error}");
    }

    #[test]
    fn links_are_followed_but_not_to_what_is_watched_or_above_it() {
        let outer = tempfile::tempdir().expect("dir");
        write(outer.path(), &["project/src/a.rs", "shared/b.rs"]);
        let project = outer.path().join("project");
        for (target, link) in [
            ("../shared", "shared"),
            ("..", "up"),
            ("src", "same"),
            ("no", "broken"),
            (".", "loop"),
        ] {
            symlink(target, project.join(link)).expect("link");
        }
        assert_eq!(files_of(&project, &[]), ["shared/b.rs", "src/a.rs"]);
        assert_eq!(link_target_dir(&project.join("src")), None);
        symlink("../shared/b.rs", project.join("b.rs")).expect("link");
        let shared = outer.path().join("shared").canonicalize().expect("path");
        assert_eq!(link_target_dir(&project.join("b.rs")), Some(shared));
    }
}
