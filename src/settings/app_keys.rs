//! Keys of the built-in application and of the command, beside those of the server.

use tokio_prefork::cli::{Field, Key};

use super::AppSettings;
use super::dev_keys::dev_keys;
use super::log_keys::log_keys;

/// Heading of the application's keys in the help.
const APPLICATION: &str = "Built-in application";

/// The keys, grouped by heading.
pub(super) static KEYS: &[Key<AppSettings>] = &{
    let [log, log_format] = log_keys!(AppSettings);
    let [watch, watch_ignore, watch_poll, overlay] = dev_keys!(
        AppSettings,
        "root and the configuration file",
        "Load pages in the browser again after a reload, and show its error there; HTML files get the script for it"
    );
    [
        Key::new(
            "root",
            APPLICATION,
            Field::Directory(|s| &mut s.root),
            "Serve the files in this directory",
        ),
        Key::new(
            "fallback",
            APPLICATION,
            Field::File(|s| &mut s.fallback),
            "With root: serve this file for paths that do not exist, for single-page applications",
        ),
        Key::new(
            "error-page-404",
            APPLICATION,
            Field::File(|s| &mut s.error_page_404),
            "With root: send this file as the body of 404 responses",
        ),
        Key::new(
            "cache-control",
            APPLICATION,
            Field::OptionalText {
                value_name: "VALUE",
                parse: parse_header_value,
                field: |s| &mut s.cache_control,
            },
            "With root: value of Cache-Control in file responses",
        ),
        Key::new(
            "dotfiles",
            APPLICATION,
            Field::Switch(|s| &mut s.dotfiles),
            "With root: serve files and directories whose names start with a dot",
        ),
        Key::new(
            "follow-symlinks",
            APPLICATION,
            Field::Switch(|s| &mut s.follow_symlinks),
            "With root: follow symbolic links that lead outside it",
        ),
        Key::new(
            "health-paths",
            APPLICATION,
            Field::Switch(|s| &mut s.health_paths),
            "Answer /healthz and /readyz; files at these paths are then not served",
        ),
        Key::new(
            "max-body-size",
            APPLICATION,
            Field::ByteCount(|s| &mut s.max_body_size),
            "Maximum size of a request body, beyond it 413",
        ),
        Key::new(
            "max-buffered-bodies",
            APPLICATION,
            Field::ByteCount(|s| &mut s.max_buffered_bodies),
            "Memory per worker for request bodies, at least max-body-size; beyond it 503",
        ),
        Key::new(
            "demo",
            APPLICATION,
            Field::Switch(|s| &mut s.demo),
            "Serve the demonstration paths: /, /cluster, /sleep, /fib, /bytes, /echo, /hash, /websocket",
        ),
        Key::new(
            "faults",
            APPLICATION,
            Field::Switch(|s| &mut s.faults),
            "Serve paths that crash or hang a worker on purpose; for tests only",
        ),
        watch,
        watch_ignore,
        watch_poll,
        overlay,
        log,
        log_format,
    ]
};

/// Parses the value of an HTTP header field (RFC 9110, section 5.5), ASCII only.
fn parse_header_value(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("is empty: give the value of the field".to_string()),
        value if value.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t')) => {
            Ok(value.to_string())
        }
        _ => Err("cannot be sent: give printable ASCII characters".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values_must_be_printable_ascii() {
        let shown = parse_header_value(" public, max-age=60 ");
        assert_eq!(shown.as_deref(), Ok("public, max-age=60"));
        for text in ["", " ", "a\r\nSet-Cookie: b", "a\0", "\u{e4}"] {
            assert!(parse_header_value(text).is_err(), "{text:?}");
        }
    }
}
