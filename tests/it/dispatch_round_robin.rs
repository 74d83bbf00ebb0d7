//! `--dispatch round-robin`: the primary accepts connections and passes them to the workers in turn.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use nix::sys::signal::Signal;

use crate::resource_limits::EMFILE_TEXT;
use crate::support::command::ProcessBuilder;
use crate::support::load::Load;
use crate::support::{Address, Client, Server, env_count, process, wait};

const ROUND_ROBIN_ARGS: [&str; 2] = ["--dispatch", "round-robin"];

pub fn round_robin_builder(workers: usize) -> ProcessBuilder {
    Server::builder().workers(workers).args(ROUND_ROBIN_ARGS)
}

/// Counts the connections that each process serves.
#[track_caller]
fn connections_per_worker(clients: &mut [Client]) -> BTreeMap<u32, usize> {
    let mut shares = BTreeMap::new();
    for client in clients {
        *shares.entry(client.get("/").expect("answer").pid()).or_default() += 1;
    }
    shares
}

#[test]
fn round_robin_order_is_strict() {
    let server = round_robin_builder(3).start();
    // A worker that is not scheduled for a while may miss its turn, but not every time.
    wait::wait_until("thirty turns in order", || {
        let pids: Vec<u32> = (0..30).map(|_| server.get("/").pid()).collect();
        let mut order = pids[..3].to_vec();
        order.sort_unstable();
        order == server.worker_pids() && pids.iter().zip(&pids[3..]).all(|(one, next)| one == next)
    });
    server.stop();
}

#[test]
fn round_robin_spreads_kept_connections_exactly() {
    for burst in [false, true] {
        let server = round_robin_builder(4).start();
        // Retried, as a worker that is not scheduled for a while may miss its turn.
        wait::wait_until("16 for each", || {
            let mut clients = Vec::new();
            for _ in 0..64 {
                let mut client = server.connect();
                if !burst {
                    client.get("/").expect("answer");
                }
                clients.push(client);
            }
            let shares = connections_per_worker(&mut clients);
            shares.len() == 4 && shares.values().all(|share| *share == 16)
        });
        server.stop();
    }
}

#[test]
fn connections_queued_for_a_frozen_worker_are_served_by_others() {
    let server = round_robin_builder(4).start();
    let frozen = server.worker_pids()[1];
    process::send_signal(frozen, Signal::SIGSTOP);
    // Connections arrive in a burst, so that some are queued for the frozen worker before the primary notices.
    let mut clients: Vec<Client> = (0..40).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    }
    for client in &mut clients {
        assert_ne!(client.read_within_10_seconds().expect("another worker answers").pid(), frozen);
    }
    for _ in 0..40 {
        assert_ne!(server.get("/").pid(), frozen);
    }
    process::send_signal(frozen, Signal::SIGCONT);
    wait::wait_until("a connection to the resumed worker", || server.get("/").pid() == frozen);
    server.stop();
}

#[test]
fn connections_queued_for_a_killed_worker_are_served_by_others() {
    let server = round_robin_builder(2).start().allow_errors(&["SIGKILL"]);
    let workers = server.worker_pids();
    // Stopped workers accept nothing, so their queues fill up.
    workers.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGSTOP));
    let mut clients: Vec<Client> = (0..30).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    }
    workers.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGKILL));
    for client in &mut clients {
        assert!(!workers.contains(&client.read().expect("answer").pid()));
    }
    server.wait_replaced(2);
    server.stop();
}

#[test]
fn round_robin_skips_full_workers_and_queues_the_rest() {
    let server = round_robin_builder(2).args(["--worker-connections", "2"]).start();
    let mut clients: Vec<Client> = (0..3).map(|_| server.connect()).collect();
    assert_eq!(connections_per_worker(&mut clients).len(), 2);
    // The next worker in turn already has two.
    let mut fourth = server.connect();
    fourth.get("/").expect("answer");
    clients.push(fourth);
    let shares = connections_per_worker(&mut clients);
    assert!(shares.values().all(|share| *share == 2), "{shares:?}");
    let mut waits = server.connect();
    waits.send("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    assert_eq!(clients[0].get("/cluster").expect("answer").status, 200);
    clients.pop();
    assert_eq!(waits.read().expect("the waiting connection is accepted").text(), "ok\n");
    drop(clients);
    server.stop();
}

#[test]
fn round_robin_accepts_from_every_kind_of_socket() {
    let builder = round_robin_builder(2);
    let path = builder.dir().join("socket");
    let unix = format!("unix:{}", path.display());
    let server = builder.bind(["127.0.0.1:0", "[::1]:0", &unix]).start();
    for address in server.addresses() {
        let mut pids: Vec<u32> = (0..8)
            .map(|_| Client::connect(address).and_then(|mut c| c.get("/")).expect("answer").pid())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        assert_eq!(pids.len(), 2, "{address}");
    }
    assert_eq!(server.addresses()[2], Address::Unix(path));
    server.stop();
}

#[test]
fn round_robin_refuses_no_connection_while_workers_are_killed() {
    let server = round_robin_builder(4).start().allow_errors(&["SIGKILL"]);
    let load = Load::new_connections(server.address(), 8).start();
    let kills = env_count("PREFORK_KILLS", 40);
    for kill in 0..kills {
        load.wait_answered(40);
        let pids = server.worker_pids();
        process::send_signal(pids[kill % pids.len()], Signal::SIGKILL);
    }
    load.wait_answered(40);
    let tally = load.stop();
    assert_eq!(tally.refused, 0, "{tally:?}");
    // A worker loses only the requests it had begun.
    assert!(tally.failures() <= 2 * kills as u64, "{tally:?}");
    wait::wait_until("four workers again", || server.worker_pids().len() == 4);
    server.stop();
}

#[test]
fn the_primary_answers_control_requests_during_a_connection_flood() {
    let server = round_robin_builder(2).start();
    let base = process::descriptors(server.pid()).len();
    let stop = Arc::new(AtomicBool::new(false));
    let flood: Vec<_> = (0..2)
        .map(|_| {
            let (stop, to) = (Arc::clone(&stop), server.address().clone());
            std::thread::spawn(move || {
                let mut made = 0;
                while !stop.load(Relaxed) {
                    made += usize::from(Client::connect(&to).is_ok());
                }
                made
            })
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(server.status()["primary"]["phase"], "running");
    }
    server.signal(Signal::SIGHUP);
    server.wait_generation(2);
    stop.store(true, Relaxed);
    let made: usize = flood.into_iter().map(|one| one.join().expect("a client panicked")).sum();
    assert!(made > 100, "{made} connections are no flood");
    wait::wait_until("as many descriptors as before", || {
        process::descriptors(server.pid()).len() == base
    });
    server.stop();
}

#[test]
fn a_primary_without_descriptors_backs_off_and_recovers() {
    // Enough descriptors for the start; then each control client uses one up.
    let limited = r#"ulimit -n 40; exec "$0" "$@""#;
    let server =
        round_robin_builder(1).script(limited).start().allow_errors(&[EMFILE_TEXT, "control"]);
    let mut clients = Vec::new();
    wait::wait_until("no descriptor left", || {
        let missing = 40 - process::descriptors(server.pid()).len();
        if missing > 0 {
            clients.push(UnixStream::connect(server.control()).expect("connect"));
        }
        missing == 0
    });
    let mut waits = server.connect();
    waits.send("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    server.wait_log(&["ERROR", &server.port().to_string()]);
    let share = process::cpu_share(server.pid());
    assert!(share < 0.5, "it uses {share} of a core while it rests");
    assert_eq!(server.count_log(&["ERROR", &server.port().to_string()]), 1);
    drop(clients);
    assert_eq!(waits.read().expect("answer").status, 200);
    server.stop();
}

#[test]
fn reload_scale_and_retire_under_round_robin_lose_nothing() {
    let server = round_robin_builder(2).start();
    let load = Load::new_connections(server.address(), 6).start();
    for (generation, workers) in [(2, "4"), (3, "1"), (4, "3")] {
        load.wait_answered(50);
        server.run_verb(&["scale", workers]);
        load.wait_answered(50);
        server.signal(Signal::SIGHUP);
        server.wait_generation(generation);
    }
    load.wait_answered(50);
    // A reload keeps the number of workers. Wait for those three: SIGTERM to a draining worker would change nothing.
    wait::wait_until("the old ones are gone", || server.worker_pids().len() == 3);
    let retiring = server.worker_pids()[0];
    process::send_signal(retiring, Signal::SIGTERM);
    server.wait_new_workers(3, &[retiring]);
    load.wait_answered(50);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
    server.stop();
}

#[test]
fn reloads_between_shared_and_round_robin_lose_nothing() {
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
fn connections_queued_by_round_robin_are_served_under_the_next_policy() {
    let text = |policy| {
        format!(
            "workers = 1\nbind = ['127.0.0.1:0']\ngraceful-timeout = '1s'\ndispatch = '{policy}'\n"
        )
    };
    let server = Server::builder().config(1, &text("round-robin")).start();
    let old = server.worker_pids()[0];
    process::send_signal(old, Signal::SIGSTOP);
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
fn upgrades_under_round_robin_lose_nothing_and_leak_no_descriptor() {
    let server = round_robin_builder(2).with_copied_program().start();
    let before = process::descriptors(server.pid()).len();
    let load = Load::new_connections(server.address(), 6).start();
    for generation in 2..2 + env_count("PREFORK_UPGRADES", 5) {
        load.wait_answered(50);
        let old = server.worker_pids();
        server.signal(Signal::SIGUSR2);
        server.wait_generation(generation);
        server.wait_new_workers(2, &old);
    }
    load.wait_answered(50);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
    wait::wait_until("as many descriptors as before", || {
        process::descriptors(server.pid()).len() == before
    });
    server.stop();
}

#[test]
fn connections_queued_for_workers_survive_an_upgrade() {
    let server =
        round_robin_builder(2).with_copied_program().args(["--graceful-timeout", "1s"]).start();
    let old = server.worker_pids();
    old.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGSTOP));
    let mut clients: Vec<Client> = (0..40).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    }
    server.signal(Signal::SIGUSR2);
    server.wait_generation(2);
    for client in &mut clients {
        assert!(!old.contains(&client.read_within_10_seconds().expect("answer").pid()));
    }
    server.stop();
}

#[test]
fn a_stop_answers_every_connection_round_robin_accepted() {
    for _ in 0..env_count("PREFORK_STOPS", 3) {
        let server = round_robin_builder(3).start();
        let load = Load::new_connections(server.address(), 8).until_refused().start();
        load.wait_answered(100);
        server.signal(Signal::SIGTERM);
        let tally = load.join();
        assert_eq!(tally.failures(), 0, "{tally:?}");
        server.wait_clean_exit(0);
    }
}

#[test]
fn orphaned_workers_answer_connections_queued_for_them() {
    let mut server = round_robin_builder(2).start();
    let workers = server.worker_pids();
    server.signal(Signal::SIGSTOP);
    wait::wait_until("a stopped primary", || {
        process::stat(server.pid()).expect("a living process").state == 'T'
    });
    let mut clients: Vec<Client> = (0..20).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    }
    server.kill_primary();
    for client in &mut clients {
        assert!(workers.contains(&client.read().expect("answer").pid()));
    }
    wait::wait_until("their end", || workers.iter().all(|pid| process::has_ended(*pid)));
}
