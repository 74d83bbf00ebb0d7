//! `--root DIR`: conditional requests and ranges (RFC 9110, sections 13 and 14), as a client sees them.
//!
//! Unit tests have the tables of single fields; `scripts/e2e/nginx-files` compares with nginx.

use std::fs::{self, File, FileTimes};
use std::time::{Duration, SystemTime};

use crate::support::http::Response;
use crate::support::{Client, Server};

const LAST_MODIFIED_DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const DATE_BEFORE_LAST_MODIFIED: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
const DATE_AFTER_LAST_MODIFIED: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
/// A size that is sent in several reads.
const LARGE_FILE_SIZE: usize = 1 << 20;

/// Starts a server of `/small` (ten digits), `/large` (bytes counting to 250) and `/empty`, modified at
/// [`LAST_MODIFIED_DATE`].
fn start_file_server() -> Server {
    let builder = Server::builder();
    let root = builder.dir().join("public");
    fs::create_dir(&root).expect("directory");
    fs::write(root.join("small"), "0123456789").expect("write");
    fs::write(root.join("large"), large_content()).expect("write");
    fs::write(root.join("empty"), "").expect("write");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
    for name in ["small", "large", "empty"] {
        let file = File::options().write(true).open(root.join(name)).expect("open");
        file.set_times(FileTimes::new().set_modified(time)).expect("times");
    }
    builder.workers(1).args(["--root", "public"]).start()
}

fn large_content() -> Vec<u8> {
    (0..LARGE_FILE_SIZE).map(|at| (at % 251) as u8).collect()
}

fn request(client: &mut Client, method: &str, path: &str, fields: &str) -> Response {
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).expect("send");
    if method == "HEAD" { client.read_head() } else { client.read() }.expect("answer")
}

#[test]
fn preconditions_are_evaluated_in_the_order_of_rfc_9110() {
    let server = start_file_server();
    let mut client = server.connect();
    let etag = client.get("/small").expect("answer").header("etag").expect("a tag").to_string();
    for (fields, status) in [
        (format!("If-None-Match: {etag}\r\n"), 304),
        (format!("If-None-Match: W/{etag}\r\n"), 304),
        (format!("If-None-Match: \"x\", {etag}\r\n"), 304),
        ("If-None-Match: *\r\n".to_string(), 304),
        ("If-None-Match: \"x\"\r\n".to_string(), 200),
        (format!("If-Modified-Since: {LAST_MODIFIED_DATE}\r\n"), 304),
        (format!("If-Modified-Since: {DATE_AFTER_LAST_MODIFIED}\r\n"), 304),
        (format!("If-Modified-Since: {DATE_BEFORE_LAST_MODIFIED}\r\n"), 200),
        (format!("If-None-Match: \"x\"\r\nIf-Modified-Since: {DATE_AFTER_LAST_MODIFIED}\r\n"), 200),
        (format!("If-Match: {etag}\r\n"), 200),
        (format!("If-Match: W/{etag}\r\n"), 412),
        ("If-Match: \"x\"\r\n".to_string(), 412),
        ("If-Match: *\r\n".to_string(), 200),
        (format!("If-Unmodified-Since: {DATE_BEFORE_LAST_MODIFIED}\r\n"), 412),
        (format!("If-Unmodified-Since: {LAST_MODIFIED_DATE}\r\n"), 200),
        (format!("If-Match: {etag}\r\nIf-Unmodified-Since: {DATE_BEFORE_LAST_MODIFIED}\r\n"), 200),
        (format!("If-Match: \"x\"\r\nIf-None-Match: {etag}\r\n"), 412),
        (format!("If-None-Match: {etag}\r\nRange: bytes=0-1\r\n"), 304),
        ("If-Match: \"x\"\r\nRange: bytes=99-\r\n".to_string(), 412),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = request(&mut client, method, "/small", &fields);
            assert_eq!(answer.status, status, "{method} {fields}");
            if status == 304 {
                assert_eq!(answer.header("etag"), Some(etag.as_str()), "{fields}");
            }
        }
    }
    // Missing files are 404 whatever the preconditions.
    for fields in ["If-Match: *\r\n", "If-None-Match: *\r\n", "Range: bytes=0-1\r\n"] {
        assert_eq!(request(&mut client, "GET", "/nothing", fields).status, 404, "{fields}");
    }
    drop(client);
    server.stop();
}

#[test]
fn a_single_range_is_206() {
    let server = start_file_server();
    let mut client = server.connect();
    for (range, status, content_range, body) in [
        ("bytes=0-0", 206, Some("bytes 0-0/10"), "0"),
        ("bytes=2-4", 206, Some("bytes 2-4/10"), "234"),
        ("bytes=7-", 206, Some("bytes 7-9/10"), "789"),
        ("bytes=-2", 206, Some("bytes 8-9/10"), "89"),
        ("bytes=-99", 206, Some("bytes 0-9/10"), "0123456789"),
        ("bytes=5-99999999999999999999", 206, Some("bytes 5-9/10"), "56789"),
        ("bytes=10-", 416, Some("bytes */10"), ""),
        ("bytes=-0", 416, Some("bytes */10"), ""),
        ("bytes=3-2", 416, Some("bytes */10"), ""),
        ("items=0-1", 200, None, "0123456789"),
        ("bytes=0-9,0-9", 200, None, "0123456789"),
        ("bytes=0-1,50-", 206, Some("bytes 0-1/10"), "01"),
    ] {
        let answer = request(&mut client, "GET", "/small", &format!("Range: {range}\r\n"));
        assert_eq!(answer.status, status, "{range}");
        assert_eq!(answer.header("content-range"), content_range, "{range}");
        if status != 416 {
            assert_eq!(answer.text(), body, "{range}");
        }
        let head = request(&mut client, "HEAD", "/small", &format!("Range: {range}\r\n"));
        let found = (head.status, head.header("content-length"));
        assert_eq!(found, (200, Some("10")), "HEAD {range}");
    }
    let empty = request(&mut client, "GET", "/empty", "Range: bytes=0-\r\n");
    assert_eq!((empty.status, empty.header("content-length")), (200, Some("0")));
    drop(client);
    server.stop();
}

#[test]
fn several_ranges_are_multipart_byteranges() {
    let server = start_file_server();
    let mut client = server.connect();
    let content = large_content();
    for (path, content) in [("/small", &b"0123456789"[..]), ("/large", &content)] {
        let answer = request(&mut client, "GET", path, "Range: bytes=3-4, -1, 0-0\r\n");
        assert_eq!((answer.status, answer.header("content-range")), (206, None), "{path}");
        let kind = answer.header("content-type").expect("a type");
        let boundary = kind.strip_prefix("multipart/byteranges; boundary=").expect("a boundary");
        let (length, mut expected) = (content.len(), Vec::new());
        for (first, last) in [(3, 4), (length - 1, length - 1), (0, 0)] {
            let head = format!(
                "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\n\
                 Content-Range: bytes {first}-{last}/{length}\r\n\r\n"
            );
            expected.extend_from_slice(head.as_bytes());
            expected.extend_from_slice(&content[first..=last]);
        }
        expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        assert_eq!(answer.body, expected, "{path}");
    }
    drop(client);
    server.stop();
}

#[test]
fn a_large_file_is_served_whole_and_by_range() {
    let server = start_file_server();
    let mut client = server.connect();
    let content = large_content();
    assert!(client.get("/large").expect("answer").body == content);
    let part = request(&mut client, "GET", "/large", "Range: bytes=100000-899999\r\n");
    assert_eq!((part.status, part.header("content-length")), (206, Some("800000")));
    assert!(part.body == content[100_000..900_000]);
    drop(client);
    server.stop();
}

#[test]
fn if_range_decides_whether_the_range_applies() {
    let server = start_file_server();
    let mut client = server.connect();
    let etag = client.get("/small").expect("answer").header("etag").expect("a tag").to_string();
    for (validator, status) in [
        (etag.clone(), 206),
        (LAST_MODIFIED_DATE.to_string(), 206),
        (format!("W/{etag}"), 200),
        ("\"x\"".to_string(), 200),
        (DATE_BEFORE_LAST_MODIFIED.to_string(), 200),
        (DATE_AFTER_LAST_MODIFIED.to_string(), 200),
        ("nonsense".to_string(), 200),
    ] {
        let fields = format!("If-Range: {validator}\r\nRange: bytes=0-1\r\n");
        assert_eq!(request(&mut client, "GET", "/small", &fields).status, status, "{validator}");
        // A range that does not apply cannot be unsatisfiable.
        let fields = format!("If-Range: {validator}\r\nRange: bytes=99-\r\n");
        let beyond = if status == 206 { 416 } else { 200 };
        assert_eq!(request(&mut client, "GET", "/small", &fields).status, beyond, "{validator}");
    }
    drop(client);
    server.stop();
}
