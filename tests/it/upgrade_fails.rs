//! Upgrades that cannot be: the old binary serves on with the same workers, and the reason is told.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::{Server, log, process, wait};

/// Runs a script in the server's directory, where the program is. Not by ourselves, as what a process of
/// another test holds open for writing for a moment cannot be executed.
#[track_caller]
fn shell(server: &Server, script: &str) {
    let status = Command::new("sh").args(["-ec", script]).current_dir(server.dir()).status();
    assert!(status.expect("sh").success(), "{script}");
}

/// A server of which the binary can be replaced; a good one stays beside it.
#[track_caller]
fn start(args: &[&str]) -> Server {
    let server = Server::builder().copied().args(args).start();
    shell(&server, "cp program good");
    server.allow(&["upgrade"])
}

/// Puts what `script` makes as `new` in the program's place.
#[track_caller]
fn replace(server: &Server, script: &str) {
    shell(server, &format!("{script}; rm -rf program; if [ -e new ]; then mv new program; fi"));
}

/// Asks for an upgrade that fails, and sees that nothing has changed; the reason.
#[track_caller]
fn fails(server: &Server) -> String {
    let (pids, descriptors) = (server.worker_pids(), process::descriptors(server.pid()).len());
    let before = server.count_log(&["ERROR", "upgrade"]);
    let why = server.refused(&["upgrade"], 1);
    assert_eq!(server.count_log(&["ERROR", "upgrade"]), before + 1);
    // A trial that was killed is a child of the primary until it is reaped, a moment after the answer.
    wait::until("the same workers as before", || server.worker_pids() == pids);
    assert!(pids.contains(&server.get("/").pid()));
    wait::until("as many descriptors as before", || {
        process::descriptors(server.pid()).len() == descriptors
    });
    why
}

/// The good binary is back, and an upgrade to it works.
#[track_caller]
fn recovers(server: &Server) {
    replace(server, "cp good new");
    let old = server.worker_pids();
    server.order(&["upgrade"]);
    server.wait_generation(2);
    server.wait_others(2, &old);
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_binary_that_is_none_changes_nothing() {
    let server = start(&[]);
    for (script, why) in [
        (":", "No such file"),
        ("cp good new; chmod 644 new", "Permission denied"),
        (": > new; chmod 755 new", "Exec format error"),
        ("echo 'not a program' > new; chmod 755 new", "Exec format error"),
        ("mkdir new", "Permission denied"),
        ("head -c 4000 good > new; chmod 755 new", "signal: "),
        ("printf '#!/nonexistent/interpreter\\n' > new; chmod 755 new", "No such file"),
    ] {
        replace(&server, script);
        let said = fails(&server);
        assert!(said.contains(why), "{script}: {said}");
    }
    recovers(&server);
    server.stop();
}

#[test]
fn a_binary_that_ends_before_it_is_ready_changes_nothing() {
    let server = start(&[]);
    for (script, status) in [
        ("printf '#!/bin/sh\\nexit 1\\n' > new; chmod 755 new", "exit status: 1"),
        ("printf '#!/bin/sh\\nexit 0\\n' > new; chmod 755 new", "exit status: 0"),
        ("printf '#!/bin/sh\\nkill -SEGV $$\\n' > new; chmod 755 new", ""),
        ("cp /bin/false new", "exit status: 1"),
        ("cp /bin/true new", "exit status: 0"),
    ] {
        replace(&server, script);
        let said = fails(&server);
        assert!(said.contains(status), "{script}: {said}");
    }
    recovers(&server);
    server.stop();
}

const HANGS: &str = "printf '#!/bin/sh\\necho $$ > trial\\nexec sleep 600\\n' > new; chmod 755 new";

/// The pid of the binary that hangs, once it does.
#[track_caller]
fn trial(server: &Server) -> u32 {
    wait::until_some("the trial", || {
        std::fs::read_to_string(server.dir().join("trial")).ok()?.trim().parse().ok()
    })
}

#[test]
fn a_binary_that_hangs_is_killed_at_the_boot_timeout() {
    let server = start(&["--boot-timeout", "1s"]);
    replace(&server, HANGS);
    let said = fails(&server);
    assert!(said.contains("boot-timeout"), "{said}");
    assert!(process::is_gone(trial(&server)));
    recovers(&server);
    server.stop();
}

#[test]
fn a_binary_whose_configuration_is_wrong_changes_nothing() {
    let text = "bind = ['127.0.0.1:0']\nworkers = 2\n";
    let server = Server::builder().config(2, text).copied().start();
    let server = server.allow(&["upgrade"]);
    let file = server.dir().join("prefork.toml");
    for (wrong, why) in
        [("workers = 'many'\n", "many"), ("worker = 2\n", "worker"), ("bind = ['a:b:c']", "a:b:c")]
    {
        std::fs::write(&file, wrong).expect("write");
        let said = fails(&server);
        assert!(said.contains("exit status: 78") && said.contains(why), "{wrong}: {said}");
        let events = server.order(&["events"]);
        assert!(log::lines_with(&events, &["upgrade", why]).count() > 0, "{events}");
    }
    std::fs::remove_file(&file).expect("remove");
    let said = fails(&server);
    assert!(said.contains("prefork.toml"), "{said}");
    std::fs::write(server.dir().join("prefork.toml"), text).expect("write");
    server.order(&["upgrade"]);
    server.wait_generation(2);
    server.stop();
}

#[test]
fn a_stop_during_the_trial_is_a_good_end() {
    let server = start(&[]);
    replace(&server, HANGS);
    server.signal(Signal::SIGUSR2);
    server.wait_log(&["INFO", "SIGUSR2"]);
    let trial = trial(&server);
    let mut client = server.connect();
    assert_eq!(client.get("/").expect("answer").status, 200);
    drop(client);
    server.signal(Signal::SIGTERM);
    let text = server.finish(0);
    assert!(process::is_gone(trial), "the trial is reaped before the end");
    assert_eq!(log::lines_with(&text, &["ERROR", "upgrade", "stopping"]).count(), 1, "{text}");
}

#[test]
fn a_reload_during_the_trial_is_refused_and_a_death_is_made_good() {
    let server = start(&[]).allow(&["SIGKILL"]);
    replace(&server, HANGS);
    server.signal(Signal::SIGUSR2);
    let trial = trial(&server);
    let said = server.refused(&["reload"], 1);
    assert!(said.contains("upgrade"), "{said}");
    let pid = server.get("/").pid();
    process::send(pid, Signal::SIGKILL);
    server.wait_replaced(1);
    assert_eq!(server.get("/").status, 200);
    process::send(trial, Signal::SIGKILL);
    server.wait_log(&["ERROR", "upgrade", "SIGKILL"]);
    server.stop();
}

#[test]
fn what_a_binary_prints_before_it_ends_is_the_reason_however_much_it_is() {
    let server = start(&["--boot-timeout", "20s"]);
    for (script, why) in [
        ("echo cannot open the license >&2; exit 3", "cannot open the license"),
        ("head -c 1000000 /dev/zero | tr '\\0' x >&2; echo; echo the end >&2; exit 4", "the end"),
        ("printf 'one\\033[31m\\ntwo\\n' >&2; kill -SEGV $$", "one\\u{1b}[31m; two"),
    ] {
        replace(
            &server,
            &format!("printf '%s\\n' '#!/bin/sh' \"{script}\" > new; chmod 755 new")
                .replace("$$", "\\$\\$"),
        );
        let said = fails(&server);
        assert!(said.contains(why) && said.len() < 8192, "{script}: {said}");
    }
    recovers(&server);
    server.stop();
}

#[test]
fn an_address_that_cannot_be_had_is_the_reason() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = taken.local_addr().expect("address");
    let text = "bind = ['127.0.0.1:0']\nworkers = 2\n";
    let server = Server::builder().config(2, text).copied().start();
    let server = server.allow(&["upgrade"]);
    let file = server.dir().join("prefork.toml");
    std::fs::write(&file, format!("bind = ['127.0.0.1:0', '{taken}']\nworkers = 2\n"))
        .expect("write");
    let said = fails(&server);
    assert!(said.contains(&taken.to_string()), "{said}");
    server.stop();
}

#[test]
fn whoever_asks_during_a_reload_waits_for_both() {
    let server = start(&[]);
    server.order(&["reload", "--no-wait"]);
    server.order(&["upgrade"]);
    assert_eq!(server.status()["primary"]["generation"], 3);
    server.stop();
}

#[test]
fn a_new_image_that_cannot_begin_is_told_to_whoever_waits() {
    let text = "bind = ['127.0.0.1:0']\nworkers = 2\n";
    let server = Server::builder().config(2, text).copied().start();
    let server = server.allow(&["reload", "prefork.toml", "worker=", "prefork"]);
    // What is executed is a script that spoils the configuration after the proof, so that the exec finds it wrong.
    shell(&server, "cp program good");
    let dir = server.dir().display();
    replace(
        &server,
        &format!(
            "printf '%s\\n' '#!/bin/sh' 'if [ -n \"$PREFORK_MANIFEST\" ]; then echo workers = 2x > {dir}/prefork.toml; fi' \
             'exec {dir}/good \"$@\"' > new; chmod 755 new"
        ),
    );
    let said = server.refused(&["upgrade"], 1);
    assert!(said.contains("prefork.toml"), "{said}");
    let mut server = server;
    assert_eq!(server.wait_exit().code(), Some(78));
}
