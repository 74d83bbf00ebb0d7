//! The process titles that `ps` shows.

use nix::sys::signal::Signal;

use crate::support::{Server, process, wait};

/// Waits until the workers have these titles.
#[track_caller]
fn wait_titles(server: &Server, wanted: &[&str]) {
    wait::wait_until(&format!("{wanted:?}"), || {
        let mut titles: Vec<_> =
            server.worker_pids().into_iter().map(process::command_line).collect();
        titles.sort();
        titles == wanted
    });
}

#[test]
fn process_titles_name_primary_and_workers() {
    let server = Server::builder().with_copied_program().start();
    assert_eq!(process::command_line(server.pid()), "prefork: primary");
    wait_titles(&server, &["prefork: worker 1 (gen 1)", "prefork: worker 2 (gen 1)"]);
    server.signal(Signal::SIGHUP);
    wait_titles(&server, &["prefork: worker 3 (gen 2)", "prefork: worker 4 (gen 2)"]);
    server.signal(Signal::SIGUSR2);
    wait_titles(&server, &["prefork: worker 5 (gen 3)", "prefork: worker 6 (gen 3)"]);
    assert_eq!(process::command_line(server.pid()), "prefork: primary");
    server.stop();
}
