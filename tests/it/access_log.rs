//! The access log: whole lines of every request, in each format and model, whatever happens to files and workers.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use super::concurrency_models::ALL_MODELS;
use crate::support::command::ProcessBuilder;
use crate::support::http2::{self, HEADERS};
use crate::support::load::Load;
use crate::support::websocket;
use crate::support::{Server, process, wait};

/// Counters of the access log and of the requests, from the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    requests: u64,
    written: u64,
    dropped: u64,
    skipped: u64,
}

fn counts(server: &Server) -> Counts {
    let status = server.status();
    // Counts of 0 are left out.
    let count = |section: &str, key: &str| status[section][key].as_u64().unwrap_or(0);
    Counts {
        requests: count("totals", "requests"),
        written: count("access_log", "written"),
        dropped: count("access_log", "dropped"),
        skipped: count("access_log", "skipped"),
    }
}

/// Waits until each request has a line or a count, and returns the counts.
#[track_caller]
fn wait_complete(server: &Server) -> Counts {
    wait::wait_until_some("a line or a count for each request", || {
        let counts = counts(server);
        let Counts { requests, written, dropped, skipped } = counts;
        (requests > 0 && written + dropped + skipped == requests).then_some(counts)
    })
}

/// Adds an access log at `name` in the directory of the server.
fn with_log(builder: ProcessBuilder, name: &str, args: &[&str]) -> (ProcessBuilder, PathBuf) {
    let path = builder.dir().join(name);
    let log = ["--access-log".into(), path.as_os_str().to_os_string()];
    (builder.args(log).args(args.iter().copied()), path)
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'), "a torn line in {}", path.display());
    text.lines().map(str::to_string).collect()
}

/// Checks that a line has all fields of the combined format, and returns its request line and status.
#[track_caller]
fn parse_combined(line: &str) -> (&str, u16) {
    let parse = || {
        let (addr, rest) = line.split_once(" - ")?;
        let (user, rest) = rest.split_once(" [")?;
        let (time, rest) = rest.split_once("] \"")?;
        let (request, rest) = rest.split_once("\" ")?;
        let [status, bytes, referer, agent] = rest.splitn(4, ' ').collect::<Vec<_>>()[..] else {
            return None;
        };
        bytes.parse::<u64>().ok()?;
        let is_quoted = |text: &str| text.len() > 2 && text.matches('"').count() == 2;
        let is_whole = !addr.is_empty() && user == "-" && time.len() == 26 && is_quoted(referer);
        (is_whole && is_quoted(agent)).then_some((request, status.parse().ok()?))
    };
    parse().unwrap_or_else(|| panic!("not a combined line: {line:?}"))
}

#[track_caller]
fn parse_json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
}

/// Checks that `paths` hold as many lines as were written, each whole.
#[track_caller]
fn assert_lines(paths: &[PathBuf], written: u64) {
    let all: Vec<String> = paths.iter().flat_map(|path| lines(path)).collect();
    all.iter().for_each(|line| {
        parse_combined(line);
    });
    assert_eq!(all.len() as u64, written);
}

#[test]
fn eight_workers_write_a_whole_line_for_each_request() {
    let (builder, path) = with_log(Server::builder().workers(8), "access.log", &[]);
    let server = builder.start();
    let load = Load::keep_alive(server.address(), 16).start();
    load.wait_answered(4000);
    let result = load.stop();
    assert_eq!(result.failures(), 0, "{result:?}");
    let counts = wait_complete(&server);
    assert_eq!((counts.requests, counts.dropped, counts.skipped), (result.ok, 0, 0));
    assert_lines(&[path], counts.written);
    server.stop();
}

#[test]
fn every_model_logs_every_request_and_writes_its_last_lines_at_a_stop() {
    for model in ALL_MODELS {
        println!("model {model}");
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("access.log");
        let builder = Server::builder().model(model, 2).args(["--access-log-format", "json"]);
        let server = builder.args(["--access-log".as_ref(), path.as_os_str()]).start();
        let load = Load::new_connections(server.address(), 4).with_posts().start();
        load.wait_answered(200);
        let ok = load.stop().ok;
        assert_eq!(server.get("/bytes/7").status, 200);
        server.stop();
        let parsed: Vec<Value> = lines(&path).iter().map(|line| parse_json(line)).collect();
        assert_eq!(parsed.len() as u64, ok + 1, "{model}");
        let last = parsed.iter().find(|line| line["uri"] == "/bytes/7").expect("a line");
        assert_eq!((&last["bytes"], &last["status"]), (&7.into(), &200.into()));
        assert_eq!(last["remote_addr"], "127.0.0.1");
        assert!(last["duration_us"].as_u64().is_some() && last["pid"].as_u64().is_some());
    }
}

#[test]
fn rotation_under_load_loses_no_line_in_any_model() {
    for model in ALL_MODELS {
        println!("model {model}");
        let (builder, path) = with_log(Server::builder().model(model, 2), "access.log", &[]);
        let server = builder.start();
        let load = Load::keep_alive(server.address(), 8).start();
        let mut files = vec![path.clone()];
        for turn in 0..3 {
            load.wait_answered(300);
            let old = path.with_extension(format!("log.{turn}"));
            fs::rename(&path, &old).expect("rename");
            files.push(old);
            server.signal(Signal::SIGUSR1);
            wait::wait_until("lines in the new file", || {
                fs::metadata(&path).is_ok_and(|meta| meta.len() > 0)
            });
        }
        assert_eq!(load.stop().failures(), 0);
        let counts = wait_complete(&server);
        assert_eq!((counts.dropped, counts.skipped), (0, 0));
        assert_lines(&files, counts.written);
        server.stop();
    }
}

#[test]
fn kills_reloads_and_upgrades_lose_no_count() {
    let builder = Server::builder().workers(2).with_copied_program();
    let (builder, path) = with_log(builder, "access.log", &[]);
    let server = builder.start().allow_errors(&["died"]);
    let load = Load::keep_alive(server.address(), 8).start();
    load.wait_answered(200);
    for generation in 2..=4 {
        let old = server.worker_pids();
        match generation {
            2 => server.signal(Signal::SIGHUP),
            _ => server.signal(Signal::SIGUSR2),
        }
        server.wait_generation(generation);
        let new = server.wait_new_workers(2, &old);
        load.wait_answered(100);
        process::send_signal(new[0], Signal::SIGKILL);
        server.wait_new_workers(2, &new[..1]);
        load.wait_answered(100);
    }
    load.stop();
    let counts = wait_complete(&server);
    // A worker that is killed has handed its lines over 100 ms before, at the latest.
    assert!(counts.dropped < counts.requests / 2, "{counts:?}");
    let all = lines(&path);
    all.iter().for_each(|line| {
        parse_combined(line);
    });
    // A worker can be killed after it has written lines and before it has counted them.
    let uncounted = all.len() as u64 - counts.written;
    assert!(uncounted <= counts.dropped, "{counts:?} {}", all.len());
    // The primary still knows the file, and the workers of all images know the command.
    let old = path.with_extension("old");
    fs::rename(&path, &old).expect("rename");
    server.signal(Signal::SIGUSR1);
    wait::wait_until("the new file", || path.exists());
    assert_eq!(server.get("/").status, 200);
    wait::wait_until("a line in the new file", || !lines(&path).is_empty());
    server.stop();
}

#[test]
fn a_fifo_without_a_reader_holds_up_no_request_and_gets_whole_lines() {
    let builder = Server::builder().workers(2);
    let path = builder.dir().join("fifo");
    mkfifo(&path, Mode::S_IRWXU).expect("FIFO");
    let (builder, path) = with_log(builder, "fifo", &[]);
    let server = builder.start();
    let target = format!("/?{}", "q".repeat(6000));
    let mut client = server.connect();
    for _ in 0..100 {
        assert_eq!(client.get(&target).expect("answer").status, 200);
    }
    // Far more than a pipe holds; the rest waits in the worker.
    let mut fifo = fs::File::open(&path).expect("FIFO");
    let mut text = String::new();
    let mut buffer = [0; 8192];
    while text.lines().count() < 100 || !text.ends_with('\n') {
        let length = fifo.read(&mut buffer).expect("read");
        text.push_str(std::str::from_utf8(&buffer[..length]).expect("ASCII"));
    }
    for line in text.lines() {
        let (request, status) = parse_combined(line);
        assert!(line.len() < 4096 && status == 200 && request.contains("qq..."), "{line}");
    }
    assert_eq!(wait_complete(&server).dropped, 0);
    server.stop();
}

#[test]
fn a_full_disk_costs_lines_and_not_requests() {
    let builder = Server::builder().workers(2).args(["--access-log", "/dev/full"]);
    let server = builder.start();
    let load = Load::keep_alive(server.address(), 4).start();
    load.wait_answered(100);
    let result = load.stop();
    assert_eq!(result.failures(), 0);
    let counts = wait_complete(&server);
    assert_eq!((counts.dropped, counts.written), (result.ok, 0));
    let line = server.wait_log(&["WARN", "missing in the access log"]);
    assert!(line.contains("No space left"), "{line}");
    server.stop();
}

#[test]
fn a_reload_switches_to_another_file_or_off() {
    let builder = Server::builder();
    let logs = tempfile::tempdir().expect("directory");
    let dir = logs.path();
    let config = |rest: &str| format!("bind = \"127.0.0.1:0\"\nworkers = 1\n{rest}");
    let access_log = |name: &str| config(&format!("access-log = {:?}\n", dir.join(name)));
    let file = builder.dir().join("prefork.toml");
    let server = builder.config(1, &access_log("first.log")).start().allow_errors(&["reload"]);
    server.get("/first");
    wait::wait_until("a line", || lines(&dir.join("first.log")).len() == 1);
    let reload = |text: &str| {
        fs::write(&file, text).expect("write");
        server.run_verb(&["reload"]);
    };
    reload(&format!("{}access-log-format = \"$status\"\n", access_log("second.log")));
    server.get("/second");
    wait::wait_until("a line", || lines(&dir.join("second.log")) == ["404"]);
    fs::write(&file, access_log("no/such/dir/log")).expect("write");
    assert_ne!(server.try_verb(&["reload"]).status, Some(0), "the old file stays in use");
    server.get("/third");
    wait::wait_until("a line", || lines(&dir.join("second.log")).len() == 2);
    let old = server.worker_pids();
    reload(&config(""));
    server.wait_new_workers(1, &old);
    server.get("/fourth");
    server.stop();
    assert_eq!(lines(&dir.join("first.log")).len(), 1);
    assert_eq!(lines(&dir.join("second.log")).len(), 2);
}

#[test]
fn refused_aborted_and_failed_requests_have_lines() {
    let args = ["--faults", "--access-log-format", "json"];
    let (builder, path) = with_log(Server::builder().workers(1), "access.log", &args);
    let server = builder.start().allow_errors(&["panicked"]);
    assert_eq!(server.get("/fault/panic").status, 500);
    let refused = server.connect().send_and_read("GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(refused.expect("an answer").status, 400);
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    assert_eq!(server.connect().send_and_read(large).expect("an answer").status, 431);
    drop(server.start_request("/sleep/60000"));
    let head = "HEAD /bytes/100 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let mut client = server.connect();
    client.send(head).expect("send");
    client.read_to_end().expect("a head");
    let counts = wait_complete(&server);
    assert_eq!((counts.dropped, counts.skipped), (0, 0));
    let lines: Vec<Value> = lines(&path).iter().map(|line| parse_json(line)).collect();
    let find = |key: &str, value: Value| {
        let found = lines.iter().find(|line| line[key] == value);
        found.unwrap_or_else(|| panic!("no {key} = {value}: {lines:?}")).clone()
    };
    assert_eq!(find("status", 500.into())["uri"], "/fault/panic");
    assert_eq!(find("status", 400.into())["method"], Value::Null);
    find("status", 431.into());
    let aborted = find("uri", "/sleep/60000".into());
    assert_eq!((&aborted["status"], &aborted["completion"]), (&499.into(), &Value::Null));
    let head = find("method", "HEAD".into());
    assert_eq!((&head["bytes"], &head["completion"]), (&0.into(), &"OK".into()));
    server.stop();
}

#[test]
fn http2_streams_and_websockets_have_lines() {
    let (builder, path) = with_log(Server::builder().workers(1), "access.log", &[]);
    let server = builder.start();
    let mut client = server.connect();
    http2::greet(&mut client);
    for stream in [1, 3, 5] {
        client.send(http2::get(stream, "/")).expect("send");
        http2::read_until(&mut client, HEADERS, stream);
    }
    assert_eq!(wait_complete(&server).written, 3);
    for line in lines(&path) {
        assert_eq!(parse_combined(&line), ("GET / HTTP/2.0", 200));
    }
    server.stop();
    let builder = ProcessBuilder::program("pass-websockets");
    let path = builder.dir().join("access.log");
    let server = builder.args([format!("access-log={}", path.display())]).start();
    let mut client = server.connect();
    client.send(websocket::handshake("/room")).expect("send");
    websocket::accept(&mut client);
    drop(client);
    wait::wait_until("a line at the end of the WebSocket", || {
        lines(&path).iter().any(|line| parse_combined(line) == ("GET /room HTTP/1.1", 101))
    });
    server.stop();
}

#[test]
fn samples_and_skipped_paths_are_counted() {
    let args = ["--access-log-sample", "0", "--access-log-skip", "/healthz", "--faults"];
    let (builder, path) = with_log(Server::builder().workers(1), "access.log", &args);
    let server = builder.args(["--max-requests", "40"]).start().allow_errors(&["panicked"]);
    let mut client = server.connect();
    let pid = client.get("/healthz").expect("answer");
    for _ in 0..100 {
        assert_eq!(client.get("/healthz").expect("answer").status, pid.status);
    }
    assert_eq!(server.get("/").status, 200);
    assert_eq!(server.get("/fault/panic").status, 500);
    let counts = wait_complete(&server);
    assert_eq!((counts.written, counts.skipped), (1, 102));
    assert_eq!(parse_combined(&lines(&path)[0]), ("GET /fault/panic HTTP/1.1", 500));
    assert_eq!(server.status()["primary"]["restarts"], 0);
    server.stop();
    let args = ["--access-log-slower-than", "50ms", "--access-log-format", "$uri $duration_ms"];
    let (builder, path) = with_log(Server::builder().workers(1), "access.log", &args);
    let server = builder.start();
    server.get("/");
    server.get("/sleep/60");
    assert_eq!(wait_complete(&server).skipped, 1);
    assert!(lines(&path)[0].starts_with("/sleep/60 "));
    server.stop();
}

#[test]
fn unprivileged_workers_write_to_the_file_of_the_primary() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (builder, path) = with_log(Server::builder().workers(2), "access.log", &[]);
    let server = builder.args(["--user", "65534", "--group", "65534"]).start();
    for turn in 0..2 {
        server.get("/");
        wait::wait_until("a line", || lines(&path).len() == 1);
        fs::rename(&path, path.with_extension(turn.to_string())).expect("rename");
        server.signal(Signal::SIGUSR1);
        wait::wait_until("the new file", || path.exists());
    }
    assert_eq!(wait_complete(&server).dropped, 0);
    server.stop();
}

#[test]
fn unusable_settings_are_errors_at_the_start() {
    let dir = tempfile::tempdir().expect("directory");
    let missing = dir.path().join("no/log");
    for (args, code, words) in [
        (vec!["--access-log-format", "$statu"], 78, "$status"),
        (vec!["--access-log-format", "$http_authorization"], 78, "$remote_user"),
        (vec!["--access-log-sample", "2"], 78, "0 to 1"),
        (vec!["--access-log-skip", "healthz"], 78, "is no path"),
        (vec!["--access-log", missing.to_str().expect("UTF-8")], 1, "does not exist"),
    ] {
        let output = Server::builder().args(args.iter().copied()).run();
        assert!(output.stderr.contains(words), "{args:?}: {}", output.stderr);
        assert!(output.status == Some(code) || code == 1, "{args:?}: {:?}", output.status);
    }
}
