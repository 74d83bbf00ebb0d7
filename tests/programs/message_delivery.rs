//! An application that sends numbered jobs to a consumer, which reports those that it has done to the primary.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::Write;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use serde::{Deserialize, Serialize};
use tokio_prefork::{
    BoxError, Cluster, Message, MessageError, Result, Slot, Worker, WorkerId, WorkerKind,
};

use super::ProgramArguments;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a consumer works on a job.
const JOB_DURATION: Duration = Duration::from_millis(3);

/// Of a type that only an encoding that describes itself can decode.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Job {
    Number {
        number: u32,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        pad: Option<String>,
    },
    Hold,
}

/// `consumers=N` consumers. The numbers of done jobs are in the file `done`, kinds without a function in `/others`.
pub(super) fn message_delivery(arguments: ProgramArguments) -> Result<()> {
    let consumers = arguments.value("consumers")?.parse().unwrap_or(1);
    let others = Rc::new(RefCell::new(Vec::<String>::new()));
    let other_list = Rc::clone(&others);
    Cluster::new(arguments.config)
        .kind(WorkerKind::new("consumer", consumers), consume)
        .on_message("done", |_, _, message| {
            let number = message.decode::<u32>().unwrap_or(u32::MAX);
            // In a file, which outlives the memory of the primary over an upgrade.
            let file = OpenOptions::new().create(true).append(true).open("done");
            if let Err(e) = file.and_then(|mut file| writeln!(file, "{number}")) {
                log::error!("cannot write: {e}");
            }
        })
        .on_message("never", |_, _, _| log::info!("a request is not answered"))
        .on_message("list", move |primary, _, message| {
            if let Some(to) = message.reply_to() {
                log_error(primary.reply(&to, &*other_list.borrow()));
            }
        })
        .on_message("requests-from-primary", |primary, _, message| {
            let (slot, number): (u32, u32) = message.decode().unwrap_or_default();
            let job = Job::Number { number, pad: None };
            let sent =
                primary.request(Slot(slot), "job", &job, REQUEST_TIMEOUT, |primary, reply| {
                    let text = reply.map_or_else(|e| format!("{e:?}"), |reply| text_of(&reply));
                    log::info!("reply to the primary: {text}");
                    let _ = primary;
                });
            log_error(sent);
        })
        .on_any_message(move |_, _, message| others.borrow_mut().push(message.kind().to_string()))
        .serve(|worker: Worker| async move {
            let mut any = worker.open_any_inbox();
            let sender = worker.clone();
            tokio::task::spawn_local(async move {
                while let Some(message) = any.recv().await {
                    let kind = format!("web {}", message.kind());
                    log_error(sender.send(&kind, message.payload().clone()).await);
                }
            });
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

fn log_error(sent: std::result::Result<(), MessageError>) {
    if let Err(e) = sent {
        log::warn!("cannot send: {e}");
    }
}

fn text_of(message: &Message) -> String {
    message.decode().unwrap_or_else(|e| e.to_string())
}

/// The loop of the documentation of `Cluster::kind`: it does not look at its inbox once the worker drains.
async fn consume(worker: Worker) -> std::result::Result<(), BoxError> {
    let mut jobs = worker.open_inbox("job");
    loop {
        tokio::select! {
            Some(job) = jobs.recv() => run_job(&worker, &job).await?,
            () = worker.draining() => return Ok(()),
        }
    }
}

async fn run_job(worker: &Worker, message: &Message) -> std::result::Result<(), BoxError> {
    match message.decode()? {
        Job::Hold => std::future::pending().await,
        Job::Number { number, .. } => {
            let work = std::future::pending::<()>();
            let _ = tokio::time::timeout(JOB_DURATION, work).await;
            worker.send("done", &number).await?;
            if let Some(to) = message.reply_to() {
                worker.reply(&to, format!("{number} by worker {}", worker.id()))?;
            }
        }
    }
    Ok(())
}

async fn list(worker: &Worker) -> std::result::Result<String, MessageError> {
    let reply = worker.request("list", &(), REQUEST_TIMEOUT).await?;
    Ok(reply.decode::<Vec<String>>()?.join(" "))
}

async fn run_path(worker: &Worker, path: &str) -> std::result::Result<String, MessageError> {
    let words: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<u32>().ok()).unwrap_or(0);
    let consumer = worker.slot_of_kind("consumer", 0).unwrap_or(worker.slot());
    let job = |number, pad: usize| {
        let pad = (pad > 0).then(|| "x".repeat(pad));
        Job::Number { number, pad }
    };
    match words[0] {
        "jobs" => {
            for n in number(1)..number(2) {
                worker.send_to(consumer, "job", &job(n, number(3) as usize)).await?;
            }
        }
        "hold" => worker.send_to(consumer, "job", &Job::Hold).await?,
        "request" => {
            let job = job(number(1), 0);
            let reply = worker.request_to(consumer, "job", &job, REQUEST_TIMEOUT).await?;
            return Ok(text_of(&reply));
        }
        "request-id" => {
            let id = WorkerId(number(1).into());
            let reply = worker.request_to(id, "job", &job(1, 0), REQUEST_TIMEOUT).await?;
            return Ok(text_of(&reply));
        }
        "request-from-primary" => {
            worker.send("requests-from-primary", &(consumer.0, number(1))).await?;
        }
        "to-web" => worker.send_to(Slot(number(1)), words[1], &"hello").await?,
        "bye" => {
            for n in 0..number(1) {
                worker.send("done", &n).await?;
            }
            std::process::exit(0);
        }
        "flood-and-exit" => {
            // More than the socket takes at once.
            for n in 0..number(1) {
                worker.send("done", &n).await?;
                worker.send("padding", vec![0; 20_000]).await?;
            }
            worker.flush(REQUEST_TIMEOUT).await?;
            std::process::exit(0);
        }
        "never" => worker.request("never", &(), REQUEST_TIMEOUT).await.map(drop)?,
        "others" => return list(worker).await,
        "others-after-drain" => {
            worker.draining().await;
            return list(worker).await;
        }
        _ => return Ok(format!("worker {}", worker.id())),
    }
    Ok("sent".to_string())
}
