//! Publishes the primary's liveness, status and events for the process of the admin listener.

use std::time::Instant;

use super::{AdminListener, LIVENESS_TIMEOUT, MIN_PUBLISH_INTERVAL, PUBLISH_INTERVAL};
use crate::admin::{AdminMemory, MAX_EVENT_BYTES, PublishedStatus};
use crate::control::{Event, EventHistory};
use crate::primary::Primary;
use prefork_os::system::monotonic_ms;

impl AdminListener {
    /// Records that the status has changed, and publishes whether the cluster stops.
    pub(in crate::primary) fn cluster_changed(&mut self, is_stop_requested: bool) {
        self.is_changed = true;
        self.memory.iter().for_each(|memory| memory.set_stop_requested(is_stop_requested));
    }

    /// Returns whether the status has to be published now.
    fn is_publication_due(&self, now: Instant) -> bool {
        let interval = if self.is_changed { MIN_PUBLISH_INTERVAL } else { PUBLISH_INTERVAL };
        self.published_at.is_none_or(|at| now.saturating_duration_since(at) >= interval)
    }

    /// Publishes the events that are new in `history`.
    pub(super) fn publish_events(&mut self, history: &EventHistory) {
        let Some(memory) = &self.memory else { return };
        for event in history.events_after(self.published_event) {
            memory.publish_event(event.sequence, &encode_event(event.into()));
        }
        self.published_event = history.last_number();
    }
}

/// Encodes an event as JSON. A text that is too long is cut.
fn encode_event(mut event: Event) -> Vec<u8> {
    loop {
        let json = event.to_json().into_bytes();
        if json.len() <= MAX_EVENT_BYTES {
            return json;
        }
        let kept: String = event.text.chars().take(event.text.chars().count() / 2).collect();
        event.text = kept + "...";
    }
}

impl Primary {
    /// Records that the loop of the primary turns, and publishes new events, and the status if it is due.
    pub(in crate::primary) fn publish_for_admin(&mut self, now: Instant) {
        let Some(memory) = &self.admin.memory else { return };
        memory.set_live_until(monotonic_ms() + LIVENESS_TIMEOUT.as_millis() as u64);
        // It may have been set by an upgrade that failed.
        memory.set_image_replaced(false);
        self.admin.publish_events(&self.event_log.history);
        if self.admin.is_on() && self.admin.is_publication_due(now) {
            self.publish_status_for_admin(now);
        }
    }

    /// Publishes the part of the status that only the memory of the primary knows.
    fn publish_status_for_admin(&mut self, now: Instant) {
        let Some(memory) = &self.admin.memory else { return };
        let published = PublishedStatus {
            status: self.status_with_workers(now, |_| None),
            made_at_ms: monotonic_ms(),
            admin_page: self.admin.current_process().and_then(|(process, _)| process.page),
        };
        publish_json(memory, &published);
        self.admin.published_at = Some(now);
        self.admin.is_changed = false;
    }
}

fn publish_json(memory: &AdminMemory, published: &PublishedStatus) {
    match serde_json::to_vec(published) {
        Ok(json) => memory.publish_status(&json),
        // Numbers and strings: this cannot fail.
        Err(e) => log::error!("cannot publish the status for the admin listener: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_event_is_cut_and_stays_json() {
        for text in ["x".repeat(20_000), "\u{1f980}\"\\".repeat(2_000)] {
            let event: Event = serde_json::from_value(serde_json::json!({
                "sequence": 7, "time_ms": 1, "level": "info", "text": text,
            }))
            .expect("event");
            let json = encode_event(event);
            assert!(json.len() <= MAX_EVENT_BYTES, "{}", json.len());
            let read: Event = serde_json::from_slice(&json).expect("JSON");
            assert!(read.sequence == 7 && read.text.ends_with("..."), "{}", read.text);
        }
    }
}
