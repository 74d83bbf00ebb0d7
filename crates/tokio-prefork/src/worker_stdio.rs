//! The standard streams of workers: those of the primary, `/dev/null`, or pipes that the primary reads line by line.
//!
//! The log of the library keeps going to the standard error that the worker was forked with, so that it does not depend
//! on the primary's reading it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::log_output;
use crate::privilege::WorkerCredentials;
use prefork_os::fd::{StandardStream, replace_standard_stream, set_nonblocking};
use prefork_os::parent_death::redirect_output_on_parent_death;

/// The standard streams of workers; see [`WorkerKind::stdio`](crate::WorkerKind::stdio) and
/// [`Cluster::worker_stdio`](crate::Cluster::worker_stdio).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerStdio {
    /// The streams of the primary. The default.
    #[default]
    Inherit,
    /// `/dev/null` for all three streams.
    Null,
    /// Standard output and error are read by the primary, which passes each line to
    /// [`Cluster::on_output`](crate::Cluster::on_output), or without that writes it to its log. Standard input is the
    /// primary's.
    Lines,
}

/// The stream that a worker wrote a line to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl OutputStream {
    pub(crate) const ALL: [OutputStream; 2] = [OutputStream::Stdout, OutputStream::Stderr];

    fn as_standard_stream(self) -> StandardStream {
        match self {
            OutputStream::Stdout => StandardStream::Stdout,
            OutputStream::Stderr => StandardStream::Stderr,
        }
    }
}

/// Writes `stdout` or `stderr`.
impl fmt::Display for OutputStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OutputStream::Stdout => "stdout",
            OutputStream::Stderr => "stderr",
        })
    }
}

/// The reading ends of the pipes that are the streams of this process, a worker.
static OUTPUT_READERS: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

fn lock_output_readers() -> MutexGuard<'static, Vec<OwnedFd>> {
    OUTPUT_READERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the reading ends of this worker's output, once the primary does not read it any more: what a program goes on printing has
/// to be read, or it would wait in its writes. Empty if the streams are no pipes.
pub(crate) fn take_output_readers() -> Vec<OwnedFd> {
    std::mem::take(&mut *lock_output_readers())
}

/// The pipes of a worker that is about to be forked: one for each [`OutputStream`], in their order.
pub(crate) struct OutputPipes {
    readers: [OwnedFd; 2],
    writers: [OwnedFd; 2],
}

impl OutputPipes {
    /// Creates the pipes. The reading ends do not block.
    pub(crate) fn create() -> io::Result<OutputPipes> {
        let (stdout, stderr) = (io::pipe()?, io::pipe()?);
        let readers: [OwnedFd; 2] = [stdout.0.into(), stderr.0.into()];
        readers.iter().try_for_each(set_nonblocking)?;
        Ok(OutputPipes { readers, writers: [stdout.1.into(), stderr.1.into()] })
    }

    /// Returns the reading ends, for the primary. Closes its copies of the others, or the end would never be seen.
    pub(crate) fn into_readers(self) -> [OwnedFd; 2] {
        self.readers
    }

    /// Makes the pipes the streams of this process, a worker.
    ///
    /// They belong to the worker's user then. The worker keeps the reading ends. Without them, a write right after the primary's death would fail (EPIPE), and
    /// `println!` would panic. The handler of the primary's death then replaces the streams by `/dev/null`.
    fn become_streams(self, credentials: Option<&WorkerCredentials>) -> io::Result<()> {
        if let Some(credentials) = credentials {
            self.writers.iter().try_for_each(|writer| credentials.own_pipe(writer))?;
        }
        for (stream, writer) in OutputStream::ALL.into_iter().zip(&self.writers) {
            replace_standard_stream(stream.as_standard_stream(), writer)?;
        }
        redirect_output_on_parent_death(open_dev_null()?);
        lock_output_readers().extend(self.readers);
        Ok(())
    }
}

/// Sets the streams of this process, a freshly forked worker. `pipes` are those of [`WorkerStdio::Lines`], or of a program whose
/// output the primary reads. Call it before the process takes on `credentials`.
pub(crate) fn set_worker_streams(
    stdio: WorkerStdio,
    pipes: Option<OutputPipes>,
    credentials: Option<&WorkerCredentials>,
) -> Result<()> {
    let failed = |e| Error::system("set the standard streams of the worker", e);
    match (stdio, pipes) {
        (_, Some(pipes)) => log_output::keep_log_stream()
            .and_then(|()| pipes.become_streams(credentials))
            .map_err(failed),
        (WorkerStdio::Inherit | WorkerStdio::Lines, None) => Ok(()),
        (WorkerStdio::Null, None) => {
            let replace_all = || {
                log_output::keep_log_stream()?;
                let null = open_dev_null()?;
                for stream in
                    [StandardStream::Stdin, StandardStream::Stdout, StandardStream::Stderr]
                {
                    replace_standard_stream(stream, null.as_fd())?;
                }
                Ok(())
            };
            replace_all().map_err(failed)
        }
    }
}

fn open_dev_null() -> io::Result<OwnedFd> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    Ok(null.into())
}
