//! Authenticates the messages that a worker returns unread, so that it cannot make up messages of other senders.

use std::hash::{DefaultHasher, Hasher};

use serde::{Deserialize, Serialize};

use super::Envelope;
use prefork_os::system::monotonic_ns;
use prefork_supervisor::WorkerId;

/// The primary's secret. It survives an upgrade, because workers may still return messages of the old image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DeliveryKey([u64; 2]);

impl DeliveryKey {
    /// Draws a key from the kernel. Not by `RandomState`, whose keys all later workers would inherit.
    pub(super) fn new() -> DeliveryKey {
        // The kernel refuses only where a filter of system calls forbids the call.
        let random = || prefork_os::system::random_u64().unwrap_or_else(|_| monotonic_ns());
        DeliveryKey([random(), random()])
    }

    /// Returns the code of a message that is delivered to `worker`.
    pub(super) fn code(&self, worker: WorkerId, envelope: &Envelope) -> u64 {
        let mut state = DefaultHasher::new();
        self.0.iter().for_each(|part| state.write_u64(*part));
        state.write_u64(worker.0);
        envelope.hash_delivery(&mut state);
        state.finish()
    }

    /// Returns whether this message was delivered to `worker`.
    pub(super) fn is_delivered(&self, worker: WorkerId, envelope: &Envelope) -> bool {
        self.code(worker, envelope) == envelope.delivery.code
    }
}

#[cfg(test)]
mod tests {
    use super::super::envelope::tests::test_envelope;
    use super::super::{DeliveryRecord, MessageAddress, MessageClass, MessageRoute, Payload};
    use super::*;

    #[test]
    fn only_what_was_delivered_to_the_same_worker_is_accepted() {
        let (key, worker) = (DeliveryKey::new(), WorkerId(3));
        let delivered = |change: &dyn Fn(&mut Envelope)| {
            let mut envelope = test_envelope("a", 20);
            envelope.delivery.route = MessageRoute::ToSlot;
            envelope.delivery.code = key.code(worker, &envelope);
            envelope.delivery.is_returned = true;
            change(&mut envelope);
            envelope
        };
        assert!(key.is_delivered(worker, &delivered(&|_| {})));
        assert!(!key.is_delivered(WorkerId(4), &delivered(&|_| {})));
        assert!(!DeliveryKey::new().is_delivered(worker, &delivered(&|_| {})));
        let forgeries: [&dyn Fn(&mut Envelope); 6] = [
            &|envelope| envelope.address = MessageAddress::Worker(WorkerId(9)),
            &|envelope| envelope.class = MessageClass::Request,
            &|envelope| envelope.id = 1,
            &|envelope| envelope.delivery.route = MessageRoute::ToWorker,
            &|envelope| envelope.payload = Payload::from(bytes::Bytes::from_static(&[0; 20])),
            &|envelope| envelope.delivery = DeliveryRecord::default(),
        ];
        for (at, forgery) in forgeries.iter().enumerate() {
            assert!(!key.is_delivered(worker, &delivered(forgery)), "{at}");
        }
    }
}
