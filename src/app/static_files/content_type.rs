//! `Content-Type` of a file, by the extension of its name.

use hyper::http::HeaderValue;

/// Returns the type of the file at `path`; text is declared to be UTF-8, unknown extensions are `application/octet-stream`.
pub(super) fn guess_content_type(path: &[u8]) -> HeaderValue {
    let unknown = HeaderValue::from_static("application/octet-stream");
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let Some(dot) = name.iter().rposition(|byte| *byte == b'.') else { return unknown };
    let Ok(extension) = std::str::from_utf8(&name[dot + 1..]) else { return unknown };
    let Some(kind) = mime_guess::from_ext(extension).first_raw() else { return unknown };
    // RFC 9239 makes the other name obsolete.
    let kind = if kind == "application/javascript" { "text/javascript" } else { kind };
    if !kind.starts_with("text/") {
        return HeaderValue::from_static(kind);
    }
    HeaderValue::from_str(&format!("{kind}; charset=utf-8")).unwrap_or(unknown)
}

#[cfg(test)]
mod tests {
    use super::guess_content_type;

    #[test]
    fn content_type_is_guessed_from_the_extension() {
        for (path, expected) in [
            ("/a.html", "text/html; charset=utf-8"),
            ("/a.HTML", "text/html; charset=utf-8"),
            ("/a.css", "text/css; charset=utf-8"),
            ("/a.js", "text/javascript; charset=utf-8"),
            ("/a.mjs", "text/javascript; charset=utf-8"),
            ("/a.txt", "text/plain; charset=utf-8"),
            ("/a.json", "application/json"),
            ("/a.svg", "image/svg+xml"),
            ("/a.png", "image/png"),
            ("/a.wasm", "application/wasm"),
            ("/a.woff2", "font/woff2"),
            ("/a.pdf", "application/pdf"),
            ("/a.mp4", "video/mp4"),
            ("/a.tar.gz", "application/gzip"),
            ("/a.webmanifest", "application/manifest+json"),
            ("/a.nobodyknows", "application/octet-stream"),
            ("/a", "application/octet-stream"),
            ("/a.d/b", "application/octet-stream"),
            ("/a.", "application/octet-stream"),
        ] {
            assert_eq!(guess_content_type(path.as_bytes()), expected, "{path}");
        }
        assert_eq!(guess_content_type(b"/a.\xff"), "application/octet-stream");
    }
}
