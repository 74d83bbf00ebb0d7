//! Conditional requests (RFC 9110, section 13), in the order of precedence of section 13.2.2.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::HeaderMap;
use hyper::header::{
    HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
};

/// The validators of a representation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Validators<'a> {
    /// The strong entity tag, with its quotes.
    pub(super) etag: &'a [u8],
    /// Last modification in seconds since 1970, if it can be expressed.
    pub(super) modified: Option<u64>,
}

/// The result of the preconditions of a GET or HEAD request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PreconditionResult {
    /// Send the normal response.
    Proceed,
    /// Send 304 Not Modified.
    NotModified,
    /// Send 412 Precondition Failed.
    Failed,
}

/// Evaluates all preconditions but `If-Range`.
pub(super) fn evaluate_preconditions(
    headers: &HeaderMap,
    current: Validators<'_>,
) -> PreconditionResult {
    if headers.contains_key(IF_MATCH) {
        if !matches_any(headers, &IF_MATCH, |tag| tag == current.etag) {
            return PreconditionResult::Failed;
        }
    } else if let (Some(date), Some(modified)) =
        (parse_date_header(headers, &IF_UNMODIFIED_SINCE), current.modified)
        && modified > date
    {
        return PreconditionResult::Failed;
    }
    if headers.contains_key(IF_NONE_MATCH) {
        let is_same = |tag: &[u8]| tag.strip_prefix(b"W/").unwrap_or(tag) == current.etag;
        if matches_any(headers, &IF_NONE_MATCH, is_same) {
            return PreconditionResult::NotModified;
        }
    } else if let (Some(date), Some(modified)) =
        (parse_date_header(headers, &IF_MODIFIED_SINCE), current.modified)
        && modified <= date
    {
        return PreconditionResult::NotModified;
    }
    PreconditionResult::Proceed
}

/// Returns whether `If-Range` allows the `Range` field to apply: without it, or if its validator is the current one.
pub(super) fn is_range_applicable(headers: &HeaderMap, current: Validators<'_>) -> bool {
    let Some(value) = headers.get(IF_RANGE) else { return true };
    if value.as_bytes().ends_with(b"\"") {
        return value.as_bytes() == current.etag;
    }
    let date = parse_date_header(headers, &IF_RANGE);
    date.is_some() && date == current.modified
}

/// Returns the date in field `name`; `None` to ignore a repeated or malformed one.
fn parse_date_header(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let mut values = headers.get_all(name).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let date = httpdate::parse_http_date(value.to_str().ok()?).ok()?;
    date.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// Formats `seconds` since 1970 as an HTTP date; `None` after the year 9999, which the format cannot express.
pub(super) fn format_http_date(seconds: u64) -> Option<String> {
    const YEAR_10000: u64 = 253_402_300_800;
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
    (seconds < YEAR_10000).then(|| httpdate::fmt_http_date(time))
}

/// Returns whether field `name` is `*` or contains a tag for which `is_same` holds. A list that breaks off counts up to
/// there.
fn matches_any(headers: &HeaderMap, name: &HeaderName, is_same: impl Fn(&[u8]) -> bool) -> bool {
    headers.get_all(name).iter().any(|value| {
        let value = value.as_bytes().trim_ascii();
        value == b"*" || EntityTags(value).any(&is_same)
    })
}

/// Returns the entity tags of a list, each with its quotes and `W/`.
struct EntityTags<'a>(&'a [u8]);

impl<'a> Iterator for EntityTags<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let is_between = |byte: &u8| !matches!(byte, b',' | b' ' | b'\t');
        let begin = self.0.iter().position(is_between)?;
        let rest = &self.0[begin..];
        let opening = if rest.starts_with(b"W/") { 2 } else { 0 };
        if rest.get(opening) != Some(&b'"') {
            return None;
        }
        let closing = rest[opening + 1..].iter().position(|byte| *byte == b'"')?;
        let (tag, after) = rest.split_at(opening + closing + 2);
        self.0 = after;
        // A tag ends at a comma: what goes on is no tag.
        let ends = after.trim_ascii_start().first().is_none_or(|byte| *byte == b',');
        ends.then_some(tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETAG: &str = "\"5f-a\"";
    /// Sun, 06 Nov 1994 08:49:37 GMT.
    const MODIFIED: u64 = 784_111_777;
    const SAME: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().expect("value"));
        }
        headers
    }

    fn current() -> Validators<'static> {
        Validators { etag: ETAG.as_bytes(), modified: Some(MODIFIED) }
    }

    #[test]
    fn single_preconditions_are_evaluated() {
        use PreconditionResult::{Failed, NotModified, Proceed};
        for (name, value, expected) in [
            ("if-match", ETAG, Proceed),
            ("if-match", "*", Proceed),
            ("if-match", "\"x\", \"5f-a\"", Proceed),
            ("if-match", "\"x\"", Failed),
            // Strong comparison.
            ("if-match", "W/\"5f-a\"", Failed),
            ("if-match", "5f-a", Failed),
            ("if-match", "", Failed),
            ("if-match", "\"x\"\"5f-a\"", Failed),
            ("if-none-match", ETAG, NotModified),
            ("if-none-match", "*", NotModified),
            // Weak comparison.
            ("if-none-match", "W/\"5f-a\"", NotModified),
            ("if-none-match", "\"x\" ,\t W/\"5f-a\"", NotModified),
            ("if-none-match", "\"a,b\",\"5f-a\"", NotModified),
            ("if-none-match", ",, \"5f-a\"", NotModified),
            ("if-none-match", "\"x\"", Proceed),
            ("if-none-match", "5f-a", Proceed),
            ("if-none-match", "w/\"5f-a\"", Proceed),
            ("if-none-match", "\"5f-a", Proceed),
            ("if-none-match", "\"*\"", Proceed),
            ("if-modified-since", SAME, NotModified),
            ("if-modified-since", AFTER, NotModified),
            ("if-modified-since", BEFORE, Proceed),
            ("if-modified-since", "Sunday, 06-Nov-94 08:49:37 GMT", NotModified),
            ("if-modified-since", "Sun Nov  6 08:49:37 1994", NotModified),
            ("if-modified-since", "yesterday", Proceed),
            ("if-modified-since", "784111777", Proceed),
            ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT, x", Proceed),
            ("if-unmodified-since", SAME, Proceed),
            ("if-unmodified-since", AFTER, Proceed),
            ("if-unmodified-since", BEFORE, Failed),
            ("if-unmodified-since", "yesterday", Proceed),
        ] {
            let found = evaluate_preconditions(&headers(&[(name, value)]), current());
            assert_eq!(found, expected, "{name}: {value}");
        }
    }

    #[test]
    fn etags_take_precedence_over_dates_and_412_over_304() {
        use PreconditionResult::{Failed, NotModified, Proceed};
        for (fields, expected) in [
            (&[("if-none-match", "\"x\""), ("if-modified-since", AFTER)][..], Proceed),
            (&[("if-none-match", ETAG), ("if-modified-since", BEFORE)], NotModified),
            (&[("if-match", ETAG), ("if-unmodified-since", BEFORE)], Proceed),
            (&[("if-match", "\"x\""), ("if-unmodified-since", AFTER)], Failed),
            (&[("if-match", "\"x\""), ("if-none-match", ETAG)], Failed),
            (&[("if-match", ETAG), ("if-none-match", ETAG)], NotModified),
            (&[("if-unmodified-since", BEFORE), ("if-none-match", ETAG)], Failed),
            (&[("if-unmodified-since", SAME), ("if-modified-since", SAME)], NotModified),
            (&[("if-none-match", "\"x\""), ("if-none-match", ETAG)], NotModified),
            (&[("if-modified-since", AFTER), ("if-modified-since", AFTER)], Proceed),
        ] {
            assert_eq!(evaluate_preconditions(&headers(fields), current()), expected, "{fields:?}");
        }
    }

    #[test]
    fn date_conditions_are_ignored_without_a_modification_date() {
        let current = Validators { modified: None, ..current() };
        for name in ["if-modified-since", "if-unmodified-since"] {
            assert_eq!(
                evaluate_preconditions(&headers(&[(name, AFTER)]), current),
                PreconditionResult::Proceed
            );
            assert_eq!(
                evaluate_preconditions(&headers(&[(name, BEFORE)]), current),
                PreconditionResult::Proceed
            );
        }
        assert!(!is_range_applicable(&headers(&[("if-range", SAME)]), current));
    }

    #[test]
    fn if_range_requires_an_exact_match() {
        for (value, counts) in [
            (ETAG, true),
            ("W/\"5f-a\"", false),
            ("\"x\"", false),
            ("*", false),
            (SAME, true),
            ("Sun Nov  6 08:49:37 1994", true),
            (AFTER, false),
            (BEFORE, false),
            ("5f-a", false),
            ("", false),
        ] {
            assert_eq!(
                is_range_applicable(&headers(&[("if-range", value)]), current()),
                counts,
                "{value}"
            );
        }
        assert!(is_range_applicable(&HeaderMap::new(), current()));
    }

    #[test]
    fn dates_after_year_9999_are_not_formatted() {
        assert_eq!(format_http_date(MODIFIED).as_deref(), Some(SAME));
        assert_eq!(format_http_date(0).as_deref(), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
        assert!(format_http_date(253_402_300_799).is_some());
        for seconds in [253_402_300_800, i64::MAX as u64, u64::MAX] {
            assert_eq!(format_http_date(seconds), None);
        }
    }
}
