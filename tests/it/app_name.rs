//! The name and version of the application, wherever people see them.

use std::net::TcpListener;

use crate::support::command::ProcessBuilder;
use crate::support::process;
use crate::support::service_manager::ServiceManager;

#[test]
fn name_and_version_are_shown_in_titles_status_and_notifications() {
    let manager = ServiceManager::new();
    let server = manager.attach(ProcessBuilder::program("named").workers(1)).start();
    assert_eq!(process::command_line(server.pid()), "greeter: primary");
    assert_eq!(process::command_line(server.worker_pids()[0]), "greeter: worker 1 (gen 1)");
    let primary = &server.status()["primary"];
    assert_eq!(
        (primary["name"].as_str(), primary["version"].as_str()),
        (Some("greeter"), Some("1.2.3"))
    );
    assert!(server.run_verb(&["status"]).starts_with("greeter 1.2.3: primary pid="));
    manager.wait_message("STATUS=greeter 1.2.3: 1 of 1 ");
    // As a worker sees it.
    let cluster = server.get("/").json();
    assert_eq!(cluster["primary"]["name"], "greeter");
    server.stop();
}

#[test]
fn errors_begin_with_the_name_of_the_application_or_of_its_executable() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address").to_string();
    for (program, name) in [("named", "greeter"), ("axum", "test_programs")] {
        let ended = ProcessBuilder::program(program).bind([address.clone()]).run();
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with(&format!("{name}: cannot bind {address}")), "{}", ended.stderr);
    }
}
