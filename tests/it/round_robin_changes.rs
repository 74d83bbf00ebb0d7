//! `--dispatch round-robin` while workers come and go: reload, scale, recycling, upgrade, stop and orphans.

use nix::sys::signal::Signal;

use crate::round_robin::dealt;
use crate::support::load::Load;
use crate::support::{Client, Server, amount, process, wait};

#[test]
fn reloads_scaling_and_recycling_lose_nothing() {
    let server = dealt(2).start();
    let load = Load::new_connections(server.address(), 6).start();
    for (generation, workers) in [(2, "4"), (3, "1"), (4, "3")] {
        load.wait_answered(50);
        server.order(&["scale", workers]);
        load.wait_answered(50);
        server.signal(Signal::SIGHUP);
        server.wait_generation(generation);
    }
    load.wait_answered(50);
    // One that is leaving already has nothing to retire from. The reload went back to the two of the configuration.
    wait::until("the old ones are gone", || server.worker_pids().len() == 2);
    let retiring = server.worker_pids()[0];
    process::send(retiring, Signal::SIGTERM);
    server.wait_others(2, &[retiring]);
    load.wait_answered(50);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
    server.stop();
}

#[test]
fn a_reload_may_change_the_policy_there_and_back() {
    let text = |policy| format!("workers = 2\nbind = ['127.0.0.1:0']\ndispatch = '{policy}'\n");
    let server = Server::builder().config(2, &text("shared")).start();
    let load = Load::new_connections(server.address(), 6).start();
    for (generation, policy) in [(2, "round-robin"), (3, "shared"), (4, "round-robin")] {
        load.wait_answered(50);
        std::fs::write(server.dir().join("prefork.toml"), text(policy)).expect("write");
        server.signal(Signal::SIGHUP);
        server.wait_generation(generation);
    }
    load.wait_answered(50);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
    server.stop();
}

#[test]
fn what_the_last_one_dealt_to_has_left_is_served_under_the_new_policy() {
    let text = |policy| {
        format!(
            "workers = 1\nbind = ['127.0.0.1:0']\ngraceful-timeout = '1s'\ndispatch = '{policy}'\n"
        )
    };
    let server = Server::builder().config(1, &text("round-robin")).start();
    let old = server.worker_pids()[0];
    process::send(old, Signal::SIGSTOP);
    let mut clients: Vec<Client> = (0..12).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    }
    std::fs::write(server.dir().join("prefork.toml"), text("shared")).expect("write");
    server.signal(Signal::SIGHUP);
    server.wait_generation(2);
    for client in &mut clients {
        assert_ne!(client.read().expect("answer").pid(), old);
    }
    server.stop();
}

#[test]
fn upgrades_lose_no_new_connection_and_leave_no_descriptor_behind() {
    let server = dealt(2).copied().start();
    let before = process::descriptors(server.pid()).len();
    let load = Load::new_connections(server.address(), 6).start();
    for generation in 2..2 + amount("PREFORK_UPGRADES", 5) {
        load.wait_answered(50);
        let old = server.worker_pids();
        server.signal(Signal::SIGUSR2);
        server.wait_generation(generation);
        server.wait_others(2, &old);
    }
    load.wait_answered(50);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
    wait::until("as many descriptors as before", || {
        process::descriptors(server.pid()).len() == before
    });
    server.stop();
}

#[test]
fn what_waits_in_a_queue_lives_through_an_upgrade() {
    let server = dealt(2).copied().args(["--graceful-timeout", "1s"]).start();
    let old = server.worker_pids();
    old.iter().for_each(|pid| process::send(*pid, Signal::SIGSTOP));
    let mut clients: Vec<Client> = (0..40).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    }
    server.signal(Signal::SIGUSR2);
    server.wait_generation(2);
    for client in &mut clients {
        assert!(!old.contains(&client.soon().expect("answer").pid()));
    }
    server.stop();
}

#[test]
fn a_stop_under_load_answers_all_that_were_let_in() {
    for _ in 0..amount("PREFORK_STOPS", 3) {
        let server = dealt(3).start();
        let load = Load::new_connections(server.address(), 8).until_refused().start();
        load.wait_answered(100);
        server.signal(Signal::SIGTERM);
        let tally = load.join();
        assert_eq!(tally.failures(), 0, "{tally:?}");
        server.finish(0);
    }
}

#[test]
fn orphans_answer_what_was_queued_when_the_primary_died() {
    let mut server = dealt(2).start();
    let workers = server.worker_pids();
    server.signal(Signal::SIGSTOP);
    wait::until("a stopped primary", || {
        process::stat(server.pid()).expect("it lives").state == 'T'
    });
    let mut clients: Vec<Client> = (0..20).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    }
    server.kill_primary();
    for client in &mut clients {
        assert!(workers.contains(&client.read().expect("answer").pid()));
    }
    wait::until("their end", || workers.iter().all(|pid| process::is_gone(*pid)));
}
