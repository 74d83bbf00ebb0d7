//! Events, commands and hooks in the primary, by the public API alone. `tests/programs/primary_events.rs` is the
//! application.

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::{Server, process, wait};

pub fn start_events(workers: usize) -> Server {
    let server = ProcessBuilder::program("primary-events").workers(workers).start();
    // Each death is logged as an ERROR about a worker; the tests check the deaths by their events.
    server.allow_errors(&["worker="])
}

/// Returns the lines that the hook has written, one for each event.
pub fn read_events(server: &Server) -> Vec<String> {
    let text = std::fs::read_to_string(server.dir().join("events")).expect("events");
    text.lines().map(str::to_string).collect()
}

/// Returns the events of one worker, without its id.
pub fn events_of_worker(server: &Server, worker: u64) -> Vec<String> {
    let lines = read_events(server).into_iter();
    lines.filter_map(|l| l.strip_prefix(&format!("{worker} ")).map(str::to_string)).collect()
}

/// Waits until the latest event of the worker starts with `last`, and returns all its events.
#[track_caller]
pub fn wait_event(server: &Server, worker: u64, last: &str) -> Vec<String> {
    wait::wait_until_some(&format!("{last:?} of worker {worker}"), || {
        let life = events_of_worker(server, worker);
        life.last().is_some_and(|line| line.starts_with(last)).then_some(life)
    })
}

/// Lets the hook run these commands, which it does at a scale event, and waits for the last one.
#[track_caller]
pub fn run_commands(server: &Server, commands: &[&str]) {
    let file = server.dir().join("commands.new");
    std::fs::write(&file, commands.join("\n")).expect("written");
    std::fs::rename(&file, server.dir().join("commands")).expect("renamed");
    server.signal(Signal::SIGTTIN);
    let last = commands.last().expect("a command");
    wait::wait_until(&format!("{last:?} done"), || command_result(server, last).is_some());
}

/// Returns the result of a command, once it was run.
pub fn command_result(server: &Server, command: &str) -> Option<String> {
    let lines = read_events(server).into_iter();
    lines.rev().find_map(|l| l.strip_prefix(&format!("did {command}: ")).map(str::to_string))
}

/// Returns the names of events, without their details.
fn event_names(life: &[String]) -> Vec<&str> {
    life.iter().filter_map(|line| line.split(' ').next()).collect()
}

/// Waits until a request has reached its handler, which creates a file.
#[track_caller]
fn wait_request_in_handler(server: &Server) {
    let file = server.dir().join("waiting");
    wait::wait_until("a request that waits", || std::fs::remove_file(&file).is_ok());
}

const ALL_EVENTS: [&str; 6] = ["fork", "online", "listening", "disconnect", "exit", "replaced"];

#[test]
fn every_kind_of_exit_is_reported_once_with_its_reason() {
    let server = start_events(1);
    let _ = server.try_get("/exit/0");
    let first = wait_event(&server, 1, "replaced");
    wait_event(&server, 2, "listening");
    let _ = server.try_get("/exit/42");
    let second = wait_event(&server, 2, "replaced");
    wait_event(&server, 3, "listening");
    process::send_signal(server.worker_pid(3), Signal::SIGKILL);
    let third = wait_event(&server, 3, "replaced");
    wait_event(&server, 4, "listening");
    process::send_signal(server.worker_pid(4), Signal::SIGABRT);
    let fourth = wait_event(&server, 4, "replaced");
    wait_event(&server, 5, "listening");
    process::send_signal(server.worker_pid(5), Signal::SIGTERM);
    let fifth = wait_event(&server, 5, "replaced");
    for (life, exit) in [
        (&first, "exit Some(0) None Exited asked=false"),
        (&second, "exit Some(42) None Exited asked=false"),
        (&third, "exit None Some(9) Killed asked=false"),
        (&fourth, "exit None Some(6) Crashed asked=false"),
        (&fifth, "exit Some(0) None Retired asked=true"),
    ] {
        assert_eq!((event_names(life), life[4].as_str()), (ALL_EVENTS.to_vec(), exit));
    }
    assert_eq!(first[5], "replaced 2");
    server.stop();
}

#[test]
fn a_disconnected_worker_drains_and_is_not_replaced() {
    let server = start_events(2);
    let mut client = server.connect();
    client.send("GET /poll HTTP/1.1\r\nHost: test\r\n\r\n").expect("sent");
    wait_request_in_handler(&server);
    run_commands(&server, &["disconnect 1", "disconnect 2"]);
    assert_eq!(client.read_within_10_seconds().expect("answer").text(), "goodbye");
    drop(client);
    for worker in [1, 2] {
        let life = wait_event(&server, worker, "exit");
        assert_eq!(life[4], "exit Some(0) None Disconnected asked=true");
        assert_eq!(event_names(&life), ALL_EVENTS[..5]);
    }
    // Only the worker that was added to run the commands serves.
    wait_event(&server, 3, "listening");
    assert_eq!(server.worker_pids().len(), 1);
    // A reload fills the slots again, without `replaced` events of the disconnected workers.
    server.signal(Signal::SIGHUP);
    wait::wait_until("a reload", || read_events(&server).contains(&"reloaded".to_string()));
    wait::wait_until("all three workers", || server.worker_pids().len() == 3);
    for worker in [1, 2] {
        assert_eq!(event_names(&events_of_worker(&server, worker)), ALL_EVENTS[..5]);
    }
    server.stop();
}

#[test]
fn a_worker_can_disconnect_itself() {
    let server = start_events(2);
    assert_eq!(server.get("/disconnect").text(), "true");
    let gone = wait::wait_until_some("an end", || {
        let lines = read_events(&server);
        lines.iter().find(|line| line.contains(" exit ")).cloned()
    });
    assert!(gone.ends_with("exit Some(0) None Disconnected asked=true"), "{gone}");
    assert_eq!(server.worker_pids().len(), 1);
    let forks = read_events(&server).iter().filter(|line| line.ends_with(" fork")).count();
    assert_eq!(forks, 2, "it is not replaced");
    server.stop();
}

#[test]
fn kill_and_disconnect_can_be_combined() {
    let server = start_events(2);
    run_commands(&server, &["kill 1 9", "disconnect 1"]);
    let life = wait_event(&server, 1, "exit");
    // Whether the disconnect or the death is noticed first is open.
    assert!(life[4].starts_with("exit None Some(9) Killed"), "{life:?}");
    // A hanging request keeps the worker draining until the kill.
    let mut client = server.connect();
    client.send("GET /hang HTTP/1.1\r\nHost: test\r\n\r\n").expect("sent");
    wait_request_in_handler(&server);
    let ids = serving_ids(&server);
    let commands: Vec<String> = ids.iter().map(|id| format!("disconnect {id}")).collect();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    run_commands(&server, &commands);
    let hangs = wait::wait_until_some("one that hangs", || {
        let left: Vec<u64> =
            ids.iter().copied().filter(|id| event_count(&server, *id) < 5).collect();
        (left.len() == 1).then(|| left[0])
    });
    run_commands(&server, &[&format!("kill {hangs} 9")]);
    let life = wait_event(&server, hangs, "exit");
    assert_eq!(life[4], "exit None Some(9) Killed asked=true");
    assert_eq!(event_names(&life), ALL_EVENTS[..5]);
    server.stop();
}

fn event_count(server: &Server, worker: u64) -> usize {
    events_of_worker(server, worker).len()
}

/// Returns the ids of serving workers, as the hook lists them.
#[track_caller]
fn serving_ids(server: &Server) -> Vec<u64> {
    run_commands(server, &["workers"]);
    let workers = command_result(server, "workers").expect("the answer");
    let serving = workers.split(' ').filter(|worker| worker.ends_with("/serving"));
    serving.filter_map(|worker| worker.split('/').next()?.parse().ok()).collect()
}

#[test]
fn simultaneous_deaths_are_each_reported_once() {
    let server = start_events(8);
    let pids = server.worker_pids();
    assert_eq!(pids.len(), 8);
    for pid in pids {
        process::send_signal(pid, Signal::SIGKILL);
    }
    for worker in 1..=8 {
        assert_eq!(event_names(&wait_event(&server, worker, "replaced")), ALL_EVENTS);
    }
    let log = server.dir().to_path_buf();
    let events = std::fs::read_to_string(log.join("events")).expect("events");
    assert_eq!(events.lines().filter(|line| line.ends_with(" fork")).count(), 16);
    server.stop();
}

#[test]
fn listening_events_have_the_bound_addresses() {
    let server = ProcessBuilder::program("primary-events")
        .workers(1)
        .args(["--bind", "unix:own.sock"])
        .start();
    let line = &events_of_worker(&server, 1)[2];
    let addresses: Vec<String> = server
        .addresses()
        .iter()
        .map(|address| match address {
            crate::support::http::Address::Tcp(tcp) => tcp.to_string(),
            crate::support::http::Address::Unix(path) => format!("unix:{}", path.display()),
        })
        .collect();
    assert_eq!(*line, format!("listening {}", addresses.join(",")));
    assert!(line.contains("unix:") && !line.contains(":0,"), "{line}");
    server.stop();
}

#[test]
fn fork_with_sets_the_environment_of_a_worker_and_its_replacement() {
    let server = start_events(1);
    run_commands(&server, &["fork ROLE=mail HOME=/nowhere", "fork =x"]);
    let forked = command_result(&server, "fork ROLE=mail HOME=/nowhere").expect("done");
    let id: u64 = forked.strip_prefix("worker ").and_then(|id| id.parse().ok()).expect(&forked);
    assert!(command_result(&server, "fork =x").expect("done").contains("fork_with"));
    wait_event(&server, id, "listening");
    let find = |server: &Server| {
        wait::wait_until_some("the worker with a role", || {
            let answers: Vec<String> =
                (0..20).map(|_| server.get("/env/ROLE").text().to_string()).collect();
            answers.into_iter().find(|answer| answer.ends_with(" mail"))
        })
    };
    let slot = find(&server);
    process::send_signal(server.worker_pid(id), Signal::SIGKILL);
    wait_event(&server, id, "replaced");
    assert_eq!(find(&server), slot);
    server.stop();
}

#[test]
fn on_restart_can_leave_a_slot_empty_until_the_next_reload() {
    let server = start_events(2);
    std::fs::write(server.dir().join("veto"), "").expect("written");
    process::send_signal(server.worker_pid(1), Signal::SIGKILL);
    wait::wait_until("an empty slot", || {
        server.status()["primary"]["vacant"] == serde_json::json!([0])
    });
    assert_eq!(event_names(&events_of_worker(&server, 1)), ALL_EVENTS[..5]);
    assert_eq!(server.worker_pids().len(), 1);
    server.signal(Signal::SIGHUP);
    wait::wait_until("a reload", || read_events(&server).contains(&"reloaded".to_string()));
    wait::wait_until("two workers", || server.worker_pids().len() == 2);
    server.stop();
}

#[test]
fn a_panicking_or_slow_hook_is_named_and_kept() {
    let server = start_events(1).allow_errors(&["on_event", "panicked at"]);
    for file in ["panic", "slow"] {
        std::fs::write(server.dir().join(file), "").expect("written");
    }
    process::send_signal(server.worker_pid(1), Signal::SIGKILL);
    assert_eq!(event_names(&wait_event(&server, 1, "replaced")), ALL_EVENTS);
    server.wait_log(&["ERROR", "on_event", "the hook has had enough"]);
    server.wait_log(&["WARN", "on_event"]);
    server.stop();
}

#[test]
fn a_hook_can_reload_scale_and_stop() {
    let mut server = start_events(1);
    run_commands(&server, &["reload"]);
    wait::wait_until("a reload", || read_events(&server).contains(&"reloaded".to_string()));
    run_commands(&server, &["scale 1", "stop"]);
    assert_eq!(server.wait_exit().code(), Some(0));
    let events = read_events(&server);
    assert_eq!(events.iter().filter(|line| *line == "stopping").count(), 1);
    let forks = events.iter().filter(|line| line.ends_with(" fork")).count();
    let exits = events.iter().filter(|line| line.contains(" exit ")).count();
    assert_eq!(forks, exits, "{events:?}");
}

#[test]
fn worker_current_is_set_only_inside_a_worker() {
    let server = start_events(1);
    assert_eq!(
        server.get("/current").text(),
        "Some(WorkerId(1)) Ok(Some(WorkerId(1))) true true outside None false"
    );
    server.stop();
}

#[test]
fn simultaneous_disconnects_are_each_reported_once_in_order() {
    let server = ProcessBuilder::program("primary-events").workers(8).start();
    let read_file = || std::fs::read_to_string(server.dir().join("events")).expect("events");
    let commands: Vec<String> = (1..=8).map(|id| format!("disconnect {id}")).collect();
    let file = server.dir().join("commands.new");
    std::fs::write(&file, commands.join("\n")).expect("written");
    std::fs::rename(&file, server.dir().join("commands")).expect("renamed");
    // The hook reads the commands at a scale event.
    server.signal(nix::sys::signal::Signal::SIGTTIN);
    wait::wait_until("eight exits", || read_file().matches(" exit ").count() == 8);
    wait::wait_until("the ninth serves", || read_file().contains("9 listening "));
    for worker in 1..=8 {
        let text = read_file();
        let life = text.lines().filter_map(|line| line.strip_prefix(&format!("{worker} ")));
        let names: Vec<&str> = life.filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(names, ["fork", "online", "listening", "disconnect", "exit"], "{worker}");
        let exit = format!("{worker} exit Some(0) None Disconnected asked=true\n");
        assert!(text.contains(&exit), "{text}");
    }
    assert_eq!(server.worker_pids().len(), 1, "they are not replaced");
    server.stop();
}

#[test]
fn builder_settings_do_not_reset_each_other() {
    use tokio_prefork::{Config, Dispatch};
    let begun = Config::builder().backlog(77).max_requests(5);
    let config = begun.dispatch(Dispatch::RoundRobin).backlog(78).build().expect("a configuration");
    assert_eq!((config.backlog(), config.max_requests()), (78, Some(5)));
    assert_eq!(config.dispatch(), Dispatch::RoundRobin);
}
