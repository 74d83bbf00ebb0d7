//! The host of a request, checked before it becomes part of a URL.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::listener::is_host_name;

/// Returns the host of `authority`, which is `HOST[:PORT]`, in lower case, without its port and without a dot at its end.
///
/// `None` unless it is a host name, an IPv4 address or an IPv6 address in brackets. Nothing else of a request may become part of a
/// URL: `user@host` and a percent-encoded name mean another host to some clients.
pub(super) fn normalize_host(authority: &str) -> Option<String> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (literal, port) = rest.split_once(']')?;
        let address: Ipv6Addr = literal.parse().ok()?;
        let is_port = port.strip_prefix(':').map_or(port.is_empty(), is_digits);
        return is_port.then(|| format!("[{address}]"));
    }
    let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_host = host.parse::<Ipv4Addr>().is_ok() || (!host.is_empty() && is_host_name(host));
    (is_host && !host.ends_with('.') && is_digits(port)).then(|| host.to_ascii_lowercase())
}

fn is_digits(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_is_returned_without_port_and_final_dot() {
        for (authority, host) in [
            ("example.org", "example.org"),
            ("EXAMPLE.org:80", "example.org"),
            ("example.org.", "example.org"),
            ("example.org.:8080", "example.org"),
            ("example.org:", "example.org"),
            ("a_b.example", "a_b.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("localhost", "localhost"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[2001:DB8::1]:80", "[2001:db8::1]"),
        ] {
            assert_eq!(normalize_host(authority).as_deref(), Some(host), "{authority}");
        }
    }

    #[test]
    fn anything_but_a_host_is_refused() {
        let long = ["a".repeat(64), ".example".to_string()].concat();
        for authority in [
            "",
            ".",
            ":80",
            "..",
            "example.org..",
            "a..b",
            "user@example.org",
            "example.org:80@evil.example",
            "example.org/",
            "example.org\\@evil.example",
            "example.org#",
            "example.org?",
            "a%2eb",
            "a b",
            "a,b",
            "a:b",
            "a:80:90",
            "\u{e9}.example",
            "[::1",
            "[::1]x",
            "[::1]80",
            "[fe80::1%25lo]",
            "[v1.a]",
            "::1",
            "1.2.3",
            "999.1.1.1",
            "-a.example",
            "a\r\nb",
            &long,
        ] {
            assert_eq!(normalize_host(authority), None, "{authority:?}");
        }
    }
}
