//! What users of Node's cluster rely on besides its events: ids, the list of workers, child processes, and the end of the
//! primary.

use nix::sys::signal::Signal;

use crate::primary_events::{
    command_result, events_of_worker, read_events, run_commands, start_events, wait_event,
};
use crate::support::{process, wait};

#[test]
fn a_worker_is_listed_until_its_exit() {
    let server = start_events(1);
    process::send_signal(server.worker_pid(1), Signal::SIGKILL);
    wait_event(&server, 1, "replaced");
    let lines = read_events(&server);
    assert!(lines.contains(&"known 1 true".to_string()), "{lines:?}");
    assert!(lines.contains(&"known gone 1 false".to_string()), "{lines:?}");
    server.stop();
}

#[test]
fn ids_are_never_used_again() {
    let server = start_events(2);
    for generation in [2, 3] {
        let old = server.worker_pids();
        process::send_signal(old[0], Signal::SIGKILL);
        let old = server.wait_new_workers(2, &old[..1]);
        server.signal(Signal::SIGHUP);
        server.wait_generation(generation);
        server.wait_new_workers(2, &old);
    }
    let lines = read_events(&server);
    let forks = lines.iter().filter_map(|line| line.strip_suffix(" fork"));
    let ids: Vec<u64> = forks.map(|id| id.parse().expect("an id")).collect();
    assert!(ids.len() >= 8 && ids.is_sorted_by(|one, next| one < next), "{ids:?}");
    server.stop();
}

#[test]
fn a_program_can_fork_after_all_workers_have_left() {
    let server = start_events(1);
    run_commands(&server, &["disconnect 1"]);
    wait_event(&server, 1, "exit");
    wait_event(&server, 2, "listening");
    run_commands(&server, &["disconnect 2", "fork ROLE=mail"]);
    let forked = command_result(&server, "fork ROLE=mail").expect("done");
    let id: u64 = forked.strip_prefix("worker ").and_then(|id| id.parse().ok()).expect(&forked);
    wait_event(&server, 2, "exit");
    wait_event(&server, id, "listening");
    wait::wait_until("an answer of the new worker", || {
        server.get("/env/ROLE").text().ends_with(" mail")
    });
    server.stop();
}

#[test]
fn the_exit_status_of_a_command_in_a_hook_is_not_reaped_by_the_primary() {
    let server = start_events(1);
    run_commands(&server, &["command"]);
    assert_eq!(command_result(&server, "command").as_deref(), Some("Some(7)"));
    server.stop();
}

#[test]
fn an_exit_in_a_hook_ends_the_primary_with_its_status() {
    let mut server = start_events(2);
    let pids = server.worker_pids();
    let file = server.dir().join("commands.new");
    std::fs::write(&file, "exit 3").expect("written");
    std::fs::rename(&file, server.dir().join("commands")).expect("renamed");
    server.signal(Signal::SIGTTIN);
    assert_eq!(server.wait_exit().code(), Some(3));
    process::wait_ended(&pids);
    assert!(!events_of_worker(&server, 1).iter().any(|line| line.starts_with("exit")));
}

#[test]
fn a_program_that_a_worker_starts_inherits_only_the_standard_streams() {
    let server = start_events(1);
    let text = server.get("/child").text().to_string();
    let lines: Vec<&str> = text.lines().collect();
    // What this process has was not opened by the server.
    let own = process::descriptors(std::process::id());
    let is_own = |line: &str| own.iter().any(|(_, target)| target == line);
    let kinds = ["socket:", "anon_inode:", "/memfd"];
    let is_of_server = |line: &&&str| kinds.iter().any(|kind| line.starts_with(kind));
    let opened: Vec<&&str> =
        lines.iter().filter(is_of_server).filter(|line| !is_own(line)).collect();
    assert!(opened.is_empty(), "{opened:?}");
    let mask = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        u64::from_str_radix(line.trim(), 16).expect("a mask")
    };
    // Signals 32 and 33 are those of the C library.
    let ignored = mask(&text, "SigIgn:") & !(0b11 << 31);
    assert_eq!((mask(&text, "SigBlk:"), ignored), (0, 0), "{text}");
    for name in ["PREFORK_MANIFEST", "PREFORK_PROOF", "NOTIFY_SOCKET", "LISTEN_FDS"] {
        assert!(!text.contains(name), "{text}");
    }
    server.stop();
}
