//! Isolated jobs with large inputs and outputs: they arrive unchanged, past the primary, and leave nothing behind.

use crate::support::command::ProcessBuilder;
use crate::support::{Server, env_count, process, wait};

const MIB: usize = 1 << 20;

fn large_payloads() -> ProcessBuilder {
    ProcessBuilder::program("large-payloads").workers(1).other_workers(4)
}

#[track_caller]
fn run_job(server: &Server, path: &str) -> String {
    server.get(path).text().to_string()
}

/// Returns the most physical memory that a process has used so far, in bytes.
fn peak_memory(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    let kib = line.trim().strip_suffix(" kB").and_then(|kib| kib.parse::<usize>().ok());
    kib.expect("a number") * 1024
}

fn segment_count(pid: u32) -> usize {
    let all = process::descriptors(pid);
    all.iter().filter(|(_, target)| target.contains("prefork-segment")).count()
}

#[test]
fn inputs_and_outputs_of_any_size_arrive_unchanged() {
    let server = large_payloads().start();
    for bytes in [1, 64 * 1024, 64 * 1024 + 1, 10 * MIB, 10 * MIB + 1, 100 * MIB] {
        for how in ["vec", "mapped"] {
            assert_eq!(run_job(&server, &format!("/{how}/{bytes}")), "ok", "{how} {bytes}");
        }
    }
    for bytes in [10, 3 * MIB] {
        assert_eq!(run_job(&server, &format!("/image/{bytes}")), "42");
        assert_eq!(run_job(&server, &format!("/numbers/{bytes}")), "ok");
    }
    let too_large = run_job(&server, &format!("/vec/{}", 201 * MIB));
    assert!(too_large.starts_with("begun=false TooLarge { value: Input"), "{too_large}");
    server.stop();
}

#[test]
fn one_input_is_sent_to_many_jobs() {
    let server = large_payloads().start();
    assert_eq!(run_job(&server, &format!("/shared/{}/20", 2 * MIB)), "ok".repeat(20));
    server.stop();
}

#[test]
fn many_large_jobs_at_once_do_not_grow_the_primary() {
    let server = large_payloads().start();
    assert_eq!(run_job(&server, "/vec/15000000"), "ok");
    let before = peak_memory(server.pid());
    let jobs = env_count("PREFORK_LARGE_JOBS", 20);
    let mut clients: Vec<_> = (0..jobs).map(|_| server.send_get("/vec/15000000")).collect();
    for client in &mut clients {
        assert_eq!(client.read().expect("an answer").text(), "ok");
    }
    let growth = peak_memory(server.pid()).saturating_sub(before);
    assert!(growth < 10 * MIB, "{growth} bytes");
    assert_eq!(segment_count(server.pid()), 0);
    server.stop();
}

/// Returns the workers that serve, without the processes of isolated pools.
fn web_worker_pids(server: &Server) -> Vec<u32> {
    let status = server.status();
    let workers = status["workers"].as_array().expect("workers");
    let web = workers.iter().filter(|worker| worker["slot"].as_u64() < Some(1024));
    web.filter_map(|worker| worker["pid"].as_u64()?.try_into().ok()).collect()
}

#[test]
fn a_process_killed_with_a_large_job_leaves_no_segment() {
    let server = large_payloads().start().allow_errors(&["SIGABRT"]);
    let web = web_worker_pids(&server);
    for how in ["vec", "mapped"] {
        for _ in 0..3 {
            let died = run_job(&server, &format!("/abort-{how}/{}", 4 * MIB));
            assert_eq!(died, "begun=true Died { code: None, signal: Some(6) }");
            assert_eq!(run_job(&server, &format!("/{how}/{}", 4 * MIB)), "ok");
        }
    }
    wait::wait_until("no segment in the primary", || segment_count(server.pid()) == 0);
    // The segments of lost jobs are used again: those of both pools need two each.
    let caller = web.iter().map(|pid| segment_count(*pid)).max();
    assert!(caller.is_some_and(|segments| segments <= 4), "{caller:?}");
    // And given back after some time without use.
    wait::wait_until("no segment in the workers", || {
        web.iter().all(|pid| segment_count(*pid) == 0)
    });
    server.stop();
}

#[test]
fn a_large_job_without_free_descriptors_fails_and_says_so() {
    let server = large_payloads().start().allow_errors(&["Too many open files"]);
    let error = run_job(&server, "/starved/100000");
    let is_told = error.starts_with("begun=false Transfer { value: Input")
        && error.contains("Too many open files");
    assert!(is_told, "{error}");
    assert_eq!(run_job(&server, "/vec/100000"), "ok");
    assert_eq!(run_job(&server, "/forbid-descriptors/10"), "ok");
    let error = run_job(&server, "/vec/100000");
    let is_told = error.starts_with("begun=false Transfer { value: Input")
        && error.contains("no free descriptor");
    assert!(is_told, "{error}");
    assert_eq!(run_job(&server, "/vec/100"), "ok");
    server.stop();
}

#[test]
fn large_jobs_that_wait_continue_after_an_upgrade() {
    let server = large_payloads().start();
    let path = format!("/wait-vec/{}", 3 * MIB);
    let mut clients: Vec<_> = (0..4).map(|_| server.send_get(&path)).collect();
    server.wait_active_requests(4);
    wait::wait_until("the inputs are in the primary", || segment_count(server.pid()) >= 4);
    server.run_verb(&["upgrade", "--no-wait"]);
    server.wait_generation(2);
    std::fs::write(server.dir().join("go"), "").expect("write");
    for client in &mut clients {
        assert_eq!(client.read().expect("an answer").text(), "ok");
    }
    wait::wait_until("no segment in the primary", || segment_count(server.pid()) == 0);
    server.stop();
}
