//! Counts the messages that were lost, by kind and reason.

use std::collections::BTreeMap;

use super::MessageKind;

/// The most pairs of kind and reason that are counted apart. A buggy or malicious sender may use any number of kinds.
const MAX_COUNTED_PAIRS: usize = 64;

/// The messages that were lost: in total, and since the last report.
#[derive(Debug, Default)]
pub(super) struct LostMessages {
    total: u64,
    unreported: BTreeMap<(MessageKind, &'static str), u64>,
}

/// How many messages of one kind were lost for one reason since the last report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LossReport {
    pub(crate) kind: MessageKind,
    pub(crate) reason: &'static str,
    pub(crate) count: u64,
}

impl LostMessages {
    pub(super) fn add(&mut self, kind: &MessageKind, reason: &'static str, count: u64) {
        self.total += count;
        if let Some(counted) = self.unreported.get_mut(&(kind.clone(), reason)) {
            *counted += count;
        } else if self.unreported.len() < MAX_COUNTED_PAIRS {
            self.unreported.insert((kind.clone(), reason), count);
        }
    }

    /// Returns the number of all lost messages.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Continues the count of the previous image.
    pub(super) fn restore_total(&mut self, total: u64) {
        self.total += total;
    }

    pub(super) fn has_report(&self) -> bool {
        !self.unreported.is_empty()
    }

    /// Returns what was lost since the last call.
    pub(super) fn take_reports(&mut self) -> Vec<LossReport> {
        let unreported = std::mem::take(&mut self.unreported).into_iter();
        unreported.map(|((kind, reason), count)| LossReport { kind, reason, count }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_reported_once_and_counted_for_ever() {
        let kind = |name: &str| MessageKind::new(name).expect("a kind");
        let mut lost = LostMessages::default();
        lost.add(&kind("a"), "late", 2);
        lost.add(&kind("b"), "late", 1);
        lost.add(&kind("a"), "late", 3);
        let reports = lost.take_reports();
        let of = |name| LossReport { kind: kind(name), reason: "late", count: 1 };
        assert_eq!(reports, [LossReport { count: 5, ..of("a") }, of("b")]);
        assert!(!lost.has_report() && lost.take_reports().is_empty());
        for n in 0..2 * MAX_COUNTED_PAIRS {
            lost.add(&kind(&n.to_string()), "late", 1);
        }
        assert_eq!(lost.take_reports().len(), MAX_COUNTED_PAIRS);
        assert_eq!(lost.total(), 6 + 2 * MAX_COUNTED_PAIRS as u64);
    }
}
