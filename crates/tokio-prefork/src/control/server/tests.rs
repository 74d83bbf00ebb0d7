use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;

use log::Level;

use super::*;
use crate::control::client_connection::IDLE_CLIENT_TIMEOUT;
use crate::control::frame::{self, MAX_REQUEST_BYTES};

/// A server whose poll loop and clock the test drives.
struct TestServer {
    server: ControlServer,
    history: EventHistory,
    now: Instant,
    dir: tempfile::TempDir,
}

impl TestServer {
    fn new() -> TestServer {
        // Other tests of this process change the umask for a moment, and a directory that all may write is refused.
        let private = std::fs::Permissions::from_mode(0o700);
        let dir = tempfile::Builder::new().permissions(private).tempdir().expect("dir");
        let server = ControlServer::bind(&dir.path().join("s")).expect("bind");
        TestServer { server, history: EventHistory::default(), now: Instant::now(), dir }
    }

    fn connect(&mut self) -> UnixStream {
        let client = UnixStream::connect(self.server.path().expect("path")).expect("connect");
        client.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        client
    }

    /// Connects a client and has the server accept it.
    fn connect_accepted(&mut self) -> UnixStream {
        let client = self.connect();
        assert!(self.poll_once().is_empty());
        client
    }

    fn poll_once(&mut self) -> Vec<ReceivedRequest> {
        self.server.send_events_and_close_idle(&self.history, self.now);
        let ready = self.server.poll_ready(Duration::ZERO);
        self.server.read_requests(&ready, self.now)
    }

    /// Sends a request and has the server read it.
    fn send_request(&mut self, client: &mut UnixStream, request: &str) -> u64 {
        write_frame(client, request);
        let requests = self.poll_once();
        assert_eq!(requests.len(), 1, "{request}");
        requests[0].request_id
    }

    fn reply_done(&mut self, request_id: u64) {
        let now = self.now;
        assert!(self.server.reply(request_id, &Reply::Done("done".into()), now));
    }

    fn append_events(&mut self, times: usize) {
        for _ in 0..times {
            self.history.append_event(Level::Info, "x".repeat(1000));
        }
    }
}

fn write_frame(client: &mut UnixStream, request: &str) {
    client.write_all(&frame::encode_frame(request.as_bytes())).expect("send");
}

/// Reads the next reply; empty at the end of the connection.
fn read_reply(client: &mut UnixStream) -> String {
    let mut head = [0; 4];
    if client.read_exact(&mut head).is_err() {
        return String::new();
    }
    let mut payload = vec![0; u32::from_be_bytes(head) as usize];
    client.read_exact(&mut payload).expect("payload");
    String::from_utf8(payload).expect("UTF-8")
}

const STATUS_REQUEST: &str = r#"{"verb":"status"}"#;
const RELOAD_REQUEST: &str = r#"{"verb":"reload"}"#;

#[test]
fn several_requests_in_sequence_are_answered_in_sequence() {
    let mut test = TestServer::new();
    let mut client = test.connect_accepted();
    write_frame(&mut client, STATUS_REQUEST);
    let second = test.send_request(&mut client, STATUS_REQUEST);
    // The server reads the second request only after its reply to the first.
    assert!(test.poll_once().is_empty());
    test.reply_done(second);
    assert_eq!(read_reply(&mut client), r#"{"message":"done","ok":true}"#);
    let requests = test.poll_once();
    assert_eq!(requests[0].request, Request::Status {});
    let me = format!("control uid={} pid={}", effective_uid(), std::process::id());
    assert_eq!(requests[0].client_name, me);
    assert!(!test.server.reply(second, &Reply::Done(String::new()), test.now), "answered once");
}

#[test]
fn an_invalid_request_is_refused_and_the_connection_stays_open() {
    let mut test = TestServer::new();
    let mut client = test.connect_accepted();
    for (request, word) in
        [("", "not JSON"), ("{}", "no verb"), (r#"{"verb":"x"}"#, "unknown verb")]
    {
        write_frame(&mut client, request);
        assert!(test.poll_once().is_empty());
        assert!(read_reply(&mut client).contains(word), "{request}");
    }
    test.send_request(&mut client, STATUS_REQUEST);
}

#[test]
fn a_too_long_request_closes_the_connection() {
    let mut test = TestServer::new();
    let mut client = test.connect_accepted();
    client.write_all(&(MAX_REQUEST_BYTES as u32 + 1).to_be_bytes()).expect("send");
    assert!(test.poll_once().is_empty());
    assert!(read_reply(&mut client).contains("65537 bytes is too long: send 65536 at most"));
    assert_eq!(read_reply(&mut client), "");
    assert!(test.server.clients.is_empty());
}

#[test]
fn an_idle_client_is_closed_after_five_seconds_but_not_one_waiting_for_a_reply() {
    let mut test = TestServer::new();
    let (mut silent, mut slow, mut waits) =
        (test.connect_accepted(), test.connect_accepted(), test.connect_accepted());
    let request_id = test.send_request(&mut waits, RELOAD_REQUEST);
    assert_eq!(test.server.next_deadline(), Some(test.now + IDLE_CLIENT_TIMEOUT));
    for byte in [0, 0, 0, 9, b'{'] {
        slow.write_all(&[byte]).expect("send");
        test.now += IDLE_CLIENT_TIMEOUT / 5;
        test.poll_once();
    }
    assert_eq!(read_reply(&mut silent), r#"{"error":"nothing was asked for 5 s","ok":false}"#);
    assert!(read_reply(&mut slow).contains("nothing was asked"));
    test.now += 1000 * IDLE_CLIENT_TIMEOUT;
    test.poll_once();
    test.reply_done(request_id);
    assert!(read_reply(&mut waits).contains("done"));
}

#[test]
fn an_idle_client_is_closed_to_make_room_for_a_new_one() {
    let mut test = TestServer::new();
    let mut silent = Vec::new();
    for _ in 0..1000 {
        silent.push(test.connect_accepted());
        test.now += Duration::from_millis(1);
    }
    assert_eq!(test.server.clients.len(), MAX_CLIENTS);
    let mut client = test.connect_accepted();
    let request_id = test.send_request(&mut client, STATUS_REQUEST);
    test.reply_done(request_id);
    assert!(read_reply(&mut client).contains("done"));
    assert!(read_reply(&mut silent[0]).contains("others want to ask"));
}

#[test]
fn a_new_client_is_refused_if_all_clients_wait_for_replies() {
    let mut test = TestServer::new();
    let mut waiting: Vec<UnixStream> = (0..MAX_CLIENTS).map(|_| test.connect_accepted()).collect();
    for client in &mut waiting {
        test.send_request(client, RELOAD_REQUEST);
    }
    let mut late = test.connect_accepted();
    assert!(read_reply(&mut late).contains("32 clients wait for answers already"));
    drop(waiting.pop());
    test.poll_once();
    let mut next = test.connect_accepted();
    test.send_request(&mut next, STATUS_REQUEST);
}

#[test]
fn a_client_that_does_not_read_its_reply_is_closed() {
    let mut test = TestServer::new();
    let mut client = test.connect_accepted();
    let request_id = test.send_request(&mut client, STATUS_REQUEST);
    let long = Reply::Done("x".repeat(4 << 20));
    let now = test.now;
    assert!(test.server.reply(request_id, &long, now));
    assert_eq!(test.poll_once().len(), 0);
    test.now += IDLE_CLIENT_TIMEOUT;
    test.poll_once();
    assert!(test.server.clients.is_empty());
}

#[test]
fn a_reload_without_waiting_is_answered_when_it_has_begun() {
    let mut test = TestServer::new();
    let mut client = test.connect_accepted();
    let request_id = test.send_request(&mut client, r#"{"verb":"reload","wait":false}"#);
    test.reply_done(request_id);
    assert!(read_reply(&mut client).contains("done"));
    let request_id = test.send_request(&mut client, r#"{"verb":"reload","wait":false}"#);
    test.poll_once();
    assert!(read_reply(&mut client).contains("begun"));
    assert!(!test.server.reply(request_id, &Reply::Done(String::new()), test.now));
}

#[test]
fn a_stopping_client_is_disconnected_after_the_socket_file_is_removed() {
    let mut test = TestServer::new();
    let mut client = test.connect_accepted();
    let request_id = test.send_request(&mut client, r#"{"verb":"stop"}"#);
    test.reply_done(request_id);
    test.now += 1000 * IDLE_CLIENT_TIMEOUT;
    test.poll_once();
    assert!(read_reply(&mut client).contains("done"));
    let path = test.server.path().expect("path").to_path_buf();
    drop(test.server);
    assert_eq!(read_reply(&mut client), "");
    assert!(!path.exists());
}

#[test]
fn events_after_a_number_are_returned() {
    let mut test = TestServer::new();
    test.append_events(500);
    let mut client = test.connect_accepted();
    for since in [0, 490, 500, u64::MAX] {
        let now = test.now;
        let request_id =
            test.send_request(&mut client, &format!(r#"{{"verb":"events","since":{since}}}"#));
        test.server.stream_events(request_id, false, since, &test.history, now);
        let mut count = 0;
        loop {
            test.poll_once();
            match read_reply(&mut client) {
                reply if reply.contains(r#""last":500"#) => break,
                reply => assert!(reply.contains("event"), "{reply}"),
            }
            count += 1;
        }
        assert_eq!(count, 500u64.saturating_sub(since), "since {since}");
    }
}

#[test]
fn at_most_eight_clients_follow_the_events() {
    let mut test = TestServer::new();
    let mut followers: Vec<UnixStream> =
        (0..MAX_FOLLOWERS + 1).map(|_| test.connect_accepted()).collect();
    for client in &mut followers {
        let request_id = test.send_request(client, r#"{"verb":"events","follow":true}"#);
        let now = test.now;
        test.server.stream_events(request_id, true, 0, &test.history, now);
    }
    assert!(
        followers
            .pop()
            .is_some_and(|mut ninth| read_reply(&mut ninth).contains("8 clients follow"))
    );
    test.append_events(1);
    test.poll_once();
    for client in &mut followers {
        assert!(read_reply(client).contains(r#""sequence":1"#));
    }
}

#[test]
fn a_follower_that_does_not_read_is_closed_with_bounded_memory() {
    let mut test = TestServer::new();
    let mut client = test.connect_accepted();
    let request_id = test.send_request(&mut client, r#"{"verb":"events","follow":true}"#);
    let now = test.now;
    test.server.stream_events(request_id, true, 0, &test.history, now);
    test.append_events(900);
    test.poll_once();
    let unsent: usize = test.server.clients.values().map(ClientConnection::unsent_bytes).sum();
    assert!(unsent > 0 && unsent < MAX_UNSENT_EVENT_BYTES + 2000, "{unsent}");
    test.append_events(900);
    test.poll_once();
    assert!(test.server.clients.is_empty());
}

#[test]
fn the_socket_has_mode_0600_and_is_not_in_a_world_writable_directory() {
    let test = TestServer::new();
    let path = test.server.path().expect("path");
    assert_eq!(std::fs::metadata(path).expect("file").mode() & 0o777, 0o600);
    let error = ControlServer::bind(path).expect_err("taken");
    assert_eq!(error.exit_status(), crate::error::exit::UNAVAILABLE);
    let text = format!("cannot bind control socket {}: address already in use", path.display());
    assert!(error.to_string().starts_with(&text), "{error}");
    let open = test.dir.path().join("open");
    std::fs::create_dir(&open).expect("dir");
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).expect("mode");
    assert!(ControlServer::bind(&open.join("s")).is_err());
    assert!(ControlServer::bind(&open.join("none/s")).is_err());
}

#[test]
fn only_root_and_the_user_of_the_primary_may_connect() {
    assert_eq!((check_client_user(0, 7), check_client_user(7, 7)), (Ok(()), Ok(())));
    assert_eq!(
        check_client_user(8, 7),
        Err("uid 8 may not ask: only root and uid 7 may".to_string())
    );
}
