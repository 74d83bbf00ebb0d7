//! `scripts/test` with a fake cargo and fake end-to-end scripts: which runs pass.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");

/// The scripts that `scripts/test` lists, and one that it finds.
const SCRIPTS: [&str; 6] = ["pid1", "haproxy", "systemd", "browser", "container", "another"];

/// A checkout with `scripts/test` and fake scripts, which all pass.
struct FakeCheckout(TempDir);

impl FakeCheckout {
    fn new() -> FakeCheckout {
        let place = FakeCheckout(tempfile::tempdir().expect("directory"));
        let cp = Command::new("cp")
            .arg(format!("{CHECKOUT}/scripts/test"))
            .arg(place.path("scripts").join("test"))
            .status();
        assert!(cp.expect("cp").success());
        place.write("bin/cargo", "[ \"$1\" != test ] || echo 'test result: ok. 3 passed'");
        for script in ["scripts/check-features", "scripts/book"] {
            place.write(script, "true");
        }
        place.write("scripts/cargo-tool", "echo true");
        for name in SCRIPTS {
            place.write_e2e_script(name, "echo ok it");
        }
        place.write("scripts/perf-gate", "echo ok it");
        place
    }

    /// Returns a directory, which is created if it is missing.
    fn path(&self, directory: &str) -> std::path::PathBuf {
        let path = self.0.path().join(directory);
        fs::create_dir_all(&path).expect("directory");
        path
    }

    fn write(&self, name: &str, script: &str) {
        let name = Path::new(name);
        let directory = self.path(&name.parent().expect("a directory").display().to_string());
        let path = directory.join(name.file_name().expect("a name"));
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    fn write_e2e_script(&self, name: &str, script: &str) {
        self.write(&format!("scripts/e2e/{name}"), script);
    }

    /// Runs the script, and returns whether it succeeded and its output.
    fn run(&self, limit: u32) -> (bool, String) {
        self.run_with(limit, &[])
    }

    fn run_with(&self, limit: u32, arguments: &[&str]) -> (bool, String) {
        let path = std::env::var("PATH").unwrap_or_default();
        // Run by bash: a child of another test may still hold the copy open for writing.
        let ran = Command::new("bash")
            .arg(self.path("scripts").join("test"))
            .args(arguments)
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .env("PREFORK_TEST_LIMIT", limit.to_string())
            .env_remove("PREFORK_TEST_FULL")
            .stdin(Stdio::null())
            .output()
            .expect("bash");
        let output = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert_eq!(ran.status.success(), output.ends_with("\nall passed\n"), "{output}");
        (ran.status.success(), output)
    }

    #[track_caller]
    fn assert_fails(&self, limit: u32, last: &str) {
        let (passed, output) = self.run(limit);
        assert!(!passed && output.contains(&format!("\nfailed: {last}")), "{output}");
    }
}

#[test]
fn all_passed_is_printed_only_if_every_step_passed() {
    let place = FakeCheckout::new();
    place.write_e2e_script("pid1", "echo 'skipped: pid1: needs root'");
    let (passed, output) = place.run(600);
    assert!(passed, "{output}");
    assert!(output.contains("\nskipped: pid1: needs root\n"), "{output}");
    assert_eq!(
        output.matches("test result: ok. 3 passed").count(),
        2,
        "with the others, and at the end"
    );
}

#[test]
fn failed_killed_and_silent_steps_fail_the_run() {
    for (script, why) in [
        ("echo ok it; exit 3", "(status 3)"),
        ("echo ok it; kill -9 $$", "(killed)"),
        ("echo ok it; echo FAILED that", "(printed FAILED, with status 0)"),
        ("true", "(printed neither ok nor skipped)"),
    ] {
        let place = FakeCheckout::new();
        place.write_e2e_script("another", script);
        place.assert_fails(600, &format!("scripts/e2e/another {why}"));
    }
    let place = FakeCheckout::new();
    place.write("bin/cargo", "[ \"$1\" != test ] || exit 101");
    place.assert_fails(600, "cargo test (status 101)");
    let place = FakeCheckout::new();
    place.write("scripts/book", "exit 101");
    place.assert_fails(600, "scripts/book (status 101)");
}

#[test]
fn steps_without_time_left_fail_the_run() {
    let place = FakeCheckout::new();
    place.assert_fails(0, "cargo fmt --check (no time left of 0 s");
    place.write_e2e_script("pid1", "echo ok it; sleep 600");
    place.assert_fails(1, "");
}

#[test]
fn quick_runs_the_tests_without_the_scripts() {
    let place = FakeCheckout::new();
    place.write_e2e_script("another", "exit 3");
    place.write("scripts/perf-gate", "exit 3");
    let (passed, output) = place.run_with(60, &["--quick"]);
    assert!(passed && output.contains("== core end-to-end tests"), "{output}");
    assert!(!output.contains("scripts/e2e/another"), "{output}");
    let (passed, _) = place.run_with(60, &["--quik"]);
    assert!(!passed);
}
