//! An application whose workers print, and whose primary records what they print.

use std::convert::Infallible;
use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{
    BoxError, Cluster, ClusterEvent, Error, OutputStream, PrimaryHandle, Result, Worker,
    WorkerKind, WorkerStdio, WorkerTag,
};

use super::ProgramArguments;

/// The streams of web workers by `stdio=lines`, `null` or `inherit`. With `hook=1` the primary writes each line to the file
/// `lines`, and each exit; with `hook=slow` it needs a millisecond for each line and writes only their number.
///
/// The workers of the kind `helper` (`helpers=N`, `user=NAME`, `dir=PATH`) print who and where they are.
pub(super) fn worker_output(arguments: ProgramArguments) -> Result<()> {
    let stdio = match arguments.value("stdio").as_deref() {
        Ok("lines") => WorkerStdio::Lines,
        Ok("null") => WorkerStdio::Null,
        _ => WorkerStdio::Inherit,
    };
    let mut cluster = Cluster::new(arguments.config.clone()).worker_stdio(stdio);
    if let Ok(role) = arguments.value("role") {
        cluster = cluster.slot_env(0, [("ROLE", role)])?;
    }
    let record = fs::OpenOptions::new().create(true).append(true).open("lines");
    let mut record = record.map_err(|e| Error::application("lines", e))?;
    match arguments.value("hook").as_deref() {
        Ok("slow") => cluster = cluster.on_output(count_slowly()),
        Ok(_) => {
            let mut events = record.try_clone().map_err(|e| Error::application("lines", e))?;
            cluster = cluster
                .on_output(move |_, worker, stream, line| {
                    let kind = worker.kind;
                    let text = line.escape_ascii();
                    let _ = record
                        .write_all(format!("{kind} {} {stream} {text}\n", worker.id).as_bytes());
                })
                .on_event(move |_, event| {
                    if let ClusterEvent::Exit(exit) = event {
                        let _ = events.write_all(format!("exit {}\n", exit.worker.id).as_bytes());
                    }
                });
        }
        Err(_) => {}
    }
    cluster
        .kind(helper_kind(&arguments)?, |worker: Worker| async move {
            let id = (nix::unistd::geteuid(), nix::unistd::getegid());
            let dir = std::env::current_dir()?;
            let role = std::env::var("ROLE").unwrap_or_default();
            println!("uid={} gid={} dir={} role={role}", id.0, id.1, dir.display());
            worker.draining().await;
            Ok(())
        })
        .serve(|worker: Worker| async move {
            Ok(service_fn(move |request: Request<Incoming>| {
                let (worker, path) = (worker.clone(), request.uri().path().to_string());
                async move {
                    let text = handle_path(&worker, &path).await;
                    let text = text.unwrap_or_else(|e| e.to_string());
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                }
            }))
        })
}

fn helper_kind(arguments: &ProgramArguments) -> Result<WorkerKind> {
    let helpers = arguments.value("helpers").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut kind = WorkerKind::new("helper", helpers).stdio(WorkerStdio::Lines);
    if let Ok(user) = arguments.value("user") {
        kind = kind.user(user.clone()).group(user);
    }
    if let Ok(dir) = arguments.value("dir") {
        kind = kind.current_dir(dir);
    }
    kind.slot_env(1, [("ROLE", "second")])
}

fn count_slowly() -> impl FnMut(&mut PrimaryHandle<'_>, WorkerTag, OutputStream, &[u8]) {
    let mut count = 0u64;
    move |_, _, _, _| {
        count += 1;
        let until = Instant::now() + Duration::from_millis(1);
        while Instant::now() < until {
            std::thread::yield_now();
        }
        let _ = fs::write("count", count.to_string());
    }
}

async fn handle_path(worker: &Worker, path: &str) -> std::result::Result<String, BoxError> {
    let words: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match words.as_slice() {
        ["print", text] => {
            println!("{text}");
            eprintln!("{text} too");
        }
        ["half", text] => {
            print!("{text}");
            std::io::stdout().flush()?;
        }
        ["last-words"] => {
            print!("the last words");
            std::io::stdout().flush()?;
            std::process::exit(3);
        }
        ["bytes"] => {
            let long = vec![b'x'; 20_000];
            std::io::stdout().write_all(&[b"\xff\x00\n", &long[..], b"\n"].concat())?;
        }
        ["flood"] => {
            std::thread::Builder::new().spawn(flood)?;
        }
        ["wait"] => {
            fs::write("waiting", "")?;
            worker.draining().await;
            for n in 0..20_000 {
                println!("line {n} of a worker that leaves");
            }
        }
        ["child"] => {
            let script = "while [ ! -e go ]; do sleep 0.01; done; echo late";
            std::process::Command::new("sh").args(["-c", script]).spawn()?;
        }
        ["streams"] => {
            let target = |n| fs::read_link(format!("/proc/self/fd/{n}"));
            let targets = [target(0)?, target(1)?, target(2)?];
            return Ok(targets.map(|target| target.display().to_string()).join(" "));
        }
        ["role"] => return Ok(std::env::var("ROLE").unwrap_or_default()),
        _ => {}
    }
    Ok(format!("{}", worker.id()))
}

/// Prints for ever, and writes how much it has printed to the file `printed`.
fn flood() {
    for n in 0u64.. {
        println!("{n:0>100}");
        if n.is_multiple_of(100) {
            let _ = fs::write("printed", n.to_string());
        }
    }
}
