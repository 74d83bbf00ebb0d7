//! What the journal tells about the application's messages.

use std::time::Duration;

use super::journal::{Journal, error, warn};
use crate::identity::WorkerTag;
use crate::span::Span;

impl Journal {
    pub(super) fn no_handler(&mut self, kind: &str, from: WorkerTag) {
        self.tell(warn(format!(
            "{from} sends messages of kind {kind:?}, for which there is no function (Cluster::on_message): dropped"
        )));
    }

    pub(super) fn handler_panicked(&mut self, kind: &str, from: WorkerTag) {
        self.tell(error(format!("the function for messages of kind {kind:?} panicked ({from})")));
    }

    pub(super) fn slow_handler(&mut self, kind: &str, from: WorkerTag, took: Duration) {
        self.tell(warn(format!(
            "the function for messages of kind {kind:?} took {} ({from}): nobody is respawned meanwhile",
            Span(took)
        )));
    }

    /// Told at the first, the second, the fourth and so on.
    pub(super) fn lost_mail(&mut self, count: u64) {
        self.tell(warn(format!(
            "lost {count} messages so far: their receiver is gone, or does not read"
        )));
    }
}
