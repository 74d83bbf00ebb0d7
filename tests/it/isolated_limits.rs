//! Limits of isolated processes: their programs, memory, CPU time, number of jobs and number of processes.

use std::collections::BTreeSet;
use std::thread::JoinHandle;

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::{Server, log, process, wait};

/// Starts a cluster with one `web` worker and a pool with these settings, which has `processes` processes at first. Their
/// jobs have the priority of the test, or a busy machine would not run them in time.
fn limited_pool(processes: usize, settings: &[&str]) -> ProcessBuilder {
    low_priority_pool(processes, settings).args(["nice=0"])
}

/// As `limited_pool`, with the default priority of jobs.
fn low_priority_pool(processes: usize, settings: &[&str]) -> ProcessBuilder {
    let min = format!("min={processes}");
    let builder = ProcessBuilder::program("isolated-limits").workers(1);
    builder.other_workers(processes).args([min]).args(settings.iter().copied())
}

#[track_caller]
fn run_job(server: &Server, job: &str) -> String {
    server.get(&format!("/{job}")).text().to_string()
}

/// Runs a job on another thread, which returns its result.
fn start_job(server: &Server, job: &str) -> JoinHandle<String> {
    let (mut client, path) = (server.connect(), format!("/{job}"));
    std::thread::spawn(move || client.get(&path).map(|a| a.text().to_string()).unwrap_or_default())
}

/// Starts a job that waits for the file `name`, and returns it when it has begun.
#[track_caller]
fn start_held_job(server: &Server, name: &str) -> JoinHandle<String> {
    let job = start_job(server, &format!("hold/{name}"));
    let begun = server.dir().join(format!("held-{name}"));
    wait::wait_until("the job has begun", || begun.exists());
    job
}

#[track_caller]
fn release(server: &Server, names: &[&str]) {
    for name in names {
        std::fs::write(server.dir().join(name), "").expect("written");
    }
}

/// Returns the wanted number of processes of the pool.
#[track_caller]
fn wanted_processes(server: &Server) -> u64 {
    server.status()["primary"]["kinds"][0]["workers_wanted"].as_u64().expect("a number")
}

/// Returns the pids of the process and of the `sleep` of the last job `program`.
#[track_caller]
fn process_and_program(server: &Server) -> [u32; 2] {
    let text = wait::wait_until_some("the program of a job", || {
        std::fs::read_to_string(server.dir().join("sleep.pid")).ok()
    });
    let mut pids = text.split(' ').map(|pid| pid.parse().expect("a pid"));
    [pids.next().expect("process"), pids.next().expect("program")]
}

#[test]
fn programs_of_a_job_are_killed_with_it_at_its_deadline() {
    let server = limited_pool(1, &["deadline-ms=3000"]).start().allow_errors(&["SIGKILL"]);
    assert_eq!(run_job(&server, "program/hang"), "TimedOut { has_begun: true }");
    process::wait_ended(&process_and_program(&server));
    server.stop();
}

#[test]
fn programs_of_a_job_that_ends_its_process_are_killed() {
    let server = limited_pool(1, &[]).start().allow_errors(&["exit status 3"]);
    assert_eq!(run_job(&server, "program/exit"), "Died { code: Some(3), signal: None }");
    process::wait_ended(&process_and_program(&server));
    server.stop();
}

#[test]
fn programs_of_a_job_outlive_it_but_not_its_process() {
    let server = limited_pool(1, &[]).start();
    let pids = run_job(&server, "program");
    let [process, program] = process_and_program(&server);
    assert_eq!(pids, format!("{process} {program}"));
    assert_eq!(run_job(&server, "pid"), process.to_string());
    assert!(!process::has_ended(program));
    server.stop();
    process::wait_ended(&[process, program]);
}

#[test]
fn programs_of_a_job_are_killed_when_the_primary_is() {
    let mut server = limited_pool(1, &["graceful-timeout-ms=1000"]).start();
    let job = start_job(&server, "program/hang");
    let pids = process_and_program(&server);
    server.kill_primary();
    process::wait_ended(&pids);
    drop(job.join());
}

#[test]
fn resident_memory_stays_below_its_limit_however_fast_it_grows() {
    let server = limited_pool(1, &["max-rss-mib=200"]).start().allow_errors(&["SIGABRT"]);
    let limited = "LimitExceeded { limit: Memory }";
    assert_eq!(run_job(&server, "grow"), limited);
    let resident = std::fs::read_to_string(server.dir().join("resident")).expect("written");
    let resident: u32 = resident.parse().expect("MiB");
    assert!((100..=200).contains(&resident), "{resident} MiB");
    // One large step is as bad as many.
    assert_eq!(run_job(&server, "double"), limited);
    assert_eq!(run_job(&server, "leak/4000"), limited);
    // A job that asks before it takes lives on.
    let before = run_job(&server, "pid");
    assert_eq!(run_job(&server, "reserve/4000"), "refused");
    assert_eq!(
        (run_job(&server, "reserve/20"), run_job(&server, "pid")),
        ("reserved".into(), before)
    );
    let text = server.stop();
    // Jobs that end their processes are no crash loop.
    assert_eq!(log::lines_with(&text, &["WARN"]).count(), 0, "{text}");
}

#[test]
fn private_memory_and_open_files_are_limited_by_the_kernel() {
    let settings = ["max-data-mib=300", "open-files=64"];
    let server = limited_pool(1, &settings).start().allow_errors(&["SIGABRT"]);
    assert_eq!(run_job(&server, "reserve/400"), "refused");
    assert_eq!(run_job(&server, "leak/400"), "LimitExceeded { limit: Memory }");
    let opened: u32 = run_job(&server, "open").parse().expect("a number");
    assert!((1..64).contains(&opened), "{opened}");
    let pid = run_job(&server, "pid");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a line");
    let soft = core.split_ascii_whitespace().nth(4).expect("a value");
    assert!(["0", "1"].contains(&soft), "{core}");
    server.stop();
}

#[test]
fn a_limit_of_memory_below_what_a_process_needs_is_a_boot_error_that_names_it() {
    let server = limited_pool(1, &["max-rss-mib=1", "boot-attempts=1"]).spawn();
    server.wait_log(&["max_rss", "is too low: the process uses"]);
    drop(server.allow_errors(&["max_rss", "limited", "giving up"]));
}

#[test]
fn a_job_over_its_cpu_time_is_ended_and_a_waiting_one_is_not() {
    let server =
        limited_pool(1, &["cpu-ms=300", "deadline-ms=600000"]).start().allow_errors(&["SIGXCPU"]);
    assert_eq!(run_job(&server, "spin"), "LimitExceeded { limit: CpuTime }");
    // The limit is that of each job: many short ones together take longer.
    let process = run_job(&server, "pid");
    for _ in 0..50 {
        assert_eq!(run_job(&server, "reserve/1"), "reserved");
    }
    assert_eq!(run_job(&server, "pid"), process);
    assert_eq!(run_job(&server, "spin"), "LimitExceeded { limit: CpuTime }");
    server.stop();
}

#[test]
fn jobs_have_a_low_priority_and_their_process_has_not() {
    let own = |server: &Server| run_job(server, "nice");
    let server = low_priority_pool(1, &[]).start();
    let (job, process) =
        own(&server).split_once(' ').map(|(a, b)| (a.to_string(), b.to_string())).expect("two");
    assert_eq!(job, "19");
    server.stop();
    let server = low_priority_pool(1, &["nice=7"]).start();
    assert_eq!(own(&server), format!("7 {process}"));
    server.stop();
}

#[test]
fn a_process_that_keeps_memory_is_replaced_before_its_next_job() {
    let server = limited_pool(1, &["max-rss-mib=256"]).start();
    let first = run_job(&server, "leak/10");
    assert_eq!(run_job(&server, "pid"), first, "10 MiB are no reason");
    assert_eq!(run_job(&server, "leak/190"), first);
    // Without the replacement this one would exceed the limit, with what the other has left.
    let next = run_job(&server, "leak/150");
    assert!(next.parse::<u32>().is_ok_and(|_| next != first), "{next}");
    server.wait_log(&["kind=limited", "max-rss"]);
    server.stop();
}

#[test]
fn with_one_job_for_each_process_no_job_sees_what_another_has_left() {
    let server = limited_pool(2, &["max-jobs=1"]).start();
    let dir = server.dir().display().to_string();
    let mut pids = BTreeSet::new();
    for round in 0..10 {
        assert!(pids.insert(run_job(&server, "dirty")), "round {round}: {pids:?}");
        // The event loop of the process, and the thread of its jobs.
        assert_eq!(run_job(&server, "traces"), format!("{dir} 2"));
    }
    // Each job runs once, also if many wait.
    let jobs: Vec<_> = (0..40).map(|_| start_job(&server, "pid")).collect();
    let results: Vec<String> = jobs.into_iter().map(|job| job.join().expect("thread")).collect();
    for result in &results {
        assert!(result.parse::<u32>().is_ok(), "{result}");
        assert!(pids.insert(result.clone()), "{result} twice");
    }
    server.run_verb(&["reload"]);
    assert!(pids.insert(run_job(&server, "pid")));
    assert_eq!(server.count_log(&["crash loop"]), 0);
    server.stop();
}

#[test]
fn processes_start_when_jobs_wait_and_end_when_they_are_idle() {
    let server = limited_pool(0, &["max=3", "idle-ms=200"]).start();
    assert_eq!(wanted_processes(&server), 0);
    let first = run_job(&server, "pid");
    let held: Vec<_> = ["a", "b", "c"].map(|name| start_held_job(&server, name)).into();
    assert_eq!(wanted_processes(&server), 3);
    // A fourth job waits for one of the three, and for no idle timeout.
    let waiting = start_job(&server, "pid");
    release(&server, &["b"]);
    let mut pids: Vec<String> = vec![waiting.join().expect("thread")];
    release(&server, &["a", "c"]);
    pids.extend(held.into_iter().map(|job| job.join().expect("thread")));
    assert_eq!(pids.iter().collect::<BTreeSet<_>>().len(), 3, "{pids:?}");
    wait::wait_until("no process is left", || wanted_processes(&server) == 0);
    let last: Vec<u32> = pids.iter().chain([&first]).map(|pid| pid.parse().expect("pid")).collect();
    process::wait_ended(&last);
    assert_ne!(run_job(&server, "pid"), first);
    let text = server.stop();
    assert_eq!(log::warnings_and_errors(&text), Vec::<&str>::new());
}

#[test]
fn the_number_of_processes_is_scaled_within_its_range_and_survives_a_reload() {
    let server = limited_pool(1, &["max=3", "idle-ms=600000"]).start();
    server.run_verb(&["scale", "limited=2"]);
    for outside in ["limited=4", "limited=0"] {
        let refused = server.try_verb(&["scale", outside]).stderr;
        assert!(refused.contains("ask for 1 to 3"), "{refused}");
    }
    let table = server.run_verb(&["status"]);
    assert!(table.contains("of 2 of kind limited serve (1 to 3 on demand)"), "{table}");
    server.run_verb(&["reload"]);
    assert_eq!(wanted_processes(&server), 2);
    let held: Vec<_> = ["a", "b", "c"].map(|name| start_held_job(&server, name)).into();
    assert_eq!(wanted_processes(&server), 3);
    // Busy processes may be scaled away: their jobs end.
    server.run_verb(&["scale", "limited=1"]);
    release(&server, &["a", "b", "c"]);
    for job in held {
        let pid = job.join().expect("thread");
        assert!(pid.parse::<u32>().is_ok(), "{pid}");
    }
    server.run_verb(&["upgrade"]);
    assert_eq!(wanted_processes(&server), 1);
    assert!(run_job(&server, "pid").parse::<u32>().is_ok());
    server.stop();
}

#[test]
fn a_killed_process_of_a_range_is_replaced() {
    let server = limited_pool(1, &["max=2"]).start().allow_errors(&["SIGKILL"]);
    let pid: u32 = run_job(&server, "pid").parse().expect("pid");
    process::send_signal(pid, Signal::SIGKILL);
    process::wait_ended(&[pid]);
    assert!(run_job(&server, "pid").parse::<u32>().is_ok_and(|next| next != pid));
    server.stop();
}
