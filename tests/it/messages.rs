//! Messages and connections passed between the primary and its workers.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;

use crate::support::command::Builder;
use crate::support::{Client, Server, log, process, wait};

/// What one of them says to one request.
#[track_caller]
fn say(server: &Server, path: &str) -> String {
    server.get(path).text().to_string()
}

/// A kept connection to the worker at each slot.
fn clients(server: &Server, workers: usize) -> BTreeMap<u32, Client> {
    let mut found = BTreeMap::new();
    wait::until("a connection to each worker", || {
        let mut client = server.connect();
        let slot = client.get("/slot").expect("answer").text().to_string();
        let slot = slot.split(' ').next().expect("slot").parse().expect("number");
        found.entry(slot).or_insert(client);
        found.len() == workers
    });
    found
}

#[track_caller]
fn ask(client: &mut Client, path: &str) -> String {
    client.get(path).unwrap_or_else(|e| panic!("GET {path}: {e:?}")).text().to_string()
}

fn wait_notes(server: &Server, wanted: &[&str]) {
    wait::until(&format!("the notes {wanted:?}"), || {
        let mut notes: Vec<_> = say(server, "/notes").split(", ").map(str::to_string).collect();
        notes.sort_unstable();
        notes == wanted
    });
}

#[test]
fn messages_go_to_the_primary_and_answers_come_back() {
    let server = Builder::program("mails").workers(2).start();
    let mut at = clients(&server, 2);
    for (slot, client) in &mut at {
        assert_eq!(ask(client, &format!("/note/hello-{slot}")), "done");
    }
    wait_notes(&server, &["0: hello-0", "1: hello-1"]);
    for size in [0, 1, 32_000, 33_000, 800_000, (1 << 20)] {
        assert_eq!(say(&server, &format!("/echo/{size}")), "same: true");
    }
    drop(at);
    server.stop();
}

#[test]
fn messages_go_from_worker_to_worker_by_slot_and_by_id() {
    let server = Builder::program("mails").workers(2).start();
    let mut at = clients(&server, 2);
    let id_of = |client: &mut Client| ask(client, "/slot").split(' ').nth(1).map(str::to_string);
    let ids = [0, 1].map(|slot| id_of(at.get_mut(&slot).expect("slot")).expect("id"));
    let zero = at.get_mut(&0).expect("slot 0");
    assert_eq!(ask(zero, "/to/slot/1/by-slot"), "done");
    assert_eq!(ask(zero, &format!("/to/id/{}/by-id", ids[1])), "done");
    let one = format!("1: by-id from worker {}", ids[0]);
    let other = format!("1: by-slot from worker {}", ids[0]);
    wait_notes(&server, &[&one, &other]);
    // And are asked and answer, also themselves.
    for slot in [0, 1] {
        let said = ask(at.get_mut(&0).expect("slot 0"), &format!("/who/{slot}"));
        assert_eq!(said, format!("{slot} {}", ids[slot]));
    }
    let said = say(&server, "/who/7");
    assert!(said.starts_with("Refused("), "{said}");
    drop(at);
    server.stop();
}

#[test]
fn a_broadcast_reaches_all_eight_workers_once() {
    let server = Builder::program("mails").workers(8).start();
    assert_eq!(say(&server, "/shout"), "8");
    let wanted = [0, 1, 2, 3, 4, 5, 6, 7].map(|slot| format!("{slot}: news from the primary"));
    wait_notes(&server, &wanted.each_ref().map(String::as_str));
    // From a worker: to the other seven.
    assert_eq!(say(&server, "/broadcast/direct"), "done");
    wait::until("seven more notes", || {
        say(&server, "/notes").matches("hello from worker").count() == 7
    });
    server.stop();
}

#[test]
fn an_answer_that_comes_late_is_thrown_away() {
    let server = Builder::program("mails").workers(1).start();
    let late = "TimedOut(\"late\")";
    assert_eq!(say(&server, "/late"), late);
    assert_eq!(say(&server, "/late-count"), "0");
    // This one makes the primary answer the first one, and is not answered by that.
    assert_eq!(say(&server, "/late"), late);
    assert_eq!(say(&server, "/late-count"), "1");
    assert_eq!(say(&server, "/echo/5"), "same: true");
    server.stop();
}

#[test]
fn a_full_queue_says_so_and_is_emptied() {
    let server = Builder::program("mails").workers(1).start();
    assert_eq!(say(&server, "/full"), "64, then Full");
    assert_eq!(say(&server, "/too-large"), "TooLarge { size: 2097152, most: 1048576 }");
    assert_eq!(say(&server, "/echo/5"), "same: true");
    server.stop();
}

#[test]
fn a_connection_travels_both_ways_with_a_large_message() {
    let server = Builder::program("mails").workers(2).start();
    let mut at = clients(&server, 2);
    for size in [0, 10, 800_000] {
        for (slot, client) in &mut at {
            let back = format!("1 x {size} {size} {slot}");
            assert_eq!(ask(client, &format!("/travel/{size}")), back);
        }
    }
    // One that nobody takes is closed: the other end sees its end.
    assert_eq!(ask(at.get_mut(&0).expect("slot 0"), "/untaken"), "Some(0)");
    drop(at);
    server.stop();
}

#[test]
fn workers_send_each_other_connections_at_the_same_time_and_none_waits_for_ever() {
    let server = Builder::program("mails").workers(2).start();
    let mut at = clients(&server, 2);
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
fn a_draining_worker_still_has_its_mail() {
    let server = Builder::program("mails").workers(2).start();
    let mut at = clients(&server, 2);
    for client in at.values_mut() {
        client.send("GET /hold HTTP/1.1\r\nHost: test\r\n\r\n").expect("sent");
    }
    server.wait_log_count(&["says holding"], 2);
    server.signal(Signal::SIGHUP);
    for client in at.values_mut() {
        assert_eq!(client.read().expect("answer").text(), "done");
    }
    server.wait_log_count(&["says bye"], 2);
    server.stop();
}

#[test]
fn an_upgrade_ends_the_mail_of_old_workers_and_new_ones_have_theirs() {
    let server = Builder::program("mails").workers(1).copied().start();
    let mut client = server.connect();
    client.send("GET /until-closed HTTP/1.1\r\nHost: test\r\n\r\n").expect("sent");
    server.signal(Signal::SIGUSR2);
    assert_eq!(client.read().expect("answer").text(), "Closed");
    server.wait_generation(2);
    drop(client);
    wait::until("mail of the new worker", || say(&server, "/echo/5") == "same: true");
    server.stop();
}

fn start(workers: usize) -> Server {
    Builder::program("asks").workers(workers).start().allow(&["37", "cannot answer"])
}

#[test]
fn the_primary_asks_a_worker_and_is_answered_once() {
    let server = start(2);
    for asked in 1..=3 {
        for slot in [0, 1] {
            assert_eq!(say(&server, &format!("/{slot}/who/20000")), format!("slot {slot}"));
        }
        // Each request was answered twice.
        wait::until("the second answers", || say(&server, "/") == (2 * asked).to_string());
    }
    let nobody = say(&server, "/7/who/20000");
    assert!(nobody.starts_with("not asked: NoSuchWorker(") && nobody.contains('7'), "{nobody}");
    let refused = say(&server, "/0/nothing/20000");
    assert!(refused.starts_with("Refused("), "{refused}");
    server.stop();
}

#[test]
fn a_deadline_ends_the_request_and_the_late_answer_is_thrown_away() {
    let server = start(1);
    let late = "TimedOut(\"before\")";
    assert_eq!(say(&server, "/0/before/50"), late);
    assert_eq!(say(&server, "/"), "0");
    // This one makes the worker answer the first one, and is not answered by that.
    assert_eq!(say(&server, "/0/before/50"), late);
    assert_eq!(say(&server, "/"), "1");
    assert_eq!(say(&server, "/0/who/20000"), "slot 0");
    server.stop();
}

#[test]
fn the_end_of_the_worker_ends_the_request_long_before_its_deadline() {
    let server = start(2);
    // Asked by the other one, which lives to tell.
    let told = wait::until_some("somebody who can tell", || {
        let answer = server.try_get("/1/die/3600000").ok()?;
        let text = answer.text().to_string();
        // The one that asked may have been the one that died.
        (!text.starts_with("not asked: ")).then_some(text)
    });
    assert_eq!(told, "Closed");
    server.wait_log(&["worker=", "37"]);
    wait::until("the replacement answers", || say(&server, "/1/who/20000") == "slot 1");
    server.stop();
}

#[test]
fn a_worker_that_writes_garbage_into_its_mail_is_replaced_and_nobody_else_notices() {
    // All that is said of deaths is about one worker: see below.
    let server = Builder::program("mails").workers(3).start().allow(&["worker="]);
    let before = server.worker_pids();
    // It may be killed before it answers.
    let _ = server.try_get("/garbage");
    server.wait_replaced(1);
    wait::until("three workers", || server.worker_pids().len() == 3);
    let after = server.worker_pids();
    let gone: Vec<&u32> = before.iter().filter(|pid| !after.contains(pid)).collect();
    assert_eq!(gone.len(), 1, "{before:?} {after:?}");
    for _ in 0..8 {
        assert_eq!(server.get("/echo/100000").text(), "same: true");
    }
    assert_eq!(server.status()["primary"]["restarts"], 1);
    let (text, pid) = (server.stop(), format!("pid={}", gone[0]));
    // Why it was killed, and that it was.
    let of_it = log::lines_with(&text, &["ERROR", &pid]).count();
    assert_eq!((of_it, log::lines_with(&text, &["ERROR"]).count()), (2, 2), "{text}");
}

#[test]
fn a_frame_that_nobody_knows_is_ignored() {
    let server = Builder::program("mails").workers(1).start();
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
fn a_worker_that_is_killed_in_the_middle_of_a_message_leaves_nothing_behind() {
    let server = Builder::program("mails").workers(1).start().allow(&["SIGKILL"]);
    assert_eq!(server.get("/half").text(), "done");
    process::send(server.worker_pids()[0], Signal::SIGKILL);
    server.wait_replaced(1);
    assert_eq!(server.get("/echo/800000").text(), "same: true");
    assert_eq!(server.status()["primary"]["restarts"], 1);
    server.stop();
}

#[test]
fn a_flooding_worker_does_not_starve_the_others() {
    let server = Builder::program("mails").workers(3).start().allow(&["SIGKILL"]);
    assert_eq!(server.get("/flood/2").text(), "done");
    for _ in 0..20 {
        assert_eq!(server.get("/echo/100000").text(), "same: true");
    }
    // READY and everything else of the supervision goes its own way.
    process::send(server.worker_pids()[2], Signal::SIGKILL);
    server.wait_replaced(1);
    for _ in 0..8 {
        assert_eq!(server.get("/echo/10").text(), "same: true");
    }
    server.stop();
}

#[test]
fn a_frozen_worker_holds_up_those_who_write_to_it_for_a_second_only() {
    let server = Builder::program("mails").workers(2).start();
    let mut client = server.connect();
    let text = client.get("/slot").expect("answer").text().to_string();
    let slot: u32 = text.split(' ').next().and_then(|slot| slot.parse().ok()).expect("slot");
    let other = 1 - slot;
    let pid = server.worker_pid(u64::from(other) + 1);
    process::send(pid, Signal::SIGSTOP);
    assert_eq!(client.get(&format!("/flood/{other}")).expect("answer").text(), "done");
    server.wait_log(&["WARN", "messages"]);
    assert_eq!(client.get("/echo/100").expect("answer").text(), "same: true");
    process::send(pid, Signal::SIGCONT);
    drop(client);
    server.stop();
}

#[test]
fn a_function_that_panics_or_takes_long_is_named_and_goes_on() {
    let server = Builder::program("mails").workers(1).start().allow(&["panic", "panicked at"]);
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
fn what_nobody_listens_to_is_told_once_for_each_kind() {
    let server = Builder::program("mails").workers(2).start();
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
