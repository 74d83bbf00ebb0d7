//! An application with web workers and consumers: web workers pass the jobs in request paths to consumers.

use std::convert::Infallible;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{
    BoxError, Cluster, Error, MessageError, PrimaryHandle, Result, Worker, WorkerKind,
};

use super::ProgramArguments;

/// Timeout of a job; one that went to a process that was just killed is lost.
const JOB_TIMEOUT: Duration = Duration::from_secs(2);

/// `consumers=N` consumers with a maximum age of `age-ms=N`, and `fragile=N` workers of another kind. A consumer fails to
/// boot while the file `broken` exists.
pub(super) fn worker_kinds(arguments: ProgramArguments) -> Result<()> {
    let number =
        |key| arguments.value(key)?.parse::<u32>().map_err(|_| Error::application(key, "number"));
    let mut consumers = WorkerKind::new("consumer", number("consumers")?);
    if let Ok(age) = number("age-ms") {
        consumers = consumers.max_lifetime(Duration::from_millis(age.into()));
    }
    let fragile = WorkerKind::new("fragile", number("fragile").unwrap_or(0));
    Cluster::new(arguments.config)
        .kind(consumers, |worker: Worker| async move {
            if std::fs::metadata("broken").is_ok() {
                return Err("broken".into());
            }
            consume(worker).await
        })
        .kind(fragile, |worker: Worker| async move {
            let mut end = worker.open_inbox("end");
            tokio::select! {
                Some(_) = end.recv() => Ok(()),
                () = worker.draining() => Ok(()),
            }
        })
        .on_message("more", |primary, _, message| {
            let more = fork_consumer(primary);
            if let Some(to) = message.reply_to() {
                let _ = primary.reply(&to, &more);
            }
        })
        .serve(|worker: Worker| async move {
            Ok(service_fn(move |request: Request<Incoming>| {
                let worker = worker.clone();
                async move {
                    let path = request.uri().path().to_string();
                    let answer =
                        run_path(&worker, &path).await.unwrap_or_else(|e| format!("{e:?}"));
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer))))
                }
            }))
        })
}

/// Forks one more consumer with an environment variable of its own.
fn fork_consumer(primary: &mut PrimaryHandle<'_>) -> String {
    match primary.fork_kind_with("consumer", [("TASTE", "sweet")]) {
        Ok(id) => format!("worker {id}"),
        Err(e) => e.to_string(),
    }
}

/// Replies to each job with kind, slot and pid of this worker; the job `hang` never ends.
async fn consume(worker: Worker) -> Result<(), BoxError> {
    let mut jobs = worker.open_inbox("job");
    loop {
        let job = tokio::select! {
            Some(job) = jobs.recv() => job,
            () = worker.draining() => return Ok(()),
        };
        let what: String = job.decode().unwrap_or_default();
        if what == "hang" {
            log::info!("a job hangs");
            std::future::pending::<()>().await;
        }
        let taste = std::env::var("TASTE").unwrap_or_default();
        let answer =
            format!("{what} by {} {} {} {taste}", worker.kind(), worker.slot(), worker.pid());
        if let Some(to) = job.reply_to() {
            let _ = worker.reply(&to, &answer);
        }
    }
}

async fn run_path(worker: &Worker, path: &str) -> std::result::Result<String, MessageError> {
    let words: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match words.as_slice() {
        ["job", n, what] => {
            let n = n.parse().unwrap_or(0);
            let Some(slot) = worker.slot_of_kind("consumer", n) else {
                return Ok("no such kind".to_string());
            };
            worker.request_to(slot, "job", *what, JOB_TIMEOUT).await?.decode()
        }
        ["throw", what] => {
            let slot = worker.slot_of_kind("consumer", 0).unwrap_or(worker.slot());
            worker.send_to(slot, "job", *what).await.map(|()| "thrown".to_string())
        }
        ["end"] => {
            let slot = worker.slot_of_kind("fragile", 0).unwrap_or(worker.slot());
            worker.send_to(slot, "end", "now").await.map(|()| "sent".to_string())
        }
        ["more"] => worker.request("more", "", JOB_TIMEOUT).await?.decode(),
        _ => Ok(format!("{} {}", worker.kind(), worker.pid())),
    }
}
