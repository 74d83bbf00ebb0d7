//! Descriptors that a program opens before it serves: those that workers must not share are named in a warning.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use hyper::body::Incoming;
use hyper::{Request, Response, service::service_fn};
use prefork_os::process_entry::ProcessEntry;
use tokio_prefork::fork_safety::find_unsafe_fds;
use tokio_prefork::testing::TestCluster;
use tokio_prefork::{BoxError, Cluster, Config};

use crate::support::log;

/// What the warnings begin with.
const WARNING: &str = "opened before the fork";

fn serve(config: Config) -> tokio_prefork::Result<()> {
    Cluster::new(config).serve(|_| async {
        Ok(service_fn(|_: Request<Incoming>| async {
            Ok::<_, Infallible>(Response::new("ok".to_string()))
        }))
    })
}

#[test]
fn connections_and_runtimes_are_named_with_number_and_peer() {
    let database = TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = database.local_addr().expect("address");
    let cluster = TestCluster::builder().spawn_program_with(addr, |config, addr: SocketAddr| {
        let _connection = TcpStream::connect(addr)?;
        let _runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        serve(config.build()?)?;
        Ok::<(), BoxError>(())
    });
    let log = cluster.expect("start").log();
    let lines: Vec<&str> = log::lines_with(&log, &[WARNING]).collect();
    let to_database = format!(" TCP connection to {addr}");
    assert!(lines.iter().any(|line| line.contains(&to_database)), "{log}");
    assert!(lines.iter().any(|line| line.contains("epoll instance")), "{log}");
    assert!(lines.iter().all(|line| line.contains("WARN") && line.contains("fd=")), "{log}");
}

#[test]
fn a_connection_that_preload_leaves_open_is_named() {
    let database = TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = database.local_addr().expect("address");
    let cluster = TestCluster::builder().spawn_program_with(addr, |config, addr: SocketAddr| {
        let load = move || Ok(TcpStream::connect(addr)?);
        let mut cluster = Cluster::new(config.build()?);
        cluster.preload(load);
        cluster.serve(|_| async {
            Ok(service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new("ok".to_string()))
            }))
        })
    });
    let log = cluster.expect("start").log();
    let lines: Vec<&str> = log::lines_with(&log, &[WARNING]).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains(&format!("TCP connection to {addr}")), "{log}");
}

#[test]
fn descriptors_that_are_safe_to_share_are_not_named() {
    let cluster = TestCluster::builder().spawn_program(|config| {
        // A file, a pipe, a listener and an unconnected datagram socket.
        let _file = std::fs::File::open("/proc/self/stat")?;
        let _pipe = std::io::pipe()?;
        let _listener = TcpListener::bind("127.0.0.1:0")?;
        let _datagrams = UnixDatagram::unbound()?;
        tokio_prefork::SharedCounter::new("count")?;
        serve(config.build()?)?;
        Ok::<(), BoxError>(())
    });
    let cluster = cluster.expect("start");
    cluster.reload();
    cluster.control().upgrade().expect("upgrade");
    cluster.wait_until("the new image serves", |status| status.primary.phase.as_str() == "running");
    assert!(!cluster.log().contains(WARNING), "{}", cluster.log());
}

#[test]
fn sockets_that_the_process_was_started_with_are_not_named() {
    let report = ProcessEntry::new(|| {
        // A logger may duplicate a standard stream, which is a socket under systemd.
        let _stream = std::io::stdin().as_fd().try_clone_to_owned().expect("duplicate");
        println!("{:?}", find_unsafe_fds());
        0
    });
    let (stdin, _other) = UnixStream::pair().expect("pair");
    let (inherited, _its_peer) = UnixStream::pair().expect("pair");
    prefork_os::fd::set_inheritable(&inherited, true).expect("inheritable");
    let mut command = report.and_then(ProcessEntry::command).expect("command");
    let output = command.stdin(OwnedFd::from(stdin)).output().expect("start");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "[]\n");
}
