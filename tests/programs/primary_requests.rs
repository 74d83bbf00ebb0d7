//! An application whose primary sends requests to its workers, as the path of an HTTP request asks.

use std::convert::Infallible;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{Cluster, MessageError, PrimaryHandle, ReplyTo, Result, Slot, Worker};

use super::ProgramArguments;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// `/SLOT/KIND/MILLISECONDS` lets the primary send a request of this kind with this timeout to that slot; any other path
/// returns the number of late replies.
pub(super) fn primary_requests(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config)
        .on_message("ask", |primary, _, message| {
            let Some(to) = message.reply_to() else { return };
            let asked = message.decode::<(u32, String, u64)>();
            let sent = asked.and_then(|(slot, kind, limit)| {
                let (limit, then) = (Duration::from_millis(limit), to.clone());
                primary.request(Slot(slot), &kind, &(), limit, move |primary, answer| {
                    let text = answer.and_then(|message| message.decode::<String>());
                    reply_text(primary, &then, &text.unwrap_or_else(|e| format!("{e:?}")));
                })
            });
            if let Err(e) = sent {
                reply_text(primary, &to, &format!("not sent: {e:?}"));
            }
        })
        .on_message("late", |primary, _, message| {
            let Some(to) = message.reply_to() else { return };
            let late = primary.late_replies().to_string();
            reply_text(primary, &to, &late);
        })
        .serve(|worker: Worker| async move {
            tokio::task::spawn_local(reply_twice(worker.clone()));
            tokio::task::spawn_local(reply_to_previous(worker.clone()));
            tokio::task::spawn_local(exit_on_message(worker.clone()));
            Ok(service_fn(move |request: Request<Incoming>| {
                let worker = worker.clone();
                async move {
                    let answer = run_path(&worker, request.uri().path()).await;
                    let answer = answer.unwrap_or_else(|e| format!("{e:?}"));
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer))))
                }
            }))
        })
}

fn reply_text(primary: &mut PrimaryHandle<'_>, to: &ReplyTo, text: &str) {
    if let Err(e) = primary.reply(to, text) {
        log::error!("cannot answer: {e}");
    }
}

async fn run_path(worker: &Worker, path: &str) -> std::result::Result<String, MessageError> {
    let number = |text: &str| text.parse::<u64>().unwrap_or_default();
    match path.split('/').skip(1).collect::<Vec<_>>()[..] {
        [slot, kind, limit] => {
            let asked = (number(slot) as u32, kind.to_string(), number(limit));
            worker.request("ask", &asked, REQUEST_TIMEOUT).await?.decode()
        }
        _ => worker.request("late", &(), REQUEST_TIMEOUT).await?.decode(),
    }
}

async fn reply_twice(worker: Worker) {
    let mut inbox = worker.open_inbox("who");
    while let Some(to) = inbox.recv().await.and_then(|message| message.reply_to()) {
        // The second reply comes too late.
        let text = format!("slot {}", worker.slot());
        let _ = worker.reply(&to, &text).and_then(|()| worker.reply(&to, "again"));
    }
}

/// Replies to the previous request at each request.
async fn reply_to_previous(worker: Worker) {
    let mut inbox = worker.open_inbox("before");
    let mut kept: Option<ReplyTo> = None;
    while let Some(to) = inbox.recv().await.and_then(|message| message.reply_to()) {
        if let Some(before) = kept.replace(to) {
            let _ = worker.reply(&before, "late");
        }
    }
}

async fn exit_on_message(worker: Worker) {
    let mut inbox = worker.open_inbox("die");
    if inbox.recv().await.is_some() {
        std::process::exit(37);
    }
}
