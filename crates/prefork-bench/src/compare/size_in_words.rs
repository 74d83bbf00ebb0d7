//! The size of a difference in words: "31 % more requests/s than single", "656 times shorter".

use super::compared_metric::ComparedMetric;
use super::paired_ratio::PairedRatio;

/// Largest ratio written as a number.
const MAX_WRITTEN_RATIO: f64 = 1e6;
/// How many times the far end of an interval is the near one, from which on its median says little: 2.
const WIDE_INTERVAL: f64 = 2.0;
/// The size of a ratio of exactly 1, as that of two servers that lose no request.
const NO_DIFFERENCE: &str = "no difference";

impl ComparedMetric {
    /// Describes a ratio, such as `31 % more` or `656 times shorter`.
    pub(crate) fn describe_size(self, ratio: f64) -> String {
        if ratio == 1.0 {
            return NO_DIFFERENCE.to_string();
        }
        let [more, less, multiple] = self.words();
        let (amount, is_multiple) = amount(ratio);
        match (ratio >= 1.0, is_multiple) {
            (true, true) => format!("{amount} {multiple}"),
            (true, false) => format!("{amount} {more}"),
            (false, _) => format!("{amount} {less}"),
        }
    }

    /// Describes how a server with this ratio compares with `other`: `31 % more requests/s than single`.
    pub(crate) fn describe_difference(self, ratio: f64, other: &str) -> String {
        if self == ComparedMetric::RequestsLost && ratio == 0.0 {
            return format!("no requests lost, unlike {other}");
        }
        if self == ComparedMetric::RequestsLost && ratio.is_infinite() {
            return format!("requests lost, unlike {other}");
        }
        if ratio == 1.0 {
            return format!("{NO_DIFFERENCE} in {} from {other}", self.name());
        }
        self.describe_than(&self.describe_size(ratio), other)
    }

    /// Describes a difference whose interval excludes 1: `31 % more requests/s than single`, and from a wide interval `p99 latency
    /// at least 106 times shorter than single`.
    pub(crate) fn describe_stated(self, ratio: &PairedRatio, other: &str) -> String {
        let is_of_no_loss = self == ComparedMetric::RequestsLost
            && (ratio.median == 0.0 || ratio.median.is_infinite());
        match ratio.interval() {
            Some(ends) if !is_of_no_loss => {
                self.describe_than(&self.describe_stated_size(ratio.median, ends), other)
            }
            _ => self.describe_difference(ratio.median, other),
        }
    }

    /// Describes the size of a difference by its median, or by the end of its interval that is nearer to 1 if the ends are far
    /// apart: any size between them may be the true one.
    pub(crate) fn describe_stated_size(self, median: f64, ends: (f64, f64)) -> String {
        let (near, far) = near_and_far(ends);
        let is_wide = match amount(median).1 {
            true => times(far) > WIDE_INTERVAL * times(near),
            false => percent(far) > WIDE_INTERVAL * percent(near),
        };
        match is_wide {
            false => self.describe_size(median),
            true if percent(near) < 0.05 => format!("up to {}", self.describe_size(far)),
            true => format!("at least {}", self.describe_end(near)),
        }
    }

    /// Describes a ratio with as many digits as the end of an interval.
    fn describe_end(self, ratio: f64) -> String {
        let [more, less, multiple] = self.words();
        match (ratio >= 1.0, amount(ratio).1) {
            (true, true) => format!("{} times {multiple}", end_in_times(ratio)),
            (true, false) => format!("{} % {more}", end_in_percent(ratio)),
            (false, true) => format!("{} times {less}", end_in_times(ratio)),
            (false, false) => format!("{} % {less}", end_in_percent(ratio)),
        }
    }

    fn describe_than(self, size: &str, other: &str) -> String {
        let than = if size.contains(" as ") { "as" } else { "than" };
        match self.is_name_first() {
            true => format!("{} {size} {than} {other}", self.name()),
            false => format!("{size} {} {than} {other}", self.name()),
        }
    }

    /// Describes an interval in the unit of its median, such as `18 to 45 %`, `420 to 900 times` or, around 1, `4 %
    /// fewer to 2 % more`; `None` without one.
    pub(crate) fn describe_interval(self, ratio: &PairedRatio) -> Option<String> {
        Some(self.describe_ends(ratio.median, ratio.interval()?))
    }

    /// Describes an interval from its median and its ends.
    pub(crate) fn describe_ends(self, median: f64, (low, high): (f64, f64)) -> String {
        if low == high && (low == 0.0 || low == 1.0 || low.is_infinite()) {
            let what = if low == 1.0 { "the same " } else { "" };
            return format!("{what}in every round of the interval");
        }
        if percent(low) < 0.05 && percent(high) < 0.05 {
            return "within 0.1 %".to_string();
        }
        if low <= 1.0 && high >= 1.0 {
            return format!("{} to {}", self.describe_size(low), self.describe_size(high));
        }
        let (near, far) = near_and_far((low, high));
        match amount(median).1 {
            true => format!("{} to {} times", end_in_times(near), end_in_times(far)),
            false => format!("{} to {} %", end_in_percent(near), end_in_percent(far)),
        }
    }
}

/// Returns how many times as much or as little a ratio is, at least 1.
fn times(ratio: f64) -> f64 {
    if ratio >= 1.0 { ratio } else { 1.0 / ratio }
}

/// Returns the ends of an interval that excludes 1, the smaller difference first.
pub(crate) fn near_and_far((low, high): (f64, f64)) -> (f64, f64) {
    if low > 1.0 { (low, high) } else { (high, low) }
}

fn percent(ratio: f64) -> f64 {
    (ratio - 1.0).abs() * 100.0
}

/// Formats an end of an interval with one digit more than its median, so that the ends of a narrow one differ.
fn end_in_times(ratio: f64) -> String {
    match times(ratio) {
        t if t > MAX_WRITTEN_RATIO => "more than a million".to_string(),
        t if t < 9.995 => format!("{t:.2}"),
        t => format!("{t:.0}"),
    }
}

fn end_in_percent(ratio: f64) -> String {
    match percent(ratio) {
        p if p < 9.95 => format!("{p:.1}"),
        p if p > MAX_WRITTEN_RATIO => "more than a million".to_string(),
        p => format!("{p:.0}"),
    }
}

/// Returns the amount of a difference, as percent or as times, and whether it is in times.
fn amount(ratio: f64) -> (String, bool) {
    let times = times(ratio);
    if times > MAX_WRITTEN_RATIO {
        return ("more than a million times".to_string(), true);
    }
    // From a half less or twice as much on, times are easier to read than percent.
    if times >= 1.995 {
        let digits = if times < 9.95 { 1 } else { 0 };
        return (format!("{times:.digits$} times"), true);
    }
    let text = match percent(ratio) {
        p if p < 0.05 => "less than 0.1 %".to_string(),
        p if p < 1.95 => format!("{p:.1} %"),
        p => format!("{p:.0} %"),
    };
    (text, false)
}

/// Formats a ratio as a number: `1.31`, `12`, and `1/656` for a small one.
pub(crate) fn format_ratio(ratio: f64) -> String {
    match ratio {
        r if r > MAX_WRITTEN_RATIO => "> 1000000".to_string(),
        r if r >= 9.995 => format!("{r:.0}"),
        r if r >= 0.1 => format!("{r:.2}"),
        r if r >= 1.0 / MAX_WRITTEN_RATIO => format!("1/{:.0}", 1.0 / r),
        _ => "< 1/1000000".to_string(),
    }
}

/// Formats a confidence interval of a ratio: `1.18 to 1.45`; `-` without one.
pub(crate) fn format_interval(ratio: &PairedRatio) -> String {
    match ratio.interval() {
        Some((low, high)) => format!("{} to {}", format_ratio(low), format_ratio(high)),
        None => "-".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ComparedMetric::*;

    #[test]
    fn sizes_are_in_percent_or_times_and_never_zero() {
        for (metric, ratio, text) in [
            (RequestsPerSecond, 1.31, "31 % more requests/s than single"),
            (RequestsPerSecond, 2.06, "2.1 times as many requests/s as single"),
            (RequestsPerSecond, 1.03, "3 % more requests/s than single"),
            (RequestsPerSecond, 0.985, "1.5 % fewer requests/s than single"),
            (RequestsPerSecond, 0.25, "4.0 times fewer requests/s than single"),
            (P99Latency, 1.0 / 656.0, "p99 latency 656 times shorter than single"),
            (P99Latency, 12.4, "p99 latency 12 times as long as single"),
            (CpuPerRequest, 0.8, "20 % less CPU per request than single"),
            (Memory, 1.0001, "less than 0.1 % more memory than single"),
            (RequestsLost, 1.0, "no difference in requests lost from single"),
            (RequestsPerSecond, 0.0, "more than a million times fewer requests/s than single"),
            (
                RequestsPerSecond,
                f64::INFINITY,
                "more than a million times as many requests/s as single",
            ),
        ] {
            assert_eq!(metric.describe_difference(ratio, "single"), text);
        }
    }

    #[test]
    fn a_stated_size_fits_its_interval() {
        let stated = |metric: ComparedMetric, median, low, high| {
            let ratio = PairedRatio { median, low: Some(low), high: Some(high), rounds: 12 };
            metric.describe_stated(&ratio, "single")
        };
        for (metric, [median, low, high], text) in [
            (
                P99Latency,
                [1.0 / 1536.0, 1.0 / 2568.0, 1.0 / 106.0],
                "p99 latency at least 106 times shorter than single",
            ),
            (
                P99Latency,
                [1.0 / 656.0, 1.0 / 700.0, 1.0 / 500.0],
                "p99 latency 656 times shorter than single",
            ),
            (P99Latency, [2.6, 1.2, 6.0], "p99 latency at least 20 % longer than single"),
            (
                RequestsPerSecond,
                [3.0, 2.2, 9.0],
                "at least 2.20 times as many requests/s as single",
            ),
            (RequestsPerSecond, [1.03, 1.006, 1.077], "at least 0.6 % more requests/s than single"),
            (P99Latency, [1.2, 1.066, 1.25], "p99 latency at least 6.6 % longer than single"),
            (RequestsPerSecond, [1.05, 1.0001, 1.08], "up to 8 % more requests/s than single"),
            (CpuPerRequest, [1.46, 1.36, 1.62], "46 % more CPU per request than single"),
            (
                RequestsPerSecond,
                [0.2, 0.0, 0.4],
                "at least 2.50 times fewer requests/s than single",
            ),
            (RequestsLost, [0.0, 0.0, 0.5], "no requests lost, unlike single"),
            (RequestsLost, [f64::INFINITY, 3.0, f64::INFINITY], "requests lost, unlike single"),
        ] {
            assert_eq!(stated(metric, median, low, high), text);
        }
    }

    #[test]
    fn intervals_begin_with_the_smaller_difference() {
        let interval = |metric: ComparedMetric, low, high| {
            let ratio = PairedRatio { median: low, low: Some(low), high: Some(high), rounds: 9 };
            metric.describe_interval(&ratio).expect("an interval")
        };
        assert_eq!(interval(RequestsPerSecond, 1.18, 1.45), "18 to 45 %");
        assert_eq!(interval(RequestsPerSecond, 0.96, 1.02), "4 % fewer to 2 % more");
        assert_eq!(interval(P99Latency, 1.0 / 900.0, 1.0 / 420.0), "420 to 900 times");
        assert_eq!(interval(P99Latency, 0.4, 0.8), "1.25 to 2.50 times");
        assert_eq!(interval(CpuPerRequest, 1.02, 1.034), "2.0 to 3.4 %");
        assert_eq!(interval(Memory, 0.9999, 1.0), "within 0.1 %");
        assert_eq!(interval(RequestsLost, 1.0, 1.0), "the same in every round of the interval");
        assert_eq!(interval(RequestsLost, 1.0, 1.2), "no difference to 20 % more");
        let none = PairedRatio { median: 2.0, low: None, high: None, rounds: 4 };
        assert_eq!(Memory.describe_interval(&none), None);
    }

    #[test]
    fn ratios_are_never_written_as_zero() {
        let ratios = [1.314, 12.4, 656.2, 0.35, 1.0 / 656.0, 0.0, f64::INFINITY];
        let texts = ["1.31", "12", "656", "0.35", "1/656", "< 1/1000000", "> 1000000"];
        assert_eq!(ratios.map(format_ratio), texts);
    }
}
