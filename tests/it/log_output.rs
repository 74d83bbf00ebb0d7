//! A log that nobody reads, or that has no room: serving and supervision go on, and what is missing is told of.

use std::fs;
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;

use crate::support::command::Builder;
use crate::support::{Server, log, process, wait};

/// Bytes of the smallest pipe there is.
const PIPE_SIZE: i32 = 4096;

/// A server whose standard error is a full pipe, which is returned. It serves on a Unix socket.
#[track_caller]
fn with_full_pipe(builder: Builder, workers: usize) -> (Server, PipeReader) {
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE)).expect("size");
    writer.write_all(&[b'\n'; PIPE_SIZE as usize]).expect("fill");
    let null = || OwnedFd::from(fs::File::open("/dev/null").expect("null"));
    let socket = format!("unix:{}", builder.dir().join("socket").display());
    let builder = builder.workers(workers).bind([socket]);
    let streams = [null(), null(), OwnedFd::from(writer)];
    (builder.streams(streams.into_iter()).start(), reader)
}

/// Reads until `piece` has come.
#[track_caller]
fn read_until(reader: &mut PipeReader, piece: &str) -> String {
    fcntl(reader.as_fd(), FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).expect("flags");
    let mut all = Vec::new();
    wait::until_some(&format!("{piece:?} in the log"), || {
        let mut bytes = [0; 4096];
        if let Ok(n) = reader.read(&mut bytes) {
            all.extend_from_slice(&bytes[..n]);
        }
        let text = String::from_utf8_lossy(&all);
        text.contains(piece).then(|| text.into_owned())
    })
}

/// Whether there is an event of level `warn`.
#[track_caller]
fn has_warning(server: &Server) -> bool {
    server.order(&["events", "--json"]).contains(r#""level":"warn""#)
}

#[track_caller]
fn dropped_lines(server: &Server) -> u64 {
    server.status()["primary"]["log_lines_dropped"].as_u64().expect("a count")
}

#[test]
fn supervision_goes_on_while_nobody_reads_the_log_and_missing_lines_are_told_of() {
    let (mut server, mut reader) = with_full_pipe(Server::builder(), 3);
    let first = server.worker_pids();
    server.signal(Signal::SIGHUP);
    let second = server.wait_others(3, &first);
    process::send(second[0], Signal::SIGKILL);
    server.wait_others(3, &second[..1]);
    assert!(process::zombies(server.pid()).is_empty());
    assert!(dropped_lines(&server) > 0);
    wait::until("an event about it", || has_warning(&server));
    // Whoever reads again gets whole lines, and the number of those that are missing.
    let text = read_until(&mut reader, " WARN ");
    let lines = text.lines().filter(|line| !line.is_empty());
    assert!(
        lines.clone().count() > 0 && lines.clone().all(|line| line.starts_with("20")),
        "{text}"
    );
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
}

#[test]
fn a_stop_does_not_wait_for_a_reader_of_the_log() {
    let (mut server, _reader) = with_full_pipe(Server::builder(), 2);
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
}

#[test]
fn a_worker_serves_on_when_its_panic_cannot_be_logged() {
    let (server, _reader) = with_full_pipe(Server::builder().args(["--faults"]), 1);
    let pid = server.get("/").pid();
    for _ in 0..3 {
        assert_eq!(server.get("/fault/panic").status, 500);
    }
    assert_eq!(server.get("/").pid(), pid);
    assert!(dropped_lines(&server) >= 3);
}

#[test]
fn a_reader_of_the_log_that_is_gone_ends_nobody() {
    let (mut server, reader) = with_full_pipe(Server::builder(), 2);
    drop(reader);
    let first = server.worker_pids();
    server.signal(Signal::SIGHUP);
    server.wait_others(2, &first);
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
}

/// A server whose log file is `log`, with a control socket.
#[track_caller]
fn with_log(builder: Builder, log: &Path) -> Server {
    let log = ["--log-file".into(), log.as_os_str().to_os_string()];
    let socket = format!("unix:{}", builder.dir().join("socket").display());
    builder.args(log).bind([socket]).start()
}

#[test]
fn a_log_at_the_limit_of_a_file_ends_nobody_and_goes_on_after_a_rotation() {
    // 32 MiB, as shared memory counts as a file, too; and a log that has nearly reached it.
    let builder = Server::builder()
        .script(r#"ulimit -f 65536; truncate -s 33554000 prefork.log; exec "$0" "$@""#);
    let (log, old) = (builder.dir().join("prefork.log"), builder.dir().join("old.log"));
    let mut server = with_log(builder, &log);
    wait::until("the limit", || {
        let pids = server.worker_pids();
        server.signal(Signal::SIGHUP);
        server.wait_others(2, &pids);
        dropped_lines(&server) > 0
    });
    let (least, table) = (dropped_lines(&server), server.order(&["status"]));
    let shown =
        (least..=dropped_lines(&server)).any(|n| log::contains_word(&table, &n.to_string()));
    assert!(shown, "{least}: {table}");
    fs::rename(&log, &old).expect("rename");
    server.signal(Signal::SIGUSR1);
    wait::until("what is missing, in the new file", || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains(" WARN "))
    });
    let whole = |text: String| text.lines().all(|line| line.starts_with("20"));
    assert!(whole(fs::read_to_string(&log).expect("log")));
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
}

#[test]
fn a_full_disk_ends_nobody_and_is_told_to_whoever_asks() {
    let mut server = with_log(Server::builder(), Path::new("/dev/full"));
    wait::until("an event about it", || server.order(&["events"]).contains("No space left"));
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
}
