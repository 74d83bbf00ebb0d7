//! The standard streams of workers: inherited, `/dev/null`, or lines for a hook in the primary. `tests/programs/worker_output.rs`
//! is the application.

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::{Server, log, process, wait};

fn output_cluster(arguments: &[&str]) -> ProcessBuilder {
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    ProcessBuilder::program("worker-output").workers(1).args(arguments)
}

fn read_lines(server: &Server) -> Vec<String> {
    let text = std::fs::read_to_string(server.dir().join("lines")).unwrap_or_default();
    text.lines().map(str::to_string).collect()
}

/// Waits until the hook has written this line, and returns all lines.
#[track_caller]
fn wait_line(server: &Server, line: &str) -> Vec<String> {
    wait::wait_until_some(line, || {
        let lines = read_lines(server);
        lines.iter().any(|one| one == line).then_some(lines)
    })
}

fn read_number(server: &Server, file: &str) -> u64 {
    let text = std::fs::read_to_string(server.dir().join(file)).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[test]
fn lines_reach_the_hook_with_worker_and_stream() {
    let server = output_cluster(&["stdio=lines", "hook=1"]).start();
    server.get("/print/hello");
    wait_line(&server, "web 1 stdout hello");
    wait_line(&server, "web 1 stderr hello too");
    server.get("/bytes");
    let lines = wait_line(&server, r"web 1 stdout \xff\x00");
    let long: usize = wait::wait_until_some("a long line in parts", || {
        let lines = read_lines(&server);
        let parts = lines.iter().filter_map(|line| line.strip_prefix("web 1 stdout x"));
        let length = parts.map(|part| part.len() + 1).sum();
        (length == 20_000).then_some(length)
    });
    assert_eq!(long, 20_000, "{lines:?}");
    server.stop();
}

#[test]
fn the_last_words_of_a_worker_come_before_its_exit() {
    let server =
        output_cluster(&["stdio=lines", "hook=1"]).start().allow_errors(&["worker=1", "exit"]);
    let _ = server.try_get("/last-words");
    let lines = wait_line(&server, "exit 1");
    let position = |line: &str| lines.iter().position(|one| one == line).expect(line);
    assert!(position("web 1 stdout the last words") < position("exit 1"), "{lines:?}");
    server.stop();
}

#[test]
fn without_a_hook_lines_are_in_the_log() {
    let server = output_cluster(&["stdio=lines"]).start();
    server.get("/print/hello");
    server.wait_log(&["INFO", "worker=1", "stdout: hello"]);
    server.wait_log(&["INFO", "worker=1", "stderr: hello too"]);
    server.stop();
}

#[test]
fn workers_can_have_the_streams_of_the_primary_or_none() {
    for (stdio, is_null) in [("inherit", false), ("null", true)] {
        let server = output_cluster(&[&format!("stdio={stdio}")]).start();
        let targets = server.get("/streams").text().to_string();
        if is_null {
            assert_eq!(targets, "/dev/null /dev/null /dev/null");
        } else {
            let of_primary = process::descriptors(server.pid());
            let of_primary: Vec<&str> =
                of_primary.iter().take(3).map(|(_, target)| target.as_str()).collect();
            assert_eq!(targets, of_primary.join(" "));
        }
        server.get("/print/hello");
        server.stop();
    }
}

#[test]
fn a_worker_that_prints_without_an_end_starves_neither_supervision_nor_memory() {
    let server =
        output_cluster(&["stdio=lines", "hook=slow"]).workers(2).start().allow_errors(&["SIGKILL"]);
    server.get("/flood");
    wait::wait_until("some lines", || read_number(&server, "count") > 20);
    // The other worker is replaced at once, though the hook never keeps up.
    let pids = server.worker_pids();
    pids.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGKILL));
    server.wait_new_workers(2, &pids);
    server.get("/flood");
    let before = read_number(&server, "count");
    wait::wait_until("more lines", || read_number(&server, "count") > before + 20);
    // A pipe holds 64 KiB, 650 lines of 101 bytes.
    let (printed, counted) = (read_number(&server, "printed"), read_number(&server, "count"));
    assert!(printed < counted + 2_000, "{printed} lines printed, {counted} delivered");
    server.run_verb(&["stop"]);
}

#[test]
fn workers_that_print_survive_the_death_of_the_primary() {
    let mut server = output_cluster(&["stdio=lines", "hook=1"]).start();
    let pids = server.worker_pids();
    let mut client = server.connect();
    client.send("GET /wait HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
    let waiting = server.dir().join("waiting");
    wait::wait_until("the request", || waiting.exists());
    server.kill_primary();
    // It prints more than its pipe holds, to nobody.
    assert_eq!(client.read_within_10_seconds().expect("an answer").text(), "1");
    process::wait_ended(&pids);
}

#[test]
fn an_upgrade_passes_the_output_on() {
    let server = output_cluster(&["stdio=lines", "hook=1", "graceful-timeout-ms=20000"]).start();
    let mut client = server.connect();
    client.send("GET /wait HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
    let waiting = server.dir().join("waiting");
    wait::wait_until("the request", || waiting.exists());
    server.get("/half/begun");
    server.signal(Signal::SIGUSR2);
    assert_eq!(client.read_within_10_seconds().expect("an answer").text(), "1");
    drop(client);
    let lines = wait_line(&server, "exit 1");
    // The first part was read by the old image, the rest by the new one.
    assert!(lines.contains(&"web 1 stdout begunline 0 of a worker that leaves".to_string()));
    let left = lines.iter().filter(|line| line.ends_with(" of a worker that leaves"));
    assert_eq!(left.count(), 20_000);
    server.get("/print/again");
    wait_line(&server, "web 2 stdout again");
    let primary = format!("pid={}", server.pid());
    let text = server.stop();
    assert_eq!(log::lines_with(&text, &["primary", &primary]).count(), 2, "{text}");
}

#[test]
fn a_program_that_a_worker_started_can_print_after_its_exit() {
    let server =
        output_cluster(&["stdio=lines", "hook=1"]).start().allow_errors(&["worker=1", "exit"]);
    server.get("/child");
    let _ = server.try_get("/last-words");
    wait_line(&server, "exit 1");
    std::fs::write(server.dir().join("go"), "").expect("write");
    wait_line(&server, "web 1 stdout late");
    server.stop();
}

#[test]
fn kinds_have_their_own_directory_and_slots_their_own_variables() {
    let server =
        output_cluster(&["hook=1", "helpers=2", "dir=/usr", "role=first"]).other_workers(2).start();
    let lines = wait::wait_until_some("two lines", || {
        let lines = read_lines(&server);
        (lines.len() == 2).then_some(lines)
    });
    assert!(lines.iter().all(|line| line.contains(" dir=/usr role=")), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.ends_with("role=second")).count(), 1, "{lines:?}");
    assert_eq!(server.get("/role").text(), "first");
    server.stop();
}

#[test]
fn settings_of_a_kind_that_cannot_work_end_the_start() {
    for (argument, piece) in
        [("dir=/no/such/directory", "/no/such/directory"), ("user=no-such-user", "no-such-user")]
    {
        let ended = output_cluster(&["helpers=1", argument]).run();
        assert_eq!(ended.status, Some(78), "{}", ended.stderr);
        assert!(
            ended.stderr.contains(piece) && ended.stderr.contains("helper"),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn a_kind_runs_as_its_own_user() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let server =
        output_cluster(&["hook=1", "helpers=1", "user=65534", "dir=/"]).other_workers(1).start();
    let line = wait::wait_until_some("a line", || read_lines(&server).first().cloned());
    assert!(line.ends_with("uid=65534 gid=65534 dir=/ role="), "{line}");
    let streams = server.get("/streams");
    assert_eq!(streams.status, 200);
    server.stop();
}
