//! Texts that are kept from one line to the next.

use std::net::IpAddr;

use super::escape::ShortText;
use super::time_text::TimeText;

/// Texts that are kept from one line to the next.
#[derive(Debug, Default)]
pub(super) struct LineTexts {
    pub(super) time: TimeText,
    ip: Option<IpAddr>,
    /// The text of `ip`.
    ip_text: ShortText<48>,
}

impl LineTexts {
    /// Returns the text of an address, which is most likely the one of the line before.
    pub(super) fn ip(&mut self, ip: IpAddr) -> &ShortText<48> {
        if self.ip != Some(ip) {
            self.ip = Some(ip);
            self.ip_text = ShortText::new(&ip.to_string());
        }
        &self.ip_text
    }
}
