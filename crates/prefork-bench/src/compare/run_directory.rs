//! The temporary files of a comparison, which go with it however it ends.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

/// Waits for the end of its input, which comes when the comparison ends, also by SIGKILL. Then ends the process group of
/// the last line, if there is one, and removes the directory. dash refuses a group after `kill -KILL`, but not after `kill -s`.
const CLEANER: &str = r#"
trap '' HUP INT TERM
group=
while read -r line; do group=$line; done
if [ -n "$group" ]; then
    for turn in 1 2 3 4 5 6 7 8 9 10; do
        kill -s 0 -- "-$group" 2>/dev/null || break
        sleep 0.2
    done
    kill -s KILL -- "-$group" 2>/dev/null
fi
rm -rf -- "$1" || { sleep 1; rm -rf -- "$1"; }
"#;

/// A private directory, removed when this value is dropped or this process dies.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    path: PathBuf,
    cleaner: Child,
    /// Only this process has the other end, which the kernel closes with it.
    lines: Option<ChildStdin>,
}

impl RunDirectory {
    /// Creates a directory that only this user can read, and starts the process that removes it.
    ///
    /// # Errors
    /// The directory for temporary files cannot be written, or `/bin/sh` cannot be started.
    pub(crate) fn create() -> io::Result<RunDirectory> {
        let private = Permissions::from_mode(0o700);
        let dir =
            tempfile::Builder::new().prefix("prefork-compare-").permissions(private).tempdir()?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", CLEANER, "sh"]).arg(dir.path());
        // A group of its own, as Ctrl-C is for the whole group of this process.
        command.process_group(0).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut cleaner = command.spawn()?;
        let lines = cleaner.stdin.take();
        Ok(RunDirectory { path: dir.keep(), cleaner, lines })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Sets the process group that is killed if this process dies; `None` for none.
    pub(crate) fn set_group(&self, group: Option<u32>) {
        let line = group.map_or(String::new(), |group| group.to_string());
        if let Some(mut lines) = self.lines.as_ref() {
            // Fails if somebody has killed the cleaner: then nothing is cleaned after a kill.
            let _ = writeln!(lines, "{line}");
        }
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        drop(self.lines.take());
        let _ = self.cleaner.wait();
        // If the cleaner was killed.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_private_and_removed_with_its_files() {
        let directory = RunDirectory::create().expect("a directory");
        let path = directory.path().to_path_buf();
        std::fs::write(path.join("file"), "text").expect("a file");
        let mode = std::fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
        directory.set_group(None);
        drop(directory);
        assert!(!path.exists(), "{}", path.display());
    }

    #[test]
    fn the_group_of_the_last_line_is_killed_with_the_owner() {
        let directory = RunDirectory::create().expect("a directory");
        let mut server = Command::new("/bin/sh");
        server.args(["-c", "trap '' TERM; exec sleep 600"]).process_group(0);
        let mut server = server.spawn().expect("a server");
        directory.set_group(Some(server.id()));
        drop(directory);
        let status = server.wait().expect("its status");
        assert!(!status.success(), "{status}");
    }
}
