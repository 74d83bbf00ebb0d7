//! `--root DIR`.

use std::fs;

use crate::support::{Client, Server};

/// A server of a directory with a page, a directory of the same name as a file beside the root, and a secret
/// outside.
fn serve() -> Server {
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
    let server = serve();
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
fn nothing_outside_of_the_root_is_served() {
    let server = serve();
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
fn ranges_and_validators_work() {
    let server = serve();
    let mut client: Client = server.connect();
    let ranged = "GET /page.html HTTP/1.1\r\nHost: a\r\nRange: bytes=3-4\r\n\r\n";
    let answer = client.ask(ranged).expect("answer");
    assert_eq!((answer.status, answer.text()), (206, "pa"));
    let modified = client.get("/page.html").expect("answer");
    let modified = modified.header("last-modified").expect("a date");
    let again =
        format!("GET /page.html HTTP/1.1\r\nHost: a\r\nIf-Modified-Since: {modified}\r\n\r\n");
    assert_eq!(client.ask(again).expect("answer").status, 304);
    drop(client);
    server.stop();
}

#[test]
fn a_killed_worker_is_replaced_though_file_serving_has_threads() {
    let server = serve().allow(&["SIGKILL"]);
    assert_eq!(server.get("/page.html").status, 200);
    let pid = server.worker_pids()[0];
    crate::support::process::send(pid, nix::sys::signal::Signal::SIGKILL);
    server.wait_replaced(1);
    assert_eq!(server.get("/page.html").status, 200);
    server.stop();
}
