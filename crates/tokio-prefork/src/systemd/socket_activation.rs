//! Socket activation: the descriptors that the service manager passed, from `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES`.

use crate::error::{Error, Result};
use crate::text::printable;

/// The first passed descriptor: `SD_LISTEN_FDS_START`.
const FIRST_PASSED_FD: i32 = 3;

/// The largest accepted `LISTEN_FDS`.
const MAX_PASSED_FDS: i32 = 4096;

/// A descriptor that the service manager passed. It may be anything, not only a listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ActivationFd {
    pub(crate) fd: i32,
    /// The name from the unit file; empty without one.
    pub(crate) name: String,
}

/// Parses the variables for process `pid`. Returns nothing if they are for another process.
///
/// # Errors
/// `LISTEN_FDS` is no number from 0 to 4096.
pub(super) fn parse_activation_fds(
    env: impl Fn(&str) -> Option<String>,
    pid: u32,
) -> Result<Vec<ActivationFd>> {
    let is_for_us = env("LISTEN_PID").and_then(|text| text.parse().ok()) == Some(pid);
    let Some(count) = env("LISTEN_FDS").filter(|_| is_for_us) else { return Ok(Vec::new()) };
    let count = count.parse().ok().filter(|n| (0..=MAX_PASSED_FDS).contains(n)).ok_or_else(|| {
        let count = printable(&count);
        Error::config(format!(
            "LISTEN_FDS = {count} is not a number from 0 to {MAX_PASSED_FDS}: let systemd set it, or unset it"
        ))
    })?;
    let names = env("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let fds = (0..count).map(|index| FIRST_PASSED_FD + index);
    let passed = fds.map(|fd| {
        let name = names.next().unwrap_or_default().to_string();
        ActivationFd { fd, name }
    });
    Ok(passed.collect())
}

/// Returns the numbers of the descriptors that the service manager passed to this process.
///
/// # Errors
/// `LISTEN_FDS` is no number from 0 to 4096.
pub(crate) fn activation_fd_numbers() -> Result<Vec<i32>> {
    Ok(parse_own_activation_fds()?.into_iter().map(|one| one.fd).collect())
}

/// Returns the descriptors that the service manager passed to this process, as long as its variables are there.
pub(crate) fn parse_own_activation_fds() -> Result<Vec<ActivationFd>> {
    parse_activation_fds(|name| std::env::var(name).ok(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pid: &str, count: &str, names: Option<&str>) -> Result<Vec<(i32, String)>> {
        let env = |name: &str| match name {
            "LISTEN_PID" => Some(pid.to_string()),
            "LISTEN_FDS" => Some(count.to_string()),
            "LISTEN_FDNAMES" => names.map(str::to_string),
            _ => None,
        };
        Ok(parse_activation_fds(env, 7)?.into_iter().map(|one| (one.fd, one.name)).collect())
    }

    #[test]
    fn numbers_descriptors_from_three_and_names_them_in_order() {
        let two = |a: &str, b: &str| vec![(3, a.to_string()), (4, b.to_string())];
        assert_eq!(parse("7", "2", Some("http:admin")).expect("fits"), two("http", "admin"));
        assert_eq!(parse("7", "2", Some("http")).expect("fits"), two("http", ""));
        assert_eq!(parse("7", "2", None).expect("fits"), two("", ""));
        assert_eq!(parse("7", "0", None).expect("fits"), []);
    }

    #[test]
    fn ignores_variables_of_another_process_and_refuses_invalid_counts() {
        for pid in ["8", "", "seven"] {
            assert_eq!(parse(pid, "1000000000", None).expect("ignored"), []);
        }
        for count in ["1000000000", "-1", "two", ""] {
            let error = parse("7", count, None).expect_err(count).to_string();
            assert!(error.starts_with("LISTEN_FDS = "), "{error}");
        }
        assert_eq!(parse_activation_fds(|_| None, 7).expect("nothing"), []);
    }
}
