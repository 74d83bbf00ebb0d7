//! The worker's end of a channel, on tokio.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::codec::MAX_CHANNEL_MESSAGE_BYTES;
use super::{HandoverState, WorkerCommand, WorkerReport};
use prefork_os::async_fd::register_readable_and_writable;
use prefork_os::fd_passing::{PassedFd, ReceivedMessage, receive_message, send_message};
use prefork_supervisor::Slot;

/// A command of the primary, with its descriptor.
#[derive(Debug)]
pub(crate) enum ReceivedCommand {
    /// A command without a descriptor.
    Command(WorkerCommand),
    /// Serve this connection.
    TakeOverConnection(OwnedFd, HandoverState),
    /// Accept from this socket of `slot`.
    AdoptSlot { fd: OwnedFd, slot: Slot, closing: bool },
    /// Write the log to this file.
    ReopenLog(OwnedFd),
    /// Write the access log to this file.
    ReopenAccessLog(OwnedFd),
}

/// The worker's end of its channel to the primary. Created inside the worker's runtime.
#[derive(Debug)]
pub(crate) struct WorkerChannelEnd(AsyncFd<OwnedFd>);

impl WorkerChannelEnd {
    /// Registers the descriptor with the current runtime.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<WorkerChannelEnd> {
        Ok(WorkerChannelEnd(register_readable_and_writable(fd)?))
    }

    /// Sends a report without waiting.
    pub(crate) fn send(&self, report: &WorkerReport) -> io::Result<()> {
        send_message(self.0.get_ref(), &report.encode(), None)
    }

    /// Sends a report and a duplicate of `fd`. Waits for room in the channel without limit.
    pub(crate) async fn send_with_fd(
        &self,
        report: &WorkerReport,
        fd: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let bytes = report.encode();
        let send = |channel: &OwnedFd| send_message(channel, &bytes, Some(fd));
        self.0.async_io(Interest::WRITABLE, send).await
    }

    /// Receives the next command. Returns `None` when the primary is gone or sends invalid data.
    ///
    /// Closes a descriptor that is attached to a command without one.
    pub(crate) async fn receive(&self) -> Option<ReceivedCommand> {
        let mut buffer = vec![0u8; MAX_CHANNEL_MESSAGE_BYTES];
        loop {
            let mut ready = self.0.readable().await.ok()?;
            let (length, passed) =
                match ready.try_io(|fd| receive_message(fd.get_ref(), &mut buffer)) {
                    Ok(Ok(ReceivedMessage::Message(length, passed))) => (length, passed),
                    Ok(Ok(ReceivedMessage::Truncated | ReceivedMessage::Closed) | Err(_)) => {
                        return None;
                    }
                    Err(_would_block) => continue,
                };
            match (WorkerCommand::decode(&buffer[..length]).ok()?, passed) {
                (WorkerCommand::TakeOverConnection(unread), PassedFd::One(fd)) => {
                    return Some(ReceivedCommand::TakeOverConnection(fd, unread));
                }
                (WorkerCommand::AdoptSlot { slot, closing }, PassedFd::One(fd)) => {
                    return Some(ReceivedCommand::AdoptSlot { fd, slot, closing });
                }
                (WorkerCommand::ReopenLog, PassedFd::One(fd)) => {
                    return Some(ReceivedCommand::ReopenLog(fd));
                }
                (WorkerCommand::ReopenAccessLog, PassedFd::One(fd)) => {
                    return Some(ReceivedCommand::ReopenAccessLog(fd));
                }
                (WorkerCommand::ReopenLog | WorkerCommand::ReopenAccessLog, _) => {
                    log::error!(
                        "cannot switch to the reopened log: no free descriptor; the old file stays in use"
                    );
                }
                // Without a free descriptor the kernel has closed the connection.
                (WorkerCommand::TakeOverConnection(_), _) => {
                    log::error!("cannot take over a connection: no free descriptor")
                }
                (command, _) => return Some(ReceivedCommand::Command(command)),
            }
        }
    }
}
