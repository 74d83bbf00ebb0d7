//! `--root DIR`: which files are served, with which headers, and which are not.

use std::fs;
use std::fs::{File, FileTimes};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::support::http::Response;
use crate::support::server::ProcessBuilder;
use crate::support::{Client, Server, overrides, wait};

/// Creates a root with `index.html` and `file.txt`, and returns a builder for its server.
fn site_with_files() -> (ProcessBuilder, PathBuf) {
    let builder = Server::builder();
    let root = builder.dir().join("public");
    fs::create_dir(&root).expect("directory");
    fs::write(root.join("index.html"), "<p>index").expect("write");
    fs::write(root.join("file.txt"), "0123456789").expect("write");
    (builder.workers(1).args(["--root", "public"]), root)
}

fn request(server: &Server, method: &str, path: &str, fields: &str) -> Response {
    let mut client: Client = server.connect();
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).expect("send");
    if method == "HEAD" { client.read_head() } else { client.read() }.expect("answer")
}

/// Asserts the status of each path.
#[track_caller]
fn assert_statuses(server: &Server, paths: &[(&str, u16)]) {
    for (path, status) in paths {
        let answer = server.get(path);
        assert_eq!(answer.status, *status, "{path}: {answer:?}");
    }
}

#[test]
fn health_paths_take_precedence_over_files() {
    let (builder, root) = site_with_files();
    fs::write(root.join("healthz"), "a file").expect("write");
    let server = builder.start();
    assert_eq!(server.get("/healthz").text(), "ok\n");
    assert_eq!(server.get("/readyz").text(), "ready\n");
    // Other spellings of the path do not reach the file, either.
    assert_eq!(server.get("//%68ealthz").text(), "ok\n");
    assert_eq!(request(&server, "HEAD", "/readyz", "").status, 200);
    if overrides::is_tls() {
        // The verb would ask without TLS.
        server.stop();
        return;
    }
    let asked = ProcessBuilder::verb("health").args([server.address().to_string().as_str()]).run();
    assert_eq!(asked.status, Some(0), "{asked:?}");
    server.stop();
}

#[test]
fn without_health_paths_files_of_their_name_are_served() {
    let (builder, root) = site_with_files();
    fs::write(root.join("healthz"), "a file").expect("write");
    let server = builder.args(["--health-paths=false"]).start();
    assert_eq!(server.get("/healthz").text(), "a file");
    assert_statuses(&server, &[("/readyz", 404)]);
    server.stop();
}

#[test]
fn readyz_is_503_during_drain_delay_while_files_are_served() {
    let (builder, _root) = site_with_files();
    let server = builder.args(["--drain-delay", "300s"]).start();
    server.signal(nix::sys::signal::Signal::SIGTERM);
    wait::wait_until("it is not ready", || server.get("/readyz").status == 503);
    assert_statuses(&server, &[("/healthz", 200), ("/file.txt", 200)]);
    server.signal(nix::sys::signal::Signal::SIGQUIT);
    server.wait_clean_exit(0);
}

#[test]
fn special_files_are_404_and_never_block() {
    let (builder, root) = site_with_files();
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    let _socket = UnixListener::bind(root.join("socket")).expect("socket");
    symlink("/dev/zero", root.join("device")).expect("link");
    fs::create_dir(root.join("dir")).expect("directory");
    nix::unistd::mkfifo(&root.join("dir/index.html"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    let server = builder.args(["--follow-symlinks"]).start();
    let mut clients: Vec<Client> = (0..60).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("GET /fifo HTTP/1.1\r\nHost: a\r\n\r\n".repeat(10)).expect("send");
    }
    for client in &mut clients {
        for _ in 0..10 {
            assert_eq!(client.read().expect("answer").status, 404);
        }
    }
    assert_statuses(
        &server,
        &[("/socket", 404), ("/device", 404), ("/dir/", 403), ("/file.txt", 200)],
    );
    drop(clients);
    server.stop();
}

#[test]
fn directory_redirects_stay_on_this_host() {
    let (builder, root) = site_with_files();
    for name in ["evil.example", "a/b", "\\evil.example", "with space", "\u{e4}"] {
        fs::create_dir_all(root.join(name)).expect("directory");
    }
    let server = builder.start();
    for (path, location) in [
        ("/evil.example", "/evil.example/"),
        ("//evil.example", "/evil.example/"),
        ("///evil.example?a=//b", "/evil.example/?a=//b"),
        ("/%2fevil.example", "/evil.example/"),
        ("/%2f%2Fevil.example", "/evil.example/"),
        ("/.//evil.example", "/evil.example/"),
        ("/a/..//evil.example", "/evil.example/"),
        ("/%5cevil.example", "/%5Cevil.example/"),
        ("/a/b?", "/a/b/?"),
        ("/with%20space", "/with%20space/"),
        ("/%c3%a4", "/%C3%A4/"),
        ("http://a//evil.example", "/evil.example/"),
    ] {
        let answer = server.get(path);
        let found = (answer.status, answer.header("location"));
        assert_eq!(found, (301, Some(location)), "{path}");
    }
    server.stop();
}

#[test]
fn no_request_path_causes_a_server_error() {
    let (builder, root) = site_with_files();
    fs::create_dir(root.join("empty")).expect("directory");
    fs::write(root.join("100%"), "percent").expect("write");
    symlink("loop", root.join("loop")).expect("link");
    symlink("nothing", root.join("dangling")).expect("link");
    let server = builder.start();
    let long = format!("/{}", "n".repeat(256));
    let deep = "/d".repeat(3000);
    assert_statuses(
        &server,
        &[
            (&long, 404),
            (&deep, 404),
            ("/nothing", 404),
            ("/nothing/", 404),
            ("/file.txt/", 404),
            ("/file.txt/more", 404),
            ("/index.html/..", 200),
            ("/loop", 404),
            ("/loop/more", 404),
            ("/dangling", 404),
            ("/a%00b", 404),
            ("/%00", 404),
            ("/%ff%fe", 404),
            ("/a%0d%0ab", 404),
            ("/%", 400),
            ("/%4", 400),
            ("/%zz", 400),
            ("/100%25", 200),
            ("/..", 400),
            ("/empty/", 403),
            ("/empty", 301),
            ("/?/../..", 200),
        ],
    );
    server.stop();
}

#[test]
fn file_names_need_not_be_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let (builder, root) = site_with_files();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"\xff\x01 \".txt")), "bytes").expect("write");
    let server = builder.start();
    assert_eq!(server.get("/%ff%01%20%22.txt").text(), "bytes");
    server.stop();
}

#[test]
fn files_with_any_modification_time_are_served() {
    let (builder, root) = site_with_files();
    let day = Duration::from_secs(86_400);
    for (name, time) in [
        ("epoch", SystemTime::UNIX_EPOCH),
        ("before", SystemTime::UNIX_EPOCH - 365 * day),
        ("future", SystemTime::now() + 365 * 200 * day),
    ] {
        let file = File::create(root.join(name)).expect("create");
        file.set_times(FileTimes::new().set_modified(time)).expect("times");
    }
    let server = builder.start();
    for (name, is_dated) in [("/epoch", true), ("/before", false), ("/future", true)] {
        let answer = server.get(name);
        assert_eq!(answer.status, 200, "{name}");
        assert_eq!(answer.header("last-modified").is_some(), is_dated, "{name}");
        let etag = answer.header("etag").expect("a tag");
        let again = request(&server, "GET", name, &format!("If-None-Match: {etag}\r\n"));
        assert_eq!(again.status, 304, "{name}");
    }
    server.stop();
}

#[test]
fn other_methods_than_get_and_head_are_405() {
    let (builder, _root) = site_with_files();
    let server = builder.start();
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND"] {
        let answer = request(&server, method, "/file.txt", "Content-Length: 0\r\n");
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method}");
    }
    let head = request(&server, "HEAD", "/file.txt", "Range: bytes=0-1\r\n");
    assert_eq!((head.status, head.header("content-length")), (200, Some("10")));
    server.stop();
}

#[test]
fn dotfiles_are_hidden_unless_enabled() {
    let (builder, root) = site_with_files();
    for name in [".git/config", ".well-known/acme-challenge/token", "sub/.well-known/x", ".env"] {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("directories");
        fs::write(path, "dot").expect("write");
    }
    let server = builder.start();
    assert_statuses(
        &server,
        &[
            ("/.env", 404),
            ("/%2eenv", 404),
            ("/.git", 404),
            ("/.git/config", 404),
            ("/.well-known/acme-challenge/token", 200),
            ("/.well-known/../.env", 404),
            ("/.well-known%2f..%2f.env", 404),
            ("/sub/.well-known/x", 404),
        ],
    );
    server.stop();
    let (builder, root) = site_with_files();
    fs::write(root.join(".env"), "dot").expect("write");
    let server = builder.args(["--dotfiles"]).start();
    assert_statuses(&server, &[("/.env", 200)]);
    server.stop();
}

#[test]
fn symlinks_out_of_the_root_are_followed_only_if_enabled() {
    for may in [false, true] {
        let (builder, root) = site_with_files();
        fs::write(builder.dir().join("secret"), "secret").expect("write");
        symlink("../secret", root.join("out")).expect("link");
        symlink(builder.dir().join("secret"), root.join("out-absolute")).expect("link");
        symlink(root.join("file.txt"), root.join("in-absolute")).expect("link");
        symlink("file.txt", root.join("in")).expect("link");
        symlink("..", root.join("up")).expect("link");
        let server = builder.args([format!("--follow-symlinks={may}")]).start();
        let out = if may { 200 } else { 404 };
        assert_statuses(
            &server,
            &[
                ("/in", 200),
                ("/in-absolute", 200),
                ("/out", out),
                ("/out-absolute", out),
                ("/up/secret", out),
            ],
        );
        server.stop();
    }
}

#[test]
fn a_symlinked_root_is_resolved_again_at_a_reload() {
    let builder = Server::builder();
    let release = |name: &str| {
        let dir = builder.dir().join("releases").join(name);
        fs::create_dir_all(&dir).expect("directory");
        fs::write(dir.join("version"), name).expect("write");
    };
    release("7");
    release("8");
    let current = builder.dir().join("current");
    symlink("releases/7", &current).expect("link");
    let server = builder.workers(1).args(["--root", "current"]).start();
    let server = server.allow_errors(&["SIGKILL"]);
    assert_eq!(server.get("/version").text(), "7");
    let next = server.dir().join("next");
    symlink("releases/8", &next).expect("link");
    fs::rename(&next, &current).expect("rename");
    // A replacement between the change and the reload still serves the old root.
    crate::support::process::send_signal(
        server.worker_pids()[0],
        nix::sys::signal::Signal::SIGKILL,
    );
    server.wait_replaced(1);
    assert_eq!(server.get("/version").text(), "7");
    server.signal(nix::sys::signal::Signal::SIGHUP);
    wait::wait_until("the new root", || server.get("/version").text() == "8");
    server.stop();
}

#[test]
fn changed_files_are_noticed() {
    let (builder, root) = site_with_files();
    let server = builder.start();
    let file = root.join("file.txt");
    let modified = fs::metadata(&file).expect("metadata").modified().expect("time");
    let becomes = |text: &str| {
        wait::wait_until(text, || server.get("/file.txt").text() == text);
    };
    assert_eq!(server.get("/file.txt").text(), "0123456789");
    // The new content has the same length and the same modification time.
    fs::write(&file, "9876543210").expect("write");
    let same = FileTimes::new().set_modified(modified);
    File::options().write(true).open(&file).and_then(|f| f.set_times(same)).expect("times");
    becomes("9876543210");
    fs::write(root.join("next"), "replaced").expect("write");
    fs::rename(root.join("next"), &file).expect("rename");
    becomes("replaced");
    fs::remove_file(&file).expect("remove");
    wait::wait_until("404", || server.get("/file.txt").status == 404);
    fs::write(&file, "again").expect("write");
    assert_eq!(server.get("/file.txt").text(), "again");
    server.stop();
}

#[test]
fn the_fallback_file_answers_for_missing_paths() {
    let (builder, root) = site_with_files();
    fs::write(root.join(".env"), "secret").expect("write");
    fs::create_dir(root.join("assets")).expect("directory");
    let server = builder.args(["--fallback", "index.html"]).start();
    for path in ["/users/7", "/nothing.js", "/.env", "/file.txt/more", "/a%00b", "/assets/"] {
        let answer = server.get(path);
        assert_eq!((answer.status, answer.text()), (200, "<p>index"), "{path}");
        assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"), "{path}");
    }
    assert_eq!(server.get("/file.txt").text(), "0123456789");
    assert_statuses(&server, &[("/%zz", 400)]);
    server.stop();
}

#[test]
fn the_error_page_is_sent_with_404() {
    let (builder, root) = site_with_files();
    fs::write(root.join("404.html"), "<p>nothing here").expect("write");
    let server = builder.args(["--error-page-404", "/404.html"]).start();
    let answer = request(&server, "GET", "/nothing", "Range: bytes=0-1\r\nIf-None-Match: *\r\n");
    assert_eq!((answer.status, answer.text()), (404, "<p>nothing here"));
    assert_eq!((answer.header("etag"), answer.header("accept-ranges")), (None, None));
    let head = request(&server, "HEAD", "/nothing", "");
    assert_eq!((head.status, head.header("content-length")), (404, Some("15")));
    server.stop();
}

#[test]
fn unusable_fallback_and_error_pages_are_configuration_errors() {
    for (args, piece) in [
        (&["--root", "/etc", "--fallback", "no-such-file"][..], "no-such-file"),
        (&["--root", "/etc", "--error-page-404", "../etc/passwd"], "../etc/passwd"),
        (&["--fallback", "index.html"], "root"),
        (&["--root", "/etc", "--cache-control", "a\r\nb"], "cache-control"),
    ] {
        let ended = ProcessBuilder::verb("check").args(args).run();
        assert_eq!(ended.status, Some(78), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(piece), "{args:?}: {ended:?}");
    }
}

#[test]
fn precompressed_files_are_sent_if_accepted() {
    let (builder, root) = site_with_files();
    fs::write(root.join("app.js"), "plain").expect("write");
    fs::write(root.join("app.js.gz"), "as gzip").expect("write");
    fs::write(root.join("app.js.br"), "as brotli").expect("write");
    let server = builder.args(["--cache-control", "public, max-age=60"]).start();
    let mut tags = Vec::new();
    for (accept, coding, body) in [
        ("", None, "plain"),
        ("Accept-Encoding: gzip\r\n", Some("gzip"), "as gzip"),
        ("Accept-Encoding: gzip, br\r\n", Some("br"), "as brotli"),
        ("Accept-Encoding: br;q=0, *;q=0\r\n", None, "plain"),
        ("Accept-Encoding: br;q=0.1, gzip;q=0.2\r\n", Some("gzip"), "as gzip"),
    ] {
        let answer = request(&server, "GET", "/app.js", accept);
        assert_eq!((answer.header("content-encoding"), answer.text()), (coding, body), "{accept}");
        assert_eq!(answer.header("vary"), Some("Accept-Encoding"));
        assert_eq!(answer.header("content-type"), Some("text/javascript; charset=utf-8"));
        assert_eq!(answer.header("cache-control"), Some("public, max-age=60"));
        tags.push(answer.header("etag").expect("a tag").to_string());
        let part = request(&server, "GET", "/app.js", &format!("{accept}Range: bytes=0-1\r\n"));
        assert_eq!((part.status, part.text()), (206, &body[..2]), "{accept}");
    }
    assert!(tags[0] != tags[1] && tags[1] != tags[2] && tags[0] != tags[2], "{tags:?}");
    let same = format!("Accept-Encoding: br\r\nIf-None-Match: {}\r\n", tags[2]);
    let unchanged = request(&server, "GET", "/app.js", &same);
    assert_eq!((unchanged.status, unchanged.header("vary")), (304, Some("Accept-Encoding")));
    assert_eq!(server.get("/file.txt").header("vary"), None);
    server.stop();
}

#[test]
fn truncating_a_file_ends_its_response_early() {
    let (builder, root) = site_with_files();
    let length = 64 << 20;
    let big = root.join("big");
    File::create(&big).and_then(|file| file.set_len(length)).expect("create");
    let server = builder.start();
    let mut client = server.connect();
    client.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    client.read_exactly(1000).expect("the beginning");
    File::options().write(true).open(&big).and_then(|file| file.set_len(10)).expect("truncate");
    let rest = client.read_to_end().map(|rest| rest.len() as u64);
    assert!(rest.is_err() || rest.is_ok_and(|rest| rest < length - 1000));
    assert_statuses(&server, &[("/file.txt", 200)]);
    server.stop();
}

#[test]
fn a_truncated_file_is_served_with_its_new_length() {
    let (builder, root) = site_with_files();
    let server = builder.start();
    for round in 0..8u64 {
        let (name, length) = (format!("big{round}"), 300_000 - round);
        let file = File::create(root.join(&name)).expect("create");
        file.set_len(1_000_000).expect("lengthen");
        // Cached metadata is stale after the next line.
        assert_eq!(server.get(&format!("/{name}")).body.len(), 1_000_000);
        file.set_len(length).expect("shorten");
        assert_eq!(server.get(&format!("/{name}")).body.len() as u64, length);
    }
    server.stop();
}

#[test]
fn running_out_of_descriptors_is_503_until_some_are_free() {
    let (builder, root) = site_with_files();
    let server = builder.script("ulimit -n 100; exec \"$0\" \"$@\"");
    for n in 0..48 {
        let file = File::create(root.join(format!("big{n}"))).expect("create");
        file.set_len(32 << 20).expect("length");
    }
    let server = server.start();
    let mut probe = server.connect();
    // All connections are accepted before descriptors run out.
    let mut clients: Vec<Client> = (0..48).map(|_| server.connect()).collect();
    for client in clients.iter_mut().chain([&mut probe]) {
        assert_eq!(client.get("/healthz").expect("answer").status, 200);
    }
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(format!("GET /big{n} HTTP/1.1\r\nHost: a\r\n\r\n")).expect("send");
    }
    // A connection and a file for each client exceed the limit.
    let begun = clients.iter_mut().map(|client| client.read_exactly(12).expect("the beginning"));
    let begun: Vec<Vec<u8>> = begun.collect();
    let how_many = |line: &[u8]| begun.iter().filter(|begun| begun.as_slice() == line).count();
    let (served, refused) = (how_many(b"HTTP/1.1 200"), how_many(b"HTTP/1.1 503"));
    assert!(served > 0 && refused > 0 && served + refused == 48, "{served} {refused}");
    drop(clients);
    wait::wait_until("it is served again", || {
        probe.get("/file.txt").expect("answer").status == 200
    });
    drop(probe);
    server.allow_errors(&["Too many open files"]).stop();
}

#[test]
fn unprivileged_workers_answer_403_for_unreadable_files() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (builder, root) = site_with_files();
    let permit = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
    };
    permit(builder.dir(), 0o755);
    permit(&root, 0o755);
    fs::write(root.join("private"), "private").expect("write");
    permit(&root.join("private"), 0o600);
    fs::create_dir(root.join("closed")).expect("directory");
    permit(&root.join("closed"), 0o700);
    let server = builder.args(["--user", "nobody"]).start();
    assert_statuses(
        &server,
        &[("/file.txt", 200), ("/private", 403), ("/closed/", 403), ("/closed/a", 403)],
    );
    server.stop();
}

/// Starts a server of a directory with pages and a subdirectory, beside a file that must not be served.
fn start_site() -> Server {
    let builder = Server::builder();
    let root = builder.dir().join("public");
    fs::create_dir_all(root.join("sub")).expect("directories");
    fs::write(builder.dir().join("secret"), "secret").expect("write");
    fs::write(root.join("page.html"), "<p>page").expect("write");
    fs::write(root.join("index.html"), "<p>index").expect("write");
    fs::write(root.join("sub/with space.txt"), "text").expect("write");
    builder.args(["--root", "public"]).start()
}

#[test]
fn files_are_served_with_their_types() {
    let server = start_site();
    for (path, kind, body) in [
        ("/page.html", "text/html", "<p>page"),
        ("/", "text/html", "<p>index"),
        ("/sub/with%20space.txt", "text/plain", "text"),
    ] {
        let answer = server.get(path);
        assert_eq!((answer.status, answer.text()), (200, body), "{path}");
        assert!(answer.header("content-type").is_some_and(|t| t.starts_with(kind)), "{answer:?}");
    }
    assert_eq!(server.get("/nowhere").status, 404);
    server.stop();
}

#[test]
fn paths_outside_the_root_are_not_served() {
    let server = start_site();
    for path in [
        "/../secret",
        "/sub/../../secret",
        "/%2e%2e/secret",
        "/..%2fsecret",
        "/%2e%2e%2fsecret",
        "/..%5csecret",
        "//../secret",
        "/./../secret",
        "/..%00/secret",
        "/etc/passwd",
        "//etc/passwd",
        "/%2fetc/passwd",
    ] {
        let answer = server.get(path);
        assert!(matches!(answer.status, 400 | 404), "{path}: {answer:?}");
        assert!(!answer.text().contains("secret") && !answer.text().contains("root:"), "{path}");
    }
    server.stop();
}

#[test]
fn ranges_and_if_modified_since_are_supported() {
    let server = start_site();
    let mut client: Client = server.connect();
    let ranged = "GET /page.html HTTP/1.1\r\nHost: a\r\nRange: bytes=3-4\r\n\r\n";
    let answer = client.send_and_read(ranged).expect("answer");
    assert_eq!((answer.status, answer.text()), (206, "pa"));
    let modified = client.get("/page.html").expect("answer");
    let modified = modified.header("last-modified").expect("a date");
    let again =
        format!("GET /page.html HTTP/1.1\r\nHost: a\r\nIf-Modified-Since: {modified}\r\n\r\n");
    assert_eq!(client.send_and_read(again).expect("answer").status, 304);
    drop(client);
    server.stop();
}

#[test]
fn a_killed_file_serving_worker_is_replaced() {
    let server = start_site().allow_errors(&["SIGKILL"]);
    assert_eq!(server.get("/page.html").status, 200);
    let pid = server.worker_pids()[0];
    crate::support::process::send_signal(pid, nix::sys::signal::Signal::SIGKILL);
    server.wait_replaced(1);
    assert_eq!(server.get("/page.html").status, 200);
    server.stop();
}
