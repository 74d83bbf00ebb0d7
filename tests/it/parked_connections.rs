//! Idle connections that are reduced to their sockets: nothing of it may be seen by their clients.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::concurrency_models::ALL_MODELS;
use crate::support::command::ProcessBuilder;
use crate::support::http::Response;
use crate::support::{Client, Server, admin_listener, env_count, overrides, process, wait};

pub(crate) const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Returns the sum of a figure of all workers.
fn sum_of_workers(server: &Server, figure: &str) -> u64 {
    let status = server.status();
    let workers = status["workers"].as_array().expect("workers");
    workers.iter().map(|worker| worker[figure].as_u64().expect("a number")).sum()
}

#[track_caller]
pub(crate) fn wait_parked(server: &Server, count: usize) {
    wait::wait_until("idle connections are parked", || {
        sum_of_workers(server, "parked") == count as u64
    });
}

/// Opens connections, each with one response.
fn open(server: &Server, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").expect("an answer").status, 200);
    }
    clients
}

/// Opens connections, and waits until they are parked.
#[track_caller]
fn open_and_park(server: &Server, count: usize) -> Vec<Client> {
    let clients = open(server, count);
    wait_parked(server, count);
    clients
}

/// Waits until as many connections are open as there are clients, and all of them are parked.
#[track_caller]
fn wait_all_parked(server: &Server, clients: &[Client]) {
    wait_parked(server, clients.len());
    assert_eq!(sum_of_workers(server, "connections"), clients.len() as u64);
}

/// Whether no server of these tests can park a connection: with TLS they are never parked.
pub(crate) fn is_not_applicable() -> bool {
    overrides::is_tls()
}

#[test]
fn parked_connections_count_as_open_and_are_served_again() {
    if is_not_applicable() {
        return;
    }
    for model in ALL_MODELS {
        let server = ProcessBuilder::serve().model(model, 1).start();
        let mut clients = open_and_park(&server, 20);
        assert_eq!(sum_of_workers(&server, "connections"), 20, "{model}");
        for client in &mut clients {
            let answer = client.get("/").expect("an answer");
            assert!(answer.status == 200 && !answer.closes(), "{model}");
            // The second request finds a connection that is served already.
            let echoed = client.post("/echo", b"again").expect("an answer");
            assert_eq!((echoed.status, echoed.text()), (200, "again"), "{model}");
        }
        wait_parked(&server, 20);
        // Half of them close; the others stay.
        clients.truncate(10);
        wait_parked(&server, 10);
        assert_eq!(sum_of_workers(&server, "connections"), 10, "{model}");
        drop(clients);
        wait::wait_until("all are closed", || sum_of_workers(&server, "connections") == 0);
        server.stop();
    }
}

#[test]
fn pipelined_requests_wake_a_parked_connection_and_are_answered_in_order() {
    if is_not_applicable() {
        return;
    }
    let server = Server::start(1);
    let mut client = open_and_park(&server, 1).remove(0);
    let request = |body: &str| {
        let length = body.len();
        format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    let bodies: Vec<String> = (0..16).map(|number| format!("request {number}")).collect();
    client.send(bodies.iter().map(|body| request(body)).collect::<String>()).expect("send");
    for body in &bodies {
        assert_eq!(client.read().expect("an answer").text(), body);
    }
    wait_parked(&server, 1);
    // A request whose first bytes come one by one.
    for byte in request("slow").bytes() {
        client.send([byte]).expect("send");
    }
    assert_eq!(client.read().expect("an answer").text(), "slow");
    drop(client);
    server.stop();
}

#[test]
fn a_parked_connection_answers_a_last_request_before_its_end() {
    if is_not_applicable() {
        return;
    }
    let server = Server::with(1, &["--half-close", "finish"]);
    let mut clients = open_and_park(&server, 3);
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
        client.shutdown_write();
    }
    for client in &mut clients {
        assert_eq!(client.read().expect("an answer").status, 200);
        assert_eq!(client.read_to_end(), Ok(Vec::new()));
    }
    // One that only closes its sending side gets the end as well.
    let mut silent = open_and_park(&server, 1).remove(0);
    silent.shutdown_write();
    assert_eq!(silent.read_to_end(), Ok(Vec::new()));
    wait::wait_until("all are closed", || sum_of_workers(&server, "connections") == 0);
    server.stop();
}

#[test]
fn a_malformed_request_on_a_parked_connection_is_refused() {
    if is_not_applicable() {
        return;
    }
    let server = Server::start(1);
    for bytes in
        ["GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x16\x03\x01\x02\x00\x01"]
    {
        let mut client = open_and_park(&server, 1).remove(0);
        let answer = client.send_and_read(bytes).expect("an answer");
        assert!(answer.status >= 400 && answer.closes(), "{bytes:?}: {answer:?}");
        drop(client);
        wait::wait_until("it is closed", || sum_of_workers(&server, "connections") == 0);
    }
    server.stop();
}

#[test]
fn a_parked_connection_closes_at_the_keep_alive_timeout_of_its_last_response() {
    if is_not_applicable() {
        return;
    }
    let server = Server::with(1, &["--keep-alive-timeout", "3s"]);
    let begun = Instant::now();
    let mut clients = open_and_park(&server, 40);
    // One goes on in between, and has a timeout of its own.
    let mut awake = clients.pop().expect("a client");
    assert_eq!(awake.get("/").expect("an answer").status, 200);
    let answered = Instant::now();
    for client in &mut clients {
        assert_eq!(client.read_to_end(), Ok(Vec::new()), "closed, not reset");
    }
    assert!(begun.elapsed() >= Duration::from_millis(2900), "{:?}", begun.elapsed());
    assert_eq!(awake.read_to_end(), Ok(Vec::new()));
    assert!(answered.elapsed() >= Duration::from_millis(2900), "{:?}", answered.elapsed());
    // The worker waits for the clients to close their sides.
    drop((clients, awake));
    wait::wait_until("all are closed", || sum_of_workers(&server, "connections") == 0);
    assert_eq!(server.cluster()["totals"]["cut"], 0);
    server.stop();
}

#[test]
fn a_client_that_keeps_its_side_open_after_the_timeout_is_closed_nevertheless() {
    if is_not_applicable() {
        return;
    }
    let server = Server::with(1, &["--keep-alive-timeout", "1500ms"]);
    let clients = open_and_park(&server, 2);
    wait::wait_until("the worker has closed its side", || clients.iter().all(Client::is_closed));
    wait::wait_until("they count no longer", || sum_of_workers(&server, "connections") == 0);
    server.stop();
}

#[test]
fn parked_connections_survive_reloads_and_are_parked_by_the_next_worker() {
    if is_not_applicable() || overrides::model_override().is_some() {
        return;
    }
    // Without hand-over, the reloads would wait for longer than this test.
    let server = Server::with(2, &["--linger-timeout", "100s", "--graceful-timeout", "200s"]);
    let count = env_count("PREFORK_IDLE", 1000);
    let mut clients = open_and_park(&server, count);
    for round in 0..3 {
        let old = server.worker_pids();
        server.signal(Signal::SIGHUP);
        server.wait_generation(2 + round);
        let new = server.wait_new_workers(old.len(), &old);
        wait_parked(&server, count);
        assert_eq!(clients.iter().filter(|client| client.is_closed()).count(), 0);
        for client in clients.iter_mut().step_by(1 + round) {
            let answer = client.get("/").expect("an answer");
            assert!(new.contains(&answer.pid()) && !answer.closes(), "{answer:?}");
        }
    }
    let totals = server.cluster()["totals"].clone();
    assert_eq!(totals["handed_over"], totals["taken_over"]);
    assert!(totals["handed_over"].as_u64() >= Some(3 * count as u64), "{totals}");
    drop(clients);
    server.stop();
}

#[test]
fn without_handover_parked_connections_close_after_the_linger_timeout() {
    if is_not_applicable() {
        return;
    }
    let server = Server::with(2, &["--hand-over=false", "--linger-timeout", "300ms"]);
    let mut clients = open_and_park(&server, 10);
    let old = server.worker_pids();
    server.signal(Signal::SIGHUP);
    server.wait_generation(2);
    for client in &mut clients {
        assert_eq!(client.read_to_end(), Ok(Vec::new()), "closed, not reset");
    }
    drop(clients);
    server.wait_new_workers(2, &old);
    server.stop();
}

#[test]
fn a_stop_closes_parked_connections_without_waiting_for_the_graceful_timeout() {
    if is_not_applicable() {
        return;
    }
    let server = Server::with(1, &["--linger-timeout", "100ms", "--graceful-timeout", "100s"]);
    let mut clients = open_and_park(&server, 10);
    server.signal(Signal::SIGTERM);
    for client in &mut clients {
        assert_eq!(client.read_to_end(), Ok(Vec::new()), "closed, not reset");
    }
    drop(clients);
    server.wait_clean_exit(0);
}

#[test]
fn the_death_of_a_worker_costs_its_own_parked_connections_only() {
    if is_not_applicable() || overrides::model_override().is_some() {
        return;
    }
    let server = Server::start(2).allow_errors(&["SIGKILL"]);
    let mut clients: Vec<(Client, u32)> = open(&server, 40)
        .into_iter()
        .map(|mut client| {
            let pid = client.get("/").expect("an answer").pid();
            (client, pid)
        })
        .collect();
    wait_parked(&server, 40);
    let killed = clients[0].1;
    process::send_signal(killed, Signal::SIGKILL);
    server.wait_replaced(1);
    for (client, pid) in &mut clients {
        match *pid == killed {
            true => wait::wait_until("the kernel closes it", || client.is_closed()),
            false => assert_eq!(client.get("/").expect("an answer").pid(), *pid),
        }
    }
    let left = clients.iter().filter(|(_, pid)| *pid != killed).count();
    wait_parked(&server, left);
    assert_eq!(sum_of_workers(&server, "connections"), left as u64);
    server.stop();
}

#[test]
fn all_parked_connections_are_answered_when_they_speak_at_once() {
    if is_not_applicable() {
        return;
    }
    let server = Server::start(1);
    let count = env_count("PREFORK_IDLE", 200);
    let mut clients = open_and_park(&server, count);
    for _ in 0..2 {
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
        }
        for client in &mut clients {
            assert_eq!(client.read().expect("an answer").status, 200);
        }
        wait_parked(&server, count);
    }
    assert_eq!(sum_of_workers(&server, "connections"), count as u64);
    drop(clients);
    server.stop();
}

#[test]
fn a_full_worker_counts_its_parked_connections() {
    if is_not_applicable() {
        return;
    }
    let server = Server::with(1, &["--worker-connections", "4"]);
    let mut clients = open_and_park(&server, 4);
    let waiting = server.send_get("/");
    wait::wait_until("it is full", || server.status()["workers"][0]["full"] == true);
    assert!(!waiting.has_input(), "it waits in the queue");
    assert_eq!(clients[0].get("/").expect("an answer").status, 200);
    // A parked connection that closes makes room.
    clients.pop();
    wait::wait_until("the next one is accepted", || waiting.has_input());
    drop((clients, waiting));
    server.stop();
}

#[test]
fn a_parked_connection_keeps_the_client_that_its_proxy_header_has_named() {
    if is_not_applicable() {
        return;
    }
    let trust = ["--proxy-protocol", "v1", "--trusted-proxies", "127.0.0.1"];
    let server = Server::with(1, &trust);
    let request = "GET /client HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    let mut clients: Vec<(Client, String)> = (1..20)
        .map(|number| {
            let mut client = server.connect();
            let header = format!("PROXY TCP4 192.0.2.{number} 192.0.2.99 {number} 443\r\n");
            client.send_raw(format!("{header}{request}")).expect("send");
            client.read().expect("an answer");
            (client, format!("192.0.2.{number}:{number}"))
        })
        .collect();
    for round in 0..3 {
        wait_parked(&server, clients.len());
        for (client, name) in &mut clients {
            let answer = client.send_and_read(request).expect("an answer").json();
            assert_eq!(answer["client"].as_str(), Some(name.as_str()), "{answer}");
        }
        // Places in the middle are reused.
        clients.remove(round * 4);
        if round == 1 && overrides::model_override().is_none() {
            wait_parked(&server, clients.len());
            let old = server.worker_pids();
            server.signal(Signal::SIGHUP);
            server.wait_generation(2);
            server.wait_new_workers(1, &old);
        }
    }
    drop(clients);
    server.stop();
}

#[test]
fn the_client_of_a_unix_socket_is_the_same_after_parking() {
    let builder = ProcessBuilder::serve().workers(1);
    let socket = format!("unix:{}", builder.dir().join("s").display());
    let server = builder.bind([socket]).start();
    let mut client = server.connect();
    let request = "GET /client HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    let before = client.send_and_read(request).expect("an answer").json();
    wait_parked(&server, 1);
    let after = client.send_and_read(request).expect("an answer").json();
    assert_eq!((&before["client"], &before["peer"]), (&after["client"], &after["peer"]));
    drop(client);
    server.stop();
}

#[test]
fn resets_of_parked_connections_are_noticed() {
    if is_not_applicable() {
        return;
    }
    let server = Server::start(1);
    let mut clients = open_and_park(&server, 30);
    for (number, mut client) in clients.drain(..20).enumerate() {
        match number % 4 {
            // What arrived before a reset may be read or not.
            0 => client.send(REQUEST).expect("send"),
            1 => client.send("GET / HTT").expect("send"),
            2 => client.send([0xff; 5000]).expect("send"),
            _ => {}
        }
        client.reset();
    }
    wait_all_parked(&server, &clients);
    for client in &mut clients {
        assert_eq!(client.get("/").expect("an answer").status, 200);
    }
    drop(clients);
    server.stop();
}

#[test]
fn a_request_that_a_parked_connection_never_completes_is_closed_at_the_header_timeout() {
    if is_not_applicable() {
        return;
    }
    let server = Server::with(1, &["--header-timeout", "1s"]);
    let mut clients = open_and_park(&server, 12);
    let mut slow = clients.split_off(6);
    for (length, client) in (1..).zip(&mut slow) {
        client.send(&REQUEST[..length * 4]).expect("send");
    }
    for client in &mut slow {
        client.read_to_end().expect("closed, not reset");
    }
    drop(slow);
    // The others have sent nothing, and no header timeout runs for them.
    wait_all_parked(&server, &clients);
    server.stop();
}

#[test]
fn clients_that_send_single_bytes_to_parked_connections_get_their_responses() {
    if is_not_applicable() {
        return;
    }
    let server = Server::start(1);
    let mut clients = open_and_park(&server, 8);
    for byte in REQUEST.bytes() {
        // Each byte of all of them in turn, so that none is woken by a whole head.
        clients.iter_mut().for_each(|client| client.send([byte]).expect("send"));
        wait::wait_until("the byte is read", || sum_of_workers(&server, "parked") == 0);
    }
    for client in &mut clients {
        assert_eq!(client.read().expect("an answer").status, 200);
    }
    wait_all_parked(&server, &clients);
    server.stop();
}

#[test]
fn an_upgrade_hands_parked_connections_over_and_the_next_workers_park_them() {
    if is_not_applicable() || overrides::model_override().is_some() {
        return;
    }
    let args = ["--linger-timeout", "100s", "--graceful-timeout", "200s"];
    let server = Server::builder().workers(2).with_copied_program().args(args).start();
    let mut clients = open_and_park(&server, 100);
    let old = server.worker_pids();
    server.signal(Signal::SIGUSR2);
    server.wait_generation(2);
    let new = server.wait_new_workers(2, &old);
    wait_all_parked(&server, &clients);
    for client in &mut clients {
        let answer = client.get("/").expect("an answer");
        assert!(new.contains(&answer.pid()) && !answer.closes(), "{answer:?}");
    }
    let totals = server.cluster()["totals"].clone();
    assert_eq!((&totals["handed_over"], &totals["taken_over"]), (&100.into(), &100.into()));
    assert_eq!(totals["cut"], 0);
    drop(clients);
    server.stop();
}

#[test]
fn a_worker_that_is_scaled_away_hands_its_parked_connections_over() {
    if is_not_applicable() || overrides::model_override().is_some() {
        return;
    }
    let server = Server::with(3, &["--linger-timeout", "100s", "--graceful-timeout", "200s"]);
    let mut clients = open_and_park(&server, 60);
    server.run_verb(&["scale", "1"]);
    wait::wait_until("one worker is left", || server.worker_pids().len() == 1);
    wait_all_parked(&server, &clients);
    let left = server.worker_pids()[0];
    for client in &mut clients {
        assert_eq!(client.get("/").expect("an answer").pid(), left);
    }
    drop(clients);
    server.stop();
}

#[test]
fn parked_connections_that_cannot_move_are_cut_at_the_drain_deadline() {
    if is_not_applicable() {
        return;
    }
    let timeouts = ["--hand-over=false", "--linger-timeout", "100s", "--graceful-timeout", "1s"];
    let server = Server::with(1, &timeouts).allow_errors(&["graceful timeout"]);
    let mut clients = open_and_park(&server, 10);
    let old = server.worker_pids();
    server.signal(Signal::SIGHUP);
    server.wait_generation(2);
    for client in &mut clients {
        // Closed or reset: the worker waits no longer.
        let _ = client.read_all();
    }
    if overrides::model_override().is_none() {
        server.wait_new_workers(1, &old);
    }
    assert_eq!(server.cluster()["totals"]["cut"], 10);
    server.stop();
}

#[test]
fn a_worker_killed_while_all_parked_connections_speak_costs_only_its_own() {
    if is_not_applicable() || overrides::model_override().is_some() {
        return;
    }
    let server = Server::start(2).allow_errors(&["SIGKILL"]);
    let mut clients: Vec<(Client, u32)> = Vec::new();
    for mut client in open(&server, 200) {
        let pid = client.get("/").expect("an answer").pid();
        clients.push((client, pid));
    }
    wait_parked(&server, 200);
    let killed = clients[0].1;
    for (number, (client, pid)) in clients.iter_mut().enumerate() {
        // Its end may be known already when the last ones are sent.
        assert!(client.send(REQUEST).is_ok() || *pid == killed);
        if number == 100 {
            process::send_signal(killed, Signal::SIGKILL);
        }
    }
    clients.retain_mut(|(client, pid)| match client.read().map(|answer: Response| answer.pid()) {
        Ok(answered_by) => {
            assert_eq!(answered_by, *pid);
            *pid != killed
        }
        Err(failure) => {
            assert_eq!(*pid, killed, "{failure:?}");
            false
        }
    });
    server.wait_replaced(1);
    let clients: Vec<Client> = clients.into_iter().map(|(client, _)| client).collect();
    wait_all_parked(&server, &clients);
    drop(clients);
    server.stop();
}

#[test]
fn metrics_count_parked_connections() {
    if is_not_applicable() {
        return;
    }
    let server = Server::with(2, &["--admin", "127.0.0.1:0"]);
    let admin = admin_listener::admin_address(&server);
    let sum = |name: &str| -> f64 {
        let scrape = admin_listener::get(&admin, "/metrics");
        let series = scrape.text().lines().filter(|line| line.starts_with(&format!("{name}{{")));
        series.map(|line| line.rsplit(' ').next().expect(line).parse::<f64>().expect(line)).sum()
    };
    let mut clients = open_and_park(&server, 25);
    assert_eq!((sum("prefork_connections_parked"), sum("prefork_connections")), (25.0, 25.0));
    clients.truncate(5);
    wait_parked(&server, 5);
    assert_eq!((sum("prefork_connections_parked"), sum("prefork_connections")), (5.0, 5.0));
    for client in &mut clients {
        client.send("GET / HT").expect("send");
    }
    wait_parked(&server, 0);
    assert_eq!((sum("prefork_connections_parked"), sum("prefork_connections")), (0.0, 5.0));
    drop(clients);
    server.stop();
}

#[test]
fn the_memory_of_many_connections_goes_back_to_the_system_when_they_close() {
    if is_not_applicable() || overrides::model_override().is_some() {
        return;
    }
    let server = Server::start(1);
    let worker = server.worker_pids()[0];
    let clients = open(&server, 1000);
    drop(clients);
    // 12 MB while they were open, less what is parked already.
    wait::wait_until("the memory is returned", || process::private_kib(worker) < 4096);
    server.stop();
}
