//! Support code of the benches: servers, load generators, figures and reports.

#![allow(dead_code, reason = "each bench uses its own part of this")]

pub mod cleanup;
pub mod job_costs;
pub mod load;
pub mod peer;
pub mod probe;
pub mod process;
pub mod report;
pub mod rounds;
pub mod target;

/// Prints an error, cleans up and exits with status 1.
pub fn fail(why: impl std::fmt::Display) -> ! {
    eprintln!("bench: {why}");
    cleanup::clean_up_all();
    std::process::exit(1);
}

/// Returns the value at `quantile` (0 to 1) of `values`, which need not be sorted; `NaN` if there are none.
pub fn quantile(values: &[f64], quantile: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((quantile * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
}

/// Returns the median of `values`.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Returns the value after the argument `name`, or `default`.
pub fn argument<T: std::str::FromStr>(name: &str, default: T) -> T {
    let mut arguments = std::env::args().skip_while(|argument| argument != name).skip(1);
    match arguments.next().map(|text| text.parse()) {
        Some(Ok(value)) => value,
        Some(Err(_)) => fail(format_args!("{name} needs a number")),
        None => default,
    }
}

/// Whether the argument `name` was given.
pub fn has_argument(name: &str) -> bool {
    std::env::args().any(|argument| argument == name)
}
