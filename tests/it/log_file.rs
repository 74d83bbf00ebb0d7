//! The log in a file of its own, and its rotation.

use std::fs;

use nix::sys::signal::Signal;

use crate::support::{Server, wait};

/// What every process of the cluster writes goes to the new file after a rotation, and none of it is lost.
#[test]
fn a_renamed_log_is_opened_anew_by_the_primary_and_its_workers() {
    let builder = Server::builder().workers(2).args(["--faults", "--log-file", "prefork.log"]);
    let (old, new) = (builder.dir().join("old.log"), builder.dir().join("prefork.log"));
    let mut server = builder.spawn();
    let contains = |path: &std::path::Path, piece: &str| {
        fs::read_to_string(path).is_ok_and(|text| text.contains(piece))
    };
    wait::until("the start in the file", || contains(&new, "all 2 workers serve"));
    server.find_addresses(&fs::read_to_string(&new).expect("log"));
    fs::rename(&new, &old).expect("rename");
    server.signal(Signal::SIGUSR1);
    wait::until("the new file", || contains(&new, "log reopened"));
    // Both workers have heard of it when what they say is there.
    wait::until("both workers in the new file", || {
        assert_eq!(server.get("/fault/panic").status, 500);
        let text = fs::read_to_string(&new).unwrap_or_default();
        ["worker=1", "worker=2"].iter().all(|w| {
            text.lines().any(|line| line.contains(w) && line.contains("/fault/panic panicked"))
        })
    });
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
    assert!(contains(&new, "stopped") && !contains(&old, "stopped"));
    assert_eq!(server.log().lines().count(), 1, "only the warning of --faults: {}", server.log());
}

#[test]
fn a_log_file_that_cannot_be_opened_is_an_error() {
    let ended = Server::builder().args(["--log-file", "no/such/directory/log"]).run();
    assert_eq!(ended.status, Some(71), "{}", ended.err);
    assert!(ended.err.contains("cannot write the log to no/such/directory/log"), "{}", ended.err);
}
