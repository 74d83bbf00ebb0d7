//! Workers of two kinds: those that serve do what the path of a request says, and consumers take jobs.

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{Cluster, Error, Kind, MailError, PrimaryHandle, Result, Worker};

use super::Told;

/// A job that went to a process that was just killed is asked for anew.
const SOON: Duration = Duration::from_secs(2);

/// `consumers=N` of them, and `age-ms=N` if they are to be recycled. A worker of the other kind `fragile` ends before it is
/// ready while the file `broken` is there.
pub(super) fn kinds(told: Told) -> Result<ExitCode> {
    let number =
        |key| told.value(key)?.parse::<u32>().map_err(|_| Error::application(key, "number"));
    let mut consumers = Kind::new("consumer", number("consumers")?);
    if let Ok(age) = number("age-ms") {
        consumers = consumers.max_lifetime(Duration::from_millis(age.into()));
    }
    let fragile = Kind::new("fragile", number("fragile").unwrap_or(0));
    Cluster::new(told.config)
        .kind(consumers, |worker: Worker| async move {
            if std::fs::metadata("broken").is_ok() {
                return Err(Error::application("boot", "broken"));
            }
            consume(worker).await
        })
        .kind(fragile, |worker: Worker| async move {
            let mut end = worker.recv("end");
            tokio::select! {
                Some(_) = end.recv() => Ok(()),
                () = worker.draining() => Ok(()),
            }
        })
        .on_message("more", |primary, _, message| {
            let more = more(primary);
            if let Some(to) = message.reply_to() {
                let _ = primary.reply(&to, &more);
            }
        })
        .serve(|worker: Worker| async move {
            Ok(service_fn(move |request: Request<Incoming>| {
                let worker = worker.clone();
                async move {
                    let path = request.uri().path().to_string();
                    let said = obey(&worker, &path).await.unwrap_or_else(|e| format!("{e:?}"));
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(said))))
                }
            }))
        })
}

/// One consumer more, with a variable of its own.
fn more(primary: &mut PrimaryHandle<'_>) -> String {
    match primary.fork_kind_with("consumer", [("TASTE", "sweet")]) {
        Ok(id) => format!("worker {id}"),
        Err(e) => e.to_string(),
    }
}

/// Answers each job with who did it; `hang` is a job that never ends.
async fn consume(worker: Worker) -> Result<()> {
    let mut jobs = worker.recv("job");
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
        let said =
            format!("{what} by {} {} {} {taste}", worker.kind(), worker.slot(), worker.pid());
        if let Some(to) = job.reply_to() {
            let _ = worker.reply(&to, &said);
        }
    }
}

async fn obey(worker: &Worker, path: &str) -> std::result::Result<String, MailError> {
    let words: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match words.as_slice() {
        ["job", n, what] => {
            let n = n.parse().unwrap_or(0);
            let Some(slot) = worker.slot_of_kind("consumer", n) else {
                return Ok("no such kind".to_string());
            };
            worker.request_to(slot, "job", *what, SOON).await?.decode()
        }
        ["throw", what] => {
            let slot = worker.slot_of_kind("consumer", 0).unwrap_or(worker.slot());
            worker.send_to(slot, "job", *what).await.map(|()| "thrown".to_string())
        }
        ["end"] => {
            let slot = worker.slot_of_kind("fragile", 0).unwrap_or(worker.slot());
            worker.send_to(slot, "end", "now").await.map(|()| "told".to_string())
        }
        ["more"] => worker.request("more", "", SOON).await?.decode(),
        _ => Ok(format!("{} {}", worker.kind(), worker.pid())),
    }
}
