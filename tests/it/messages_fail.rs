//! What workers can do to the mail of others: nothing.

use nix::sys::signal::Signal;

use crate::support::command::Builder;
use crate::support::{Server, process, wait};

#[test]
fn a_worker_that_writes_garbage_into_its_mail_is_replaced_and_nobody_else_notices() {
    let server = Builder::program("mails")
        .workers(3)
        .start()
        .allow(&["is condemned, killed: mail: ", "killed for what it said"]);
    let before = server.worker_pids();
    // It may be killed before it answers.
    let _ = server.try_get("/garbage");
    server.wait_log("is condemned, killed: mail: ");
    server.wait_replaced(1);
    wait::until("three workers", || server.worker_pids().len() == 3);
    let after = server.worker_pids();
    assert_eq!(after.iter().filter(|pid| before.contains(pid)).count(), 2);
    for _ in 0..8 {
        assert_eq!(server.get("/echo/100000").text(), "same: true");
    }
    assert_eq!(server.count_log("condemned"), 1);
    server.stop();
}

#[test]
fn a_frame_that_nobody_knows_is_ignored() {
    let server = Builder::program("mails").workers(1).start();
    let before = server.worker_pids();
    for _ in 0..3 {
        assert_eq!(server.get("/newer").text(), "done");
        assert_eq!(server.get("/echo/800000").text(), "same: true");
    }
    assert_eq!((server.worker_pids(), server.count_log("condemned")), (before, 0));
    server.stop();
}

#[test]
fn a_worker_that_is_killed_in_the_middle_of_a_message_leaves_nothing_behind() {
    let server = Builder::program("mails").workers(1).start().allow(&["killed by SIGKILL"]);
    assert_eq!(server.get("/half").text(), "done");
    process::send(server.worker_pids()[0], Signal::SIGKILL);
    server.wait_replaced(1);
    assert_eq!(server.get("/echo/800000").text(), "same: true");
    assert_eq!(server.count_log("condemned"), 0);
    server.stop();
}

#[test]
fn a_flooding_worker_does_not_starve_the_others() {
    let server = Builder::program("mails").workers(3).start().allow(&["killed by SIGKILL"]);
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
    let pid = slot_pid(&server, other);
    process::send(pid, Signal::SIGSTOP);
    assert_eq!(client.get(&format!("/flood/{other}")).expect("answer").text(), "done");
    server.wait_log(" messages so far: their receiver is gone, or does not read");
    assert_eq!(client.get("/echo/100").expect("answer").text(), "same: true");
    process::send(pid, Signal::SIGCONT);
    drop(client);
    server.stop();
}

/// The process at a slot, by what the log says.
fn slot_pid(server: &Server, slot: u32) -> u32 {
    let line = server.wait_log(&format!(" slot={slot} gen=1 pid="));
    let (_, rest) = line.split_once(" pid=").expect("pid");
    rest.split(' ').next().and_then(|pid| pid.parse().ok()).expect("number")
}

#[test]
fn a_function_that_panics_or_takes_long_is_named_and_goes_on() {
    let server = Builder::program("mails")
        .workers(1)
        .start()
        .allow(&["the function for messages of kind \"panic\" panicked", "panicked at"]);
    for times in 1..=2 {
        assert_eq!(server.get("/tell/panic").text(), "done");
        server.wait_log_times("the function for messages of kind \"panic\" panicked", times);
    }
    assert_eq!(server.get("/tell/slow").text(), "done");
    server.wait_log("the function for messages of kind \"slow\" took 1");
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
    let why = "the primary has no function for this kind (Cluster::on_message)";
    assert_eq!(refused, format!("a request was refused: {why}"));
    server.wait_log("drops messages of kind \"silence\": nobody receives this kind");
    let log = server.stop();
    assert_eq!(log.matches("sends messages of kind \"nothing\"").count(), 1, "{log}");
    assert!(log.matches("of kind \"silence\"").count() <= 2, "{log}");
}
