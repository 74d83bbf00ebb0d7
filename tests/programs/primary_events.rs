//! An application that records the events of its primary, and runs commands in the event hook.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{
    BoxError, Cluster, ClusterEvent, Error, PrimaryHandle, RestartDecision, Result, Worker,
    WorkerExit, WorkerId, is_worker,
};

use super::ProgramArguments;

/// Writes a line for each event to the file `events`. At a scale event, runs the commands in the file `commands`. With a
/// file `veto`, dead workers are not replaced, or after the milliseconds in it; files `panic` and `slow` make the hook panic or block, once.
pub(super) fn primary_events(arguments: ProgramArguments) -> Result<()> {
    // An upgrade and its check run the program again.
    let log = fs::OpenOptions::new().create(true).append(true).open("events");
    let mut log = log.map_err(|e| Error::application("events", e))?;
    let hook = move |primary: &mut PrimaryHandle<'_>, event: &ClusterEvent| {
        let line = format_event(event);
        // Unbuffered, as a test reads the file while it grows.
        let _ = log.write_all(format!("{line}\n").as_bytes());
        if let ClusterEvent::Disconnect { worker, .. } = event {
            let is_known = primary.workers().iter().any(|one| one.worker.id == worker.id);
            let _ = log.write_all(format!("known {} {is_known}\n", worker.id).as_bytes());
        }
        if let ClusterEvent::Exit(exit) = event {
            let is_known = primary.workers().iter().any(|one| one.worker.id == exit.worker.id);
            let _ = log.write_all(format!("known gone {} {is_known}\n", exit.worker.id).as_bytes());
        }
        if let ClusterEvent::Scaled { .. } = event
            && let Ok(commands) = fs::read_to_string("commands")
        {
            let _ = fs::remove_file("commands");
            for command in commands.lines() {
                let outcome = run_command(primary, command).unwrap_or_else(|e| e.to_string());
                let _ = log.write_all(format!("did {command}: {outcome}\n").as_bytes());
            }
        }
        panic_or_block();
    };
    let outside = format!("outside {:?} {}", Worker::current(), is_worker());
    Cluster::new(arguments.config).on_event(hook).on_restart(restart_unless_vetoed).serve(
        move |worker: Worker| {
            let outside = outside.clone();
            async move {
                Ok(service_fn(move |request: Request<Incoming>| {
                    handle_request(
                        worker.clone(),
                        request.uri().path().to_string(),
                        outside.clone(),
                    )
                }))
            }
        },
    )
}

#[expect(clippy::panic, reason = "a panic is what this is about")]
fn panic_or_block() {
    if fs::remove_file("slow").is_ok() {
        let until = Instant::now() + Duration::from_millis(150);
        while Instant::now() < until {
            std::thread::yield_now();
        }
    }
    if fs::remove_file("panic").is_ok() {
        panic!("the hook has had enough");
    }
}

fn restart_unless_vetoed(exit: &WorkerExit) -> RestartDecision {
    let Ok(veto) = fs::read_to_string("veto") else { return RestartDecision::Restart };
    if exit.exited_after_disconnect {
        return RestartDecision::Restart;
    }
    match veto.trim().parse() {
        Ok(millis) => RestartDecision::After(Duration::from_millis(millis)),
        Err(_) => RestartDecision::LeaveEmpty,
    }
}

fn format_event(event: &ClusterEvent) -> String {
    match event {
        ClusterEvent::Listening { worker, addresses, .. } => {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            format!("{} listening {}", worker.id, addresses.join(","))
        }
        ClusterEvent::Exit(exit) => {
            let WorkerExit { worker, code, signal, reason, exited_after_disconnect, .. } = exit;
            let asked = exited_after_disconnect;
            format!("{} exit {code:?} {signal:?} {reason:?} asked={asked}", worker.id)
        }
        ClusterEvent::Replaced { worker, by, .. } => format!("{worker} replaced {}", by.id),
        ClusterEvent::Fork { worker, .. } => format!("{} fork", worker.id),
        ClusterEvent::Online { worker, .. } => format!("{} online", worker.id),
        ClusterEvent::Disconnect { worker, .. } => format!("{} disconnect", worker.id),
        ClusterEvent::Refused { command, reason, .. } => format!("refused {command}: {reason}"),
        other => other.to_string(),
    }
}

fn run_command(primary: &mut PrimaryHandle<'_>, command: &str) -> Result<String> {
    let bad = || Error::application("command", command);
    let words: Vec<&str> = command.split(' ').collect();
    let number = |n: usize| words.get(n).and_then(|word| word.parse::<u32>().ok()).ok_or_else(bad);
    match words[0] {
        "kill" => primary.kill(WorkerId(number(1)?.into()), number(2)? as i32)?,
        "disconnect" => primary.disconnect(WorkerId(number(1)?.into())),
        "scale" => primary.scale(number(1)?),
        "reload" => primary.reload(),
        "stop" => primary.stop(),
        "exit" => std::process::exit(number(1)? as i32),
        "command" => {
            let ended = std::process::Command::new("sh").args(["-c", "exit 7"]).status();
            return Ok(format!("{:?}", ended.map_err(|e| Error::application("sh", e))?.code()));
        }
        "config" => return Ok(primary.config().dispatch().to_string()),
        "workers" => {
            let workers = primary.workers();
            let states =
                workers.iter().map(|w| format!("{}/{}/{}", w.worker.id, w.worker.slot, w.state));
            return Ok(states.collect::<Vec<_>>().join(" "));
        }
        "fork" => {
            let pairs = words[1..].iter().map(|word| word.split_once('=').unwrap_or((word, "")));
            return primary.fork_with(pairs).map(|id| format!("worker {id}"));
        }
        _ => return Err(bad()),
    }
    Ok("ok".to_string())
}

async fn handle_request(
    worker: Worker,
    path: String,
    outside: String,
) -> Result<Response<Full<Bytes>>, BoxError> {
    let text = match path.split('/').skip(1).collect::<Vec<_>>()[..] {
        ["exit", code] => std::process::exit(code.parse()?),
        ["disconnect"] => {
            Worker::current().ok_or("no worker here")?.disconnect();
            format!("{}", worker.is_draining())
        }
        ["current"] => {
            let here = Worker::current().map(|worker| worker.id());
            let there = std::thread::spawn(|| Worker::current().map(|worker| worker.id())).join();
            format!("{here:?} {there:?} {} {} {outside}", is_worker(), worker.is_connected())
        }
        ["env", name] => {
            format!("{} {}", worker.slot(), std::env::var(name).unwrap_or_default())
        }
        ["child"] => {
            let script = "readlink /proc/self/fd/*; grep -E 'SigBlk|SigIgn' /proc/self/status; env | cut -d = -f 1";
            let output = std::process::Command::new("sh").args(["-c", script]).output()?;
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        ["poll"] => {
            fs::write("waiting", "")?;
            worker.draining().await;
            "goodbye".to_string()
        }
        ["hang"] => {
            fs::write("waiting", "")?;
            std::future::pending().await
        }
        _ => format!("{} {}", worker.id(), worker.pid()),
    };
    Ok(Response::new(Full::new(Bytes::from(text))))
}
