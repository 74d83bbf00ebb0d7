use proptest::prelude::*;

use super::super::frames::divide_into_frames;
use super::*;
use crate::load::plan::LoadPlan;
use crate::load::target_url::TargetUrl;

/// Response with status 200 and no body on a stream.
fn response(stream: u8) -> [u8; 10] {
    [0, 0, 1, 1, 0x5, 0, 0, 0, stream, 0x88]
}

const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// SETTINGS with MAX_CONCURRENT_STREAMS 2.
const TWO_STREAMS: [u8; 15] = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2];
/// GOAWAY without an error, after stream 1.
const GOAWAY_AFTER_1: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
/// RST_STREAM of stream 3 with the code `reason`.
fn reset_of_3(reason: u8) -> [u8; 13] {
    [0, 0, 4, 3, 0, 0, 0, 0, 3, 0, 0, 0, reason]
}

/// When a request was due, and its status.
type EndedRequest = (u64, Result<u16, StreamFailure>);

struct TestConnection {
    http2: Http2Connection,
    request: Http2Request,
}

impl TestConnection {
    fn new(streams: usize) -> TestConnection {
        TestConnection::with_plan(streams, |_| {})
    }

    fn with_plan(streams: usize, change: impl FnOnce(&mut LoadPlan)) -> TestConnection {
        let mut plan = LoadPlan::new(TargetUrl::parse("http://h/").expect("url"));
        change(&mut plan);
        let request = Http2Request::from_plan(&plan).expect("request");
        TestConnection { http2: Http2Connection::start(streams, true), request }
    }

    /// Sends requests as long as the connection takes them, and returns how many it took.
    fn send_all(&mut self) -> u64 {
        let sent = |due| PendingRequest { due, sent_at: due, ..PendingRequest::default() };
        let taken = (1..100).take_while(|due| self.http2.send(&self.request, sent(*due))).count();
        taken as u64
    }

    /// Returns the requests that ended, by due time, and whether the connection is open.
    fn receive(&mut self, bytes: &[u8]) -> (Vec<EndedRequest>, bool) {
        let mut events = Vec::new();
        self.http2.receive(bytes, None, &mut events);
        let ended =
            events.into_iter().map(|event| (event.sent.due, event.outcome.map(|r| r.status)));
        (ended.collect(), self.http2.failure().is_none())
    }
}

#[test]
fn requests_after_the_last_stream_of_goaway_were_not_processed() {
    let mut connection = TestConnection::new(3);
    connection.receive(&SETTINGS);
    assert_eq!(connection.send_all(), 3);
    let (mut ended, is_open) = connection.receive(&GOAWAY_AFTER_1);
    ended.sort_unstable_by_key(|(due, _)| *due);
    let unprocessed = Err(StreamFailure::Unprocessed);
    assert_eq!((ended, is_open), (vec![(2, unprocessed), (3, unprocessed)], true));
    assert_eq!((connection.send_all(), connection.http2.is_going_away()), (0, true));
    let (ended, _) = connection.receive(&response(1));
    assert_eq!(ended, [(1, Ok(200))]);
    assert_eq!(connection.http2.in_flight(), 0);
}

#[test]
fn only_a_refused_stream_may_be_sent_again() {
    for (reason, outcome) in [
        (7, StreamFailure::Unprocessed),
        (8, StreamFailure::Failed(RequestFailure::StreamReset)),
        (2, StreamFailure::Failed(RequestFailure::StreamReset)),
    ] {
        let mut connection = TestConnection::new(2);
        connection.receive(&SETTINGS);
        assert_eq!(connection.send_all(), 2);
        let (ended, is_open) = connection.receive(&reset_of_3(reason));
        assert_eq!((ended, is_open), (vec![(2, Err(outcome))], true), "{reason}");
    }
}

#[test]
fn no_more_streams_are_opened_than_the_server_allows() {
    let mut connection = TestConnection::new(8);
    connection.receive(&TWO_STREAMS);
    assert_eq!(connection.send_all(), 2);
    let (ended, _) = connection.receive(&response(3));
    assert_eq!((ended, connection.send_all()), (vec![(2, Ok(200))], 1));
}

#[test]
fn canceled_streams_make_room_for_others() {
    let mut connection = TestConnection::new(2);
    connection.receive(&SETTINGS);
    connection.send_all();
    let canceled = connection.http2.cancel_sent_before(1);
    assert_eq!(canceled.iter().map(|sent| sent.due).collect::<Vec<_>>(), [1]);
    assert_eq!((connection.http2.in_flight(), connection.send_all()), (1, 1));
    // A late response to the canceled request is no response to the new one.
    let (ended, is_open) = connection.receive(&response(1));
    assert_eq!((ended.len(), is_open), (0, true));
}

/// A frame with this payload.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    FrameHead::write(&mut bytes, payload.len(), kind, flags, stream);
    bytes.extend_from_slice(payload);
    bytes
}

/// Takes the frames that wait for the server, without the preface.
fn sent_frames(http2: &mut Http2Connection) -> Vec<(FrameHead, Vec<u8>)> {
    let mut bytes = Vec::new();
    let sent = http2.send_frames(|part| {
        // A socket that takes little at a time.
        let taken = part.len().min(1000);
        bytes.extend_from_slice(&part[..taken]);
        Ok::<usize, ()>(taken)
    });
    assert_eq!(sent, Ok(false));
    let bytes = bytes.strip_prefix(PREFACE).unwrap_or(&bytes);
    let (mut partial, mut found) = (Vec::new(), Vec::new());
    let divided = divide_into_frames(&mut partial, bytes, |head, payload| {
        found.push((head, payload.to_vec()));
        Ok(())
    });
    assert!(divided.is_ok() && partial.is_empty());
    found
}

/// Takes the frames of one kind that wait for the server: their streams, flags and payloads.
fn sent_of_kind(http2: &mut Http2Connection, kind: u8) -> Vec<(u32, u8, Vec<u8>)> {
    let all = sent_frames(http2).into_iter().filter(|(head, _)| head.kind == kind);
    all.map(|(head, payload)| (head.stream, head.flags, payload)).collect()
}

#[test]
fn a_response_is_the_same_however_its_bytes_are_split() {
    let head = b"\x88\x5c\x0219\x00\x05x-pid\x0217";
    let bytes = [
        SETTINGS.to_vec(),
        // An interim response, a head in two frames, a padded body in two frames, and trailers.
        frame(kind::HEADERS, flag::END_HEADERS, 1, b"\x08\x03103"),
        frame(kind::HEADERS, 0, 1, &head[..3]),
        frame(kind::CONTINUATION, flag::END_HEADERS, 1, &head[3..]),
        frame(kind::DATA, flag::PADDED, 1, b"\x02Handled by PID\0\0"),
        frame(kind::PING, 0, 0, &[7; 8]),
        frame(0xbe, 0xff, 1, b"a type that nobody knows"),
        frame(kind::DATA, 0, 1, b" 815\n"),
        frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, b"\x00\x01a\x01b"),
    ]
    .concat();
    for (step, pid_header, pid) in [(1, None, 815), (3, Some("X-Pid"), 17), (1000, None, 815)] {
        let mut connection = TestConnection::new(1);
        assert_eq!(connection.send_all(), 1);
        let mut events = Vec::new();
        for part in bytes.chunks(step) {
            connection.http2.receive(part, pid_header, &mut events);
        }
        assert_eq!(connection.http2.failure(), None);
        let [StreamEvent { outcome: Ok(response), .. }] = &events[..] else { panic!("{events:?}") };
        // content-length: 19, x-pid: 17, and the body.
        let expected = (200, Some(pid), 16 + 7 + 19);
        assert_eq!((response.status, response.pid, response.bytes), expected);
        let pings = sent_of_kind(&mut connection.http2, kind::PING);
        assert_eq!(pings, [(0, flag::ACK, vec![7; 8])]);
    }
}

#[test]
fn a_body_of_another_length_than_announced_is_no_response() {
    for (first, second) in [("four", ""), ("four", "five5"), ("no more than ", "eight, is it")] {
        let mut connection = TestConnection::new(1);
        connection.receive(&SETTINGS);
        connection.send_all();
        connection.receive(&frame(kind::HEADERS, flag::END_HEADERS, 1, b"\x88\x5c\x018"));
        let data = [
            frame(kind::DATA, 0, 1, first.as_bytes()),
            frame(kind::DATA, flag::END_STREAM, 1, second.as_bytes()),
        ];
        let (ended, is_open) = connection.receive(&data.concat());
        let malformed = StreamFailure::Failed(RequestFailure::Malformed);
        assert_eq!((ended, is_open), (vec![(1, Err(malformed))], true), "{first}{second}");
        assert_eq!(sent_of_kind(&mut connection.http2, kind::RST_STREAM).len(), 1);
    }
}

#[test]
fn responses_without_a_body_may_announce_its_length() {
    for (method, head) in [("HEAD", b"\x88\x5c\x018"), ("GET", b"\x8b\x5c\x018")] {
        let mut connection = TestConnection::with_plan(1, |plan| plan.method = method.to_string());
        connection.receive(&SETTINGS);
        connection.send_all();
        let flags = flag::END_HEADERS | flag::END_STREAM;
        let (ended, is_open) = connection.receive(&frame(kind::HEADERS, flags, 1, head));
        assert!(matches!(ended[..], [(1, Ok(200 | 304))]) && is_open, "{ended:?}");
    }
}

#[test]
fn a_body_is_sent_as_the_server_allows() {
    let body = vec![b'x'; 200_000];
    let mut connection = TestConnection::with_plan(2, |plan| plan.body = Some(body.clone()));
    let http2 = &mut connection.http2;
    http2.receive(&SETTINGS, None, &mut Vec::new());
    assert!(http2.send(&connection.request, PendingRequest::default()));
    let length = |http2: &mut Http2Connection| {
        let data = sent_of_kind(http2, kind::DATA);
        let ends = data.last().is_some_and(|(_, flags, _)| flags & flag::END_STREAM != 0);
        (data.iter().map(|(.., part)| part.len()).sum::<usize>(), ends)
    };
    assert_eq!(length(http2), (65_535, false));
    let more = |stream, more: u32| frame(kind::WINDOW_UPDATE, 0, stream, &more.to_be_bytes());
    // Both the stream and the connection must allow it.
    http2.receive(&more(1, 10_000), None, &mut Vec::new());
    assert_eq!(length(http2), (0, false));
    http2.receive(&more(0, 1_000_000), None, &mut Vec::new());
    assert_eq!(length(http2), (10_000, false));
    // A smaller window for each stream takes back what was allowed.
    http2.receive(&frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0]), None, &mut Vec::new());
    http2.receive(&more(1, 300), None, &mut Vec::new());
    assert_eq!(length(http2), (45, false));
    http2.receive(&more(1, 1_000_000), None, &mut Vec::new());
    assert_eq!(length(http2), (200_000 - 65_535 - 10_000 - 45, true));
    assert_eq!(http2.failure(), None);
}

#[test]
fn the_rest_of_a_body_is_not_sent_after_the_response() {
    let mut connection = TestConnection::with_plan(1, |plan| plan.body = Some(vec![b'x'; 100_000]));
    connection.receive(&SETTINGS);
    connection.send_all();
    sent_frames(&mut connection.http2);
    assert_eq!(connection.receive(&response(1)), (vec![(1, Ok(200))], true));
    let reset = error_code::CANCEL.to_be_bytes().to_vec();
    assert_eq!(sent_of_kind(&mut connection.http2, kind::RST_STREAM), [(1, 0, reset)]);
    // The next request has a window of its own, and what is left of that of the connection: nothing.
    assert_eq!(connection.send_all(), 1);
    assert_eq!(sent_of_kind(&mut connection.http2, kind::DATA), []);
}

#[test]
fn the_server_is_told_that_it_may_send_more() {
    let mut connection = TestConnection::new(1);
    connection.receive(&SETTINGS);
    connection.send_all();
    connection.receive(&frame(kind::HEADERS, flag::END_HEADERS, 1, &[0x88]));
    sent_frames(&mut connection.http2);
    let part = frame(kind::DATA, 0, 1, &[0; MAX_PAYLOAD]);
    let mut allowed = [0u64; 2];
    for _ in 0..CONNECTION_WINDOW as usize / MAX_PAYLOAD {
        assert_eq!(connection.receive(&part), (Vec::new(), true));
        for (stream, _, more) in sent_of_kind(&mut connection.http2, kind::WINDOW_UPDATE) {
            let more = u32::from_be_bytes(more.try_into().expect("four bytes"));
            allowed[stream as usize] += u64::from(more);
        }
    }
    assert_eq!(allowed, [u64::from(CONNECTION_WINDOW); 2]);
}

#[test]
fn requests_use_the_table_of_the_server_once_it_says_how_large_it_is() {
    let mut connection = TestConnection::new(4);
    let block = |connection: &mut TestConnection| -> Vec<u8> {
        connection.http2.send(&connection.request, PendingRequest::default());
        let sent = sent_of_kind(&mut connection.http2, kind::HEADERS);
        assert_eq!(sent.len(), 1);
        sent.into_iter().map(|(.., block)| block).next().expect("one")
    };
    // GET, http, authority: h, /
    let literal = [0x82, 0x86, 0x01, 1, b'h', 0x84];
    assert_eq!(block(&mut connection), literal);
    connection.receive(&SETTINGS);
    assert_eq!(block(&mut connection), [0x82, 0x86, 0x41, 1, b'h', 0x84]);
    assert_eq!(block(&mut connection), [0x82, 0x86, 0xbe, 0x84]);
    connection.receive(&frame(kind::SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 100]));
    assert_eq!(block(&mut connection), [&[TABLE_SIZE_ZERO], &literal[..]].concat());
    connection.receive(&response(1));
    assert_eq!(block(&mut connection), literal);
}

#[test]
fn violations_of_the_protocol_end_the_connection() {
    for (what, bytes) in [
        ("no SETTINGS", frame(kind::PING, 0, 0, &[0; 8])),
        ("a response on a stream that was not opened", [&SETTINGS[..], &response(3)].concat()),
        ("a response on a stream of the server", [&SETTINGS[..], &response(2)].concat()),
        ("a push", [&SETTINGS[..], &frame(kind::PUSH_PROMISE, 4, 1, &[0, 0, 0, 2])].concat()),
        (
            "a head that is interrupted",
            [SETTINGS.to_vec(), frame(kind::HEADERS, 0, 1, &[0x88]), response(1).to_vec()].concat(),
        ),
        (
            "a block that is no HPACK",
            [&SETTINGS[..], &frame(kind::HEADERS, 5, 1, &[0x80])].concat(),
        ),
        ("a frame that is too large", [&SETTINGS[..], &[0, 64, 1, 0, 0, 0, 0, 0, 1]].concat()),
        ("a short GOAWAY", [&SETTINGS[..], &frame(kind::GOAWAY, 0, 0, &[0; 4])].concat()),
        ("an empty window", [&SETTINGS[..], &frame(kind::WINDOW_UPDATE, 0, 0, &[0; 4])].concat()),
    ] {
        let mut connection = TestConnection::new(1);
        connection.send_all();
        let (ended, is_open) = connection.receive(&bytes);
        assert_eq!((ended.len(), is_open), (0, false), "{what}");
        assert_eq!(connection.http2.failure(), Some(RequestFailure::Malformed), "{what}");
        assert_eq!(connection.http2.requests_in_flight().count(), 1, "{what}");
    }
}

#[test]
fn a_head_that_is_too_large_is_named() {
    let mut connection = TestConnection::new(1);
    connection.send_all();
    connection.receive(&[&SETTINGS[..], &frame(kind::HEADERS, 0, 1, &[0x88])].concat());
    let more = frame(kind::CONTINUATION, 0, 1, &[0; MAX_PAYLOAD]);
    for _ in 0..=MAX_HEADER_LIST_SIZE as usize / MAX_PAYLOAD {
        connection.receive(&more);
    }
    assert_eq!(connection.http2.failure(), Some(RequestFailure::HeadTooLarge));
}

proptest! {
    /// Whatever a server sends, each request ends at most once.
    #[test]
    fn any_frames_end_each_request_at_most_once(
        frames in prop::collection::vec(
            (0u8..11, any::<u8>(), 0u32..9, prop::collection::vec(any::<u8>(), 0..40)), 0..40),
        step in 1usize..200,
    ) {
        let mut connection = TestConnection::new(4);
        let sent = connection.send_all() as usize;
        let frames = frames.iter().map(|(kind, flags, stream, data)| frame(*kind, *flags, *stream, data));
        let bytes = [SETTINGS.to_vec(), frames.collect::<Vec<_>>().concat()].concat();
        let mut events = Vec::new();
        for part in bytes.chunks(step) {
            connection.http2.receive(part, None, &mut events);
        }
        let mut due: Vec<u64> = events.iter().map(|event| event.sent.due).collect();
        due.extend(connection.http2.requests_in_flight().map(|request| request.due));
        due.sort_unstable();
        prop_assert_eq!(due, (1..=sent as u64).collect::<Vec<_>>());
    }
}

#[test]
fn http_1_is_recognized() {
    let mut connection = TestConnection::new(1);
    connection.receive(b"HTTP");
    assert_eq!(connection.http2.failure(), None);
    connection.receive(b"/1.1 400 Bad Request\r\n");
    assert_eq!(connection.http2.failure(), Some(RequestFailure::NoHttp2));
}
