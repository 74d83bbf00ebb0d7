//! Upgrades in place: the primary executes the binary at its path; an upgrade that fails changes nothing.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::control::{frame, read_frame, serving};
use crate::support::load::Load;
use crate::support::{Server, env_count, log, process, wait};

/// Returns the size of a process's environment in bytes.
fn environment_size(pid: u32) -> usize {
    std::fs::read(format!("/proc/{pid}/environ")).expect("environ").len()
}

/// Upgrades, waits until only workers of the new image run, and returns their pids.
#[track_caller]
fn upgrade_and_wait(server: &Server, generation: usize) -> Vec<u32> {
    let old = server.worker_pids();
    server.signal(Signal::SIGUSR2);
    server.wait_generation(generation);
    server.wait_new_workers(old.len(), &old)
}

#[test]
fn upgrades_keep_pid_and_socket_and_leak_no_descriptor() {
    let server = Server::builder().with_copied_program().start();
    let socket = process::listening_socket(server.port()).expect("it listens");
    let before = process::descriptors(server.pid());
    assert!(before.iter().any(|(_, target)| *target == socket), "{before:?}");
    let environ = environment_size(server.pid());
    let load = Load::keep_alive(server.address(), 8).with_posts().with_think_time().start();
    for generation in 2..2 + env_count("PREFORK_UPGRADES", 5) {
        load.wait_answered(24);
        // The primary stays a child of the test, so its pid stays.
        upgrade_and_wait(&server, generation);
        assert_eq!(process::listening_socket(server.port()), Some(socket.clone()));
        let now = process::descriptors(server.pid());
        assert!(now.iter().any(|(_, target)| *target == socket), "{now:?}");
    }
    load.wait_answered(24);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused, tally.ended), (0, 0, 0), "{tally:?}");
    wait::wait_until("as many descriptors as before", || {
        process::descriptors(server.pid()).len() == before.len()
    });
    // One more variable, and not one for each upgrade.
    assert!(environment_size(server.pid()) <= environ + 24, "{environ}");
    let status = server.status();
    assert_eq!(status["primary"]["pid"], server.pid());
    assert!(status["totals"]["requests"].as_u64() >= Some(tally.ok), "{status}");
    // Each image logs a line with the pid of the primary when it starts.
    let primary = format!("pid={}", server.pid());
    let text = server.stop();
    let images = log::lines_with(&text, &[&primary]).count();
    assert_eq!(images, 1 + env_count("PREFORK_UPGRADES", 5), "{text}");
}

#[test]
fn upgrades_lose_no_new_connection() {
    let server = Server::builder().with_copied_program().start();
    let load = Load::new_connections(server.address(), 4).start();
    for generation in 2..5 {
        load.wait_answered(24);
        upgrade_and_wait(&server, generation);
    }
    load.wait_answered(24);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
    server.stop();
}

#[test]
fn idle_connections_survive_an_upgrade() {
    let server = Server::builder().with_copied_program().args(["--linger-timeout", "100s"]).start();
    let mut idle: Vec<_> = (0..32).map(|_| server.connect()).collect();
    for client in &mut idle {
        assert_eq!(client.get("/").expect("answer").status, 200);
    }
    let new = upgrade_and_wait(&server, 2);
    for client in &mut idle {
        assert!(new.contains(&client.get("/").expect("an answer").pid()));
    }
    drop(idle);
    server.stop();
}

#[test]
fn upgrade_no_wait_and_later_reloads_and_upgrades_work() {
    let server = Server::builder().with_copied_program().start();
    let old = server.worker_pids();
    server.run_verb(&["upgrade", "--no-wait"]);
    server.wait_generation(2);
    server.wait_new_workers(2, &old);
    // The new image answers, reloads and can be upgraded again.
    assert_eq!(server.status()["primary"]["generation"], 2);
    let old = server.worker_pids();
    server.run_verb(&["reload"]);
    server.wait_new_workers(2, &old);
    upgrade_and_wait(&server, 4);
    server.stop();
}

#[test]
fn socket_and_pid_files_survive_upgrades() {
    let builder = Server::builder().with_copied_program().args(["--pid-file", "pid"]);
    let path = builder.dir().join("socket");
    let server = builder.bind([format!("unix:{}", path.display())]).start();
    let (pid_file, control) = (server.dir().join("pid"), server.control());
    let inode = std::fs::metadata(&path).expect("socket").ino();
    for generation in 2..4 {
        upgrade_and_wait(&server, generation);
        assert_eq!(server.get("/").status, 200);
        assert_eq!(std::fs::metadata(&path).expect("socket").ino(), inode);
        let pid = std::fs::read_to_string(&pid_file).expect("pid file");
        assert_eq!(pid, format!("{}\n", server.pid()));
        assert_eq!(server.status()["primary"]["pid"], server.pid());
        // The pid file is still locked.
        let second = Server::builder().args(["--pid-file".into(), pid_file.clone()]).run();
        assert_eq!(second.status, Some(69), "{}", second.stderr);
    }
    server.signal(Signal::SIGTERM);
    wait::wait_until("the end of its files", || {
        ![&path, &pid_file, &control].into_iter().any(|file| file.exists())
    });
    server.wait_clean_exit(0);
}

#[test]
fn a_frozen_worker_does_not_block_an_upgrade() {
    let args = ["--graceful-timeout", "1s"];
    let server = Server::builder().with_copied_program().args(args).start();
    let frozen = server.worker_pids()[0];
    process::send_signal(frozen, Signal::SIGSTOP);
    upgrade_and_wait(&server, 2);
    assert!(process::has_ended(frozen));
    server.stop();
}

#[test]
fn upgrade_returns_when_the_new_workers_serve() {
    // A request in flight keeps a worker of the first image alive during the next upgrade.
    let args = ["--graceful-timeout", "1s"];
    let server = Server::builder().with_copied_program().args(args).start();
    let mut slow = server.connect();
    slow.send("GET /sleep/60000 HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    server.wait_in_flight("/sleep/60000");
    for generation in 2..5 {
        server.run_verb(&["upgrade"]);
        let status = server.status();
        assert_eq!(status["primary"]["generation"], generation, "{status}");
        let new = serving(&status).filter(|worker| worker["generation"] == generation).count();
        assert_eq!(new, 2, "{status}");
    }
    server.signal(Signal::SIGQUIT);
    server.wait_clean_exit(0);
}

#[test]
fn simultaneous_upgrade_verbs_all_succeed() {
    let server = Server::builder().with_copied_program().start();
    std::thread::scope(|scope| {
        let orders: Vec<_> =
            (0..4).map(|_| scope.spawn(|| server.run_verb(&["upgrade"]))).collect();
        let watcher = scope.spawn(|| {
            for _ in 0..40 {
                server.status();
            }
        });
        for order in orders {
            order.join().expect("an order");
        }
        watcher.join().expect("status is answered, whatever image runs");
    });
    server.stop();
}

#[test]
fn an_upgrade_continues_when_its_client_disconnects() {
    let server = Server::builder().with_copied_program().start();
    let mut client = UnixStream::connect(server.control()).expect("connect");
    let workers = server.worker_pids();
    client.write_all(&frame(r#"{"verb":"upgrade"}"#)).expect("send");
    // The new binary is checked in a child process.
    wait::wait_until("the candidate", || server.worker_pids() != workers);
    drop(client);
    server.wait_generation(2);
    assert_eq!(server.status()["primary"]["generation"], 2);
    server.stop();
}

#[test]
fn control_connections_survive_an_upgrade() {
    let server = Server::builder().with_copied_program().start();
    let connect = || {
        let stream = UnixStream::connect(server.control()).expect("connect");
        stream.set_read_timeout(Some(wait::DEADLINE)).expect("timeout");
        stream
    };
    let mut follower = connect();
    let request = frame(r#"{"verb":"events","follow":true,"since":0}"#);
    follower.write_all(&request).expect("send");
    let mut slow = connect();
    let request = frame(r#"{"verb":"status"}"#);
    slow.write_all(&request[..9]).expect("send");
    server.run_verb(&["upgrade"]);
    slow.write_all(&request[9..]).expect("send");
    let answer = read_frame(&mut slow).expect("a reply");
    assert_eq!(answer["status"]["primary"]["generation"], 2, "{answer}");
    let events = server.run_verb(&["events", "--json"]);
    for sequence in 1.. {
        let event = &read_frame(&mut follower).expect("an event")["event"];
        assert_eq!(event["sequence"], sequence, "no event is missed or repeated: {event}");
        if is_last_event(&events, sequence) {
            break;
        }
    }
    server.stop();
}

/// Whether the last of `events`, which are lines of JSON, has this sequence number.
fn is_last_event(events: &str, sequence: u64) -> bool {
    let last: Option<serde_json::Value> =
        events.lines().last().and_then(|line| serde_json::from_str(line).ok());
    last.is_some_and(|event| event["sequence"] == sequence)
}

/// A worker that was forked just before the exec briefly has copies of the primary's descriptors. The test takes such
/// copies itself, and keeps them.
#[test]
fn descriptor_copies_in_other_processes_do_not_block_an_upgrade() {
    let server = Server::builder().with_copied_program().args(["--pid-file", "pid"]).start();
    let pid = rustix::process::Pid::from_raw(server.pid() as i32).expect("pid");
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
    let process = process.expect("the server's process");
    let pid_file = server.dir().join("pid");
    let inode = std::fs::metadata(server.control()).expect("control socket").ino();
    let copies: Vec<_> = process::descriptors(server.pid())
        .into_iter()
        .filter(|(fd, target)| {
            *fd > 2 && (target.starts_with("socket:") || target.ends_with("/pid"))
        })
        .map(|(fd, _)| {
            let flags = rustix::process::PidfdGetfdFlags::empty();
            rustix::process::pidfd_getfd(&process, fd, flags).expect("a copy")
        })
        .collect();
    assert!(copies.len() >= 2, "{copies:?}");
    for generation in 2..4 {
        server.run_verb(&["upgrade"]);
        assert_eq!(server.status()["primary"]["generation"], generation);
        assert_eq!(std::fs::metadata(server.control()).expect("control socket").ino(), inode);
        let second = Server::builder().args(["--pid-file".into(), pid_file.clone()]).run();
        assert_eq!(second.status, Some(69), "it is still locked: {}", second.stderr);
    }
    drop(copies);
    let control = server.control();
    server.signal(Signal::SIGTERM);
    wait::wait_until("the end of its files", || !control.exists() && !pid_file.exists());
    server.wait_clean_exit(0);
}

#[test]
fn a_reload_restores_a_removed_control_socket_and_pid_file() {
    let server = Server::builder().args(["--pid-file", "pid"]).start();
    let server = server.allow_errors(&["control socket", "pid file"]);
    let (control, pid_file) = (server.control(), server.dir().join("pid"));
    let text = std::fs::read_to_string(&pid_file).expect("pid file");
    for spoil in [
        &(|| {
            std::fs::remove_file(&control).expect("remove");
            std::fs::remove_file(&pid_file).expect("remove");
        }) as &dyn Fn(),
        &|| {
            std::fs::remove_file(&control).expect("remove");
            drop(std::os::unix::net::UnixListener::bind(&control).expect("a stale socket"));
            std::fs::write(&pid_file, "1\n").expect("write");
        },
        &|| std::fs::rename(&pid_file, server.dir().join("moved")).expect("move"),
    ] {
        spoil();
        server.signal(Signal::SIGHUP);
        wait::wait_until("both files", || {
            let listens = UnixStream::connect(&control).is_ok();
            listens && std::fs::read_to_string(&pid_file).is_ok_and(|now| now == text)
        });
        server.run_verb(&["reload"]);
    }
    // A foreign file at the path is kept and warned about.
    std::fs::remove_file(&control).expect("remove");
    std::fs::write(&control, "data").expect("write");
    server.signal(Signal::SIGHUP);
    server.wait_log(&["WARN", &control.display().to_string()]);
    assert_eq!(std::fs::read_to_string(&control).expect("kept"), "data");
    std::fs::remove_file(&control).expect("remove");
    server.signal(Signal::SIGHUP);
    wait::wait_until("the control socket", || UnixStream::connect(&control).is_ok());
    server.stop();
}

/// Runs a shell script in the server's directory. Binaries are copied by the shell: a child that another test forks
/// meanwhile would inherit our descriptor, and a file that is open for writing cannot be executed.
#[track_caller]
fn run_in_server_dir(server: &Server, script: &str) {
    let status = Command::new("sh").args(["-ec", script]).current_dir(server.dir()).status();
    assert!(status.expect("sh").success(), "{script}");
}

/// Starts a server from a copy of the binary, with another copy in `good`.
#[track_caller]
fn start_from_copy(args: &[&str]) -> Server {
    let server = Server::builder().with_copied_program().args(args).start();
    run_in_server_dir(&server, "cp program good");
    server.allow_errors(&["upgrade"])
}

/// Replaces the binary by the file `new` that `script` creates, if any.
#[track_caller]
fn replace_binary(server: &Server, script: &str) {
    run_in_server_dir(
        server,
        &format!("{script}; rm -rf program; if [ -e new ]; then mv new program; fi"),
    );
}

/// Asserts that an upgrade fails and changes nothing, and returns the reason.
#[track_caller]
fn assert_upgrade_fails(server: &Server) -> String {
    let (pids, descriptors) = (server.worker_pids(), process::descriptors(server.pid()).len());
    let before = server.count_log(&["ERROR", "upgrade"]);
    let why = server.assert_verb_fails(&["upgrade"], 1);
    assert_eq!(server.count_log(&["ERROR", "upgrade"]), before + 1);
    // A killed upgrade check is a child of the primary until it is reaped, a moment after the reply.
    wait::wait_until("the same workers as before", || server.worker_pids() == pids);
    assert!(pids.contains(&server.get("/").pid()));
    wait::wait_until("as many descriptors as before", || {
        process::descriptors(server.pid()).len() == descriptors
    });
    why
}

/// Restores the good binary, and asserts that an upgrade to it succeeds.
#[track_caller]
fn assert_upgrade_recovers(server: &Server) {
    replace_binary(server, "cp good new");
    let old = server.worker_pids();
    server.run_verb(&["upgrade"]);
    server.wait_generation(2);
    server.wait_new_workers(2, &old);
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn an_upgrade_to_an_invalid_binary_changes_nothing() {
    let server = start_from_copy(&[]);
    for (script, why) in [
        (":", "No such file"),
        ("cp good new; chmod 644 new", "Permission denied"),
        (": > new; chmod 755 new", "Exec format error"),
        ("echo 'not a program' > new; chmod 755 new", "Exec format error"),
        ("mkdir new", "Permission denied"),
        ("head -c 4000 good > new; chmod 755 new", "signal: "),
        ("printf '#!/nonexistent/interpreter\\n' > new; chmod 755 new", "No such file"),
    ] {
        replace_binary(&server, script);
        let error = assert_upgrade_fails(&server);
        assert!(error.contains(why), "{script}: {error}");
    }
    assert_upgrade_recovers(&server);
    server.stop();
}

#[test]
fn an_upgrade_to_a_binary_that_exits_early_changes_nothing() {
    let server = start_from_copy(&[]);
    for (script, status) in [
        ("printf '#!/bin/sh\\nexit 1\\n' > new; chmod 755 new", "exit status: 1"),
        ("printf '#!/bin/sh\\nexit 0\\n' > new; chmod 755 new", "exit status: 0"),
        ("printf '#!/bin/sh\\nkill -SEGV $$\\n' > new; chmod 755 new", "SIGSEGV"),
        ("cp /bin/false new", "exit status: 1"),
        ("cp /bin/true new", "exit status: 0"),
    ] {
        replace_binary(&server, script);
        let error = assert_upgrade_fails(&server);
        assert!(error.contains(status), "{script}: {error}");
    }
    assert_upgrade_recovers(&server);
    server.stop();
}

const HANGING_BINARY: &str =
    "printf '#!/bin/sh\\necho $$ > candidate\\nexec sleep 600\\n' > new; chmod 755 new";

/// Waits until the hanging binary runs, and returns its pid.
#[track_caller]
fn wait_hanging_binary(server: &Server) -> u32 {
    wait::wait_until_some("the candidate", || {
        std::fs::read_to_string(server.dir().join("candidate")).ok()?.trim().parse().ok()
    })
}

#[test]
fn an_upgrade_to_a_hanging_binary_fails_at_the_boot_timeout() {
    let server = start_from_copy(&["--boot-timeout", "1s"]);
    replace_binary(&server, HANGING_BINARY);
    let error = assert_upgrade_fails(&server);
    assert!(error.contains("boot-timeout"), "{error}");
    assert!(process::has_ended(wait_hanging_binary(&server)));
    assert_upgrade_recovers(&server);
    server.stop();
}

#[test]
fn an_upgrade_with_a_broken_config_changes_nothing() {
    let text = "bind = ['127.0.0.1:0']\nworkers = 2\n";
    let server = Server::builder().config(2, text).with_copied_program().start();
    let server = server.allow_errors(&["upgrade"]);
    let file = server.dir().join("prefork.toml");
    for (wrong, why) in
        [("workers = 'many'\n", "many"), ("worker = 2\n", "worker"), ("bind = ['a:b:c']", "a:b:c")]
    {
        std::fs::write(&file, wrong).expect("write");
        let error = assert_upgrade_fails(&server);
        assert!(error.contains(why), "{wrong}: {error}");
        let events = server.run_verb(&["events"]);
        assert!(log::lines_with(&events, &["upgrade", why]).count() > 0, "{events}");
    }
    std::fs::remove_file(&file).expect("remove");
    let error = assert_upgrade_fails(&server);
    assert!(error.contains("prefork.toml"), "{error}");
    std::fs::write(server.dir().join("prefork.toml"), text).expect("write");
    server.run_verb(&["upgrade"]);
    server.wait_generation(2);
    server.stop();
}

#[test]
fn a_stop_during_an_upgrade_check_exits_with_status_0() {
    let server = start_from_copy(&[]);
    replace_binary(&server, HANGING_BINARY);
    server.signal(Signal::SIGUSR2);
    server.wait_log(&["INFO", "SIGUSR2"]);
    let candidate = wait_hanging_binary(&server);
    let mut client = server.connect();
    assert_eq!(client.get("/").expect("answer").status, 200);
    drop(client);
    server.signal(Signal::SIGTERM);
    let text = server.wait_clean_exit(0);
    assert!(process::has_ended(candidate), "the candidate is reaped before the end");
    assert_eq!(log::lines_with(&text, &["ERROR", "upgrade", "stopping"]).count(), 1, "{text}");
}

#[test]
fn during_an_upgrade_check_reloads_are_refused_and_workers_replaced() {
    let server = start_from_copy(&[]).allow_errors(&["SIGKILL"]);
    replace_binary(&server, HANGING_BINARY);
    server.signal(Signal::SIGUSR2);
    let candidate = wait_hanging_binary(&server);
    let error = server.assert_verb_fails(&["reload"], 1);
    assert!(error.contains("upgrade"), "{error}");
    let pid = server.get("/").pid();
    process::send_signal(pid, Signal::SIGKILL);
    server.wait_replaced(1);
    assert_eq!(server.get("/").status, 200);
    process::send_signal(candidate, Signal::SIGKILL);
    server.wait_log(&["ERROR", "upgrade", "SIGKILL"]);
    server.stop();
}

#[test]
fn the_output_of_a_failing_binary_is_reported() {
    let server = start_from_copy(&["--boot-timeout", "20s"]);
    for (script, why) in [
        ("echo cannot open the license >&2; exit 3", "cannot open the license"),
        ("head -c 1000000 /dev/zero | tr '\\0' x >&2; echo; echo the end >&2; exit 4", "the end"),
        ("printf 'one\\033[31m\\ntwo\\n' >&2; kill -SEGV $$", "one\\u{1b}[31m; two"),
    ] {
        replace_binary(
            &server,
            &format!("printf '%s\\n' '#!/bin/sh' \"{script}\" > new; chmod 755 new")
                .replace("$$", "\\$\\$"),
        );
        let error = assert_upgrade_fails(&server);
        assert!(error.contains(why) && error.len() < 8192, "{script}: {error}");
    }
    assert_upgrade_recovers(&server);
    server.stop();
}

#[test]
fn an_upgrade_to_an_address_in_use_fails_with_the_reason() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = taken.local_addr().expect("address");
    let text = "bind = ['127.0.0.1:0']\nworkers = 2\n";
    let server = Server::builder().config(2, text).with_copied_program().start();
    let server = server.allow_errors(&["upgrade"]);
    let file = server.dir().join("prefork.toml");
    std::fs::write(&file, format!("bind = ['127.0.0.1:0', '{taken}']\nworkers = 2\n"))
        .expect("write");
    let error = assert_upgrade_fails(&server);
    assert!(error.contains(&taken.to_string()), "{error}");
    server.stop();
}

#[test]
fn an_upgrade_during_a_reload_waits_for_it() {
    let server = start_from_copy(&[]);
    server.run_verb(&["reload", "--no-wait"]);
    server.run_verb(&["upgrade"]);
    assert_eq!(server.status()["primary"]["generation"], 3);
    server.stop();
}

#[test]
fn a_new_image_that_fails_after_exec_reports_the_reason() {
    let text = "bind = ['127.0.0.1:0']\nworkers = 2\n";
    let server = Server::builder().config(2, text).with_copied_program().start();
    let server = server.allow_errors(&["reload", "prefork.toml", "worker=", "prefork"]);
    // The new binary is a script that breaks the configuration after the upgrade check, before the new image reads it.
    run_in_server_dir(&server, "cp program good");
    let dir = server.dir().display();
    replace_binary(
        &server,
        &format!(
            "printf '%s\\n' '#!/bin/sh' 'if [ -n \"$PREFORK_MANIFEST\" ]; then echo workers = 2x > {dir}/prefork.toml; fi' \
             'exec {dir}/good \"$@\"' > new; chmod 755 new"
        ),
    );
    let error = server.assert_verb_fails(&["upgrade"], 1);
    assert!(error.contains("prefork.toml"), "{error}");
    let mut server = server;
    assert_eq!(server.wait_exit().code(), Some(78));
}
