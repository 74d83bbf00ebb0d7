//! Workers that write random bytes where they should not, for as long as they live.

use std::convert::Infallible;
use std::fs::{self, OpenOptions};
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use nix::sys::socket::{MsgFlags, send};
use tokio_prefork::{Cluster, MailError, Result, Worker};

use super::Told;

const SOON: Duration = Duration::from_secs(20);

/// `/pages` and `/channels` make the worker that answers a vandal; `/` has the primary echo 100 000 bytes.
pub(super) fn vandals(told: Told) -> Result<ExitCode> {
    Cluster::new(told.config)
        .on_message("echo", |primary, _, message| {
            let Some(to) = message.reply_to() else { return };
            // The answer may have no room where nobody reads; who asked is told by its deadline.
            let _ = primary.reply(&to, message.bytes().clone());
        })
        .serve(|worker: Worker| async move {
            Ok(service_fn(move |request: Request<Incoming>| {
                let (worker, path) = (worker.clone(), request.uri().path().to_string());
                let mut dice = u64::from(worker.pid()) | 1;
                async move {
                    let text = match path.as_str() {
                        "/pages" => vandal(move || write_pages(&mut dice)),
                        "/channels" => vandal(move || write_channels(&mut dice)),
                        _ => echo(&worker).await.unwrap_or_else(|e| e.to_string()),
                    };
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                }
            }))
        })
}

async fn echo(worker: &Worker) -> std::result::Result<String, MailError> {
    let payload: Bytes = vec![7; 100_000].into();
    let same = worker.request("echo", payload.clone(), SOON).await?.bytes() == &payload;
    Ok(format!("same: {same}, slot {}", worker.slot()))
}

fn vandal(mut rage: impl FnMut() + 'static) -> String {
    tokio::task::spawn_local(async move {
        loop {
            rage();
            tokio::task::yield_now().await;
        }
    });
    "rages".to_string()
}

fn random(dice: &mut u64, bytes: usize) -> Vec<u8> {
    let next = |dice: &mut u64| {
        *dice ^= *dice << 13;
        *dice ^= *dice >> 7;
        *dice ^= *dice << 17;
        dice.to_le_bytes()
    };
    (0..bytes.div_ceil(8)).flat_map(|_| next(dice)).take(bytes).collect()
}

/// All memory that this worker may write and shares with anybody.
fn write_pages(dice: &mut u64) {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let memory = OpenOptions::new().write(true).open("/proc/self/mem").expect("memory");
    for line in maps.lines().filter(|line| line.contains(" rw-s ")) {
        let (range, _) = line.split_once(' ').expect("a range");
        let (from, to) = range.split_once('-').expect("two ends");
        let [from, to] = [from, to].map(|end| u64::from_str_radix(end, 16).expect("a number"));
        let bytes = random(dice, (to - from) as usize);
        // Some of it may be without memory behind it.
        let _ = memory.write_at(&bytes, from);
    }
}

/// Our ends of the pairs that lead to the primary.
fn write_channels(dice: &mut u64) {
    let is_socket = |fd: &RawFd| {
        fs::read_link(format!("/proc/self/fd/{fd}"))
            .is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    };
    for fd in (3..64).filter(is_socket) {
        let length = 1 + random(dice, 2)[0] as usize * 16;
        // A listener takes none, a full pair no more, and somebody else's end is closed by then.
        let _ = send(fd, &random(dice, length), MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }
}
