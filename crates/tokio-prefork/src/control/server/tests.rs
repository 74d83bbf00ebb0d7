use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;

use log::Level;

use super::*;
use crate::control::client_connection::IDLE;
use crate::control::frame::{self, REQUEST_MAX};

/// A server that is turned by hand, at a time that we choose.
struct World {
    server: Server,
    ledger: Ledger,
    now: Instant,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().expect("dir");
        let server = Server::bind(&dir.path().join("s")).expect("bind");
        World { server, ledger: Ledger::default(), now: Instant::now(), dir }
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

    fn turn(&mut self) -> Vec<Asked> {
        self.server.settle(&self.ledger, self.now);
        let ready = self.server.poll_ready(Duration::ZERO);
        self.server.attend(&ready, self.now)
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
            self.ledger.append(Level::Info, "x".repeat(1000));
        }
    }
}

fn send(client: &mut UnixStream, request: &str) {
    client.write_all(&frame::encode(request.as_bytes())).expect("send");
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
    let me = format!("control uid={} pid={}", own_uid(), std::process::id());
    assert_eq!(asked[0].who, me);
    assert!(!world.server.reply(second, &Reply::Done(String::new()), world.now), "answered once");
}

#[test]
fn what_is_wrong_is_told_and_the_connection_goes_on() {
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
    client.write_all(&(REQUEST_MAX as u32 + 1).to_be_bytes()).expect("send");
    assert!(world.turn().is_empty());
    assert!(hear(&mut client).contains("65537 bytes is too long: send 65536 at most"));
    assert_eq!(hear(&mut client), "");
    assert!(world.server.clients.is_empty());
}

#[test]
fn who_asks_nothing_for_five_seconds_is_sent_away_and_who_waits_is_not() {
    let mut world = World::new();
    let (mut silent, mut slow, mut waits) = (world.guest(), world.guest(), world.guest());
    let ticket = world.ask(&mut waits, RELOAD);
    assert_eq!(world.server.deadline(), Some(world.now + IDLE));
    for byte in [0, 0, 0, 9, b'{'] {
        slow.write_all(&[byte]).expect("send");
        world.now += IDLE / 5;
        world.turn();
    }
    assert_eq!(hear(&mut silent), r#"{"error":"nothing was asked for 5 s","ok":false}"#);
    assert!(hear(&mut slow).contains("nothing was asked"));
    world.now += 1000 * IDLE;
    world.turn();
    world.done(ticket);
    assert!(hear(&mut waits).contains("done"));
}

#[test]
fn a_thousand_silent_clients_do_not_keep_a_newcomer_out() {
    let mut world = World::new();
    let mut silent = Vec::new();
    for _ in 0..1000 {
        silent.push(world.guest());
        world.now += Duration::from_millis(1);
    }
    assert_eq!(world.server.clients.len(), CLIENTS);
    let mut client = world.guest();
    let ticket = world.ask(&mut client, STATUS);
    world.done(ticket);
    assert!(hear(&mut client).contains("done"));
    assert!(hear(&mut silent[0]).contains("others want to ask"));
}

#[test]
fn a_table_full_of_waiting_clients_refuses_the_next() {
    let mut world = World::new();
    let mut waiting: Vec<UnixStream> = (0..CLIENTS).map(|_| world.guest()).collect();
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
fn a_reply_that_nobody_reads_is_given_up() {
    let mut world = World::new();
    let mut client = world.guest();
    let ticket = world.ask(&mut client, STATUS);
    let long = Reply::Done("x".repeat(4 << 20));
    let now = world.now;
    assert!(world.server.reply(ticket, &long, now));
    assert_eq!(world.turn().len(), 0);
    world.now += IDLE;
    world.turn();
    assert!(world.server.clients.is_empty());
}

#[test]
fn who_does_not_want_to_wait_hears_that_it_has_begun_unless_it_is_known_already() {
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
fn who_stops_us_sees_the_end_and_the_file_is_gone_by_then() {
    let mut world = World::new();
    let mut client = world.guest();
    let ticket = world.ask(&mut client, r#"{"verb":"stop"}"#);
    world.done(ticket);
    world.now += 1000 * IDLE;
    world.turn();
    assert!(hear(&mut client).contains("done"));
    let path = world.server.path().expect("path").to_path_buf();
    drop(world.server);
    assert_eq!(hear(&mut client), "");
    assert!(!path.exists());
}

#[test]
fn events_are_those_that_are_kept_after_a_number() {
    let mut world = World::new();
    world.happen(500);
    let mut client = world.guest();
    for since in [0, 490, 500, u64::MAX] {
        let now = world.now;
        let ticket = world.ask(&mut client, &format!(r#"{{"verb":"events","since":{since}}}"#));
        world.server.stream(ticket, false, since, &world.ledger, now);
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
fn followers_get_the_news_and_there_are_eight_of_them() {
    let mut world = World::new();
    let mut followers: Vec<UnixStream> = (0..FOLLOWERS + 1).map(|_| world.guest()).collect();
    for client in &mut followers {
        let ticket = world.ask(client, r#"{"verb":"events","follow":true}"#);
        let now = world.now;
        world.server.stream(ticket, true, 0, &world.ledger, now);
    }
    assert!(followers.pop().is_some_and(|mut ninth| hear(&mut ninth).contains("8 clients follow")));
    world.happen(1);
    world.turn();
    for client in &mut followers {
        assert!(hear(client).contains(r#""sequence":1"#));
    }
}

#[test]
fn a_follower_that_does_not_read_is_dropped_and_costs_little_until_then() {
    let mut world = World::new();
    let mut client = world.guest();
    let ticket = world.ask(&mut client, r#"{"verb":"events","follow":true}"#);
    let now = world.now;
    world.server.stream(ticket, true, 0, &world.ledger, now);
    world.happen(900);
    world.turn();
    let unsent: usize = world.server.clients.values().map(Connection::unsent).sum();
    assert!(unsent > 0 && unsent < EVENTS_AHEAD + 2000, "{unsent}");
    world.happen(900);
    world.turn();
    assert!(world.server.clients.is_empty());
}

#[test]
fn the_socket_is_for_its_owner_and_in_a_place_of_its_own() {
    let world = World::new();
    let path = world.server.path().expect("path");
    assert_eq!(std::fs::metadata(path).expect("file").mode() & 0o777, 0o600);
    let error = Server::bind(path).expect_err("taken");
    assert_eq!(error.exit_status(), crate::error::exit::UNAVAILABLE);
    let text = format!("cannot bind control socket {}: address already in use", path.display());
    assert!(error.to_string().starts_with(&text), "{error}");
    let open = world.dir.path().join("open");
    std::fs::create_dir(&open).expect("dir");
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).expect("mode");
    assert!(Server::bind(&open.join("s")).is_err());
    assert!(Server::bind(&open.join("none/s")).is_err());
}

#[test]
fn root_and_the_own_user_may_ask() {
    assert_eq!((may_ask(0, 7), may_ask(7, 7)), (Ok(()), Ok(())));
    assert_eq!(may_ask(8, 7), Err("uid 8 may not ask: only root and uid 7 may".to_string()));
}
