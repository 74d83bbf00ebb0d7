//! The admin listener: it answers whatever happens to the workers, the primary and its own process.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;

use crate::support::admin_listener::{admin_address, admin_pid, get, try_get};
use crate::support::http::{Address, Client, Failure};
use crate::support::{Server, process, wait};

fn start(args: &[&str]) -> (Server, Address) {
    let server = Server::with(2, &[&["--admin", "127.0.0.1:0"], args].concat());
    let address = admin_address(&server);
    (server, address)
}

#[test]
fn it_shows_the_status_of_the_control_socket_and_is_no_worker() {
    let (server, admin) = start(&[]);
    server.get("/");
    // What only the primary knows is published a moment after it has changed.
    let phase = || get(&admin, "/status").json()["primary"]["phase"].clone();
    wait::wait_until("the primary runs", || phase() == "running");
    let (shown, known) = (get(&admin, "/status").json(), server.status());
    for path in ["generation", "workers_wanted", "dispatch", "model", "restarts", "pid", "phase"] {
        assert_eq!(shown["primary"][path], known["primary"][path], "{path}");
    }
    assert_eq!(shown["totals"]["requests"], known["totals"]["requests"]);
    assert_eq!(shown["listeners"], known["listeners"]);
    assert_eq!(shown["admin"]["pid"], known["admin"]["pid"]);
    let pid = shown["admin"]["pid"].as_u64();
    for workers in [&shown["workers"], &server.cluster()["workers"]] {
        let pids = workers.as_array().expect("workers").iter().map(|one| one["pid"].as_u64());
        let pids: Vec<_> = pids.collect();
        assert!(pids.len() == 2 && !pids.contains(&pid), "{pids:?}");
    }
    assert_eq!(get(&admin, "/livez").text(), "ok\n");
    assert!(get(&admin, "/readyz?verbose").text().ends_with("readyz check passed\n"));
    let unknown = get(&admin, "/nope");
    assert!(unknown.status == 404 && unknown.text().contains("/livez\n"), "{}", unknown.text());
    server.stop();
}

#[test]
fn it_answers_while_the_workers_and_the_primary_are_stopped() {
    let (server, admin) = start(&["--stall-timeout", "off"]);
    let workers = server.worker_pids();
    workers.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGSTOP));
    wait::wait_until("no worker serves", || get(&admin, "/readyz").status == 503);
    assert_eq!(get(&admin, "/livez").status, 200);
    server.signal(Signal::SIGSTOP);
    wait::wait_until("the primary counts as stopped", || get(&admin, "/livez").status == 503);
    assert_eq!(get(&admin, "/status").json()["workers"].as_array().map(Vec::len), Some(2));
    server.signal(Signal::SIGCONT);
    workers.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGCONT));
    wait::wait_until("all is well again", || {
        get(&admin, "/livez").status == 200 && get(&admin, "/readyz").status == 200
    });
    server.stop();
}

#[test]
fn no_request_fails_over_reloads_an_upgrade_and_kills_of_its_process() {
    let (server, admin) = start(&[]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let polling = scope.spawn(|| {
            let mut served = 0u64;
            while !stop.load(Ordering::Relaxed) {
                for path in ["/livez", "/status"] {
                    // A connection that its process has accepted ends with the process, if that is killed.
                    match try_get(&admin, path, "") {
                        Ok(response) => assert_eq!(response.status, 200, "{path}"),
                        Err(Failure::Reset | Failure::Closed | Failure::ClosedEarly) => {}
                        Err(e) => panic!("{path}: {e:?}"),
                    }
                    served += 1;
                }
            }
            served
        });
        server.run_verb(&["reload"]);
        server.run_verb(&["upgrade"]);
        for _ in 0..3 {
            let old = wait::wait_until_some("an admin process", || admin_pid(&server));
            process::send_signal(old, Signal::SIGKILL);
            wait::wait_until("another admin process", || {
                admin_pid(&server).is_some_and(|pid| pid != old)
            });
        }
        stop.store(true, Ordering::Relaxed);
        assert!(polling.join().expect("no request failed") > 0);
    });
    assert_eq!(admin_address(&server), admin);
    assert_eq!(server.status()["workers"].as_array().map(Vec::len), Some(2));
    server.stop();
}

#[test]
fn requests_need_the_token_except_for_health_checks() {
    let dir = tempfile::tempdir().expect("dir");
    let token = dir.path().join("token");
    std::fs::write(&token, "s3cret\n").expect("written");
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).expect("mode");
    let (server, admin) = start(&["--admin-token-file", token.to_str().expect("text")]);
    assert_eq!(get(&admin, "/livez").status, 200);
    let refused = get(&admin, "/status");
    assert!(refused.status == 401 && refused.header("www-authenticate").is_some(), "{refused:?}");
    // "user:s3cret".
    for good in ["Bearer s3cret", "Basic dXNlcjpzM2NyZXQ="] {
        let header = format!("Authorization: {good}\r\n");
        assert_eq!(try_get(&admin, "/status", &header).expect("served").status, 200, "{good}");
    }
    let wrong = try_get(&admin, "/status", "Authorization: Bearer s3cre\r\n").expect("answered");
    assert_eq!(wrong.status, 401);
    server.stop();
}

#[test]
fn foreign_names_and_other_methods_are_refused() {
    let (server, admin) = start(&[]);
    let send = |request: &str| {
        Client::connect(&admin)
            .and_then(|mut client| client.send_and_read(request))
            .expect("answer")
    };
    let foreign = send("GET /status HTTP/1.1\r\nHost: example.com\r\n\r\n");
    let post = send("POST /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((foreign.status, post.status), (421, 405));
    assert!(foreign.header("content-security-policy").is_some());
    server.stop();
}

#[test]
fn clients_that_say_nothing_do_not_keep_others_from_an_answer() {
    let (server, admin) = start(&[]);
    let Address::Tcp(addr) = &admin else { panic!("{admin}") };
    let idle: Vec<TcpStream> =
        (0..400).map(|_| TcpStream::connect(addr).expect("connected")).collect();
    assert_eq!(get(&admin, "/livez").status, 200);
    let open = server.status()["admin"]["connections"].as_u64().expect("a count");
    assert!(open <= 256, "{open}");
    drop(idle);
    server.stop();
}

#[test]
fn events_go_on_after_the_last_one_that_a_client_has() {
    let (server, admin) = start(&[]);
    server.run_verb(&["reload"]);
    let Address::Tcp(addr) = &admin else { panic!("{admin}") };
    let mut stream = TcpStream::connect(addr).expect("connected");
    stream.set_read_timeout(Some(wait::DEADLINE)).expect("a timeout");
    let request = "GET /events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 3\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("sent");
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains("reloaded: ") {
        let mut chunk = [0; 4096];
        let length = stream.read(&mut chunk).expect("events");
        assert!(length > 0, "{}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&chunk[..length]);
    }
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("id: 4\n") && !text.contains("id: 3\n"), "{text}");
    // The stream stays open, and a stop does not wait for it.
    server.stop();
}

#[test]
fn requests_that_are_no_http_or_too_large_get_an_answer() {
    let (server, admin) = start(&[]);
    let head = |fields: &str| format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
    let many: String = (0..100).map(|n| format!("X-{n}: 1\r\n")).collect();
    for (what, request, status) in [
        ("garbage", "\u{1}\u{2}\u{3}\r\n\r\n".to_string(), 400),
        ("a bad header field", head("no colon\r\n"), 400),
        ("too many fields", head(&many), 431),
        ("a large head", head(&format!("X: {}\r\n", "a".repeat(60_000))), 431),
        ("a long target", head("").replace("/livez", &format!("/{}", "a".repeat(60_000))), 431),
        ("a good head", head("X: 1\r\n"), 200),
    ] {
        let answer = Client::connect(&admin).and_then(|mut client| client.send_and_read(request));
        assert_eq!(answer.map(|answer| answer.status), Ok(status), "{what}");
    }
    server.stop();
}

#[test]
fn clients_that_do_not_read_do_not_keep_others_from_an_answer() {
    let (server, admin) = start(&[]);
    let Address::Tcp(addr) = &admin else { panic!("{admin}") };
    // A large page that costs the process little.
    let requests = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(200);
    let deaf: Vec<TcpStream> = (0..260)
        .map(|_| {
            let mut stream = TcpStream::connect(addr).expect("connected");
            stream.set_nonblocking(true).expect("non-blocking");
            // As much as the socket takes. The process may have closed the connection already.
            let _ = stream.write(requests.as_bytes());
            stream
        })
        .collect();
    let pid = admin_pid(&server);
    for _ in 0..5 {
        assert_eq!(get(&admin, "/livez").status, 200);
    }
    assert_eq!(admin_pid(&server), pid, "the process has not been replaced");
    drop(deaf);
    server.stop();
}
