//! Workers that lead a process group of their own and have limits of the kernel.

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::{Server, process, wait};

/// Starts a cluster of one `web` worker and one worker that has started `sleep` and then does `step`.
fn helper_cluster(step: &str) -> ProcessBuilder {
    let argument = format!("then={step}");
    ProcessBuilder::program("process-limits").workers(1).other_workers(1).args([argument])
}

/// Returns the pid of the `sleep` that was started last.
#[track_caller]
fn sleep_pid(server: &Server) -> u32 {
    wait::wait_until_some("the pid of sleep", || {
        std::fs::read_to_string(server.dir().join("sleep.pid")).ok()?.parse().ok()
    })
}

/// Returns the pids of the worker that leads a group and of the `sleep` that it has started.
#[track_caller]
fn helper_and_sleep(server: &Server) -> (u32, u32) {
    let sleep = sleep_pid(server);
    let helper = wait::wait_until_some("the worker of sleep", || {
        let mut children = process::children(server.pid()).into_iter();
        children.find(|pid| process::children(*pid).contains(&sleep))
    });
    (helper, sleep)
}

/// Returns the soft and the hard limit of a process, as the kernel shows them.
#[track_caller]
fn limit(pid: u32, name: &str) -> (String, String) {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
    let mut values = line.split_ascii_whitespace().map(str::to_string);
    (values.next().expect("soft"), values.next().expect("hard"))
}

#[test]
fn programs_of_a_killed_worker_with_its_own_group_are_killed() {
    let server = helper_cluster("serve").start().allow_errors(&["SIGKILL"]);
    let (helper, sleep) = helper_and_sleep(&server);
    std::fs::remove_file(server.dir().join("sleep.pid")).expect("removed");
    process::send_signal(helper, Signal::SIGKILL);
    process::wait_ended(&[helper, sleep]);
    let (_, next) = helper_and_sleep(&server);
    server.stop();
    process::wait_ended(&[next]);
}

#[test]
fn programs_of_a_worker_that_exits_by_itself_are_killed() {
    let server = helper_cluster("exit").spawn().allow_errors(&["exit status 3", "crash"]);
    let sleep = sleep_pid(&server);
    process::wait_ended(&[sleep]);
    drop(server);
}

#[test]
fn programs_of_a_worker_are_killed_when_the_primary_is() {
    let mut server = helper_cluster("serve").start();
    let (helper, sleep) = helper_and_sleep(&server);
    server.kill_primary();
    process::wait_ended(&[helper, sleep]);
}

#[test]
fn programs_of_a_frozen_worker_are_killed_after_the_primary_is() {
    let mut server = helper_cluster("freeze").args(["graceful-timeout-ms=1000"]).start();
    let (helper, sleep) = helper_and_sleep(&server);
    server.kill_primary();
    process::wait_ended(&[helper, sleep]);
}

#[test]
fn programs_of_a_worker_are_killed_by_a_new_binary_too() {
    let server = helper_cluster("serve").start();
    let (helper, sleep) = helper_and_sleep(&server);
    std::fs::remove_file(server.dir().join("sleep.pid")).expect("removed");
    server.run_verb(&["upgrade"]);
    process::wait_ended(&[helper, sleep]);
    let (_, next) = helper_and_sleep(&server);
    server.stop();
    process::wait_ended(&[next]);
}

#[test]
fn a_worker_has_the_limits_that_its_kind_declares() {
    let server = helper_cluster("serve").args(["limits=1"]).start();
    let (helper, sleep) = helper_and_sleep(&server);
    for pid in [helper, sleep] {
        let both = |value: &str| (value.to_string(), value.to_string());
        assert_eq!(limit(pid, "Max open files"), both("64"));
        assert_eq!(limit(pid, "Max data size"), both(&(1u64 << 30).to_string()));
        assert_eq!(limit(pid, "Max address space"), both(&(1u64 << 36).to_string()));
        let core = limit(pid, "Max core file size").0;
        assert!(["0", "1"].contains(&core.as_str()), "{core}");
    }
    // The others keep those of the primary.
    let web = server.get("/").text().parse().expect("a pid");
    assert_eq!(limit(web, "Max open files"), limit(server.pid(), "Max open files"));
    server.stop();
}
