//! The part of a status about other kinds of workers than `web`.

use serde::{Deserialize, Serialize};

use prefork_supervisor::WEB_KIND;

/// A kind of workers other than `web`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KindStatus {
    /// Its name.
    pub name: String,
    /// How many workers of it there should be.
    pub workers_wanted: u32,
}

impl KindStatus {
    pub(super) fn all(wanted: &[(&'static str, u32)]) -> Vec<KindStatus> {
        let each = |(name, n): &(&'static str, u32)| (name.to_string(), *n);
        let all = wanted.iter().map(each);
        all.map(|(name, workers_wanted)| KindStatus { name, workers_wanted }).collect()
    }
}

/// What a primary that knew no other kinds has.
pub(super) fn web() -> String {
    WEB_KIND.to_string()
}
