//! Handlers that hold their thread: in a loop, in a system call, in a lock, in a deep recursion, and on a pool.

use std::hint::black_box;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use rustix::process::{Resource, getrlimit};
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
        "/recurse" => drop(recurse_without_end(fast_until())),
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

/// Returns the address above which the main thread's stack may be used up fast: the last 256 KiB are left for signals to arrive on.
/// What lies before this frame (arguments, environment, first frames) is part of them.
fn fast_until() -> usize {
    let local = black_box(0_u8);
    let limit = getrlimit(Resource::Stack).current.unwrap_or(8 << 20);
    std::ptr::from_ref(&local).addr().saturating_sub(limit as usize).saturating_add(256 << 10)
}

/// Uses the stack up, the last part slowly enough for signals to arrive on it, until the kernel ends the process.
#[inline(never)]
fn recurse_without_end(fast_until: usize) -> u64 {
    let words = black_box([0_u64; 64]);
    if std::ptr::from_ref(&words).addr() < fast_until {
        spin_in_a_loop(Duration::from_millis(20));
    }
    // Never true: the kernel ends the process first.
    if fast_until == usize::MAX {
        return 0;
    }
    words[0] + recurse_without_end(black_box(fast_until)) + black_box(words)[1]
}
