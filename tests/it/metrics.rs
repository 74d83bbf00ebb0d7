//! The page `/metrics`: its counters never go back and lose no request, whatever happens to the workers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::control::serving;
use crate::support::load::Load;
use crate::support::scrape::{
    OPEN_METRICS, PLAIN_TEXT, admin_socket, scrape, scrape_over, start, start_program,
};
use crate::support::{Client, Server, env_count, process, wait};

/// Scrapes one time after the other, and checks each scrape.
struct Scraper {
    stop: Arc<AtomicBool>,
    scrapes: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Scraper {
    fn start(server: &Server) -> Scraper {
        let (stop, scrapes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (address, stopped, count) =
            (admin_socket(server), Arc::clone(&stop), Arc::clone(&scrapes));
        let thread = std::thread::spawn(move || {
            let mut highest: BTreeMap<String, f64> = BTreeMap::new();
            let mut kept: Option<Client> = None;
            while !stopped.load(Relaxed) {
                // Both formats, over new and kept connections. One that was closed between two requests is opened again.
                let turn = count.load(Relaxed);
                let accept = if turn % 4 < 2 { OPEN_METRICS } else { PLAIN_TEXT };
                let open = kept.take().filter(|client| !client.is_closed());
                let mut client =
                    open.unwrap_or_else(|| Client::connect(&address).expect("the admin listener"));
                let (scrape, is_kept) = scrape_over(&mut client, accept).expect("no scrape fails");
                scrape.assert_consistent_histograms();
                for (series, value) in scrape.growing() {
                    // The two formats write bounds differently.
                    let key = format!("{} {series}", series.contains("le=") && turn % 4 < 2);
                    let before = highest.entry(key).or_insert(value);
                    assert!(value >= *before, "{series} went back from {before} to {value}");
                    *before = value;
                }
                kept = (turn % 2 == 0 && is_kept).then_some(client);
                count.fetch_add(1, Relaxed);
            }
        });
        Scraper { stop, scrapes, thread }
    }

    /// Waits for this many more scrapes.
    fn wait_scrapes(&self, more: u64) {
        let wanted = self.scrapes.load(Relaxed) + more;
        wait::wait_until("scrapes", || {
            self.thread.is_finished() || self.scrapes.load(Relaxed) >= wanted
        });
    }

    fn stop(self) {
        self.stop.store(true, Relaxed);
        self.thread.join().expect("every scrape is right");
    }
}

fn upgrade_and_wait(server: &Server, generation: usize) {
    let old = server.worker_pids();
    server.signal(Signal::SIGUSR2);
    server.wait_generation(generation);
    // Workers that drain for a reload or for `max-requests` have a successor already.
    wait::wait_until("all serving workers are new", || {
        let status = server.status();
        let wanted = status["primary"]["workers_wanted"].as_u64();
        let pids: Vec<u64> = serving(&status).filter_map(|worker| worker["pid"].as_u64()).collect();
        let is_old = |pid: &u64| old.iter().any(|old| u64::from(*old) == *pid);
        wanted == Some(pids.len() as u64) && !pids.iter().any(is_old)
    });
}

#[test]
fn no_counter_goes_back_while_workers_are_killed_reloaded_recycled_and_upgraded() {
    let builder =
        Server::builder().workers(3).with_copied_program().args(["--max-requests", "300"]);
    let server = start(builder).allow_errors(&["SIGKILL"]);
    let load = Load::keep_alive(server.address(), 4).with_posts().start();
    let scraper = Scraper::start(&server);
    let rounds = env_count("PREFORK_STORM_ROUNDS", 3);
    for round in 0..rounds {
        for _ in 0..5 {
            process::send_signal(server.worker_pids()[0], Signal::SIGKILL);
            scraper.wait_scrapes(3);
        }
        server.run_verb(&["reload"]);
        scraper.wait_scrapes(3);
        upgrade_and_wait(&server, 3 + 2 * round);
        scraper.wait_scrapes(3);
    }
    scraper.stop();
    let tally = load.stop();
    assert!(tally.ok > 0, "{tally:?}");
    let seen = scrape(&server);
    let killed = seen.value(r#"prefork_worker_exits_total{reason="killed"}"#);
    // A worker that is killed while it drains, and reaped by the next image, counts as well.
    assert_eq!(killed, 5.0 * rounds as f64, "{seen:?}");
    assert_eq!(seen.value(r#"prefork_reloads_total{outcome="succeeded"}"#), rounds as f64);
    assert_eq!(seen.value(r#"prefork_upgrades_total{outcome="succeeded"}"#), rounds as f64);
    assert!(seen.value("prefork_http_requests_received_total") >= tally.ok as f64);
    server.stop();
}

#[test]
fn the_sums_are_what_clients_have_sent_over_reload_upgrade_and_recycling() {
    for model in ["prefork", "threads", "thread-per-core"] {
        let builder = Server::builder().model(model, 2).with_copied_program();
        let builder = match model {
            "prefork" => builder.args(["--max-requests", "50"]),
            _ => builder,
        };
        let server = start(builder);
        let load = Load::new_connections(server.address(), 3).with_posts().start();
        load.wait_answered(100);
        server.run_verb(&["reload"]);
        load.wait_answered(50);
        upgrade_and_wait(&server, 3);
        load.wait_answered(50);
        let tally = load.stop();
        assert_eq!((tally.failures(), tally.refused), (0, 0), "{model}: {tally:?}");
        let posts = r#"prefork_http_requests_total{method="POST",status="2xx"}"#;
        wait::wait_until("each request is counted", || {
            scrape(&server).value(posts) >= tally.ok as f64
        });
        let seen = scrape(&server);
        assert_eq!(seen.value(posts), tally.ok as f64, "{model}");
        let measured = seen.value("prefork_http_request_duration_seconds_count");
        assert_eq!(measured, seen.sum("prefork_http_requests_total"), "{model}");
        assert!(seen.value("prefork_received_bytes_total") > 0.0, "{model}");
        server.stop();
    }
}

#[test]
fn metrics_answer_while_all_workers_are_frozen() {
    let server = start(Server::builder().workers(2).args(["--stall-timeout", "off"]))
        .allow_errors(&["stalled", "stands"]);
    server.get("/");
    let workers = server.worker_pids();
    for pid in &workers {
        process::send_signal(*pid, Signal::SIGSTOP);
    }
    wait::wait_until("the age of the heartbeats grows", || {
        let age = scrape(&server);
        age.value(r#"prefork_worker_heartbeat_age_seconds{kind="web",slot="0"}"#) > 1.0
    });
    for pid in &workers {
        process::send_signal(*pid, Signal::SIGCONT);
    }
    server.stop();
}

/// Waits until an exit is counted under this reason.
#[track_caller]
fn wait_exit(server: &Server, reason: &str) {
    let metric = format!("prefork_worker_exits_total{{reason=\"{reason}\"}}");
    let counted = wait::poll_until(|| (scrape(server).value(&metric) > 0.0).then_some(()));
    assert!(counted.is_some(), "no exit is counted as {reason}: {}", server.log());
}

/// Starts two workers with `args`, lets `end` end one, and waits until its exit is counted under `reason`.
#[track_caller]
fn assert_exit_counted(reason: &str, args: &[&str], end: impl FnOnce(&Server)) {
    let builder = Server::builder().workers(2).args(["--faults", "--min-uptime", "100ms"]);
    let server = start(builder.args(args)).allow_errors(&["worker="]);
    end(&server);
    wait_exit(&server, reason);
    server.wait_serving(if reason == "scaled_down" { 1 } else { 2 });
    server.signal(Signal::SIGQUIT);
    server.wait_clean_exit(0);
}

#[test]
fn each_exit_of_a_worker_is_counted_under_its_reason() {
    let leak = |server: &Server| {
        for _ in 0..20 {
            let _ = server.try_get("/fault/leak");
        }
    };
    assert_exit_counted("exited", &[], |server| drop(server.try_get("/fault/exit")));
    assert_exit_counted("crashed", &[], |server| drop(server.try_get("/fault/segv")));
    assert_exit_counted("retired", &[], |server| {
        process::send_signal(server.worker_pids()[0], Signal::SIGTERM);
    });
    assert_exit_counted("scaled_down", &[], |server| drop(server.run_verb(&["scale", "1"])));
    assert_exit_counted("stalled", &["--stall-timeout", "1s"], |server| {
        let hangs = server.send_get("/fault/hang");
        wait_exit(server, "stalled");
        drop(hangs);
    });
    assert_exit_counted("graceful_timeout", &["--graceful-timeout", "300ms"], |server| {
        let slow = server.start_request("/fib/50?on=loop");
        server.signal(Signal::SIGHUP);
        wait_exit(server, "graceful_timeout");
        drop(slow);
    });
    assert_exit_counted("recycled_requests", &["--max-requests", "5"], |server| {
        for _ in 0..20 {
            let _ = server.try_get("/");
        }
    });
    assert_exit_counted("recycled_lifetime", &["--max-lifetime", "1s"], |_| {});
    assert_exit_counted("recycled_memory", &["--max-rss", "100MiB"], leak);
    assert_exit_counted("memory_limit", &["--max-rss-hard", "100MiB"], leak);
}

#[test]
fn boots_that_fail_or_hang_are_counted_by_reason() {
    let program = ProcessBuilder::program("boot-fails-if-broken").args(["boot-timeout-ms=300"]);
    let server = start_program(program.workers(1)).allow_errors(&["worker=", "reload"]);
    for (file, reason) in [("broken", "boot_failed"), ("stuck", "boot_timeout")] {
        let file = server.dir().join(file);
        std::fs::write(&file, "").expect("write");
        server.signal(Signal::SIGHUP);
        wait_exit(&server, reason);
        std::fs::remove_file(file).expect("remove");
    }
    server.wait_serving(1);
    server.stop();
}
