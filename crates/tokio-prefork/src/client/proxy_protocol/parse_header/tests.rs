use std::net::SocketAddr;

use super::*;
use HeaderProgress::{Absent, Complete, Incomplete, Invalid};

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn known(source: &str, destination: &str, is_tls: bool) -> ProxiedClient {
    ProxiedClient::Known(ProxyHeader::new(addr(source), addr(destination), is_tls))
}

/// Builds a header of version 2.
fn v2(version_and_command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("at most 64 KiB");
    let start = [version_and_command, family];
    [V2_SIGNATURE, &start, &length.to_be_bytes(), payload].concat()
}

/// 192.0.2.1:258 to 192.0.2.2:80.
const V4_ADDRS: &[u8] = &[192, 0, 2, 1, 192, 0, 2, 2, 1, 2, 0, 80];

fn field(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).expect("a length");
    [&[kind][..], &length.to_be_bytes(), value].concat()
}

fn v4_with(fields: &[u8]) -> Vec<u8> {
    v2(0x21, 0x11, &[V4_ADDRS, fields].concat())
}

/// Puts the right checksum into a header whose last field is an empty checksum.
fn with_checksum(mut header: Vec<u8>) -> Vec<u8> {
    let at = header.len() - 4;
    let mut crc = u32::MAX;
    for byte in &header {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    header[at..].copy_from_slice(&(!crc).to_be_bytes());
    header
}

/// Asserts the result for the whole input, with bytes behind it, and that each shorter start of it is incomplete.
fn assert_complete(header: &[u8], accepted: ProxyProtocol, client: ProxiedClient) {
    let whole = Complete { length: header.len(), client };
    let shown = header.escape_ascii();
    assert_eq!(parse_proxy_header(header, accepted), whole, "{shown}");
    let with_request = [header, b"GET / HTTP/1.1\r\n\r\n"].concat();
    assert_eq!(parse_proxy_header(&with_request, accepted), whole, "{shown}");
    for length in 0..header.len() {
        match parse_proxy_header(&header[..length], accepted) {
            Incomplete { missing } => assert!(missing > 0 && length + missing <= header.len()),
            other => panic!("{other:?} of {length} bytes of {shown}"),
        }
    }
}

#[test]
fn lines_of_version_1_are_read() {
    for (line, client) in [
        (
            "PROXY TCP4 192.0.2.1 192.0.2.2 51000 80",
            known("192.0.2.1:51000", "192.0.2.2:80", false),
        ),
        (
            "PROXY TCP4 0.0.0.0 255.255.255.255 0 65535",
            known("0.0.0.0:0", "255.255.255.255:65535", false),
        ),
        ("PROXY TCP6 2001:db8::1 ::1 51000 443", known("[2001:db8::1]:51000", "[::1]:443", false)),
        ("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2", known("192.0.2.1:1", "[::1]:2", false)),
        ("PROXY UNKNOWN", ProxiedClient::Unknown),
        ("PROXY UNKNOWN anything \x01 at all", ProxiedClient::Unknown),
        (
            "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535",
            ProxiedClient::Unknown,
        ),
    ] {
        for accepted in [ProxyProtocol::V1, ProxyProtocol::Auto] {
            assert_complete(format!("{line}\r\n").as_bytes(), accepted, client);
        }
    }
}

#[test]
fn malformed_lines_of_version_1_are_refused() {
    for line in [
        "PROXY ",
        "PROXY TCP4",
        "PROXY TCP4 192.0.2.1 192.0.2.2 51000",
        "PROXY TCP4 192.0.2.1 192.0.2.2 51000 80 ",
        "PROXY TCP4 192.0.2.1 192.0.2.2 51000 80 90",
        "PROXY  TCP4 192.0.2.1 192.0.2.2 51000 80",
        "PROXY TCP4  192.0.2.1 192.0.2.2 51000 80",
        "PROXY TCP4\t192.0.2.1 192.0.2.2 51000 80",
        "PROXY tcp4 192.0.2.1 192.0.2.2 51000 80",
        "PROXY TCP5 192.0.2.1 192.0.2.2 51000 80",
        "PROXY UDP4 192.0.2.1 192.0.2.2 51000 80",
        "PROXY UNKNOWNX",
        "PROXY unknown",
        "PROXY TCP4 2001:db8::1 ::1 51000 80",
        "PROXY TCP6 192.0.2.1 192.0.2.2 51000 80",
        "PROXY TCP4 192.0.2.256 192.0.2.2 51000 80",
        "PROXY TCP4 192.0.2 192.0.2.2 51000 80",
        "PROXY TCP4 192.0.2.1 localhost 51000 80",
        "PROXY TCP4 192.0.2.1 192.0.2.2 65536 80",
        "PROXY TCP4 192.0.2.1 192.0.2.2 -1 80",
        "PROXY TCP4 192.0.2.1 192.0.2.2 +1 80",
        "PROXY TCP4 192.0.2.1 192.0.2.2 080 80",
        "PROXY TCP4 192.0.2.1 192.0.2.2 51000 0x50",
        "PROXY TCP4 192.0.2.1 192.0.2.2  80",
        "PROXY TCP4 192.0.2.1 192.0.2.2 51000 80\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 51000 80\r",
        "PROXY TCP6 fe80::1%eth0 ::1 51000 80",
    ] {
        let line = format!("{line}\r\n");
        let outcome = parse_proxy_header(line.as_bytes(), ProxyProtocol::Auto);
        assert!(matches!(outcome, Invalid(_)), "{line:?}: {outcome:?}");
    }
    for (endless, is_invalid) in [(V1_MAX_LENGTH - 1, false), (V1_MAX_LENGTH, true)] {
        let line = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; V1_MAX_LENGTH]].concat();
        let outcome = parse_proxy_header(&line[..endless], ProxyProtocol::V1);
        assert_eq!(matches!(outcome, Invalid(_)), is_invalid, "{outcome:?}");
    }
    // A line end without a carriage return is none.
    let outcome =
        parse_proxy_header(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 80\nGET /", ProxyProtocol::V1);
    assert!(matches!(outcome, Incomplete { .. }), "{outcome:?}");
}

#[test]
fn headers_of_version_2_are_read() {
    let v4 = known("192.0.2.1:258", "192.0.2.2:80", false);
    let v6_addrs = [[0x20; 16], [0x21; 16]].concat();
    let v6_addrs = [&v6_addrs[..], &[0, 1, 0, 2]].concat();
    let v6 = known(
        "[2020:2020:2020:2020:2020:2020:2020:2020]:1",
        "[2121:2121:2121:2121:2121:2121:2121:2121]:2",
        false,
    );
    let tls = known("192.0.2.1:258", "192.0.2.2:80", true);
    for (header, client) in [
        (v4_with(&[]), v4),
        (v2(0x21, 0x12, V4_ADDRS), v4),
        (v2(0x21, 0x21, &v6_addrs), v6),
        (v2(0x21, 0x22, &v6_addrs), v6),
        (v2(0x21, 0x31, &[b'x'; 216]), ProxiedClient::Unknown),
        (v2(0x21, 0x00, &[]), ProxiedClient::Unknown),
        (v2(0x21, 0x00, b"some bytes"), ProxiedClient::Unknown),
        (v2(0x20, 0x00, &[]), ProxiedClient::Proxy),
        (v2(0x20, 0x11, V4_ADDRS), ProxiedClient::Proxy),
        // The family and all else of LOCAL are ignored.
        (v2(0x20, 0xff, b"anything"), ProxiedClient::Proxy),
        (v2(0x20, 0x11, &[]), ProxiedClient::Proxy),
        (v4_with(&field(0x01, b"h2")), v4),
        (v4_with(&field(0xea, b"\x01vpce-0123")), v4),
        (
            v4_with(
                &[field(0x02, b"shop.example"), field(0x04, &[0; 600]), field(0x05, b"id")]
                    .concat(),
            ),
            v4,
        ),
        (v4_with(&field(0x04, &[0; 4096])), v4),
        (v4_with(&field(0x02, b"\xff\xfe")), v4),
        (v4_with(&field(0x20, &[1, 0, 0, 0, 0])), tls),
        (v4_with(&field(0x20, &[0, 0, 0, 0, 0])), v4),
        (with_checksum(v4_with(&field(0x03, &[0; 4]))), v4),
        (with_checksum(v4_with(&[field(0x04, &[0; 9]), field(0x03, &[0; 4])].concat())), v4),
    ] {
        for accepted in [ProxyProtocol::V2, ProxyProtocol::Auto] {
            assert_complete(&header, accepted, client);
        }
    }
}

#[test]
fn the_longest_header_of_version_2_is_read() {
    let rest = usize::from(u16::MAX) - V4_ADDRS.len() - 3;
    let header = v4_with(&field(0x04, &vec![0; rest]));
    assert_eq!(header.len(), V2_FIXED_LENGTH + usize::from(u16::MAX));
    let client = known("192.0.2.1:258", "192.0.2.2:80", false);
    let whole = Complete { length: header.len(), client };
    assert_eq!(parse_proxy_header(&header, ProxyProtocol::V2), whole);
    let cut = &header[..header.len() - 7];
    assert_eq!(parse_proxy_header(cut, ProxyProtocol::V2), Incomplete { missing: 7 });
}

#[test]
fn malformed_headers_of_version_2_are_refused() {
    let mut wrong_sum = with_checksum(v4_with(&field(0x03, &[0; 4])));
    wrong_sum[20] ^= 1;
    let sum = with_checksum(v4_with(&field(0x03, &[0; 4])));
    let two_sums = with_checksum([&sum[..15], &[26], &sum[16..], &[3, 0, 4, 0, 0, 0, 0]].concat());
    for header in [
        v2(0x11, 0x11, V4_ADDRS),
        v2(0x31, 0x11, V4_ADDRS),
        v2(0x22, 0x11, V4_ADDRS),
        v2(0x2f, 0x00, &[]),
        v2(0x21, 0x13, V4_ADDRS),
        v2(0x21, 0x41, V4_ADDRS),
        v2(0x21, 0xff, V4_ADDRS),
        v2(0x21, 0x01, &[]),
        v2(0x21, 0x11, &V4_ADDRS[..11]),
        v2(0x21, 0x11, &[]),
        v2(0x21, 0x21, &[0; 35]),
        v2(0x21, 0x31, &[0; 215]),
        v4_with(&[4]),
        v4_with(&[4, 0]),
        v4_with(&[4, 0, 1]),
        v4_with(&[4, 0xff, 0xff, 0]),
        v4_with(&field(0x03, &[0; 4])),
        v4_with(&field(0x03, &[0; 3])),
        v4_with(&field(0x03, &[])),
        two_sums,
        wrong_sum,
    ] {
        let outcome = parse_proxy_header(&header, ProxyProtocol::V2);
        assert!(matches!(outcome, Invalid(_)), "{}: {outcome:?}", header.escape_ascii());
    }
}

#[test]
fn a_checksum_is_that_of_the_specification() {
    // CRC-32C of "123456789" is e3069283.
    let header = [b"123456789".as_slice(), &[0; 4]].concat();
    assert!(!is_checksum_right(&header, 9, &[0xe3, 0x06, 0x92, 0x83]));
    // Of 32 zero bytes it is 8a9136aa.
    assert!(is_checksum_right(&[0; 32], 28, &[0x8a, 0x91, 0x36, 0xaa]));
}

#[test]
fn a_version_that_is_not_accepted_is_refused() {
    let line = b"PROXY TCP4 192.0.2.1 192.0.2.2 51000 80\r\n";
    assert!(matches!(parse_proxy_header(line, ProxyProtocol::V2), Invalid(_)));
    assert!(matches!(parse_proxy_header(&v4_with(&[]), ProxyProtocol::V1), Invalid(_)));
}

#[test]
fn what_is_no_header_is_told_apart_at_its_first_different_byte() {
    for (bytes, is_absent) in [
        ("", false),
        ("P", false),
        ("PROXY", false),
        ("PROXY ", false),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", true),
        ("PRO", false),
        ("PROPFIND / HTTP/1.1\r\n", true),
        ("PO", true),
        ("PROXY\r\n", true),
        ("proxy TCP4", true),
        (" PROXY", true),
        ("G", true),
        ("\r", false),
        ("\r\n\r\n", false),
        ("\r\n\r\nGET / HTTP/1.1\r\n", true),
        ("\r\nGET / HTTP/1.1\r\n", true),
        ("\0", true),
        ("\x16\x03\x01", true),
    ] {
        let outcome = parse_proxy_header(bytes.as_bytes(), ProxyProtocol::Auto);
        assert_eq!(outcome == Absent, is_absent, "{bytes:?}: {outcome:?}");
        assert_eq!(matches!(outcome, Incomplete { .. }), !is_absent, "{bytes:?}: {outcome:?}");
    }
}
