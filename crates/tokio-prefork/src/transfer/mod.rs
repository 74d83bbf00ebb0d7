//! Large values on their way to isolated processes and back: in shared memory, past the primary and the event loops.
//!
//! A value of more than [`MAX_INLINE_BYTES`] is written to a segment (see [`prefork_os::shared_segment`]), whose descriptor
//! travels with the message. The primary only passes the descriptor on. The receiver copies the bytes, whatever the sender
//! does meanwhile, or maps them if it trusts the sender: inputs come from the process that asked for the job, so they are
//! mapped; outputs come from a process that may do anything, so they are copied.
//!
//! Nothing has to be released by a message: the kernel tells the owner of a segment when no other process uses it.

use std::num::NonZeroUsize;
use std::sync::LazyLock;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

mod job_payload;
mod mapped_bytes;
mod nested_segment;
mod segment_pool;

pub(crate) use job_payload::{EncodeError, JobPayload, ValueSource};
pub use mapped_bytes::{MappedBuffer, MappedBytes};

/// The largest encoded value that is sent within the message. Above, a segment costs less than the packets.
pub(crate) const MAX_INLINE_BYTES: usize = 64 * 1024;

/// The most bytes of a payload besides its value.
pub(crate) const MAX_PAYLOAD_HEAD_BYTES: usize = 16;

/// The threads of this process that copy values at the same time: half of the processors, at least one. More would take time from
/// the event loops.
static COPIES: LazyLock<Semaphore> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    Semaphore::new((processors / 2).max(1))
});

/// Runs a function that copies much on a thread of `runtime` for blocking calls, so that the event loop goes on.
///
/// Resumes a panic of the function. Never returns if the runtime shuts down before the function has begun.
async fn copy_off_loop<R: Send + 'static>(
    runtime: &Handle,
    copy: impl FnOnce() -> R + Send + 'static,
) -> R {
    // Never closed.
    let _permit = COPIES.acquire().await;
    match runtime.spawn_blocking(copy).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Cancelled: the runtime drops this task as well.
            Err(_) => std::future::pending().await,
        },
    }
}
