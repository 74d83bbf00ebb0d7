//! The log: its file and rotation, and outputs that are full or have no reader.

use std::fs;
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::command::ProcessBuilder;
use crate::support::{Server, log, process, wait};

/// Size of the smallest pipe, in bytes.
const PIPE_SIZE: i32 = 4096;

/// Starts a server on a Unix socket whose standard error is a full pipe, and returns the reader of the pipe.
#[track_caller]
pub(crate) fn start_with_full_pipe(
    builder: ProcessBuilder,
    workers: usize,
) -> (Server, PipeReader) {
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE)).expect("size");
    writer.write_all(&[b'\n'; PIPE_SIZE as usize]).expect("fill");
    let null = || OwnedFd::from(fs::File::open("/dev/null").expect("null"));
    let socket = format!("unix:{}", builder.dir().join("socket").display());
    let builder = builder.workers(workers).bind([socket]);
    let streams = [null(), null(), OwnedFd::from(writer)];
    (builder.standard_streams(streams.into_iter()).start(), reader)
}

/// Reads until `piece` has arrived, and returns everything.
#[track_caller]
fn read_until(reader: &mut PipeReader, piece: &str) -> String {
    fcntl(reader.as_fd(), FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).expect("flags");
    let mut all = Vec::new();
    wait::wait_until_some(&format!("{piece:?} in the log"), || {
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
fn has_warning_event(server: &Server) -> bool {
    server.run_verb(&["events", "--json"]).contains(r#""level":"warn""#)
}

#[track_caller]
fn dropped_line_count(server: &Server) -> u64 {
    server.status()["primary"]["log_lines_dropped"].as_u64().expect("a count")
}

#[test]
fn a_full_log_pipe_does_not_block_supervision_and_dropped_lines_are_counted() {
    let (mut server, mut reader) = start_with_full_pipe(Server::builder(), 3);
    let first = server.worker_pids();
    server.signal(Signal::SIGHUP);
    let second = server.wait_new_workers(3, &first);
    process::send_signal(second[0], Signal::SIGKILL);
    server.wait_new_workers(3, &second[..1]);
    assert!(process::zombies(server.pid()).is_empty());
    assert!(dropped_line_count(&server) > 0);
    wait::wait_until("an event about it", || has_warning_event(&server));
    // A reader that resumes gets whole lines, and a line with the number of dropped ones.
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
fn a_full_log_pipe_does_not_delay_a_stop() {
    let (mut server, _reader) = start_with_full_pipe(Server::builder(), 2);
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
}

#[test]
fn a_worker_with_a_full_log_pipe_survives_a_panicking_handler() {
    let (server, _reader) = start_with_full_pipe(Server::builder().args(["--faults"]), 1);
    let pid = server.get("/").pid();
    for _ in 0..3 {
        assert_eq!(server.get("/fault/panic").status, 500);
    }
    assert_eq!(server.get("/").pid(), pid);
    assert!(dropped_line_count(&server) >= 3);
}

#[test]
fn a_closed_log_pipe_ends_no_process() {
    let (mut server, reader) = start_with_full_pipe(Server::builder(), 2);
    drop(reader);
    let first = server.worker_pids();
    server.signal(Signal::SIGHUP);
    server.wait_new_workers(2, &first);
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
}

/// Starts a server on a Unix socket that logs to the file `log`.
#[track_caller]
fn start_with_log_file(builder: ProcessBuilder, log: &Path) -> Server {
    let log = ["--log-file".into(), log.as_os_str().to_os_string()];
    let socket = format!("unix:{}", builder.dir().join("socket").display());
    builder.args(log).bind([socket]).start()
}

#[test]
fn a_log_at_the_file_size_limit_continues_after_rotation() {
    // A limit of 128 MiB, as shared memory counts as a file, too, and a log just below it.
    let builder = Server::builder()
        .script(r#"ulimit -f 262144; truncate -s 134217296 prefork.log; exec "$0" "$@""#);
    let (log, old) = (builder.dir().join("prefork.log"), builder.dir().join("old.log"));
    let mut server = start_with_log_file(builder, &log);
    wait::wait_until("the limit", || {
        let pids = server.worker_pids();
        server.signal(Signal::SIGHUP);
        server.wait_new_workers(2, &pids);
        dropped_line_count(&server) > 0
    });
    let (least, table) = (dropped_line_count(&server), server.run_verb(&["status"]));
    let shown =
        (least..=dropped_line_count(&server)).any(|n| log::contains_word(&table, &n.to_string()));
    assert!(shown, "{least}: {table}");
    fs::rename(&log, &old).expect("rename");
    server.signal(Signal::SIGUSR1);
    wait::wait_until("what is missing, in the new file", || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains(" WARN "))
    });
    let whole = |text: String| text.lines().all(|line| line.starts_with("20"));
    assert!(whole(fs::read_to_string(&log).expect("log")));
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
}

#[test]
fn a_full_disk_ends_no_process_and_is_an_event() {
    let mut server = start_with_log_file(Server::builder(), Path::new("/dev/full"));
    wait::wait_until("an event about it", || {
        server.run_verb(&["events"]).contains("No space left")
    });
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
}

/// After a rotation, all processes of the cluster write to the new file.
#[test]
fn sigusr1_reopens_the_log_in_all_processes() {
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
    wait::wait_until("the new file", || fs::metadata(&new).is_ok_and(|file| file.len() > 0));
    // Both workers have reopened the log when their lines are in it.
    wait::wait_until("both workers in the new file", || {
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
fn a_log_file_in_a_missing_directory_is_an_error() {
    let ended = Server::builder().args(["--log-file", "no/such/directory/log"]).run();
    assert_eq!(ended.status, Some(71), "{}", ended.stderr);
    assert!(ended.stderr.contains("no/such/directory/log"), "{}", ended.stderr);
}

#[test]
fn special_files_are_refused_as_log_file() {
    let builder = Server::builder();
    let dir = builder.dir().to_path_buf();
    mkfifo(&dir.join("fifo"), Mode::S_IRWXU).expect("FIFO");
    let _socket = UnixListener::bind(dir.join("socket")).expect("socket");
    for (name, what) in [("fifo", "FIFO"), ("socket", "socket"), (".", "directory")] {
        let path = dir.join(name).display().to_string();
        let ended = Server::builder().args(["--log-file", &path]).run();
        assert_eq!(ended.status, Some(71), "{}", ended.stderr);
        assert!(ended.stderr.contains(&path), "{}", ended.stderr);
        assert!(ended.stderr.replace(&path, "").contains(what), "{}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    }
}

#[test]
fn log_file_and_pid_file_must_differ() {
    let ended = Server::builder().args(["--log-file", "a", "--pid-file", "./a"]).run();
    assert_eq!(ended.status, Some(78), "{}", ended.stderr);
    assert!(ended.stderr.contains("pid-file"), "{}", ended.stderr);
}

#[test]
fn standard_streams_and_symlinks_are_accepted_as_log_file() {
    for path in ["/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"] {
        let server = Server::with(1, &["--log-file", path]);
        let before = server.log().lines().count();
        server.signal(Signal::SIGUSR1);
        wait::wait_until("a line about it", || server.log().lines().count() > before);
        server.stop();
    }
    // The scripts open the file `out`, or link to it.
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
fn a_failed_rotation_keeps_the_old_log() {
    let builder = Server::builder().args(["--log-file", "prefork.log"]);
    let (log, old) = (builder.dir().join("prefork.log"), builder.dir().join("old.log"));
    let mut server = builder.start();
    let has = |path: &Path, piece: &str| fs::read_to_string(path).is_ok_and(|t| t.contains(piece));
    fs::rename(&log, &old).expect("rename");
    mkfifo(&log, Mode::S_IRWXU).expect("FIFO");
    server.signal(Signal::SIGUSR1);
    wait::wait_until("the reason in the old log", || has(&old, "ERROR") && has(&old, "FIFO"));
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
    assert!(has(&old, "SIGTERM"));
}

#[test]
fn a_reload_can_change_the_log_file() {
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
        assert!(server.assert_verb_fails(&["reload"], 1).contains(log));
    }
    write("b.log");
    server.run_verb(&["reload"]);
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
    assert!(has("b.log", "SIGTERM") && !has("a.log", "SIGTERM"));
}
