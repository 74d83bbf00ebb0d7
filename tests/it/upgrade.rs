//! Upgrades in place: the same process becomes the binary that now stands at its path, and nobody notices.

use std::os::unix::fs::MetadataExt;

use nix::sys::signal::Signal;

use crate::support::load::Load;
use crate::support::{Server, amount, process, wait};

/// How many bytes of environment a process was given.
fn environ_size(pid: u32) -> usize {
    std::fs::read(format!("/proc/{pid}/environ")).expect("environ").len()
}

/// Upgrades, and waits until the workers are those of the new image, which are returned.
#[track_caller]
fn upgrade(server: &Server, generation: usize) -> Vec<u32> {
    let old = server.worker_pids();
    server.signal(Signal::SIGUSR2);
    server.wait_generation(generation);
    server.wait_others(old.len(), &old)
}

#[test]
fn the_process_and_its_socket_stay_and_nothing_piles_up() {
    let server = Server::builder().copied().control().start();
    let socket = process::listening_socket(server.port()).expect("it listens");
    let before = process::descriptors(server.pid());
    assert!(before.iter().any(|(_, target)| *target == socket), "{before:?}");
    let environ = environ_size(server.pid());
    let load = Load::keep_alive(server.address(), 8).posting().thinking().start();
    for generation in 2..2 + amount("PREFORK_UPGRADES", 5) {
        load.wait_answered(24);
        // The primary is our own child: it is the same process as long as this is not the child of nobody.
        upgrade(&server, generation);
        assert_eq!(process::listening_socket(server.port()), Some(socket.clone()));
        let now = process::descriptors(server.pid());
        assert!(now.iter().any(|(_, target)| *target == socket), "{now:?}");
    }
    load.wait_answered(24);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused, tally.ended), (0, 0, 0), "{tally:?}");
    wait::until("as many descriptors as before", || {
        process::descriptors(server.pid()).len() == before.len()
    });
    // One variable more, which says where to begin; not one for each upgrade.
    assert!(environ_size(server.pid()) <= environ + 24, "{environ}");
    let status = server.status();
    assert_eq!(status["primary"]["pid"], server.pid());
    assert!(status["totals"]["requests"].as_u64() >= Some(tally.ok), "{status}");
    let log = server.stop();
    assert_eq!(
        log.matches(", took over 2 workers").count(),
        amount("PREFORK_UPGRADES", 5),
        "{log}"
    );
}

#[test]
fn upgrades_lose_no_new_connection() {
    let server = Server::builder().copied().start();
    let load = Load::new_connections(server.address(), 4).start();
    for generation in 2..5 {
        load.wait_answered(24);
        upgrade(&server, generation);
    }
    load.wait_answered(24);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
    server.stop();
}

#[test]
fn idle_connections_live_through_an_upgrade() {
    let server = Server::builder().copied().args(["--linger-timeout", "100s"]).start();
    let mut idle: Vec<_> = (0..32).map(|_| server.connect()).collect();
    for client in &mut idle {
        assert_eq!(client.get("/").expect("answer").status, 200);
    }
    let new = upgrade(&server, 2);
    for client in &mut idle {
        assert!(new.contains(&client.get("/").expect("an answer").pid()));
    }
    drop(idle);
    server.stop();
}

#[test]
fn the_verb_upgrades_and_the_number_of_workers_set_by_hand_stays_until_the_new_ones_serve() {
    let server = Server::builder().copied().control().start();
    let old = server.worker_pids();
    let said = server.order(&["upgrade"]);
    assert!(said.contains("the new binary is fit"), "{said}");
    server.wait_generation(2);
    server.wait_others(2, &old);
    // It can be asked again, and be upgraded by signal and by reload.
    assert_eq!(server.status()["primary"]["generation"], 2);
    let old = server.worker_pids();
    server.order(&["reload"]);
    server.wait_others(2, &old);
    upgrade(&server, 4);
    server.stop();
}

#[test]
fn the_files_of_the_server_survive_upgrades_and_are_gone_at_the_end() {
    let builder = Server::builder().copied().control().args(["--pid-file", "pid"]);
    let path = builder.dir().join("socket");
    let server = builder.bind([format!("unix:{}", path.display())]).start();
    let (pid_file, control) = (server.dir().join("pid"), server.control());
    let inode = std::fs::metadata(&path).expect("socket").ino();
    for generation in 2..4 {
        upgrade(&server, generation);
        assert_eq!(server.get("/").status, 200);
        assert_eq!(std::fs::metadata(&path).expect("socket").ino(), inode);
        let pid = std::fs::read_to_string(&pid_file).expect("pid file");
        assert_eq!(pid, format!("{}\n", server.pid()));
        assert_eq!(server.status()["primary"]["pid"], server.pid());
        // It is still locked.
        let second = Server::builder().args(["--pid-file".into(), pid_file.clone()]).run();
        assert_eq!(second.status, Some(69), "{}", second.err);
    }
    server.signal(Signal::SIGTERM);
    wait::until("the end of its files", || {
        ![&path, &pid_file, &control].into_iter().any(|file| file.exists())
    });
    server.finish(0);
}

#[test]
fn a_frozen_worker_does_not_stop_an_upgrade() {
    let args = ["--graceful-timeout", "1s"];
    let server = Server::builder().copied().args(args).start();
    let frozen = server.worker_pids()[0];
    process::send(frozen, Signal::SIGSTOP);
    upgrade(&server, 2);
    assert!(process::is_gone(frozen));
    server.stop();
}
