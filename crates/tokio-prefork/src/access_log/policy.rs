//! Which requests get a line: sampling, slow requests, and paths that are left out.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::config::ParseValueError;

/// The share of requests that get a line. Default: all.
///
/// In text: `0.01`, `1/100` or `1%`; from 0 to 1.
///
/// ```
/// use tokio_prefork::AccessLogSample;
///
/// let sample: AccessLogSample = "1/100".parse()?;
/// assert_eq!(sample, "0.01".parse()?);
/// # Ok::<(), tokio_prefork::ParseValueError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessLogSample {
    /// Parts of 2^32 that are logged.
    parts: u64,
}

/// The parts of a whole.
const ALL_PARTS: u64 = 1 << 32;

impl AccessLogSample {
    /// Every request gets a line.
    pub const ALL: AccessLogSample = AccessLogSample { parts: ALL_PARTS };

    /// Returns the sample of this share of the requests, from 0 to 1; `None` outside.
    pub fn new(share: f64) -> Option<AccessLogSample> {
        // The product is between 0 and 2^32.
        (0.0..=1.0)
            .contains(&share)
            .then(|| AccessLogSample { parts: (share * ALL_PARTS as f64).round() as u64 })
    }

    /// Returns the share, from 0 to 1.
    pub fn share(&self) -> f64 {
        self.parts as f64 / ALL_PARTS as f64
    }

    /// Returns whether the request with this random number is in the sample.
    fn contains(self, random: u32) -> bool {
        u64::from(random) < self.parts
    }
}

impl Default for AccessLogSample {
    fn default() -> AccessLogSample {
        AccessLogSample::ALL
    }
}

impl FromStr for AccessLogSample {
    type Err = ParseValueError;

    /// # Errors
    ///
    /// Not a number from 0 to 1, `1/N` or a percentage.
    fn from_str(text: &str) -> Result<AccessLogSample, ParseValueError> {
        let number = |text: &str| text.trim().parse::<f64>().ok();
        let share = match (text.split_once('/'), text.trim().strip_suffix('%')) {
            (Some((part, of)), _) => number(part).zip(number(of)).map(|(part, of)| part / of),
            (None, Some(percent)) => number(percent).map(|percent| percent / 100.0),
            (None, None) => number(text),
        };
        share.and_then(AccessLogSample::new).ok_or_else(|| {
            ParseValueError::new(
                text,
                "is no share of the requests: give 0 to 1, such as 0.01 or 1/100",
            )
        })
    }
}

impl fmt::Display for AccessLogSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = self.share();
        let parts = 1.0 / share;
        if share > 0.0 && share < 1.0 && (parts - parts.round()).abs() < 1e-6 * parts {
            return write!(f, "1/{}", parts.round());
        }
        write!(f, "{share}")
    }
}

/// A path that requests may be left out by: exact, or with `*` at its end for all that begin with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SkippedPath {
    text: String,
    is_prefix: bool,
}

impl SkippedPath {
    pub(crate) fn new(text: &str) -> SkippedPath {
        match text.strip_suffix('*') {
            Some(prefix) => SkippedPath { text: prefix.to_string(), is_prefix: true },
            None => SkippedPath { text: text.to_string(), is_prefix: false },
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self.is_prefix {
            true => path.starts_with(&self.text),
            false => path == self.text,
        }
    }
}

/// Parses paths with commas between them.
#[cfg(any(feature = "cli", test))]
pub(crate) fn parse_paths(text: &str) -> Result<Vec<String>, String> {
    let paths = text.split(',').map(str::trim).filter(|path| !path.is_empty() && *path != "off");
    let paths: Vec<String> = paths.map(str::to_string).collect();
    check_paths(&paths)?;
    Ok(paths)
}

/// Checks that each path begins with a slash and has a star only at its end.
pub(crate) fn check_paths(paths: &[String]) -> Result<(), String> {
    let is_valid = |path: &String| {
        let end = path.len().saturating_sub(1);
        path.starts_with('/') && !path[..end].contains('*') && !path.contains('?')
    };
    match paths.iter().find(|path| !is_valid(path)) {
        None => Ok(()),
        Some(path) => Err(format!(
            "has {path:?}, which is no path: give /PATH, or /PREFIX* for all paths that begin with it"
        )),
    }
}

/// Decides which requests get a line.
#[derive(Debug, Clone)]
pub(crate) struct LogPolicy {
    pub(super) sample: AccessLogSample,
    pub(super) slower_than: Option<Duration>,
    skipped_paths: Vec<SkippedPath>,
}

impl LogPolicy {
    pub(crate) fn new(
        sample: AccessLogSample,
        slower_than: Option<Duration>,
        skipped_paths: &[String],
    ) -> LogPolicy {
        let skipped_paths = skipped_paths.iter().map(|path| SkippedPath::new(path)).collect();
        LogPolicy { sample, slower_than, skipped_paths }
    }

    /// Returns whether requests to `path` are left out.
    pub(crate) fn skips_path(&self, path: &str) -> bool {
        self.skipped_paths.iter().any(|skipped| skipped.matches(path))
    }

    /// Returns whether an ended request gets a line: one with a status of 500 or more, one that was slow, or one of the
    /// sample. With a limit for slow ones alone, there is no sample.
    pub(super) fn wants_line(
        &self,
        status: u16,
        duration: Option<Duration>,
        random: impl FnOnce() -> u32,
    ) -> bool {
        if self.sample == AccessLogSample::ALL && self.slower_than.is_none() {
            return true;
        }
        let is_slow = self.slower_than.zip(duration).is_some_and(|(limit, took)| took >= limit);
        let has_sample = self.slower_than.is_none() || self.sample != AccessLogSample::ALL;
        status >= 500 || is_slow || (has_sample && self.sample.contains(random()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_and_shown() {
        for (text, share, shown) in [
            ("1", 1.0, "1"),
            ("0.01", 0.01, "1/100"),
            ("1/3", 1.0 / 3.0, "1/3"),
            ("5%", 0.05, "1/20"),
            ("0.75", 0.75, "0.75"),
            ("0", 0.0, "0"),
        ] {
            let sample: AccessLogSample = text.parse().expect(text);
            assert!((sample.share() - share).abs() < 1e-9, "{text}");
            assert_eq!(sample.to_string(), shown);
            assert_eq!(shown.parse(), Ok(sample));
        }
        for text in ["", "2", "-0.1", "NaN", "1/0", "one", "101%", "1/2/3"] {
            assert!(text.parse::<AccessLogSample>().is_err(), "{text}");
        }
    }

    #[test]
    fn paths_match_exactly_or_by_prefix() {
        let paths = parse_paths("/healthz, /static/*").expect("paths");
        let policy = LogPolicy::new(AccessLogSample::ALL, None, &paths);
        for (path, is_skipped) in
            [("/healthz", true), ("/healthz/", false), ("/static/a.css", true), ("/", false)]
        {
            assert_eq!(policy.skips_path(path), is_skipped, "{path}");
        }
        assert_eq!(parse_paths("off"), Ok(vec![]));
        for text in ["healthz", "/a*b", "/a?b"] {
            assert!(parse_paths(text).expect_err(text).contains("is no path"));
        }
    }

    #[test]
    fn errors_and_slow_requests_always_get_a_line() {
        let policy = |share, slower_than: Option<u64>| {
            let sample = AccessLogSample::new(share).expect("a share");
            LogPolicy::new(sample, slower_than.map(Duration::from_millis), &[])
        };
        let took = |ms| Some(Duration::from_millis(ms));
        assert!(policy(1.0, None).wants_line(200, None, || u32::MAX));
        assert!(!policy(0.5, None).wants_line(200, None, || u32::MAX));
        assert!(policy(0.5, None).wants_line(200, None, || 0));
        assert!(policy(0.0, None).wants_line(500, None, || u32::MAX));
        assert!(!policy(0.0, None).wants_line(499, None, || 0));
        assert!(!policy(1.0, Some(10)).wants_line(200, took(9), || 0));
        assert!(policy(1.0, Some(10)).wants_line(200, took(10), || 0));
        assert!(policy(0.5, Some(10)).wants_line(200, took(9), || 0));
    }
}
