//! What the primary asks of its workers, in a real cluster. `tests/programs/asks.rs` is the application.

use crate::support::command::Builder;
use crate::support::{Server, wait};

fn start(workers: usize) -> Server {
    Builder::program("asks").workers(workers).start().allow(&["37", "cannot answer"])
}

#[track_caller]
fn say(server: &Server, path: &str) -> String {
    server.get(path).text().to_string()
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
