//! The programs in `examples/`: they do what their first lines promise.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::tls::TestAuthority;
use crate::support::{Client, http2, process, wait};

#[test]
fn hello_counts_in_each_worker() {
    let server = ProcessBuilder::example("hello").start();
    let mut client = server.connect();
    let first = client.get("/").expect("answer").text().to_string();
    let second = client.get("/").expect("answer").text().to_string();
    assert!(first.starts_with("hello 1 from pid "), "{first}");
    assert_eq!(second, first.replace("hello 1", "hello 2"), "one connection, one worker");
    server.stop();
}

#[test]
fn custom_primary_prints_events_and_replaces_a_killed_worker() {
    let server = ProcessBuilder::example("custom_primary").start().allow_errors(&["SIGKILL"]);
    assert_eq!(server.get("/").text(), "hello world\n");
    server.wait_log(&["A worker is now connected to 127.0.0.1"]);
    let worker = server.worker_pids()[0];
    process::send_signal(worker, Signal::SIGKILL);
    server.wait_log(&[&format!("worker {worker} died: Killed")]);
    server.wait_log(&["is replaced by worker"]);
    assert_eq!(server.get("/").status, 200);
    server.stop();
}

#[test]
fn messages_are_collected_and_broadcast_back() {
    let server = ProcessBuilder::example("messages").start();
    for _ in 0..6 {
        assert_eq!(server.get("/").status, 200);
    }
    let first_word = |path: &str| server.get(path).text().split(' ').next().map(str::to_string);
    wait::wait_until("all messages at the primary", || {
        first_word("/exactly") == Some("6".to_string())
    });
    wait::wait_until("the total at a worker", || {
        first_word("/").and_then(|n| n.parse().ok()).is_some_and(|n: u64| n >= 6)
    });
    server.stop();
}

#[test]
fn tcp_echo_echoes() {
    let server = ProcessBuilder::example("tcp_echo").start();
    let mut client = server.connect();
    client.send("any protocol\n").expect("sent");
    let mut read = Vec::new();
    while !read.ends_with(b"any protocol\n") {
        read.extend(client.read_exactly(1).expect("echo"));
    }
    drop(client);
    server.stop();
}

#[test]
fn own_tls_serves_http_1_and_http_2_and_drains_cleanly() {
    let authority = TestAuthority::new();
    let dir = tempfile::tempdir().expect("directory");
    let pair = authority.issue(&["localhost"]).write(dir.path(), "pair");
    let files = [pair.certificate.as_os_str(), pair.key.as_os_str()];
    let server = ProcessBuilder::example("own_tls").args(files).start();
    let connect = |protocol: &str| {
        let mut config = authority.client_config();
        config.alpn_protocols = vec![protocol.into()];
        Client::connect_tls(server.address(), &Arc::new(config), "localhost").expect("a handshake")
    };
    let mut client = connect("http/1.1");
    let response = client.get("/first").expect("an answer");
    assert!(response.text().starts_with("/first HTTP/1.1 of 127.0.0.1:"), "{response:?}");
    let mut client = connect("h2");
    http2::greet(&mut client);
    client.send(http2::get(1, "/second")).expect("send");
    let body = http2::read_until(&mut client, http2::DATA, 1).payload;
    assert!(body.starts_with(b"/second HTTP/2.0 of 127.0.0.1:"), "{}", body.escape_ascii());
    drop(client);
    server.stop();
}

#[test]
fn preload_answers_from_shared_memory() {
    let server = ProcessBuilder::example("preload").start();
    assert_eq!(server.get("/12").text(), "144\n");
    let body = server.get("/").text().to_string();
    assert!(body.contains("private") && body.contains("shared"), "{body}");
    server.stop();
}

#[test]
fn chat_reaches_the_listeners_of_all_workers() {
    let server = ProcessBuilder::example("chat").start();
    let workers = server.worker_pids().len();
    let mut listeners = BTreeMap::new();
    wait::wait_until("a listener at each worker", || {
        let mut client = server.connect();
        client.send("GET /events HTTP/1.1\r\nHost: test\r\n\r\n").expect("sent");
        let first = read_event(&mut client);
        assert!(first.contains("text/event-stream"), "{first}");
        let pid = first.lines().find_map(|line| line.strip_prefix(": worker ")).expect("a pid");
        listeners.entry(pid.to_string()).or_insert(client);
        listeners.len() == workers
    });
    let mut speaker = server.connect();
    for message in ["hello", "two\nlines"] {
        assert_eq!(speaker.post("/", message.as_bytes()).expect("answer").status, 200);
        for client in listeners.values_mut() {
            let event = read_event(client);
            let lines: Vec<&str> = event.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
            assert_eq!(lines.join("\n"), message);
        }
    }
    // The streams end with their workers.
    server.signal(Signal::SIGTERM);
    for client in listeners.values_mut() {
        assert!(client.read_to_end().expect("the end").ends_with(b"0\r\n\r\n"));
    }
    drop((listeners, speaker));
    server.wait_clean_exit(0);
}

/// Reads one server-sent event of a chunked response, with its empty line.
fn read_event(client: &mut Client) -> String {
    let mut text = String::new();
    while !text.ends_with("\n\n") {
        text.push(client.read_exactly(1).expect("an event")[0].into());
    }
    // A chunk is one event.
    assert_eq!(client.read_exactly(2).expect("the end of a chunk"), b"\r\n");
    text
}

#[test]
fn rate_limit_counts_over_all_workers() {
    let server = ProcessBuilder::example("rate_limit").start();
    for path in ["/", "/alice"] {
        let begun = Instant::now();
        // A connection for each, so that they reach different workers.
        let welcome = (0..20).filter(|_| server.get(path).status == 200).count();
        let most = 5 + begun.elapsed().as_secs() as usize + 1;
        assert!((5..=most).contains(&welcome), "{welcome} of {most}");
    }
    let text = server.get("/alice").text().to_string();
    assert!(text == "welcome\n" || text.contains(" were refused\n"), "{text}");
    server.stop();
}

#[test]
fn rate_limit_counts_each_client_behind_a_trusted_proxy() {
    let server = ProcessBuilder::example("rate_limit").args(["127.0.0.1"]).start();
    let ask = |client: &str| {
        let request = format!(
            "GET /mine HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\nConnection: close\r\n\r\n"
        );
        server.connect().send_and_read(request).expect("an answer").status
    };
    wait::wait_until("one client is refused", || ask("192.0.2.1") == 429);
    assert_eq!(ask("192.0.2.2"), 200);
    server.stop();
}

#[test]
fn leader_is_succeeded_by_another_worker() {
    let server = ProcessBuilder::example("leader").start().allow_errors(&["SIGKILL"]);
    let read = || {
        let text = server.get("/").text().to_string();
        let words: Vec<&str> = text.split([' ', ',']).collect();
        let pid = text.strip_prefix("leader pid ").and_then(|_| words[2].parse::<u32>().ok());
        (pid, words[words.len() - 2].parse::<u64>().expect("ticks"))
    };
    wait::wait_until("a leader that works", || matches!(read(), (Some(_), 1..)));
    let (Some(old), ticks) = read() else { panic!("no leader") };
    assert!(server.worker_pids().contains(&old));
    process::send_signal(old, Signal::SIGKILL);
    wait::wait_until("a successor that continues", || {
        let (leader, now) = read();
        leader.is_some_and(|pid| pid != old) && now > ticks + 1
    });
    server.stop();
}

#[test]
fn cpu_bound_work_runs_where_it_belongs() {
    let server = ProcessBuilder::example("cpu_bound")
        .other_workers(2)
        .start()
        .allow_errors(&["thumbnails", "panicked"]);
    let post = |path: &str, body: &[u8]| server.connect().post(path, body).expect("answer");
    let text = |path: &str, body: &str| post(path, body.as_bytes()).text().to_string();
    assert!(text("/count", "one two three").ends_with(": 3 words\n"));
    assert!(text("/language", "ein Haus am See, und der Wald").ends_with(": German\n"));
    assert_eq!(post("/language", b"?").status, 422);
    // Large enough for shared memory, and every second pixel of every second row comes back.
    let picture: Vec<u8> = (0..100_000u32).map(|at| (at % 1000 % 251) as u8).collect();
    let thumbnail = post("/thumbnail/1000", &picture);
    let even_columns: Vec<u8> = (0..500u32).map(|at| (2 * at % 251) as u8).collect();
    assert_eq!(thumbnail.body.len(), 25_000);
    assert!(thumbnail.body.chunks(500).all(|row| row == even_columns));
    // Faults of one job, after each of which the next one works.
    for (body, width, status, words) in [
        ("crash", 1000, 502, "signal 6"),
        ("hang", 1000, 504, "it had begun"),
        ("panic", 0, 502, "examples/cpu_bound.rs:"),
        ("short", 5, 422, "at least two rows"),
    ] {
        let answer = post(&format!("/thumbnail/{width}"), body.as_bytes());
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        assert!(answer.text().contains(words), "{body}: {}", answer.text());
        assert_eq!(post("/thumbnail/2", b"abcd").body, b"a");
    }
    // All workers and all places share one count: two of words and languages, one refused, and nine pictures.
    assert_eq!(server.get("/").text(), "12 jobs in all workers\n");
    server.stop();
}

#[test]
fn tracing_shows_worker_and_request_of_every_event() {
    for when in [&[][..], &["after-fork"]] {
        let server = ProcessBuilder::example("tracing").args(when.iter().copied()).start();
        let response = server.get("/");
        let id = format!("request_id=\"{}\"", response.header("x-request-id").expect("an id"));
        let worker = format!("pid={}", response.pid());
        let request =
            ["worker{worker=", &worker, "request{method=\"GET\" path=\"/\"", "client=", &id];
        for event in ["asked the oracle", "in a task"] {
            let words: Vec<&str> = request.iter().copied().chain([event]).collect();
            wait::wait_until(&format!("{words:?} in the log"), || {
                server.log().lines().any(|line| words.iter().all(|word| line.contains(word)))
            });
        }
        server.stop();
    }
}
