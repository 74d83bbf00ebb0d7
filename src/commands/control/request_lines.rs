//! The requests in progress below the table of `prefork status`, if requests have ids.

use std::fmt::Write;
use std::time::Duration;

use tokio_prefork::status::{ClusterStatus, InFlightRequest};
use tokio_prefork::text::{HumanDuration, printable};

/// Maximum number of requests that are shown: the oldest ones.
const MAX_REQUEST_LINES: usize = 20;

/// Formats the oldest requests that have an id, each with its worker, client and id. Empty if there are none.
pub(super) fn format_requests(status: &ClusterStatus) -> String {
    let of_workers = status.workers.iter().flat_map(|worker| {
        let identified = worker.serving.iter().filter(|request| request.request_id.is_some());
        identified.map(|request| (worker.id.0, request))
    });
    let mut requests: Vec<(u64, &InFlightRequest)> = of_workers.collect();
    if requests.is_empty() {
        return String::new();
    }
    requests.sort_by_key(|(_, request)| std::cmp::Reverse(request.age_ms));
    let mut text = "\nrequests in progress:\n".to_string();
    for (worker, request) in requests.iter().take(MAX_REQUEST_LINES) {
        let age = HumanDuration(Duration::from_millis(request.age_ms));
        // Writing to a string cannot fail.
        let _ = write!(text, "  worker={worker} {} ({age})", printable(&request.request));
        for (name, value) in [("client", &request.client), ("request_id", &request.request_id)] {
            if let Some(value) = value {
                let _ = write!(text, " {name}={}", printable(value));
            }
        }
        text.push('\n');
    }
    if let Some(others) = requests.len().checked_sub(MAX_REQUEST_LINES).filter(|n| *n > 0) {
        let _ = writeln!(text, "  and {others} more");
    }
    text
}
