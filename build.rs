//! Tells the command which commit and compiler it is built with, for the reports of `bench` and `compare`.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=BUILD_COMMIT");
    // Source from an archive has no commit; packagers may name it in BUILD_COMMIT.
    if std::env::var_os("BUILD_COMMIT").is_none()
        && let Some(commit) = commit()
    {
        println!("cargo::rustc-env=BUILD_COMMIT={commit}");
    }
    let compiler = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    if let Some(version) = output_of(Command::new(compiler).arg("--version")) {
        println!("cargo::rustc-env=BUILD_COMPILER={version}");
    }
}

/// Returns the short hash of the commit, with `+` if tracked files differ from it.
fn commit() -> Option<String> {
    // An archive may be unpacked inside the repository of something else.
    let root = output_of(git().args(["rev-parse", "--show-toplevel"]))?;
    let package = std::env::var("CARGO_MANIFEST_DIR").ok()?;
    if Path::new(&root).canonicalize().ok()? != Path::new(&package).canonicalize().ok()? {
        return None;
    }
    // Written at each commit and checkout, also in a linked worktree.
    let log = output_of(git().args(["rev-parse", "--git-path", "logs/HEAD"]))?;
    if Path::new(&log).exists() {
        println!("cargo::rerun-if-changed={log}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    let hash = output_of(git().args(["rev-parse", "--short=12", "HEAD"]))?;
    let status = git().args(["diff-index", "--quiet", "HEAD", "--"]).status().ok()?;
    Some(if status.success() { hash } else { format!("{hash}+") })
}

fn git() -> Command {
    let mut git = Command::new("git");
    // Otherwise `diff-index` could write the index while something else uses it.
    git.env("GIT_OPTIONAL_LOCKS", "0");
    git
}

fn output_of(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_string()).filter(|text| !text.is_empty())
}
