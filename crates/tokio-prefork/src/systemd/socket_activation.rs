//! Which descriptors the service manager passed: `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES`.

use crate::error::{Error, Result};
use crate::text::printable;

/// The first one; the others follow.
const FIRST: i32 = 3;

/// More than this are nobody's intention.
const MOST: i32 = 4096;

/// A descriptor that was passed. What it is has not been looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) number: i32,
    /// As the unit calls it; empty if it has no name.
    pub(crate) name: String,
}

/// What was passed to process `pid`. A pid of somebody else says that the variables were left over by accident.
pub(super) fn passed(env: impl Fn(&str) -> Option<String>, pid: u32) -> Result<Vec<Passed>> {
    let ours = env("LISTEN_PID").and_then(|text| text.parse().ok()) == Some(pid);
    let Some(count) = env("LISTEN_FDS").filter(|_| ours) else { return Ok(Vec::new()) };
    let count = count.parse().ok().filter(|n| (0..=MOST).contains(n)).ok_or_else(|| {
        let count = printable(&count);
        Error::config(format!(
            "LISTEN_FDS = {count} is not a number from 0 to {MOST}: let systemd set it, or unset it"
        ))
    })?;
    let names = env("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let numbers = (0..count).map(|index| FIRST + index);
    let passed = numbers.map(|number| {
        let name = names.next().unwrap_or_default().to_string();
        Passed { number, name }
    });
    Ok(passed.collect())
}

/// The numbers of the descriptors that were passed to this process: they were not left open by accident.
///
/// # Errors
/// As many as nobody passes.
pub(crate) fn numbers() -> Result<Vec<i32>> {
    let passed = passed(|name| std::env::var(name).ok(), std::process::id())?;
    Ok(passed.into_iter().map(|one| one.number).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(pid: &str, count: &str, names: Option<&str>) -> Result<Vec<(i32, String)>> {
        let env = |name: &str| match name {
            "LISTEN_PID" => Some(pid.to_string()),
            "LISTEN_FDS" => Some(count.to_string()),
            "LISTEN_FDNAMES" => names.map(str::to_string),
            _ => None,
        };
        Ok(passed(env, 7)?.into_iter().map(|one| (one.number, one.name)).collect())
    }

    #[test]
    fn descriptors_are_counted_from_three_and_named_in_their_order() {
        let two = |a: &str, b: &str| vec![(3, a.to_string()), (4, b.to_string())];
        assert_eq!(told("7", "2", Some("http:admin")).expect("fits"), two("http", "admin"));
        assert_eq!(told("7", "2", Some("http")).expect("fits"), two("http", ""));
        assert_eq!(told("7", "2", None).expect("fits"), two("", ""));
        assert_eq!(told("7", "0", None).expect("fits"), []);
    }

    #[test]
    fn what_was_passed_to_others_is_ignored_and_nonsense_is_refused() {
        for pid in ["8", "", "seven"] {
            assert_eq!(told(pid, "1000000000", None).expect("ignored"), []);
        }
        for count in ["1000000000", "-1", "two", ""] {
            let error = told("7", count, None).expect_err(count).to_string();
            assert!(error.starts_with("LISTEN_FDS = "), "{error}");
        }
        assert_eq!(passed(|_| None, 7).expect("nothing"), []);
    }
}
