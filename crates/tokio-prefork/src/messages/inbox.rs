//! A worker's inboxes: one bounded queue per message kind. The worker's loop fills them; any thread may read them.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Message, MessageLimits};

/// How long a full inbox may stop the reading of the channel. After that its messages are dropped until it is read again, because
/// other kinds and replies must not be blocked.
const FULL_INBOX_TIMEOUT: Duration = Duration::from_secs(1);

/// The most kinds whose dropped messages are counted and logged. A buggy or malicious sender may use any number.
const MAX_COUNTED_KINDS: usize = 256;

/// The queue of one kind.
#[derive(Debug, Default)]
struct InboxQueue {
    content: Mutex<QueueContent>,
    message_arrived: Notify,
    room_available: Notify,
}

/// What a queue holds, and who reads it.
#[derive(Debug, Default)]
struct QueueContent {
    messages: VecDeque<Message>,
    bytes: usize,
    /// Number of inboxes of this kind. Changes only while the registry is locked.
    reader_count: usize,
    /// Whether the queue was full until the timeout and has not been read since.
    is_stalled: bool,
}

/// Receives the messages of one kind. Created by `Worker::open_inbox`. `Send`: any thread of the worker may read it.
///
/// Inboxes of the same kind share the messages: each message goes to one of them. When the last one is dropped, messages of this kind
/// are dropped.
#[derive(Debug)]
pub struct Inbox {
    queue: Arc<InboxQueue>,
    registry: Arc<InboxRegistry>,
    kind: String,
}

/// All inboxes of a worker. Its lock is taken before that of a queue.
#[derive(Debug)]
pub(super) struct InboxRegistry {
    limits: MessageLimits,
    queues: Mutex<BTreeMap<String, Arc<InboxQueue>>>,
    /// Number of dropped messages, by kind.
    dropped: Mutex<BTreeMap<String, u64>>,
    /// Whether the application may still open inboxes for messages that have arrived.
    is_booting: AtomicBool,
    is_closed: AtomicBool,
}

/// A message without a receiver, and why.
#[derive(Debug)]
pub(super) struct UndeliveredMessage {
    pub(super) message: Message,
    pub(super) reason: &'static str,
    /// Whether it is the first dropped message of its kind.
    pub(super) is_first_of_kind: bool,
}

/// The result of one attempt to deliver a message.
enum Delivery {
    Delivered,
    /// No inbox is open for this kind.
    NoInbox(Message),
    /// The queue has no room: the queue, and the message.
    Full(Arc<InboxQueue>, Message),
}

/// Locks state that no code panics with, so that it is never half changed.
fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl InboxQueue {
    fn content(&self) -> MutexGuard<'_, QueueContent> {
        lock(&self.content)
    }
}

impl Inbox {
    /// Receives the next message. Returns `None` when the channel to the primary is closed and all messages are read.
    ///
    /// Cancel safe: a message is taken only when this returns it.
    pub async fn recv(&mut self) -> Option<Message> {
        let queue = Arc::clone(&self.queue);
        loop {
            if let Some(message) = self.try_recv() {
                return Some(message);
            }
            let mut message_arrived = pin!(queue.message_arrived.notified());
            // Registered before the queue is read: a message that arrives in between wakes this reader, and no other one.
            message_arrived.as_mut().enable();
            if let Some(message) = self.try_recv() {
                return Some(message);
            }
            if self.registry.is_closed.load(Ordering::Acquire) {
                return None;
            }
            message_arrived.await;
        }
    }

    /// Receives the next message, if there is one.
    pub fn try_recv(&mut self) -> Option<Message> {
        let mut content = self.queue.content();
        let message = content.messages.pop_front()?;
        content.bytes -= message.bytes().len();
        content.is_stalled = false;
        drop(content);
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
        let mut queues = lock(&self.registry.queues);
        let mut content = self.queue.content();
        content.reader_count -= 1;
        if content.reader_count == 0 {
            queues.remove(&self.kind);
            drop(content);
            self.queue.room_available.notify_one();
        }
    }
}

impl InboxRegistry {
    pub(super) fn new(limits: MessageLimits) -> InboxRegistry {
        InboxRegistry {
            limits,
            queues: Mutex::default(),
            dropped: Mutex::default(),
            is_booting: AtomicBool::new(true),
            is_closed: AtomicBool::new(false),
        }
    }

    pub(super) fn open_inbox(self: &Arc<InboxRegistry>, kind: &str) -> Inbox {
        let mut queues = lock(&self.queues);
        let queue = Arc::clone(queues.entry(kind.to_string()).or_default());
        queue.content().reader_count += 1;
        Inbox { queue, registry: Arc::clone(self), kind: kind.to_string() }
    }

    /// Puts a message into its inbox, and waits while that is full. Returns a message without a receiver.
    pub(super) async fn deliver(&self, mut message: Message) -> Result<(), UndeliveredMessage> {
        let mut deadline = None;
        loop {
            let queue = match self.try_deliver(message) {
                Delivery::Delivered => return Ok(()),
                Delivery::NoInbox(message) => {
                    return Err(self.reject(message, "no inbox is open for this kind"));
                }
                Delivery::Full(queue, returned) => {
                    message = returned;
                    queue
                }
            };
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + FULL_INBOX_TIMEOUT);
            // Whoever makes room takes the same lock, and notifies after that.
            let can_wait = queue.content().can_wait_for_room();
            let room = queue.room_available.notified();
            if !can_wait || tokio::time::timeout_at(deadline, room).await.is_err() {
                queue.content().is_stalled = true;
                return Err(self.reject(message, "the inbox is full and is not read"));
            }
        }
    }

    /// Puts a message into its inbox. Returns the queue and the message if the queue is full.
    ///
    /// Holds the lock of the registry, so that the last inbox of the kind cannot be dropped meanwhile.
    fn try_deliver(&self, message: Message) -> Delivery {
        let mut queues = lock(&self.queues);
        let queue = match queues.get(message.kind()) {
            Some(queue) => Arc::clone(queue),
            None if self.is_booting.load(Ordering::Relaxed) && queues.len() < MAX_COUNTED_KINDS => {
                Arc::clone(queues.entry(message.kind().to_string()).or_default())
            }
            None => return Delivery::NoInbox(message),
        };
        let mut content = queue.content();
        if !content.has_room(&self.limits, &message) {
            drop(content);
            return Delivery::Full(queue, message);
        }
        content.bytes += message.bytes().len();
        content.messages.push_back(message);
        drop(content);
        queue.message_arrived.notify_one();
        Delivery::Delivered
    }

    fn reject(&self, message: Message, reason: &'static str) -> UndeliveredMessage {
        let is_first_of_kind = self.count_dropped(message.kind(), 1);
        UndeliveredMessage { message, reason, is_first_of_kind }
    }

    /// Counts dropped messages. Returns whether they are the first ones of their kind.
    fn count_dropped(&self, kind: &str, count: u64) -> bool {
        let mut dropped = lock(&self.dropped);
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
        let mut unread = Vec::new();
        let mut queues = lock(&self.queues);
        self.is_booting.store(false, Ordering::Relaxed);
        queues.retain(|kind, queue| {
            let content = queue.content();
            let is_read = content.reader_count > 0;
            if !is_read {
                unread.push((kind.clone(), content.messages.len()));
            }
            is_read
        });
        drop(queues);
        for (kind, count) in &unread {
            self.count_dropped(kind, *count as u64);
        }
        unread
    }

    /// Returns the number of dropped messages, by kind.
    pub(super) fn dropped_counts(&self) -> BTreeMap<String, u64> {
        lock(&self.dropped).clone()
    }

    /// Ends all inboxes: no more messages arrive.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        lock(&self.queues).values().for_each(|queue| queue.message_arrived.notify_waiters());
    }
}

impl QueueContent {
    /// Whether it is worth to wait for room: somebody reads, and has not been waited for in vain before.
    fn can_wait_for_room(&self) -> bool {
        self.reader_count > 0 && !self.is_stalled
    }

    fn has_room(&self, limits: &MessageLimits, message: &Message) -> bool {
        let waiting = self.messages.len();
        let bytes = self.bytes + message.bytes().len();
        waiting == 0 || waiting < limits.queue_messages && bytes <= limits.queue_bytes
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
            let inboxes = Arc::new(InboxRegistry::new(MessageLimits::default()));
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
                Arc::new(InboxRegistry::new(MessageLimits::default().queue_bounds(1 << 20, 1)));
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
