//! More of what Node's documentation of its cluster promises, on the public interface alone; the rest is in `events`.

use crate::support::command::Builder;
use crate::support::wait;

#[test]
fn many_that_are_disconnected_at_once_are_each_told_once_and_in_order() {
    let server = Builder::program("events").workers(8).start();
    let told = || std::fs::read_to_string(server.dir().join("events")).expect("events");
    let commands: Vec<String> = (1..=8).map(|id| format!("disconnect {id}")).collect();
    let file = server.dir().join("commands.new");
    std::fs::write(&file, commands.join("\n")).expect("written");
    std::fs::rename(&file, server.dir().join("commands")).expect("renamed");
    // The hook reads them when somebody scales.
    server.signal(nix::sys::signal::Signal::SIGTTIN);
    wait::until("eight exits", || told().matches(" exit ").count() == 8);
    wait::until("the ninth serves", || told().contains("9 listening "));
    for worker in 1..=8 {
        let text = told();
        let life = text.lines().filter_map(|line| line.strip_prefix(&format!("{worker} ")));
        let names: Vec<&str> = life.filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(names, ["fork", "online", "listening", "disconnect", "exit"], "{worker}");
        let exit = format!("{worker} exit Some(0) None Disconnected asked=true\n");
        assert!(text.contains(&exit), "{text}");
    }
    assert_eq!(server.worker_pids().len(), 1, "nobody took their places");
    server.stop();
}

#[test]
fn later_settings_keep_earlier_ones() {
    use tokio_prefork::{Config, Dispatch};
    let begun = Config::builder().backlog(77).max_requests(5);
    let config = begun.dispatch(Dispatch::RoundRobin).backlog(78).build().expect("a configuration");
    assert_eq!((config.backlog, config.max_requests), (78, 5));
    assert_eq!(config.dispatch, Dispatch::RoundRobin);
}
