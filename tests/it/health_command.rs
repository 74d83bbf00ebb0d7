//! `prefork health`: whether a server is ready, for health checks of containers.

use std::net::TcpListener;

use nix::sys::signal::Signal;

use crate::support::Server;
use crate::support::command::{ProcessBuilder, ProcessOutput};
use crate::support::tls::TestAuthority;

fn ask(words: &[&str]) -> ProcessOutput {
    ProcessBuilder::verb("health").args(words.iter().copied()).run()
}

#[test]
fn readiness_is_the_exit_status() {
    let server = Server::with(1, &["--drain-delay", "100s"]);
    let address = server.address().to_string();
    let healthy = ask(&[&address]);
    assert_eq!(
        (healthy.status, healthy.stdout.as_str(), healthy.stderr.as_str()),
        (Some(0), "", "")
    );
    // In a container, the address is in the environment.
    let named = ProcessBuilder::verb("health").env("PREFORK_BIND", &address).run();
    assert_eq!(named.status, Some(0), "{}", named.stderr);
    assert_eq!(ask(&[&address, "--path", "/nowhere"]).status, Some(1));
    server.signal(Signal::SIGTERM);
    server.wait_phase("stopping");
    let leaving = ask(&[&address]);
    assert_eq!(leaving.status, Some(1));
    assert!(leaving.stderr.contains("503"), "{}", leaving.stderr);
    server.signal(Signal::SIGQUIT);
    server.wait_clean_exit(0);
    let gone = ask(&[&address]);
    assert_eq!(gone.status, Some(69), "{}", gone.stderr);
}

#[test]
fn addresses_that_speak_tls_are_asked_over_tls() {
    let dir = tempfile::tempdir().expect("dir");
    let files = TestAuthority::new().issue(&["example.test"]).write(dir.path(), "pair");
    let server = Server::builder().workers(1).args(files.args()).start();
    let address = server.address().to_string();
    let asked = ask(&[&format!("https://{address}")]);
    assert_eq!(asked.status, Some(0), "{}", asked.stderr);
    let builder = ProcessBuilder::verb("health").env("PREFORK_BIND", &address);
    let named = builder
        .env("PREFORK_TLS_CERT", files.certificate.to_str().expect("UTF-8"))
        .env("PREFORK_TLS_KEY", files.key.to_str().expect("UTF-8"))
        .run();
    assert_eq!(named.status, Some(0), "{}", named.stderr);
    assert_eq!(ask(&[&format!("http://{address}")]).status, Some(1), "it answers 400");
    server.stop();
}

#[test]
fn a_server_that_says_nothing_is_no_answer() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = silent.local_addr().expect("address");
    for scheme in ["http", "https"] {
        let asked = ask(&[&format!("{scheme}://{address}"), "--timeout", "200ms"]);
        assert_eq!(asked.status, Some(69), "{}", asked.stderr);
    }
}
