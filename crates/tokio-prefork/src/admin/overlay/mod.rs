//! The overlay: a script for pages of the application, which shows the error of a failed build over the page, and loads the page again
//! when there is a new build.
//!
//! A page of another port includes it, so these two paths are the only ones of the admin listener that other origins may use: the
//! script, in which nothing is secret, and the stream of builds, for pages of this machine.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderValue, ORIGIN, VARY};
use hyper::{Method, Request, Response, StatusCode, Uri};
use tokio::sync::mpsc;

use super::AdminMemoryReader;
use super::access::is_local_name;
use super::handle_request::unavailable;
use super::process::AdminState;
use super::response::{AdminBody, response, with_common_headers};

/// The path of the script.
pub(crate) const SCRIPT_PATH: &str = "/overlay.js";

/// The path of the stream of builds, which the script follows.
pub(crate) const STREAM_PATH: &str = "/overlay/events";

const SCRIPT: &str = include_str!("overlay.js");

/// How many pages follow the builds at a time. Pages in the background do not.
const MAX_STREAMS: usize = 64;

/// How often to look for a new state.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How often a silent stream sends a comment, so that a page that is gone is noticed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Answers a request for one of the two paths. `None` for others, and while the program publishes no builds.
pub(crate) fn overlay_response<B>(
    state: &Rc<AdminState>,
    request: &Request<B>,
) -> Option<Response<AdminBody>> {
    let path = request.uri().path();
    if state.reader.memory().overlay_version() == 0 {
        return None;
    }
    let mut answer = match path {
        SCRIPT_PATH => {
            response(StatusCode::OK, "text/javascript; charset=utf-8", SCRIPT.as_bytes())
        }
        STREAM_PATH => stream_response(state, request.method()),
        _ => return None,
    };
    let headers = answer.headers_mut();
    let of_any_origin = HeaderValue::from_static("cross-origin");
    headers.insert("cross-origin-resource-policy", of_any_origin);
    headers.insert(VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = local_origin(request.headers()) {
        headers.insert("access-control-allow-origin", origin.clone());
    }
    Some(answer)
}

/// Returns the origin of the page that asks, if it is one of this machine or has an address for a name. Any page in the browser may
/// try to read the errors, and with them pieces of the source.
fn local_origin(headers: &HeaderMap) -> Option<&HeaderValue> {
    let origin = headers.get(ORIGIN)?;
    let uri: Uri = origin.to_str().ok()?.parse().ok()?;
    uri.host().is_some_and(is_local_name).then_some(origin)
}

fn stream_response(state: &Rc<AdminState>, method: &Method) -> Response<AdminBody> {
    if state.overlay_streams.get() >= MAX_STREAMS {
        return unavailable("too many pages follow the builds\n");
    }
    let memory = state.reader.memory();
    let (sender, frames) = mpsc::channel(1);
    if *method == Method::GET {
        state.overlay_streams.set(state.overlay_streams.get() + 1);
        let state = Rc::clone(state);
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = send_states(memory, &sender) => {}
                // The page opens its next stream at the successor of this process.
                () = state.wait_for_drain() => {}
                () = sender.closed() => {}
            }
            state.overlay_streams.set(state.overlay_streams.get() - 1);
        });
    }
    with_common_headers(StatusCode::OK, "text/event-stream", AdminBody::stream(frames))
}

/// Sends the state now, and each one that follows. A page that does not read misses those between.
async fn send_states(memory: AdminMemoryReader, sender: &mpsc::Sender<Bytes>) {
    // How long the page waits before it connects again.
    let mut frame = b"retry: 500\n\n".to_vec();
    let (mut sent, mut silent_since) = (0, tokio::time::Instant::now());
    loop {
        if let Some((version, json)) = memory.overlay().filter(|(version, _)| *version != sent) {
            // JSON has no line feed outside of its strings, where it is escaped.
            frame.extend_from_slice(b"data: ");
            frame.extend_from_slice(&json);
            frame.extend_from_slice(b"\n\n");
            sent = version;
        }
        if frame.is_empty() && silent_since.elapsed() >= KEEP_ALIVE_INTERVAL {
            frame.extend_from_slice(b": keep-alive\n\n");
        }
        if frame.is_empty() {
            tokio::time::sleep(POLL_INTERVAL).await;
            continue;
        }
        if sender.send(std::mem::take(&mut frame).into()).await.is_err() {
            return;
        }
        silent_since = tokio::time::Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_this_machine_may_read_the_builds() {
        let is_allowed = |origin: &str| {
            let headers = HeaderMap::from_iter([(ORIGIN, origin.parse().expect("value"))]);
            local_origin(&headers).is_some()
        };
        for good in [
            "http://127.0.0.1:3000",
            "http://localhost:3000",
            "https://app.localhost",
            "http://[::1]:8080",
            "http://192.168.1.5:3000",
        ] {
            assert!(is_allowed(good), "{good}");
        }
        for bad in ["https://example.com", "http://localhost.example.com", "null", "", "x y"] {
            assert!(!is_allowed(bad), "{bad}");
        }
        assert!(local_origin(&HeaderMap::new()).is_none());
    }
}
