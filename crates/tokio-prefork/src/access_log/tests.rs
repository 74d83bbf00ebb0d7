//! Whole lines: each format, hostile requests, and limits.

use std::io::{Read, Seek};

use hyper::header::HeaderValue;
use hyper::{Method, Request, Response, StatusCode, Version};
use proptest::prelude::*;

use super::escape::ValueStyle;
use super::line_value::LineValue;
use super::variable::Variable;
use super::*;
use crate::client::RequestId;
use prefork_supervisor::{Generation, Slot, WEB_KIND, WorkerId};

const TAG: WorkerTag = WorkerTag {
    id: WorkerId(7),
    slot: Slot(2),
    generation: Generation(3),
    pid: Some(4711),
    kind: WEB_KIND,
};

enum Head<'a> {
    Parsed(&'a Request<()>),
    Refused(&'a [u8]),
}

/// Returns the line of `head` at a fixed time. A parsed request has a response with an `ETag`.
fn line_of(format: &AccessLogFormat, head: Head<'_>, max_line_bytes: usize) -> String {
    let layout = LineLayout::new(format, TAG);
    let head = match head {
        Head::Parsed(request) => LoggedHead::Parsed(RequestHead::of(request, &layout)),
        Head::Refused(line) => LoggedHead::Refused(line),
    };
    let (mut parts, mut texts, mut line) = (LineParts::default(), LineTexts::default(), Vec::new());
    let queue_wait = Some(Duration::from_micros(250));
    let started = StartedRequest { head, connection: None, forwarded: None, queue_wait };
    layout.start_line(&started, max_line_bytes, &mut texts, &mut parts);
    if matches!(started.head, LoggedHead::Parsed(_)) {
        let etag = (hyper::header::ETAG, HeaderValue::from_static("\"v1\""));
        layout.add_response_headers(&[etag].into_iter().collect(), max_line_bytes, &mut parts);
    }
    let ended = EndedResponse {
        status: 200,
        body_bytes: 5,
        is_complete: true,
        duration: Some(Duration::from_micros(1_234_567)),
        now: Duration::from_millis(1_795_886_431_042),
    };
    layout.end_line(&parts, &ended, max_line_bytes, &mut texts, &mut line);
    let line = String::from_utf8(line).expect("UTF-8");
    assert_eq!(line.matches('\n').count(), 1, "{line}");
    line.strip_suffix('\n').expect("a line feed").to_string()
}

fn line(format: &str, request: Request<()>) -> String {
    let format: AccessLogFormat = format.parse().expect(format);
    line_of(&format, Head::Parsed(&request), 64 * 1024)
}

fn get(target: &str) -> Request<()> {
    Request::builder().uri(target).header("host", "example.org").body(()).expect("a request")
}

#[test]
fn combined_lines_have_the_fields_that_log_analysers_expect() {
    let mut request = get("/a?b=c");
    for (name, value) in [
        ("authorization", "Basic YWxpY2U6c2VjcmV0"),
        ("referer", "https://example.org/\""),
        ("user-agent", "curl/8 \u{1b}[2J"),
    ] {
        let value = hyper::header::HeaderValue::from_bytes(value.as_bytes());
        let Ok(value) = value else { continue };
        request.headers_mut().insert(name, value);
    }
    let text = line("combined", request);
    let (before, after) = text.split_once('[').expect("a time");
    let (time, rest) = after.split_once(']').expect("a time");
    assert_eq!(before, "- - alice ");
    assert_eq!(time.len(), "28/Nov/2026:17:20:31 +0000".len());
    let fields = r#" "GET /a?b=c HTTP/1.1" 200 5 "https://example.org/\x22" "-""#;
    assert_eq!(rest, fields);
    assert_eq!(
        line("common", get("/")).split_once("] ").expect("a time").1,
        "\"GET / HTTP/1.1\" 200 5"
    );
}

#[test]
fn json_lines_have_numbers_strings_and_nulls() {
    let text = line("json", get("/a?b=%22c"));
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let time = json["time"].as_str().expect("a time");
    assert!(time.contains(".042+") || time.contains(".042-"), "{time}");
    for (key, value) in [
        ("method", "GET".into()),
        ("uri", "/a?b=%22c".into()),
        ("protocol", "HTTP/1.1".into()),
        ("scheme", "http".into()),
        ("host", "example.org".into()),
        ("status", 200.into()),
        ("bytes", 5.into()),
        ("completion", "OK".into()),
        ("duration_us", 1_234_567.into()),
        ("queue_wait_us", 250.into()),
        ("referer", serde_json::Value::Null),
        ("pid", 4711.into()),
        ("worker", 7.into()),
        ("slot", 2.into()),
        ("generation", 3.into()),
    ] {
        assert_eq!(json[key], value, "{key}");
    }
    assert_eq!(json.as_object().map(serde_json::Map::len), Some(22));
}

#[test]
fn request_and_trace_ids_are_those_of_the_request() {
    let mut request = get("/");
    let id: RequestId = "from-a-proxy".parse().expect("an id");
    request.extensions_mut().insert(id);
    let trace = HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    request.headers_mut().insert("traceparent", trace);
    let ids = line("$request_id $trace_id", request);
    assert_eq!(ids, "from-a-proxy 4bf92f3577b34da6a3ce929d0e0e4736");
}

#[test]
fn the_first_header_of_a_name_is_logged_however_many_there_are() {
    for others in [0, 20] {
        let mut builder = Request::builder().header("c", "3").header("a", "1").header("a", "2");
        for n in 0..others {
            builder = builder.header(format!("x-{n}"), "other");
        }
        let request = builder.body(()).expect("a request");
        assert_eq!(line("$http_a $http_b $http_c", request.clone()), "1 - 3", "{others}");
        assert_eq!(line("$http_a$http_b$http_c$http_d$http_e", request), "1-3--", "{others}");
    }
}

#[test]
fn every_variable_has_its_value() {
    for (template, value) in [
        ("$request_method $request_uri $uri $args", "GET /a%20b?c=d /a%20b c=d"),
        ("$request_time $duration_ms $duration_us", "1.234 1234 1234567"),
        ("$msec $time_epoch_ms", "1795886431.042 1795886431042"),
        ("$pid/$worker/$slot/$generation", "4711/7/2/3"),
        ("$host $scheme $server_protocol", "example.org http HTTP/1.1"),
        ("$http_host $http_none $sent_http_etag", r"example.org - \x22v1\x22"),
        ("$status $body_bytes_sent $request_completion", "200 5 OK"),
        ("$queue_wait_us $remote_addr $remote_port $peer", "250 - - -"),
        ("$remote_user $request_id $trace_id", "- - -"),
        (
            "{\"s\":$status,\"h\":\"$http_host\",\"n\":$http_none}",
            "{\"s\":200,\"h\":\"example.org\",\"n\":null}",
        ),
    ] {
        assert_eq!(line(template, get("/a%20b?c=d")), value, "{template}");
    }
    let second = line("$time_iso8601 $time_iso8601_ms", get("/"));
    let (short, long) = second.split_once(' ').expect("two times");
    assert_eq!((short.len(), long.len()), (25, 29), "{second}");
}

#[test]
fn targets_are_written_as_they_were_sent() {
    for (method, target, version, request) in [
        (
            Method::GET,
            "http://example.org/a",
            Version::HTTP_11,
            "GET http://example.org/a HTTP/1.1",
        ),
        (Method::GET, "http://example.org/a?b", Version::HTTP_2, "GET /a?b HTTP/2.0"),
        (Method::OPTIONS, "*", Version::HTTP_10, "OPTIONS * HTTP/1.0"),
        (Method::CONNECT, "example.org:443", Version::HTTP_11, "CONNECT example.org:443 HTTP/1.1"),
    ] {
        let built = Request::builder().method(method).uri(target).version(version).body(());
        assert_eq!(line("\"$request\"", built.expect("a request")), format!("\"{request}\""));
    }
}

#[test]
fn a_refused_request_has_its_first_line() {
    let format = AccessLogFormat::combined();
    let text = line_of(&format, Head::Refused(b"GET /\x00\xff HTTP/1.1"), 4096);
    assert!(text.contains(r#""GET /\x00\xFF HTTP/1.1" 200 5 "-" "-""#), "{text}");
    let text = line_of(&AccessLogFormat::json(), Head::Refused(b"GET"), 4096);
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&json["method"], &json["status"]), (&serde_json::Value::Null, &200.into()));
}

#[test]
fn a_line_that_is_too_long_for_a_pipe_has_cut_values_and_stays_whole() {
    let mut request = get(&format!("/{}", "p".repeat(5000)));
    let agent = hyper::header::HeaderValue::from_bytes(&[0xff; 3000]).expect("a header");
    request.headers_mut().insert("user-agent", agent.clone());
    request.headers_mut().insert("referer", agent);
    *request.method_mut() = "M".repeat(5000).parse().expect("a method");
    for name in ["combined", "json"] {
        let format: AccessLogFormat = name.parse().expect(name);
        let text = line_of(&format, Head::Parsed(&request), 4095);
        assert!(text.len() < 4095 && text.contains("MM..."), "{}", text.len());
        if name == "json" {
            let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(json["status"], 200);
        } else {
            assert!(text.ends_with("...\""), "{text}");
        }
        let whole = line_of(&format, Head::Parsed(&request), 65_536);
        assert!(whole.contains(&"p".repeat(5000)) && whole.contains(&"M".repeat(5000)));
    }
}

#[test]
fn ended_requests_have_the_status_that_nginx_logs() {
    let mut file = tempfile::tempfile().expect("file");
    let counters = LogLineCounters::for_test();
    let writer = AccessLogWriter::new(
        file.try_clone().expect("descriptor").into(),
        SharedLogState::create(),
    );
    let format: AccessLogFormat = "$status $request_completion".parse().expect("a format");
    let config = Config::builder().access_log_format(format.clone()).build().expect("valid");
    let log = WorkerAccessLog::new(&config, TAG, Arc::clone(&writer), counters);
    let policy = LogPolicy::new(AccessLogSample::ALL, None, &[]);
    let mut buffer = LineBuffer::default();
    let mut started = || log.start_record(&get("/"), None, 0, None, &mut buffer);
    let [aborted, mut complete, mut partial, mut failed] = std::array::from_fn(|_| started());
    log.response_started(&mut complete, &Response::new("hello".to_string()));
    let frame = hyper::body::Frame::data(bytes::Bytes::from_static(b"hello"));
    complete.body_polled::<()>(Some(Ok(&frame)));
    let mut response = Response::new("hello".to_string());
    *response.status_mut() = StatusCode::CREATED;
    log.response_started(&mut partial, &response);
    failed.handler_failed();
    let ended = |record| EndedRequest { record, ended_ns: 0 };
    for record in [&aborted, &complete, &partial, &failed] {
        assert!(log.log_ended(&ended(record), &policy, &mut buffer));
    }
    let none = LogPolicy::new(AccessLogSample::new(0.0).expect("a share"), None, &[]);
    assert!(!log.log_ended(&ended(&complete), &none, &mut buffer));
    log.hand_over(&mut buffer);
    assert!(writer.wait_until_written(Duration::from_secs(10)));
    let mut text = String::new();
    file.rewind().expect("rewind");
    file.read_to_string(&mut text).expect("text");
    assert_eq!(text, "499 -\n200 OK\n201 -\n500 -\n");
    assert_eq!(counters.read(), (4, 0, 0));
}

fn encode_base64(bytes: &[u8]) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let encode = |group: &[u8]| {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - group.len()));
        let digit = |n: usize| char::from(digits[(bits >> (18 - 6 * n)) as usize & 63]);
        (0..=group.len()).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(encode).collect()
}

/// Splits a combined line into its fields, as log analysers do.
fn split_combined(line: &str) -> Option<Vec<&str>> {
    let (addr, rest) = line.split_once(" - ")?;
    let (user, rest) = rest.split_once(" [")?;
    let (time, rest) = rest.split_once("] \"")?;
    let (request, rest) = rest.split_once("\" ")?;
    let (status, rest) = rest.split_once(' ')?;
    let (bytes, rest) = rest.split_once(" \"")?;
    let (referer, rest) = rest.split_once("\" \"")?;
    let agent = rest.strip_suffix('"')?;
    let fields = vec![addr, user, time, request, status, bytes, referer, agent];
    (!user.contains(' ') && !fields.iter().any(|field| field.contains('"'))).then_some(fields)
}

proptest! {
    #[test]
    fn every_line_can_be_parsed_back(
        headers in prop::collection::vec(prop::collection::vec(0u8.., 0..60), 3),
        user in prop::collection::vec(0u8.., 0..20),
        path in "[!-~&&[^#?\"<>\\\\^`{|}]]{0,40}",
    ) {
        let mut request = get(&format!("/{path}"));
        let credentials = [&user[..], b":secret"].concat();
        let basic = format!("Basic {}", encode_base64(&credentials));
        request.headers_mut().insert("authorization", basic.parse().expect("a header"));
        for (name, value) in ["referer", "user-agent", "x-forwarded-for"].iter().zip(&headers) {
            if let Ok(value) = hyper::header::HeaderValue::from_bytes(value) {
                request.headers_mut().insert(*name, value);
            }
        }
        for format in [AccessLogFormat::combined(), AccessLogFormat::json()] {
            let text = line_of(&format, Head::Parsed(&request), 64 * 1024);
            if format == AccessLogFormat::json() {
                let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                let uri = format!("/{path}");
                prop_assert_eq!(json["uri"].as_str(), Some(uri.as_str()));
                let name = user.split(|b| *b == b':').next().unwrap_or_default();
                let name = String::from_utf8_lossy(name).into_owned();
                prop_assert_eq!(json["remote_user"].as_str().unwrap_or_default(), name);
            } else {
                prop_assert!(split_combined(&text).is_some(), "{}", text);
                prop_assert!(text.bytes().all(|b| (0x20..0x7f).contains(&b)));
            }
        }
    }

    #[test]
    fn plain_text_is_written_as_the_escaping_writer_writes_it(
        text in "[ -~]{0,40}|\\PC{0,20}",
        max_bytes in 4usize..60,
    ) {
        for style in [ValueStyle::Quoted, ValueStyle::Bare, ValueStyle::JsonText, ValueStyle::JsonValue] {
            let value = LineValue::new(Variable::RequestUri, 0, style);
            let (mut fast, mut escaped) = (Vec::new(), Vec::new());
            value.text(text.as_bytes(), max_bytes, &mut fast);
            value.escaped_text(text.as_bytes(), max_bytes, &mut escaped);
            prop_assert_eq!(fast, escaped);
        }
    }

    #[test]
    fn the_request_line_is_that_of_its_parts(
        method in "[A-Z]{1,20}|[!#$%&'*+.^_`|~0-9a-z-]{1,20}",
        path in "[!-~&&[^#?\"<>\\\\^`{|}]]{0,40}",
    ) {
        let mut request = get(&format!("/{path}"));
        *request.method_mut() = method.parse().expect("a method");
        let text = line("\"$request\" \"$request_method $request_uri $server_protocol\"", request.clone());
        let (whole, parts) = text.split_once("\" \"").expect("two values");
        prop_assert_eq!(whole.strip_prefix('"'), parts.strip_suffix('"'));
        let text = line("[$request] $request_method\\x20$request_uri\\x20$server_protocol", request.clone());
        let (whole, parts) = text.split_once(' ').expect("two values");
        prop_assert_eq!(whole, format!("[{parts}]"));
        let text = line("{\"whole\":$request,\"parts\":\"$request_method $request_uri $server_protocol\"}", request);
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        prop_assert_eq!(&json["whole"], &json["parts"]);
    }
}
