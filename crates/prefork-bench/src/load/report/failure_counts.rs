//! Failed requests or handshakes by reason.

use serde::{Serialize, Serializer};

use crate::load::request_failure::{REQUEST_FAILURE_KINDS, RequestFailure};

/// Number of failures of each kind; an object with one member for each kind in JSON.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FailureCounts([u64; REQUEST_FAILURE_KINDS]);

impl FailureCounts {
    pub(crate) fn from_kind_counts(counts: &[u64; REQUEST_FAILURE_KINDS]) -> FailureCounts {
        FailureCounts(*counts)
    }

    /// Returns the kinds that occurred, and how often.
    pub(crate) fn occurred(&self) -> impl Iterator<Item = (RequestFailure, u64)> {
        RequestFailure::ALL.into_iter().zip(self.0).filter(|(_, count)| *count > 0)
    }

    /// Returns the number of all failures.
    pub fn total_failures(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl Serialize for FailureCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(RequestFailure::ALL.into_iter().map(RequestFailure::key).zip(self.0))
    }
}
