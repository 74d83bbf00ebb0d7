//! The header `Strict-Transport-Security` (RFC 6797).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hyper::header::HeaderValue;

use crate::config::ParseValueError;

/// What is wrong with a value, and what to give.
const FORMS: &str = "is not a value of Strict-Transport-Security: give the seconds, perhaps with options, as in \
                     \"31536000; includeSubDomains\", or off";

/// The least `max-age` of a host on the preload lists of browsers: a year.
const MIN_PRELOAD_AGE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The header `Strict-Transport-Security`, by which browsers use only https for a host. Parses from
/// `MAX-AGE[; includeSubDomains][; preload]`, with the age in seconds and `max-age=` before it or not.
///
/// ```
/// use tokio_prefork::Hsts;
///
/// let hsts: Hsts = "31536000; includeSubDomains".parse()?;
/// assert!(hsts.include_subdomains);
/// assert_eq!(hsts.to_string(), "max-age=31536000; includeSubDomains");
/// # Ok::<(), tokio_prefork::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hsts {
    /// How long browsers remember it after each response, in whole seconds. Zero makes them forget it.
    pub max_age: Duration,
    /// Whether it is for all subdomains, too. Default: false.
    pub include_subdomains: bool,
    /// Whether browsers may ship it in their lists, which is hard to undo. Default: false.
    pub preload: bool,
}

impl Hsts {
    /// For this host alone.
    pub fn new(max_age: Duration) -> Hsts {
        Hsts { max_age, include_subdomains: false, preload: false }
    }

    /// Returns the value of the header.
    pub(crate) fn header_value(&self) -> HeaderValue {
        // Digits, letters and punctuation only.
        HeaderValue::try_from(self.to_string()).unwrap_or(HeaderValue::from_static("max-age=0"))
    }
}

impl FromStr for Hsts {
    type Err = ParseValueError;

    /// # Errors
    ///
    /// There is no age, an unknown option, or `preload` without what the lists of browsers require.
    fn from_str(text: &str) -> Result<Hsts, ParseValueError> {
        let error = |why: &str| ParseValueError::new(text, why.to_string());
        let mut parts = text.split(';').map(str::trim);
        let age = parts.next().unwrap_or_default();
        let age = match age.split_once('=') {
            Some((name, age)) if name.trim().eq_ignore_ascii_case("max-age") => age.trim(),
            Some(_) => return Err(error(FORMS)),
            None => age,
        };
        let is_number = !age.is_empty() && age.bytes().all(|byte| byte.is_ascii_digit());
        let age = age.parse().ok().filter(|_| is_number).ok_or_else(|| error(FORMS))?;
        let mut hsts = Hsts::new(Duration::from_secs(age));
        for option in parts {
            match option.to_ascii_lowercase().as_str() {
                "includesubdomains" => hsts.include_subdomains = true,
                "preload" => hsts.preload = true,
                _ => return Err(error(FORMS)),
            }
        }
        if hsts.preload && (!hsts.include_subdomains || hsts.max_age < MIN_PRELOAD_AGE) {
            return Err(error(
                "has preload without what the lists of browsers require: give \"31536000; includeSubDomains; preload\" or a \
                 longer time, or leave preload out",
            ));
        }
        Ok(hsts)
    }
}

impl fmt::Display for Hsts {
    /// Writes the value of the header.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "max-age={}", self.max_age.as_secs())?;
        for (is_set, option) in
            [(self.include_subdomains, "includeSubDomains"), (self.preload, "preload")]
        {
            if is_set {
                write!(f, "; {option}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_printed_as_the_header_and_can_be_parsed_again() {
        for (text, header) in [
            ("300", "max-age=300"),
            ("0", "max-age=0"),
            ("max-age=300", "max-age=300"),
            ("Max-Age = 300;INCLUDESUBDOMAINS", "max-age=300; includeSubDomains"),
            (
                "63072000; preload; includeSubDomains",
                "max-age=63072000; includeSubDomains; preload",
            ),
        ] {
            let hsts: Hsts = text.parse().expect(text);
            assert_eq!(hsts.to_string(), header);
            assert_eq!(header.parse::<Hsts>().expect(header), hsts);
            assert_eq!(hsts.header_value(), header);
        }
    }

    #[test]
    fn malformed_values_are_refused() {
        for text in [
            "",
            "on",
            "1y",
            "-1",
            "+1",
            "1.5",
            "300;",
            "300; always",
            "includeSubDomains",
            "min-age=1",
            "99999999999999999999999",
            "300; preload",
            "300; includeSubDomains; preload",
            "31536000; preload",
            "300\r\nX: y",
        ] {
            assert!(text.parse::<Hsts>().is_err(), "{text:?}");
        }
    }
}
