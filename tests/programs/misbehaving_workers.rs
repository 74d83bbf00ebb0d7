//! Workers that write garbage where they should not, for as long as they live.

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

/// What steers a terminal or forges a line, where it is shown raw.
const RAW: &[u8] = b"\x1b[2J\x9b\xc2\x9b\r\nforged\xe2\x80\xae";

/// Makes the worker that answers a vandal: `/pages?SEED` and `/channels?SEED` with random bytes, `/garbage?SEED` with
/// bytes that are never a message. `/says` claims over the channel that the boot failed, for raw reasons, `/panics`
/// panics with raw text; `/` has the primary echo 100 000 bytes.
pub(super) fn vandals(told: Told) -> Result<ExitCode> {
    // It would write the text of a panic raw; what the library logs of it is tested.
    std::panic::set_hook(Box::new(|_| {}));
    Cluster::new(told.config)
        .on_message("echo", |primary, _, message| {
            let Some(to) = message.reply_to() else { return };
            // The answer may have no room where nobody reads; who asked is told by its deadline.
            let _ = primary.reply(&to, message.bytes().clone());
        })
        .serve(|worker: Worker| async move {
            Ok(service_fn(move |request: Request<Incoming>| {
                let (worker, path) = (worker.clone(), request.uri().path().to_string());
                let seed = request.uri().query().and_then(|seed| seed.parse().ok()).unwrap_or(1);
                // Neighbouring seeds begin far apart, and none is 0.
                let mut dice = (seed ^ 0x9e37_79b9_7f4a_7c15_u64).max(1);
                async move {
                    let text = match path.as_str() {
                        "/pages" => vandal(move || write_pages(&mut dice)),
                        "/channels" => vandal(move || {
                            write_channels(|length| random(&mut dice, length));
                        }),
                        "/garbage" => vandal(move || {
                            write_channels(|length| never_a_message(&mut dice, length));
                        }),
                        "/says" => vandal(|| write_channels(|_| [&[0x02], RAW].concat())),
                        "/panics" => panic!("{}", String::from_utf8_lossy(RAW)),
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

/// Random bytes behind a first one that begins no message to the primary, on neither channel.
fn never_a_message(dice: &mut u64, length: usize) -> Vec<u8> {
    let mut bytes = random(dice, length);
    bytes[0] = 0x7f;
    bytes
}

/// Into our ends of the pairs that lead to the primary, up to 4081 bytes.
fn write_channels(mut bytes: impl FnMut(usize) -> Vec<u8>) {
    let mut lengths = (1..4096).step_by(16).cycle();
    let is_socket = |fd: &RawFd| {
        fs::read_link(format!("/proc/self/fd/{fd}"))
            .is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    };
    for fd in (3..64).filter(is_socket) {
        let bytes = bytes(lengths.next().unwrap_or(1));
        // A listener takes none, a full pair no more, and somebody else's end is closed by then.
        let _ = send(fd, &bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }
}
