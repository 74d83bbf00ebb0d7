//! Messages to a slot whose worker has exited before it read them, until the next worker serves the slot. Without I/O or clock.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::{Envelope, MessageClass, MessageLimits};
use prefork_supervisor::{Slot, WorkerId, WorkerTag};

/// How long a message waits for a worker at its slot. A slot that takes longer is in a crash loop.
const HOLD_TIMEOUT: Duration = Duration::from_secs(60);

/// How many times the queue of one worker may be held for one slot: an inbox, and the queue of the primary.
const SLOT_FACTOR: usize = 2;

/// How many times the bytes of one worker's queue may be held in total.
const TOTAL_FACTOR: usize = 8;

/// A message that waits.
#[derive(Debug)]
pub(super) struct HeldMessage {
    pub(super) slot: Slot,
    /// The worker that did not read it; `None` if the slot had none.
    pub(super) last_worker: Option<WorkerTag>,
    pub(super) since: Instant,
    /// As it was delivered: its address is the sender.
    pub(super) envelope: Envelope,
}

impl HeldMessage {
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        now >= self.since + HOLD_TIMEOUT
    }

    fn size(&self) -> usize {
        self.envelope.encoded_size()
    }
}

/// The messages of one slot, in order.
#[derive(Debug, Default)]
struct SlotMessages {
    messages: VecDeque<HeldMessage>,
    bytes: usize,
}

/// All messages that wait for a worker.
#[derive(Debug)]
pub(super) struct HeldMessages {
    limits: MessageLimits,
    slots: BTreeMap<Slot, SlotMessages>,
    total_bytes: usize,
}

impl HeldMessages {
    pub(super) fn new(limits: MessageLimits) -> HeldMessages {
        HeldMessages { limits, slots: BTreeMap::new(), total_bytes: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Returns the slots with messages.
    pub(super) fn slots(&self) -> Vec<Slot> {
        self.slots.keys().copied().collect()
    }

    /// Returns whether a request is held that this worker did not read.
    pub(super) fn has_request_of(&self, worker: WorkerId) -> bool {
        let held = self.slots.values().flat_map(|slot| &slot.messages);
        held.into_iter().any(|held| {
            held.last_worker.is_some_and(|last| last.id == worker)
                && held.envelope.class == MessageClass::Request
        })
    }

    /// Returns whether messages wait for this slot and there is room for one more: it has to wait too, to keep the order.
    pub(super) fn should_follow(&self, slot: Slot, envelope: &Envelope) -> bool {
        self.slots.contains_key(&slot) && self.has_room(slot, envelope.encoded_size())
    }

    fn has_room(&self, slot: Slot, size: usize) -> bool {
        let entry = self.slots.get(&slot);
        let (count, bytes) = entry.map_or((0, 0), |entry| (entry.messages.len(), entry.bytes));
        let MessageLimits { queue_bytes, queue_messages, .. } = self.limits;
        self.total_bytes == 0
            || count < SLOT_FACTOR * queue_messages
                && bytes + size <= SLOT_FACTOR * queue_bytes
                && self.total_bytes + size <= TOTAL_FACTOR * queue_bytes
    }

    /// Adds a message behind those of the same slot. Returns it if there is no room.
    pub(super) fn push(&mut self, held: HeldMessage) -> Result<(), Box<Envelope>> {
        let (size, slot) = (held.size(), held.slot);
        if !self.has_room(slot, size) {
            return Err(Box::new(held.envelope));
        }
        let entry = self.slots.entry(slot).or_default();
        entry.bytes += size;
        self.total_bytes += size;
        entry.messages.push_back(held);
        Ok(())
    }

    /// Returns the first message of a slot.
    pub(super) fn first_of(&self, slot: Slot) -> Option<&HeldMessage> {
        self.slots.get(&slot)?.messages.front()
    }

    /// Removes the first message of a slot.
    pub(super) fn pop(&mut self, slot: Slot) -> Option<HeldMessage> {
        let entry = self.slots.get_mut(&slot)?;
        let held = entry.messages.pop_front()?;
        entry.bytes -= held.size();
        self.total_bytes -= held.size();
        if entry.messages.is_empty() {
            self.slots.remove(&slot);
        }
        Some(held)
    }

    /// Returns all messages in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &HeldMessage> {
        self.slots.values().flat_map(|slot| &slot.messages)
    }

    /// Drops all messages, in a forked child. Leaves other memory untouched.
    pub(super) fn clear(&mut self) {
        if !self.is_empty() {
            *self = HeldMessages::new(self.limits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::envelope::tests::test_envelope;
    use super::*;
    use prefork_supervisor::{Generation, WEB_KIND};

    fn held(slot: u32, size: usize, since: Instant) -> HeldMessage {
        let (id, slot) = (WorkerId(slot.into()), Slot(slot));
        let last_worker =
            WorkerTag { id, slot, generation: Generation(1), pid: None, kind: WEB_KIND };
        let last_worker = Some(last_worker);
        HeldMessage { slot, last_worker, since, envelope: test_envelope("a", size) }
    }

    #[test]
    fn messages_of_a_slot_are_kept_in_order_up_to_the_bounds() {
        let now = Instant::now();
        let mut messages = HeldMessages::new(MessageLimits::default().queue_bounds(1000, 2));
        for size in [1, 2, 3, 4] {
            messages.push(held(0, size, now)).expect("room");
        }
        assert!(messages.push(held(0, 5, now)).is_err(), "too many for one slot");
        assert!(messages.push(held(1, 3000, now)).is_err(), "too large for one slot");
        for slot in 1..=4 {
            messages.push(held(slot, 1900, now)).expect("room");
        }
        assert!(messages.push(held(5, 1900, now)).is_err(), "too large in total");
        let sizes = std::iter::from_fn(|| messages.pop(Slot(0)));
        let sizes: Vec<_> = sizes.map(|held| held.envelope.payload.bytes().len()).collect();
        assert_eq!(sizes, [1, 2, 3, 4]);
        assert_eq!(messages.slots(), [1, 2, 3, 4].map(Slot));
    }

    #[test]
    fn a_message_is_overdue_after_the_timeout() {
        let now = Instant::now();
        assert!(!held(0, 1, now).is_overdue(now + HOLD_TIMEOUT / 2));
        assert!(held(0, 1, now).is_overdue(now + HOLD_TIMEOUT));
    }
}
