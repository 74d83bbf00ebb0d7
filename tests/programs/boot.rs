//! Applications whose boot or preload fails, hangs or waits.

use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio_prefork::{AcceptedStream, BoxError, Cluster, Result, Worker, WorkerKind};

use super::ProgramArguments;

/// How long to wait for an answer of another worker.
const TIMEOUT: Duration = Duration::from_secs(5);

type Text = Response<Full<Bytes>>;
type Ready = std::future::Ready<Result<Text, BoxError>>;

/// Returns a service that answers every request with the text of `make_text`.
pub(super) fn text_service(
    make_text: impl Fn() -> String,
) -> impl Service<Request<Incoming>, Response = Text, Error = BoxError, Future = Ready> {
    service_fn(move |_| std::future::ready(Ok(Response::new(Full::new(Bytes::from(make_text()))))))
}

/// Gives a program that never serves a service type.
fn unused_service()
-> impl Service<Request<Incoming>, Response = Text, Error = BoxError, Future = Ready> {
    text_service(String::new)
}

/// Every boot fails with an error.
pub(super) fn boot_fails(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve(|_: Worker| async {
        if true {
            return Err("open the database: no such host".into());
        }
        Ok(unused_service())
    })
}

/// Every worker exits during boot.
pub(super) fn boot_exits(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve(|_: Worker| async {
        if true {
            std::process::exit(37);
        }
        Ok(unused_service())
    })
}

/// Every boot hangs.
pub(super) fn boot_hangs(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve(|_: Worker| async {
        std::future::pending::<()>().await;
        Ok(unused_service())
    })
}

/// The boot fails if the file `broken` exists, hangs if `stuck` does, and waits for the FIFO `barrier` if there is one.
pub(super) fn boot_fails_if_broken(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve(|worker: Worker| async move {
        if std::path::Path::new("broken").exists() {
            return Err("read the settings: they are broken".into());
        }
        if std::path::Path::new("stuck").exists() {
            std::future::pending::<()>().await;
        }
        if let Ok(barrier) = pipe::OpenOptions::new().open_receiver("barrier") {
            // The bytes stay in the FIFO, so it releases all workers.
            barrier.readable().await?;
        }
        Ok(text_service(move || format!("Handled by PID {}\n", worker.pid())))
    })
}

static PRELOAD_COUNT: AtomicU32 = AtomicU32::new(0);

/// Preloads 32 MiB, and answers with the pid, the pid of the loader, the number of loads, the address and the sum.
pub(super) fn preload(arguments: ProgramArguments) -> Result<()> {
    struct Loaded {
        numbers: Vec<u64>,
        loaded_by: u32,
    }
    let load = || {
        PRELOAD_COUNT.fetch_add(1, Relaxed);
        Ok(Loaded { numbers: vec![7; 4 << 20], loaded_by: std::process::id() })
    };
    let mut cluster = Cluster::new(arguments.config);
    let loaded = cluster.preload(load);
    cluster.serve(move |worker: Worker| async move {
        Ok(text_service(move || {
            let (loads, place) = (PRELOAD_COUNT.load(Relaxed), loaded.numbers.as_ptr());
            let sum: u64 = loaded.numbers.iter().sum();
            format!("{} {} {loads} {place:?} {sum}", worker.pid(), loaded.loaded_by)
        }))
    })
}

pub(super) fn preload_fails(arguments: ProgramArguments) -> Result<()> {
    let load = || if true { Err("the disk is gone".into()) } else { Ok(()) };
    let mut cluster = Cluster::new(arguments.config);
    cluster.preload(load);
    cluster.serve(|_: Worker| async { Ok(unused_service()) })
}

#[expect(clippy::panic, reason = "a panic is what this is about")]
pub(super) fn preload_panics(arguments: ProgramArguments) -> Result<()> {
    let load = || if true { panic!("preload panics") } else { Ok(()) };
    let mut cluster = Cluster::new(arguments.config);
    cluster.preload(load);
    cluster.serve(|_: Worker| async { Ok(unused_service()) })
}

/// Greets with data that a later preload has made of the data of an earlier one, in workers of each kind and at each door.
pub(super) fn preload_everywhere(arguments: ProgramArguments) -> Result<()> {
    let door = arguments.value("door")?;
    let mut cluster = Cluster::new(arguments.config);
    let name = cluster.preload(|| Ok("world".to_string()));
    let greeting = cluster.preload(move || Ok(format!("hello {}", *name)));
    let cluster = cluster.kind(WorkerKind::new("greeter", 1), move |worker: Worker| async move {
        let mut asked = worker.open_inbox("greet");
        loop {
            let message = tokio::select! {
                Some(message) = asked.recv() => message,
                () = worker.draining() => return Ok(()),
            };
            if let Some(to) = message.reply_to() {
                worker.reply(&to, &*greeting)?;
            }
        }
    });
    match door.as_str() {
        "threads" => cluster.serve_threads(move |_| async move {
            Ok(Router::new().route("/", get(move || async move { greeting.as_static().as_str() })))
        }),
        "connections" => cluster.serve_connections(move |_| async move {
            Ok(move |mut stream: AcceptedStream| async move {
                let _ = stream.write_all(greeting.as_bytes()).await;
            })
        }),
        _ => cluster.serve(move |worker: Worker| async move {
            let ask = move || async move {
                let greeter = worker.slot_of_kind("greeter", 0).expect("it is declared");
                let answer = worker.request_to(greeter, "greet", &(), TIMEOUT).await;
                answer.and_then(|answer| answer.decode()).unwrap_or_else(|e| e.to_string())
            };
            Ok(Router::new().route("/", get(ask)))
        }),
    }
}

/// Runs a tokio runtime with threads before the fork, which adds a line to the file `migrated`.
pub(super) fn migrates_before_fork(arguments: ProgramArguments) -> Result<()> {
    let migrate = || {
        let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
        runtime.block_on(async {
            let pid = std::process::id();
            let write = move || {
                let mut file = std::fs::OpenOptions::new();
                writeln!(file.create(true).append(true).open("migrated")?, "{pid}")
            };
            tokio::task::spawn_blocking(write).await??;
            match std::path::Path::new("broken").exists() {
                true => Err("the schema is newer than this program".into()),
                false => Ok(()),
            }
        })
    };
    Cluster::new(arguments.config).before_fork(migrate).serve(|worker: Worker| async move {
        Ok(text_service(move || format!("Handled by PID {}\n", worker.pid())))
    })
}

#[expect(clippy::panic, reason = "a panic is what this is about")]
pub(super) fn before_fork_panics(arguments: ProgramArguments) -> Result<()> {
    let migrate = || if true { panic!("no schema") } else { Ok(()) };
    Cluster::new(arguments.config)
        .before_fork(migrate)
        .serve(|_: Worker| async { Ok(unused_service()) })
}

/// The preload leaves a thread running, so that the process must not be forked.
pub(super) fn preload_leaves_a_thread(arguments: ProgramArguments) -> Result<()> {
    let load = || {
        let forever = || loop {
            std::thread::park();
        };
        let left = std::thread::Builder::new().name("left-running".into()).spawn(forever);
        Ok(left.map(drop)?)
    };
    let mut cluster = Cluster::new(arguments.config);
    cluster.preload(load);
    cluster.serve(|_: Worker| async { Ok(unused_service()) })
}
