//! The primary as process 1 of a pid namespace, as in a container. Skipped where namespaces cannot be created.
//!
//! `scripts/e2e/pid1` tests more of it.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::command::clear_variables;
use crate::support::{control, log, process, wait};

/// Starts 100 orphans that wait for a FIFO, then becomes the server.
const START_SCRIPT: &str = "for i in $(seq 100); do (cat barrier >/dev/null 2>&1 &); done; \
                      exec \"$0\" serve --bind 127.0.0.1:0 --workers 2 --control control";

/// A server that is process 1 of a pid namespace, under `unshare`.
struct NamespacedServer {
    outside: Child,
    dir: TempDir,
}

impl NamespacedServer {
    /// Starts the server; `None` where namespaces cannot be created.
    fn start() -> Option<NamespacedServer> {
        let namespace = ["--pid", "--fork", "--mount-proc", "--kill-child"];
        let mut trial = Command::new("unshare");
        let trial = trial.args(namespace).arg("true").stderr(Stdio::null()).status();
        if !trial.is_ok_and(|status| status.success()) {
            return None;
        }
        let dir = tempfile::tempdir().expect("directory");
        let made = Command::new("mkfifo").arg(dir.path().join("barrier")).status().expect("mkfifo");
        assert!(made.success());
        let log = File::create(dir.path().join("log")).expect("log");
        let mut command = Command::new("unshare");
        command.args(namespace).args(["sh", "-c", START_SCRIPT, env!("CARGO_BIN_EXE_prefork")]);
        clear_variables(&mut command);
        command.current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let outside = command.spawn().expect("unshare");
        Some(NamespacedServer { outside, dir })
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits until two workers serve, one of which has this id.
    fn wait_workers(&self, id: u64) {
        wait::wait_until("two workers", || {
            let request = serde_json::json!({ "verb": "status" });
            let reply = control::request(&self.dir.path().join("control"), &request);
            reply.is_some_and(|reply| {
                let ids = control::serving(&reply["status"]).filter_map(|w| w["id"].as_u64());
                let ids: Vec<u64> = ids.collect();
                ids.len() == 2 && ids.contains(&id)
            })
        });
    }

    /// Returns the pid of the primary outside the namespace.
    fn pid(&self) -> u32 {
        let child = || process::children(self.outside.id()).first().copied();
        wait::wait_until_some("the first process", child)
    }

    fn wait_end(&mut self) -> ExitStatus {
        wait::wait_until_some("its end", || {
            self.outside.try_wait().expect("a child of this process")
        })
    }

    fn release_orphans(&self) {
        let barrier: &Path = &self.dir.path().join("barrier");
        drop(File::options().write(true).open(barrier).expect("barrier"));
    }
}

impl Drop for NamespacedServer {
    fn drop(&mut self) {
        // The kernel ends the namespace with its process 1.
        let _ = self.outside.kill();
        let _ = self.outside.wait();
    }
}

#[test]
fn as_pid_1_foreign_orphans_are_reaped() {
    let Some(mut server) = NamespacedServer::start() else { return };
    server.wait_workers(2);
    let primary = server.pid();
    assert_eq!(process::children(primary).len(), 102, "the orphans are its children");
    server.release_orphans();
    wait::wait_until("the end of all orphans", || {
        (process::children(primary).len(), process::zombies(primary).len()) == (2, 0)
    });
    // Deaths of workers are still noticed.
    process::send_signal(process::children(primary)[0], Signal::SIGKILL);
    server.wait_workers(3);
    process::send_signal(primary, Signal::SIGTERM);
    let status = server.wait_end();
    let text = server.log();
    assert_eq!((status.code(), log::warnings_and_errors(&text).len()), (Some(0), 1), "{text}");
    assert_eq!(log::lines_with(&text, &["ERROR", "worker=", "SIGKILL"]).count(), 1, "{text}");
}

#[test]
fn as_pid_1_every_terminating_signal_is_handled() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let Some(mut server) = NamespacedServer::start() else { return };
        server.wait_workers(2);
        process::send_signal(server.pid(), signal);
        assert_eq!(server.wait_end().code(), Some(0), "{signal}");
        assert!(server.log().contains(signal.as_str()), "{}", server.log());
    }
}
