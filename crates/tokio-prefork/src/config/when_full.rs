//! What to do with connections that come while all workers are full.

use super::choice::impl_choice;

/// What happens to new connections while every worker that could take them has
/// [`worker_connections`](crate::ConfigBuilder::worker_connections).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WhenFull {
    /// They wait in the kernel's queue until a connection closes.
    #[default]
    Wait,
    /// They are refused within 100 ms: an HTTP client gets 503 with `Retry-After`, others are closed.
    Close,
}

impl_choice!(WhenFull, "a policy for full workers", { "wait" => Wait, "close" => Close });
