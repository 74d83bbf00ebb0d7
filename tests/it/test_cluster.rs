//! The module `testing` of the library, as the tests of a user's program use it.

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, Response, service::service_fn};
use nix::sys::signal::Signal;
use prefork_os::process_entry::ProcessEntry;
use tokio_prefork::testing::TestCluster;
use tokio_prefork::{
    Cluster, ControlSocket, ListenAddr, SharedCounter, UnixAddr, Worker, WorkerKind,
};

use crate::support::{process, wait};

/// Starts two workers that answer with their pid.
fn spawn_pid_server() -> TestCluster {
    TestCluster::spawn(|worker: Worker| async move {
        let pid = worker.pid();
        Ok(service_fn(move |_: Request<Incoming>| async move {
            Ok::<_, Infallible>(Response::new(pid.to_string()))
        }))
    })
}

/// Starts two workers that answer with `$text`, in a program of its own.
macro_rules! spawn_text_server {
    ($text:literal) => {
        TestCluster::spawn(|_| async {
            Ok(service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new($text.to_string()))
            }))
        })
    };
}

fn get_pid(cluster: &TestCluster) -> u32 {
    let body = cluster.get("/").into_body();
    String::from_utf8_lossy(&body).parse().expect("a pid")
}

#[test]
fn a_killed_worker_is_replaced_and_a_reload_replaces_all() {
    let cluster = spawn_pid_server();
    assert_ne!(get_pid(&cluster), std::process::id());
    let workers = cluster.workers();
    assert_eq!(workers.len(), 2);
    cluster.kill(workers[0].id);
    let new = cluster.wait_for_replacement(workers[0].id);
    assert_eq!(new.slot, workers[0].slot);
    assert!(new.id > workers[1].id);
    cluster.reload();
    assert!(cluster.workers().iter().all(|worker| worker.generation.0 == 2));
    let pid = get_pid(&cluster);
    assert!(cluster.workers().iter().any(|worker| worker.pid == Some(pid)));
    cluster.scale(3);
    assert_eq!(cluster.workers().len(), 3);
    assert!(cluster.stop().success());
    assert!(cluster.log().contains("SIGKILL"), "{}", cluster.log());
}

#[test]
fn several_clusters_run_in_one_test() {
    let (one, two) = (spawn_text_server!("one"), spawn_text_server!("two"));
    assert_ne!(one.port(), two.port());
    assert_eq!(one.get("/").body(), "one");
    assert_eq!(two.get("/").body(), "two");
    assert!(one.stop().success());
    let three = spawn_text_server!("three");
    assert_eq!((two.get("/").body(), three.get("/").body()), (&"two".into(), &"three".into()));
}

#[test]
fn a_cluster_can_be_used_inside_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        let cluster = spawn_text_server!("inside");
        assert_eq!(cluster.get("/").body(), "inside");
        let stream = tokio::net::TcpStream::connect(cluster.addr()).await.expect("connect");
        drop(stream);
        assert!(cluster.stop().success());
    });
}

#[test]
fn tests_share_a_cluster_in_a_static() {
    static CLUSTER: LazyLock<TestCluster> = LazyLock::new(spawn_pid_server);
    // The thread that was first to use it ends before the second one asks.
    for _ in 0..2 {
        std::thread::spawn(|| assert_ne!(get_pid(&CLUSTER), 0)).join().expect("an answer");
    }
    assert!(!process::has_ended(CLUSTER.pid()));
    // A static is never dropped.
    CLUSTER.stop();
}

#[test]
fn a_program_gets_its_input_and_configures_the_cluster_itself() {
    let dir = tempfile::tempdir().expect("directory");
    let socket = dir.path().join("app.sock");
    let cluster = TestCluster::builder().workers(1).env("REGION", "eu").spawn_program_with(
        socket.clone(),
        |config, socket: PathBuf| {
            let started = SharedCounter::new("started")?;
            let config = config
                .bind([ListenAddr::Unix(UnixAddr::new(socket))])
                .control(ControlSocket::Off)
                .build()?;
            Cluster::new(config)
                .kind(WorkerKind::new("consumer", 1), |worker: Worker| async move {
                    worker.draining().await;
                    Ok(())
                })
                .serve(move |_| async move {
                    started.add(1);
                    let region = std::env::var("REGION").unwrap_or_default();
                    Ok(service_fn(move |_: Request<Incoming>| {
                        let text = format!("{region} {}", started.value());
                        async move { Ok::<_, Infallible>(Response::new(text)) }
                    }))
                })
        },
    );
    let cluster = cluster.expect("start");
    assert_eq!(cluster.get("/").body(), "eu 1");
    assert_eq!(cluster.addresses()[0].to_string(), format!("unix:{}", socket.display()));
    let kinds: Vec<String> = cluster.workers().into_iter().map(|worker| worker.kind).collect();
    assert_eq!(kinds.len(), 2, "{kinds:?}");
    cluster.reload();
    assert_eq!(cluster.get("/").body(), "eu 2");
    assert!(cluster.stop().success());
}

#[test]
fn a_cluster_upgrades_to_the_same_program() {
    let cluster = spawn_pid_server();
    let before = get_pid(&cluster);
    cluster.control().upgrade().expect("upgrade");
    let status = cluster.wait_until("the old workers are gone", |status| {
        status.workers.len() == 2 && status.workers.iter().all(|worker| worker.id.0 > 2)
    });
    assert_eq!(status.primary.pid, cluster.pid());
    assert_ne!(get_pid(&cluster), before);
    assert!(cluster.stop().success());
}

#[test]
fn a_failed_start_is_an_error_with_the_cause() {
    let builder = || TestCluster::builder().timeout(Duration::from_secs(20));
    let refused = builder().spawn_program(|_| Err::<(), _>("no such tenant"));
    let text = refused.expect_err("refused").to_string();
    assert!(text.contains("no such tenant") && text.contains("exit status: 1"), "{text}");
    let no_boot = builder().spawn_program(|config| {
        Cluster::new(config.build()?).serve(|_| async {
            std::fs::read("/no/such/key")?;
            Ok(service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(String::new()))
            }))
        })
    });
    let error = no_boot.expect_err("no worker boots");
    assert_eq!(error.exit_status().and_then(|status| status.code()), Some(70), "{error}");
    assert!(error.log().contains("No such file"), "{error}");
    let one_kind_does_not = builder().spawn_program(|config| {
        let fail = |_| async { Err("no mail server".into()) };
        Cluster::new(config.build()?).kind(WorkerKind::new("mail", 1), fail).serve(|_| async {
            Ok(service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(String::new()))
            }))
        })
    });
    let text = one_kind_does_not.expect_err("a worker exited").to_string();
    assert!(text.contains("no mail server"), "{text}");
}

#[test]
fn state_that_is_declared_twice_is_refused_in_a_cluster() {
    let twice = TestCluster::builder().spawn_program(|config| {
        SharedCounter::new("same")?;
        SharedCounter::new("same")?;
        Cluster::new(config.build()?).serve(|_| async {
            Ok(service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(String::new()))
            }))
        })
    });
    let text = twice.expect_err("refused").to_string();
    assert!(text.contains("declared twice") && text.contains("exit status: 78"), "{text}");
}

#[test]
fn a_panic_of_the_test_ends_the_cluster() {
    let cluster = spawn_pid_server();
    let (primary, worker) = (cluster.pid(), get_pid(&cluster));
    let test = std::thread::spawn(move || {
        let _cluster = cluster;
        panic!("on purpose");
    });
    test.join().expect_err("a panic");
    assert!(process::has_ended(primary));
    process::wait_ended(&[worker]);
}

#[test]
fn a_killed_test_leaves_no_process_and_no_file() {
    let temp = tempfile::tempdir().expect("directory");
    let test = ProcessEntry::new(|| {
        let cluster = spawn_pid_server();
        println!("{} {}", cluster.pid(), get_pid(&cluster));
        loop {
            std::thread::park();
        }
    });
    let mut test: Command = test.and_then(ProcessEntry::command).expect("command");
    test.env("TMPDIR", temp.path()).stdout(Stdio::piped());
    let mut test = test.spawn().expect("start");
    let mut line = String::new();
    BufReader::new(test.stdout.take().expect("piped")).read_line(&mut line).expect("read");
    let pids: Vec<u32> = line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    assert_eq!(pids.len(), 2, "{line:?}");
    process::send_signal(test.id(), Signal::SIGKILL);
    test.wait().expect("a child");
    process::wait_ended(&pids);
    wait::wait_until("the directory is removed", || {
        std::fs::read_dir(temp.path()).expect("directory").next().is_none()
    });
}
