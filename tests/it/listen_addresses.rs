//! Unix sockets at paths that are longer than a socket address, and several free ports.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Command;

use hyper::body::Incoming;
use hyper::{Request, Response, service::service_fn};
use tokio_prefork::testing::TestCluster;
use tokio_prefork::{Cluster, Config, ListenAddr, UnixAddr, Worker};

/// Serves requests with the pid of the worker.
fn serve_pid(config: Config) -> tokio_prefork::Result<()> {
    Cluster::new(config).serve(|worker: Worker| async move {
        let pid = worker.pid();
        Ok(service_fn(move |_: Request<Incoming>| async move {
            Ok::<_, Infallible>(Response::new(pid.to_string()))
        }))
    })
}

/// Creates a directory below `parent` whose path has more than 200 bytes.
fn create_deep_directory(parent: &Path) -> PathBuf {
    let deep = parent.join("d".repeat(100)).join("e".repeat(100));
    std::fs::create_dir_all(&deep).expect("directories");
    deep
}

fn run_prefork(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_prefork")).args(args).output().expect("start");
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_cluster_serves_at_a_long_path_over_reload_upgrade_and_removal_of_the_file() {
    let dir = tempfile::tempdir().expect("directory");
    let path = create_deep_directory(dir.path()).join("app.sock");
    let cluster =
        TestCluster::builder().spawn_program_with(path.clone(), |config, path: PathBuf| {
            serve_pid(config.bind([ListenAddr::Unix(UnixAddr::new(path))]).build()?)
        });
    let cluster = cluster.expect("start");
    assert_eq!(cluster.addresses(), [ListenAddr::Unix(UnixAddr::new(&path))]);
    assert_eq!(cluster.get("/").status(), 200);
    cluster.reload();
    assert_eq!(cluster.get("/").status(), 200);
    std::fs::remove_file(&path).expect("remove");
    cluster.reload();
    assert_eq!(cluster.get("/").status(), 200);
    cluster.control().upgrade().expect("upgrade");
    assert_eq!(cluster.get("/").status(), 200);
    run_prefork(&["health", "--path", "/", &format!("unix:{}", path.display())]);
    assert!(cluster.stop().success());
    assert!(!path.exists(), "the file is removed");
}

#[test]
fn a_second_start_at_a_long_path_is_refused() {
    let dir = tempfile::tempdir().expect("directory");
    let path = create_deep_directory(dir.path()).join("app.sock");
    let start = || {
        TestCluster::builder().spawn_program_with(path.clone(), |config, path: PathBuf| {
            serve_pid(config.bind([ListenAddr::Unix(UnixAddr::new(path))]).build()?)
        })
    };
    let first = start().expect("start");
    let error = start().expect_err("in use");
    assert_eq!(error.exit_status().and_then(|status| status.code()), Some(69), "{error}");
    assert!(error.log().contains(&first.pid().to_string()), "{error}");
    assert_eq!(first.get("/").status(), 200);
}

#[test]
fn the_control_socket_can_be_at_a_long_path() {
    let dir = tempfile::tempdir().expect("directory");
    let deep = create_deep_directory(dir.path());
    // The test cluster has its control socket in the temporary directory.
    let program = prefork_os::process_entry::ProcessEntry::new(|| {
        let cluster = TestCluster::spawn(|_| async {
            Ok(service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new("ok".to_string()))
            }))
        });
        cluster.reload();
        u8::from(!cluster.stop().success())
    });
    let program = program.and_then(prefork_os::process_entry::ProcessEntry::command);
    let output = program.expect("command").env("TMPDIR", &deep).output().expect("start");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn port_0_may_be_named_several_times() {
    let cluster = TestCluster::spawn_program(|config| {
        serve_pid(config.bind([([127, 0, 0, 1], 0), ([127, 0, 0, 1], 0)]).build()?)
    });
    let ports = |addrs: &[String]| -> BTreeSet<String> { addrs.iter().cloned().collect() };
    let before = ports(&cluster.status().listeners);
    assert_eq!(before.len(), 2, "{before:?}");
    cluster.reload();
    assert_eq!(ports(&cluster.status().listeners), before);
    cluster.control().upgrade().expect("upgrade");
    assert_eq!(ports(&cluster.status().listeners), before);
    for addr in cluster.addresses() {
        let ListenAddr::Tcp(addr) = addr else { panic!("{addr}") };
        std::net::TcpStream::connect(addr).expect("both ports accept");
    }
    assert!(cluster.stop().success());
}
