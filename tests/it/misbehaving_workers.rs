//! Workers that write garbage into their channels or shared pages harm only themselves.
//!
//! `PREFORK_MISBEHAVING` workers for each test (4), with random seeds from `PREFORK_SEED` on (1).

use crate::support::command::ProcessBuilder;
use crate::support::{Client, Server, env_count, process, wait};

fn start_misbehaving() -> Server {
    let args = ["graceful-timeout-ms=2000"];
    let server = ProcessBuilder::program("misbehaving-workers").workers(3).args(args).start();
    // Errors about misbehaving workers are expected; `finish` checks that there are none about the others.
    server.allow_errors(&["worker="])
}

/// Requests an echo by the primary on this connection, and returns the slot of the worker that responds.
fn request_echo(client: &mut Client) -> Option<String> {
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n").ok()?;
    let text = client.read_within_10_seconds().ok()?.text().to_string();
    text.strip_prefix("same: true, slot ").map(str::to_string)
}

/// Kept connections to two healthy workers, with their slots and pids.
struct OtherWorkers {
    kept: Vec<(Client, String, u32)>,
    echoes: usize,
}

impl OtherWorkers {
    fn connect(server: &Server) -> OtherWorkers {
        let mut kept: Vec<(Client, String, u32)> = Vec::new();
        wait::wait_until("two others", || {
            let mut client = server.connect();
            let Some(slot) = request_echo(&mut client) else { return false };
            if kept.iter().all(|(_, known, _)| *known != slot) {
                let pid = pid_of_slot(server, &slot).expect("a living worker");
                kept.push((client, slot, pid));
            }
            kept.len() == 2
        });
        OtherWorkers { kept, echoes: 0 }
    }

    /// Asserts that both workers still respond.
    #[track_caller]
    fn assert_both_respond(&mut self) {
        for (client, slot, pid) in &mut self.kept {
            let answer = client.get("/").expect("alive");
            assert_eq!(answer.text(), format!("same: true, slot {slot}"), "pid {pid}");
            self.echoes += 1;
        }
    }

    /// Opens a connection to the third worker, and returns it with the pid, if that worker responds.
    fn connect_to_third_worker(&self, server: &Server) -> Option<(Client, u32)> {
        let mut client = Client::connect(server.address()).ok()?;
        let slot = request_echo(&mut client)?;
        if self.kept.iter().any(|(_, known, _)| *known == slot) {
            return None;
        }
        Some((client, pid_of_slot(server, &slot)?))
    }

    /// Asserts that the same processes serve and that no error was logged about them.
    #[track_caller]
    fn finish(mut self, server: Server) {
        self.assert_both_respond();
        let status = server.status();
        assert_eq!(status["primary"]["pid"], server.pid());
        for (_, slot, pid) in &self.kept {
            assert_eq!(pid_of_slot(&server, slot), Some(*pid));
        }
        let pids: Vec<String> = self.kept.iter().map(|(_, _, pid)| format!("pid={pid} ")).collect();
        assert!(self.echoes > 0);
        drop(self);
        let log = server.stop();
        let bad = |line: &&str| line.contains("ERROR") && pids.iter().any(|pid| line.contains(pid));
        assert_eq!(log.lines().find(bad), None);
    }
}

fn pid_of_slot(server: &Server, slot: &str) -> Option<u32> {
    let status = server.status();
    let workers = status["workers"].as_array()?;
    let slot: u64 = slot.parse().ok()?;
    let worker = workers.iter().find(|worker| worker["slot"] == slot)?;
    worker["pid"].as_u64().map(|pid| pid as u32)
}

/// Sends a request that makes the worker misbehave; the worker may be killed before it responds.
fn trigger(client: &mut Client, path: &str) {
    let _ = client
        .send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
        .and_then(|()| client.read_within_10_seconds());
}

fn seeds() -> std::ops::Range<usize> {
    let first = env_count("PREFORK_SEED", 1);
    first..first + env_count("PREFORK_MISBEHAVING", 4)
}

/// Makes workers misbehave one after the other, and waits until each has ended.
fn assert_each_worker_ends(path: &str) {
    let server = start_misbehaving();
    let mut others = OtherWorkers::connect(&server);
    for seed in seeds() {
        eprintln!("{path}: seed {seed}");
        let (mut client, pid) = wait::wait_until_some("a connection to the third worker", || {
            others.connect_to_third_worker(&server)
        });
        trigger(&mut client, &format!("{path}?{seed}"));
        wait::wait_until(&format!("the end of the vandal {pid} of seed {seed}"), || {
            others.assert_both_respond();
            process::has_ended(pid)
        });
    }
    others.finish(server);
}

#[test]
fn a_worker_that_writes_invalid_messages_harms_only_itself() {
    assert_each_worker_ends("/garbage");
}

/// Random bytes may by chance be a valid message, a request to retire for example.
#[test]
fn a_worker_that_writes_random_bytes_to_its_channels_harms_only_itself() {
    assert_each_worker_ends("/channels");
}

/// The worker need not end, as no process trusts its pages.
#[test]
fn a_worker_that_overwrites_its_shared_pages_harms_only_itself() {
    let server = start_misbehaving();
    let mut others = OtherWorkers::connect(&server);
    let (mut client, _) = wait::wait_until_some("a connection to the third worker", || {
        others.connect_to_third_worker(&server)
    });
    for seed in seeds() {
        eprintln!("/pages: seed {seed}");
        trigger(&mut client, &format!("/pages?{seed}"));
        for _ in 0..20 {
            others.assert_both_respond();
        }
        // The worker may misbehave already, or have been replaced.
        if let Some((again, _)) = others.connect_to_third_worker(&server) {
            client = again;
        }
    }
    others.finish(server);
}

/// Whether a text contains no control character and no bidirectional override.
fn has_no_control_characters(text: &str) -> bool {
    !text.contains(|c: char| c.is_control() || c == '\u{202e}')
}

#[test]
fn control_characters_from_workers_are_escaped_in_log_and_events() {
    let server = start_misbehaving();
    let mut others = OtherWorkers::connect(&server);
    for (path, lines) in [("/panics", 1), ("/logs", 2)] {
        let (mut client, _) = wait::wait_until_some("a connection to the third worker", || {
            others.connect_to_third_worker(&server)
        });
        trigger(&mut client, path);
        // The library escapes the text itself, whatever the logger.
        server.wait_log_count(&["ERROR", "worker=", r"\u{1b}[2J", r"\r\nforged"], lines);
        others.assert_both_respond();
    }
    let log = std::fs::read(server.dir().join("log")).expect("log");
    let log = String::from_utf8(log).expect("UTF-8");
    assert_eq!(log.lines().find(|line| !has_no_control_characters(line)), None);
    assert!(!log.lines().any(|line| line.starts_with("forged")));
    let events = server.run_verb(&["events", "--json"]);
    for line in events.lines() {
        let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(
            has_no_control_characters(line)
                && has_no_control_characters(event["text"].as_str().expect("text")),
            "{line}"
        );
    }
    assert!(events.contains("forged"));
    others.finish(server);
}
