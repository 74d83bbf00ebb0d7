//! The control socket: its verbs, its file, and clients that break its protocol.

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::control::{frame, read_frame};
use crate::support::wait::DEADLINE;
use crate::support::{Failure, Server, log, process, wait};

#[track_caller]
fn start_server() -> Server {
    Server::builder().start()
}

#[test]
fn status_shows_every_worker() {
    let server = Server::builder().workers(3).start();
    assert_eq!(server.get("/").status, 200);
    let status = server.status();
    let pids = status["workers"].as_array().expect("list").iter();
    let mut pids: Vec<u64> = pids.map(|w| w["pid"].as_u64().expect("pid")).collect();
    pids.sort_unstable();
    let children: Vec<u64> = server.worker_pids().into_iter().map(u64::from).collect();
    assert_eq!(pids, children);
    assert_eq!(status["primary"]["pid"], server.pid());
    assert_eq!(status["primary"]["phase"], "running");
    assert_eq!(status["listeners"][0], format!("http://{}", server.address()));
    assert_eq!(status["totals"]["requests"], 1);
    let printed: serde_json::Value =
        serde_json::from_str(&server.run_verb(&["status", "--json"])).expect("JSON");
    assert_eq!(printed["primary"]["pid"], server.pid());
    let table = server.run_verb(&["status"]);
    let pid = format!("pid={}", server.pid());
    assert!(table.contains(&pid) && table.contains("running"), "{table}");
    assert!(table.contains("3 of 3"), "{table}");
    for pid in children {
        let row = table.lines().find(|line| line.contains(&format!(" {pid} ")));
        assert!(row.is_some_and(|row| row.contains("serving")), "{pid}\n{table}");
    }
    server.stop();
}

#[test]
fn status_shows_requests_in_flight() {
    let server = start_server();
    let mut client = server.connect();
    client.send("GET /sleep/600000?a=b HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    let row = wait::wait_until_some("the request in the table", || {
        let table = server.run_verb(&["status"]);
        table.lines().find(|line| line.contains("GET /sleep/600000")).map(str::to_string)
    });
    assert!(row.contains("serving"), "{row}");
    server.signal(Signal::SIGQUIT);
    server.wait_clean_exit(0);
}

#[test]
fn the_control_socket_has_mode_0600_and_is_removed_at_the_end() {
    let builder = Server::builder().script("umask 0; exec \"$0\" \"$@\"");
    let server = builder.start();
    let path = server.control();
    let meta = std::fs::metadata(&path).expect("socket");
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
    let dir = server.dir().to_path_buf();
    server.signal(Signal::SIGTERM);
    wait::wait_until("the end of the socket", || !path.exists());
    let left = std::fs::read_dir(&dir).expect("dir").flatten().map(|entry| entry.file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["log"]);
    server.wait_clean_exit(0);
}

#[test]
fn workers_do_not_inherit_control_connections() {
    let server = start_server().allow_errors(&["SIGKILL"]);
    // Clients that are connected when a worker is forked.
    let clients: Vec<_> =
        (0..3).map(|_| UnixStream::connect(server.control()).expect("connect")).collect();
    server.status();
    process::send_signal(server.worker_pids()[0], Signal::SIGKILL);
    server.wait_replaced(1);
    for pid in server.worker_pids() {
        let own = process::descriptors(pid);
        let sockets = own.iter().filter(|(_, target)| target.starts_with("socket:")).count();
        // The listener, and the two channels to the primary.
        assert_eq!(sockets, 3, "{own:?}");
    }
    drop(clients);
    server.stop();
}

#[test]
fn status_answers_beside_a_frozen_worker_and_many_silent_clients() {
    let server = start_server();
    let frozen = server.worker_pids()[0];
    process::send_signal(frozen, Signal::SIGSTOP);
    let silent: Vec<_> =
        (0..200).map(|_| UnixStream::connect(server.control()).expect("connect")).collect();
    for _ in 0..5 {
        let status = server.run_verb(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        assert_eq!(status["workers"].as_array().map(Vec::len), Some(2));
    }
    drop(silent);
    process::send_signal(frozen, Signal::SIGCONT);
    server.stop();
}

#[test]
fn a_control_path_in_use_is_an_error_that_names_the_holder() {
    let server = start_server();
    let path = server.control().display().to_string();
    let second = Server::builder().args(["--control", &path]).run();
    assert_eq!(second.status, Some(69), "{}", second.stderr);
    assert!(second.stderr.contains(&format!("pid {}", server.pid())), "{}", second.stderr);
    assert_eq!(server.status()["primary"]["pid"], server.pid());
    server.stop();
}

#[test]
fn a_stale_control_socket_is_replaced() {
    let mut server = start_server();
    let pids = server.worker_pids();
    server.kill_primary();
    assert!(server.control().exists());
    wait::wait_until("the end of the orphans", || pids.iter().all(|pid| process::has_ended(*pid)));
    let again = Server::builder().control_at(server.control()).start();
    assert_eq!(server.status()["primary"]["pid"], again.pid());
    again.stop();
}

#[test]
fn a_regular_file_at_the_control_path_is_kept() {
    let builder = Server::builder();
    let (file, link) = (builder.dir().join("file"), builder.dir().join("link"));
    std::fs::write(&file, "data").expect("write");
    std::os::unix::fs::symlink(&file, &link).expect("link");
    for path in [&file, &link] {
        let ended = Server::builder().args(["--control".into(), path.clone()]).run();
        assert_eq!(ended.status, Some(69), "{}", ended.stderr);
        assert!(ended.stderr.contains(&path.display().to_string()), "{}", ended.stderr);
    }
    assert_eq!(std::fs::read_to_string(&file).expect("kept"), "data");
    assert!(link.is_symlink());
}

#[test]
fn stop_returns_when_the_port_is_free() {
    let server = start_server();
    let mut client = server.connect();
    client.send("GET /sleep/500 HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    server.wait_in_flight("/sleep/500");
    server.run_verb(&["stop"]);
    assert_eq!(server.try_get("/").err(), Some(Failure::Refused));
    let address = server.address().to_string();
    assert_eq!(client.read().expect("it was finished").status, 200);
    server.wait_clean_exit(0);
    Server::builder().bind([address]).start().stop();
}

#[test]
fn stop_now_does_not_wait_for_requests() {
    let server = start_server();
    let mut client = server.connect();
    client.send("GET /sleep/600000 HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    server.wait_in_flight("/sleep/600000");
    server.run_verb(&["stop", "--now"]);
    assert!(client.read().is_err());
    server.wait_clean_exit(0);
}

#[test]
fn events_contain_the_lines_of_the_log() {
    let server = start_server();
    server.run_verb(&["reload"]);
    let events = server.run_verb(&["events", "--json"]);
    let log = server.log();
    let mut sequence = 0;
    for line in events.lines() {
        let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(log.contains(event["text"].as_str().expect("text")), "{event}");
        sequence += 1;
        assert_eq!(event["sequence"], sequence);
    }
    // The start, the reload with the user who requested it, and the workers of both generations.
    let with = |words: &[&str]| log::lines_with(&events, words).count();
    assert!(with(&[&format!("pid={}", server.pid())]) > 0 && with(&["uid"]) > 0, "{events}");
    assert!(with(&["worker=1"]) > 0 && with(&["worker=4", "gen=2"]) > 0, "{events}");
    let text = server.run_verb(&["events"]);
    assert_eq!(text.lines().count(), sequence, "a line for each: {text}");
    server.stop();
}

#[test]
fn events_follow_ends_with_the_primary() {
    let server = start_server();
    std::thread::scope(|scope| {
        let following = scope.spawn(|| server.try_verb(&["events", "--follow"]));
        server.run_verb(&["reload"]);
        server.run_verb(&["stop"]);
        let ended = following.join().expect("the verb");
        assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""));
        let log = server.log();
        let last =
            log.lines().last().and_then(|line| line.split_once(" primary: ")).expect("a log").1;
        assert!(ended.stdout.trim_end().ends_with(last.trim_start()), "{last}: {}", ended.stdout);
        assert_eq!(ended.stdout.lines().count(), log.lines().count(), "{}", ended.stdout);
    });
    server.wait_clean_exit(0);
}

#[test]
fn a_missing_primary_has_another_exit_status_than_a_refusal() {
    let builder = ProcessBuilder::verb("status");
    let path = builder.dir().join("missing").display().to_string();
    for verb in ["status", "reload", "stop", "upgrade", "events"] {
        let ended = ProcessBuilder::verb(verb).args(["--control", &path]).run();
        assert_eq!((ended.status, ended.stdout.as_str()), (Some(69), ""), "{}", ended.stderr);
        assert!(ended.stderr.contains(&path), "{}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    }
}

#[test]
fn verbs_fail_fast_if_the_primary_is_stopped() {
    let server = start_server().allow_errors(&["upgrade"]);
    process::send_signal(server.pid(), Signal::SIGSTOP);
    let words: [&[&str]; 8] = [
        &["status"],
        &["reload"],
        &["reload", "--no-wait"],
        &["scale", "3"],
        &["upgrade"],
        &["events"],
        &["events", "--follow"],
        &["stop"],
    ];
    std::thread::scope(|scope| {
        let asked: Vec<_> = words
            .iter()
            .map(|words| scope.spawn(|| (*words, server.assert_verb_fails(words, 69))))
            .collect();
        for verb in asked {
            let (words, why) = verb.join().expect("it ends");
            let pid = server.pid();
            assert!(log::contains_word(&why, &pid.to_string()), "{words:?}: {why}");
            assert!(why.contains(&format!("kill -CONT {pid}")), "{words:?}: {why}");
        }
    });
    // The primary carries out the requests when it resumes, among them the stop.
    process::send_signal(server.pid(), Signal::SIGCONT);
    server.wait_clean_exit(0);
}

#[test]
fn errors_tell_what_is_at_the_control_path() {
    let dir = tempfile::tempdir().expect("dir");
    let (file, stale) = (dir.path().join("file"), dir.path().join("stale"));
    std::fs::write(&file, "data").expect("write");
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("bind"));
    let reasons = [file, stale, dir.path().join("none"), dir.path().into()].map(|path| {
        let ended = ProcessBuilder::verb("status").args(["--control".into(), path.clone()]).run();
        let path = path.display().to_string();
        assert_eq!(ended.status, Some(69), "{}", ended.stderr);
        assert!(ended.stderr.contains(&path), "{path}: {}", ended.stderr);
        ended.stderr.replace(&path, "")
    });
    assert_eq!(reasons[0], reasons[3], "neither is a socket");
    let different: std::collections::BTreeSet<&String> = reasons.iter().collect();
    assert_eq!(different.len(), 3, "{different:?}");
}

#[test]
fn a_verb_waits_for_a_silent_primary_until_its_timeout() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("s");
    let _listener = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    let ended = ProcessBuilder::verb("reload")
        .args(["--control".into(), path.into_os_string(), "--timeout".into(), "200ms".into()])
        .run();
    assert_eq!(ended.status, Some(69), "{}", ended.stderr);
    assert!(ended.stderr.contains("--timeout"), "{}", ended.stderr);
}

/// Sends these bytes, shuts down the sending side, and returns everything the server sends.
#[track_caller]
fn send_raw(server: &Server, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(server.control()).expect("connect");
    stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
    stream.write_all(bytes).expect("send");
    stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
    let mut answer = Vec::new();
    // The server may close before it has read everything, which resets the connection.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn invalid_control_requests_are_refused_with_a_reason() {
    let server = Server::builder().start();
    for (bytes, why) in [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), "65536"),
        (u32::MAX.to_be_bytes().to_vec(), "4294967295"),
        (frame("not json"), "JSON"),
        (frame("{}"), "verb"),
        (frame(r#"{"verb":"explode"}"#), "explode"),
        (frame(r#"{"verb":"status","more":1}"#), "more"),
        (frame(r#"{"verb":"scale","to":0}"#), "0"),
        (frame(""), "JSON"),
    ] {
        let answer = send_raw(&server, &bytes);
        let json = answer.find('{').map_or("", |at| &answer[at..]);
        let answer: serde_json::Value = serde_json::from_str(json).expect("JSON");
        let is_named = answer["error"].as_str().is_some_and(|text| text.contains(why));
        assert!(answer["ok"] == false && is_named, "{why}: {answer}");
        server.status();
    }
    assert_eq!(server.worker_pids().len(), 2);
    server.stop();
}

#[test]
fn an_incomplete_control_request_is_ignored() {
    let server = Server::builder().start();
    let whole = frame(r#"{"verb":"stop"}"#);
    for length in [0, 1, 4, whole.len() - 1] {
        assert_eq!(send_raw(&server, &whole[..length]), "", "{length}");
    }
    let silent: Vec<_> = (0..40)
        .map(|n| {
            let mut stream = UnixStream::connect(server.control()).expect("connect");
            stream.write_all(&whole[..n % whole.len()]).expect("send");
            stream
        })
        .collect();
    assert_eq!(server.status()["primary"]["phase"], "running");
    drop(silent);
    assert_eq!(server.status()["primary"]["phase"], "running");
    server.stop();
}

#[test]
fn several_control_requests_on_one_connection_are_answered_in_order() {
    let server = Server::builder().start();
    let requests = [r#"{"verb":"explode"}"#, r#"{"verb":"status"}"#, r#"{"verb":"scale","to":2}"#];
    let mut stream = UnixStream::connect(server.control()).expect("connect");
    stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
    stream.write_all(&requests.map(frame).concat()).expect("send");
    let replies = [(); 3].map(|()| read_frame(&mut stream).expect("a reply"));
    assert_eq!(replies.each_ref().map(|reply| &reply["ok"]), [false, true, true], "{replies:?}");
    assert!(replies[1]["status"].is_object() && !replies[2]["status"].is_object(), "{replies:?}");
    server.stop();
}
