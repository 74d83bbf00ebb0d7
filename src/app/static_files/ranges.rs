//! Byte ranges (RFC 9110, section 14): which parts of a representation a request wants.
//!
//! Where the RFC leaves a choice the answers are those of nginx: an invalid set of ranges gives 416, and a set whose sum
//! is longer than the whole gives the whole.

use std::ops::Range;

use hyper::HeaderMap;
use hyper::header::RANGE;

/// Maximum number of ranges in a request; with more, the whole representation is sent: each costs about 100 bytes of header
/// in the response.
const MAX_RANGES: usize = 100;

/// The part of a representation that a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RequestedRange {
    /// The whole representation.
    Whole,
    /// These parts, at least one, none empty, in the order of the request.
    Parts(Vec<Range<u64>>),
    /// Only ranges outside of the representation: 416.
    Unsatisfiable,
}

/// Parses the `Range` field of a GET request for a representation of `length` bytes.
pub(super) fn parse_range_header(headers: &HeaderMap, length: u64) -> RequestedRange {
    let Some(value) = headers.get(RANGE) else { return RequestedRange::Whole };
    match value.as_bytes().split_at_checked(6) {
        // Other units are ignored, and nginx ignores a set without any character.
        Some((unit, set)) if unit.eq_ignore_ascii_case(b"bytes=") && !set.is_empty() => {
            parse_range_set(set, length)
        }
        _ => RequestedRange::Whole,
    }
}

fn parse_range_set(set: &[u8], length: u64) -> RequestedRange {
    let mut parts = Vec::new();
    let mut sum = 0u64;
    for spec in set.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        // Recipients of lists ignore empty elements (RFC 9110, section 5.6.1.2).
        if spec.is_empty() {
            continue;
        }
        let Some(ByteRangeSpec { first, end }) = parse_range_spec(spec, length) else {
            return RequestedRange::Unsatisfiable;
        };
        if first < end {
            sum = sum.saturating_add(end - first);
            parts.push(first..end);
        } else if first == 0 && length == 0 {
            // Of an empty representation every range from its beginning is the whole.
            return RequestedRange::Whole;
        }
    }
    if parts.is_empty() {
        RequestedRange::Unsatisfiable
    } else if sum > length || parts.len() > MAX_RANGES {
        RequestedRange::Whole
    } else {
        RequestedRange::Parts(parts)
    }
}

/// Parses a range with its end excluded; empty if it is outside of the representation.
struct ByteRangeSpec {
    first: u64,
    end: u64,
}

/// Returns `None` for malformed syntax.
fn parse_range_spec(spec: &[u8], length: u64) -> Option<ByteRangeSpec> {
    let dash = spec.iter().position(|byte| *byte == b'-')?;
    let (before, after) = (spec[..dash].trim_ascii(), spec[dash + 1..].trim_ascii());
    if before.is_empty() {
        let suffix = parse_position(after)?;
        return Some(ByteRangeSpec { first: length.saturating_sub(suffix), end: length });
    }
    let first = parse_position(before)?;
    let end = match after {
        b"" => length,
        last => parse_position(last)?.saturating_add(1).min(length),
    };
    Some(ByteRangeSpec { first, end })
}

/// Digits only; as large as can be where they are too many, as any such position is beyond every end.
fn parse_position(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0u64, |value, digit| {
        value.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_range(value: &str, length: u64) -> RequestedRange {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, value.parse().expect("header"));
        parse_range_header(&headers, length)
    }

    #[test]
    fn ranges_are_parsed_like_nginx() {
        use RequestedRange::{Parts, Unsatisfiable, Whole};
        #[expect(clippy::single_range_in_vec_init, reason = "one range is what is meant")]
        let one = |from, to| Parts(vec![from..to]);
        for (value, expected) in [
            ("bytes=0-0", one(0, 1)),
            ("bytes=2-", one(2, 10)),
            ("bytes=-3", one(7, 10)),
            ("bytes=-30", one(0, 10)),
            ("bytes=9-9", one(9, 10)),
            ("bytes=0-99", one(0, 10)),
            ("bytes=5-99999999999999999999999", one(5, 10)),
            ("bytes=-99999999999999999999999", one(0, 10)),
            ("bytes= 1 - 2 ", one(1, 3)),
            ("BYTES=1-2", one(1, 3)),
            ("bytes=0-1,3-4", Parts(vec![0..2, 3..5])),
            ("bytes=3-4, 0-1", Parts(vec![3..5, 0..2])),
            ("bytes=0-1,,\t3-4,", Parts(vec![0..2, 3..5])),
            ("bytes=0-1,10-", one(0, 2)),
            ("bytes=0-1,5-2", one(0, 2)),
            ("bytes=0-,0-", Whole),
            ("bytes=0-9,-1", Whole),
            ("items=0-1", Whole),
            ("bytes=", Whole),
            ("bytes 0-1", Whole),
            ("0-1", Whole),
            ("bytes=10-", Unsatisfiable),
            ("bytes=10-11,12-", Unsatisfiable),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=5-2", Unsatisfiable),
            ("bytes=a-b", Unsatisfiable),
            ("bytes=1", Unsatisfiable),
            ("bytes=-", Unsatisfiable),
            ("bytes=--1", Unsatisfiable),
            ("bytes=1-2-3", Unsatisfiable),
            ("bytes=0-1;2-3", Unsatisfiable),
            ("bytes=0-1,x", Unsatisfiable),
            ("bytes=,", Unsatisfiable),
            ("bytes=+1-2", Unsatisfiable),
            ("bytes=0x1-2", Unsatisfiable),
        ] {
            assert_eq!(parse_range(value, 10), expected, "{value}");
        }
    }

    #[test]
    fn range_of_an_empty_file_is_the_whole_or_unsatisfiable() {
        assert_eq!(parse_range("bytes=0-", 0), RequestedRange::Whole);
        assert_eq!(parse_range("bytes=0-5", 0), RequestedRange::Whole);
        assert_eq!(parse_range("bytes=-5", 0), RequestedRange::Whole);
        assert_eq!(parse_range("bytes=1-", 0), RequestedRange::Unsatisfiable);
    }

    #[test]
    fn too_many_ranges_select_the_whole_file() {
        let many = |n: u64| {
            let specs: Vec<String> = (0..n).map(|i| format!("{0}-{0}", 2 * i)).collect();
            parse_range(&format!("bytes={}", specs.join(",")), 1 << 20)
        };
        assert!(matches!(many(100), RequestedRange::Parts(parts) if parts.len() == 100));
        assert_eq!(many(101), RequestedRange::Whole);
    }
}
