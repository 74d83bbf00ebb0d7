//! Samples for tests.

use std::collections::BTreeMap;
use std::time::Instant;

use super::sample::Sample;
use tokio_prefork::control::Event;
use tokio_prefork::status::ClusterStatus;

/// Returns the sample cluster after `change`: worker 3 in slot 0 serves two requests, worker 4 in slot 1 is being forked.
pub(super) fn sample(change: impl FnOnce(&mut ClusterStatus)) -> Sample {
    let reply = include_str!("../control/status_sample.json");
    let reply: serde_json::Value = serde_json::from_str(reply).expect("JSON");
    let mut status = serde_json::from_value(reply["status"].clone()).expect("status");
    change(&mut status);
    Sample {
        received_at: Instant::now(),
        status,
        usage: BTreeMap::new(),
        events: Vec::new(),
        is_other_cluster: false,
    }
}

/// Returns the sample cluster as received at a moment, with this uptime of its primary.
pub(super) fn sample_at(
    received_at: Instant,
    uptime_ms: u64,
    change: impl FnOnce(&mut ClusterStatus),
) -> Sample {
    let sample = sample(|status| {
        status.primary.uptime_ms = uptime_ms;
        change(status);
    });
    Sample { received_at, ..sample }
}

/// Returns a log event.
pub(super) fn event(sequence: u64, level: &str, text: &str) -> Event {
    let event = serde_json::json!({
        "sequence": sequence, "time_ms": 1_795_341_600_123u64 + sequence, "level": level, "text": text
    });
    serde_json::from_value(event).expect("event")
}
