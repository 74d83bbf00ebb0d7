//! How to handle clients that close their sending side.

use super::choice::impl_choice;

/// How an HTTP/1 worker handles a client that closes its sending side while its request is in progress. The kernel sends
/// the same FIN for a client that has closed its socket as for one that only has nothing more to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum HalfClosePolicy {
    /// Finishes the response, unless a reset or a failed write shows that the client is gone.
    Finish,
    /// Finishes the response, and sends an HTTP/1.1 client one `102 Processing` if the response has not begun 200 ms after
    /// the FIN: a client that has closed its socket answers with a reset, which cancels the request.
    #[default]
    Probe,
    /// Cancels the request at once.
    Cancel,
}

impl_choice!(HalfClosePolicy, "a way to treat half-closed clients", { "finish" => Finish, "probe" => Probe, "cancel" => Cancel });
