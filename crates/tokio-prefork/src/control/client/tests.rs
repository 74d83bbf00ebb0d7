use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Instant;

use log::Level;

use super::*;
use crate::control::{ControlServer, EventHistory, ReceivedRequest};
use crate::error::{ErrorKind, exit};
use crate::status::tests::status_of_booting_workers;

/// Starts a primary in a thread: it has three workers, refuses reloads and ends after a stop request.
fn start_test_primary(path: PathBuf) -> JoinHandle<()> {
    let mut server = ControlServer::bind(&path).expect("bind");
    std::thread::spawn(move || {
        let mut history = EventHistory::default();
        history.append_event(Level::Info, "started".to_string());
        let mut stopping = false;
        while !stopping {
            server.send_events_and_close_idle(&history, Instant::now());
            let ready = server.poll_ready(Duration::from_secs(10));
            let now = Instant::now();
            for ReceivedRequest { request_id, request, .. } in server.read_requests(&ready, now) {
                let reply = match request {
                    Request::Status {} => {
                        Reply::Status(Box::new(status_of_booting_workers(3, None)))
                    }
                    Request::Events { follow, since } => {
                        server.stream_events(request_id, follow, since, &history, now);
                        continue;
                    }
                    Request::Reload { .. } => Reply::Refused("worker 4 cannot boot".to_string()),
                    other => Reply::Done(format!("{other:?}")),
                };
                stopping = matches!(&reply, Reply::Done(what) if what.starts_with("Stop"));
                server.reply(request_id, &reply, now);
                history.append_event(Level::Info, "answered".to_string());
            }
        }
        server.send_events_and_close_idle(&history, Instant::now());
    })
}

#[test]
fn one_connection_serves_all_requests() {
    let dir = private_dir();
    let path = dir.path().join("s");
    let thread = start_test_primary(path.clone());
    let mut client = ControlClient::connect(&path).expect("connect");
    let status = client.status().expect("status");
    assert_eq!((status.workers.len(), status.primary.pid), (3, std::process::id()));
    let error = client.reload().expect_err("refused");
    assert_eq!(
        (error.to_string(), error.exit_status()),
        ("worker 4 cannot boot".into(), exit::FAILURE)
    );
    assert_eq!(client.scale_to(4).expect("scale"), "Scale(Rescale { kind: None, change: To(4) })");
    assert_eq!(
        client.scale_by(-1).expect("scale"),
        "Scale(Rescale { kind: None, change: By(-1) })"
    );
    assert_eq!(client.scale_to(0).expect_err("range").exit_status(), exit::FAILURE);
    assert_eq!(client.upgrade().expect("upgrade"), "Upgrade { wait: true }");

    let kept = ControlClient::connect(&path).and_then(|c| c.events(false, 0)).expect("events");
    let kept: Vec<String> = kept.map(|event| event.expect("event").text).collect();
    assert_eq!((kept.len(), kept[0].as_str()), (6, "started"));
    let mut follow = ControlClient::connect(&path).and_then(|c| c.events(true, 5)).expect("events");
    assert_eq!(follow.next().map(|event| event.expect("event").sequence), Some(6));

    assert_eq!(client.stop(true).expect("stop"), "Stop { now: true }");
    client.wait_for_exit().expect("the end");
    thread.join().expect("primary");
    let last = follow.map(|event| event.expect("event").sequence).last();
    assert_eq!(last, Some(7));
    assert!(!path.exists());
}

#[test]
fn the_error_names_a_missing_control_socket() {
    let dir = private_dir();
    let path = dir.path().join("s");
    let error = ControlClient::connect(&path).expect_err("nobody");
    assert_eq!(error.exit_status(), exit::UNAVAILABLE);
    assert_eq!(error.kind(), ErrorKind::ControlUnreachable);
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
}

#[test]
fn a_connection_closed_before_the_reply_is_an_error() {
    let (stream, peer) = UnixStream::pair().expect("pair");
    let mut client = ControlClient::new(stream, Path::new("p"));
    drop(peer);
    let text = client.status().expect_err("end").to_string();
    assert_eq!(text, "the primary at p closed the connection before it answered");
}

/// Starts a primary that never answers its first connection early, and answers probes only if `answers_probes`.
fn start_probed_primary(path: &Path, answers_probes: bool) -> JoinHandle<()> {
    let listener = std::os::unix::net::UnixListener::bind(path).expect("bind");
    std::thread::spawn(move || {
        let (mut first, _) = listener.accept().expect("the reload");
        let mut probes = Vec::new();
        // The thread ends when the first connection is closed or answered.
        let mut probe_count = 0;
        loop {
            let watched =
                [WatchedFd::readable(first.as_fd()), WatchedFd::readable(listener.as_fd())];
            let ready =
                prefork_os::poll::poll_fds(&watched, Some(Duration::from_secs(30))).expect("poll");
            if ready[1] {
                probes.push(listener.accept().expect("a probe").0);
                probe_count += 1;
                if answers_probes {
                    probes.clear();
                }
                if answers_probes && probe_count == 3 {
                    let done = Reply::Done("reloaded".to_string());
                    first.write_all(&frame::encode_frame(&done.encode())).expect("answer");
                    return;
                }
            }
            if ready[0] && first.read(&mut [0; 256]).is_ok_and(|n| n == 0) {
                return;
            }
        }
    })
}

/// Connects a client that gives up soon: the timeout is many intervals.
fn connect_with_short_probes(path: &Path) -> ControlClient {
    let probe_interval =
        ProbeInterval { interval: Duration::from_millis(20), timeout: Duration::from_millis(600) };
    ControlClient { probe_interval, ..ControlClient::connect(path).expect("connect") }
}

#[test]
fn a_reload_fails_if_the_primary_answers_no_probe() {
    let dir = private_dir();
    let path = dir.path().join("s");
    let thread = start_probed_primary(&path, false);
    let error = connect_with_short_probes(&path).reload().expect_err("silent");
    assert_eq!(error.exit_status(), exit::UNAVAILABLE);
    assert!(error.to_string().contains("does not answer"), "{error}");
    thread.join().expect("primary");
}

#[test]
fn a_reload_waits_while_the_primary_answers_probes() {
    let dir = private_dir();
    let path = dir.path().join("s");
    let thread = start_probed_primary(&path, true);
    assert_eq!(connect_with_short_probes(&path).reload().expect("waited for"), "reloaded");
    thread.join().expect("primary");
}

/// Creates a directory that only this user may write, whatever umask other tests of this process set for a moment.
fn private_dir() -> tempfile::TempDir {
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    tempfile::Builder::new().permissions(private).tempdir().expect("dir")
}
