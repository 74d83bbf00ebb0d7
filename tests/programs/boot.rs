//! Programs about the time before the first request.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use tokio::net::unix::pipe;
use tokio_prefork::{BoxError, Cluster, Error, Result, Worker};

use super::Told;

type Text = Response<Full<Bytes>>;
type Ready = std::future::Ready<Result<Text, BoxError>>;

/// Answers everything with the text that `say` gives.
pub(super) fn text(
    say: impl Fn() -> String,
) -> impl Service<Request<Incoming>, Response = Text, Error = BoxError, Future = Ready> {
    service_fn(move |_| std::future::ready(Ok(Response::new(Full::new(Bytes::from(say()))))))
}

/// The type of a service that a program has no occasion to make.
fn never() -> impl Service<Request<Incoming>, Response = Text, Error = BoxError, Future = Ready> {
    text(String::new)
}

/// No worker ever boots, and each says why.
pub(super) fn fails(told: Told) -> Result<ExitCode> {
    Cluster::new(told.config).serve(|_: Worker| async {
        if true {
            return Err(Error::application("open the database", "no such host"));
        }
        Ok(never())
    })
}

/// No worker ever boots, and none says why.
pub(super) fn exits(told: Told) -> Result<ExitCode> {
    Cluster::new(told.config).serve(|_: Worker| async {
        if true {
            std::process::exit(37);
        }
        Ok(never())
    })
}

/// No worker is ever ready.
pub(super) fn hangs(told: Told) -> Result<ExitCode> {
    Cluster::new(told.config).serve(|_: Worker| async {
        std::future::pending::<()>().await;
        Ok(never())
    })
}

/// Workers boot unless the file `broken` exists; never if `stuck` does, and not before something is written to the fifo `barrier` if there is one.
pub(super) fn fails_if_broken(told: Told) -> Result<ExitCode> {
    Cluster::new(told.config).serve(|worker: Worker| async move {
        if std::path::Path::new("broken").exists() {
            return Err(Error::application("read the settings", "they are broken"));
        }
        if std::path::Path::new("stuck").exists() {
            std::future::pending::<()>().await;
        }
        if let Ok(barrier) = pipe::OpenOptions::new().open_receiver("barrier") {
            // Nobody takes what is written, so it opens for all.
            barrier.readable().await.map_err(|e| Error::application("wait at the barrier", e))?;
        }
        Ok(text(move || format!("Handled by PID {}\n", worker.pid())))
    })
}

static LOADS: AtomicU32 = AtomicU32::new(0);

/// Loads a large vector, and answers with how often that was done, where it is, and who did it.
pub(super) fn preload(told: Told) -> Result<ExitCode> {
    struct Loaded {
        numbers: Vec<u64>,
        by: u32,
    }
    let load = || {
        LOADS.fetch_add(1, Relaxed);
        Ok(Loaded { numbers: vec![7; 4 << 20], by: std::process::id() })
    };
    Cluster::new(told.config).preload(load).serve(
        |worker: Worker, loaded: &'static Loaded| async move {
            Ok(text(move || {
                let (loads, place) = (LOADS.load(Relaxed), loaded.numbers.as_ptr());
                let sum: u64 = loaded.numbers.iter().sum();
                format!("{} {} {loads} {place:?} {sum}", worker.pid(), loaded.by)
            }))
        },
    )
}

pub(super) fn preload_fails(told: Told) -> Result<ExitCode> {
    let load = || if true { Err(Error::application("load", "the disk is gone")) } else { Ok(()) };
    Cluster::new(told.config).preload(load).serve(|_: Worker, _: &()| async { Ok(never()) })
}

#[expect(clippy::panic, reason = "a panic is what this is about")]
pub(super) fn preload_panics(told: Told) -> Result<ExitCode> {
    let load = || if true { panic!("preload panics") } else { Ok(()) };
    Cluster::new(told.config).preload(load).serve(|_: Worker, _: &()| async { Ok(never()) })
}

/// What must not be: a process with two threads is forked.
pub(super) fn preload_leaves_a_thread(told: Told) -> Result<ExitCode> {
    let load = || {
        let forever = || loop {
            std::thread::park();
        };
        let left = std::thread::Builder::new().name("left-running".into()).spawn(forever);
        left.map(drop).map_err(|e| Error::application("start a thread", e))
    };
    Cluster::new(told.config).preload(load).serve(|_: Worker, _: &()| async { Ok(never()) })
}
