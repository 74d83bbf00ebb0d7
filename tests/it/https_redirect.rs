//! Redirects from plain HTTP to https, and the files of ACME challenges.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::support::http::Response;
use crate::support::server::ProcessBuilder;
use crate::support::tls::TestAuthority;
use crate::support::{Address, Client, Server, http2, overrides, wait};

/// The path of the file of a challenge.
const CHALLENGE: &str = "/.well-known/acme-challenge/token-1_A";

/// Starts a server whose second address redirects.
fn start_redirecting(workers: usize, args: &[&str]) -> Server {
    Server::builder()
        .workers(workers)
        .args(["--https-redirect", "127.0.0.1:0?https-port=8443"])
        .args(args.iter().copied())
        .start()
}

#[track_caller]
fn ask(server: &Server, request: &str) -> Response {
    let mut client = Client::connect(&server.addresses()[1]).expect("connect");
    client.send(request).expect("send");
    if request.starts_with("HEAD") { client.read_head() } else { client.read() }.expect(request)
}

#[track_caller]
fn location(server: &Server, request: &str) -> Option<String> {
    let response = ask(server, request);
    let location = response.header("location").map(str::to_string);
    let expected = if location.is_some() { 308 } else { 400 };
    assert_eq!(response.status, expected, "{request:?}: {response:?}");
    location
}

#[test]
fn every_request_is_redirected_and_none_reaches_the_application() {
    let server = start_redirecting(2, &[]);
    for (request, url) in [
        ("GET /a?b=c HTTP/1.1\r\nHost: example.org\r\n\r\n", "https://example.org:8443/a?b=c"),
        ("HEAD / HTTP/1.1\r\nHost: EXAMPLE.org.:80\r\n\r\n", "https://example.org:8443/"),
        ("GET / HTTP/1.0\r\nHost: [::1]:80\r\n\r\n", "https://[::1]:8443/"),
        ("OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", "https://a.example:8443/"),
        (
            "GET http://a.example/b HTTP/1.1\r\nHost: other.example\r\n\r\n",
            "https://a.example:8443/b",
        ),
        ("DELETE //e.example/ HTTP/1.1\r\nHost: a\r\n\r\n", "https://a:8443//e.example/"),
        ("GET /\u{fc} HTTP/1.1\r\nHost: a\r\n\r\n", "https://a:8443/%C3%BC"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            "https://a:8443/",
        ),
    ] {
        assert_eq!(location(&server, request).as_deref(), Some(url));
    }
    for request in [
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a%2eb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
    ] {
        assert_eq!(location(&server, request), None, "{request:?}");
    }
    assert_eq!(server.get("/").status, 200);
    server.stop();
}

#[test]
fn a_request_with_a_body_is_redirected_without_reading_it() {
    let server = start_redirecting(1, &["--header-timeout", "20s"]);
    let mut client = Client::connect(&server.addresses()[1]).expect("connect");
    client
        .send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\nbegin")
        .expect("send");
    let response = client.read().expect("an answer before the end of the body");
    assert_eq!((response.status, response.closes()), (308, true), "{response:?}");
    // A client that sends all before it reads gets the response, too.
    let mut client = Client::connect(&server.addresses()[1]).expect("connect");
    let body = vec![b'x'; 3_000_000];
    let head = format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    client.send([head.into_bytes(), body].concat()).expect("send");
    assert_eq!(client.read().expect("an answer").status, 308);
    server.stop();
}

#[test]
fn a_connection_is_kept_for_further_redirects_and_speaks_http2_as_well() {
    let server = start_redirecting(1, &[]);
    let mut client = Client::connect(&server.addresses()[1]).expect("connect");
    for _ in 0..3 {
        let response = client.get("/kept").expect("an answer");
        assert_eq!((response.status, response.closes()), (308, false));
    }
    let mut client = Client::connect(&server.addresses()[1]).expect("connect");
    http2::greet(&mut client);
    client.send(http2::get(1, "/two")).expect("send");
    let body = http2::read_until(&mut client, http2::DATA, 1).payload;
    assert!(body.starts_with(b"308 "), "{}", body.escape_ascii());
    // Requests at this address count as others do.
    let total = server.cluster()["totals"]["requests"].as_u64();
    assert!(total >= Some(4), "{total:?}");
    server.stop();
}

fn write_challenge(dir: &Path, name: &str, content: &[u8]) {
    let dir = dir.join(".well-known/acme-challenge");
    fs::create_dir_all(&dir).expect("directories");
    fs::write(dir.join(name), content).expect("write");
}

#[test]
fn challenges_are_served_from_a_web_root_on_the_redirecting_address_alone() {
    let root = tempfile::tempdir().expect("directory");
    let args = ["--acme-challenge-dir", root.path().to_str().expect("text")];
    let server = start_redirecting(2, &args);
    let get = |path: &str| ask(&server, &format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert_eq!(get(CHALLENGE).status, 404);
    // The directory is made when the certificate is ordered.
    write_challenge(root.path(), "token-1_A", b"token-1_A.key");
    let response = get(CHALLENGE);
    assert_eq!((response.status, response.text()), (200, "token-1_A.key"));
    assert_eq!(response.header("content-type"), Some("text/plain"));
    let head = ask(&server, &format!("HEAD {CHALLENGE} HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert_eq!((head.status, head.header("content-length")), (200, Some("13")));
    let post = format!("POST {CHALLENGE} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(ask(&server, &post).status, 405);
    fs::write(root.path().join("secret"), "x").expect("write");
    write_challenge(root.path(), ".hidden", b"x");
    write_challenge(root.path(), "large", &vec![b'x'; (1 << 20) + 1]);
    let fifo = root.path().join(".well-known/acme-challenge/fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("FIFO");
    std::os::unix::fs::symlink("/etc/passwd", fifo.with_file_name("passwd")).expect("link");
    for name in
        ["", ".", "..", "../secret", "..%2fsecret", ".hidden", "large", "fifo", "passwd", "a/b"]
    {
        let response = get(&format!("/.well-known/acme-challenge/{name}"));
        assert_eq!(response.status, 404, "{name}: {response:?}");
    }
    assert_eq!(get("/.well-known/other").status, 308);
    assert_ne!(server.get(CHALLENGE).body, b"token-1_A.key");
    server.stop();
}

#[test]
fn redirects_work_under_every_model_and_dispatch_policy() {
    if overrides::model_override().is_some() {
        return;
    }
    for (model, policy) in [
        ("prefork", "round-robin"),
        ("prefork", "reuseport"),
        ("prefork", "least-conn"),
        ("prefork", "ip-hash"),
        ("single", "shared"),
        ("threads", "shared"),
        ("thread-per-core", "shared"),
    ] {
        let root = tempfile::tempdir().expect("directory");
        write_challenge(root.path(), "token-1_A", b"key");
        let server = Server::builder()
            .model(model, 2)
            .args(["--dispatch", policy, "--https-redirect", "127.0.0.1:0?https-port=443"])
            .args(["--acme-challenge-dir"])
            .args([root.path()])
            .start();
        for _ in 0..6 {
            let request = "GET /a HTTP/1.1\r\nHost: example.org\r\n\r\n";
            let url = location(&server, request);
            assert_eq!(url.as_deref(), Some("https://example.org/a"), "{model} {policy}");
            assert_eq!(server.get("/").status, 200, "{model} {policy}");
            let request = format!("GET {CHALLENGE} HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(ask(&server, &request).text(), "key", "{model} {policy}");
        }
        server.stop();
    }
}

#[test]
fn reloads_add_and_remove_redirects_and_change_the_role_of_an_address() {
    let text = |redirect: &str| format!("bind = ['127.0.0.1:0']\nworkers = 2\n{redirect}");
    let server = Server::builder().config(2, &text("")).start();
    let reload = |redirect: &str| {
        fs::write(server.dir().join("prefork.toml"), text(redirect)).expect("write");
        server.run_verb(&["reload"]);
    };
    let port = free_port();
    let there = Address::Tcp(format!("127.0.0.1:{port}").parse().expect("address"));
    let status =
        || Client::connect(&there).and_then(|mut client| client.get("/")).map(|r| r.status);
    reload(&format!("https-redirect = ['127.0.0.1:{port}?https-port=1']\n"));
    assert_eq!(status(), Ok(308));
    // Kept connections of the redirect are not handed over to a worker for which it is an address of the application.
    let mut kept = Client::connect(&there).expect("connect");
    assert_eq!(kept.get("/").expect("an answer").status, 308);
    reload("https-redirect = []\n");
    assert!(!matches!(kept.get("/"), Ok(response) if response.status == 200));
    wait::wait_until("the end of the redirect", || status().is_err());
    fs::write(
        server.dir().join("prefork.toml"),
        format!("bind = ['127.0.0.1:0', '127.0.0.1:{port}']\nworkers = 2\n"),
    )
    .expect("write");
    server.run_verb(&["reload"]);
    assert_eq!(status(), Ok(200));
    reload(&format!("https-redirect = ['127.0.0.1:{port}?https-port=443']\n"));
    assert_eq!(status(), Ok(308));
    assert_eq!(server.get("/").status, 200);
    server.stop();
}

#[test]
fn the_port_is_that_of_the_first_https_address_and_hsts_is_for_tls_alone() {
    let authority = TestAuthority::new();
    let dir = tempfile::tempdir().expect("directory");
    let pair = authority.issue(&["localhost"]).write(dir.path(), "pair");
    for policy in ["shared", "round-robin", "reuseport"] {
        let server = Server::builder()
            .bind(["http://127.0.0.1:0", "https://127.0.0.1:0", "https://127.0.0.1:0"])
            .args(pair.args())
            .args(["--dispatch", policy, "--https-redirect", "127.0.0.1:0"])
            .args(["--hsts", "300; includeSubDomains"])
            .start();
        let [plain, tls, _, redirect] = server.addresses() else {
            panic!("{:?}", server.addresses())
        };
        let response = Client::connect(redirect).expect("connect").get("/a").expect("an answer");
        let Address::Tcp(addr) = tls else { panic!("{tls}") };
        let url = format!("https://test:{}/a", addr.port());
        assert_eq!(response.header("location"), Some(url.as_str()), "{policy}");
        assert_eq!(response.header("strict-transport-security"), None);
        let response = Client::connect(plain).expect("connect").get("/").expect("an answer");
        assert_eq!((response.status, response.header("strict-transport-security")), (200, None));
        let client = Client::connect_tls(tls, &authority.client(), "localhost");
        let response = client.expect("a handshake").get("/").expect("an answer");
        let hsts = response.header("strict-transport-security");
        assert_eq!(hsts, Some("max-age=300; includeSubDomains"), "{policy}");
        server.stop();
    }
}

/// Returns a port that is free at the moment.
fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    socket.local_addr().expect("address").port()
}

#[test]
fn redirects_stay_over_reload_upgrade_and_the_death_of_workers() {
    let server = start_redirecting(2, &[]).allow_errors(&["died"]);
    let request = "GET / HTTP/1.1\r\nHost: example.org\r\n\r\n";
    let check =
        || assert_eq!(location(&server, request).as_deref(), Some("https://example.org:8443/"));
    server.run_verb(&["reload"]);
    check();
    server.run_verb(&["upgrade"]);
    check();
    let pids = server.worker_pids();
    for pid in &pids {
        crate::support::process::send_signal(*pid, Signal::SIGKILL);
    }
    server.wait_new_workers(2, &pids);
    check();
    server.stop();
}

#[test]
fn invalid_settings_are_refused_at_the_start() {
    for args in [
        &["--https-redirect", "nonsense"][..],
        &["--https-redirect", "127.0.0.1:0?https-port=0"],
        &["--acme-challenge-dir", "/"],
        &["--https-redirect", "127.0.0.1:0"],
        &["--https-redirect", "127.0.0.1:0?https-port=1", "--acme-challenge-dir", "/nonexistent"],
        &["--bind", "127.0.0.1:1", "--https-redirect", "127.0.0.1:1"],
        &["--hsts", "tomorrow"],
        &["--hsts", "300; preload"],
    ] {
        let output = ProcessBuilder::verb("check").args(args.iter().copied()).run();
        assert_eq!(output.status, Some(78), "{args:?}: {output:?}");
    }
}
