//! Measures whether a saturated CPU pool delays serving, and the cost of a job.
//!
//! ```text
//! cargo bench --bench pool
//! cargo bench --bench pool -- --seconds 20 --nice 0      with the pool at the loop's own priority
//! cargo bench --bench pool -- --on-loop                  the same jobs on the event loops instead
//! ```
//!
//! *Serving*: `prefork serve -w 2`, first idle and then with `/fib` jobs of about a second in all pools, more
//! than there are threads. One client sends `GET /` on a kept connection, pauses for 2 ms, and sends it
//! again; times are from the first byte sent to the last one received. The client runs on the same cores.
//!
//! *Cost*: an empty job, 10 MiB there and back, and a crash, in the pool, with `spawn_blocking` and in Node's Piscina:
//! see `benches/isolated.rs`.
//!
//! *Dispatch*: a pool of one thread in this process, and a runtime with one thread, as in a worker. From the
//! submission of an empty job to its start on the idle thread, and to its answer; `spawn_blocking` of tokio,
//! in turns, beside it.

mod support;

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use prefork_bench::job_costs::JobWay;
use support::process::Server;
use support::{argument, fail, has_argument, quantile};
use tokio_prefork::pool::{Pool, PoolConfig};

/// Pause between two requests of the measured client.
const REQUEST_INTERVAL: Duration = Duration::from_millis(2);
/// Number of clients whose jobs keep the pools of two workers full.
const LOAD_CLIENTS: usize = 8;

fn main() {
    support::job_costs::run_measured_way_and_exit();
    let is_smoke_test = !has_argument("--bench");
    let seconds: f64 = argument("--seconds", if is_smoke_test { 0.3 } else { 10.0 });
    let jobs: usize = argument("--jobs", if is_smoke_test { 200 } else { 20_000 });
    let rounds: usize = argument("--rounds", if is_smoke_test { 1 } else { 3 });
    let nice: u32 = argument("--nice", 19);
    if !(0.1..=600.0).contains(&seconds) || jobs == 0 || rounds == 0 {
        fail("give at least a tenth of a second, a job and a round");
    }
    let n = fib_argument_for(if is_smoke_test { 0.02 } else { 1.0 });
    let place = if has_argument("--on-loop") { "loop" } else { "pool" };
    println!(
        "serving: 2 workers, nice {nice}; /fib/{n} (about 1 s) on the {place}; times of / in ms"
    );
    for _ in 0..rounds {
        serving(Duration::from_secs_f64(seconds), n, nice, place);
    }
    println!("\ndispatch: empty jobs, one at a time, one thread; times in microseconds");
    for _ in 0..rounds {
        dispatch(jobs);
    }
    println!("\ncost of a job");
    support::job_costs::print_job_costs(&[JobWay::Pool, JobWay::SpawnBlocking, JobWay::Piscina]);
}

/// Returns the CPU time of this thread in seconds, which a busy machine does not change.
fn cpu_seconds() -> f64 {
    let used = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    used.map_or(f64::NAN, |used| used.tv_sec() as f64 + used.tv_nsec() as f64 / 1e9)
}

/// Returns the number whose `fib` takes about this many seconds of one core.
fn fib_argument_for(seconds: f64) -> u64 {
    let mut n = 20;
    loop {
        let begun = cpu_seconds();
        black_box(fib(n));
        // Each number takes 1.6 times as long as the previous one.
        if (cpu_seconds() - begun) * 1.3 > seconds {
            return n;
        }
        n += 1;
    }
}

fn fib(n: u64) -> u64 {
    if n < 2 { n } else { fib(black_box(n - 1)) + fib(black_box(n - 2)) }
}

fn serving(span: Duration, n: u64, nice: u32, place: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prefork"));
    let nice = nice.to_string();
    command.args(["serve", "-b", "127.0.0.1:0", "-w", "2", "--pool-nice", &nice]);
    command.args(["--graceful-timeout", "0s"]);
    let server = Server::start(&mut command, |_| ());
    if let Err(why) = server.wait_for_workers(2) {
        fail(why);
    }
    let idle = latencies(server.addr, span);
    let stop = Arc::new(AtomicBool::new(false));
    let load_clients: Vec<_> = (0..LOAD_CLIENTS)
        .map(|_| {
            let (stop, addr, path) =
                (Arc::clone(&stop), server.addr, format!("/fib/{n}?on={place}"));
            std::thread::spawn(move || {
                let mut done = 0;
                while !stop.load(Relaxed) {
                    done += usize::from(Client::new(addr).and_then(|mut c| c.get(&path)).is_ok());
                }
                done
            })
        })
        .collect();
    std::thread::sleep(span.min(Duration::from_secs(1)));
    let loaded = latencies(server.addr, span);
    stop.store(true, Relaxed);
    // Ends the requests in flight.
    drop(server);
    let done: usize = load_clients.into_iter().filter_map(|client| client.join().ok()).sum();
    let (p50, p99) = (|v: &[f64]| quantile(v, 0.5), |v: &[f64]| quantile(v, 0.99));
    println!(
        "  idle p50 {:.3} p99 {:.3} (n={})   loaded p50 {:.3} p99 {:.3} max {:.1} (n={}, {done} jobs)   \
         p99 ratio {:.2}",
        p50(&idle),
        p99(&idle),
        idle.len(),
        p50(&loaded),
        p99(&loaded),
        quantile(&loaded, 1.0),
        loaded.len(),
        p99(&loaded) / p99(&idle),
    );
}

/// Measures `GET /` for `span`, and returns the times in milliseconds.
fn latencies(addr: SocketAddr, span: Duration) -> Vec<f64> {
    let mut client = Client::new(addr).unwrap_or_else(|e| fail(format_args!("connect: {e}")));
    let end = Instant::now() + span;
    let mut times = Vec::new();
    while Instant::now() < end || times.is_empty() {
        let begun = Instant::now();
        client.get("/").unwrap_or_else(|e| fail(format_args!("GET /: {e}")));
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        std::thread::sleep(REQUEST_INTERVAL);
    }
    times
}

/// A client with one connection.
struct Client(TcpStream);

impl Client {
    fn new(addr: SocketAddr) -> std::io::Result<Client> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Client(stream))
    }

    /// Reads a response, which is small and arrives in one piece.
    fn get(&mut self, path: &str) -> std::io::Result<()> {
        write!(self.0, "GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        let mut buffer = [0; 4096];
        let n = self.0.read(&mut buffer)?;
        match buffer[..n].starts_with(b"HTTP/1.1 200") {
            true => Ok(()),
            false => Err(std::io::ErrorKind::InvalidData.into()),
        }
    }
}

fn dispatch(jobs: usize) {
    let mut config = PoolConfig::default();
    config.threads = 1;
    let pool = Pool::new(config);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .build()
        .unwrap_or_else(|e| fail(format_args!("runtime: {e}")));
    let (mut pool_times, mut blocking_times) = (Times::default(), Times::default());
    runtime.block_on(async {
        for turn in 0..jobs + 100 {
            let begun = Instant::now();
            let started = pool.run(Instant::now).await.ok();
            let first = (begun, started, Instant::now());
            let begun = Instant::now();
            let started = tokio::task::spawn_blocking(Instant::now).await.ok();
            let second = (begun, started, Instant::now());
            // The first jobs start the threads.
            if turn >= 100 {
                pool_times.add(first);
                blocking_times.add(second);
            }
        }
    });
    pool_times.print("pool");
    blocking_times.print("spawn_blocking");
}

#[derive(Default)]
struct Times {
    start: Vec<f64>,
    answer: Vec<f64>,
}

impl Times {
    fn add(&mut self, (begun, started, ended): (Instant, Option<Instant>, Instant)) {
        let Some(started) = started else { fail("a job was not run") };
        self.start.push((started - begun).as_secs_f64() * 1e6);
        self.answer.push((ended - begun).as_secs_f64() * 1e6);
    }

    fn print(&self, name: &str) {
        let figures = [&self.start, &self.answer].map(|v| (quantile(v, 0.5), quantile(v, 0.99)));
        let [(start, start99), (answer, answer99)] = figures;
        println!(
            "  {name:<16} to its start p50 {start:.1} p99 {start99:.1}   to its answer p50 {answer:.1} \
             p99 {answer99:.1}   (n={})",
            self.start.len()
        );
    }
}
