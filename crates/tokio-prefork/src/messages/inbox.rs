//! A worker's inboxes: one bounded queue per message kind.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

use super::{Message, MessageLimits};

/// How long a full inbox may stop the reading of the channel. After that its messages are dropped until it is read again, because
/// other kinds and replies must not be blocked.
const FULL_INBOX_TIMEOUT: Duration = Duration::from_secs(1);

/// The most kinds whose dropped messages are counted and logged. A buggy or malicious sender may use any number.
const MAX_COUNTED_KINDS: usize = 256;

/// The queue of one kind.
#[derive(Debug, Default)]
struct InboxQueue {
    messages: RefCell<VecDeque<Message>>,
    bytes: Cell<usize>,
    /// Number of inboxes of this kind.
    reader_count: Cell<usize>,
    message_arrived: Notify,
    room_available: Notify,
    /// Whether the queue was full until the timeout and has not been read since.
    is_stalled: Cell<bool>,
}

/// Receives the messages of one kind. Created by `Worker::open_inbox`.
///
/// Inboxes of the same kind share the messages: each message goes to one of them. When the last one is dropped, messages of this kind
/// are dropped.
#[derive(Debug)]
pub struct Inbox {
    queue: Rc<InboxQueue>,
    registry: Rc<InboxRegistry>,
    kind: String,
}

/// All inboxes of a worker.
#[derive(Debug)]
pub(super) struct InboxRegistry {
    limits: MessageLimits,
    queues: RefCell<BTreeMap<String, Rc<InboxQueue>>>,
    /// Number of dropped messages, by kind.
    dropped: RefCell<BTreeMap<String, u64>>,
    /// Whether the application may still open inboxes for messages that have arrived.
    is_booting: Cell<bool>,
    is_closed: Cell<bool>,
}

/// A message without a receiver, and why.
#[derive(Debug)]
pub(super) struct UndeliveredMessage {
    pub(super) message: Message,
    pub(super) reason: &'static str,
    /// Whether it is the first dropped message of its kind.
    pub(super) is_first_of_kind: bool,
}

impl Inbox {
    /// Receives the next message. Returns `None` when the channel to the primary is closed and all messages are read.
    ///
    /// Cancel safe: a message is taken only when this returns it.
    pub async fn recv(&mut self) -> Option<Message> {
        let queue = Rc::clone(&self.queue);
        loop {
            let message_arrived = queue.message_arrived.notified();
            if let Some(message) = self.try_recv() {
                return Some(message);
            }
            if self.registry.is_closed.get() {
                return None;
            }
            message_arrived.await;
        }
    }

    /// Receives the next message, if there is one.
    pub fn try_recv(&mut self) -> Option<Message> {
        let message = self.queue.messages.borrow_mut().pop_front()?;
        self.queue.bytes.set(self.queue.bytes.get() - message.bytes().len());
        self.queue.is_stalled.set(false);
        self.queue.room_available.notify_one();
        Some(message)
    }

    /// Returns the kind of the messages.
    pub fn kind(&self) -> &str {
        &self.kind
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let reader_count = self.queue.reader_count.get() - 1;
        self.queue.reader_count.set(reader_count);
        if reader_count == 0 {
            self.registry.queues.borrow_mut().remove(&self.kind);
            self.queue.room_available.notify_one();
        }
    }
}

impl InboxRegistry {
    pub(super) fn new(limits: MessageLimits) -> InboxRegistry {
        InboxRegistry {
            limits,
            queues: RefCell::default(),
            dropped: RefCell::default(),
            is_booting: Cell::new(true),
            is_closed: Cell::new(false),
        }
    }

    pub(super) fn open_inbox(self: &Rc<InboxRegistry>, kind: &str) -> Inbox {
        let queue = Rc::clone(self.queues.borrow_mut().entry(kind.to_string()).or_default());
        queue.reader_count.set(queue.reader_count.get() + 1);
        Inbox { queue, registry: Rc::clone(self), kind: kind.to_string() }
    }

    /// Puts a message into its inbox, and waits while that is full. Returns a message without a receiver.
    pub(super) async fn deliver(&self, message: Message) -> Result<(), UndeliveredMessage> {
        let queue = self.queues.borrow().get(message.kind()).map(Rc::clone);
        let queue = match queue {
            Some(queue) => queue,
            None if self.is_booting.get() && self.queues.borrow().len() < MAX_COUNTED_KINDS => {
                let kind = message.kind().to_string();
                Rc::clone(self.queues.borrow_mut().entry(kind).or_default())
            }
            None => return Err(self.reject(message, "no inbox is open for this kind")),
        };
        if !self.has_room(&queue, &message) {
            let room = async {
                while !self.has_room(&queue, &message) && queue.reader_count.get() > 0 {
                    queue.room_available.notified().await;
                }
            };
            let timeout = if queue.is_stalled.get() { Duration::ZERO } else { FULL_INBOX_TIMEOUT };
            if tokio::time::timeout(timeout, room).await.is_err() || queue.reader_count.get() == 0 {
                queue.is_stalled.set(true);
                return Err(self.reject(message, "the inbox is full and is not read"));
            }
        }
        queue.bytes.set(queue.bytes.get() + message.bytes().len());
        queue.messages.borrow_mut().push_back(message);
        queue.message_arrived.notify_one();
        Ok(())
    }

    fn has_room(&self, queue: &InboxQueue, message: &Message) -> bool {
        let waiting = queue.messages.borrow().len();
        let bytes = queue.bytes.get() + message.bytes().len();
        waiting == 0 || waiting < self.limits.queue_messages && bytes <= self.limits.queue_bytes
    }

    fn reject(&self, message: Message, reason: &'static str) -> UndeliveredMessage {
        let is_first_of_kind = self.count_dropped(message.kind(), 1);
        UndeliveredMessage { message, reason, is_first_of_kind }
    }

    /// Counts dropped messages. Returns whether they are the first ones of their kind.
    fn count_dropped(&self, kind: &str, count: u64) -> bool {
        let mut dropped = self.dropped.borrow_mut();
        if let Some(before) = dropped.get_mut(kind) {
            *before += count;
            return false;
        }
        let is_counted = dropped.len() < MAX_COUNTED_KINDS;
        if is_counted {
            dropped.insert(kind.to_string(), count);
        }
        is_counted
    }

    /// Drops the messages of kinds without an inbox. Returns their number by kind.
    pub(super) fn finish_boot(&self) -> Vec<(String, usize)> {
        self.is_booting.set(false);
        let mut unread = Vec::new();
        self.queues.borrow_mut().retain(|kind, queue| {
            let read = queue.reader_count.get() > 0;
            if !read {
                unread.push((kind.clone(), queue.messages.borrow().len()));
            }
            read
        });
        for (kind, count) in &unread {
            self.count_dropped(kind, *count as u64);
        }
        unread
    }

    /// Returns the number of dropped messages, by kind.
    pub(super) fn dropped_counts(&self) -> BTreeMap<String, u64> {
        self.dropped.borrow().clone()
    }

    /// Ends all inboxes: no more messages arrive.
    pub(super) fn close(&self) {
        self.is_closed.set(true);
        self.queues.borrow().values().for_each(|queue| queue.message_arrived.notify_waiters());
    }
}

#[cfg(test)]
mod tests {
    use super::super::MessageSender;
    use super::super::envelope::tests::test_envelope;
    use super::*;

    fn message(size: usize) -> Message {
        Message::new(MessageSender::Primary, test_envelope("a", size))
    }

    fn block_on_local(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test);
    }

    #[test]
    fn early_messages_are_kept_until_the_worker_is_ready() {
        block_on_local(async {
            let inboxes = Rc::new(InboxRegistry::new(MessageLimits::default()));
            inboxes.deliver(message(1)).await.expect("kept");
            inboxes
                .deliver(Message::new(MessageSender::Primary, test_envelope("b", 1)))
                .await
                .expect("kept");
            let mut inbox = inboxes.open_inbox("a");
            assert_eq!(inboxes.finish_boot(), [("b".to_string(), 1)]);
            assert!(inbox.recv().await.is_some() && inbox.try_recv().is_none());
            drop(inbox);
            let unwanted = inboxes.deliver(message(1)).await.expect_err("no inbox");
            assert!(unwanted.is_first_of_kind);
            assert!(!inboxes.deliver(message(1)).await.expect_err("no inbox").is_first_of_kind);
            assert_eq!(inboxes.dropped_counts()["a"], 2);
        });
    }

    #[test]
    fn a_full_inbox_is_waited_for_once_until_the_timeout() {
        block_on_local(async {
            let inboxes =
                Rc::new(InboxRegistry::new(MessageLimits::default().queue_bounds(1 << 20, 1)));
            let mut inbox = inboxes.open_inbox("a");
            inboxes.deliver(message(1)).await.expect("room");
            let begun = tokio::time::Instant::now();
            let unwanted = inboxes.deliver(message(1)).await.expect_err("full");
            assert_eq!(unwanted.reason, "the inbox is full and is not read");
            assert!(begun.elapsed() >= FULL_INBOX_TIMEOUT);
            // The queue is stalled now, so this must not wait. A zero timeout may still take one timer tick.
            let at_once =
                tokio::time::timeout(FULL_INBOX_TIMEOUT / 2, inboxes.deliver(message(1))).await;
            assert!(at_once.expect("no wait").is_err());
            assert!(inbox.recv().await.is_some());
            inboxes.deliver(message(1)).await.expect("room again");
            inboxes.close();
            assert!(inbox.recv().await.is_some() && inbox.recv().await.is_none());
        });
    }
}
