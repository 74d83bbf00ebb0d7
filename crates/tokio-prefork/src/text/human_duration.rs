//! Durations formatted for people.

use std::fmt::{Display, Formatter, Result};
use std::time::Duration;

/// Prints as `4 ms`, `2.5 s`, `3 min`.
pub struct HumanDuration(pub Duration);

impl Display for HumanDuration {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let seconds = self.0.as_secs_f64();
        match seconds {
            s if s < 0.01 => write!(f, "{:.1} ms", s * 1000.0),
            s if s < 1.0 => write!(f, "{:.0} ms", s * 1000.0),
            s if s < 120.0 => write!(f, "{} s", (s * 10.0).round() / 10.0),
            s if s < 7200.0 => write!(f, "{:.0} min", s / 60.0),
            s => write!(f, "{:.0} h", s / 3600.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_in_the_largest_fitting_unit() {
        let span = |ms| HumanDuration(Duration::from_millis(ms)).to_string();
        assert_eq!(
            [span(4), span(2500), span(30_000), span(180_000), span(7_200_000)],
            ["4.0 ms", "2.5 s", "30 s", "3 min", "2 h"]
        );
    }
}
