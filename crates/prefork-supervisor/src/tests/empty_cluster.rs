//! Tests of a cluster that was left without `web` workers.

use super::*;
use crate::config::{RecycleLimits, WorkerKindConfig};

/// Returns what happened to the listening sockets, and when the cluster was empty.
fn socket_history(sim: &Simulator) -> Vec<&'static str> {
    let names = sim.log.iter().filter_map(|(_, action)| match action {
        Action::HoldConnections => Some("hold"),
        Action::RefuseConnections => Some("refuse"),
        Action::ResumeListening => Some("resume"),
        Action::Log(LogEvent::Empty) => Some("empty"),
        Action::Fork(tag) if tag.id.0 > 2 && tag.slot.is_web() => Some("fork"),
        Action::OpenSockets { .. } => Some("open"),
        Action::ReadConfig(_) => Some("read"),
        Action::Exit(_) => Some("exit"),
        _ => None,
    });
    names.collect()
}

fn disconnect_all(sim: &mut Simulator) {
    for id in sim.serving_workers() {
        sim.send_command(ClusterCommand::Disconnect(WorkerId(id)));
    }
}

#[test]
fn connections_are_refused_after_the_last_worker_has_exited() {
    let mut sim = start_serving_cluster(2);
    sim.send_command(ClusterCommand::Disconnect(WorkerId(1)));
    assert_eq!(socket_history(&sim), [""; 0], "another worker serves");
    sim.send_command(ClusterCommand::Disconnect(WorkerId(2)));
    assert_eq!(socket_history(&sim), ["hold"], "the last one empties the queue");
    sim.run_until_idle();
    assert_eq!(socket_history(&sim), ["hold", "empty", "refuse"]);
    assert!(sim.supervisor.is_refusing_connections() && sim.supervisor.is_idle());
    assert_eq!(sim.exit, None, "timers of the application keep the primary");
}

#[test]
fn an_idle_primary_without_workers_ends_with_success() {
    let mut sim = start_serving_cluster(2);
    sim.is_application_idle = true;
    disconnect_all(&mut sim);
    sim.run_until_idle();
    assert_eq!(sim.exit, Some(ShutdownReason::StopRequested));
    assert_eq!(socket_history(&sim), ["hold", "empty", "refuse", "exit"]);
}

#[test]
fn a_fork_of_the_hook_keeps_the_sockets_open() {
    let mut sim = start_serving_cluster(1);
    disconnect_all(&mut sim);
    while !socket_history(&sim).contains(&"empty") {
        assert!(sim.run_step(), "it becomes empty");
    }
    sim.send_command(ClusterCommand::Scale(ScaleChange::AddWorker(WorkerId(9), Vec::new())));
    sim.run_until_idle();
    assert_eq!(socket_history(&sim), ["hold", "empty", "resume", "fork"]);
    assert_eq!(sim.serving_workers(), [9]);
}

#[test]
fn a_fork_before_the_last_worker_has_exited_keeps_the_cluster_from_being_empty() {
    let mut sim = start_serving_cluster(1);
    disconnect_all(&mut sim);
    sim.send_command(ClusterCommand::Scale(ScaleChange::To(1)));
    sim.run_until_idle();
    assert_eq!(sim.serving_workers().len(), 1);
    let history = socket_history(&sim);
    assert!(!history.contains(&"empty") && history[..2] == ["hold", "resume"], "{history:?}");
}

#[test]
fn a_later_fork_listens_again_first() {
    for has_socket_per_slot in [false, true] {
        let config = SupervisorConfig { has_socket_per_slot, ..test_config(2) };
        let mut sim = Simulator::new(config, 1, |_, _| WorkerScript::ready_after_10_ms()).start();
        sim.run_for(ms(5_000));
        sim.send_command(ClusterCommand::Scale(ScaleChange::To(0)));
        sim.run_for(ms(10_000));
        assert_eq!(socket_history(&sim), ["hold", "empty", "refuse"]);
        sim.send_command(ClusterCommand::Scale(ScaleChange::To(2)));
        sim.run_for(ms(5_000));
        let history = socket_history(&sim);
        assert_eq!(history[3], "resume");
        assert_eq!(history.iter().filter(|one| **one == "resume").count(), 1, "{history:?}");
        assert!(sim.serving_workers().len() == 2 || history.contains(&"open"), "{history:?}");
    }
}

#[test]
fn a_reload_of_an_empty_cluster_listens_before_it_opens_sockets() {
    let mut sim = start_serving_cluster(2);
    disconnect_all(&mut sim);
    sim.run_until_idle();
    sim.send_command(ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!(sim.serving_workers().len(), 2);
    assert_eq!(socket_history(&sim)[3..], ["resume", "read", "fork", "fork"]);
}

#[test]
fn a_crash_loop_is_not_an_empty_cluster() {
    let mut sim = start_cluster(1, |id| (id > 1).then(WorkerScript::failing_fork));
    sim.is_application_idle = true;
    sim.run_for(ms(5_000));
    sim.exit_worker_now(1, exit_code(1));
    sim.run_for(ms(30_000));
    assert!(!sim.supervisor.is_left_empty() && sim.exit.is_none());
    assert!(!socket_history(&sim).contains(&"hold"));
}

#[test]
fn workers_of_other_kinds_keep_the_primary() {
    let kind = WorkerKindConfig {
        name: "consumer",
        workers: 1,
        demand_range: None,
        limits: RecycleLimits::default(),
        is_kept_by_reload: false,
    };
    let mut sim = Simulator::new(test_config(1), 1, |_, _| WorkerScript::ready_after_10_ms())
        .with_kinds(vec![kind])
        .start();
    sim.is_application_idle = true;
    sim.run_for(ms(5_000));
    sim.send_command(ClusterCommand::Disconnect(WorkerId(1)));
    sim.run_for(ms(20_000));
    assert!(sim.supervisor.is_refusing_connections() && sim.exit.is_none());
    sim.send_command(ClusterCommand::Disconnect(WorkerId(2)));
    sim.run_for(ms(20_000));
    assert_eq!(sim.exit, Some(ShutdownReason::StopRequested));
}
