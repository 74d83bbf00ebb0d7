//! Reloads: every worker is replaced and the configuration is read again; a reload that fails changes nothing.

use nix::sys::signal::Signal;

use crate::boot::BOOT_FAILED;
use crate::support::boot_barrier::BootBarrier;
use crate::support::command::ProcessBuilder;
use crate::support::load::Load;
use crate::support::{Address, Client, Failure, Server, env_count, log, wait};

#[test]
fn sighup_replaces_every_worker() {
    let server = Server::start(3);
    let old = server.worker_pids();
    server.signal(Signal::SIGHUP);
    server.wait_log(&["INFO", "SIGHUP"]);
    server.wait_generation(2);
    let new = server.wait_new_workers(3, &old);
    assert!(new.contains(&server.get("/").pid()));
    let cluster = server.cluster();
    let all_new = |w: &serde_json::Value| w["generation"] == 2 && w["state"] == "serving";
    assert!(cluster["workers"].as_array().expect("list").iter().all(all_new), "{cluster}");
    assert_eq!(cluster["primary"]["restarts"], 0);
    let text = server.stop();
    assert_eq!(log::warnings_and_errors(&text), Vec::<&str>::new());
}

#[test]
fn reload_returns_when_all_workers_are_replaced() {
    let server = Server::builder().start();
    let old = server.worker_pids();
    server.run_verb(&["reload"]);
    let status = server.status();
    assert_eq!(status["primary"]["generation"], 2);
    let serving = status["workers"].as_array().expect("list").iter();
    let serving: Vec<_> = serving.filter(|w| w["state"] == "serving").collect();
    assert!(serving.len() == 2 && serving.iter().all(|w| w["generation"] == 2), "{status}");
    server.wait_new_workers(2, &old);
    server.run_verb(&["reload", "--no-wait"]);
    server.wait_generation(3);
    let text = server.stop();
    assert_eq!(log::lines_with(&text, &["control", "uid="]).count(), 2, "{text}");
}

#[test]
fn a_reload_applies_the_configured_number_of_workers() {
    let server = Server::builder().config(1, "bind = ['127.0.0.1:0']\nworkers = 1\n").start();
    for (generation, workers) in [(2, 3), (3, 2)] {
        let old = server.worker_pids();
        let text = format!("bind = ['127.0.0.1:0']\nworkers = {workers}\n");
        std::fs::write(server.dir().join("prefork.toml"), text).expect("write");
        server.signal(Signal::SIGHUP);
        server.wait_generation(generation);
        server.wait_new_workers(workers, &old);
        assert_eq!(server.get("/").status, 200);
    }
    server.stop();
}

#[test]
fn a_reload_opens_new_addresses_and_closes_removed_ones() {
    let both = "workers = 2\nbind = ['127.0.0.1:0', 'unix:socket']\n";
    let one = "workers = 2\nbind = ['127.0.0.1:0']\n";
    let server = Server::builder().config(2, one).start();
    let path = server.dir().join("socket");
    let unix = Address::Unix(path.clone());
    let write = |text| std::fs::write(server.dir().join("prefork.toml"), text).expect("write");
    write(both);
    server.signal(Signal::SIGHUP);
    server.wait_generation(2);
    server.wait_listeners(2);
    assert_eq!(Client::connect(&unix).and_then(|mut c| c.get("/")).expect("answer").status, 200);
    assert_eq!(server.get("/").status, 200, "the first one is still open");
    let old = server.worker_pids();
    write(one);
    server.signal(Signal::SIGHUP);
    server.wait_generation(3);
    server.wait_listeners(1);
    server.wait_new_workers(2, &old);
    assert_eq!(Client::connect(&unix).err(), Some(Failure::Refused));
    assert!(!path.exists());
    assert_eq!(server.get("/").status, 200, "the first one is still open");
    server.stop();
}

#[test]
fn removing_a_port_loses_no_connection() {
    let both = "workers = 2\nbind = ['127.0.0.1:0', '127.0.0.2:0']\n";
    let server = Server::builder().config(2, both).start();
    let gone = server.addresses()[1].clone();
    let load = Load::new_connections(&gone, 4).until_refused().start();
    load.wait_answered(20);
    let text = "workers = 2\nbind = ['127.0.0.1:0']\n";
    std::fs::write(server.dir().join("prefork.toml"), text).expect("write");
    server.signal(Signal::SIGHUP);
    server.wait_generation(2);
    let tally = load.join();
    assert_eq!(tally.failures(), 0, "{tally:?}");
    assert_eq!(Client::connect(&gone).err(), Some(Failure::Refused));
    assert_eq!(server.get("/").status, 200);
    server.stop();
}

#[test]
fn many_sighups_are_coalesced_into_a_few_reloads() {
    let server = ProcessBuilder::program("boot-fails-if-broken").start();
    let mut barrier = BootBarrier::new(server.dir());
    for _ in 0..30 {
        server.signal(Signal::SIGHUP);
    }
    server.wait_log(&["INFO", "SIGHUP"]);
    barrier.release();
    // Runs after all earlier requests.
    server.run_verb(&["reload"]);
    let status = wait::wait_until_some("two workers only", || {
        Some(server.status()).filter(|s| s["workers"].as_array().map(Vec::len) == Some(2))
    });
    let generation = &status["primary"]["generation"];
    assert!(generation.as_u64().is_some_and(|number| (2..=4).contains(&number)), "{status}");
    for worker in status["workers"].as_array().expect("list") {
        assert_eq!((&worker["generation"], &worker["state"]), (generation, &"serving".into()));
    }
    server.stop();
}

/// Reloads repeatedly under load, and asserts that no request is lost.
#[track_caller]
fn assert_reloads_lose_nothing(server: &Server, load: &Load) {
    let load = load.start();
    for generation in 2..2 + env_count("PREFORK_RELOADS", 10) {
        load.wait_answered(24);
        server.signal(Signal::SIGHUP);
        server.wait_generation(generation);
    }
    load.wait_answered(24);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
}

#[test]
fn reloads_lose_no_request_on_kept_connections() {
    let server = Server::start(2);
    assert_reloads_lose_nothing(
        &server,
        &Load::keep_alive(server.address(), 8).with_posts().with_think_time(),
    );
    server.stop();
}

#[test]
fn reloads_lose_no_new_connection() {
    let server = Server::start(2);
    assert_reloads_lose_nothing(&server, &Load::new_connections(server.address(), 4));
    server.stop();
}

#[test]
fn reloads_without_handover_lose_no_request() {
    // Longer than any client is idle, even on a busy machine.
    let server = Server::with(2, &["--hand-over=false", "--linger-timeout", "20s"]);
    assert_reloads_lose_nothing(
        &server,
        &Load::keep_alive(server.address(), 8).with_posts().with_think_time(),
    );
    server.stop();
}

#[test]
fn a_stop_during_a_reload_exits_with_status_0() {
    for _ in 0..3 {
        let server = ProcessBuilder::program("boot-fails-if-broken").start();
        let _barrier = BootBarrier::new(server.dir());
        server.signal(Signal::SIGHUP);
        wait::wait_until("a worker that boots", || server.worker_pids().len() > 2);
        server.signal(Signal::SIGTERM);
        server.wait_clean_exit(0);
    }
}

#[test]
fn a_waiting_reload_verb_fails_when_the_cluster_stops() {
    let server = ProcessBuilder::program("boot-fails-if-broken").start();
    let _barrier = BootBarrier::new(server.dir());
    let why = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.assert_verb_fails(&["reload"], 1));
        server.wait_log(&["control", "uid="]);
        server.signal(Signal::SIGTERM);
        waiting.join().expect("the verb")
    });
    assert!(why.contains("stopping"), "{why}");
    server.wait_clean_exit(0);
}

const VALID_CONFIG: &str = "bind = ['127.0.0.1:0']\nworkers = 2\n";

/// Starts a server with a configuration file.
#[track_caller]
fn start_with_config() -> Server {
    Server::builder().config(2, VALID_CONFIG).start().allow_errors(&["reload"])
}

#[track_caller]
fn write_config(server: &Server, text: &str) {
    std::fs::write(server.dir().join("prefork.toml"), text).expect("write");
}

/// Asserts that a reload fails with a reason that contains `why`, and changes nothing.
#[track_caller]
fn assert_reload_fails(server: &Server, why: &str) {
    let pids = server.worker_pids();
    let before = server.count_log(&["ERROR", "reload"]);
    let error = server.assert_verb_fails(&["reload"], 1);
    assert!(error.contains(why), "{why}: {error}");
    let text = server.log();
    let errors: Vec<_> = log::lines_with(&text, &["ERROR", "reload"]).collect();
    assert_eq!(errors.len(), before + 1, "{errors:?}");
    assert!(errors[before].contains(why), "{why}: {}", errors[before]);
    assert_eq!(server.wait_new_workers(2, &[]), pids);
    assert_eq!(server.status()["primary"]["generation"], 1);
    assert!(pids.contains(&server.get("/").pid()));
}

#[test]
fn reload_keeps_the_old_workers_if_the_new_config_is_broken() {
    let server = start_with_config();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("address").port();
    let taken_port = format!("127.0.0.1:{port}");
    for (text, why) in [
        ("workers = \n", "prefork.toml"),
        ("workers = 2\nbnid = ':1'\n", "prefork.toml:2"),
        ("workers = 0\n", "workers"),
        ("bind = ['nonsense']\n", "nonsense"),
        (&format!("bind = ['127.0.0.1:0', '{taken_port}']\n"), &taken_port),
    ] {
        write_config(&server, text);
        assert_reload_fails(&server, why);
    }
    std::fs::remove_file(server.dir().join("prefork.toml")).expect("remove");
    assert_reload_fails(&server, "prefork.toml");
    write_config(&server, VALID_CONFIG);
    let old = server.worker_pids();
    server.run_verb(&["reload"]);
    server.wait_new_workers(2, &old);
    server.stop();
}

#[test]
fn sighup_with_a_broken_config_is_logged_as_an_error() {
    let server = start_with_config();
    let pids = server.worker_pids();
    write_config(&server, "workers = many\n");
    server.signal(Signal::SIGHUP);
    server.wait_log(&["ERROR", "reload", "prefork.toml"]);
    assert_eq!(server.wait_new_workers(2, &[]), pids);
    server.stop();
}

#[test]
fn reload_keeps_the_old_workers_if_new_ones_fail_to_boot() {
    let server = ProcessBuilder::program("boot-fails-if-broken").start();
    let server = server.allow_errors(&["reload", "they are broken", BOOT_FAILED]);
    std::fs::write(server.dir().join("broken"), "").expect("write");
    assert_reload_fails(&server, "they are broken");
    std::fs::remove_file(server.dir().join("broken")).expect("remove");
    server.run_verb(&["reload"]);
    server.stop();
}

#[test]
fn reload_keeps_the_old_workers_if_new_ones_never_become_ready() {
    let builder = ProcessBuilder::program("boot-fails-if-broken");
    let server = builder.args(["boot-timeout-ms=2000"]).start();
    let server = server.allow_errors(&["reload", "boot-timeout", "gen=2"]);
    std::fs::write(server.dir().join("stuck"), "").expect("write");
    assert_reload_fails(&server, "boot-timeout");
    std::fs::remove_file(server.dir().join("stuck")).expect("remove");
    server.run_verb(&["reload"]);
    server.stop();
}

#[test]
fn a_reload_warns_about_a_changed_log_filter() {
    let text = |level| format!("bind = ['127.0.0.1:0']\nworkers = 1\nlog = '{level}'\n");
    let server = Server::builder().config(1, &text("info")).start();
    server.run_verb(&["reload"]);
    std::fs::write(server.dir().join("prefork.toml"), text("warn")).expect("write");
    server.run_verb(&["reload"]);
    server.wait_log(&["WARN", "log has changed"]);
    let log = server.stop();
    assert_eq!(log::lines_with(&log, &["WARN", "has changed"]).count(), 1, "{log}");
}
