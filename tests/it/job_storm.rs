//! The laws of isolated jobs under faults: begun at most once, one verdict each, and every verdict is true.
//!
//! Workers submit jobs with random ends (`tests/programs/job_storm.rs`); callers and jobs note what they see, and this compares the
//! notes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::{Server, env_count, process, wait};

/// What the notes say about one job.
#[derive(Debug, Default)]
struct JobNotes {
    /// How the job was to end.
    end: String,
    begins: usize,
    ends: usize,
    verdicts: Vec<String>,
}

fn count_verdicts(server: &Server) -> usize {
    let notes = fs::read_to_string(server.dir().join("callers")).unwrap_or_default();
    notes.lines().filter(|line| line.contains(" verdict ")).count()
}

fn read_notes(server: &Server) -> BTreeMap<String, JobNotes> {
    let mut jobs: BTreeMap<String, JobNotes> = BTreeMap::new();
    for file in ["callers", "jobs"] {
        let text = fs::read_to_string(server.dir().join(file)).expect("notes");
        for line in text.lines() {
            let (id, step) = line.split_once(' ').expect("a job and a step");
            let job = jobs.entry(id.to_string()).or_default();
            match step.split_once(' ') {
                Some(("submit", end)) => job.end = end.to_string(),
                Some(("verdict", verdict)) => job.verdicts.push(verdict.to_string()),
                None if step == "begin" => job.begins += 1,
                None if step == "end" => job.ends += 1,
                _ => panic!("an unknown step: {line}"),
            }
        }
    }
    jobs
}

/// Returns the pid of the worker that has submitted a job.
fn caller(id: &str) -> u32 {
    id.split('-').next().and_then(|pid| pid.parse().ok()).expect("a pid")
}

/// Returns the workers none of whose jobs got to the primary: those that upgrade checks boot without one.
fn workers_without_primary(jobs: &BTreeMap<String, JobNotes>) -> BTreeSet<u32> {
    let mut callers: BTreeSet<u32> = jobs.keys().map(|id| caller(id)).collect();
    for (id, job) in jobs {
        if job.verdicts.iter().any(|verdict| verdict != "closed not-begun") {
            callers.remove(&caller(id));
        }
    }
    callers
}

/// Returns what is wrong with a job, if anything.
fn check_job(id: &str, job: &JobNotes, killed: &BTreeSet<u32>) -> Option<String> {
    let is_right = match job.verdicts.as_slice() {
        // Its caller was killed.
        [] => killed.contains(&caller(id)) && job.begins <= 1,
        [verdict] => match verdict.as_str() {
            "done" => {
                job.begins == 1
                    && job.ends == 1
                    && ["Succeed", "SucceedLater", "BeDropped"].contains(&&*job.end)
            }
            "failed begun" => job.begins == 1 && job.ends == 1 && job.end == "Fail",
            "panicked begun" => job.begins == 1 && job.ends == 0 && job.end == "Panic",
            // A process that is killed may not have come to its note.
            "primary-gone begun" | "died begun" | "timed-out begun" | "cut begun" => {
                job.begins <= 1
            }
            "full not-begun" | "closed not-begun" | "timed-out not-begun" => job.begins == 0,
            "dropped" => job.begins <= 1 && job.end == "BeDropped",
            _ => false,
        },
        _ => false,
    };
    (!is_right).then(|| format!("{id}: {job:?}"))
}

/// Returns the pid of a process that runs jobs, if there is one at the moment.
fn isolated_process(server: &Server) -> Option<u32> {
    let status = server.status();
    let workers = status["workers"].as_array().expect("workers");
    let process = workers.iter().find(|worker| worker["kind"] == "storm")?;
    process["pid"].as_u64().and_then(|pid| pid.try_into().ok())
}

/// Starts the program, with two isolated processes.
fn start_storm(model: &str, count: usize) -> Server {
    let program = ProcessBuilder::program("job-storm")
        .other_workers(2)
        .args(["processes=2", "graceful-timeout-ms=3000"]);
    let server = program.model(model, count).start();
    server.allow_errors(&["SIGKILL", "panicked", "exited", "died", "killed", "job"])
}

/// Disturbs the cluster in one of several ways. Returns the worker that was killed, if any.
fn disturb(server: &Server, round: usize) -> Option<u32> {
    match round % 4 {
        0 => server.signal(Signal::SIGHUP),
        1 => {
            let workers = server.worker_pids();
            let caller = workers[round % workers.len()];
            process::try_send_signal(caller, Signal::SIGKILL);
            return Some(caller);
        }
        2 => server.signal(Signal::SIGUSR2),
        _ => {
            if let Some(pid) = isolated_process(server) {
                process::try_send_signal(pid, Signal::SIGKILL);
            }
        }
    }
    None
}

#[track_caller]
fn assert_laws(server: &Server, mut killed: BTreeSet<u32>) {
    let jobs = read_notes(server);
    killed.extend(workers_without_primary(&jobs));
    let wrong: Vec<String> =
        jobs.iter().filter_map(|(id, job)| check_job(id, job, &killed)).collect();
    assert!(
        wrong.is_empty(),
        "{} of {} jobs in {:?}, killed {killed:?}:\n{}",
        wrong.len(),
        jobs.len(),
        server.dir(),
        wrong.join("\n")
    );
}

/// Runs at least `total` jobs under faults.
#[track_caller]
fn run_storm(model: &str, count: usize, total: usize) {
    let mut server = start_storm(model, count);
    let (mut killed, mut round) = (BTreeSet::new(), 0);
    while count_verdicts(&server) < total {
        let before = count_verdicts(&server);
        killed.extend(disturb(&server, round));
        round += 1;
        wait::wait_until("more verdicts", || count_verdicts(&server) >= before + total / 20);
    }
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
    assert_laws(&server, killed);
}

#[test]
fn every_isolated_job_gets_one_true_verdict_under_reloads_kills_and_upgrades() {
    run_storm("prefork", 2, env_count("PREFORK_STORM_JOBS", 3000));
}

#[test]
fn every_isolated_job_gets_one_true_verdict_under_every_model_of_one_process() {
    let total = env_count("PREFORK_STORM_JOBS", 1000);
    for (model, threads) in [("single", 1), ("threads", 2), ("thread-per-core", 2)] {
        run_storm(model, threads, total);
    }
}

#[test]
fn every_isolated_job_gets_one_true_verdict_when_the_primary_is_killed() {
    let mut server = start_storm("prefork", 2);
    wait::wait_until("verdicts", || count_verdicts(&server) >= 200);
    let processes = process::children(server.pid());
    server.kill_primary();
    process::wait_ended(&processes);
    assert_laws(&server, BTreeSet::new());
}
