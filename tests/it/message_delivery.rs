//! What becomes of messages when workers are replaced, exit or die.

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::{Server, process, wait};

fn cluster(web_workers: usize, consumers: usize) -> ProcessBuilder {
    ProcessBuilder::program("message-delivery")
        .workers(web_workers)
        .other_workers(consumers)
        .args([format!("consumers={consumers}")])
}

fn start(web_workers: usize, consumers: usize) -> Server {
    cluster(web_workers, consumers).start().allow_errors(&["worker="])
}

#[track_caller]
fn get_text(server: &Server, path: &str) -> String {
    server.get(path).text().to_string()
}

/// Returns the numbers of the jobs that are done, in order.
fn done(server: &Server) -> Vec<u32> {
    let numbers = std::fs::read_to_string(server.dir().join("done")).unwrap_or_default();
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
    wait::wait_until("15 messages", || done(&server).len() == 15);
    assert_eq!(done(&server), [0, 1, 2, 3, 4].repeat(3));
    server.stop();
}

#[test]
fn a_flush_waits_for_what_the_socket_did_not_take() {
    let server = start(1, 0);
    assert!(server.try_get("/flood-and-exit/200").is_err());
    wait::wait_until("200 messages", || done(&server).len() == 200);
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

#[test]
fn an_upgrade_loses_no_message() {
    let server = cluster(1, 1).with_copied_program().start();
    // More than the consumer's socket takes, so that some are in the primary's queue.
    assert_eq!(get_text(&server, "/jobs/0/200/8000"), "sent");
    server.signal(Signal::SIGUSR2);
    server.wait_generation(2);
    wait_done(&server, 200);
    assert_eq!(lost_messages(&server), 0);
    server.stop();
}

#[test]
fn workers_of_the_old_image_keep_their_message_channel() {
    let server = cluster(1, 0).with_copied_program().start();
    let mut client = server.connect();
    client.send("GET /others-after-drain HTTP/1.1\r\nHost: test\r\n\r\n").expect("sent");
    server.wait_request_in_status("others-after-drain");
    server.signal(Signal::SIGUSR2);
    // Answered by the new primary, which has got no other messages.
    assert_eq!(client.read().expect("answer").text(), "");
    drop(client);
    server.wait_generation(2);
    server.stop();
}

#[test]
fn requests_that_an_upgraded_primary_has_not_answered_are_refused() {
    let server = cluster(1, 0).with_copied_program().start();
    let mut client = server.connect();
    client.send("GET /never HTTP/1.1\r\nHost: test\r\n\r\n").expect("sent");
    server.wait_log(&["a request is not answered"]);
    server.signal(Signal::SIGUSR2);
    let text = client.read().expect("answer").text().to_string();
    assert!(text.starts_with("Refused(") && text.contains("upgraded"), "{text}");
    drop(client);
    server.wait_generation(2);
    server.stop();
}

#[test]
fn messages_to_an_exited_worker_are_lost_with_a_count_or_refused() {
    let server = start(1, 1);
    let refused = get_text(&server, "/request-id/99");
    assert!(refused.starts_with("Refused("), "{refused}");
    assert_eq!(get_text(&server, "/jobs/0/50"), "sent");
    let log = server.stop();
    let lost = log.lines().filter(|line| line.contains("kind=\"job\"")).filter_map(|line| {
        let count = line.split_whitespace().find_map(|word| word.strip_prefix("count="))?;
        (!line.contains("no such worker")).then(|| count.parse::<u64>().ok())?
    });
    // The consumer leaves its inbox unread, and no other one takes its place.
    assert!(lost.sum::<u64>() > 0, "{log}");
}

#[test]
fn what_a_killed_consumer_was_not_sent_goes_to_the_next_one() {
    let server = start(1, 1);
    let consumer = server.worker_pid(2);
    process::send_signal(consumer, Signal::SIGSTOP);
    assert_eq!(get_text(&server, "/jobs/0/200/8000"), "sent");
    process::send_signal(consumer, Signal::SIGKILL);
    wait::wait_until("the last job", || done(&server).contains(&199));
    let done = done(&server);
    // In order, and without those that were in the socket.
    assert!(done.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{done:?}");
    assert_eq!(done.last(), Some(&199));
    server.stop();
}

#[test]
fn messages_of_all_other_kinds_have_a_receiver_in_primary_and_workers() {
    let server = start(1, 0);
    assert_eq!(get_text(&server, "/to-web/0"), "sent");
    wait::wait_until("the message came back", || get_text(&server, "/others") == "web 0");
    server.stop();
}
