//! The wall clock, and its time in the zone of this machine.

use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::libc;

/// Returns the time since 1970, up to 10 ms old: reading the kernel's last tick costs a few nanoseconds.
pub fn coarse_unix_time() -> Duration {
    match clock_gettime(ClockId::CLOCK_REALTIME_COARSE) {
        Ok(now) => Duration::new(
            u64::try_from(now.tv_sec()).unwrap_or(0),
            u32::try_from(now.tv_nsec()).unwrap_or(0),
        ),
        Err(_) => Duration::ZERO,
    }
}

/// A second in the time zone of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    /// The year, such as 2026.
    pub year: i32,
    /// The month, from 1 to 12.
    pub month: u8,
    /// The day of the month, from 1.
    pub day: u8,
    /// The hour, from 0 to 23.
    pub hour: u8,
    /// The minute, from 0 to 59.
    pub minute: u8,
    /// The second, from 0 to 60.
    pub second: u8,
    /// How many minutes the zone is ahead of UTC.
    pub utc_offset_minutes: i32,
}

/// Returns a second since 1970 in the time zone of this machine: that of `TZ`, else of `/etc/localtime`.
///
/// # Errors
/// The year does not fit, or the time zone cannot be read.
pub fn local_time(unix_seconds: i64) -> io::Result<LocalTime> {
    let seconds = libc::time_t::from(unix_seconds);
    // SAFETY: a `tm` is numbers and a pointer, for all of which zero is a valid value.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call, which writes one `tm` through the second.
    if unsafe { libc::localtime_r(&raw const seconds, &raw mut tm) }.is_null() {
        return Err(io::Error::last_os_error());
    }
    let small = |n: libc::c_int| u8::try_from(n).unwrap_or(0);
    Ok(LocalTime {
        year: tm.tm_year + 1900,
        month: small(tm.tm_mon + 1),
        day: small(tm.tm_mday),
        hour: small(tm.tm_hour),
        minute: small(tm.tm_min),
        second: small(tm.tm_sec),
        utc_offset_minutes: i32::try_from(tm.tm_gmtoff / 60).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coarse_clock_is_close_to_the_exact_one() {
        let exact =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        assert!(coarse_unix_time().abs_diff(exact) < Duration::from_secs(1));
    }

    #[test]
    fn a_local_time_and_its_offset_make_the_unix_time() {
        let local = local_time(86_400 * 365 + 3661).expect("a time");
        let minutes = i64::from(local.hour) * 60 + i64::from(local.minute);
        let utc = (minutes - i64::from(local.utc_offset_minutes)).rem_euclid(24 * 60);
        assert_eq!((utc, local.second), (61, 1));
        assert!((1970..=1971).contains(&local.year));
    }
}
