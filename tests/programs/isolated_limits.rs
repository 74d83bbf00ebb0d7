//! An application with a pool of isolated processes that have limits. The path of a request is the job.

use std::convert::Infallible;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{Cluster, IsolatedPool, IsolatedPoolConfig, Result, Worker};

use super::ProgramArguments;

const MIB: usize = 1 << 20;

/// `min=N` to `max=N` processes, and a number for each limit: `max-jobs`, `idle-ms`, `nice`, `cpu-ms`, `max-rss-mib`,
/// `max-data-mib`, `open-files` and `deadline-ms`.
pub(super) fn isolated_limits(arguments: ProgramArguments) -> Result<()> {
    let pool = pool_config(&arguments);
    let pool = IsolatedPool::new(
        pool,
        || Ok(Vec::<Vec<u8>>::new()),
        |kept: &mut Vec<Vec<u8>>, job: String| perform_job(kept, &job).map_err(|e| e.to_string()),
    );
    let cluster = Cluster::new(arguments.config).isolated_pool(&pool);
    cluster.serve(move |_: Worker| {
        let pool = pool.clone();
        async move {
            Ok(service_fn(move |request: Request<Incoming>| {
                let pool = pool.clone();
                async move {
                    let job = request.uri().path().trim_start_matches('/').to_string();
                    let text = pool.run(job).await.unwrap_or_else(|e| format!("{e:?}"));
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                }
            }))
        }
    })
}

fn pool_config(arguments: &ProgramArguments) -> IsolatedPoolConfig {
    let number = |key: &str| arguments.value(key).ok().and_then(|text| text.parse::<u64>().ok());
    let min = number("min").unwrap_or(1) as u32;
    let max = number("max").map_or(min, |max| max as u32);
    let mut pool = IsolatedPoolConfig::new("limited", min..=max);
    if let Some(jobs) = number("max-jobs") {
        pool = pool.max_jobs(jobs);
    }
    if let Some(ms) = number("idle-ms") {
        pool = pool.idle_timeout(Duration::from_millis(ms));
    }
    if let Some(nice) = number("nice") {
        pool = pool.nice(nice as u32);
    }
    if let Some(ms) = number("cpu-ms") {
        pool = pool.cpu_time(Duration::from_millis(ms));
    }
    if let Some(mib) = number("max-rss-mib") {
        pool = pool.max_rss(mib << 20);
    }
    if let Some(mib) = number("max-data-mib") {
        pool = pool.max_data_bytes(mib << 20);
    }
    if let Some(files) = number("open-files") {
        pool = pool.open_files(files);
    }
    if let Some(ms) = number("deadline-ms") {
        pool = pool.deadline(Duration::from_millis(ms));
    }
    pool
}

/// Performs the job `NAME` or `NAME/ARGUMENT`. `kept` is memory that the process keeps.
fn perform_job(kept: &mut Vec<Vec<u8>>, job: &str) -> std::io::Result<String> {
    let (name, argument) = job.split_once('/').unwrap_or((job, ""));
    let mib = argument.parse::<usize>().unwrap_or(0) * MIB;
    let pid = std::process::id();
    match name {
        "program" => {
            let sleep = Command::new("sleep").arg("600").spawn()?.id();
            write_file("sleep.pid", &format!("{pid} {sleep}"))?;
            match argument {
                "hang" => wait_for_ever(),
                "exit" => std::process::exit(3),
                _ => Ok(format!("{pid} {sleep}")),
            }
        }
        "leak" => {
            kept.push(vec![1; mib]);
            Ok(pid.to_string())
        }
        "grow" => loop {
            kept.push(vec![1; 16 * MIB]);
            write_file("resident", &resident_mib()?.to_string())?;
        },
        "double" => {
            let mut all = vec![1u8];
            loop {
                all.extend_from_within(..);
            }
        }
        "reserve" => {
            let reserved = Vec::<u8>::new().try_reserve_exact(mib);
            Ok(reserved.map_or("refused".to_string(), |()| "reserved".to_string()))
        }
        "spin" => loop {
            std::hint::spin_loop();
        },
        "dirty" => {
            std::env::set_current_dir("/")?;
            std::thread::spawn(wait_for_ever::<()>);
            Ok(pid.to_string())
        }
        "traces" => {
            let threads = std::fs::read_dir("/proc/self/task")?.count();
            Ok(format!("{} {threads}", std::env::current_dir()?.display()))
        }
        "nice" => Ok(format!("{} {}", niceness("/proc/thread-self")?, niceness("/proc/self")?)),
        "open" => {
            let open = || std::fs::File::open("/dev/null");
            let files: Vec<_> = std::iter::from_fn(|| open().ok()).collect();
            Ok(files.len().to_string())
        }
        "hold" => {
            write_file(&format!("held-{argument}"), &pid.to_string())?;
            while !Path::new(argument).exists() {
                std::thread::yield_now();
            }
            Ok(pid.to_string())
        }
        _ => Ok(pid.to_string()),
    }
}

fn wait_for_ever<T>() -> T {
    loop {
        std::thread::park();
    }
}

/// Writes a file of which readers see all or nothing.
fn write_file(name: &str, text: &str) -> std::io::Result<()> {
    let new = format!("{name}.new-{}", std::process::id());
    std::fs::write(&new, text)?;
    std::fs::rename(new, name)
}

fn resident_mib() -> std::io::Result<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    Ok(pages.unwrap_or(0) * 4096 / MIB)
}

/// Returns the niceness in the `stat` file of this directory.
fn niceness(dir: &str) -> std::io::Result<String> {
    let stat = std::fs::read_to_string(format!("{dir}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    Ok(fields.split_ascii_whitespace().nth(16).unwrap_or_default().to_string())
}
