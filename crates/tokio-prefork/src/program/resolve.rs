//! Finds the file of a program.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::error::{Error, Result};

/// Where programs are searched for without `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Returns the path of the executable `name`. One with a `/` is relative to `dir`; others are searched for in `path`.
///
/// # Errors
/// There is no such file, or this process may not execute it.
pub(super) fn find_executable(
    name: &OsStr,
    dir: Option<&Path>,
    path: Option<&OsStr>,
) -> Result<PathBuf> {
    if name.is_empty() {
        return Err(Error::config("the program has no name: give its path, or its name in PATH"));
    }
    if name.as_bytes().contains(&b'/') {
        let file = dir.unwrap_or(Path::new("")).join(name);
        return match check_executable(&file) {
            Ok(()) => Ok(file),
            Err(e) => Err(cannot_run(&file.display().to_string(), &e)),
        };
    }
    let path = path.filter(|path| !path.is_empty()).unwrap_or(OsStr::new(DEFAULT_PATH));
    let mut refused = None;
    for directory in std::env::split_paths(path) {
        let file = dir.unwrap_or(Path::new("")).join(directory).join(name);
        match check_executable(&file) {
            Ok(()) => return Ok(file),
            // As execvp(3), which goes on after a file that may not be executed.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => refused = Some((file, e)),
            Err(_) => {}
        }
    }
    match refused {
        Some((file, e)) => Err(cannot_run(&file.display().to_string(), &e)),
        None => {
            let (path, name_text) = (path.to_string_lossy(), name.to_string_lossy());
            let what_to_do = match dir.unwrap_or(Path::new("")).join(name).is_file() {
                true => format!(
                    "for the file here, name its interpreter first, as in node app.js, or give ./{name_text}"
                ),
                false => "install it, or give its path".to_string(),
            };
            Err(Error::config(format!(
                "cannot run {name_text}: there is no such program in PATH={path}; {what_to_do}"
            )))
        }
    }
}

fn check_executable(file: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(file)?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(access(file, AccessFlags::X_OK)?)
}

fn cannot_run(file: &str, error: &io::Error) -> Error {
    let what_to_do = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; make it executable (chmod +x), or name the interpreter first"
        }
        io::ErrorKind::NotFound => "; give the path of a program that exists",
        _ => "",
    };
    Error::config(format!("cannot run {file}: {error}{what_to_do}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_path_or_by_name() {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::write(dir.path().join("plain"), "text").expect("write");
        let path = OsStr::new("/nonexistent:/usr/bin:/bin");
        assert!(
            find_executable(OsStr::new("sh"), None, Some(path)).expect("found").ends_with("sh")
        );
        assert!(find_executable(OsStr::new("/bin/sh"), None, None).is_ok());
        for (name, reason) in [
            ("no-such-program", "install it, or give its path"),
            ("plain", "name its interpreter first"),
            ("", "no name"),
            ("./plain", "chmod +x"),
            ("./none", "exists"),
            ("/", "directory"),
        ] {
            let error = find_executable(OsStr::new(name), Some(dir.path()), Some(path));
            let error = error.expect_err(name).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
