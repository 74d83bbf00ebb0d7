//! Byte ranges (RFC 9110, section 14): which parts of a representation a request wants.
//!
//! Where the RFC leaves a choice the answers are those of nginx: an invalid set of ranges gives 416, and a set whose sum
//! is longer than the whole gives the whole.

use std::ops::Range;

use hyper::HeaderMap;
use hyper::header::RANGE;

/// Ranges in one request beyond which the whole is sent: each costs about 100 bytes of header in the response.
const MAX_RANGES: usize = 100;

/// What a request wants of a representation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it.
    Whole,
    /// These parts, at least one, none empty, in the order of the request.
    Parts(Vec<Range<u64>>),
    /// Only what it does not have: 416.
    Unsatisfiable,
}

/// Reads the `Range` field of a GET request for a representation of `length` bytes.
pub(super) fn wanted(headers: &HeaderMap, length: u64) -> Wanted {
    let Some(value) = headers.get(RANGE) else { return Wanted::Whole };
    match value.as_bytes().split_at_checked(6) {
        // Other units are ignored, and nginx ignores a set without any character.
        Some((unit, set)) if unit.eq_ignore_ascii_case(b"bytes=") && !set.is_empty() => {
            parse(set, length)
        }
        _ => Wanted::Whole,
    }
}

fn parse(set: &[u8], length: u64) -> Wanted {
    let mut parts = Vec::new();
    let mut sum = 0u64;
    for spec in set.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        // Recipients of lists ignore empty elements (RFC 9110, section 5.6.1.2).
        if spec.is_empty() {
            continue;
        }
        let Some(Spec { first, end }) = read_spec(spec, length) else {
            return Wanted::Unsatisfiable;
        };
        if first < end {
            sum = sum.saturating_add(end - first);
            parts.push(first..end);
        } else if first == 0 && length == 0 {
            // Of an empty representation every range from its beginning is the whole.
            return Wanted::Whole;
        }
    }
    if parts.is_empty() {
        Wanted::Unsatisfiable
    } else if sum > length || parts.len() > MAX_RANGES {
        Wanted::Whole
    } else {
        Wanted::Parts(parts)
    }
}

/// A range with its end excluded; empty if the representation has nothing of it.
struct Spec {
    first: u64,
    end: u64,
}

/// `None` if it is no range.
fn read_spec(spec: &[u8], length: u64) -> Option<Spec> {
    let dash = spec.iter().position(|byte| *byte == b'-')?;
    let (before, after) = (spec[..dash].trim_ascii(), spec[dash + 1..].trim_ascii());
    if before.is_empty() {
        let suffix = number(after)?;
        return Some(Spec { first: length.saturating_sub(suffix), end: length });
    }
    let first = number(before)?;
    let end = match after {
        b"" => length,
        last => number(last)?.saturating_add(1).min(length),
    };
    Some(Spec { first, end })
}

/// Digits only; as large as can be where they are too many, as any such position is beyond every end.
fn number(digits: &[u8]) -> Option<u64> {
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

    fn of(value: &str, length: u64) -> Wanted {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, value.parse().expect("header"));
        wanted(&headers, length)
    }

    #[test]
    fn ranges_are_read_as_nginx_and_the_rfc_do() {
        use Wanted::{Parts, Unsatisfiable, Whole};
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
            assert_eq!(of(value, 10), expected, "{value}");
        }
    }

    #[test]
    fn of_nothing_a_range_is_the_whole_or_nothing() {
        assert_eq!(of("bytes=0-", 0), Wanted::Whole);
        assert_eq!(of("bytes=0-5", 0), Wanted::Whole);
        assert_eq!(of("bytes=-5", 0), Wanted::Whole);
        assert_eq!(of("bytes=1-", 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn too_many_ranges_give_the_whole() {
        let many = |n: u64| {
            let specs: Vec<String> = (0..n).map(|i| format!("{0}-{0}", 2 * i)).collect();
            of(&format!("bytes={}", specs.join(",")), 1 << 20)
        };
        assert!(matches!(many(100), Wanted::Parts(parts) if parts.len() == 100));
        assert_eq!(many(101), Wanted::Whole);
    }
}
