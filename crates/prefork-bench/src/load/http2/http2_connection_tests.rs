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
        let plan = LoadPlan::new(TargetUrl::parse("http://h/").expect("url"));
        let request = Http2Request::from_plan(&plan).expect("request");
        TestConnection { http2: Http2Connection::start(streams).expect("start"), request }
    }

    /// Sends requests as long as the connection takes them, and returns how many it took.
    fn send_all(&mut self) -> u64 {
        let sent = |due| PendingRequest { due, sent_at: due, ..PendingRequest::default() };
        let taken = (1..100).take_while(|due| self.http2.send(&self.request, sent(*due))).count();
        let mut events = Vec::new();
        let state = self.http2.advance(&ResponseExpectations::default(), &mut events);
        assert!(state.is_ok() && events.is_empty(), "{events:?}");
        taken as u64
    }

    /// Returns the requests that ended, by due time, and whether the connection is open.
    fn receive(&mut self, bytes: &[u8]) -> (Vec<EndedRequest>, bool) {
        self.http2.receive(bytes).expect("HTTP/2");
        let mut events = Vec::new();
        let state = self.http2.advance(&ResponseExpectations::default(), &mut events);
        let ended =
            events.into_iter().map(|event| (event.sent.due, event.outcome.map(|r| r.status)));
        (ended.collect(), state.is_ok())
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

#[test]
fn http_1_is_recognized() {
    let mut connection = TestConnection::new(1);
    let received = connection.http2.receive(b"HTTP/1.1 400 Bad Request\r\n");
    assert_eq!(received, Err(RequestFailure::NoHttp2));
}
