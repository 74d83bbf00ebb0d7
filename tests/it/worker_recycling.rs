//! Workers that are replaced by `max-requests`, `max-lifetime`, `max-rss` and `max-rss-hard`.

use crate::support::load::Load;
use crate::support::{Server, log, wait};

#[test]
fn max_requests_replaces_workers_one_at_a_time_without_loss() {
    let server = Server::with(2, &["--max-requests", "50", "--min-uptime", "100ms"]);
    let load = Load::keep_alive(server.address(), 8).with_posts().with_think_time().start();
    server.wait_log_count(&["max-requests"], 3);
    server.wait_replaced(3);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused, tally.ended), (0, 0, 0), "{tally:?}");
    // Workers are replaced one at a time: the READY line of each replacement precedes the next replacement.
    let text = server.log();
    let (mut replaced, mut latest) = (0, 2);
    for line in text.lines() {
        if log::contains_word(line, "max-requests") {
            replaced += 1;
        } else if log::contains_word(line, &format!("worker={}", latest + 1)) {
            latest += 1;
        }
        assert!((0..=1).contains(&(2 + replaced - latest)), "{line}\n{text}");
    }
    assert_eq!(server.cluster()["primary"]["restarts"], 0);
    server.stop();
}

#[test]
fn max_lifetime_replaces_workers() {
    let server = Server::with(2, &["--max-lifetime", "1s", "--min-uptime", "100ms"]);
    let old = server.worker_pids();
    server.wait_log_count(&["max-lifetime"], 2);
    wait::wait_until("others", || old.iter().all(|pid| !server.worker_pids().contains(pid)));
    assert_eq!(server.get("/").status, 200);
    server.stop();
}

#[test]
fn max_rss_replaces_a_worker_without_loss() {
    let server = Server::with(2, &["--faults", "--max-rss", "100MiB", "--min-uptime", "100ms"]);
    let mut client = server.connect();
    let old = client.get("/").expect("answer").pid();
    for _ in 0..10 {
        assert_eq!(client.get("/fault/leak").expect("answer").status, 200);
    }
    server.wait_log(&["max-rss"]);
    server.wait_new_workers(2, &[old]);
    // The connection was handed over.
    assert_ne!(client.get("/").expect("an answer").pid(), old);
    server.stop();
}

#[test]
fn max_rss_hard_kills_and_replaces_a_worker() {
    let server =
        Server::with(2, &["--faults", "--max-rss-hard", "100MiB"]).allow_errors(&["worker="]);
    let mut client = server.connect();
    let pid = client.get("/").expect("answer").pid();
    // The worker may be killed during these requests.
    let leaks = (0..10).take_while(|_| client.get("/fault/leak").is_ok()).count();
    assert!(leaks > 2, "{leaks}");
    let tag = format!("pid={pid}");
    server.wait_log(&["ERROR", &tag, "max-rss-hard"]);
    server.wait_replaced(1);
    server.wait_new_workers(2, &[pid]);
    assert_eq!(server.get("/").status, 200);
    let text = server.stop();
    // One line for the reason, and one for the exit.
    let of_it = log::lines_with(&text, &["ERROR", &tag]).count();
    assert_eq!((of_it, log::lines_with(&text, &["ERROR"]).count()), (2, 2), "{text}");
}
