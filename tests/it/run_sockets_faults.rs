//! `prefork run` with a socket for each worker, when workers die or misbehave: nobody is refused, and nobody waits for ever.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpStream};

use nix::sys::signal::Signal;

use crate::run_sockets::{answering_programs, send_from, serving_programs};
use crate::support::command::ProcessBuilder;
use crate::support::control::serving;
use crate::support::load::Load;
use crate::support::{Server, env_count, process, wait};

fn start(workers: usize, words: &[&str], args: &[&str]) -> Server {
    let builder = ProcessBuilder::run_foreign_server(words).workers(workers);
    builder.dispatch("reuseport").args(args).start()
}

/// Returns slot, pid of the program, and pid of its parent, for each worker that serves.
fn workers(server: &Server) -> Vec<(u64, u32, u32)> {
    let status = server.status();
    let worker = |worker: &serde_json::Value| {
        let pid = worker["pid"].as_u64().expect("a pid") as u32;
        let parent = process::stat(pid).expect("it lives").parent;
        (worker["slot"].as_u64().expect("a slot"), pid, parent)
    };
    serving(&status).map(worker).collect()
}

/// Stops a process, and waits until it is stopped: before that it may accept a connection.
fn stop_process(pid: u32) {
    process::send_signal(pid, Signal::SIGSTOP);
    let is_stopped = |thread: u32| process::stat(thread).is_none_or(|stat| stat.state == 'T');
    wait::wait_until("the stop of all threads", || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
        let names = tasks.flatten().map(|task| task.file_name());
        names.filter_map(|name| name.to_str()?.parse().ok()).all(is_stopped)
    });
}

/// Sends a request from the address of probes, which reaches the socket of this index.
fn send_to_index(server: &Server, index: u8) -> TcpStream {
    send_from(server, Ipv4Addr::new(127, 80, 0, index))
}

#[test]
fn connections_that_wait_for_a_killed_worker_are_served_by_its_replacement() {
    let server = start(2, &[], &[]).allow_errors(&["SIGKILL"]);
    let (_, program, guard) = workers(&server)[1];
    stop_process(program);
    let mut client = send_to_index(&server, 1);
    process::send_signal(guard, Signal::SIGKILL);
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.contains(&format!("PID {program}\n")), "{answer}");
    server.stop();
}

#[test]
fn connections_that_wait_where_no_worker_will_come_are_reset() {
    let server = start(2, &[], &["--graceful-timeout", "200ms"]);
    let (_, program, _) = workers(&server)[1];
    stop_process(program);
    let mut client = send_to_index(&server, 1);
    server.run_verb(&["scale", "1"]);
    let error = client.read(&mut [0]).expect_err("reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(process::has_ended(program));
    server.stop();
}

#[test]
fn no_connection_goes_to_a_stopped_worker() {
    let server = start(2, &[], &[]);
    let (_, program, guard) = workers(&server)[0];
    // The kernel tells the primary of its own children only.
    stop_process(guard);
    wait::wait_until("the other one answers", || {
        !answering_programs(&server, 16).contains(&program)
    });
    process::send_signal(guard, Signal::SIGCONT);
    wait::wait_until("both answer", || answering_programs(&server, 16).contains(&program));
    server.stop();
}

#[test]
fn connections_wait_for_the_first_worker_and_for_the_next_one() {
    let builder = ProcessBuilder::run_foreign_server(&["boots-slowly"]).workers(2);
    let server = builder.dispatch("reuseport").spawn().listening();
    let server = server.allow_errors(&["SIGKILL"]);
    // None of the workers is ready; and then both have died.
    assert!(server.get("/").pid() > 0);
    server.wait_serving(2);
    let old = serving_programs(&server);
    for (_, _, guard) in workers(&server) {
        process::send_signal(guard, Signal::SIGKILL);
    }
    process::wait_ended(&old.iter().copied().collect::<Vec<u32>>());
    for _ in 0..4 {
        assert!(!old.contains(&server.get("/").pid()));
    }
    server.stop();
}

#[test]
fn a_program_that_shuts_its_listening_socket_down_takes_no_connection_from_others() {
    let server = start(3, &["shuts-down-at-term"], &[]).allow_errors(&["died"]);
    let load = Load::new_connections(server.address(), 4).start();
    for round in 0..env_count("PREFORK_RELOADS", 4) {
        load.wait_answered(24);
        let (_, program, _) = workers(&server)[round % 3];
        // One at a time: of several at once the kernel does not tell the order, which decides about positions.
        process::send_signal(program, Signal::SIGTERM);
        wait::wait_until("its replacement", || {
            let serving = serving_programs(&server);
            serving.len() == 3 && !serving.contains(&program)
        });
        // Some may be reset: the kernel resets what waits at a socket that is shut down.
        wait::wait_until("an answer of each", || {
            let answers = (0..24).filter_map(|_| server.try_get("/").ok());
            answers.map(|answer| answer.pid()).collect::<BTreeSet<u32>>()
                == serving_programs(&server)
        });
    }
    let tally = load.stop();
    assert_eq!(tally.refused, 0, "{tally:?}");
    server.stop();
}

#[test]
fn a_program_that_closes_its_listening_socket_is_replaced_and_those_who_wait_are_answered() {
    let args = ["--graceful-timeout", "120s", "--min-uptime", "0s"];
    let server = start(1, &["closes-sockets"], &args).allow_errors(&["closed", "died", "SIGTERM"]);
    let old = workers(&server)[0].1;
    std::fs::write(server.dir().join("close"), "").expect("write");
    wait::wait_until("it is closed", || !server.dir().join("close").exists());
    let waiting: Vec<_> = (0..4).map(|_| server.send_get("/")).collect();
    for mut client in waiting {
        let answer = client.read().expect("an answer");
        assert!(answer.status == 200 && answer.pid() != old, "{answer:?}");
    }
    assert!(process::has_ended(old));
    server.stop();
}

#[test]
fn killed_workers_under_load_reloads_and_upgrades_refuse_nobody() {
    let builder = ProcessBuilder::run_foreign_server(&[]).workers(3).dispatch("reuseport");
    let server = builder.with_copied_program().start().allow_errors(&["SIGKILL", "failed"]);
    let load = Load::new_connections(server.address(), 4).start();
    for round in 0..env_count("PREFORK_KILLS", 9) {
        load.wait_answered(12);
        match round % 3 {
            // The verbs may fail, if a kill meets a successor.
            0 => drop(server.try_verb(&["reload"])),
            1 => drop(server.try_verb(&["upgrade"])),
            _ => {}
        }
        let victims = process::children(server.pid());
        let guard = victims[round % victims.len()];
        let victim = process::children(guard).first().copied().unwrap_or(guard);
        // In turns the guard and its program.
        process::try_send_signal(if round % 2 == 0 { guard } else { victim }, Signal::SIGKILL);
    }
    load.wait_answered(24);
    let tally = load.stop();
    assert_eq!(tally.refused, 0, "{tally:?}");
    server.wait_serving(3);
    wait::wait_until("an answer of each", || {
        answering_programs(&server, 24) == serving_programs(&server)
    });
    server.stop();
}

#[test]
fn a_late_connection_is_left_to_the_next_worker() {
    // The sockets of a slot that was scaled away go to the next worker that is forked.
    let server = start(2, &[], &["--graceful-timeout", "200ms"]);
    let (_, program, _) = workers(&server)[1];
    stop_process(program);
    let mut client = send_to_index(&server, 1);
    server.run_verb(&["scale", "1"]);
    wait::wait_until("its end", || process::has_ended(program));
    server.run_verb(&["scale", "2"]);
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.stop();
}

#[test]
fn a_restart_takes_the_address_back_from_the_programs_of_a_killed_primary() {
    let mut server = start(2, &["ignores-term"], &[]);
    let old = serving_programs(&server);
    let address = format!("127.0.0.1:{}", server.port());
    server.kill_primary();
    let builder = ProcessBuilder::run_foreign_server(&[]).workers(2).dispatch("reuseport");
    let restarted = builder.bind([address]).start();
    assert!(answering_programs(&restarted, 16).is_disjoint(&old));
    process::wait_ended(&old.into_iter().collect::<Vec<u32>>());
    restarted.stop();
}
