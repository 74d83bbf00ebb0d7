//! The observations on real child processes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prefork_os::process_entry::ProcessEntry;

use super::connections::Visibility;
use super::*;

/// A child process that has a listening socket as descriptor 0.
struct TestProgram {
    child: Child,
    observer: ProgramObserver,
}

impl TestProgram {
    fn start<F: FnOnce() -> u8 + 'static>(listener: impl Into<OwnedFd>, run: F) -> TestProgram {
        let listener: OwnedFd = listener.into();
        let mut command = ProcessEntry::new(run).and_then(ProcessEntry::command).expect("entry");
        let copy = listener.try_clone().expect("copy");
        let child = command.stdin(Stdio::from(copy)).spawn().expect("child");
        let observer = ProgramObserver::with_root(child.id(), [listener.as_fd()]);
        TestProgram { child, observer: observer.expect("observer") }
    }

    #[track_caller]
    fn wait_for_use(&mut self, what: &str, expected: impl Fn(ListenerUse) -> bool) {
        wait_until(what, || {
            let found = self.observer.listener_uses();
            found.iter().all(|one| expected(*one))
        });
    }
}

impl Drop for TestProgram {
    fn drop(&mut self) {
        for pid in self.observer.pids() {
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

#[track_caller]
fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_true() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Returns the listening socket of a [`TestProgram`], in its process.
fn given_listener() -> TcpListener {
    let copy = std::io::stdin().as_fd().try_clone_to_owned().expect("descriptor 0");
    TcpListener::from(copy)
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = listener.local_addr().expect("address");
    (listener, addr)
}

fn park_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

/// Answers each byte with a byte, on one connection after the other, until the end of the stream.
fn echo() -> u8 {
    let listener = given_listener();
    for stream in listener.incoming().flatten() {
        let (mut reader, mut writer) = (&stream, &stream);
        let _ = std::io::copy(&mut reader, &mut writer);
    }
    1
}

#[test]
fn each_way_of_waiting_is_seen() {
    let is = |expected: WaitKind| move |found| matches!(found, ListenerUse::Waiting { kind, .. } if kind == expected);
    let mut accepts = TestProgram::start(listener().0, echo);
    let mut thread = TestProgram::start(listener().0, || {
        std::thread::spawn(echo);
        park_for_ever()
    });
    let mut polls = TestProgram::start(listener().0, || {
        let listener = given_listener();
        let watched = prefork_os::poll::WatchedFd::readable(listener.as_fd());
        prefork_os::poll::poll_fds(&[watched], None).is_ok().into()
    });
    let mut selects = TestProgram::start(listener().0, || {
        let listener = given_listener();
        let mut set = nix::sys::select::FdSet::new();
        set.insert(listener.as_fd());
        nix::sys::select::select(None, &mut set, None, None, None).is_ok().into()
    });
    let mut epoll = TestProgram::start(listener().0, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let listener = given_listener();
            listener.set_nonblocking(true).expect("non-blocking");
            let listener = tokio::net::TcpListener::from_std(listener).expect("registered");
            let _ = listener.accept().await;
        });
        1
    });
    accepts.wait_for_use("blocked in accept", is(WaitKind::Accept));
    thread.wait_for_use("a thread is blocked in accept", is(WaitKind::Accept));
    polls.wait_for_use("blocked in poll", is(WaitKind::Poll));
    selects.wait_for_use("blocked in select", is(WaitKind::Poll));
    epoll.wait_for_use("registered with epoll", is(WaitKind::Epoll));
    assert_eq!(epoll.observer.explain_unused_listener(), None);
}

#[test]
fn a_grandchild_in_a_session_of_its_own_that_waits_is_seen() {
    let mut program = TestProgram::start(listener().0, || {
        let command = ProcessEntry::new(|| {
            let _ = nix::unistd::setsid();
            echo()
        });
        let mut command = command.and_then(ProcessEntry::command).expect("entry");
        command.spawn().and_then(|mut child| child.wait()).is_ok().into()
    });
    let own = program.child.id();
    program.wait_for_use(
        "the grandchild waits",
        |found| matches!(found, ListenerUse::Waiting { pid, .. } if pid != own),
    );
}

#[test]
fn a_program_that_only_holds_the_socket_does_not_wait_on_it() {
    let mut program = TestProgram::start(listener().0, || park_for_ever());
    program.wait_for_use("open", |found| matches!(found, ListenerUse::Open { .. }));
    // An accept on another socket is no wait for this one.
    let mut other = TestProgram::start(listener().0, || {
        TcpListener::bind("127.0.0.1:0").expect("bind").accept().is_ok().into()
    });
    wait_until("it listens elsewhere", || {
        other.observer.explain_unused_listener().is_some_and(|found| !found.listens_on.is_empty())
    });
    other.wait_for_use("open", |found| matches!(found, ListenerUse::Open { .. }));
}

#[test]
fn a_program_that_is_too_busy_to_wait_is_seen_to_serve_a_connection() {
    let (given, addr) = listener();
    let mut program = TestProgram::start(given, || {
        let listener = given_listener();
        listener.set_nonblocking(true).expect("non-blocking");
        let mut connections = Vec::new();
        loop {
            connections.extend(listener.accept().ok());
            std::thread::park_timeout(Duration::from_millis(2));
        }
    });
    program.wait_for_use("open", |found| matches!(found, ListenerUse::Open { .. }));
    let client = TcpStream::connect(addr).expect("connect");
    program.wait_for_use("it serves", |found| matches!(found, ListenerUse::Serving { .. }));
    assert_eq!(program.observer.explain_unused_listener(), None);
    drop(client);
}

#[test]
fn a_program_that_ignores_its_socket_is_described_with_the_address_that_it_listens_on() {
    let (given, given_addr) = listener();
    let program = TestProgram::start(given, || {
        let null = std::fs::File::open("/dev/null").expect("open");
        prefork_os::fd::replace_standard_stream(prefork_os::fd::StandardStream::Stdin, null)
            .expect("replaced");
        let _own = TcpListener::bind("127.0.0.1:0").expect("bind");
        park_for_ever()
    });
    let mut found = None;
    wait_until("it listens", || {
        found = program.observer.explain_unused_listener();
        found.as_ref().is_some_and(|found| {
            found.listener_use == ListenerUse::Closed && !found.listens_on.is_empty()
        })
    });
    let found = found.expect("unused");
    let text = found.to_string();
    assert!(text.contains(&format!("(pid {})", program.child.id())), "{text}");
    assert!(text.contains(&given_addr.to_string()), "{text}");
    assert!(text.contains(&found.listens_on[0].to_string()), "{text}");
}

#[test]
fn connections_are_counted_once_and_without_those_of_other_sockets() {
    let (given, addr) = listener();
    let mut program = TestProgram::start(given, || {
        let listener = given_listener();
        let first = listener.accept().expect("accept").0;
        let second = listener.accept().expect("accept").0;
        // A connection to the same port, with another local one, and another process with the first connection.
        let own = TcpListener::bind("127.0.0.1:0").expect("bind");
        let _out = TcpStream::connect(own.local_addr().expect("address")).expect("connect");
        let copy = OwnedFd::from(first.try_clone().expect("copy"));
        let mut child = Command::new("sleep").arg("600").stdin(copy).spawn().expect("sleep");
        (&second).write_all(b"ready").expect("write");
        child.wait().is_ok().into()
    });
    let _first = TcpStream::connect(addr).expect("connect");
    let mut second = TcpStream::connect(addr).expect("connect");
    let _queued = TcpStream::connect(addr).expect("connect");
    second.read_exact(&mut [0; 5]).expect("it is ready");
    let scan = program.observer.connections();
    assert_eq!(scan.visibility, Visibility::Full);
    assert_eq!(scan.connections.len(), 2, "{scan:?}");
    assert!(scan.connections.iter().all(|one| one.activity.is_some()));
    assert!(program.observer.clients_in_handshake().is_empty(), "all are complete");
    let usage = program.observer.usage();
    assert_eq!((usage.connections, usage.queued, usage.processes), (2, 1, 2));
    assert!(usage.resident_bytes > 0);
    // Those that are known are counted, too.
    assert_eq!(program.observer.usage().connections, 2);
}

#[test]
fn a_connection_over_a_unix_socket_is_counted() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("socket");
    let given = UnixListener::bind(&path).expect("bind");
    let mut program = TestProgram::start(given, || {
        let _connection = UnixListener::from(OwnedFd::from(given_listener())).accept();
        park_for_ever()
    });
    let _client = UnixStream::connect(&path).expect("connect");
    wait_until("accepted", || {
        let scan = program.observer.connections();
        scan.connections.len() == 1 && scan.connections[0].activity.is_none()
    });
}

#[test]
fn an_idle_connection_is_half_closed_and_one_that_has_spoken_since_is_not() {
    let (given, addr) = listener();
    let mut program = TestProgram::start(given, echo);
    let mut client = TcpStream::connect(addr).expect("connect");
    client.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let exchange = |client: &mut TcpStream| {
        client.write_all(b"?").expect("write");
        client.read_exact(&mut [0]).expect("read");
    };
    exchange(&mut client);
    let before = program.observer.connections().connections[0];
    exchange(&mut client);
    assert_eq!(program.observer.half_close(&before), HalfClose::Changed);
    exchange(&mut client);
    let now = program.observer.connections().connections[0];
    assert_eq!(program.observer.half_close(&now), HalfClose::Done);
    assert_eq!(client.read(&mut [0]).expect("the end"), 0, "the program has closed it");
    wait_until("it is gone", || program.observer.connections().connections.is_empty());
    assert_eq!(program.observer.half_close(&now), HalfClose::Changed, "it does not exist");
}
