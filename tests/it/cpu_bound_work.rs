//! What users of Piscina, `worker_threads` and `ProcessPoolExecutor` write here: every line of the tables of
//! `docs/src/cpu-bound-work.md` does what its row says.

use crate::support::command::ProcessBuilder;

/// Processes of the isolated pools of the program: 4 for thumbnails, 1 for frames, 1 for exports.
const ISOLATED_PROCESSES: usize = 6;

#[track_caller]
fn assert_calls_work(path: &str) {
    let server = ProcessBuilder::program("cpu-bound-api")
        .workers(1)
        .other_workers(ISOLATED_PROCESSES)
        .start()
        .allow_errors(&["a bad job", "panicked at", "exit status 3", "SIGKILL"]);
    // Twice, as nothing of the first call may be in the way of another.
    for _ in 0..2 {
        assert_eq!(server.get(path).text(), "done\n");
    }
    server.stop();
}

#[test]
fn calls_of_piscina_have_a_counterpart() {
    assert_calls_work("/piscina");
}

#[test]
fn calls_of_worker_threads_have_a_counterpart() {
    assert_calls_work("/worker_threads");
}

#[test]
fn calls_of_process_pool_executor_have_a_counterpart() {
    assert_calls_work("/process_pool_executor");
}
