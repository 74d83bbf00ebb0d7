//! `scripts/install` into a directory: install, install again, uninstall. `scripts/e2e/systemd` checks the units.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");
const SERVICE_UNIT: &str = "usr/local/lib/systemd/system/prefork.service";

/// An empty root file system for an installation.
struct Installation(TempDir);

impl Installation {
    fn new() -> Installation {
        Installation(tempfile::tempdir().expect("directory"))
    }

    fn run(&self, args: &[&str], prefix: &str) -> Output {
        self.command(args, prefix).output().expect("scripts/install")
    }

    fn command(&self, args: &[&str], prefix: &str) -> Command {
        let mut command = Command::new(format!("{CHECKOUT}/scripts/install"));
        command
            .args(args)
            .env("DESTDIR", self.0.path().join("root"))
            .env("PREFIX", prefix)
            .env_remove("CONFDIR")
            .env_remove("PREFORK_NATIVE");
        command
    }

    #[track_caller]
    fn install(&self) -> String {
        self.succeed(&["--binary", env!("CARGO_BIN_EXE_prefork")], "/usr/local")
    }

    #[track_caller]
    fn uninstall(&self) -> String {
        self.succeed(&["--uninstall"], "/usr/local")
    }

    #[track_caller]
    fn succeed(&self, args: &[&str], prefix: &str) -> String {
        let output = self.run(args, prefix);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && err.is_empty(), "{}: {err}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("root").join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect(name)
    }

    /// Returns every file with its content, ordered by path.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        collect_files(&self.path(""), &mut files);
        files.sort();
        files
    }
}

fn collect_files(directory: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(directory).expect("directory") {
        let path = entry.expect("entry").path();
        match path.is_dir() {
            true => collect_files(&path, files),
            false => files.push((path.clone(), fs::read(&path).expect("file"))),
        }
    }
}

/// Returns the value of a setting in a systemd unit.
fn unit_setting<'a>(unit: &'a str, name: &str) -> &'a str {
    let value = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("{name} is not in\n{unit}"))
}

#[test]
fn install_puts_every_file_in_place() {
    let place = Installation::new();
    place.install();
    for name in [
        "usr/local/bin/prefork",
        SERVICE_UNIT,
        "usr/local/lib/systemd/system/prefork.socket",
        "usr/local/lib/systemd/system/prefork@.service",
        "usr/local/share/prefork/notify-reload.conf",
        "usr/local/share/prefork/least-conn.conf",
        "usr/local/share/man/man1/prefork.1",
        "usr/local/share/man/man1/prefork-serve.1",
        "usr/local/share/bash-completion/completions/prefork",
        "usr/local/share/zsh/site-functions/_prefork",
        "usr/local/share/fish/vendor_completions.d/prefork.fish",
        "etc/prefork.toml",
    ] {
        assert!(fs::metadata(place.path(name)).expect(name).len() > 100, "{name} is short");
    }
    let version = Command::new(place.path("usr/local/bin/prefork")).arg("--version").output();
    assert!(version.expect("the binary").status.success());
}

#[test]
fn the_systemd_unit_names_the_installed_files() {
    let place = Installation::new();
    place.install();
    let unit = place.text(SERVICE_UNIT);
    assert!(!unit.contains('@') || !unit.contains("DIR@"), "{unit}");
    let start = "/usr/local/bin/prefork serve --config /etc/prefork.toml";
    assert_eq!(unit_setting(&unit, "ExecStart"), start);
    assert!(
        unit_setting(&unit, "ExecReload").starts_with("/usr/local/bin/prefork reload "),
        "{unit}"
    );
}

#[test]
fn timeout_stop_sec_exceeds_the_graceful_stop() {
    let place = Installation::new();
    place.install();
    let seconds = |text: &str| text.trim_matches(['"', 's']).parse::<u64>().expect("seconds");
    let toml: toml::Table = place.text("etc/prefork.toml").parse().expect("TOML");
    let needed: u64 = ["graceful-timeout", "linger-timeout", "drain-delay"]
        .iter()
        .filter_map(|key| Some(seconds(toml.get(*key)?.as_str().expect("text"))))
        .sum();
    assert!(needed > 30, "{needed} s is less than the defaults");
    let given = seconds(unit_setting(&place.text(SERVICE_UNIT), "TimeoutStopSec"));
    assert!(given > needed, "{given} s for {needed} s");
}

#[test]
fn the_installed_configuration_is_valid() {
    let place = Installation::new();
    place.install();
    let check = Command::new(place.path("usr/local/bin/prefork"))
        .args(["check", "--config"])
        .arg(place.path("etc/prefork.toml"))
        .output()
        .expect("prefork check");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}

#[test]
fn installing_again_changes_nothing() {
    let place = Installation::new();
    place.install();
    let before = place.files();
    place.install();
    assert!(before == place.files(), "a file has changed");
    place.uninstall();
}

#[test]
fn install_honours_another_prefix() {
    let place = Installation::new();
    place.succeed(&["--binary", env!("CARGO_BIN_EXE_prefork")], "/opt/web");
    let unit = place.text("etc/systemd/system/prefork.service");
    assert!(unit_setting(&unit, "ExecStart").starts_with("/opt/web/bin/prefork "), "{unit}");
    place.succeed(&["--uninstall"], "/opt/web");
    assert_eq!(fs::read_dir(place.path("")).expect("root").count(), 0);
}

#[test]
fn uninstall_removes_only_installed_files() {
    let place = Installation::new();
    let stranger = place.path("usr/local/share/man/man1/other.1");
    fs::create_dir_all(stranger.parent().expect("parent")).expect("directory");
    fs::write(&stranger, "not ours").expect("write");
    place.install();
    place.install();
    place.uninstall();
    assert_eq!(place.files(), [(stranger, b"not ours".to_vec())]);
    let left: Vec<_> = fs::read_dir(place.path("")).expect("root").collect();
    assert_eq!(left.len(), 1, "{left:?}");
    let err = place.run(&["--uninstall"], "/usr/local");
    assert!(!err.status.success(), "there is nothing to remove");
}

#[test]
fn an_edited_configuration_survives_install_and_uninstall() {
    let place = Installation::new();
    place.install();
    let path = place.path("etc/prefork.toml");
    fs::write(&path, "workers = 3\n").expect("write");
    for output in [place.install(), place.install(), place.uninstall(), place.install()] {
        assert!(output.contains("kept /etc/prefork.toml"), "{output}");
        assert_eq!(fs::read_to_string(&path).expect("configuration"), "workers = 3\n");
    }
}

#[test]
fn invalid_install_arguments_change_nothing() {
    let place = Installation::new();
    for args in [&["--binary", "/nonexistent"][..], &["--frobnicate"]] {
        let output = place.run(args, "/usr/local");
        assert!(!output.status.success(), "{args:?}");
        assert!(!place.path("usr").exists(), "{args:?}");
    }
}

#[test]
fn a_binary_of_this_machine_writes_the_manual_pages_of_one_that_cannot_run_here() {
    let installation = Installation::new();
    let foreign = installation.0.path().join("foreign");
    fs::copy("/bin/false", &foreign).expect("a program that fails");
    let foreign_path = foreign.to_str().expect("UTF-8");
    let mut command = installation.command(&["--binary", foreign_path], "/usr/local");
    let output = command.env("PREFORK_NATIVE", env!("CARGO_BIN_EXE_prefork")).output();
    assert!(output.expect("scripts/install").status.success());
    let installed = fs::read(installation.path("usr/local/bin/prefork")).expect("the binary");
    assert_eq!(installed, fs::read(&foreign).expect("the program"));
    assert!(installation.text("usr/local/share/man/man1/prefork.1").contains("prefork"));
    assert!(!installation.run(&["--binary", foreign_path], "/usr/local").status.success());
}
