//! The primary asks its workers what the path of a request says, and passes the answer on.

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{Cluster, MailError, PrimaryHandle, ReplyTo, Result, Slot, Worker};

use super::Told;

const SOON: Duration = Duration::from_secs(20);

/// `/SLOT/KIND/LIMIT` has the primary ask that slot, for so many milliseconds, and anything else says how many answers
/// came too late.
pub(super) fn asks(told: Told) -> Result<ExitCode> {
    Cluster::new(told.config)
        .on_message("ask", |primary, _, message| {
            let Some(to) = message.reply_to() else { return };
            let asked = message.decode::<(u32, String, u64)>();
            let sent = asked.and_then(|(slot, kind, limit)| {
                let (limit, then) = (Duration::from_millis(limit), to.clone());
                primary.request(Slot(slot), &kind, &(), limit, move |primary, answer| {
                    let text = answer.and_then(|message| message.decode::<String>());
                    tell(primary, &then, &text.unwrap_or_else(|e| format!("{e:?}")));
                })
            });
            if let Err(e) = sent {
                tell(primary, &to, &format!("not asked: {e:?}"));
            }
        })
        .on_message("late", |primary, _, message| {
            let Some(to) = message.reply_to() else { return };
            let late = primary.late_replies().to_string();
            tell(primary, &to, &late);
        })
        .serve(|worker: Worker| async move {
            tokio::task::spawn_local(who(worker.clone()));
            tokio::task::spawn_local(before(worker.clone()));
            tokio::task::spawn_local(die(worker.clone()));
            Ok(service_fn(move |request: Request<Incoming>| {
                let worker = worker.clone();
                async move {
                    let said = ask(&worker, request.uri().path()).await;
                    let said = said.unwrap_or_else(|e| format!("{e:?}"));
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(said))))
                }
            }))
        })
}

fn tell(primary: &mut PrimaryHandle<'_>, to: &ReplyTo, text: &str) {
    if let Err(e) = primary.reply(to, text) {
        log::error!("cannot answer: {e}");
    }
}

async fn ask(worker: &Worker, path: &str) -> std::result::Result<String, MailError> {
    let number = |text: &str| text.parse::<u64>().unwrap_or_default();
    match path.split('/').skip(1).collect::<Vec<_>>()[..] {
        [slot, kind, limit] => {
            let asked = (number(slot) as u32, kind.to_string(), number(limit));
            worker.request("ask", &asked, SOON).await?.decode()
        }
        _ => worker.request("late", &(), SOON).await?.decode(),
    }
}

async fn who(worker: Worker) {
    let mut inbox = worker.recv("who");
    while let Some(to) = inbox.recv().await.and_then(|message| message.reply_to()) {
        // Twice: the second answer has nobody who waits for it.
        let text = format!("slot {}", worker.slot());
        let _ = worker.reply(&to, &text).and_then(|()| worker.reply(&to, "again"));
    }
}

/// Answers the request before, each time.
async fn before(worker: Worker) {
    let mut inbox = worker.recv("before");
    let mut kept: Option<ReplyTo> = None;
    while let Some(to) = inbox.recv().await.and_then(|message| message.reply_to()) {
        if let Some(before) = kept.replace(to) {
            let _ = worker.reply(&before, "late");
        }
    }
}

async fn die(worker: Worker) {
    let mut inbox = worker.recv("die");
    if inbox.recv().await.is_some() {
        std::process::exit(37);
    }
}
