//! Measures messages between a worker and its primary, and Node's `process.send` in the same run: messages of 64 bytes
//! per second, the time of a round trip, and of a broadcast until all workers have replied.
//!
//! ```text
//! cargo bench --bench messages
//! cargo bench --bench messages -- --messages 1000000 --trips 20000 --workers 64 --rounds 5
//! ```
//!
//! Then the cost of an addition to a `SharedCounter`, beside an `AtomicU64` and a plain `u64`. Rates are counted where
//! messages arrive; a round trip is measured where it begins, with an answer of 64 bytes. Both sides have two processes
//! and nothing else to do. Medians of all rounds, which are taken in turn.

mod support;

use std::cell::{Cell, OnceCell, RefCell};
use std::convert::Infallible;
use std::hint::black_box;
use std::process::{Command, ExitCode, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use support::{argument, fail, has_argument, median, quantile};
use tokio_prefork::{Cluster, Config, Result, SharedCounter, Worker};

/// The argument that runs the measured cluster instead of the bench.
const CLUSTER_FLAG: &str = "--cluster";

/// The figures of one round. Node has no other payloads than values, so its round trips are compared with both.
const FIGURES: [&str; 5] =
    ["messages/s", "trip p50 us", "trip p99 us", "value p50 us", "value p99 us"];

/// Number of additions in a series.
const ADDITIONS_PER_SERIES: u32 = 1_000_000;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let is_smoke_test = !has_argument("--bench");
    let messages: u32 = argument("--messages", if is_smoke_test { 1000 } else { 500_000 });
    let trips: u32 = argument("--trips", if is_smoke_test { 100 } else { 20_000 });
    let workers: u32 = argument("--workers", if is_smoke_test { 4 } else { 64 });
    let rounds: u32 = argument("--rounds", if is_smoke_test { 1 } else { 5 });
    if has_argument(CLUSTER_FLAG) {
        let what: String = argument(CLUSTER_FLAG, String::new());
        let done = match what.as_str() {
            "pair" => pair(messages, trips),
            _ => broadcast(workers, trips),
        };
        return done.map_or_else(|e| e.report(), |()| ExitCode::SUCCESS);
    }
    let mut ours: [Vec<f64>; FIGURES.len()] = Default::default();
    let mut nodes: [Vec<f64>; FIGURES.len()] = Default::default();
    for _ in 0..rounds {
        let mut pair = cluster_command("pair", messages, trips, 1);
        collect(&mut ours, &figures(&mut pair).unwrap_or_else(|why| fail(why)));
        let mut node = Command::new("node");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/peers/messages.js");
        node.arg(script).args([messages, trips].map(|n| n.to_string()));
        match figures(&mut node) {
            Ok(figures) => {
                let trips = figures.iter().skip(1);
                collect(&mut nodes, &figures.iter().chain(trips).copied().collect::<Vec<_>>());
            }
            Err(why) => eprintln!("bench: without node: {why}"),
        }
    }
    println!(
        "{rounds} rounds of {messages} messages and {trips} round trips, 64 bytes each; a value is a struct that is encoded and \
         decoded at both ends"
    );
    println!("{:16}{:>14}{:>14}{:>10}", "", "prefork", "node", "ratio");
    for (i, name) in FIGURES.into_iter().enumerate() {
        let (our, node) = (median(&ours[i]), median(&nodes[i]));
        // The ratio is above 1 if prefork is better.
        let ratio = if i == 0 { our / node } else { node / our };
        println!("{name:16}{our:>14.1}{node:>14.1}{ratio:>10.1}");
    }
    if let Err(e) = measure_counter_additions() {
        fail(e);
    }
    let took = figures(&mut cluster_command("all", messages, trips.min(1000), workers))
        .unwrap_or_else(|why| fail(why));
    println!(
        "a broadcast to {workers} workers until all have answered: p50 {:.0} us, p99 {:.0} us",
        took[0], took[1]
    );
    ExitCode::SUCCESS
}

/// Returns the nanoseconds of one uncontended addition, the best of several series.
fn measure_counter_additions() -> Result<()> {
    let best = |add: &dyn Fn()| {
        let series = (0..10).map(|_| {
            let begun = Instant::now();
            (0..ADDITIONS_PER_SERIES).for_each(|_| add());
            begun.elapsed().as_nanos() as f64 / f64::from(ADDITIONS_PER_SERIES)
        });
        series.fold(f64::INFINITY, f64::min)
    };
    let (shared, atomic, plain) =
        (SharedCounter::new("bench")?, AtomicU64::new(0), Cell::new(0u64));
    let ours = best(&|| shared.add(black_box(1)));
    let atomic = best(&|| {
        atomic.fetch_add(black_box(1), Ordering::Relaxed);
    });
    let plain = best(&|| plain.set(black_box(plain.get() + black_box(1))));
    println!(
        "an addition: SharedCounter {ours:.1} ns, AtomicU64 {atomic:.1} ns, u64 {plain:.1} ns"
    );
    Ok(())
}

fn cluster_command(what: &str, messages: u32, trips: u32, workers: u32) -> Command {
    let program = std::env::current_exe().unwrap_or_else(|e| fail(e));
    let mut command = Command::new(program);
    let numbers = [messages, trips, workers].map(|n| n.to_string());
    command.args([CLUSTER_FLAG, what, "--messages", &numbers[0]]);
    command.args(["--trips", &numbers[1], "--workers", &numbers[2]]);
    command
}

/// Runs a program, and returns the figures in its last line.
fn figures(command: &mut Command) -> std::result::Result<Vec<f64>, String> {
    let done = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let done = done.map_err(|e| format!("{:?}: {e}", command.get_program()))?;
    let text = String::from_utf8_lossy(&done.stdout);
    let numbers: Option<Vec<f64>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
    numbers.filter(|n| !n.is_empty()).ok_or_else(|| format!("its output is {text:?}"))
}

fn collect(into: &mut [Vec<f64>; FIGURES.len()], figures: &[f64]) {
    into.iter_mut().zip(figures).for_each(|(series, figure)| series.push(*figure));
}

fn cluster(workers: u32) -> Result<Cluster> {
    let config = Config::builder().listen("127.0.0.1:0")?.workers(workers).build()?;
    Ok(Cluster::new(config))
}

/// Stops the cluster after the measurement.
fn stop() {
    if let Err(e) = kill(Pid::this(), Signal::SIGTERM) {
        fail(e);
    }
}

async fn empty_response(
    _: Request<Incoming>,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::default()))
}

/// Runs one worker that sends `messages` messages and then `trips` requests.
fn pair(messages: u32, trips: u32) -> Result<()> {
    let (count, begun, rate) = (Cell::new(0), OnceCell::new(), Rc::new(Cell::new(0.0)));
    let counted = Rc::clone(&rate);
    cluster(1)?
        .on_message("count", move |_, _, _| {
            let begun = *begun.get_or_init(Instant::now);
            count.set(count.get() + 1);
            if count.get() == messages {
                counted.set(f64::from(messages) / begun.elapsed().as_secs_f64());
            }
        })
        .on_message("ask", |primary, _, message| {
            let Some(to) = message.reply_to() else { return };
            if let Err(e) = primary.reply(&to, message.bytes().clone()) {
                fail(e);
            }
        })
        .on_message("ask-value", |primary, _, message| {
            let Some(to) = message.reply_to() else { return };
            let job: Job<'_> = message.decode().unwrap_or_else(|e| fail(e));
            if let Err(e) = primary.reply(&to, &job) {
                fail(e);
            }
        })
        .on_message("times", move |_, _, message| {
            let times: [f64; 4] = message.decode().unwrap_or_else(|e| fail(e));
            println!("{} {}", rate.get(), times.map(|time| time.to_string()).join(" "));
            stop();
        })
        .serve(move |worker: Worker| async move {
            tokio::task::spawn_local(async move {
                if let Err(e) = work(&worker, messages, trips).await {
                    fail(e);
                }
            });
            Ok(service_fn(empty_response))
        })
}

async fn work(
    worker: &Worker,
    messages: u32,
    trips: u32,
) -> std::result::Result<(), tokio_prefork::MessageError> {
    let payload = Bytes::from_static(&[b'x'; 64]);
    for _ in 0..messages {
        worker.send("count", payload.clone()).await?;
    }
    let (mut raw_times, mut value_times) = (Vec::new(), Vec::new());
    for _ in 0..trips {
        let begun = Instant::now();
        worker.request("ask", payload.clone(), REQUEST_TIMEOUT).await?;
        raw_times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    for id in 0..trips {
        let job = Job {
            id,
            user: "alice",
            path: "/var/lib/thumbnails/1",
            state: if id % 2 == 0 { State::Queued { since: 1.5 } } else { State::Done },
        };
        let begun = Instant::now();
        let reply = worker.request("ask-value", &job, REQUEST_TIMEOUT).await?;
        black_box(reply.decode::<Job<'_>>()?);
        value_times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    let quantiles = |times: &[f64]| [quantile(times, 0.5), quantile(times, 0.99)];
    let ([a, b], [c, d]) = (quantiles(&raw_times), quantiles(&value_times));
    worker.send("times", &[a, b, c, d]).await
}

/// A value of the kind that applications send.
#[derive(Debug, Serialize, Deserialize)]
struct Job<'a> {
    id: u32,
    user: &'a str,
    path: &'a str,
    state: State,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type")]
enum State {
    Queued { since: f64 },
    Done,
}

/// Broadcasts `times` times to `workers` workers, each after all have replied to the previous broadcast.
fn broadcast(workers: u32, times: u32) -> Result<()> {
    let (answers, begun) = (Cell::new(0), Cell::new(Instant::now()));
    let took = RefCell::new(Vec::new());
    cluster(workers)?
        // The first message of each worker announces it.
        .on_message("here", move |primary, _, _| {
            answers.set(answers.get() + 1);
            if answers.get() < workers {
                return;
            }
            answers.set(0);
            let mut took = took.borrow_mut();
            took.push(begun.get().elapsed().as_secs_f64() * 1e6);
            if took.len() as u32 > times {
                // The first time includes the boot.
                println!("{} {}", quantile(&took[1..], 0.5), quantile(&took[1..], 0.99));
                return stop();
            }
            begun.set(Instant::now());
            if primary.broadcast("all", Bytes::from_static(&[b'x'; 64])) != Ok(workers as usize) {
                fail("not all workers have room for a message");
            }
        })
        .serve(|worker: Worker| async move {
            let mut inbox = worker.open_inbox("all");
            tokio::task::spawn_local(async move {
                while worker.send("here", &()).await.is_ok() {
                    inbox.recv().await;
                }
            });
            Ok(service_fn(empty_response))
        })
}
