//! Handlers that hold their thread: in a loop, in a system call, in a lock, in a deep recursion, and on a pool.

use std::hint::black_box;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{BoxError, Cluster, ConcurrencyModel, Result, Worker};

use super::ProgramArguments;

/// How long a handler holds its thread, unless it is killed.
const HOLD_TIME: Duration = Duration::from_secs(60);

/// Locked by the thread that `/lock` starts, for as long as the process lives.
static NEVER_FREE: Mutex<()> = Mutex::new(());

/// Serves paths that hold the event loop, under the model of the configuration.
pub(super) fn stuck_handlers(arguments: ProgramArguments) -> Result<()> {
    let is_threads = arguments.config.model() == ConcurrencyModel::Threads;
    let cluster = Cluster::new(arguments.config);
    let boot = |worker: Worker| async move {
        Ok::<_, BoxError>(service_fn(move |request: Request<Incoming>| {
            let worker = worker.clone();
            async move { answer(request.uri().path(), &worker).await }
        }))
    };
    match is_threads {
        true => cluster.serve_threads(boot),
        false => cluster.serve(boot),
    }
}

async fn answer(path: &str, worker: &Worker) -> Result<Response<Full<Bytes>>, BoxError> {
    match path {
        "/spin" => spin_in_a_loop(HOLD_TIME),
        "/spin-briefly" => spin_in_a_loop(Duration::from_millis(1500)),
        "/sleep" => sleep_in_the_handler(),
        "/lock" => wait_for_a_lock(),
        "/recurse" => drop(recurse_without_end(0)),
        "/deep" => recurse_and_spin(20_000),
        "/pool" => worker.pool().run(|| spin_in_a_loop(HOLD_TIME)).await?,
        _ => {}
    }
    Ok(Response::new(Full::new(Bytes::from(std::process::id().to_string()))))
}

#[inline(never)]
fn spin_in_a_loop(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        black_box(());
    }
}

#[inline(never)]
fn sleep_in_the_handler() {
    let end = Instant::now() + HOLD_TIME;
    // The signal for the stack ends a sleep, which std continues.
    while Instant::now() < end {
        std::thread::park_timeout(HOLD_TIME);
    }
}

#[inline(never)]
fn wait_for_a_lock() {
    let (send, locked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _guard = NEVER_FREE.lock();
        let _ = send.send(());
        std::thread::park_timeout(HOLD_TIME);
    });
    let _ = locked.recv();
    drop(NEVER_FREE.lock());
}

/// Spins with a stack that is larger than what is copied of it.
#[inline(never)]
fn recurse_and_spin(depth: u32) {
    match depth {
        0 => spin_in_a_loop(HOLD_TIME),
        _ => recurse_and_spin(black_box(depth - 1)),
    }
    black_box(depth);
}

/// Uses the stack up, slowly enough for signals to arrive on its last pages, until the kernel ends the process.
#[inline(never)]
fn recurse_without_end(depth: u64) -> u64 {
    let words = black_box([depth; 64]);
    if depth > 11_000 {
        spin_in_a_loop(Duration::from_millis(20));
    }
    // Never true: the kernel ends the process first.
    if depth == u64::MAX {
        return 0;
    }
    words[0] + recurse_without_end(black_box(depth + 1)) + black_box(words)[1]
}
