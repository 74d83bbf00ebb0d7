//! Requests of a worker that wait for their replies. Replies without a pending request are dropped.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::{Envelope, Message, MessageAddress, MessageClass, MessageError, MessageSender};

type Answer = Result<Message, MessageError>;

/// The recipient of a request, and where its reply goes.
#[derive(Debug)]
struct AwaitedReply {
    recipient: MessageAddress,
    reply: oneshot::Sender<Answer>,
}

/// All requests of this worker that are not answered yet.
#[derive(Debug)]
pub(super) struct PendingRequests {
    next: AtomicU64,
    pending: Mutex<HashMap<u64, AwaitedReply>>,
    late_replies: AtomicU64,
}

/// A registered request. Dropping it ends the wait for the reply.
#[derive(Debug)]
pub(super) struct RequestHandle {
    pub(super) id: u64,
    pub(super) reply: oneshot::Receiver<Answer>,
    requests: Arc<PendingRequests>,
}

impl Drop for RequestHandle {
    fn drop(&mut self) {
        self.requests.lock_pending().remove(&self.id);
    }
}

impl PendingRequests {
    pub(super) fn new() -> PendingRequests {
        // Random, so that another worker cannot guess ids and answer in place of the recipient.
        let first = prefork_os::system::random_u64().unwrap_or(1);
        PendingRequests {
            next: AtomicU64::new(first),
            pending: Mutex::default(),
            late_replies: AtomicU64::new(0),
        }
    }

    /// Registers a request to `recipient` before it is sent.
    pub(super) fn register(
        self: &Arc<PendingRequests>,
        recipient: MessageAddress,
    ) -> RequestHandle {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        self.lock_pending().insert(id, AwaitedReply { recipient, reply: sender });
        RequestHandle { id, reply, requests: Arc::clone(self) }
    }

    /// Delivers a reply or refusal, if it comes from the recipient, or is a refusal by the primary.
    pub(super) fn reply(&self, from: MessageSender, envelope: Envelope) {
        let mut pending = self.lock_pending();
        let is_from_recipient = |recipient: MessageAddress| match (recipient, from) {
            (MessageAddress::Primary | MessageAddress::AllOthers, from) => {
                from == MessageSender::Primary
            }
            (MessageAddress::Worker(_) | MessageAddress::Slot(_), MessageSender::Primary) => {
                envelope.class == MessageClass::Refusal
            }
            (MessageAddress::Worker(id), from) => from == MessageSender::Worker(id),
            (MessageAddress::Slot(_), _) => true,
        };
        match pending.get(&envelope.id).map(|one| is_from_recipient(one.recipient)) {
            Some(true) => {}
            Some(false) => return,
            None => {
                self.late_replies.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        let Some(AwaitedReply { reply, .. }) = pending.remove(&envelope.id) else { return };
        // The requester may have stopped waiting.
        let _ = reply.send(match envelope.class {
            MessageClass::Refusal => Err(envelope.refusal_error()),
            _ => Ok(Message::new(from, envelope)),
        });
    }

    /// Returns the number of replies that arrived too late.
    pub(super) fn late_replies(&self) -> u64 {
        self.late_replies.load(Ordering::Relaxed)
    }

    /// Fails all pending requests.
    pub(super) fn close(&self) {
        for (_, pending) in self.lock_pending().drain() {
            let _ = pending.reply.send(Err(MessageError::Closed));
        }
    }

    fn lock_pending(&self) -> MutexGuard<'_, HashMap<u64, AwaitedReply>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::envelope::tests::test_envelope;
    use super::*;
    use prefork_supervisor::{Slot, WorkerId};

    fn reply(class: MessageClass, id: u64) -> Envelope {
        Envelope { class, id, ..test_envelope("a", 2) }
    }

    #[test]
    fn a_reply_is_accepted_once_and_only_from_the_recipient() {
        let requests = Arc::new(PendingRequests::new());
        let mut recipient = requests.register(MessageAddress::Worker(WorkerId(3)));
        let id = recipient.id;
        requests.reply(MessageSender::Worker(WorkerId(4)), reply(MessageClass::Reply, id));
        requests.reply(MessageSender::Primary, reply(MessageClass::Reply, id));
        assert!(recipient.reply.try_recv().is_err(), "forged");
        requests.reply(MessageSender::Worker(WorkerId(3)), reply(MessageClass::Reply, id));
        let message = recipient.reply.try_recv().expect("answered").expect("an reply");
        assert_eq!(message.from(), MessageSender::Worker(WorkerId(3)));
        requests.reply(MessageSender::Worker(WorkerId(3)), reply(MessageClass::Reply, id));
        assert_eq!(requests.late_replies(), 1);
    }

    #[test]
    fn a_late_reply_is_dropped_and_does_not_answer_another_request() {
        let requests = Arc::new(PendingRequests::new());
        let late_replies = requests.register(MessageAddress::Primary).id;
        let mut recipient = requests.register(MessageAddress::Primary);
        requests.reply(MessageSender::Primary, reply(MessageClass::Reply, late_replies));
        assert_eq!(requests.late_replies(), 1);
        assert!(recipient.reply.try_recv().is_err());
        requests.close();
        assert!(matches!(recipient.reply.try_recv(), Ok(Err(MessageError::Closed))));
    }

    #[test]
    fn the_primary_may_refuse_in_place_of_a_worker() {
        let requests = Arc::new(PendingRequests::new());
        let mut recipient = requests.register(MessageAddress::Slot(Slot(1)));
        requests.reply(MessageSender::Primary, reply(MessageClass::Refusal, recipient.id));
        assert!(matches!(recipient.reply.try_recv(), Ok(Err(MessageError::Refused(_)))));
    }
}
