//! The output of programs of `prefork run`: prefixes, JSON, files, and readers that do not read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use crate::support::command::{ProcessBuilder, test_programs};
use crate::support::{Server, log, wait};

/// A script that sends standard output of the server to the file `out`.
const TO_FILE: &str = r#"exec "$0" "$@" >out"#;
/// A script that sends it to a FIFO that nobody reads.
const TO_FULL_PIPE: &str = r#"mkfifo out && exec "$0" "$@" 1<>out"#;

fn read(server: &Server, name: &str) -> String {
    fs::read_to_string(server.dir().join(name)).unwrap_or_default()
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).expect("VmRSS")
}

#[test]
fn lines_have_a_prefix_with_worker_slot_and_stream() {
    let builder = ProcessBuilder::run_foreign_program(&["prints-variable", "PREFORK_SLOT"]);
    let server = builder.script(TO_FILE).start();
    wait::wait_until("a line of each", || {
        let out = read(&server, "out");
        [1, 2].iter().all(|worker| {
            let line = out.lines().find(|line| line.starts_with(&format!("worker={worker} ")));
            line.is_some_and(|line| {
                let slot = line.rsplit('=').next().unwrap_or_default();
                line == format!("worker={worker} slot={slot} stdout: PREFORK_SLOT={slot}")
            })
        })
    });
    wait::wait_until("standard error", || {
        server.log().lines().any(|line| line == "worker=1 slot=0 stderr: to stderr")
    });
    server.stop();
}

#[test]
fn json_lines_name_the_program_that_printed_them() {
    let builder = ProcessBuilder::run_foreign_program(&["prints-variable", "PREFORK_WORKER"]);
    let server = builder.workers(1).args(["--output", "json"]).script(TO_FILE).start();
    let line = wait::wait_until_some("a line", || {
        read(&server, "out").lines().next().map(ToString::to_string)
    });
    let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!((&json["worker"], &json["slot"]), (&1.into(), &0.into()));
    assert_eq!((&json["stream"], &json["message"]), (&"stdout".into(), &"PREFORK_WORKER=1".into()));
    server.stop();
}

#[test]
fn plain_output_is_the_programs_own() {
    let builder = ProcessBuilder::run_foreign_program(&["prints-variable", "PREFORK_WORKER"]);
    let server = builder.workers(1).args(["--output", "plain"]).script(TO_FILE).start();
    wait::wait_until("the line", || read(&server, "out") == "PREFORK_WORKER=1\n");
    server.stop();
}

#[test]
fn a_program_of_another_user_opens_its_output_by_name() {
    let for_others = |path: &Path| path.metadata().is_ok_and(|data| data.mode() & 1 == 1);
    if !nix::unistd::geteuid().is_root() || !test_programs().ancestors().all(for_others) {
        return;
    }
    let builder = ProcessBuilder::run_foreign_program(&["opens-stdout"]).workers(1);
    let user = ["--user", "65534", "--group", "65534", "--output", "json"];
    let server = builder.args(user).script(TO_FILE).start();
    wait::wait_until("the line", || read(&server, "out").contains("opened"));
    server.stop();
}

#[test]
fn files_are_opened_again_after_a_rotation() {
    let builder = ProcessBuilder::run_foreign_program(&["floods"]);
    let server = builder.args(["--output", "file:{name}-{slot}.{stream}"]).start();
    let first = server.dir().join("test_programs-1.stdout");
    wait::wait_until("the file", || first.exists());
    fs::rename(&first, server.dir().join("old")).expect("rename");
    server.signal(Signal::SIGUSR1);
    wait::wait_until("a new file", || first.metadata().is_ok_and(|meta| meta.len() > 0));
    let is_whole = |line: &str| line == "0123456789abcdef 0123456789abcdef 0123456789abcdef";
    let old = read(&server, "old");
    assert!(old.ends_with('\n') && old.lines().all(is_whole));
    server.stop();
}

#[test]
fn a_program_that_prints_without_end_neither_stops_nor_fills_the_primary() {
    for (script, is_read) in [(r#"exec "$0" "$@" >/dev/null"#, true), (TO_FULL_PIPE, false)] {
        let builder = ProcessBuilder::run_foreign_program(&["floods"]);
        let server = builder.script(script).start();
        let before = resident_kib(server.pid());
        server.run_verb(&["reload"]);
        for _ in 0..20 {
            assert_eq!(server.get("/").status, 200);
        }
        if !is_read {
            server.wait_log(&["WARN", "lost"]);
        }
        let growth = resident_kib(server.pid()).saturating_sub(before);
        assert!(growth < 16 << 10, "{growth} KiB");
        server.stop();
    }
}

#[test]
fn files_that_take_nothing_cost_lines_and_nothing_else() {
    let dir = tempfile::tempdir().expect("directory");
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).expect("FIFO");
    for file in [Path::new("/dev/full"), &fifo] {
        let builder = ProcessBuilder::run_foreign_program(&["floods"]);
        let server = builder.args(["--output", &format!("file:{}", file.display())]).start();
        server.wait_log(&["WARN", "lost", file.to_str().expect("UTF-8")]);
        let programs = server.worker_pids();
        assert_eq!(server.get("/").status, 200);
        assert_eq!(server.worker_pids(), programs, "they still run");
        server.stop();
    }
}

#[test]
fn lines_before_an_upgrade_and_after_it_are_whole() {
    let builder = ProcessBuilder::run_foreign_program(&["floods"]).workers(1);
    let server = builder.script(TO_FILE).start();
    wait::wait_until("output", || read(&server, "out").len() > 1 << 12);
    server.run_verb(&["upgrade"]);
    let after = read(&server, "out").len();
    wait::wait_until("more output", || read(&server, "out").len() > after + (1 << 12));
    let text = read(&server, "out");
    let lines: Vec<&str> = text.lines().collect();
    let is_whole =
        |line: &&&str| line.ends_with("stdout: 0123456789abcdef 0123456789abcdef 0123456789abcdef");
    // What stood unread in a pipe at the exec may be cut, and the last line is being written.
    let torn = lines[..lines.len() - 1].iter().filter(|line| !is_whole(line)).count();
    assert!(torn <= 2, "{torn} of {}", lines.len());
    let log = server.stop();
    assert!(log::lines_with(&log, &["ERROR"]).next().is_none(), "{log}");
}
