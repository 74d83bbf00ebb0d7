//! Looks for peers on this machine.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::PeerDefinition;
use crate::compare::POLL_INTERVAL;
use tokio_prefork::text::printable;

/// How long a program may take to print its version: 30 s.
const VERSION_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest version in a report, in characters.
const MAX_VERSION_CHARS: usize = 120;

/// A peer that can be started here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InstalledPeer {
    /// Path of the executable.
    pub(crate) program: PathBuf,
    /// What it says about its version, in one line.
    pub(crate) version: String,
}

/// Why a peer cannot be started here, with what to do.
pub(crate) type PeerError = String;

/// Looks for the program of a peer and asks it for its version.
///
/// # Errors
/// It is not on PATH, or fails; says how to install it.
pub(super) fn find_installed(
    peer: &PeerDefinition,
    name: &str,
    version_args: &[&str],
) -> Result<InstalledPeer, PeerError> {
    let install = format!("install it: {}", peer.install);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program = find_on_path(name, &path)
        .ok_or(format!("peer {}: {name} is not on PATH; {install}", peer.name))?;
    match read_version(&program, version_args) {
        Ok(version) => Ok(InstalledPeer { program, version }),
        Err(why) => {
            let asked = version_args.join(" ");
            Err(format!(
                "peer {}: {} {asked} failed: {why}; {install}",
                peer.name,
                program.display()
            ))
        }
    }
}

/// Returns the first executable file of this name.
pub(super) fn find_on_path(name: &str, path: &OsStr) -> Option<PathBuf> {
    let is_executable = |file: &PathBuf| {
        let metadata = std::fs::metadata(file).ok();
        metadata.is_some_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(path).map(|dir| dir.join(name)).find(is_executable)
}

/// Runs a program that prints its version and exits.
fn read_version(program: &Path, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let begun = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if begun.elapsed() > VERSION_TIMEOUT {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("it does not end within {VERSION_TIMEOUT:?}"));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    let line = |line: Option<&str>| {
        line.map(|line| printable(line).chars().take(MAX_VERSION_CHARS).collect::<String>())
    };
    // nginx prints its version to standard error.
    let first = line(stdout.lines().next().or(stderr.lines().next()));
    let first = first.map(|line| line.trim_start_matches("nginx version: ").to_string());
    match output.status.success() {
        true => first.ok_or("it prints nothing".to_string()),
        false => Err(line(stderr.lines().last()).unwrap_or(output.status.to_string())),
    }
}
