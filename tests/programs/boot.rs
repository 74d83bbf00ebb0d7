//! Applications whose boot or preload fails, hangs or waits.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use tokio::net::unix::pipe;
use tokio_prefork::{BoxError, Cluster, Error, Result, Worker};

use super::ProgramArguments;

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
            barrier.readable().await.map_err(|e| Error::application("wait at the barrier", e))?;
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
    Cluster::new(arguments.config).preload(load).serve(
        |worker: Worker, loaded: &'static Loaded| async move {
            Ok(text_service(move || {
                let (loads, place) = (PRELOAD_COUNT.load(Relaxed), loaded.numbers.as_ptr());
                let sum: u64 = loaded.numbers.iter().sum();
                format!("{} {} {loads} {place:?} {sum}", worker.pid(), loaded.loaded_by)
            }))
        },
    )
}

pub(super) fn preload_fails(arguments: ProgramArguments) -> Result<()> {
    let load = || if true { Err("the disk is gone".into()) } else { Ok(()) };
    Cluster::new(arguments.config)
        .preload(load)
        .serve(|_: Worker, _: &()| async { Ok(unused_service()) })
}

#[expect(clippy::panic, reason = "a panic is what this is about")]
pub(super) fn preload_panics(arguments: ProgramArguments) -> Result<()> {
    let load = || if true { panic!("preload panics") } else { Ok(()) };
    Cluster::new(arguments.config)
        .preload(load)
        .serve(|_: Worker, _: &()| async { Ok(unused_service()) })
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
    Cluster::new(arguments.config)
        .preload(load)
        .serve(|_: Worker, _: &()| async { Ok(unused_service()) })
}
