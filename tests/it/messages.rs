//! Messages and connections passed between the primary and its workers.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::{Client, Server, log, process, wait};

/// Sends a GET request, and returns the text of the response.
#[track_caller]
fn get_text(server: &Server, path: &str) -> String {
    server.get(path).text().to_string()
}

/// Opens a kept connection to the worker of each slot.
fn connections_by_slot(server: &Server, workers: usize) -> BTreeMap<u32, Client> {
    let mut found = BTreeMap::new();
    wait::wait_until("a connection to each worker", || {
        let mut client = server.connect();
        let slot = client.get("/slot").expect("answer").text().to_string();
        let slot = slot.split(' ').next().expect("slot").parse().expect("number");
        found.entry(slot).or_insert(client);
        found.len() == workers
    });
    found
}

#[track_caller]
fn get_text_on_connection(client: &mut Client, path: &str) -> String {
    client.get(path).unwrap_or_else(|e| panic!("GET {path}: {e:?}")).text().to_string()
}

fn wait_notes(server: &Server, wanted: &[&str]) {
    wait::wait_until(&format!("the notes {wanted:?}"), || {
        let mut notes: Vec<_> =
            get_text(server, "/notes").split(", ").map(str::to_string).collect();
        notes.sort_unstable();
        notes == wanted
    });
}

#[test]
fn workers_send_messages_and_requests_to_the_primary() {
    let server = ProcessBuilder::program("messages").workers(2).start();
    let mut at = connections_by_slot(&server, 2);
    for (slot, client) in &mut at {
        assert_eq!(get_text_on_connection(client, &format!("/note/hello-{slot}")), "done");
    }
    wait_notes(&server, &["0: hello-0", "1: hello-1"]);
    for size in [0, 1, 32_000, 33_000, 800_000, (1 << 20)] {
        assert_eq!(get_text(&server, &format!("/echo/{size}")), "same: true");
    }
    drop(at);
    server.stop();
}

#[test]
fn workers_send_messages_to_workers_by_slot_and_by_id() {
    let server = ProcessBuilder::program("messages").workers(2).start();
    let mut at = connections_by_slot(&server, 2);
    let id_of = |client: &mut Client| {
        get_text_on_connection(client, "/slot").split(' ').nth(1).map(str::to_string)
    };
    let ids = [0, 1].map(|slot| id_of(at.get_mut(&slot).expect("slot")).expect("id"));
    let zero = at.get_mut(&0).expect("slot 0");
    assert_eq!(get_text_on_connection(zero, "/to/slot/1/by-slot"), "done");
    assert_eq!(get_text_on_connection(zero, &format!("/to/id/{}/by-id", ids[1])), "done");
    let one = format!("1: by-id from worker {}", ids[0]);
    let other = format!("1: by-slot from worker {}", ids[0]);
    wait_notes(&server, &[&one, &other]);
    // Workers send requests to workers, and to themselves.
    for slot in [0, 1] {
        let body = get_text_on_connection(at.get_mut(&0).expect("slot 0"), &format!("/who/{slot}"));
        assert_eq!(body, format!("{slot} {}", ids[slot]));
    }
    let body = get_text(&server, "/who/7");
    assert!(body.starts_with("Refused("), "{body}");
    drop(at);
    server.stop();
}

#[test]
fn a_broadcast_reaches_every_worker_once() {
    let server = ProcessBuilder::program("messages").workers(8).start();
    assert_eq!(get_text(&server, "/shout"), "8");
    let wanted = [0, 1, 2, 3, 4, 5, 6, 7].map(|slot| format!("{slot}: news from the primary"));
    wait_notes(&server, &wanted.each_ref().map(String::as_str));
    // A broadcast of a worker reaches the other seven.
    assert_eq!(get_text(&server, "/broadcast/direct"), "done");
    wait::wait_until("seven more notes", || {
        get_text(&server, "/notes").matches("hello from worker").count() == 7
    });
    server.stop();
}

#[test]
fn a_worker_discards_late_replies() {
    let server = ProcessBuilder::program("messages").workers(1).start();
    let late = "TimedOut(\"late\")";
    assert_eq!(get_text(&server, "/late"), late);
    assert_eq!(get_text(&server, "/late-count"), "0");
    // The second request makes the primary reply to the first one.
    assert_eq!(get_text(&server, "/late"), late);
    assert_eq!(get_text(&server, "/late-count"), "1");
    assert_eq!(get_text(&server, "/echo/5"), "same: true");
    server.stop();
}

#[test]
fn a_full_message_queue_is_an_error_and_recovers() {
    let server = ProcessBuilder::program("messages").workers(1).start();
    assert_eq!(get_text(&server, "/full"), "Some(Full)");
    assert_eq!(get_text(&server, "/too-large"), "TooLarge { size: 2097152, most: 1048576 }");
    assert_eq!(get_text(&server, "/echo/5"), "same: true");
    server.stop();
}

#[test]
fn connections_are_passed_with_large_messages_in_both_directions() {
    let server = ProcessBuilder::program("messages").workers(2).start();
    let mut at = connections_by_slot(&server, 2);
    for size in [0, 10, 800_000] {
        for (slot, client) in &mut at {
            let back = format!("1 x {size} {size} {slot}");
            assert_eq!(get_text_on_connection(client, &format!("/travel/{size}")), back);
        }
    }
    // A connection without a receiver is closed.
    assert_eq!(get_text_on_connection(at.get_mut(&0).expect("slot 0"), "/untaken"), "Some(0)");
    drop(at);
    server.stop();
}

#[test]
fn workers_passing_connections_to_each_other_do_not_deadlock() {
    let server = ProcessBuilder::program("messages").workers(2).start();
    let mut at = connections_by_slot(&server, 2);
    for (slot, client) in &mut at {
        let path = format!("/cross/{}/100", 1 - slot);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).expect("sent");
    }
    for (slot, client) in &mut at {
        let text = client.read().expect("answer").text().to_string();
        assert_eq!(text, format!("100 x 100000 100000 {}", 1 - slot));
    }
    drop(at);
    server.stop();
}

#[test]
fn a_draining_worker_can_still_send_and_receive_messages() {
    let server = ProcessBuilder::program("messages").workers(2).start();
    let mut at = connections_by_slot(&server, 2);
    for client in at.values_mut() {
        client.send("GET /hold HTTP/1.1\r\nHost: test\r\n\r\n").expect("sent");
    }
    server.wait_log_count(&["sent holding"], 2);
    server.signal(Signal::SIGHUP);
    for client in at.values_mut() {
        assert_eq!(client.read().expect("answer").text(), "done");
    }
    server.wait_log_count(&["sent bye"], 2);
    server.stop();
}

fn start_primary_requests(workers: usize) -> Server {
    ProcessBuilder::program("primary-requests")
        .workers(workers)
        .start()
        .allow_errors(&["37", "cannot answer"])
}

#[test]
fn a_request_of_the_primary_gets_one_reply() {
    let server = start_primary_requests(2);
    for asked in 1..=3 {
        for slot in [0, 1] {
            assert_eq!(get_text(&server, &format!("/{slot}/who/20000")), format!("slot {slot}"));
        }
        // Each request got two replies, of which one was late.
        wait::wait_until("the second answers", || {
            get_text(&server, "/") == (2 * asked).to_string()
        });
    }
    let missing = get_text(&server, "/7/who/20000");
    assert!(missing.starts_with("not sent: NoSuchWorker(") && missing.contains('7'), "{missing}");
    let refused = get_text(&server, "/0/nothing/20000");
    assert!(refused.starts_with("Refused("), "{refused}");
    server.stop();
}

#[test]
fn the_primary_discards_late_replies() {
    let server = start_primary_requests(1);
    let late = "TimedOut(\"before\")";
    assert_eq!(get_text(&server, "/0/before/50"), late);
    assert_eq!(get_text(&server, "/"), "0");
    // The second request makes the worker reply to the first one.
    assert_eq!(get_text(&server, "/0/before/50"), late);
    assert_eq!(get_text(&server, "/"), "1");
    assert_eq!(get_text(&server, "/0/who/20000"), "slot 0");
    server.stop();
}

#[test]
fn a_request_to_a_worker_that_dies_fails_at_once() {
    let server = start_primary_requests(2);
    // Retried until the request was sent by the other worker, which survives.
    let outcome = wait::wait_until_some("a sender that survives", || {
        let answer = server.try_get("/1/die/3600000").ok()?;
        let text = answer.text().to_string();
        // The sender itself may have been the worker that died.
        (!text.starts_with("not sent: ")).then_some(text)
    });
    assert_eq!(outcome, "Closed");
    server.wait_log(&["worker=", "37"]);
    wait::wait_until("the replacement answers", || get_text(&server, "/1/who/20000") == "slot 1");
    server.stop();
}

#[test]
fn a_worker_that_sends_invalid_frames_is_killed_and_replaced() {
    // Errors about one worker are expected; the test checks below that there are no others.
    let server = ProcessBuilder::program("messages").workers(3).start().allow_errors(&["worker="]);
    let before = server.worker_pids();
    // The worker may be killed before it responds.
    let _ = server.try_get("/garbage");
    server.wait_replaced(1);
    wait::wait_until("three workers", || server.worker_pids().len() == 3);
    let after = server.worker_pids();
    let gone: Vec<&u32> = before.iter().filter(|pid| !after.contains(pid)).collect();
    assert_eq!(gone.len(), 1, "{before:?} {after:?}");
    for _ in 0..8 {
        assert_eq!(server.get("/echo/100000").text(), "same: true");
    }
    assert_eq!(server.status()["primary"]["restarts"], 1);
    let (text, pid) = (server.stop(), format!("pid={}", gone[0]));
    // One line for the reason, and one for the exit.
    let of_it = log::lines_with(&text, &["ERROR", &pid]).count();
    assert_eq!((of_it, log::lines_with(&text, &["ERROR"]).count()), (2, 2), "{text}");
}

#[test]
fn an_unknown_frame_type_is_ignored() {
    let server = ProcessBuilder::program("messages").workers(1).start();
    let before = server.worker_pids();
    for _ in 0..3 {
        assert_eq!(server.get("/newer").text(), "done");
        assert_eq!(server.get("/echo/800000").text(), "same: true");
    }
    assert_eq!(
        (server.worker_pids(), &server.status()["primary"]["restarts"]),
        (before, &0.into())
    );
    server.stop();
}

#[test]
fn a_worker_killed_during_a_message_does_no_harm() {
    let server = ProcessBuilder::program("messages").workers(1).start().allow_errors(&["SIGKILL"]);
    assert_eq!(server.get("/half").text(), "done");
    process::send_signal(server.worker_pids()[0], Signal::SIGKILL);
    server.wait_replaced(1);
    assert_eq!(server.get("/echo/800000").text(), "same: true");
    assert_eq!(server.status()["primary"]["restarts"], 1);
    server.stop();
}

#[test]
fn a_worker_that_floods_messages_does_not_starve_others() {
    let server = ProcessBuilder::program("messages").workers(3).start().allow_errors(&["SIGKILL"]);
    assert_eq!(server.get("/flood/2").text(), "done");
    for _ in 0..20 {
        assert_eq!(server.get("/echo/100000").text(), "same: true");
    }
    // READY uses another channel, so a replacement becomes ready.
    process::send_signal(server.worker_pids()[2], Signal::SIGKILL);
    server.wait_replaced(1);
    for _ in 0..8 {
        assert_eq!(server.get("/echo/10").text(), "same: true");
    }
    server.stop();
}

#[test]
fn senders_to_a_frozen_worker_are_blocked_only_briefly() {
    let server = ProcessBuilder::program("messages").workers(2).start();
    let mut client = server.connect();
    let text = client.get("/slot").expect("answer").text().to_string();
    let slot: u32 = text.split(' ').next().and_then(|slot| slot.parse().ok()).expect("slot");
    let other = 1 - slot;
    let pid = server.worker_pid(u64::from(other) + 1);
    process::send_signal(pid, Signal::SIGSTOP);
    assert_eq!(client.get(&format!("/flood/{other}")).expect("answer").text(), "done");
    server.wait_log(&["WARN", "messages"]);
    assert_eq!(client.get("/echo/100").expect("answer").text(), "same: true");
    process::send_signal(pid, Signal::SIGCONT);
    drop(client);
    server.stop();
}

#[test]
fn a_panicking_or_slow_message_handler_is_named_and_kept() {
    let server = ProcessBuilder::program("messages")
        .workers(1)
        .start()
        .allow_errors(&["panic", "panicked at"]);
    for times in 1..=2 {
        assert_eq!(server.get("/tell/panic").text(), "done");
        server.wait_log_count(&["ERROR", "panic", "the function fails"], times);
    }
    assert_eq!(server.get("/tell/slow").text(), "done");
    server.wait_log(&["WARN", "slow"]);
    assert_eq!(server.get("/echo/5").text(), "same: true");
    server.stop();
}

#[test]
fn unhandled_message_kinds_are_logged_once() {
    let server = ProcessBuilder::program("messages").workers(2).start();
    for _ in 0..3 {
        assert_eq!(server.get("/tell/nothing").text(), "done");
        assert_eq!(server.get("/broadcast/silence").text(), "done");
    }
    let refused = server.get("/ask/nothing").text().to_string();
    assert!(refused.starts_with("Refused("), "{refused}");
    server.wait_log(&["WARN", "silence"]);
    let text = server.stop();
    assert_eq!(log::lines_with(&text, &["WARN", "nothing"]).count(), 1, "{text}");
    assert!(log::lines_with(&text, &["WARN", "silence"]).count() <= 2, "{text}");
}
