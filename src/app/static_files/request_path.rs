//! Maps the path of a request to the path of a file below the root, and back for redirects.

use std::borrow::Cow;
use std::fmt::Write;

use hyper::http::HeaderValue;

/// The only name with a leading dot that is public by convention (RFC 8615).
const WELL_KNOWN_DIR: &[u8] = b".well-known";

/// Why a path names no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathError {
    /// The syntax is wrong, or the path leads above the root: 400, as nginx answers.
    Malformed,
    /// No file can have this name: 404.
    Impossible,
}

/// Returns `raw` with percent-encoding decoded, slashes merged and dot segments resolved; it begins with `/`.
///
/// As in nginx an encoded slash or dot means the same as a literal one, so nothing is left to be interpreted later.
pub(super) fn normalize_path(raw: &str) -> Result<Cow<'_, [u8]>, PathError> {
    let raw = raw.as_bytes();
    if raw.first() != Some(&b'/') {
        return Err(PathError::Malformed);
    }
    let is_plain = !raw.contains(&b'%')
        && raw.windows(2).all(|pair| pair[0] != b'/' || !matches!(pair[1], b'/' | b'.'));
    if is_plain {
        return Ok(Cow::Borrowed(raw));
    }
    let decoded = percent_decode(raw)?;
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut is_directory = false;
    for segment in decoded.split(|byte| *byte == b'/').skip(1) {
        is_directory = matches!(segment, b"" | b"." | b"..");
        match segment {
            b"" | b"." => {}
            b".." if segments.pop().is_none() => return Err(PathError::Malformed),
            b".." => {}
            name => segments.push(name),
        }
    }
    let mut path = Vec::with_capacity(decoded.len());
    for segment in &segments {
        path.push(b'/');
        path.extend_from_slice(segment);
    }
    if is_directory || path.is_empty() {
        path.push(b'/');
    }
    Ok(Cow::Owned(path))
}

fn percent_decode(raw: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let digits = after
            .get(..2)
            .and_then(|pair| Some((hex_digit_value(pair[0])?, hex_digit_value(pair[1])?)));
        let (high, low) = digits.ok_or(PathError::Malformed)?;
        decoded.push(high << 4 | low);
        rest = &after[2..];
    }
    // The system call takes a C string.
    if decoded.contains(&0) { Err(PathError::Impossible) } else { Ok(decoded) }
}

fn hex_digit_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Returns whether a segment of a normalized path begins with a dot, except `/.well-known` at its beginning.
pub(super) fn is_hidden_path(path: &[u8]) -> bool {
    let mut segments = path.split(|byte| *byte == b'/').skip(1);
    let first = segments.next().unwrap_or_default();
    (first.starts_with(b".") && first != WELL_KNOWN_DIR)
        || segments.any(|name| name.starts_with(b"."))
}

/// Returns the `Location` of the directory at a normalized `path`, which has no slash at its end.
///
/// It begins with exactly one slash and has no backslash, so that a browser cannot read a host out of it.
pub(super) fn directory_location(path: &[u8], query: Option<&str>) -> Option<HeaderValue> {
    let mut location = String::with_capacity(path.len() + 1);
    for byte in path {
        if byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(byte) {
            location.push(char::from(*byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(location, "%{byte:02X}");
        }
    }
    location.push('/');
    if let Some(query) = query {
        location.push('?');
        location.push_str(query);
    }
    HeaderValue::from_bytes(location.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalized_like_nginx() {
        for (raw, path) in [
            ("/", "/"),
            ("/a/b.txt", "/a/b.txt"),
            ("/a/", "/a/"),
            ("//a///b", "/a/b"),
            ("/./a/./", "/a/"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/%61%2Fb", "/a/b"),
            ("/%2e%2e%2f", "!"),
            ("/a/%2e%2e/b", "/b"),
            ("/a%5cb", "/a\\b"),
            ("/...", "/..."),
            ("/a..b", "/a..b"),
            ("/%25", "/%"),
            ("/%252e", "/%2e"),
            ("/..", "!"),
            ("/a/../..", "!"),
            ("/%", "!"),
            ("/%4", "!"),
            ("/%zz", "!"),
            ("*", "!"),
            ("", "!"),
        ] {
            match normalize_path(raw) {
                Ok(found) => assert_eq!(String::from_utf8_lossy(&found), path, "{raw}"),
                Err(error) => assert_eq!((error, "!"), (PathError::Malformed, path), "{raw}"),
            }
        }
        assert_eq!(normalize_path("/a%00b"), Err(PathError::Impossible));
        assert_eq!(normalize_path("/%ff").as_deref(), Ok(&b"/\xff"[..]));
    }

    #[test]
    fn names_with_a_leading_dot_are_hidden_except_the_well_known_directory() {
        for path in ["/.env", "/a/.git/config", "/.well-known2/a", "/a/.well-known/b"] {
            assert!(is_hidden_path(path.as_bytes()), "{path}");
        }
        assert!(is_hidden_path(b"/.well-known/.env"));
        for path in ["/", "/a.b/c.d", "/.well-known/acme-challenge/token", "/.well-known/"] {
            assert!(!is_hidden_path(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn a_redirect_stays_on_this_host() {
        for (path, query, location) in [
            (&b"/evil.example"[..], None, "/evil.example/"),
            (b"/a b", Some("c=d"), "/a%20b/?c=d"),
            (b"/\\evil.example", None, "/%5Cevil.example/"),
            (b"/a\r\nb", None, "/a%0D%0Ab/"),
            (b"/\xc3\xa4?#%", None, "/%C3%A4%3F%23%25/"),
        ] {
            assert_eq!(directory_location(path, query).expect("value"), location);
        }
    }
}
