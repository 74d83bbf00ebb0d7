//! Who may use the admin listener: the token, and the names by which it may be addressed.

use hyper::Uri;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap};

use super::AdminToken;

/// Returns whether a request presents the token: as a bearer token, or as the password of any user for browsers.
pub(crate) fn presents_token(headers: &HeaderMap, token: &AdminToken) -> bool {
    let Some(value) = headers.get(AUTHORIZATION) else { return false };
    let value = value.as_bytes();
    let Some(space) = value.iter().position(|byte| *byte == b' ') else { return false };
    let (scheme, rest) = (&value[..space], value[space..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return token.is(rest);
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return false;
    }
    let Some(decoded) = decode_base64(rest) else { return false };
    // The user's name has no colon; the password may.
    let colon = decoded.iter().position(|byte| *byte == b':');
    colon.is_some_and(|colon| token.is(&decoded[colon + 1..]))
}

/// Returns whether the address by which the client reached a listener without a token can only mean this machine.
///
/// A page in a browser can make a name of its own stand for 127.0.0.1 (DNS rebinding) and then read what is served here. It cannot do
/// so with `localhost` or an IP address.
pub(crate) fn is_local_host(uri: &Uri, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let host = match (uri.host(), hosts.next(), hosts.next()) {
        (_, _, Some(_)) => return false,
        (Some(host), _, None) => host,
        (None, Some(host), None) => match host.to_str() {
            Ok(host) => without_port(host.trim()),
            Err(_) => return false,
        },
        // No browser sends a request without it.
        (None, None, None) => return true,
    };
    is_local_name(host)
}

/// Returns whether a host name, or an address in its place, can only mean this machine or an address.
pub(super) fn is_local_name(host: &str) -> bool {
    let host = host.trim_end_matches('.');
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_ip = host.parse::<std::net::Ipv4Addr>().is_ok()
        || bracketed.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    let lower = host.to_ascii_lowercase();
    host.is_empty() || is_ip || lower == "localhost" || lower.ends_with(".localhost")
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Decodes base64 with or without padding. `None` if it is none.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
    let padding = text.len() - end;
    if padding > 2 || end % 4 == 1 {
        return None;
    }
    let mut decoded = Vec::with_capacity(end * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for byte in &text[..end] {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            decoded.push((bits >> count) as u8);
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> AdminToken {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("token");
        std::fs::write(&path, "s3:cret").expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("mode");
        AdminToken::read(&path).expect("token")
    }

    #[test]
    fn the_token_is_presented_as_bearer_or_as_password() {
        let presented = |value: &str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().expect("value"))]);
            presents_token(&headers, &token())
        };
        // "user:s3:cret" and ":s3:cret", with and without padding.
        for good in [
            "Bearer s3:cret",
            "bearer  s3:cret",
            "Basic dXNlcjpzMzpjcmV0",
            "basic OnMzOmNyZXQ=",
            "Basic OnMzOmNyZXQ",
        ] {
            assert!(presented(good), "{good}");
        }
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer s3:cre",
            "Bearer s3:cret2",
            "Token s3:cret",
            "Basic czM6Y3JldA==",
            "Basic !",
            "Basic",
            "s3:cret",
        ] {
            assert!(!presented(bad), "{bad}");
        }
        assert!(!presents_token(&HeaderMap::new(), &token()));
    }

    #[test]
    fn without_a_token_only_names_that_mean_this_machine_are_accepted() {
        let accepted = |host: &str| {
            let headers = HeaderMap::from_iter([(HOST, host.parse().expect("value"))]);
            is_local_host(&"/".parse().expect("path"), &headers)
        };
        for good in [
            "localhost",
            "LocalHost:9090",
            "localhost.",
            "app.localhost:1",
            "127.0.0.1",
            "127.0.0.1:9090",
            "10.1.2.3:80",
            "[::1]",
            "[::1]:9090",
            "",
        ] {
            assert!(accepted(good), "{good}");
        }
        for bad in [
            "example.com",
            "example.com:9090",
            "localhost.example.com",
            "notlocalhost",
            "127.0.0.1.example.com",
            "127.0.0.1@example.com",
            "[::1].example.com",
            "localhost:9090:x",
        ] {
            assert!(!accepted(bad), "{bad}");
        }
        let twice = HeaderMap::from_iter([
            (HOST, "localhost".parse().expect("value")),
            (HOST, "example.com".parse().expect("value")),
        ]);
        let mut both = twice.clone();
        both.append(HOST, "localhost".parse().expect("value"));
        assert!(!is_local_host(&"/".parse().expect("path"), &both));
        let absolute = "http://example.com/".parse().expect("URI");
        assert!(!is_local_host(&absolute, &HeaderMap::new()));
        assert!(is_local_host(&"/".parse().expect("path"), &HeaderMap::new()));
    }

    #[test]
    fn base64_is_decoded() {
        for (text, decoded) in [
            ("", Some(&b""[..])),
            ("Zg==", Some(b"f")),
            ("Zm8", Some(b"fo")),
            ("Zm9v", Some(b"foo")),
        ] {
            assert_eq!(decode_base64(text.as_bytes()).as_deref(), decoded, "{text}");
        }
        for bad in ["Z", "Zg===", "Z=g=", "Zm9v!", "Zm 9v"] {
            assert_eq!(decode_base64(bad.as_bytes()), None, "{bad}");
        }
    }
}
