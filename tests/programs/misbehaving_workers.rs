//! An application whose workers write garbage into their channels and shared pages.

use std::convert::Infallible;
use std::fs::{self, OpenOptions};
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use nix::sys::socket::{MsgFlags, send};
use tokio_prefork::{Cluster, MessageError, Result, Worker};

use super::ProgramArguments;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Bytes that control a terminal or forge a log line if they are printed raw.
const CONTROL_BYTES: &[u8] = b"\x1b[2J\x9b\xc2\x9b\r\nforged\xe2\x80\xae";

/// Makes the worker that answers misbehave from then on.
///
/// `/pages?SEED` and `/channels?SEED` write random bytes, `/garbage?SEED` bytes that are never a message. `/logs` reports a
/// failed boot with control bytes, `/panics` panics with them. `/` lets the primary echo 100 000 bytes.
pub(super) fn misbehaving_workers(arguments: ProgramArguments) -> Result<()> {
    // The default hook would print the text of a panic raw.
    std::panic::set_hook(Box::new(|_| {}));
    Cluster::new(arguments.config)
        .on_message("echo", |primary, _, message| {
            let Some(to) = message.reply_to() else { return };
            // The reply may not fit into the queue of a worker that does not read; then the request times out.
            let _ = primary.reply(&to, message.bytes().clone());
        })
        .serve(|worker: Worker| async move {
            Ok(service_fn(move |request: Request<Incoming>| {
                let (worker, path) = (worker.clone(), request.uri().path().to_string());
                let seed = request.uri().query().and_then(|seed| seed.parse().ok()).unwrap_or(1);
                // Spreads neighbouring seeds, and avoids 0.
                let mut seed_state = (seed ^ 0x9e37_79b9_7f4a_7c15_u64).max(1);
                async move {
                    let text = match path.as_str() {
                        "/pages" => repeat_forever(move || write_pages(&mut seed_state)),
                        "/channels" => repeat_forever(move || {
                            write_channels(|length| random_bytes(&mut seed_state, length));
                        }),
                        "/garbage" => repeat_forever(move || {
                            write_channels(|length| invalid_message(&mut seed_state, length));
                        }),
                        "/logs" => {
                            repeat_forever(|| write_channels(|_| [&[0x02], CONTROL_BYTES].concat()))
                        }
                        "/panics" => panic!("{}", String::from_utf8_lossy(CONTROL_BYTES)),
                        _ => echo(&worker).await.unwrap_or_else(|e| e.to_string()),
                    };
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                }
            }))
        })
}

async fn echo(worker: &Worker) -> std::result::Result<String, MessageError> {
    let payload: Bytes = vec![7; 100_000].into();
    let same = worker.request("echo", payload.clone(), REQUEST_TIMEOUT).await?.bytes() == &payload;
    Ok(format!("same: {same}, slot {}", worker.slot()))
}

fn repeat_forever(mut misbehave: impl FnMut() + 'static) -> String {
    tokio::task::spawn_local(async move {
        loop {
            misbehave();
            tokio::task::yield_now().await;
        }
    });
    "started".to_string()
}

fn random_bytes(seed_state: &mut u64, bytes: usize) -> Vec<u8> {
    let next = |seed_state: &mut u64| {
        *seed_state ^= *seed_state << 13;
        *seed_state ^= *seed_state >> 7;
        *seed_state ^= *seed_state << 17;
        seed_state.to_le_bytes()
    };
    (0..bytes.div_ceil(8)).flat_map(|_| next(seed_state)).take(bytes).collect()
}

/// Overwrites all shared memory that this worker may write.
fn write_pages(seed_state: &mut u64) {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let memory = OpenOptions::new().write(true).open("/proc/self/mem").expect("memory");
    for line in maps.lines().filter(|line| line.contains(" rw-s ")) {
        let (range, _) = line.split_once(' ').expect("a range");
        let (from, to) = range.split_once('-').expect("two ends");
        let [from, to] = [from, to].map(|end| u64::from_str_radix(end, 16).expect("a number"));
        let bytes = random_bytes(seed_state, (to - from) as usize);
        // Some pages may not be backed.
        let _ = memory.write_at(&bytes, from);
    }
}

/// Returns random bytes after a first one that starts no valid message on either channel.
fn invalid_message(seed_state: &mut u64, length: usize) -> Vec<u8> {
    let mut bytes = random_bytes(seed_state, length);
    bytes[0] = 0x7f;
    bytes
}

/// Writes up to 4081 bytes to each channel to the primary.
fn write_channels(mut bytes: impl FnMut(usize) -> Vec<u8>) {
    let mut lengths = (1..4096).step_by(16).cycle();
    let is_socket = |fd: &RawFd| {
        fs::read_link(format!("/proc/self/fd/{fd}"))
            .is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    };
    for fd in (3..64).filter(is_socket) {
        let bytes = bytes(lengths.next().unwrap_or(1));
        // Listeners and full channels refuse the bytes.
        let _ = send(fd, &bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }
}
