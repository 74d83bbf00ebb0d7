use super::*;

/// Reads headers, one to a line, of a request from a trusted proxy. Trusted are 10.0.0.0/8 and 2001:db8:a::/48.
fn read(lines: &str) -> ForwardedFacts {
    read_kind(lines, ForwardedHeaders::Auto)
}

fn read_kind(lines: &str, kind: ForwardedHeaders) -> ForwardedFacts {
    let trusted = "10.0.0.0/8, 2001:db8:a::/48".parse().expect("a list");
    let mut headers = HeaderMap::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').expect("a header");
        let value = value.trim().replace("\\x80", "\u{80}");
        let value = HeaderValue::from_bytes(value.as_bytes()).expect("a value");
        headers.append(HeaderName::from_bytes(name.as_bytes()).expect("a name"), value);
    }
    read_forwarded_headers(&headers, &trusted, kind)
}

fn client_in(lines: &str) -> String {
    read(lines).client.map_or_else(|| "peer".to_string(), |client| client.to_string())
}

#[test]
fn x_forwarded_for_is_followed_from_the_right_over_trusted_proxies() {
    for (value, client) in [
        ("192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1, 10.0.0.3, 10.0.0.2", "192.0.2.1"),
        ("10.0.0.9, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("192.0.2.1,10.0.0.2", "192.0.2.1"),
        ("192.0.2.1 ,\t10.0.0.2 ", "192.0.2.1"),
        (", 192.0.2.1, ,, 10.0.0.2,", "192.0.2.1"),
        ("192.0.2.1:51000", "192.0.2.1:51000"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443, 10.0.0.2", "[2001:db8::1]:443"),
        ("192.0.2.1, 2001:db8:a::7", "192.0.2.1"),
        ("::ffff:192.0.2.1, ::ffff:10.0.0.2", "192.0.2.1"),
        ("127.0.0.1", "127.0.0.1"),
    ] {
        assert_eq!(client_in(&format!("x-forwarded-for: {value}")), client, "{value}");
    }
}

#[test]
fn garbage_in_x_forwarded_for_ends_the_chain_at_the_last_trustworthy_hop() {
    for garbage in [
        "unknown",
        "_hidden",
        "localhost",
        "192.0.2",
        "192.0.2.256",
        "192.0.02.1",
        "0x7f.0.0.1",
        "192.0.2.1:",
        "192.0.2.1:99999",
        "192.0.2.1:+80",
        "192.0.2.1:80:80",
        "192.0.2.1 192.0.2.2",
        "192.0.2.1;10.0.0.5",
        "2001:db8::1%eth0",
        "fe80::1%1",
        "[2001:db8::1",
        "2001:db8::1]:80",
        "[192.0.2.1]",
        "[2001:db8::1]80",
        "2001:db8::1::2",
        "\"192.0.2.1\"",
        "for=192.0.2.1",
        "http://192.0.2.1",
        "192.0.2.1\\x80",
        "10.0.0.0/8",
        "-",
    ] {
        let chain = format!("x-forwarded-for: 192.0.2.9, {garbage}, 10.0.0.2");
        assert_eq!(client_in(&chain), "10.0.0.2", "{garbage}");
        assert_eq!(client_in(&format!("x-forwarded-for: 192.0.2.9, {garbage}")), "peer");
    }
    assert_eq!(client_in("x-forwarded-for:"), "peer");
    assert_eq!(client_in("x-forwarded-for: ,,,"), "peer");
}

#[test]
fn lines_of_one_header_are_one_list() {
    let lines = "x-forwarded-for: 6.6.6.6
        x-forwarded-for: 192.0.2.1, 10.0.0.4
        x-forwarded-for: 10.0.0.3";
    assert_eq!(client_in(lines), "192.0.2.1");
    let lines = "forwarded: for=6.6.6.6
        forwarded: for=192.0.2.1;proto=https, for=10.0.0.4";
    assert_eq!(client_in(lines), "192.0.2.1");
}

#[test]
fn a_chain_longer_than_the_limit_ends_there() {
    let chain = ["10.0.0.1"; MAX_HOPS + 1].join(", ");
    assert_eq!(client_in(&format!("x-forwarded-for: 192.0.2.1, {chain}")), "10.0.0.1");
}

#[test]
fn forwarded_is_followed_from_the_right_over_trusted_proxies() {
    for (value, client) in [
        ("for=192.0.2.1", "192.0.2.1"),
        ("For=\"192.0.2.1:4711\"", "192.0.2.1:4711"),
        ("for=\"[2001:db8::17]:4711\"", "[2001:db8::17]:4711"),
        ("FOR=\"[2001:db8::17]\"", "2001:db8::17"),
        ("for=192.0.2.1;by=10.0.0.1;proto=http", "192.0.2.1"),
        ("for=\"192.0.2.1\"; by=_proxy ;proto=http;", "192.0.2.1"),
        (";for=192.0.2.1;;", "192.0.2.1"),
        ("for=6.6.6.6, for=192.0.2.1, for=10.0.0.2", "192.0.2.1"),
        ("for=6.6.6.6, for=192.0.2.1, for=\"[2001:db8:a::1]:80\"", "192.0.2.1"),
        ("for=\"192.0.2.1:_port\"", "192.0.2.1"),
        ("for=\"1\\92.0.2.1\"", "192.0.2.1"),
        ("for=6.6.6.6, , for=192.0.2.1,", "192.0.2.1"),
        ("for=192.0.2.1;secret=\"a, \\\"b\\\" ;c\"", "192.0.2.1"),
        ("for=\"[::ffff:192.0.2.1]\"", "192.0.2.1"),
        // What a client has sent unterminated cannot swallow what a proxy appends.
        ("for=\"6.6.6.6, for=192.0.2.1", "192.0.2.1"),
        ("for=\"6.6.6.6\\, for=192.0.2.1", "192.0.2.1"),
        ("for=\"6.6.6.6\\\", for=192.0.2.1, for=10.0.0.2", "192.0.2.1"),
        ("for=6.6.6.6;x=\", for=\"192.0.2.1\"", "192.0.2.1"),
    ] {
        assert_eq!(client_in(&format!("forwarded: {value}")), client, "{value}");
    }
}

#[test]
fn garbage_in_forwarded_ends_the_chain_at_the_last_trustworthy_hop() {
    for garbage in [
        "for=unknown",
        "for=_SEVKISEK",
        "for=\"_gazonk:80\"",
        "proto=https",
        "for",
        "for=",
        "for=\"\"",
        "=192.0.2.1",
        "for=192.0.2.1:80",
        "for=[2001:db8::1]",
        "for=2001:db8::1",
        "for=\"2001:db8::1\"",
        "for=\"[2001:db8::1\"",
        "for=\"192.0.2.1:99999\"",
        "for=\"192.0.2.1:\"",
        "for=\"192.0.2.1:_\"",
        "for = 192.0.2.1",
        "for=192.0.2.1;for=192.0.2.2",
        "for=192.0.2.1;proto=http;proto=https",
        "for=192.0.2.1 proto=http",
        "for=\"192.0.2.1\"x",
        "192.0.2.1",
        "for=host.example",
        "for=\"192.0.2.1\\x80\"",
    ] {
        let chain = format!("forwarded: for=192.0.2.9, {garbage}, for=10.0.0.2");
        assert_eq!(client_in(&chain), "10.0.0.2", "{garbage}");
        assert_eq!(client_in(&format!("forwarded: for=192.0.2.9, {garbage}")), "peer", "{garbage}");
    }
}

#[test]
fn hops_of_the_two_headers_are_never_mixed() {
    let both = "forwarded: for=192.0.2.7;proto=https;host=evil.example
        x-forwarded-for: 192.0.2.1";
    let facts = read(both);
    assert_eq!(facts.client.map(|client| client.to_string()).as_deref(), Some("192.0.2.1"));
    assert_eq!((facts.is_https, facts.host), (None, None));
    // With `Forwarded` alone, the others of the older family say nothing.
    let facts = read("forwarded: for=192.0.2.7\nx-forwarded-proto: https\nx-forwarded-host: evil");
    assert_eq!((facts.is_https, facts.host), (None, None));
}

#[test]
fn only_the_kind_of_headers_that_the_proxies_set_is_read() {
    let both = "forwarded: for=192.0.2.7;proto=https;host=a.example
        x-forwarded-for: 192.0.2.1
        x-forwarded-host: b.example";
    let seen = |lines: &str, kind| {
        let facts = read_kind(lines, kind);
        (facts.client.map(|client| client.to_string()), facts.is_https, facts.host)
    };
    let text = |text: &str| Some(text.to_string());
    let of_forwarded = (text("192.0.2.7"), Some(true), text("a.example"));
    assert_eq!(seen(both, ForwardedHeaders::Forwarded), of_forwarded);
    let of_x = (text("192.0.2.1"), None, text("b.example"));
    assert_eq!(seen(both, ForwardedHeaders::XForwarded), of_x);
    let (forwarded, x_forwarded) = both.split_once('\n').expect("two kinds");
    assert_eq!(seen(forwarded, ForwardedHeaders::XForwarded), (None, None, None));
    assert_eq!(seen(x_forwarded, ForwardedHeaders::Forwarded), (None, None, None));
}

#[test]
fn names_with_underscores_do_not_count() {
    for name in ["x_forwarded_for", "x-forwarded_for", "x_forwarded-proto"] {
        assert_eq!(read(&format!("{name}: 192.0.2.1")), ForwardedFacts::default(), "{name}");
    }
}

#[test]
fn the_scheme_is_one_of_http_or_websocket() {
    for (value, is_https) in [
        ("https", Some(true)),
        ("HTTPS", Some(true)),
        ("wss", Some(true)),
        ("http", Some(false)),
        ("ws", Some(false)),
        ("ftp", None),
        ("https://", None),
        ("", None),
        ("on", None),
        // The last one is that of the nearest proxy.
        ("https, http", Some(false)),
        ("http, https", Some(true)),
    ] {
        assert_eq!(read(&format!("x-forwarded-proto: {value}")).is_https, is_https, "{value}");
    }
    for (element, is_https) in
        [("proto=https", Some(true)), ("proto=\"wss\"", Some(true)), ("proto=gopher", None)]
    {
        let header = format!("forwarded: for=192.0.2.1;{element}");
        assert_eq!(read(&header).is_https, is_https, "{element}");
    }
}

#[test]
fn scheme_and_host_are_those_of_the_hop_that_names_the_client() {
    let facts = read(
        "x-forwarded-for: 6.6.6.6, 192.0.2.1, 10.0.0.2
        x-forwarded-proto: http, https, http
        x-forwarded-host: evil, shop.example, inner",
    );
    assert_eq!((facts.is_https, facts.host.as_deref()), (Some(true), Some("shop.example")));
    let facts = read(
        "forwarded: for=6.6.6.6;host=evil, for=192.0.2.1;proto=https;host=\"shop.example:8443\", \
            for=10.0.0.2;proto=http;host=inner",
    );
    assert_eq!((facts.is_https, facts.host.as_deref()), (Some(true), Some("shop.example:8443")));
    // A proxy that hides the client is still trusted in what it says about its connection.
    let facts = read("forwarded: for=6.6.6.6;host=evil, for=unknown;proto=https;host=shop.example");
    assert_eq!((facts.is_https, facts.host.as_deref()), (Some(true), Some("shop.example")));
    assert_eq!(facts.client, None);
}

#[test]
fn a_host_is_a_name_or_an_address_with_a_port_at_most() {
    let long = format!("{}.example", "a".repeat(250));
    for (value, is_valid) in [
        ("shop.example", true),
        ("shop.example:8080", true),
        ("my_host-1", true),
        ("192.0.2.1:80", true),
        ("[2001:db8::1]", true),
        ("[2001:db8::1]:80", true),
        ("shop.example.", true),
        (".", false),
        ("..", false),
        (".shop.example", false),
        ("shop..example", false),
        ("shop.example:http", false),
        ("shop.example:99999", false),
        ("user@shop.example", false),
        ("shop.example/path", false),
        ("shop.example?x", false),
        ("shop example", false),
        ("2001:db8::1", false),
        ("[2001:db8::1", false),
        ("[::1]80", false),
        ("<script>", false),
        ("", false),
        (":80", false),
        (long.as_str(), false),
    ] {
        assert_eq!(is_host_and_port(value), is_valid, "{value}");
        let facts = read(&format!("x-forwarded-host: {value}"));
        assert_eq!(facts.host.is_some(), is_valid, "{value}");
    }
    for (value, host) in [
        ("shop.example:", Some("shop.example")),
        ("[2001:db8::1]:", Some("[2001:db8::1]")),
        ("shop.example::", None),
        (":", None),
    ] {
        assert_eq!(parse_host_and_port(value), host, "{value}");
    }
}
