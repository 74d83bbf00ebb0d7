//! `prefork dev`: a program is built and reloaded when its files change.
//!
//! The project is a Rust program without dependencies, which rustc compiles, or one that is not compiled at all.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::support::admin_listener::admin_address;
use crate::support::command::ProcessBuilder;
use crate::support::http::Address;
use crate::support::overlay_stream::OverlayStream;
use crate::support::{Client, Server, process, wait};

/// Answers each connection with `TEXT` and the arguments.
const SOURCE: &str = r#"
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
fn main() {
    let text = format!("TEXT {}\n", std::env::args().skip(1).collect::<Vec<_>>().join(" "));
    let listener = unsafe { std::net::TcpListener::from_raw_fd(3) };
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let _ = stream.read(&mut [0; 4096]);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
        let _ = stream.write_all((head + &text).as_bytes());
    }
}
"#;

const BUILD: &str = "echo build >> builds.log; rustc --edition 2021 -o server server.rs";

/// A project whose program is running.
struct Project {
    server: Server,
    dir: PathBuf,
}

impl Project {
    /// Creates a project that is built by `build`, and starts it. The first build may not be done.
    fn spawn(build: &str, args: &[&str]) -> Project {
        let builder = ProcessBuilder::dev(&["./server", "a", "b"]);
        let dir = builder.dir().to_path_buf();
        fs::write(dir.join(".gitignore"), "server\n").expect("file");
        let project = |server| Project { server, dir: dir.clone() };
        write_source(&dir, "one");
        project(builder.args(["--build", build]).args(args.iter().copied()).spawn())
    }

    /// Waits until the primary has bound its address, and returns it.
    fn address(&self) -> Address {
        let text = wait::wait_until_some("an address", || {
            let status = self.server.try_status()?;
            status["listeners"][0].as_str().map(str::to_string)
        });
        Address::Tcp(text.trim_start_matches("http://").parse().expect("an address"))
    }

    fn write(&self, text: &str) {
        write_source(&self.dir, text);
    }

    fn builds(&self) -> usize {
        fs::read_to_string(self.dir.join("builds.log")).unwrap_or_default().lines().count()
    }

    #[track_caller]
    fn wait_builds(&self, count: usize) {
        wait::wait_until(&format!("{count} builds"), || self.builds() >= count);
    }

    #[track_caller]
    fn wait_text(&self, address: &Address, text: &str) {
        wait::wait_until(text, || get(address).is_some_and(|body| body.starts_with(text)));
    }
}

fn write_source(dir: &std::path::Path, text: &str) {
    fs::write(dir.join("server.rs"), SOURCE.replace("TEXT", text)).expect("file");
}

fn get(address: &Address) -> Option<String> {
    let answer = Client::connect(address).ok()?.get("/").ok()?;
    Some(answer.text().to_string())
}

#[test]
fn a_client_that_connects_before_the_first_build_waits_and_is_answered() {
    // The build waits until the client has connected.
    let build = format!("until test -e go; do sleep 0.01; done; {BUILD}");
    let project = Project::spawn(&build, &[]);
    let address = project.address();
    let mut clients: Vec<Client> = (0..4)
        .map(|_| {
            let mut client = Client::connect(&address).expect("connected");
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
            client
        })
        .collect();
    fs::write(project.dir.join("go"), "").expect("file");
    for client in &mut clients {
        assert_eq!(client.read().expect("an answer").text(), "one a b\n");
    }
    project.write("two");
    project.wait_text(&address, "two");
    project.server.signal(Signal::SIGTERM);
    project.server.wait_clean_exit(0);
}

#[test]
fn a_build_that_fails_or_does_not_start_leaves_the_old_program_and_pages_show_why() {
    let project = Project::spawn(BUILD, &["--overlay"]);
    let server = project.server.allow_errors(&["build failed", "reload failed", "boot", "ready"]);
    let project = Project { server, ..project };
    let address = project.address();
    let mut page = OverlayStream::open(&admin_address(&project.server));
    project.wait_text(&address, "one");
    let first = page.wait_state("ok");
    project.write("two\"); let x: u8 = \"<wrong>\"; println!(\"");
    let failed = page.wait_state("failed");
    assert!(failed["text"].as_str().is_some_and(|text| text.contains("<wrong>")), "{failed}");
    assert_eq!(get(&address).as_deref(), Some("one a b\n"));
    // It compiles and does not start.
    project.write("\"); std::process::exit(3); #[allow(unreachable_code)] println!(\"");
    let failed = page.wait_state("failed");
    assert!(failed["text"].as_str().is_some_and(|text| text.contains("status 3")), "{failed}");
    assert_eq!(get(&address).as_deref(), Some("one a b\n"));
    project.write("three");
    let last = page.wait_state("ok");
    assert!(last["number"].as_u64() > first["number"].as_u64(), "{last}");
    assert_eq!(get(&address).as_deref(), Some("three a b\n"));
    project.server.signal(Signal::SIGTERM);
    project.server.wait_clean_exit(0);
}

#[test]
fn clients_wait_on_when_the_first_build_fails_and_get_an_answer_when_it_is_good() {
    let project = Project::spawn(&format!("test -e fixed && {{ {BUILD}; }}"), &[]);
    let server = project.server.allow_errors(&["build failed"]);
    let project = Project { server, ..project };
    let address = project.address();
    project.server.wait_log(&["build failed"]);
    let mut client = Client::connect(&address).expect("connected");
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
    assert!(!client.is_closed() && !client.has_input());
    fs::write(project.dir.join("fixed"), "").expect("file");
    assert_eq!(client.read().expect("an answer").text(), "one a b\n");
    project.server.signal(Signal::SIGTERM);
    project.server.wait_clean_exit(0);
}

#[test]
fn a_change_during_a_build_begins_one_more_build() {
    let build = format!("{BUILD}; touch built; until test ! -e hold; do sleep 0.01; done");
    let project = Project::spawn(&build, &["--watch", "server.rs"]);
    let address = project.address();
    project.wait_text(&address, "one");
    fs::write(project.dir.join("hold"), "").expect("file");
    project.write("two");
    project.wait_builds(2);
    project.write("three");
    fs::remove_file(project.dir.join("hold")).expect("removed");
    project.wait_text(&address, "three");
    wait::wait_for_duration(std::time::Duration::from_millis(800));
    assert_eq!(project.builds(), 3);
    project.server.signal(Signal::SIGTERM);
    project.server.wait_clean_exit(0);
}

#[test]
fn an_interrupt_ends_the_build_with_all_that_it_has_started() {
    let build = "sh -c 'echo $$ > pid; trap \"\" TERM INT; while :; do sleep 0.05; done'; true";
    for has_primary in [true, false] {
        let mut project = Project::spawn(build, &[]);
        let pid = wait::wait_until_some("the build", || {
            fs::read_to_string(project.dir.join("pid")).ok()?.trim().parse::<u32>().ok()
        });
        assert_eq!(
            project.server.try_status().expect("a status")["workers"][0]["state"],
            "booting"
        );
        if has_primary {
            project.server.signal(Signal::SIGINT);
            project.server.wait_clean_exit(0);
        } else {
            project.server.kill_primary();
        }
        process::wait_ended(&[pid]);
    }
}

#[test]
fn without_a_program_the_files_of_the_project_name_it_or_an_error_says_what_to_give() {
    let output = ProcessBuilder::verb("dev").run();
    assert_eq!(output.status, Some(64), "{output:?}");
    assert!(output.stderr.contains("prefork dev -- cargo run"), "{output:?}");
    let output = ProcessBuilder::verb("run").args(["--build", "make", "true"]).run();
    assert_eq!(output.status, Some(78), "{output:?}");
    assert!(output.stderr.contains("needs watch"), "{output:?}");
    let both = ["--build", "make", "--", "cargo", "run"];
    let output = ProcessBuilder::verb("dev").args(both).run();
    assert_eq!(output.status, Some(78), "{output:?}");
    assert!(output.stderr.contains("conflicts with cargo run"), "{output:?}");
}
