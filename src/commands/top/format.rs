//! Short texts for figures.

use std::time::Duration;

use tokio_prefork::text::HumanDuration;

/// What is shown where a figure is unknown.
pub(super) const UNKNOWN: &str = "-";

/// Formats a duration in milliseconds: `40 ms`, `2.5 s`, `3 min`.
pub(super) fn format_ms(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        _ => HumanDuration(Duration::from_millis(ms)).to_string(),
    }
}

/// Formats a duration with microseconds where it is that short.
pub(super) fn format_duration(duration: Option<Duration>) -> String {
    match duration {
        None => UNKNOWN.to_string(),
        Some(short) if short < Duration::from_millis(1) => format!("{} us", short.as_micros()),
        Some(duration) => HumanDuration(duration).to_string(),
    }
}

/// Formats a rate in at most five characters: `0`, `3.2`, `1234`, `56.7k`, `8.9M`.
pub(super) fn format_rate(rate: Option<f64>) -> String {
    match rate {
        None => UNKNOWN.to_string(),
        Some(0.0) => "0".to_string(),
        Some(rate) if rate < 9.95 => format!("{rate:.1}"),
        Some(rate) if rate < 9999.5 => format!("{rate:.0}"),
        Some(rate) if rate < 999_950.0 => format!("{:.1}k", rate / 1e3),
        Some(rate) => format!("{:.1}M", rate / 1e6),
    }
}

/// Formats a number of bytes with the units of 1024 that `top` and `htop` show: `512`, `3.4K`, `12.0M`, `1.5G`.
pub(super) fn format_bytes(bytes: f64) -> String {
    let (mut value, mut unit) = (bytes, "");
    for larger in ["K", "M", "G", "T"] {
        if value < 1023.95 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit.is_empty() { format!("{value:.0}") } else { format!("{value:.1}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_few_digits() {
        let rates = [0.0, 0.04, 9.94, 9.96, 9999.0, 9999.6, 56_700.0, 8_900_000.0].map(Some);
        let texts = rates.map(format_rate);
        assert_eq!(texts, ["0", "0.0", "9.9", "10", "9999", "10.0k", "56.7k", "8.9M"]);
        assert_eq!(format_rate(None), "-");
    }

    #[test]
    fn sizes_and_durations_have_units() {
        let sizes = [0.0, 1023.0, 1024.0, 12.0 * 1048576.0, 1.5 * 1073741824.0].map(format_bytes);
        assert_eq!(sizes, ["0", "1023", "1.0K", "12.0M", "1.5G"]);
        assert_eq!([40, 2500, 180_000].map(format_ms), ["40 ms", "2.5 s", "3 min"]);
        let durations = [None, Some(Duration::from_micros(90)), Some(Duration::from_millis(12))];
        assert_eq!(durations.map(format_duration), ["-", "90 us", "12 ms"]);
    }
}
