//! The format of the log: text and JSON, and the process that each line names.

use std::fs::{self, OpenOptions};
use std::io::{PipeReader, Read, Write};
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::command::ProcessBuilder;
use crate::support::{Server, wait};

/// Parses a log of which every line has to be a JSON object.
#[track_caller]
fn parse_lines(log: &str) -> Vec<Value> {
    let parse = |line: &str| {
        serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("not JSON: {e}: {line:?}"))
    };
    log.lines().map(parse).collect()
}

/// Asserts that a line has what every JSON line has.
#[track_caller]
fn assert_complete(line: &Value) {
    for name in ["time", "level", "target", "process", "message"] {
        assert!(line[name].is_string(), "{name} in {line}");
    }
    let time = line["time"].as_str().expect("text");
    assert!(time.len() == 24 && time.ends_with('Z'), "{line}");
    assert!(line["pid"].is_u64(), "{line}");
    if line["process"] == "worker" {
        for name in ["worker", "slot", "generation"] {
            assert!(line[name].is_u64(), "{name} in {line}");
        }
        assert!(line["kind"].is_string(), "{line}");
    } else {
        assert_eq!(line["process"], "primary", "{line}");
    }
}

fn logging_program(format: &str) -> ProcessBuilder {
    ProcessBuilder::program("logging").env("TEST_LOG_FORMAT", format)
}

#[test]
fn every_line_of_a_json_log_is_an_object_that_names_its_process() {
    let builder = Server::builder().workers(2).args(["--faults", "--log-format", "json"]);
    let mut server = builder.env("RUST_BACKTRACE", "1").spawn();
    server = server.ready();
    assert_eq!(server.get("/fault/panic").status, 500);
    let pids = server.worker_pids();
    server.signal(Signal::SIGHUP);
    server.wait_new_workers(2, &pids);
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
    let lines = parse_lines(&server.log());
    lines.iter().for_each(assert_complete);
    let primary = u64::from(server.pid());
    for line in &lines {
        assert_eq!(line["process"] == "primary", line["pid"] == primary, "{line}");
    }
    let about_workers = lines.iter().filter(|line| line["worker_pid"].is_u64());
    assert!(about_workers.count() >= 6, "each worker became ready and exited");
    let panics: Vec<&Value> = lines
        .iter()
        .filter(|line| line["message"].as_str().is_some_and(|text| text.contains("panicked")))
        .collect();
    // One of the hook, with the backtrace, and one that names the request.
    assert_eq!(panics.len(), 2, "{panics:?}");
    assert!(panics.iter().all(|line| line["process"] == "worker" && line["level"] == "ERROR"));
    let text = panics[0]["message"].as_str().expect("text");
    assert!(text.lines().count() > 3 && text.contains("faults.rs"), "{text}");
}

#[test]
fn every_line_of_a_text_log_begins_with_the_process_that_wrote_it() {
    let mut server = Server::builder().workers(2).args(["--faults"]).start();
    assert_eq!(server.get("/fault/panic").status, 500);
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
    let log = server.log();
    for line in log.lines() {
        let (_, text) = line.split_at(24 + " INFO  ".len());
        let is_primary = text.starts_with("primary: ");
        assert!(is_primary || text.starts_with("worker="), "{line}");
        assert_eq!(text.contains("panicked"), !is_primary, "{line}");
        assert!(text.matches(" gen=").count() <= 1, "{line}");
    }
}

#[test]
fn lines_of_handlers_libraries_threads_and_pools_have_the_tag_of_their_worker_once() {
    for model in ["prefork", "single", "threads", "thread-per-core"] {
        for format in ["text", "json"] {
            check_application_lines(logging_program(format).model(model, 2), format == "json");
        }
    }
}

#[track_caller]
fn check_application_lines(builder: ProcessBuilder, is_json: bool) {
    let mut server = builder.start();
    let pids = server.worker_pids();
    let said = ["handler", "library", "hostile", "pool", "thread", "panic-thread"];
    for path in said {
        assert_eq!(server.get(&format!("/{path}")).status, 200);
    }
    let log = server.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("said-")).collect();
    assert_eq!(lines.len(), said.len(), "{log}");
    for line in &lines {
        if is_json {
            let line: Value = serde_json::from_str(line).expect("JSON");
            assert_complete(&line);
            let pid = line["pid"].as_u64().expect("a number");
            assert!(pids.iter().any(|own| u64::from(*own) == pid), "{line}");
            continue;
        }
        let tags = pids.iter().filter(|pid| line.contains(&format!(" gen=1 pid={pid} ")));
        assert_eq!((tags.count(), line.matches("worker=").count()), (1, 1), "{line}");
        assert!(line.chars().all(|c| !c.is_control()), "{line}");
    }
    if is_json {
        let line = parse_lines(lines[0]).remove(0);
        assert_eq!(
            (&line["fields"]["count"], &line["message"]),
            (&7.into(), &"said-handler".into())
        );
        let hostile = line["fields"]["user"].as_str().expect("text");
        assert!(hostile.starts_with("a\r\nb \"c\" \\d \u{1b}[31m"), "{hostile:?}");
        assert_eq!(parse_lines(lines[1])[0]["target"], "some_library");
    }
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
}

/// Starts a program whose standard error is a pipe, and returns its reader.
#[track_caller]
fn start_with_pipe(builder: ProcessBuilder) -> (Server, PipeReader) {
    let (reader, writer) = std::io::pipe().expect("pipe");
    let null = || OwnedFd::from(fs::File::open("/dev/null").expect("null"));
    let streams = [null(), null(), OwnedFd::from(writer)];
    (builder.standard_streams(streams.into_iter()).start(), reader)
}

#[test]
fn a_json_line_that_is_too_long_for_a_pipe_is_cut_in_its_message() {
    let (mut server, mut reader) = start_with_pipe(logging_program("json").workers(1));
    assert_eq!(server.get("/long").status, 200);
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
    let mut log = String::new();
    reader.read_to_string(&mut log).expect("UTF-8");
    assert!(log.lines().all(|line| line.len() < 4096));
    let lines = parse_lines(&log);
    lines.iter().for_each(assert_complete);
    let long = lines.iter().filter_map(|line| line["message"].as_str());
    let long = long.filter(|text| text.starts_with("said-long")).collect::<Vec<_>>();
    assert!(long.len() == 1 && long[0].len() > 1000 && long[0].ends_with(" bytes)"), "{long:?}");
}

#[test]
fn lines_that_a_json_log_has_lost_are_reported_as_json() {
    let (mut reader, mut writer) = std::io::pipe().expect("pipe");
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).expect("size");
    writer.write_all(&[b' '; 4096]).expect("fill");
    let null = || OwnedFd::from(fs::File::open("/dev/null").expect("null"));
    let builder = Server::builder().workers(1).args(["--log-format", "json"]);
    let socket = format!("unix:{}", builder.dir().join("socket").display());
    let streams = [null(), null(), OwnedFd::from(writer)];
    let mut server = builder.bind([socket]).standard_streams(streams.into_iter()).start();
    reader.read_exact(&mut [0; 4096]).expect("what fills it");
    let pids = server.worker_pids();
    server.signal(Signal::SIGHUP);
    server.wait_new_workers(1, &pids);
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
    let mut log = String::new();
    reader.read_to_string(&mut log).expect("UTF-8");
    let lines = parse_lines(&log);
    lines.iter().for_each(assert_complete);
    assert!(lines.iter().any(|line| line["level"] == "WARN"), "{log}");
}

#[test]
fn the_error_that_ends_a_start_is_json_in_a_json_log() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address").to_string();
    let args = ["--log-format", "json"];
    let ended = Server::builder().workers(1).bind([address.as_str()]).args(args).run();
    assert_eq!(ended.status, Some(69), "{}", ended.stderr);
    let lines = parse_lines(&ended.stderr);
    lines.iter().for_each(assert_complete);
    let last = lines.last().expect("a line");
    assert!(
        last["level"] == "ERROR" && last["message"].as_str().is_some_and(|m| m.contains(&address))
    );
}

#[test]
fn a_reload_keeps_the_format_of_the_log_and_warns() {
    let config =
        |format: &str| format!("bind = ['127.0.0.1:0']\nworkers = 1\nlog-format = '{format}'\n");
    let builder = Server::builder().config(1, &config("json"));
    let path = builder.dir().join("prefork.toml");
    let mut server = builder.start();
    let mut file = OpenOptions::new().write(true).truncate(true).open(path).expect("file");
    file.write_all(config("text").as_bytes()).expect("write");
    server.run_verb(&["reload"]);
    wait::wait_until("a warning", || {
        let lines = parse_lines(&server.log());
        lines
            .iter()
            .any(|l| l["level"] == "WARN" && l["message"].to_string().contains("log-format"))
    });
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
    parse_lines(&server.log());
}

#[test]
fn an_unknown_log_format_is_an_error() {
    let ended = Server::builder().args(["--log-format", "xml"]).run();
    assert_eq!(ended.status, Some(78), "{}", ended.stderr);
    assert!(ended.stderr.contains("text") && ended.stderr.contains("json"), "{}", ended.stderr);
}
