//! A worker's inboxes: one bounded queue per message kind, and one for all other kinds. The worker's loop fills them; any thread may
//! read them.
//!
//! What nobody reads while the worker drains is taken out again and returned to the primary, which gives it to the next worker.

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

/// Why messages of a kind without an inbox are refused.
const NO_INBOX: &str = "no inbox is open for this kind";

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
    /// Whether the application has ever opened an inbox of this kind.
    was_opened: bool,
    /// Whether the queue was full until the timeout and has not been read since.
    is_stalled: bool,
}

/// Receives the messages of one kind, or of all kinds without an inbox of their own. `Send`: any thread of the worker may read it.
///
/// Created by [`Worker::open_inbox`](crate::Worker::open_inbox) and [`Worker::open_any_inbox`](crate::Worker::open_any_inbox). Inboxes
/// of the same kind share the messages: each message goes to one of them. While none is open, messages of this kind are refused; what
/// is left waits for the next inbox of the kind.
///
/// When the worker drains and no inbox of a kind is open any more, and when it exits, messages to its slot that were not received go
/// to the next worker of the slot, in their order.
#[derive(Debug)]
pub struct Inbox {
    queue: Arc<InboxQueue>,
    registry: Arc<InboxRegistry>,
    /// `None` for all kinds.
    kind: Option<String>,
}

/// All inboxes of a worker. Its lock is taken before that of a queue.
#[derive(Debug)]
pub(super) struct InboxRegistry {
    limits: MessageLimits,
    queues: Mutex<BTreeMap<String, Arc<InboxQueue>>>,
    /// The queue of the kinds without an inbox of their own.
    any_queue: Arc<InboxQueue>,
    /// Number of dropped messages, by kind.
    dropped: Mutex<BTreeMap<String, u64>>,
    /// Whether the application may still open inboxes for messages that have arrived.
    is_booting: AtomicBool,
    /// Whether messages without a reader are kept to be returned. Changes only while `queues` is locked.
    is_draining: AtomicBool,
    /// Whether all messages are to be returned. Changes only while `queues` is locked.
    is_leaving: AtomicBool,
    /// Notified when there are messages to return.
    unread: Notify,
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
    /// Receives the next message. Returns `None` when no more can come: the worker exits, or the channel to the primary is closed.
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
            if self.registry.has_ended() {
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

    /// Returns the kind of the messages; `None` for an inbox of all kinds.
    pub fn kind(&self) -> Option<&str> {
        self.kind.as_deref()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let queues = lock(&self.registry.queues);
        let mut content = self.queue.content();
        content.reader_count -= 1;
        let is_last = content.reader_count == 0;
        drop(content);
        drop(queues);
        if is_last {
            self.queue.room_available.notify_one();
            self.registry.unread.notify_one();
        }
    }
}

impl InboxRegistry {
    pub(super) fn new(limits: MessageLimits) -> InboxRegistry {
        InboxRegistry {
            limits,
            queues: Mutex::default(),
            any_queue: Arc::default(),
            dropped: Mutex::default(),
            is_booting: AtomicBool::new(true),
            is_draining: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
            unread: Notify::new(),
            is_closed: AtomicBool::new(false),
        }
    }

    /// Opens an inbox of one kind, or of all kinds without one.
    pub(super) fn open_inbox(self: &Arc<InboxRegistry>, kind: Option<&str>) -> Inbox {
        let mut queues = lock(&self.queues);
        let queue = match kind {
            Some(kind) => Arc::clone(queues.entry(kind.to_string()).or_default()),
            None => Arc::clone(&self.any_queue),
        };
        let mut content = queue.content();
        content.reader_count += 1;
        content.was_opened = true;
        drop(content);
        Inbox { queue, registry: Arc::clone(self), kind: kind.map(str::to_string) }
    }

    /// Puts a message into its inbox, and waits while that is full. Returns a message without a receiver.
    pub(super) async fn deliver(&self, mut message: Message) -> Result<(), UndeliveredMessage> {
        let mut deadline = None;
        loop {
            let queue = match self.try_deliver(message) {
                Delivery::Delivered => return Ok(()),
                Delivery::NoInbox(message) => {
                    return Err(self.reject(message, NO_INBOX));
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
        let Some(queue) = self.find_queue(&mut queues, message.kind()) else {
            return Delivery::NoInbox(message);
        };
        let mut content = queue.content();
        if !content.has_room(&self.limits, &message) {
            drop(content);
            return Delivery::Full(queue, message);
        }
        let has_reader = content.reader_count > 0;
        content.push(message);
        drop(content);
        queue.message_arrived.notify_one();
        if !has_reader || self.is_leaving.load(Ordering::Relaxed) {
            self.unread.notify_one();
        }
        Delivery::Delivered
    }

    /// Finds the queue for a message: one that is read, or is kept for the time after the boot or for the next worker.
    fn find_queue(
        &self,
        queues: &mut BTreeMap<String, Arc<InboxQueue>>,
        kind: &str,
    ) -> Option<Arc<InboxQueue>> {
        let is_draining = self.is_draining.load(Ordering::Relaxed);
        let accepts =
            |content: &QueueContent| content.reader_count > 0 || is_draining && content.was_opened;
        if let Some(queue) = queues.get(kind).filter(|queue| accepts(&queue.content())) {
            return Some(Arc::clone(queue));
        }
        if accepts(&self.any_queue.content()) {
            return Some(Arc::clone(&self.any_queue));
        }
        let is_kept = self.is_booting.load(Ordering::Relaxed)
            && (queues.len() < MAX_COUNTED_KINDS || queues.contains_key(kind));
        is_kept.then(|| Arc::clone(queues.entry(kind.to_string()).or_default()))
    }

    /// Keeps messages that nobody reads, from now on: `take_unread` takes them.
    pub(super) fn begin_drain(&self) {
        let _queues = lock(&self.queues);
        self.is_draining.store(true, Ordering::Relaxed);
        self.unread.notify_one();
    }

    /// Ends the reading: all messages are unread from now on, and inboxes receive nothing more.
    pub(super) fn begin_leaving(&self) {
        let queues = lock(&self.queues);
        self.is_draining.store(true, Ordering::Relaxed);
        self.is_leaving.store(true, Ordering::Release);
        drop(queues);
        self.wake_readers();
    }

    /// Returns whether inboxes receive nothing more.
    fn has_ended(&self) -> bool {
        self.is_closed.load(Ordering::Acquire) || self.is_leaving.load(Ordering::Acquire)
    }

    fn wake_readers(&self) {
        let queues = lock(&self.queues);
        queues.values().chain([&self.any_queue]).for_each(|queue| {
            queue.message_arrived.notify_waiters();
        });
        self.unread.notify_one();
    }

    /// Waits until there may be messages for `take_unread`.
    pub(super) async fn wait_unread(&self) {
        self.unread.notified().await;
    }

    /// Takes the messages that nobody reads while the worker drains, in order for each kind.
    pub(super) fn take_unread(&self) -> Vec<Message> {
        let queues = lock(&self.queues);
        let is_leaving = self.is_leaving.load(Ordering::Relaxed);
        if !self.is_draining.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut unread = Vec::new();
        for queue in queues.values().chain([&self.any_queue]) {
            let mut content = queue.content();
            if is_leaving || content.reader_count == 0 && content.was_opened {
                unread.extend(content.take_all());
            }
        }
        unread
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

    /// Ends the time in which the application may open inboxes for early messages. Returns those of kinds without an inbox.
    pub(super) fn finish_boot(&self) -> Vec<UndeliveredMessage> {
        let mut queues = lock(&self.queues);
        self.is_booting.store(false, Ordering::Relaxed);
        let mut early = Vec::new();
        queues.retain(|_, queue| {
            let mut content = queue.content();
            if !content.was_opened {
                early.extend(content.take_all());
            }
            content.was_opened
        });
        let mut any = self.any_queue.content();
        if any.reader_count > 0 {
            early.into_iter().for_each(|message| any.push(message));
            self.any_queue.message_arrived.notify_one();
            return Vec::new();
        }
        drop(any);
        drop(queues);
        early.into_iter().map(|message| self.reject(message, NO_INBOX)).collect()
    }

    /// Returns the number of dropped messages, by kind.
    pub(super) fn dropped_counts(&self) -> BTreeMap<String, u64> {
        lock(&self.dropped).clone()
    }

    /// Ends all inboxes: no more messages arrive.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.wake_readers();
    }
}

impl QueueContent {
    fn push(&mut self, message: Message) {
        self.bytes += message.bytes().len();
        self.messages.push_back(message);
    }

    fn take_all(&mut self) -> VecDeque<Message> {
        self.bytes = 0;
        self.is_stalled = false;
        std::mem::take(&mut self.messages)
    }

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
            let mut inbox = inboxes.open_inbox(Some("a"));
            let unread = inboxes.finish_boot();
            assert_eq!((unread.len(), unread[0].message.kind()), (1, "b"));
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
            let mut inbox = inboxes.open_inbox(Some("a"));
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

    fn message_of(kind: &str, size: usize) -> Message {
        Message::new(MessageSender::Primary, test_envelope(kind, size))
    }

    fn sizes(messages: &[Message]) -> Vec<usize> {
        messages.iter().map(|message| message.bytes().len()).collect()
    }

    #[test]
    fn an_inbox_of_all_kinds_receives_what_has_no_other_inbox() {
        block_on_local(async {
            let inboxes = Arc::new(InboxRegistry::new(MessageLimits::default()));
            inboxes.deliver(message_of("early", 1)).await.expect("kept");
            let mut named = inboxes.open_inbox(Some("a"));
            let mut any = inboxes.open_inbox(None);
            inboxes.finish_boot();
            for (kind, size) in [("a", 2), ("b", 3), ("c", 4)] {
                inboxes.deliver(message_of(kind, size)).await.expect("delivered");
            }
            let received: Vec<_> = std::iter::from_fn(|| any.try_recv()).collect();
            assert_eq!(sizes(&received), [1, 3, 4]);
            assert_eq!((any.kind(), named.kind()), (None, Some("a")));
            drop(any);
            assert!(inboxes.deliver(message_of("b", 1)).await.is_err());
            assert_eq!(named.try_recv().map(|message| message.bytes().len()), Some(2));
        });
    }

    #[test]
    fn what_a_dropped_inbox_left_waits_for_the_next_one() {
        block_on_local(async {
            let inboxes = Arc::new(InboxRegistry::new(MessageLimits::default()));
            let inbox = inboxes.open_inbox(Some("a"));
            inboxes.finish_boot();
            inboxes.deliver(message(1)).await.expect("delivered");
            drop(inbox);
            assert!(inboxes.deliver(message(2)).await.is_err());
            assert!(inboxes.take_unread().is_empty(), "the worker does not drain");
            assert!(inboxes.open_inbox(Some("a")).try_recv().is_some());
        });
    }

    #[test]
    fn messages_without_a_reader_are_taken_while_the_worker_drains() {
        block_on_local(async {
            let inboxes = Arc::new(InboxRegistry::new(MessageLimits::default()));
            let (read, dropped) = (inboxes.open_inbox(Some("b")), inboxes.open_inbox(Some("a")));
            inboxes.finish_boot();
            for (kind, size) in [("a", 1), ("b", 2), ("a", 3)] {
                inboxes.deliver(message_of(kind, size)).await.expect("delivered");
            }
            inboxes.begin_drain();
            assert!(inboxes.take_unread().is_empty());
            drop(dropped);
            inboxes.wait_unread().await;
            assert_eq!(sizes(&inboxes.take_unread()), [1, 3]);
            inboxes.deliver(message(4)).await.expect("kept");
            assert!(inboxes.deliver(message_of("c", 5)).await.is_err(), "never had an inbox");
            assert_eq!(sizes(&inboxes.take_unread()), [4]);
            inboxes.begin_leaving();
            assert_eq!(sizes(&inboxes.take_unread()), [2]);
            drop(read);
        });
    }
}
