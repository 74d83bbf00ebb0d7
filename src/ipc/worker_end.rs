//! The worker's end: the same words on tokio.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

use super::frame::CAP;
use super::{ToPrimary, ToWorker};
use crate::sys::readiness::readable;
use crate::sys::socket::{Received, receive_message, send_message};

/// The worker's end of its channel to the primary. Made inside the worker's runtime.
#[derive(Debug)]
pub(crate) struct WorkerEnd(AsyncFd<OwnedFd>);

impl WorkerEnd {
    /// Registers the descriptor with the current runtime.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<WorkerEnd> {
        Ok(WorkerEnd(readable(fd)?))
    }

    /// Sends `word` without waiting.
    pub(crate) fn send(&self, word: &ToPrimary) -> io::Result<()> {
        send_message(self.0.get_ref(), &word.encode())
    }

    /// The next word; `None` when the primary is gone, or speaks so that we cannot understand it, which is
    /// the same to us.
    pub(crate) async fn hear(&self) -> Option<ToWorker> {
        let mut buffer = [0u8; CAP];
        loop {
            let mut ready = self.0.readable().await.ok()?;
            match ready.try_io(|fd| receive_message(fd.get_ref(), &mut buffer)) {
                Ok(Ok(Received::Message(n))) => return ToWorker::decode(&buffer[..n]).ok(),
                Ok(Ok(Received::Truncated | Received::End) | Err(_)) => return None,
                Err(_would_block) => {}
            }
        }
    }
}
