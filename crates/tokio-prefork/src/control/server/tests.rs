use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;

use log::Level;

use super::*;
use crate::control::client_connection::IDLE_CLIENT_TIMEOUT;
use crate::control::frame::{self, MAX_REQUEST_BYTES};

/// A server that is turned by hand, at a time that we choose.
struct World {
    server: ControlServer,
    history: EventHistory,
    now: Instant,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().expect("dir");
        let server = ControlServer::bind(&dir.path().join("s")).expect("bind");
        World { server, history: EventHistory::default(), now: Instant::now(), dir }
    }

    fn connect(&mut self) -> UnixStream {
        let client = UnixStream::connect(self.server.path().expect("path")).expect("connect");
        client.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        client
    }

    /// Connects and is accepted.
    fn guest(&mut self) -> UnixStream {
        let client = self.connect();
        assert!(self.turn().is_empty());
        client
    }

    fn turn(&mut self) -> Vec<ReceivedRequest> {
        self.server.send_events_and_close_idle(&self.history, self.now);
        let ready = self.server.poll_ready(Duration::ZERO);
        self.server.read_requests(&ready, self.now)
    }

    /// Sends a request and has the server read it.
    fn ask(&mut self, client: &mut UnixStream, request: &str) -> u64 {
        send(client, request);
        let asked = self.turn();
        assert_eq!(asked.len(), 1, "{request}");
        asked[0].ticket
    }

    fn done(&mut self, ticket: u64) {
        let now = self.now;
        assert!(self.server.reply(ticket, &Reply::Done("done".into()), now));
    }

    fn happen(&mut self, times: usize) {
        for _ in 0..times {
            self.history.append(Level::Info, "x".repeat(1000));
        }
    }
}

fn send(client: &mut UnixStream, request: &str) {
    client.write_all(&frame::encode_frame(request.as_bytes())).expect("send");
}

/// The next reply; empty at the end.
fn hear(client: &mut UnixStream) -> String {
    let mut head = [0; 4];
    if client.read_exact(&mut head).is_err() {
        return String::new();
    }
    let mut payload = vec![0; u32::from_be_bytes(head) as usize];
    client.read_exact(&mut payload).expect("payload");
    String::from_utf8(payload).expect("UTF-8")
}

const STATUS: &str = r#"{"verb":"status"}"#;
const RELOAD: &str = r#"{"verb":"reload"}"#;

#[test]
fn several_requests_in_sequence_are_answered_in_sequence() {
    let mut world = World::new();
    let mut client = world.guest();
    send(&mut client, STATUS);
    let second = world.ask(&mut client, STATUS);
    // The other one waits in the kernel until this one is answered.
    assert!(world.turn().is_empty());
    world.done(second);
    assert_eq!(hear(&mut client), r#"{"message":"done","ok":true}"#);
    let asked = world.turn();
    assert_eq!(asked[0].request, Request::Status {});
    let me = format!("control uid={} pid={}", effective_uid(), std::process::id());
    assert_eq!(asked[0].who, me);
    assert!(!world.server.reply(second, &Reply::Done(String::new()), world.now), "answered once");
}

#[test]
fn an_invalid_request_is_refused_and_the_connection_stays_open() {
    let mut world = World::new();
    let mut client = world.guest();
    for (request, word) in
        [("", "not JSON"), ("{}", "no verb"), (r#"{"verb":"x"}"#, "unknown verb")]
    {
        send(&mut client, request);
        assert!(world.turn().is_empty());
        assert!(hear(&mut client).contains(word), "{request}");
    }
    world.ask(&mut client, STATUS);
}

#[test]
fn a_request_that_is_too_long_ends_the_connection() {
    let mut world = World::new();
    let mut client = world.guest();
    client.write_all(&(MAX_REQUEST_BYTES as u32 + 1).to_be_bytes()).expect("send");
    assert!(world.turn().is_empty());
    assert!(hear(&mut client).contains("65537 bytes is too long: send 65536 at most"));
    assert_eq!(hear(&mut client), "");
    assert!(world.server.clients.is_empty());
}

#[test]
fn a_client_idle_for_five_seconds_is_closed_but_not_one_that_waits() {
    let mut world = World::new();
    let (mut silent, mut slow, mut waits) = (world.guest(), world.guest(), world.guest());
    let ticket = world.ask(&mut waits, RELOAD);
    assert_eq!(world.server.next_deadline(), Some(world.now + IDLE_CLIENT_TIMEOUT));
    for byte in [0, 0, 0, 9, b'{'] {
        slow.write_all(&[byte]).expect("send");
        world.now += IDLE_CLIENT_TIMEOUT / 5;
        world.turn();
    }
    assert_eq!(hear(&mut silent), r#"{"error":"nothing was asked for 5 s","ok":false}"#);
    assert!(hear(&mut slow).contains("nothing was asked"));
    world.now += 1000 * IDLE_CLIENT_TIMEOUT;
    world.turn();
    world.done(ticket);
    assert!(hear(&mut waits).contains("done"));
}

#[test]
fn a_thousand_idle_clients_do_not_keep_a_new_client_out() {
    let mut world = World::new();
    let mut silent = Vec::new();
    for _ in 0..1000 {
        silent.push(world.guest());
        world.now += Duration::from_millis(1);
    }
    assert_eq!(world.server.clients.len(), MAX_CLIENTS);
    let mut client = world.guest();
    let ticket = world.ask(&mut client, STATUS);
    world.done(ticket);
    assert!(hear(&mut client).contains("done"));
    assert!(hear(&mut silent[0]).contains("others want to ask"));
}

#[test]
fn a_table_full_of_waiting_clients_refuses_the_next() {
    let mut world = World::new();
    let mut waiting: Vec<UnixStream> = (0..MAX_CLIENTS).map(|_| world.guest()).collect();
    for client in &mut waiting {
        world.ask(client, RELOAD);
    }
    let mut late = world.guest();
    assert!(hear(&mut late).contains("32 clients wait for answers already"));
    drop(waiting.pop());
    world.turn();
    let mut next = world.guest();
    world.ask(&mut next, STATUS);
}

#[test]
fn a_client_that_does_not_read_its_reply_is_closed() {
    let mut world = World::new();
    let mut client = world.guest();
    let ticket = world.ask(&mut client, STATUS);
    let long = Reply::Done("x".repeat(4 << 20));
    let now = world.now;
    assert!(world.server.reply(ticket, &long, now));
    assert_eq!(world.turn().len(), 0);
    world.now += IDLE_CLIENT_TIMEOUT;
    world.turn();
    assert!(world.server.clients.is_empty());
}

#[test]
fn a_reload_without_waiting_is_answered_when_it_has_begun() {
    let mut world = World::new();
    let mut client = world.guest();
    let ticket = world.ask(&mut client, r#"{"verb":"reload","wait":false}"#);
    world.done(ticket);
    assert!(hear(&mut client).contains("done"));
    let ticket = world.ask(&mut client, r#"{"verb":"reload","wait":false}"#);
    world.turn();
    assert!(hear(&mut client).contains("begun"));
    assert!(!world.server.reply(ticket, &Reply::Done(String::new()), world.now));
}

#[test]
fn a_client_that_stops_the_primary_sees_its_end_after_the_socket_file_is_removed() {
    let mut world = World::new();
    let mut client = world.guest();
    let ticket = world.ask(&mut client, r#"{"verb":"stop"}"#);
    world.done(ticket);
    world.now += 1000 * IDLE_CLIENT_TIMEOUT;
    world.turn();
    assert!(hear(&mut client).contains("done"));
    let path = world.server.path().expect("path").to_path_buf();
    drop(world.server);
    assert_eq!(hear(&mut client), "");
    assert!(!path.exists());
}

#[test]
fn events_after_a_number_are_returned() {
    let mut world = World::new();
    world.happen(500);
    let mut client = world.guest();
    for since in [0, 490, 500, u64::MAX] {
        let now = world.now;
        let ticket = world.ask(&mut client, &format!(r#"{{"verb":"events","since":{since}}}"#));
        world.server.stream_events(ticket, false, since, &world.history, now);
        let mut heard = 0;
        loop {
            world.turn();
            match hear(&mut client) {
                reply if reply.contains(r#""last":500"#) => break,
                reply => assert!(reply.contains("event"), "{reply}"),
            }
            heard += 1;
        }
        assert_eq!(heard, 500u64.saturating_sub(since), "since {since}");
    }
}

#[test]
fn at_most_eight_clients_follow_the_events() {
    let mut world = World::new();
    let mut followers: Vec<UnixStream> = (0..MAX_FOLLOWERS + 1).map(|_| world.guest()).collect();
    for client in &mut followers {
        let ticket = world.ask(client, r#"{"verb":"events","follow":true}"#);
        let now = world.now;
        world.server.stream_events(ticket, true, 0, &world.history, now);
    }
    assert!(followers.pop().is_some_and(|mut ninth| hear(&mut ninth).contains("8 clients follow")));
    world.happen(1);
    world.turn();
    for client in &mut followers {
        assert!(hear(client).contains(r#""sequence":1"#));
    }
}

#[test]
fn a_follower_that_does_not_read_is_closed_with_bounded_memory() {
    let mut world = World::new();
    let mut client = world.guest();
    let ticket = world.ask(&mut client, r#"{"verb":"events","follow":true}"#);
    let now = world.now;
    world.server.stream_events(ticket, true, 0, &world.history, now);
    world.happen(900);
    world.turn();
    let unsent: usize = world.server.clients.values().map(ClientConnection::unsent).sum();
    assert!(unsent > 0 && unsent < MAX_UNSENT_EVENT_BYTES + 2000, "{unsent}");
    world.happen(900);
    world.turn();
    assert!(world.server.clients.is_empty());
}

#[test]
fn the_socket_has_mode_0600_and_is_not_in_a_world_writable_directory() {
    let world = World::new();
    let path = world.server.path().expect("path");
    assert_eq!(std::fs::metadata(path).expect("file").mode() & 0o777, 0o600);
    let error = ControlServer::bind(path).expect_err("taken");
    assert_eq!(error.exit_status(), crate::error::exit::UNAVAILABLE);
    let text = format!("cannot bind control socket {}: address already in use", path.display());
    assert!(error.to_string().starts_with(&text), "{error}");
    let open = world.dir.path().join("open");
    std::fs::create_dir(&open).expect("dir");
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).expect("mode");
    assert!(ControlServer::bind(&open.join("s")).is_err());
    assert!(ControlServer::bind(&open.join("none/s")).is_err());
}

#[test]
fn only_root_and_the_own_user_may_send_requests() {
    assert_eq!((check_client_user(0, 7), check_client_user(7, 7)), (Ok(()), Ok(())));
    assert_eq!(
        check_client_user(8, 7),
        Err("uid 8 may not ask: only root and uid 7 may".to_string())
    );
}
