//! What the overlay in the browser shows, as the application says: see `crate::admin::overlay`.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::AdminListener;
use crate::admin::MAX_OVERLAY_BYTES;
use crate::listener::{ListenAddr, Listener};
use crate::primary::PrimaryHandle;

/// How long the title of a state may be whose text does not fit.
const MAX_TITLE_BYTES: usize = 1000;

/// What the overlay shows in the pages that include `/overlay.js` of the admin listener: see
/// [`PrimaryHandle::set_overlay`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverlayState {
    /// The program is new: pages load themselves again.
    Updated,
    /// A build runs. Pages stay as they are.
    Building,
    /// A build, or the start of what it has built, failed. Pages show why.
    Failed {
        /// One line.
        title: String,
        /// What the build has printed, with the colours of a terminal. Of a long text only the end is shown.
        text: String,
    },
}

/// The state as it is published.
#[derive(Debug, Serialize)]
struct PublishedOverlay<'a> {
    /// Differs for each start of the primary.
    instance: u64,
    /// How often the program was new.
    number: u64,
    changed_at_ms: u64,
    state: &'static str,
    title: &'a str,
    text: &'a str,
}

/// The state of the overlay. Without one, the admin listener does not know its paths.
#[derive(Debug, Default)]
pub(super) struct OverlayPublisher {
    instance: u64,
    number: u64,
    json: Option<Vec<u8>>,
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

impl OverlayPublisher {
    fn set(&mut self, state: &OverlayState) {
        let changed_at_ms = now_ms();
        if self.json.is_none() {
            self.instance = changed_at_ms;
        }
        let (state, title, text) = match state {
            OverlayState::Updated => {
                self.number += 1;
                ("ok", "", "")
            }
            OverlayState::Building => ("building", "", ""),
            OverlayState::Failed { title, text } => ("failed", &title[..], &text[..]),
        };
        let (instance, number) = (self.instance, self.number);
        let published = PublishedOverlay { instance, number, changed_at_ms, state, title, text };
        self.json = Some(encode_within(published));
    }
}

/// Encodes the state. Leaves out the beginning of a text that is too long.
fn encode_within(mut published: PublishedOverlay<'_>) -> Vec<u8> {
    loop {
        // Numbers and strings: this cannot fail.
        let json = serde_json::to_vec(&published).unwrap_or_default();
        if json.len() <= MAX_OVERLAY_BYTES {
            return json;
        }
        let PublishedOverlay { text, title, .. } = published;
        // The length is a boundary, and 0 is one.
        let from = (text.len() / 2..=text.len()).find(|at| text.is_char_boundary(*at));
        published.text = &text[from.unwrap_or(text.len())..];
        let most = title.len().min(MAX_TITLE_BYTES);
        let end = (0..=most).rev().find(|at| title.is_char_boundary(*at));
        published.title = &title[..end.unwrap_or(0)];
    }
}

impl AdminListener {
    /// Publishes the state of the overlay, if there is one.
    pub(super) fn publish_overlay(&self) {
        if let (Some(memory), Some(json)) = (&self.memory, &self.overlay.json) {
            memory.publish_overlay(json);
        }
    }
}

impl PrimaryHandle<'_> {
    /// Sets what the overlay shows in the browser, for a program that builds and reloads itself during development.
    ///
    /// From the first call on, the admin listener serves the script `/overlay.js`, which a page includes by
    /// `<script async src="http://127.0.0.1:9090/overlay.js"></script>`. It shows the error of a failed build over the page, and
    /// loads the page again after [`OverlayState::Updated`]. Pages of this machine may use it, whatever their port. With
    /// `admin-token-file` they cannot, as a script element presents no token.
    ///
    /// Call it for `Updated` when a reload has ended, not when it is asked for: until then the old workers answer.
    pub fn set_overlay(&mut self, state: &OverlayState) {
        self.primary.admin.overlay.set(state);
        self.primary.admin.publish_overlay();
    }

    /// Returns the addresses of the admin listener, with their real ports. Empty without one.
    pub fn admin_addresses(&self) -> Vec<ListenAddr> {
        let admin = &self.primary.admin;
        let is_named = |listener: &&Listener| admin.settings.addrs.contains(&listener.addr);
        admin.sockets.set.listeners.iter().filter(is_named).map(Listener::real_addr).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(overlay: &OverlayPublisher) -> serde_json::Value {
        serde_json::from_slice(overlay.json.as_deref().expect("set")).expect("JSON")
    }

    #[test]
    fn each_update_has_a_number_and_failures_keep_it() {
        let mut overlay = OverlayPublisher::default();
        let failed = OverlayState::Failed { title: "no".to_string(), text: "a\n<b>".to_string() };
        for (state, number, name) in [
            (OverlayState::Building, 0, "building"),
            (OverlayState::Updated, 1, "ok"),
            (failed, 1, "failed"),
            (OverlayState::Updated, 2, "ok"),
        ] {
            overlay.set(&state);
            let json = decode(&overlay);
            assert_eq!(
                (json["number"].as_u64(), json["state"].as_str()),
                (Some(number), Some(name))
            );
            assert_eq!(json["text"], if name == "failed" { "a\n<b>" } else { "" });
        }
    }

    #[test]
    fn of_a_long_text_the_end_is_published() {
        let mut overlay = OverlayPublisher::default();
        let (title, text) = ("t".repeat(5000), "\u{1b}[31m\u{e4}".repeat(200_000) + "the end");
        overlay.set(&OverlayState::Failed { title, text });
        assert!(overlay.json.as_ref().is_some_and(|json| json.len() <= MAX_OVERLAY_BYTES));
        assert!(decode(&overlay)["text"].as_str().expect("text").ends_with("the end"));
    }
}
