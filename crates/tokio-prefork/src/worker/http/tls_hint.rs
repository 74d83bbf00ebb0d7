//! Tells the operator that clients speak TLS on a port without it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::serve_context::ServeContext;
use crate::client::ConnectionInfo;

/// The shortest time between two hints of a process: scanners try TLS on every port.
const HINT_INTERVAL_MS: u64 = 60_000;

/// When the last hint was logged, plus one; 0 for never.
static LOGGED_MS: AtomicU64 = AtomicU64::new(0);

/// Logs that a client speaks TLS on a port without it, at most once a minute.
pub(super) fn log_tls_on_plain_port(context: &impl ServeContext, info: Option<&ConnectionInfo>) {
    if !is_due(&LOGGED_MS, context.now_ms()) {
        return;
    }
    let peer = info.map(|info| info.peer().to_string()).unwrap_or_default();
    let listener = info.map(|info| info.listener().to_string()).unwrap_or_default();
    log::info!(
        "{} answered 400 to a client that speaks TLS on a port without it: let clients use http://, or give tls-cert and \
         tls-key listener={listener} peer={peer}",
        context.tag()
    );
}

fn is_due(logged_ms: &AtomicU64, now_ms: u64) -> bool {
    let logged = logged_ms.load(Relaxed);
    let is_due = logged == 0 || now_ms.saturating_sub(logged - 1) >= HINT_INTERVAL_MS;
    // Of several threads, the first one logs.
    is_due && logged_ms.compare_exchange(logged, now_ms + 1, Relaxed, Relaxed).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_is_due_at_once_and_then_once_a_minute() {
        let logged = AtomicU64::new(0);
        let due: Vec<_> =
            [0, 1, 59_999, 60_000, 60_001, 120_000].map(|now| is_due(&logged, now)).into();
        assert_eq!(due, [true, false, false, true, false, true]);
    }
}
