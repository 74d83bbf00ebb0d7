//! The number of workers.

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::str::FromStr;

use super::parse_error::ParseValueError;

/// How many workers to fork. Default: [`WorkerCount::Auto`].
///
/// Every integer converts into it, and so does `"auto"` or a number in text. [`ConfigBuilder::build`] checks the range,
/// which is 0 to [`WorkerCount::MAX`].
///
/// ```
/// use tokio_prefork::{Config, WorkerCount};
///
/// let config = Config::builder().workers(4).build()?;
/// assert_eq!(config.workers(), WorkerCount::Count(4));
/// let cores = std::thread::available_parallelism().expect("the number of cores");
/// Config::builder().workers(cores).build()?;
/// Config::builder().workers("auto".parse::<WorkerCount>()?).build()?;
/// assert!(Config::builder().workers(5000).build().is_err());
/// # Ok::<(), tokio_prefork::Error>(())
/// ```
///
/// [`ConfigBuilder::build`]: crate::ConfigBuilder::build
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WorkerCount {
    /// One for each core this process may use: the affinity mask and the cgroup's CPU quota
    /// (rounded down, at least one) both count.
    #[default]
    Auto,
    /// Exactly this many.
    ///
    /// 0 is for a program that forks its workers itself, as soon as it knows what each is for:
    /// [`PrimaryHandle::fork_with`](crate::PrimaryHandle::fork_with). The models of one process need at least 1.
    Count(u32),
}

impl WorkerCount {
    /// The largest accepted number of workers. The scoreboard has room for twice as many.
    pub const MAX: u32 = prefork_supervisor::MAX_WORKERS;

    /// Returns the number; [`WorkerCount::Auto`] asks the system.
    pub fn resolve(self) -> u32 {
        match self {
            WorkerCount::Count(n) => n,
            WorkerCount::Auto => std::thread::available_parallelism()
                .map_or(1, |n| u32::try_from(n.get()).unwrap_or(1).min(WorkerCount::MAX)),
        }
    }
}

macro_rules! from_integers {
    ($($integer:ty),*) => {$(
        impl From<$integer> for WorkerCount {
            /// A number that is no `u32` becomes the largest one, which is out of range.
            fn from(count: $integer) -> WorkerCount {
                WorkerCount::Count(u32::try_from(count).unwrap_or(u32::MAX))
            }
        }
    )*};
}

// With i32, the type of a literal without a suffix.
from_integers!(i32, u8, u16, u32, u64, usize);

impl From<NonZeroU32> for WorkerCount {
    fn from(count: NonZeroU32) -> WorkerCount {
        count.get().into()
    }
}

impl From<NonZeroUsize> for WorkerCount {
    fn from(count: NonZeroUsize) -> WorkerCount {
        count.get().into()
    }
}

impl fmt::Display for WorkerCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WorkerCount::Auto => f.pad("auto"),
            WorkerCount::Count(n) => n.fmt(f),
        }
    }
}

impl FromStr for WorkerCount {
    type Err = ParseValueError;

    /// # Errors
    ///
    /// Neither `auto` nor a number up to [`WorkerCount::MAX`].
    fn from_str(text: &str) -> Result<WorkerCount, ParseValueError> {
        let accepted = format!("give auto or 0 to {}", WorkerCount::MAX);
        let word = text.trim();
        if word.eq_ignore_ascii_case("auto") {
            return Ok(WorkerCount::Auto);
        }
        if word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_digit()) {
            let reason = format!("is not a number of workers: {accepted}");
            return Err(ParseValueError::new(text, reason));
        }
        match word.parse() {
            Ok(count) if count <= WorkerCount::MAX => Ok(WorkerCount::Count(count)),
            _ => Err(ParseValueError::new(text, format!("is out of range: {accepted}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_shown_as_it_was_read() {
        for text in ["auto", "0", "1", "1024"] {
            assert_eq!(text.parse::<WorkerCount>().expect(text).to_string(), text);
        }
        for (text, reason) in [
            ("many", "is not a number"),
            ("", "is not"),
            ("-1", "is not"),
            ("5000", "is out of range"),
        ] {
            let error = text.parse::<WorkerCount>().expect_err(text);
            assert!(error.reason().starts_with(reason), "{error}");
        }
    }

    #[test]
    fn integers_of_every_type_are_counts() {
        let counts: [WorkerCount; 4] = [3.into(), 3_u32.into(), 3_usize.into(), 3_u16.into()];
        assert_eq!(counts, [WorkerCount::Count(3); 4]);
        assert_eq!(WorkerCount::from(-1), WorkerCount::Count(u32::MAX));
    }
}
