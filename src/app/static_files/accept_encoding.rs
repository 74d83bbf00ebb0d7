//! `Accept-Encoding` (RFC 9110, section 12.5.3): which stored coding of a file a client gets.

use hyper::HeaderMap;
use hyper::header::ACCEPT_ENCODING;

/// A content coding of a precompressed file next to the plain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// `FILE.br`
    Brotli,
    /// `FILE.gz`
    Gzip,
}

impl Coding {
    /// All codings, the more compact one first.
    pub(super) const ALL: [Coding; 2] = [Coding::Brotli, Coding::Gzip];

    /// Returns the value of `Content-Encoding`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Coding::Brotli => "br",
            Coding::Gzip => "gzip",
        }
    }

    /// Returns the extension that is appended to the name of the plain file.
    pub(super) fn suffix(self) -> &'static [u8] {
        match self {
            Coding::Brotli => b".br",
            Coding::Gzip => b".gz",
        }
    }

    fn is_named(self, word: &[u8]) -> bool {
        word.eq_ignore_ascii_case(self.name().as_bytes())
            // An alias that recipients treat as equivalent (section 8.4.1.3).
            || (self == Coding::Gzip && word.eq_ignore_ascii_case(b"x-gzip"))
    }
}

/// The weights of `Accept-Encoding` in thousandths; `None` for a coding that the client does not name.
#[derive(Debug, Default)]
struct CodingWeights {
    codings: [Option<u16>; Coding::ALL.len()],
    identity: Option<u16>,
    any: Option<u16>,
}

/// Returns the stored coding that the client prefers to the plain file, if there is one.
pub(super) fn select_coding(headers: &HeaderMap, stored: &[Coding]) -> Option<Coding> {
    if stored.is_empty() || !headers.contains_key(ACCEPT_ENCODING) {
        return None;
    }
    let weights = parse_accept_encoding(headers);
    let weight_of = |coding: Coding| {
        let at = Coding::ALL.iter().position(|known| *known == coding)?;
        weights.codings[at].or(weights.any)
    };
    // `max_by_key` takes the last of equals.
    let best = stored.iter().rev().copied().max_by_key(|coding| weight_of(*coding).unwrap_or(0));
    // The plain file is acceptable unless it is excluded, but not preferred unless it is named.
    let plain = weights.identity.unwrap_or(0);
    best.filter(|coding| weight_of(*coding).is_some_and(|weight| weight > 0 && weight >= plain))
}

fn parse_accept_encoding(headers: &HeaderMap) -> CodingWeights {
    let mut weights = CodingWeights::default();
    let lines = headers.get_all(ACCEPT_ENCODING).iter();
    for element in lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')) {
        let mut parts = element.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let word = parts.next().unwrap_or_default();
        let weight = parts.find_map(parse_quality).unwrap_or(1000);
        if word == b"*" {
            weights.any = Some(weight);
        } else if word.eq_ignore_ascii_case(b"identity") {
            weights.identity = Some(weight);
        } else if let Some(at) = Coding::ALL.iter().position(|coding| coding.is_named(word)) {
            weights.codings[at] = Some(weight);
        }
    }
    weights
}

/// Parses a weight such as `q=0.5` into thousandths; 0 for a malformed weight, which makes the coding unacceptable.
fn parse_quality(parameter: &[u8]) -> Option<u16> {
    let (name, value) = parameter.split_at(parameter.iter().position(|byte| *byte == b'=')?);
    if !name.trim_ascii().eq_ignore_ascii_case(b"q") {
        return None;
    }
    let text = std::str::from_utf8(value[1..].trim_ascii()).ok();
    let (whole, fraction) = text.map(|text| text.split_once('.').unwrap_or((text, "")))?;
    let is_valid = fraction.len() <= 3 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    Some(match whole {
        "1" if is_valid && fraction.bytes().all(|byte| byte == b'0') => 1000,
        "0" if is_valid => format!("{fraction:0<3}").parse().unwrap_or(0),
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coding_with_the_highest_quality_is_selected() {
        use Coding::{Brotli, Gzip};
        for (value, expected) in [
            ("gzip", Some(Gzip)),
            ("br", Some(Brotli)),
            ("gzip, br", Some(Brotli)),
            ("gzip;q=1.0, br;q=0.9", Some(Gzip)),
            ("gzip;q=0.5, br;q=0.500", Some(Brotli)),
            ("GZIP", Some(Gzip)),
            ("x-gzip", Some(Gzip)),
            ("*", Some(Brotli)),
            ("*;q=0.1", Some(Brotli)),
            ("br;q=0, *", Some(Gzip)),
            ("br;q=0, *;q=0.2", Some(Gzip)),
            ("gzip;q=0, br;q=0.000", None),
            ("gzip;q=0.5, identity", None),
            ("gzip;q=0.5, identity;q=0.5", Some(Gzip)),
            ("gzip;q=0.5, identity;q=0.1", Some(Gzip)),
            ("identity;q=0, gzip;q=0.1", Some(Gzip)),
            ("identity", None),
            ("deflate, zstd", None),
            ("", None),
            ("*;q=0", None),
            ("gzip;q=x", None),
            ("gzip;q=1.5", None),
            ("gzip ; Q = 0.8", Some(Gzip)),
            ("gzip;level=9;q=0.8", Some(Gzip)),
            ("gzipped", None),
            (",,gzip,", Some(Gzip)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, value.parse().expect("value"));
            assert_eq!(select_coding(&headers, &Coding::ALL), expected, "{value}");
            assert_eq!(select_coding(&headers, &[]), None, "{value}");
        }
        assert_eq!(select_coding(&HeaderMap::new(), &Coding::ALL), None);
    }

    #[test]
    fn only_stored_codings_are_selected_and_header_lines_are_merged() {
        let mut headers = HeaderMap::new();
        headers.append(ACCEPT_ENCODING, "br".parse().expect("value"));
        headers.append(ACCEPT_ENCODING, "gzip;q=0.3".parse().expect("value"));
        assert_eq!(select_coding(&headers, &[Coding::Gzip]), Some(Coding::Gzip));
        assert_eq!(select_coding(&headers, &[Coding::Brotli]), Some(Coding::Brotli));
        assert_eq!(select_coding(&headers, &Coding::ALL), Some(Coding::Brotli));
    }
}
