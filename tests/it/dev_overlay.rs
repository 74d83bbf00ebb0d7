//! `serve --overlay`: the script in HTML files, and the stream of reloads that it follows.

use std::fs;
use std::path::PathBuf;

use crate::support::admin_listener::{admin_address, get, try_get};
use crate::support::http::Response;
use crate::support::overlay_stream::OverlayStream;
use crate::support::server::ProcessBuilder;
use crate::support::{Client, Server};

const PAGE: &str = "<!DOCTYPE html>\n<html><body>one</body></html>\n";

/// Creates a site with a page, and returns a builder for its server.
fn site() -> (ProcessBuilder, PathBuf) {
    let builder = Server::builder();
    let root = builder.dir().join("public");
    fs::create_dir(&root).expect("directory");
    fs::write(root.join("index.html"), PAGE).expect("file");
    (builder.workers(1).args(["--root", "public", "--overlay"]), root)
}

fn request(server: &Server, method: &str, path: &str, fields: &str) -> Response {
    let mut client: Client = server.connect();
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).expect("send");
    if method == "HEAD" { client.read_head() } else { client.read() }.expect("answer")
}

#[test]
fn html_documents_get_the_script_and_are_sent_whole() {
    let (builder, root) = site();
    fs::write(root.join("index.html.gz"), "compressed").expect("file");
    fs::write(root.join("large.html"), PAGE.repeat(5000)).expect("file");
    fs::write(root.join("piece.html"), "<li>one</li>").expect("file");
    fs::write(root.join("style.css"), "a{}").expect("file");
    let server = builder.start();
    let admin = admin_address(&server);
    let tag = format!(r#"<script async src="http://{admin}/overlay.js"></script>"#);
    let expected = format!("{PAGE}\n{tag}\n");
    let whole = server.get("/");
    assert_eq!((whole.status, whole.text()), (200, &expected[..]));
    assert_eq!(whole.header("content-length"), Some(&*expected.len().to_string()));
    assert_eq!(whole.header("accept-ranges"), Some("none"));
    for fields in [
        "Range: bytes=0-9\r\n",
        "Accept-Encoding: gzip\r\n",
        "If-None-Match: *\r\n",
        "If-Modified-Since: Fri, 31 Dec 2100 23:59:59 GMT\r\n",
    ] {
        let answer = request(&server, "GET", "/", fields);
        assert_eq!((answer.status, answer.text()), (200, &expected[..]), "{fields}");
        for name in ["etag", "last-modified", "content-encoding", "vary"] {
            assert_eq!(answer.header(name), None, "{fields}");
        }
    }
    let head = request(&server, "HEAD", "/", "");
    assert_eq!(head.header("content-length"), Some(&*expected.len().to_string()));
    assert!(server.get("/large.html").text().ends_with(&format!("\n{tag}\n")));
    assert_eq!(server.get("/piece.html").text(), "<li>one</li>");
    let style = request(&server, "GET", "/style.css", "Range: bytes=0-0\r\n");
    assert_eq!((style.status, style.text()), (206, "a"));
    // The script is asked for at the admin listener, not here.
    assert_eq!(server.get("/overlay.js").status, 404);
    server.stop();
}

#[test]
fn without_overlay_files_are_as_they_are_and_the_admin_listener_has_no_script() {
    let builder = Server::builder();
    fs::write(builder.dir().join("index.html"), PAGE).expect("file");
    let args = ["--root", ".", "--admin", "127.0.0.1:0"];
    let server = builder.workers(1).args(args).start();
    assert_eq!(server.get("/").text(), PAGE);
    let admin = admin_address(&server);
    for path in ["/overlay.js", "/overlay/events"] {
        assert_eq!(get(&admin, path).status, 404, "{path}");
    }
    server.stop();
}

#[test]
fn pages_of_this_machine_may_use_the_script_and_others_may_not_read_the_stream() {
    let (builder, _root) = site();
    let server = builder.start();
    let admin = admin_address(&server);
    let of_origin = |origin: &str| {
        let fields = format!("Origin: {origin}\r\n");
        let script = try_get(&admin, "/overlay.js", &fields).expect("answer");
        assert_eq!(script.status, 200);
        assert_eq!(script.header("cross-origin-resource-policy"), Some("cross-origin"));
        assert!(script.header("content-type").is_some_and(|kind| kind.contains("javascript")));
        script.header("access-control-allow-origin").map(str::to_string)
    };
    let own = format!("http://{}", server.address());
    assert_eq!(of_origin(&own), Some(own));
    assert_eq!(of_origin("http://localhost:5173").as_deref(), Some("http://localhost:5173"));
    assert_eq!(of_origin("https://example.com"), None);
    // Other paths are not for other origins, whatever their host.
    let status = try_get(&admin, "/status", "Origin: http://localhost:5173\r\n").expect("answer");
    assert_eq!(status.header("access-control-allow-origin"), None);
    // A name that anybody can make stand for this machine.
    let mut client = Client::connect(&admin).expect("connected");
    let foreign = "GET /overlay.js HTTP/1.1\r\nHost: evil.example.com\r\n\r\n";
    assert_eq!(client.send_and_read(foreign).expect("answer").status, 421);
    server.stop();
}

#[test]
fn pages_learn_of_reloads_and_of_the_errors_of_failed_ones() {
    let builder = Server::builder();
    let config = builder.dir().join("prefork.toml");
    let text = |workers: &str| {
        format!("bind = \"127.0.0.1:0\"\nworkers = {workers}\nwatch = [\"auto\"]\noverlay = true\n")
    };
    let server = builder.config(1, &text("1")).other_workers(1).start();
    let server = server.allow_errors(&["reload failed"]);
    server.wait_log(&["watching for changes"]);
    let mut page = OverlayStream::open(&admin_address(&server));
    let first = page.wait_state("ok");
    fs::write(&config, text("\"<many>\"")).expect("file");
    let failed = page.wait_state("failed");
    assert_eq!(failed["number"], first["number"]);
    assert!(failed["text"].as_str().is_some_and(|text| text.contains("<many>")), "{failed}");
    // One that comes later gets the error, too.
    let late = OverlayStream::open(&admin_address(&server)).wait_state("failed");
    assert_eq!(late, failed);
    fs::write(&config, text("2")).expect("file");
    let second = page.wait_state("ok");
    assert!(second["number"].as_u64() > first["number"].as_u64(), "{second}");
    assert_eq!(second["instance"], first["instance"]);
    // Reloads of the operator count as well.
    server.run_verb(&["reload"]);
    assert!(page.wait_state("ok")["number"].as_u64() > second["number"].as_u64());
    // The stream stays open, and a stop does not wait for it.
    server.stop();
}

#[test]
fn an_admin_listener_that_no_page_can_use_is_an_error() {
    for (args, piece) in [
        (&["--admin", "unix:admin"][..], "needs an admin listener that a browser reaches"),
        (&["--admin", "127.0.0.1:0", "--admin-token-file", "token"], "admin-token-file"),
    ] {
        let builder = ProcessBuilder::serve();
        let token = builder.dir().join("token");
        fs::write(&token, "s3cret").expect("file");
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&token, private).expect("mode");
        let output = builder.args(["--overlay"]).args(args.iter().copied()).run();
        assert_eq!(output.status, Some(78), "{output:?}");
        assert!(output.stderr.contains(piece), "{output:?}");
    }
}
