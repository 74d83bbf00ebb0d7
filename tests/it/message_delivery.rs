//! What becomes of messages when workers are replaced, exit or die.

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::{Server, wait};

fn start(web_workers: usize, consumers: usize) -> Server {
    ProcessBuilder::program("message-delivery")
        .workers(web_workers)
        .other_workers(consumers)
        .args([format!("consumers={consumers}")])
        .start()
        .allow_errors(&["worker="])
}

#[track_caller]
fn get_text(server: &Server, path: &str) -> String {
    server.get(path).text().to_string()
}

/// Returns the numbers of the jobs that are done, in order.
fn done(server: &Server) -> Vec<u32> {
    let numbers = get_text(server, "/done");
    numbers.split_whitespace().map(|number| number.parse().expect("a number")).collect()
}

/// Waits until the jobs `0..count` are done, each one once.
#[track_caller]
fn wait_done(server: &Server, count: u32) {
    let mut last = Vec::new();
    wait::wait_until(&format!("{count} jobs"), || {
        last = done(server);
        last.len() >= count as usize
    });
    last.sort_unstable();
    assert_eq!(last, (0..count).collect::<Vec<_>>());
}

fn lost_messages(server: &Server) -> u64 {
    server.status()["primary"]["messages_lost"].as_u64().expect("a count")
}

#[test]
fn messages_sent_right_before_an_exit_arrive() {
    let server = start(1, 0);
    for _ in 0..3 {
        // The worker exits instead of responding.
        assert!(server.try_get("/bye/5").is_err());
    }
    wait::wait_until("15 messages", || {
        server.try_get("/done").is_ok_and(|answer| answer.text().split(' ').count() == 15)
    });
    assert_eq!(done(&server), [0, 1, 2, 3, 4].repeat(3));
    server.stop();
}

#[test]
fn a_flush_waits_for_what_the_socket_did_not_take() {
    let server = start(1, 0);
    assert!(server.try_get("/flood-and-exit/200").is_err());
    wait::wait_until("200 messages", || {
        server.try_get("/done").is_ok_and(|answer| answer.text().split(' ').count() == 200)
    });
    assert_eq!(done(&server), (0..200).collect::<Vec<_>>());
    server.stop();
}

#[test]
fn reloads_lose_no_message_although_the_consumer_ignores_its_inbox_when_it_drains() {
    let server = start(1, 1);
    for round in 0..3 {
        assert_eq!(
            get_text(&server, &format!("/jobs/{}/{}", round * 50, (round + 1) * 50)),
            "sent"
        );
        server.signal(Signal::SIGHUP);
        server.wait_generation(round + 2);
    }
    wait_done(&server, 150);
    assert_eq!(lost_messages(&server), 0);
    server.stop();
}

#[test]
fn a_request_moves_to_the_next_worker() {
    let server = start(1, 1);
    let (mut client, mut old) = (server.connect(), server.connect());
    assert_eq!(get_text(&server, "/jobs/0/100"), "sent");
    client.send("GET /request/100 HTTP/1.1\r\nHost: test\r\n\r\n").expect("sent");
    // Comes from the same worker, so the request is on its way when this is answered.
    assert_eq!(old.get("/request-from-primary/101").expect("answer").text(), "sent");
    server.signal(Signal::SIGHUP);
    server.wait_generation(2);
    let text = client.read().expect("answer").text().to_string();
    assert!(text.starts_with("100 by worker "), "{text}");
    server.wait_log(&["reply to the primary", "101 by worker"]);
    wait_done(&server, 102);
    assert_eq!(lost_messages(&server), 0);
    drop((client, old));
    server.stop();
}
