//! The death of the primary: workers end soon, and do not block the next start.

use nix::sys::signal::Signal;

use crate::support::{Server, log, process, wait};

#[test]
fn idle_workers_exit_when_the_primary_is_killed() {
    let mut server = Server::start(3);
    let pids = server.worker_pids();
    let mut idle = server.connect();
    assert_eq!(idle.get("/").expect("answer").status, 200);
    server.kill_primary();
    process::wait_ended(&pids);
    for pid in pids {
        assert_eq!(server.count_log(&["WARN", &format!("pid={pid}")]), 1, "{}", server.log());
    }
    let again = Server::builder().bind([server.address().to_string()]).start();
    assert_eq!(again.port(), server.port());
    again.stop();
}

#[test]
fn an_orphan_answers_requests_in_flight_before_it_exits() {
    let mut server = Server::start(2);
    let pids = server.worker_pids();
    let mut client = server.connect();
    client.send("GET /sleep/1500 HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
    server.wait_in_flight("/sleep/1500");
    server.kill_primary();
    let answer = client.read().expect("an answer");
    assert_eq!((answer.status, answer.closes()), (200, true), "{answer:?}");
    process::wait_ended(&pids);
}

#[test]
fn a_frozen_orphan_is_killed_by_its_alarm() {
    let mut server = Server::with(2, &["--graceful-timeout", "1s"]);
    let pids = server.worker_pids();
    let mut client = server.connect();
    // Blocks the event loop of that worker for minutes.
    client.send("GET /fib/50?on=loop HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
    server.wait_in_flight("/fib/50");
    server.kill_primary();
    process::wait_ended(&pids);
}

#[test]
fn a_stopped_orphan_exits_after_sigcont() {
    let mut server = Server::with(2, &["--graceful-timeout", "1s"]);
    let pids = server.worker_pids();
    process::send_signal(pids[0], Signal::SIGSTOP);
    server.kill_primary();
    process::wait_ended(&pids[1..]);
    process::send_signal(pids[0], Signal::SIGCONT);
    process::wait_ended(&pids);
}

#[test]
fn a_stopped_orphan_ends_after_the_graceful_timeout() {
    for stopped_first in [true, false] {
        let mut server = Server::with(2, &["--graceful-timeout", "1s"]);
        let pids = server.worker_pids();
        let mut client = server.connect();
        if stopped_first {
            process::send_signal(pids[0], Signal::SIGSTOP);
        } else {
            // A busy event loop keeps the worker alive until it is stopped.
            client.send("GET /fib/50?on=loop HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
            server.wait_in_flight("/fib/50");
        }
        server.kill_primary();
        if !stopped_first {
            // SIGSTOP would discard a pending SIGCONT.
            for pid in &pids {
                wait::wait_until("the news of the death", || {
                    !process::has_pending(*pid, Signal::SIGCONT)
                });
                process::try_send_signal(*pid, Signal::SIGSTOP);
            }
        }
        process::wait_ended(&pids);
    }
}

#[test]
fn orphan_signals_are_ignored_while_the_primary_lives() {
    let server = Server::with(1, &["--graceful-timeout", "0s"]);
    let pids = server.worker_pids();
    for signal in
        [Signal::SIGCONT, Signal::SIGALRM, Signal::SIGPWR, Signal::SIGSTOP, Signal::SIGCONT]
    {
        process::send_signal(pids[0], signal);
    }
    // Longer than an alarm of the graceful timeout would take.
    assert_eq!(server.get("/sleep/3000").status, 200);
    assert_eq!(server.worker_pids(), pids);
    server.stop();
}

#[test]
fn a_restart_takes_the_port_from_a_busy_orphan() {
    for policy in ["shared", "reuseport"] {
        let mut server = Server::builder().dispatch(policy).workers(2).start();
        let pids = server.worker_pids();
        let mut client = server.connect();
        client.send("GET /fib/50?on=loop HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
        server.wait_in_flight("/fib/50");
        server.kill_primary();
        let again = Server::builder().dispatch(policy).bind([server.address().to_string()]).start();
        assert_eq!(again.port(), server.port());
        for _ in 0..20 {
            assert_eq!(again.get("/").status, 200);
        }
        again.stop();
        pids.iter().for_each(|pid| process::try_send_signal(*pid, Signal::SIGKILL));
        process::wait_ended(&pids);
    }
}

#[test]
fn a_restart_takes_a_unix_socket_from_a_stopped_orphan() {
    let builder = Server::builder();
    let path = builder.dir().join("socket");
    let name = format!("unix:@prefork-it-orphan-{}", std::process::id());
    let binds = [format!("unix:{}", path.display()), name];
    let mut server = builder.workers(1).bind(binds.clone()).start();
    let pids = server.worker_pids();
    process::send_signal(pids[0], Signal::SIGSTOP);
    wait::wait_until("the stop", || process::stat(pids[0]).is_some_and(|stat| stat.state == 'T'));
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
    server.kill_primary();
    let again = Server::builder().workers(1).bind(binds).start();
    assert_eq!(client.read().expect("queued requests are answered").status, 200);
    assert_eq!(again.get("/").status, 200);
    again.stop();
    process::wait_ended(&pids);
}

#[test]
fn a_restart_resumes_an_orphan_stopped_after_its_primary_died() {
    let mut server = Server::builder().workers(1).start();
    let pids = server.worker_pids();
    process::send_signal(pids[0], Signal::SIGSTOP);
    wait::wait_until("the stop", || process::stat(pids[0]).is_some_and(|stat| stat.state == 'T'));
    server.kill_primary();
    // Discards the SIGCONT of the kernel, unless it has already been delivered.
    process::try_send_signal(pids[0], Signal::SIGSTOP);
    let again = Server::builder().workers(1).bind([server.address().to_string()]).start();
    assert_eq!(again.get("/").status, 200);
    process::wait_ended(&pids);
    again.stop();
}

#[test]
fn workers_of_a_living_primary_are_not_treated_as_orphans() {
    let server = Server::start(2);
    let pids = server.worker_pids();
    // A stopped primary cannot answer, but it is alive.
    process::send_signal(server.pid(), Signal::SIGSTOP);
    let again = Server::builder().bind([server.address().to_string()]).run();
    process::send_signal(server.pid(), Signal::SIGCONT);
    assert_eq!(again.status, Some(69), "{}", again.stderr);
    assert_eq!(server.worker_pids(), pids);
    assert_eq!(server.get("/").status, 200);
    server.stop();
}

#[test]
fn a_primary_killed_during_startup_leaves_no_worker() {
    // The primary is killed at several moments, some of them around the forks.
    for lines in 1..=4 {
        let mut server = Server::builder().workers(4).spawn();
        wait::wait_until("the start", || server.log().lines().count() >= lines);
        let pids = server.worker_pids();
        server.kill_primary();
        process::wait_ended(&pids);
        process::wait_ended(&log::worker_pids(&server.log()));
    }
}
