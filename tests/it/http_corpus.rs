//! A corpus of valid and malformed HTTP/1 messages with the verdicts that RFC 9112 requires.
//!
//! `data/http1.corpus` also has the verdicts of nginx and Node when they were recorded; `scripts/fuzz/record.py`
//! describes its format.

use std::fmt::Write as _;

use crate::support::{Address, Client, Failure, Server};

const HTTP1_CORPUS: &str = include_str!("data/http1.corpus");

/// A request that follows each message that is not `alone`; its response shows where the server ended the message.
const FOLLOWING_REQUEST: &[u8] = b"GET /bytes/7 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// Longest body that is printed; longer ones are shown by their length.
const MAX_PRINTED_BODY: usize = 40;

#[derive(Default)]
struct Case {
    name: &'static str,
    message: Vec<u8>,
    is_alone: bool,
    ends_with_fin: bool,
    /// The accepted verdicts.
    required: Vec<&'static str>,
}

/// Whether a message is sent at once or byte by byte.
#[derive(Clone, Copy, Debug)]
enum Chunking {
    Whole,
    Bytes,
}

#[test]
fn every_request_of_the_corpus_gets_its_required_verdict() {
    check_corpus(&["--pipeline-flush=false"]);
}

#[test]
fn pipeline_flush_does_not_change_the_verdicts_of_the_corpus() {
    check_corpus(&["--pipeline-flush=true"]);
}

#[track_caller]
fn check_corpus(args: &[&str]) {
    let cases = read_corpus();
    assert!(cases.len() > 400, "{} cases", cases.len());
    let server = Server::with(2, args);
    let mut failures = String::new();
    for case in &cases {
        for pieces in [Chunking::Whole, Chunking::Bytes] {
            let found = observe_verdict(server.address(), case, pieces);
            if !case.required.iter().any(|required| verdict_matches(required, &found)) {
                let required = case.required.join(" / ");
                let _ = writeln!(failures, "{} ({pieces:?}): {found}, not {required}", case.name);
            }
        }
    }
    assert!(failures.is_empty(), "{} lines:\n{failures}", failures.lines().count());
    server.stop();
}

/// Whether `found` matches the verdict `required`, in which `400|501` accepts either status.
fn verdict_matches(required: &str, found: &str) -> bool {
    let (required, found): (Vec<_>, Vec<_>) =
        (required.split(' ').collect(), found.split(' ').collect());
    required.len() == found.len()
        && required.iter().zip(found).all(|(wanted, item)| wanted.split('|').any(|w| w == item))
}

/// Sends a case, and returns the statuses of all responses, the bodies of `/echo`, and how the connection ended.
fn observe_verdict(address: &Address, case: &Case, pieces: Chunking) -> String {
    let mut client = Client::connect(address).expect("connect");
    let behind = if case.is_alone { &[] } else { FOLLOWING_REQUEST };
    let all = [&case.message, behind].concat();
    let size = match pieces {
        Chunking::Whole => all.len(),
        Chunking::Bytes => 1,
    };
    // The server may respond and close before everything is sent.
    let sent = all.chunks(size).try_for_each(|piece| client.send(piece));
    if case.ends_with_fin && sent.is_ok() {
        client.shutdown_write();
    }
    let (received, end) = client.read_all();
    let end = match end {
        Ok(()) => "close",
        Err(Failure::TimedOut) => "open",
        Err(Failure::Reset) => "reset",
        Err(e) => panic!("{}: {e:?}", case.name),
    };
    let mut items = summarize_responses(&received);
    items.push(end.into());
    items.join(" ")
}

/// Returns the status of each response, with the body if it is an echo.
fn summarize_responses(mut raw: &[u8]) -> Vec<String> {
    let mut items = Vec::new();
    while !raw.is_empty() {
        let Some(end) = raw.windows(4).position(|four| four == b"\r\n\r\n") else {
            items.push(format!("malformed:{}", raw.escape_ascii()));
            break;
        };
        let head = String::from_utf8_lossy(&raw[..end]).to_lowercase();
        raw = &raw[end + 4..];
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
        if status.starts_with('1') {
            continue;
        }
        let field =
            |name: &str| lines.clone().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let length = field("content-length:").and_then(|n| n.parse().ok()).unwrap_or(0);
        let Some((body, rest)) = raw.split_at_checked(length) else {
            items.push(format!("{status}:cut"));
            break;
        };
        raw = rest;
        // Only echoes have no Content-Type.
        let is_echo = status == "200" && field("content-type:").is_none() && body != b"0000000";
        items.push(if is_echo {
            format!("{status}:{}", format_body(body))
        } else {
            status.to_string()
        });
    }
    items
}

fn format_body(body: &[u8]) -> String {
    if body.len() > MAX_PRINTED_BODY {
        return format!("#{}", body.len());
    }
    let escape = |byte: &u8| match byte {
        0 => "\\0".to_string(),
        b' ' => "\\x20".to_string(),
        b'"' | b'\'' => char::from(*byte).to_string(),
        _ => byte.escape_ascii().to_string(),
    };
    body.iter().map(escape).collect()
}

fn read_corpus() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in HTTP1_CORPUS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "==" {
            cases.push(Case { name: rest, ..Case::default() });
            continue;
        }
        let case = cases.last_mut().expect("a case has a name");
        match word {
            "send" => unescape(rest, &mut case.message),
            "alone" => case.is_alone = true,
            "fin" => case.ends_with_fin = true,
            "ours" => case.required = rest.split(" / ").collect(),
            "nginx" | "node" => {}
            _ => panic!("unknown line {line:?}"),
        }
    }
    assert!(cases.iter().all(|case| !case.required.is_empty()), "a case has a verdict");
    cases
}

fn unescape(text: &str, into: &mut Vec<u8>) {
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        if *first != b'\\' {
            into.push(*first);
            continue;
        }
        let (byte, length) = match behind {
            [b'n', ..] => (b'\n', 1),
            [b'r', ..] => (b'\r', 1),
            [b't', ..] => (b'\t', 1),
            [b'0', ..] => (0, 1),
            [b'\\', ..] => (b'\\', 1),
            [b'x', high, low, ..] => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).expect("two digits");
                (u8::from_str_radix(digits, 16).expect("two digits"), 3)
            }
            _ => panic!("unknown escape in {text:?}"),
        };
        into.push(byte);
        rest = &behind[length..];
    }
}
