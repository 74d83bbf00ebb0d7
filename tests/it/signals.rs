//! The effect of each documented signal on primary and workers.

use nix::sys::signal::Signal;

use crate::support::{Server, log, process, wait};

/// Signals without effect on a worker.
const IGNORED_BY_WORKERS: [Signal; 13] = [
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGWINCH,
    Signal::SIGALRM,
    Signal::SIGPIPE,
    Signal::SIGXFSZ,
    Signal::SIGURG,
    Signal::SIGCONT,
];

/// Signals without effect on the primary.
const IGNORED_BY_THE_PRIMARY: [Signal; 7] = [
    Signal::SIGUSR1,
    Signal::SIGWINCH,
    Signal::SIGALRM,
    Signal::SIGPIPE,
    Signal::SIGXFSZ,
    Signal::SIGURG,
    Signal::SIGCONT,
];

/// Waits until the process has no pending signal.
#[track_caller]
fn wait_signals_handled(pid: u32) {
    wait::wait_until("the signal is taken", || {
        let status =
            std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
        let waits = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            u64::from_str_radix(line.trim(), 16) != Ok(0)
        };
        !waits("ShdPnd:") && !waits("SigPnd:")
    });
}

#[test]
fn a_worker_ignores_the_signals_of_the_primary() {
    let server = Server::start(1);
    let pid = server.get("/").pid();
    for signal in IGNORED_BY_WORKERS {
        process::send_signal(pid, signal);
        wait_signals_handled(pid);
        assert_eq!(server.get("/").pid(), pid, "{signal}");
    }
    assert_eq!(server.worker_pids(), [pid]);
    let text = server.stop();
    assert_eq!(log::warnings_and_errors(&text), Vec::<&str>::new());
}

#[test]
fn the_primary_ignores_unrelated_signals() {
    let server = Server::builder().workers(1).start();
    let pids = server.worker_pids();
    for signal in IGNORED_BY_THE_PRIMARY {
        server.signal(signal);
        wait_signals_handled(server.pid());
    }
    let primary = &server.status()["primary"];
    assert_eq!((&primary["workers_wanted"], &primary["generation"]), (&1.into(), &1.into()));
    assert_eq!(server.worker_pids(), pids);
    server.stop();
}

#[test]
fn a_stopped_worker_resumes_after_sigcont() {
    let server = Server::builder().workers(1).own_process_group().start();
    let pid = server.get("/").pid();
    process::send_signal(pid, Signal::SIGTSTP);
    wait::wait_until("it is stopped", || process::stat(pid).is_some_and(|stat| stat.state == 'T'));
    process::send_signal(pid, Signal::SIGCONT);
    assert_eq!(server.get("/").pid(), pid);
    server.stop();
}
