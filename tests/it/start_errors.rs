//! Programs that cannot start: what they print, and their exit status.

use std::net::TcpListener;

use crate::support::command::{ProcessBuilder, ProcessOutput};
use crate::support::log;

/// Asserts that the program ended before it bound its socket, with `status` and a last line that contains `pieces`.
#[track_caller]
fn assert_not_started(ended: &ProcessOutput, status: i32, pieces: &[&str]) {
    assert_eq!(ended.status, Some(status), "{}", ended.stderr);
    let last = ended.stderr.lines().last().unwrap_or_default();
    for piece in pieces {
        assert!(last.contains(piece), "{piece}: {}", ended.stderr);
    }
    assert!(log::worker_pids(&ended.stderr).is_empty(), "{}", ended.stderr);
    assert!(!ended.stderr.contains("127.0.0.1"), "it has bound: {}", ended.stderr);
}

#[test]
fn a_cluster_does_not_start_inside_a_tokio_runtime() {
    for flavor in ["current_thread", "multi_thread"] {
        let ended =
            ProcessBuilder::program("start-in-runtime").args([format!("flavor={flavor}")]).run();
        assert_not_started(
            &ended,
            70,
            &["test_programs: ", "tokio runtime", "#[tokio::main]", "fn main()"],
        );
    }
}

#[test]
fn a_cluster_does_not_start_in_a_process_with_several_threads() {
    let ended = ProcessBuilder::program("start-with-threads").run();
    assert_not_started(&ended, 70, &["test_programs: ", "2 threads", "exporter"]);
}

#[test]
fn a_boot_error_ends_the_cluster_at_once_and_is_its_error() {
    for (program, cause) in [
        ("boot-fails", "open the database: no such host"),
        ("boot-panics", "the boot function panicked: no database"),
        ("boot-cannot-read", "No such file or directory"),
    ] {
        let ended = ProcessBuilder::program(program).workers(2).args(["boot-attempts=1000"]).run();
        assert_eq!(ended.status, Some(70), "{}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap_or_default();
        let start = "test_programs: the workers cannot boot: ";
        assert!(last.starts_with(start) && last.contains(cause), "{}", ended.stderr);
        // Those of the first round, and no other.
        assert!(log::worker_pids(&ended.stderr).len() <= 2, "{}", ended.stderr);
    }
}

/// Returns how a program ends whose `main` returns `kind`, when its address is taken.
fn end_with_taken_address(kind: &str) -> ProcessOutput {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address").to_string();
    ProcessBuilder::program("end-as-main").bind([address]).args([format!("main={kind}")]).run()
}

#[test]
fn the_exit_status_follows_from_the_error_or_from_the_type_of_main() {
    for (kind, status, start) in [
        ("main", 69, "test_programs: cannot bind 127.0.0.1:"),
        ("report", 69, "test_programs: cannot bind 127.0.0.1:"),
        ("result", 1, "Error: cannot bind 127.0.0.1:"),
        ("box", 1, "Error: cannot bind 127.0.0.1:"),
    ] {
        let ended = end_with_taken_address(kind);
        assert_eq!(ended.status, Some(status), "{kind}: {}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with(start) && last.contains("in use"), "{kind}: {}", ended.stderr);
    }
}

#[test]
fn the_error_of_a_bind_has_the_error_of_the_system() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let tcp = taken.local_addr().expect("address").to_string();
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("s");
    let _listening = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    let missing = dir.path().join("missing/s");
    for (address, kinds) in [
        (tcp, "Bind Some(AddrInUse) Some(98)"),
        (format!("unix:{}", path.display()), "Bind Some(AddrInUse) Some(98)"),
        (format!("unix:{}", missing.display()), "Bind Some(NotFound) Some(2)"),
    ] {
        let ended = ProcessBuilder::program("print-error-kinds").bind([address]).run();
        assert_eq!((ended.stdout.trim(), ended.status), (kinds, Some(69)), "{}", ended.stderr);
    }
}
