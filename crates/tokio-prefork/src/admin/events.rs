//! `/events`: the events of `prefork events`, as a stream of server-sent events.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Request, Response, StatusCode};
use tokio::sync::mpsc;

use super::AdminMemoryReader;
use super::handle_request::unavailable;
use super::process::AdminState;
use super::response::{AdminBody, with_common_headers};

/// How many clients may follow the events at a time.
const MAX_STREAMS: usize = 32;

/// How many past events a client gets that names none.
const DEFAULT_PAST_EVENTS: u64 = 200;

/// How often a silent stream sends a comment, so that proxies keep it open and a vanished client is noticed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// How often to look for new events.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The largest number of bytes that are queued for a client at a time.
const MAX_FRAME_BYTES: usize = 64 * 1024;

/// Starts a stream of events.
pub(crate) fn events_response<B>(
    state: &Rc<AdminState>,
    request: &Request<B>,
) -> Response<AdminBody> {
    if state.event_streams.get() >= MAX_STREAMS {
        return unavailable("too many clients follow the events\n");
    }
    let memory = state.reader.memory();
    let next = first_wanted(memory, last_event_id(request));
    let (sender, frames) = mpsc::channel(1);
    if request.method() == hyper::Method::GET {
        state.event_streams.set(state.event_streams.get() + 1);
        let state = Rc::clone(state);
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = send_events(memory, next, &sender) => {}
                // The client opens its next stream at the successor of this process.
                () = state.wait_for_drain() => {}
                () = sender.closed() => {}
            }
            state.event_streams.set(state.event_streams.get() - 1);
        });
    }
    with_common_headers(StatusCode::OK, "text/event-stream", AdminBody::stream(frames))
}

/// Returns the number of the last event that the client has, from the header of a reconnect or from `?since=N`.
fn last_event_id<B>(request: &Request<B>) -> Option<u64> {
    let header = request.headers().get("last-event-id");
    let header = header.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let mut parameters = request.uri().query().unwrap_or_default().split('&');
    let since = || parameters.find_map(|one| one.strip_prefix("since=")?.parse().ok());
    header.or_else(since)
}

/// Returns the number of the first event to send.
fn first_wanted(memory: AdminMemoryReader, last_id: Option<u64>) -> u64 {
    let last = memory.last_event();
    match last_id {
        Some(id) if id <= last => id + 1,
        // Without an id, or with one of a primary that was started before.
        _ => (last + 1).saturating_sub(DEFAULT_PAST_EVENTS).max(1),
    }
}

/// Sends the events from number `next` on. Waits for a client that does not read; it may miss events then, and is told so.
async fn send_events(memory: AdminMemoryReader, mut next: u64, sender: &mpsc::Sender<Bytes>) {
    // How long the client waits before it connects again.
    let mut frame = b"retry: 1000\n\n".to_vec();
    let mut silent_since = tokio::time::Instant::now();
    loop {
        append_events(memory, &mut next, &mut frame);
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

/// Appends the events from number `next` on to `frame`, up to its largest size.
fn append_events(memory: AdminMemoryReader, next: &mut u64, frame: &mut Vec<u8>) {
    let first = memory.first_event();
    if *next < first && memory.last_event() > 0 {
        let skipped = first - *next;
        let note = format!("event: skipped\ndata: {{\"skipped\":{skipped}}}\n\n");
        frame.extend_from_slice(note.as_bytes());
        *next = first;
    }
    while *next <= memory.last_event() && frame.len() < MAX_FRAME_BYTES {
        if let Some(json) = memory.event(*next) {
            frame.extend_from_slice(format!("id: {next}\ndata: ").as_bytes());
            frame.extend_from_slice(&json);
            frame.extend_from_slice(b"\n\n");
        }
        *next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::AdminMemory;
    use super::*;

    fn memory_with_events(count: u64) -> AdminMemory {
        let memory = AdminMemory::create().expect("memory");
        (1..=count).for_each(|n| memory.publish_event(n, format!("{{\"n\":{n}}}").as_bytes()));
        memory
    }

    fn text_from(memory: &AdminMemory, next: u64) -> (String, u64) {
        let (mut next, mut frame) = (next, Vec::new());
        append_events(memory.reader(), &mut next, &mut frame);
        (String::from_utf8(frame).expect("text"), next)
    }

    #[test]
    fn events_have_ids_and_a_client_that_was_too_slow_is_told_how_many_it_missed() {
        let memory = memory_with_events(2);
        let both = "id: 1\ndata: {\"n\":1}\n\nid: 2\ndata: {\"n\":2}\n\n";
        assert_eq!(text_from(&memory, 1), (both.to_string(), 3));
        assert_eq!(text_from(&memory, 3), (String::new(), 3));
        let many = memory_with_events(1500);
        let (text, next) = text_from(&many, 400);
        assert!(text.starts_with("event: skipped\ndata: {\"skipped\":101}\n\nid: 501\n"), "{text}");
        assert_eq!(next, 1501);
    }

    #[test]
    fn a_client_goes_on_where_it_was_and_gets_recent_events_otherwise() {
        let memory = memory_with_events(300).reader();
        for (last_id, first) in [(Some(0), 1), (Some(299), 300), (Some(300), 301), (None, 101)] {
            assert_eq!(first_wanted(memory, last_id), first, "{last_id:?}");
        }
        assert_eq!(first_wanted(memory, Some(7000)), 101, "an id of an earlier primary");
        assert_eq!(first_wanted(memory_with_events(0).reader(), None), 1);
    }

    #[test]
    fn the_last_id_comes_from_the_header_or_from_the_query() {
        let request = |uri: &str, header: Option<&str>| {
            let mut request = Request::get(uri);
            if let Some(value) = header {
                request = request.header("last-event-id", value);
            }
            last_event_id(&request.body(()).expect("request"))
        };
        assert_eq!(request("/events", None), None);
        assert_eq!(request("/events?since=7", None), Some(7));
        assert_eq!(request("/events?since=7", Some("9")), Some(9));
        assert_eq!(request("/events?x=1&since=8", Some("many")), Some(8));
        assert_eq!(request("/events?since=-1", None), None);
    }
}
