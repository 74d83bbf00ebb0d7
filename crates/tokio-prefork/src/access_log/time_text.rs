//! The texts of the current second, kept until the next one begins.

use std::time::Duration;

use super::escape::ShortText;
use prefork_os::wall_clock::{LocalTime, local_time};

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The texts of one second in the local time zone.
#[derive(Debug, Default)]
pub(super) struct TimeText {
    second: Option<u64>,
    /// `28/Nov/2026:17:20:31 +0000`, as in the common log format.
    pub(super) common: ShortText<32>,
    /// `2026-11-28T17:20:31`.
    pub(super) iso_second: ShortText<32>,
    /// `+00:00`.
    pub(super) iso_offset: ShortText<32>,
}

impl TimeText {
    /// Sets the texts to the second of `now`, since 1970.
    pub(super) fn set(&mut self, now: Duration) {
        if self.second == Some(now.as_secs()) {
            return;
        }
        self.second = Some(now.as_secs());
        let seconds = i64::try_from(now.as_secs()).unwrap_or(0);
        self.format(&local_time(seconds).unwrap_or(LocalTime {
            year: 1970,
            month: 1,
            day: 1,
            hour: 0,
            minute: 0,
            second: 0,
            utc_offset_minutes: 0,
        }));
    }

    fn format(&mut self, time: &LocalTime) {
        let LocalTime { year, month, day, hour, minute, second, utc_offset_minutes } = *time;
        let name = MONTHS.get(usize::from(month.saturating_sub(1))).unwrap_or(&MONTHS[0]);
        let sign = if utc_offset_minutes < 0 { '-' } else { '+' };
        let offset = utc_offset_minutes.abs();
        let (zone_hours, zone_minutes) = (offset / 60, offset % 60);
        self.common = ShortText::new(&format!(
            "{day:02}/{name}/{year:04}:{hour:02}:{minute:02}:{second:02} {sign}{zone_hours:02}{zone_minutes:02}"
        ));
        self.iso_second = ShortText::new(&format!(
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        ));
        self.iso_offset = ShortText::new(&format!("{sign}{zone_hours:02}:{zone_minutes:02}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_formatted_with_its_zone() {
        let mut text = TimeText::default();
        let time = LocalTime {
            year: 2026,
            month: 11,
            day: 8,
            hour: 7,
            minute: 5,
            second: 9,
            utc_offset_minutes: -210,
        };
        text.format(&time);
        assert_eq!(text.common.as_str(), "08/Nov/2026:07:05:09 -0330");
        assert_eq!(
            (text.iso_second.as_str(), text.iso_offset.as_str()),
            ("2026-11-08T07:05:09", "-03:30")
        );
    }

    #[test]
    fn the_texts_change_with_the_second() {
        let mut text = TimeText::default();
        text.set(Duration::from_millis(1_000_999));
        let first = text.common;
        text.set(Duration::from_millis(1_000_000));
        assert_eq!(text.common, first);
        text.set(Duration::from_millis(1_001_000));
        assert_ne!(text.common, first);
    }
}
