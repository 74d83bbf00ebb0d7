//! The log in a file of its own, and its rotation.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::{Server, wait};

/// What every process of the cluster writes goes to the new file after a rotation, and none of it is lost.
#[test]
fn a_renamed_log_is_opened_anew_by_the_primary_and_its_workers() {
    let builder = Server::builder().workers(2).args(["--faults", "--log-file", "prefork.log"]);
    let (old, new) = (builder.dir().join("old.log"), builder.dir().join("prefork.log"));
    let mut server = builder.spawn();
    let contains = |path: &std::path::Path, piece: &str| {
        fs::read_to_string(path).is_ok_and(|text| text.contains(piece))
    };
    server = server.ready();
    let primary = format!("pid={}", server.pid());
    assert!(contains(&new, &primary), "the start is in the file");
    fs::rename(&new, &old).expect("rename");
    server.signal(Signal::SIGUSR1);
    wait::until("the new file", || fs::metadata(&new).is_ok_and(|file| file.len() > 0));
    // Both workers have heard of it when what they say is there.
    wait::until("both workers in the new file", || {
        assert_eq!(server.get("/fault/panic").status, 500);
        let text = fs::read_to_string(&new).unwrap_or_default();
        ["worker=1", "worker=2"]
            .iter()
            .all(|w| text.lines().any(|line| line.contains(w) && line.contains("GET /fault/panic")))
    });
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
    assert!(contains(&new, "SIGTERM") && !contains(&old, "SIGTERM"));
    assert_eq!(server.log().lines().count(), 1, "only the warning of --faults: {}", server.log());
}

#[test]
fn a_log_file_that_cannot_be_opened_is_an_error() {
    let ended = Server::builder().args(["--log-file", "no/such/directory/log"]).run();
    assert_eq!(ended.status, Some(71), "{}", ended.err);
    assert!(ended.err.contains("no/such/directory/log"), "{}", ended.err);
}

#[test]
fn a_file_that_cannot_be_a_log_is_an_error_at_the_start() {
    let builder = Server::builder();
    let dir = builder.dir().to_path_buf();
    mkfifo(&dir.join("fifo"), Mode::S_IRWXU).expect("FIFO");
    let _socket = UnixListener::bind(dir.join("socket")).expect("socket");
    for (name, what) in [("fifo", "FIFO"), ("socket", "socket"), (".", "directory")] {
        let path = dir.join(name).display().to_string();
        let ended = Server::builder().args(["--log-file", &path]).run();
        assert_eq!(ended.status, Some(71), "{}", ended.err);
        assert!(ended.err.contains(&path), "{}", ended.err);
        assert!(ended.err.replace(&path, "").contains(what), "{}", ended.err);
        assert_eq!(ended.err.lines().count(), 1, "{}", ended.err);
    }
}

#[test]
fn the_pid_file_cannot_be_the_log() {
    let ended = Server::builder().args(["--log-file", "a", "--pid-file", "./a"]).run();
    assert_eq!(ended.status, Some(78), "{}", ended.err);
    assert!(ended.err.contains("pid-file"), "{}", ended.err);
}

#[test]
fn standard_streams_and_links_to_files_can_be_the_log() {
    for path in ["/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"] {
        let server = Server::with(1, &["--log-file", path]);
        let before = server.log().lines().count();
        server.signal(Signal::SIGUSR1);
        wait::until("a line about it", || server.log().lines().count() > before);
        server.stop();
    }
    // Standard output of the script is a file that nobody else names.
    for (script, path) in [
        (r#"exec "$0" "$@" >out"#, "/dev/stdout"),
        (r#"exec "$0" "$@" 5>out"#, "/dev/fd/5"),
        (r#"ln -s out link; exec "$0" "$@""#, "link"),
    ] {
        let builder = Server::builder().workers(1).script(script).args(["--log-file", path]);
        let out = builder.dir().join("out");
        let mut server = builder.start();
        let has = |piece: &str| fs::read_to_string(&out).is_ok_and(|text| text.contains(piece));
        assert!(has(&format!("pid={}", server.pid())), "the start is in the log");
        server.signal(Signal::SIGTERM);
        assert!(server.wait_exit().success());
        assert!(has("SIGTERM") && server.log().is_empty(), "{}", server.log());
    }
    let mut server = Server::builder().workers(1).args(["--log-file", "/dev/null"]).start();
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
}

#[test]
fn a_rotation_that_cannot_be_leaves_the_old_log() {
    let builder = Server::builder().args(["--log-file", "prefork.log"]);
    let (log, old) = (builder.dir().join("prefork.log"), builder.dir().join("old.log"));
    let mut server = builder.start();
    let has = |path: &Path, piece: &str| fs::read_to_string(path).is_ok_and(|t| t.contains(piece));
    fs::rename(&log, &old).expect("rename");
    mkfifo(&log, Mode::S_IRWXU).expect("FIFO");
    server.signal(Signal::SIGUSR1);
    wait::until("the reason in the old log", || has(&old, "ERROR") && has(&old, "FIFO"));
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
    assert!(has(&old, "SIGTERM"));
}

#[test]
fn a_reload_changes_over_to_its_log_file_or_fails_and_leaves_the_old_one() {
    let config = |log: &str| format!("bind = ['127.0.0.1:0']\nworkers = 1\nlog-file = '{log}'\n");
    let builder = Server::builder().config(1, &config("a.log"));
    let dir = builder.dir().to_path_buf();
    let mut server = builder.start();
    let has = |name: &str, piece: &str| {
        fs::read_to_string(dir.join(name)).is_ok_and(|text| text.contains(piece))
    };
    let write = |log: &str| fs::write(dir.join("prefork.toml"), config(log)).expect("write");
    assert!(has("a.log", &format!("pid={}", server.pid())), "the start is in the log");
    fs::create_dir(dir.join("directory")).expect("directory");
    for log in ["directory", "/dev/fd/5"] {
        write(log);
        assert!(server.refused(&["reload"], 1).contains(log));
    }
    write("b.log");
    server.order(&["reload"]);
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
    assert!(has("b.log", "SIGTERM") && !has("a.log", "SIGTERM"));
}
