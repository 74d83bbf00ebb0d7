//! A thread that reads and writes messages for a process without an event loop of a worker.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};

use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::{MessageLimits, WorkerMessageEnd};
use prefork_supervisor::WorkerTag;

/// Message ends, and the thread that serves them until this is dropped. Then they are closed.
#[derive(Debug)]
pub(crate) struct MessageThread {
    /// The ends, in the order of their descriptors.
    pub(crate) ends: Vec<Arc<WorkerMessageEnd>>,
    /// The runtime of the thread.
    pub(crate) runtime: Handle,
    /// Notified when the thread should end.
    stopped: Arc<Notify>,
}

impl MessageThread {
    /// Starts the thread, with an end for each descriptor. `tag` is who the ends belong to, for logs.
    ///
    /// The thread has a runtime of its own, because the tasks of an end need a loop that lives as long as the end.
    pub(crate) fn start(
        name: &str,
        tag: WorkerTag,
        fds: Vec<OwnedFd>,
    ) -> io::Result<MessageThread> {
        let stopped = Arc::new(Notify::new());
        let (started, result) = mpsc::channel();
        let stop = Arc::clone(&stopped);
        let run = move || {
            let start = || -> io::Result<_> {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build_local(tokio::runtime::LocalOptions::default())?;
                let ends = runtime.block_on(async {
                    let start =
                        |fd| WorkerMessageEnd::start(tag, Some(fd), MessageLimits::default());
                    fds.into_iter().map(start).collect::<io::Result<Vec<_>>>()
                })?;
                Ok((runtime, ends))
            };
            let (runtime, ends) = match start() {
                Ok(started) => started,
                Err(e) => return drop(started.send(Err(e))),
            };
            // If this fails, the thread that waits for it is gone.
            let _ = started.send(Ok((ends.clone(), runtime.handle().clone())));
            runtime.block_on(stop.notified());
            ends.iter().for_each(|end| end.close());
        };
        std::thread::Builder::new().name(name.to_string()).spawn(run)?;
        let ended = |_| io::Error::other("the message thread ended");
        let (ends, runtime) = result.recv().map_err(ended)??;
        Ok(MessageThread { ends, runtime, stopped })
    }
}

impl Drop for MessageThread {
    fn drop(&mut self) {
        // Kept until the thread waits, so it is not lost.
        self.stopped.notify_one();
    }
}
