//! Workers that a program forks from its hooks, with variables of their own: what becomes of them and of their ids.

use nix::sys::signal::Signal;

use crate::primary_events::{
    command_result, events_of_worker, read_events, run_commands, start_events, wait_event,
};
use crate::support::command::ProcessBuilder;
use crate::support::{Server, process, wait};

/// Returns the id that `fork_with` returned.
#[track_caller]
fn forked_id(server: &Server, command: &str) -> u64 {
    let result = command_result(server, command).expect("done");
    result.strip_prefix("worker ").and_then(|id| id.parse().ok()).expect(&result)
}

/// Waits until a worker with this role answers, and returns its slot.
#[track_caller]
fn wait_role(server: &Server, role: &str) -> String {
    wait::wait_until_some(&format!("the worker with the role {role}"), || {
        let answers = (0..20).map(|_| server.get("/env/ROLE").text().to_string());
        answers
            .filter_map(|one| {
                Some(one.split_once(' ')?.0.to_string())
                    .filter(|_| one.ends_with(&format!(" {role}")))
            })
            .next()
    })
}

#[track_caller]
fn wait_line(server: &Server, line: &str) {
    wait::wait_until(line, || read_events(server).iter().any(|one| one == line));
}

#[test]
fn roles_survive_reloads_and_upgrades() {
    let server = start_events(1);
    run_commands(&server, &["fork ROLE=mail", "fork ROLE=cron"]);
    let (mail, cron) = (wait_role(&server, "mail"), wait_role(&server, "cron"));
    let old = server.worker_pids();
    server.signal(Signal::SIGHUP);
    wait_line(&server, "reloaded");
    let old = server.wait_new_workers(4, &old);
    assert_eq!(
        (wait_role(&server, "mail"), wait_role(&server, "cron")),
        (mail.clone(), cron.clone())
    );
    assert!(!read_events(&server).iter().any(|line| line.contains("ScaledDown")));
    server.signal(Signal::SIGUSR2);
    server.wait_generation(3);
    server.wait_new_workers(4, &old);
    assert_eq!((wait_role(&server, "mail"), wait_role(&server, "cron")), (mail, cron));
    server.stop();
}

#[test]
fn workers_forked_during_a_reload_are_forked_after_it() {
    let server = start_events(1);
    run_commands(&server, &["reload", "fork ROLE=mail"]);
    let id = forked_id(&server, "fork ROLE=mail");
    assert_eq!(wait_event(&server, id, "listening")[0], "fork");
    let lines = read_events(&server);
    let position = |line: &str| lines.iter().position(|one| one == line).expect(line);
    assert!(position("reloaded") < position(&format!("{id} fork")), "{lines:?}");
    wait_role(&server, "mail");
    server.stop();
}

#[test]
fn each_refused_command_of_a_hook_is_an_event() {
    let server = start_events(1);
    run_commands(&server, &["disconnect 99", "scale 1025", "scale 2000"]);
    wait::wait_until("three refusals", || {
        let lines = read_events(&server);
        let refused = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
        refused("refused disconnect worker=99: ") == 1 && refused("refused scale: ") == 2
    });
    assert!(!events_of_worker(&server, 1).iter().any(|line| line == "exit"));
    server.stop();
}

#[test]
fn an_id_whose_worker_is_not_forked_any_more_is_refused() {
    let mut server = start_events(1);
    // The fork waits for the reload, which the stop ends.
    run_commands(&server, &["reload", "fork ROLE=mail", "stop"]);
    let id = forked_id(&server, "fork ROLE=mail");
    assert_eq!(server.wait_exit().code(), Some(0));
    let lines = read_events(&server);
    let start = format!("refused fork worker={id}: ");
    assert_eq!(lines.iter().filter(|line| line.starts_with(&start)).count(), 1, "{lines:?}");
    assert!(events_of_worker(&server, id).is_empty(), "{lines:?}");
}

#[test]
fn no_worker_is_added_in_the_drain_delay() {
    let mut server = Server::builder().workers(1).args(["--drain-delay", "20s"]).start();
    server.signal(Signal::SIGTERM);
    server.wait_phase("stopping");
    for change in ["web=2", "2"] {
        let why = server.assert_verb_fails(&["scale", change], 1);
        assert!(why.contains("stopping"), "{why}");
    }
    assert_eq!(server.worker_pids().len(), 1);
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn a_replacement_can_be_put_off() {
    let server = start_events(2);
    std::fs::write(server.dir().join("veto"), "700").expect("written");
    let began = std::time::Instant::now();
    process::send_signal(server.worker_pid(1), Signal::SIGKILL);
    wait_event(&server, 1, "exit");
    wait::wait_until("an empty slot", || {
        server.status()["primary"]["vacant"] == serde_json::json!([0])
    });
    wait_event(&server, 3, "listening");
    assert!(began.elapsed().as_millis() >= 700);
    assert_eq!(wait_event(&server, 1, "replaced").last().expect("one"), "replaced 3");
    server.stop();
}

#[test]
fn hooks_can_read_the_configuration() {
    let server =
        ProcessBuilder::program("primary-events").workers(1).args(["dispatch=reuseport"]).start();
    run_commands(&server, &["config"]);
    assert_eq!(command_result(&server, "config").as_deref(), Some("reuseport"));
    server.stop();
}

#[test]
fn a_program_with_no_workers_of_its_own_forks_the_first_with_variables() {
    let builder = ProcessBuilder::program("roles-at-start").workers(0).other_workers(2);
    let server = builder.start().allow_errors(&["worker="]);
    let wait_roles = || {
        wait::wait_until("both roles, and no other", || {
            let answers = (0..20).filter_map(|_| server.try_get("/").ok());
            let mut roles: Vec<String> = answers.map(|one| one.text().trim().to_string()).collect();
            roles.sort_unstable();
            roles.dedup();
            roles == ["cron", "mail"]
        });
    };
    wait_roles();
    process::send_signal(server.worker_pid(1), Signal::SIGKILL);
    server.wait_worker_id(3);
    wait_roles();
    server.stop();
}
