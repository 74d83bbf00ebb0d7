//! What workers can do to the mail of others: nothing.

use nix::sys::signal::Signal;

use crate::support::command::Builder;
use crate::support::{log, process, wait};

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
