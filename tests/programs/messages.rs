//! An application that sends messages, requests and connections as the paths of HTTP requests ask.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use nix::sys::socket::{MsgFlags, send};
use tokio_prefork::{
    Cluster, Message, MessageError, MessageLimits, MessageSender, ReplyTo, Result,
};
use tokio_prefork::{Slot, Worker, WorkerId};

use super::ProgramArguments;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) fn messages(arguments: ProgramArguments) -> Result<()> {
    let notes: Rc<RefCell<Vec<String>>> = Rc::default();
    let all = Rc::clone(&notes);
    let mut kept: Option<ReplyTo> = None;
    Cluster::new(arguments.config)
        .message_limits(
            MessageLimits::default().max_message_bytes(1 << 20).queue_bounds(8 << 20, 64),
        )
        .on_message("note", move |_, from, message| {
            let text: String = message.decode().unwrap_or_else(|e| e.to_string());
            notes.borrow_mut().push(format!("{}: {text}", from.slot));
        })
        .on_message("notes", move |primary, _, message| {
            log_reply_error(primary.reply(&reply_target(&message), &*all.borrow()));
        })
        .on_message("echo", |primary, _, message| {
            log_reply_error(primary.reply(&reply_target(&message), message.bytes().clone()));
        })
        // Replies to the previous request.
        .on_message("late", move |primary, _, message| {
            let before = kept.replace(reply_target(&message));
            before.iter().for_each(|before| log_reply_error(primary.reply(before, &1)));
        })
        .on_message("shout", |primary, _, message| {
            let sent = primary.broadcast("direct", "news").unwrap_or(0);
            log_reply_error(primary.reply(&reply_target(&message), &sent));
        })
        // Sends the connection back, with its payload.
        .on_message("travel", |primary, from, mut message| {
            let Some(connection) = message.take_connection() else { return };
            let payload = message.bytes().clone();
            if let Err(e) = primary.send_connection(from.id, "guest", payload, connection) {
                log::error!("cannot send a connection back: {e}");
            }
        })
        .on_message("sink", |_, _, _| {})
        .on_message("say", |_, from, message| {
            let text = message.decode::<String>().unwrap_or_else(|e| e.to_string());
            log::info!("slot {} sent {text}", from.slot);
        })
        .on_message("panic", |_, _, _| panic_in_handler())
        .on_message("slow", |_, _, _| block_for(Duration::from_millis(150)))
        .serve(|worker: Worker| async move {
            tokio::task::spawn_local(forward_direct_messages(worker.clone()));
            tokio::task::spawn_local(reply_with_slot(worker.clone()));
            tokio::task::spawn_local(serve_passed_connections(worker.clone()));
            Ok(service_fn(move |request: Request<Incoming>| {
                let worker = worker.clone();
                async move {
                    let path = request.uri().path().trim_start_matches('/').to_string();
                    let words: Vec<&str> = path.split('/').collect();
                    let answer =
                        run_path(&worker, &words).await.unwrap_or_else(|e| format!("{e:?}"));
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer))))
                }
            }))
        })
}

#[expect(clippy::panic, reason = "a panic is what this is about")]
fn panic_in_handler() {
    panic!("the function fails");
}

fn block_for(span: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < span {
        std::hint::spin_loop();
    }
}

fn reply_target(message: &Message) -> ReplyTo {
    message.reply_to().expect("a request")
}

fn log_reply_error(sent: std::result::Result<(), MessageError>) {
    if let Err(e) = sent {
        log::error!("cannot answer: {e}");
    }
}

async fn forward_direct_messages(worker: Worker) {
    let mut inbox = worker.open_inbox("direct");
    while let Some(message) = inbox.recv().await {
        let text: String = message.decode().unwrap_or_else(|e| e.to_string());
        let from = match message.from() {
            MessageSender::Primary => "the primary".to_string(),
            MessageSender::Worker(id) => format!("worker {id}"),
        };
        let _ = worker.send("note", &format!("{text} from {from}")).await;
    }
}

async fn reply_with_slot(worker: Worker) {
    let mut inbox = worker.open_inbox("who");
    while let Some(message) = inbox.recv().await {
        log_reply_error(
            worker.reply(&reply_target(&message), format!("{} {}", worker.slot(), worker.id())),
        );
    }
}

/// Writes the length and sum of the payload and the own slot to each received connection.
async fn serve_passed_connections(worker: Worker) {
    let mut inbox = worker.open_inbox("guest");
    while let Some(mut message) = inbox.recv().await {
        let Some(connection) = message.take_connection() else { continue };
        let mut stream = UnixStream::from(OwnedFd::from(connection));
        let sum: u64 = message.bytes().iter().map(|byte| u64::from(*byte)).sum();
        let _ = write!(stream, "{} {sum} {}", message.bytes().len(), worker.slot());
    }
}

/// Returns the descriptor of the message channel: the higher one of the two channels, as it is created second.
fn message_channel() -> RawFd {
    let table = std::fs::read_to_string("/proc/net/unix").expect("table");
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // 0005 is SOCK_SEQPACKET.
    let pairs: Vec<String> = fields
        .filter(|fields| fields.get(4) == Some(&"0005"))
        .map(|fields| format!("socket:[{}]", fields[6]))
        .collect();
    let is_channel = |fd: &RawFd| {
        let link = std::fs::read_link(format!("/proc/self/fd/{fd}"));
        link.is_ok_and(|link| pairs.iter().any(|pair| *pair == link.to_string_lossy()))
    };
    (3..64).filter(is_channel).max().expect("a channel")
}

fn write_raw_frame(bytes: &[u8]) {
    send(message_channel(), bytes, MsgFlags::MSG_DONTWAIT).expect("room");
}

/// Sends `count` connections, each with a payload of `size` bytes, and returns what is read from them.
async fn send_connections(
    worker: &Worker,
    slot: Option<u32>,
    count: usize,
    size: usize,
) -> std::result::Result<String, MessageError> {
    let payload: Bytes = vec![1; size].into();
    let mut ends = Vec::new();
    for _ in 0..count {
        let (near, far) = UnixStream::pair().expect("pair");
        let sent = match slot {
            Some(slot) => {
                worker.send_connection_to(Slot(slot), "guest", payload.clone(), far).await
            }
            None => worker.send_connection("travel", payload.clone(), far).await,
        };
        sent.map_err(|unsent| unsent.error)?;
        ends.push(near);
    }
    let read = |mut end: UnixStream| {
        let mut text = String::new();
        end.read_to_string(&mut text).map(|_| text).unwrap_or_else(|e| e.to_string())
    };
    // Blocking reads need a thread, as this worker has to serve meanwhile.
    let all = tokio::task::spawn_blocking(move || ends.into_iter().map(read).collect::<Vec<_>>());
    let all = all.await.expect("joined");
    let same = all.iter().all(|one| *one == all[0]);
    Ok(if same { format!("{} x {}", all.len(), all[0]) } else { all.join(", ") })
}

async fn run_path(worker: &Worker, words: &[&str]) -> std::result::Result<String, MessageError> {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    match words {
        ["slot"] => return Ok(format!("{} {}", worker.slot(), worker.id())),
        ["note", text] => worker.send("note", text).await?,
        ["notes"] => {
            let notes: Vec<String> =
                worker.request("notes", &(), REQUEST_TIMEOUT).await?.decode()?;
            return Ok(notes.join(", "));
        }
        ["echo", size] => {
            let payload: Bytes = vec![7; number(size) as usize].into();
            let same =
                worker.request("echo", payload.clone(), REQUEST_TIMEOUT).await?.bytes() == &payload;
            return Ok(format!("same: {same}"));
        }
        ["late"] => {
            worker.request("late", &(), Duration::from_millis(50)).await?;
        }
        ["late-count"] => return Ok(worker.late_replies().to_string()),
        ["ask", kind] => {
            worker.request(kind, &(), REQUEST_TIMEOUT).await?;
        }
        ["shout"] => {
            return Ok(worker
                .request("shout", &(), REQUEST_TIMEOUT)
                .await?
                .decode::<usize>()?
                .to_string());
        }
        ["broadcast", kind] => worker.broadcast(kind, "hello").await?,
        ["to", "slot", n, text] => {
            worker.send_to(Slot(number(n) as u32), "direct", text).await?;
        }
        ["to", "id", n, text] => worker.send_to(WorkerId(number(n)), "direct", text).await?,
        ["who", n] => {
            let slot = Slot(number(n) as u32);
            return worker.request_to(slot, "who", &(), REQUEST_TIMEOUT).await?.decode();
        }
        ["full"] => {
            // The primary does not read while it handles these.
            for _ in 0..4 {
                worker.send("slow", &()).await?;
            }
            let full = (0..1_000_000).find_map(|_| worker.try_send("sink", &1).err());
            worker.send("sink", &1).await?;
            return Ok(format!("{full:?}"));
        }
        ["too-large"] => worker.try_send("sink", vec![0; 2 << 20])?,
        _ => return run_connection_path(worker, words).await,
    }
    Ok("done".to_string())
}

/// Runs paths that pass connections or write invalid frames.
async fn run_connection_path(
    worker: &Worker,
    words: &[&str],
) -> std::result::Result<String, MessageError> {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    match words {
        ["travel", size] => {
            return send_connections(worker, None, 1, number(size) as usize).await;
        }
        ["cross", slot, count] => {
            let (slot, count) = (number(slot) as u32, number(count) as usize);
            return send_connections(worker, Some(slot), count, 100_000).await;
        }
        ["untaken"] => {
            let (mut near, far) = UnixStream::pair().expect("pair");
            let sent = worker.send_connection("sink", &(), far).await;
            sent.map_err(|unsent| unsent.error)?;
            let end = tokio::task::spawn_blocking(move || near.read(&mut [0]).ok());
            return Ok(format!("{:?}", end.await.expect("joined")));
        }
        ["flood", slot] => {
            let (worker, slot) = (worker.clone(), Slot(number(slot) as u32));
            tokio::task::spawn_local(async move {
                while worker.send_to(slot, "unhandled", &1).await.is_ok()
                    && worker.send("sink", &1).await.is_ok()
                {}
            });
        }
        ["garbage"] => {
            let bytes: Vec<u8> = (0..1000).map(|i| (i * 131 % 251) as u8).collect();
            write_raw_frame(&bytes);
        }
        // A frame of an unknown type that may be skipped.
        ["newer"] => write_raw_frame(&[0x80, 0, 1, 0, 0, 0, 9]),
        // The beginning of a message of 800 000 bytes.
        ["half"] => write_raw_frame(&[2, 0, 5, 0, 0, 0, 0, 0x35, 0x0c, 0, 1]),
        ["hold"] => {
            worker.send("say", "holding").await?;
            worker.draining().await;
            worker.request("echo", &(), REQUEST_TIMEOUT).await?;
            worker.send("say", "bye").await?;
        }
        ["tell", kind] => worker.send(kind, &()).await?,
        _ => return Ok(format!("unknown path {words:?}")),
    }
    Ok("done".to_string())
}
