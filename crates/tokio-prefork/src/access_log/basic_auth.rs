//! The user of HTTP Basic authentication (RFC 7617).

/// Returns the user name in the header `Authorization`.
pub(super) fn basic_auth_user(header: &[u8]) -> Option<Box<[u8]>> {
    let (scheme, token) = header.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return None;
    }
    let credentials = decode_base64(token.trim_ascii())?;
    let end = memchr::memchr(b':', &credentials)?;
    Some(credentials[..end].into())
}

/// Decodes standard Base64, with or without padding. Returns `None` if `text` is none.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.strip_suffix(b"==").or(text.strip_suffix(b"=")).unwrap_or(text);
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for group in text.chunks(4) {
        let mut bits = 0u32;
        for c in group {
            let digit = match c {
                b'A'..=b'Z' => c - b'A',
                b'a'..=b'z' => c - b'a' + 26,
                b'0'..=b'9' => c - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(digit);
        }
        bits <<= 6 * (4 - group.len());
        let [_, a, b, c] = bits.to_be_bytes();
        match group.len() {
            4 => bytes.extend([a, b, c]),
            3 => bytes.extend([a, b]),
            2 => bytes.push(a),
            _ => return None,
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_basic_authentication_is_known_and_nothing_else_of_the_header() {
        let user = |value: &str| {
            basic_auth_user(value.as_bytes())
                .map(|user| String::from_utf8_lossy(&user).into_owned())
        };
        for (value, name) in [
            ("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", Some("Aladdin")),
            ("basic YTpi", Some("a")),
            ("Basic YTpiYw", Some("a")),
            ("Basic YTo=", Some("a")),
            ("Basic OnBhc3N3b3Jk", Some("")),
            ("Basic bm9jb2xvbg==", None),
            ("Basic !!!!", None),
            ("Basic Q", None),
            ("Basic ", None),
            ("Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==", None),
            ("", None),
        ] {
            assert_eq!(user(value).as_deref(), name, "{value}");
        }
    }
}
