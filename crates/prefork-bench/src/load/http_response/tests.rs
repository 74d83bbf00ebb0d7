use proptest::prelude::*;

use super::*;

/// Parses all responses in `bytes`, split into pieces of `sizes` repeatedly.
fn parse_in_pieces(
    bytes: &[u8],
    sizes: &[usize],
    expectations: &ResponseExpectations,
) -> Result<Vec<ParsedResponse>, ResponseError> {
    let mut parser = ResponseParser::new(expectations.clone());
    parse_with(&mut parser, bytes, sizes)
}

fn parse_with(
    parser: &mut ResponseParser,
    bytes: &[u8],
    sizes: &[usize],
) -> Result<Vec<ParsedResponse>, ResponseError> {
    let (mut reader, mut responses, mut sizes) =
        (ResponseReader::new(), Vec::new(), sizes.iter().cycle());
    let mut at = 0;
    while at < bytes.len() {
        let size = *sizes.next().expect("a size");
        let piece = &bytes[at..bytes.len().min(at + size.max(1))];
        let mut used = 0;
        while used < piece.len() {
            let (taken, answer) = reader.read_bytes(&piece[used..], parser)?;
            responses.extend(answer);
            used += taken;
        }
        at += piece.len();
    }
    responses.extend(reader.finish_at_eof());
    Ok(responses)
}

fn parse_unsplit(text: &str) -> Result<Vec<ParsedResponse>, ResponseError> {
    parse_in_pieces(text.as_bytes(), &[usize::MAX / 2], &ResponseExpectations::default())
}

fn parse_statuses(text: &str) -> Vec<(u16, bool)> {
    parse_unsplit(text).expect(text).iter().map(|a| (a.status, a.can_reuse_connection)).collect()
}

#[test]
fn response_ends_are_found() {
    for (text, found) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n",
            vec![(200, true), (404, true)],
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", vec![]),
        (
            "HTTP/1.1 204 N\r\n\r\nHTTP/1.1 304 N\r\nContent-Length: 9\r\n\r\n",
            vec![(204, true), (304, true)],
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 E\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            vec![(500, false)],
        ),
        ("HTTP/1.1 200 OK\r\n\r\nto the end", vec![(200, false)]),
        ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", vec![(200, false)]),
        (
            "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n",
            vec![(200, true)],
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: t\r\n\r\n",
            vec![(200, true)],
        ),
    ] {
        assert_eq!(parse_statuses(text), found, "{text}");
    }
}

#[test]
fn invalid_responses_are_malformed() {
    for text in [
        "SSH-2.0-x\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    ] {
        assert_eq!(parse_unsplit(text), Err(Malformed), "{text}");
    }
    for text in [
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    ] {
        assert_eq!(parse_unsplit(text), Err(Malformed), "{text}");
    }
}

#[test]
fn exceeded_limits_have_errors_of_their_own() {
    let body = "Content-Length: 0\r\n\r\n";
    let fields = |count: usize| format!("HTTP/1.1 200 OK\r\n{}{body}", "a: b\r\n".repeat(count));
    for good in [fields(63), fields(64), fields(1000), fields(MAX_HEADER_FIELDS - 1)] {
        assert_eq!(parse_statuses(&good), [(200, true)]);
    }
    assert_eq!(parse_unsplit(&fields(MAX_HEADER_FIELDS)), Err(ResponseError::TooManyFields));
    let long = format!("HTTP/1.1 200 OK\r\nA: {}\r\n{body}", "a".repeat(500_000));
    assert_eq!(
        parse_in_pieces(long.as_bytes(), &[16_384], &ResponseExpectations::default())
            .map(|all| all.len()),
        Ok(1)
    );
    let endless = format!("HTTP/1.1 200 OK\r\nA: {}", "a".repeat(MAX_HEAD_SIZE));
    assert_eq!(parse_unsplit(&endless), Err(ResponseError::HeadTooLarge));
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let extended = format!("{chunked}1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(60_000));
    assert_eq!(parse_statuses(&extended), [(200, true)]);
    let extended = format!("{chunked}1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(70_000));
    assert_eq!(parse_unsplit(&extended), Err(ResponseError::ChunkLineTooLong));
    let trailers = format!("{chunked}0\r\n{}\r\n", "a: b\r\n".repeat(20_000));
    assert_eq!(parse_unsplit(&trailers), Err(ResponseError::ChunkLineTooLong));
}

#[test]
fn framing_follows_rfc_9112() {
    for (text, found) in [
        // Repeated fields are one list.
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            (200, true),
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\nto the end", (200, false)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\ncontent-length: 2\r\n\r\nok", (200, true)),
        (
            "HTTP/1.1 200 OK\r\nConnection: close\r\nConnection: keep-alive\r\ncontent-length: 0\r\n\r\n",
            (200, false),
        ),
        // With both lengths, the chunks count and the connection is not reused.
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            (200, false),
        ),
        (
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            (200, false),
        ),
        // A field folded onto two lines.
        ("HTTP/1.1 200 OK\r\nX-A: one\r\n two\r\ncontent-length: 2\r\n\r\nok", (200, true)),
        (
            "HTTP/1.1 200 OK\r\nTRANSFER-ENCODING: CHUNKED\r\n\r\nA ;x=\"a;b\"\r\n0123456789\r\n000\r\nT: t\r\nU: u\r\n\r\n",
            (200, true),
        ),
        (
            "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 102 P\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            (200, true),
        ),
        ("HTTP/1.1 204 N\r\nTransfer-Encoding: chunked\r\n\r\n", (204, true)),
    ] {
        assert_eq!(parse_statuses(text), [found], "{text}");
    }
}

#[test]
fn the_pid_comes_from_the_body_or_a_header() {
    let pid = |text: &str, expectations: &ResponseExpectations| {
        parse_in_pieces(text.as_bytes(), &[7], expectations).expect(text).pop().and_then(|a| a.pid)
    };
    let by_body = "HTTP/1.1 200 OK\r\nContent-Length: 20\r\nX-Pid: 9\r\n\r\nHandled by PID 4711\n";
    assert_eq!(pid(by_body, &ResponseExpectations::default()), Some(4711));
    let header = ResponseExpectations {
        pid_header: Some("x-pid".to_string()),
        ..ResponseExpectations::default()
    };
    assert_eq!(pid(by_body, &header), Some(9));
    let neither = "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\nHandled by PID ";
    assert_eq!(pid(neither, &header), None);
}

#[test]
fn responses_to_head_have_no_body() {
    let expect = ResponseExpectations { is_head_request: true, ..ResponseExpectations::default() };
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".repeat(2);
    assert_eq!(parse_in_pieces(text.as_bytes(), &[1000], &expect).expect("http").len(), 2);
}

#[test]
fn a_response_after_an_equal_head_is_judged_by_its_own_bytes() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n";
    let first = format!("{head}Handled by PID 12\n");
    for (second, found) in [
        (format!("{head}Handled by PID 34\n"), vec![(200, Some(34), true)]),
        (format!("{head}eighteen bytes..\r\n"), vec![(200, None, true)]),
        // One digit of the head differs.
        (first.replace("200", "503"), vec![(503, Some(12), true)]),
        (head.replace("18", "0"), vec![(200, None, true)]),
        // The head is longer than the last one, or a beginning of it.
        (
            format!("{}\r\nConnection: close\r\n\r\n{}", &head[..head.len() - 4], "x".repeat(18)),
            vec![(200, None, false)],
        ),
        (head[..head.len() - 1].to_string(), vec![]),
        (first[..first.len() - 1].to_string(), vec![]),
        (format!("HTTP/1.1 100 Continue\r\n\r\n{first}"), vec![(200, Some(12), true)]),
    ] {
        let mut parser = ResponseParser::default();
        assert_eq!(parse_with(&mut parser, first.as_bytes(), &[1000]).map(|all| all.len()), Ok(1));
        let parsed = parse_with(&mut parser, second.as_bytes(), &[1000]).expect(&second);
        let parsed: Vec<_> =
            parsed.iter().map(|one| (one.status, one.pid, one.can_reuse_connection)).collect();
        assert_eq!(parsed, found, "{second}");
    }
    for wrong in ["HTTP/1.1 2OO OK\r\nContent-Length: 18\r\n\r\n", "Handled by PID 12\n"] {
        let mut parser = ResponseParser::default();
        let text = format!("{first}{wrong}");
        assert_eq!(parse_with(&mut parser, text.as_bytes(), &[1000]), Err(Malformed), "{wrong}");
    }
}

proptest! {
    #[test]
    fn remembering_the_last_head_changes_no_result(
        kinds in prop::collection::vec(0usize..7, 1..12),
        sizes in prop::collection::vec(1usize..200, 1..8),
    ) {
        let texts = [
            "HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\nHandled by PID 12\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\nHandled by PID 34\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n2;x\r\nyz\r\n0\r\nT: t\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 C\r\nContent-Length: 1\r\n\r\n.",
            "HTTP/1.1 304 N\r\n\r\n",
            "HTTP/1.1 503 S\r\nContent-Length: 18\r\nConnection: close\r\n\r\nHandled by PID 56\n",
        ];
        let text: String = kinds.iter().map(|kind| texts[*kind]).collect();
        let together = parse_in_pieces(text.as_bytes(), &sizes, &ResponseExpectations::default());
        // Each alone, with a parser that has seen nothing.
        let alone: Vec<ParsedResponse> =
            kinds.iter().flat_map(|kind| parse_unsplit(texts[*kind]).expect("http")).collect();
        prop_assert_eq!(together, Ok(alone));
    }

    #[test]
    fn pieces_of_any_size_give_the_same_responses(
        bodies in prop::collection::vec((0usize..200, any::<bool>()), 1..6),
        sizes in prop::collection::vec(1usize..90, 1..8),
    ) {
        let mut text = String::new();
        for (length, chunked) in &bodies {
            let body = "x".repeat(*length);
            match chunked {
                true if *length > 0 => text.push_str(&format!(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"
                )),
                true => text.push_str("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
                false => text.push_str(&format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"
                )),
            }
        }
        let responses = parse_in_pieces(text.as_bytes(), &sizes, &ResponseExpectations::default()).expect("http");
        prop_assert_eq!(responses.len(), bodies.len());
        let bytes: u64 = responses.iter().map(|a| a.bytes).sum();
        prop_assert_eq!(bytes, text.len() as u64);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), size in 1usize..40) {
        let mut http = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        http.extend(bytes);
        let responses = parse_in_pieces(&http, &[size], &ResponseExpectations::default()).map_or(0, |a| a.len());
        prop_assert!(responses <= http.len());
    }
}
