//! PrimaryHandle: what the application's functions in the primary can do.

use std::fmt;

use super::Primary;
use crate::identity::WorkerTag;

/// The primary, lent to a function of the application that runs between two of its waits. Nothing here waits: what
/// cannot be done at once is an error or is done after the function has returned.
pub struct PrimaryHandle<'a> {
    pub(super) primary: &'a mut Primary,
}

impl PrimaryHandle<'_> {
    /// The workers that have not ended, by id.
    pub fn workers(&self) -> Vec<WorkerTag> {
        self.primary.children.values().map(|child| child.tag).collect()
    }
}

impl fmt::Debug for PrimaryHandle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrimaryHandle").field("workers", &self.workers()).finish()
    }
}
