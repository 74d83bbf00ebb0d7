//! The primary's part of the status, as it is published in shared memory.

use serde::{Deserialize, Serialize};

use crate::status::ClusterStatus;

/// What only the primary's memory knows of the status. Written and read by processes of the same image.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PublishedStatus {
    /// The status without figures of workers.
    pub(crate) status: ClusterStatus,
    /// When it was made, in milliseconds of the monotonic clock.
    pub(crate) made_at_ms: u64,
    /// The page of the process of the admin listener.
    pub(crate) admin_page: Option<usize>,
}
