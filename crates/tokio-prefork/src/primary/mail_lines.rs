//! What the journal tells about the application's messages.

use super::event_format::warn;
use super::event_log::EventLog;
use prefork_supervisor::WorkerTag;

impl EventLog {
    pub(super) fn no_handler(&mut self, kind: &str, from: WorkerTag) {
        self.tell(warn(format!(
            "{from} sends messages of kind {kind:?}, for which there is no function (Cluster::on_message): dropped"
        )));
    }

    /// Told at the first, the second, the fourth and so on.
    pub(super) fn lost_mail(&mut self, count: u64) {
        self.tell(warn(format!(
            "lost {count} messages so far: their receiver is gone, or does not read"
        )));
    }
}
