//! A worker's inboxes: a bounded queue for each kind that somebody reads.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

use super::{Message, MessageLimits};

/// How long the channel is not read for the sake of one full inbox. Beyond it, what comes for it is dropped until it is
/// read again: the other kinds, and answers, must not wait for ever.
const PATIENCE: Duration = Duration::from_secs(1);

/// Kinds that are told of; more are the mark of somebody who makes them up.
const KINDS: usize = 256;

/// The queue of one kind.
#[derive(Debug, Default)]
struct Queue {
    messages: RefCell<VecDeque<Message>>,
    bytes: Cell<usize>,
    /// The inboxes of this kind.
    readers: Cell<usize>,
    came: Notify,
    room: Notify,
    /// It was full for as long as it may be, and nobody has read from it since.
    stalled: Cell<bool>,
}

/// Messages of one kind as they come, made by `Worker::open_inbox`. Several of the same kind share them: each message goes to
/// one. When the last one is dropped, the kind is not listened to any more.
#[derive(Debug)]
pub struct Inbox {
    queue: Rc<Queue>,
    of: Rc<Inboxes>,
    kind: String,
}

/// All inboxes of a worker.
#[derive(Debug)]
pub(super) struct Inboxes {
    limits: MessageLimits,
    queues: RefCell<BTreeMap<String, Rc<Queue>>>,
    /// Messages that were dropped, by kind.
    dropped: RefCell<BTreeMap<String, u64>>,
    /// The application may still open inboxes for what has come already.
    booting: Cell<bool>,
    closed: Cell<bool>,
}

/// A message that nobody takes, and why.
#[derive(Debug)]
pub(super) struct Unwanted {
    pub(super) message: Message,
    pub(super) why: &'static str,
    /// The first one of its kind.
    pub(super) first: bool,
}

impl Inbox {
    /// The next message; `None` when the channel to the primary has ended and all is read. Safe to cancel: a message is
    /// taken only when this returns it.
    pub async fn recv(&mut self) -> Option<Message> {
        let queue = Rc::clone(&self.queue);
        loop {
            let came = queue.came.notified();
            if let Some(message) = self.try_recv() {
                return Some(message);
            }
            if self.of.closed.get() {
                return None;
            }
            came.await;
        }
    }

    /// The next message, if it is there.
    pub fn try_recv(&mut self) -> Option<Message> {
        let message = self.queue.messages.borrow_mut().pop_front()?;
        self.queue.bytes.set(self.queue.bytes.get() - message.bytes().len());
        self.queue.stalled.set(false);
        self.queue.room.notify_one();
        Some(message)
    }

    /// The kind of its messages.
    pub fn kind(&self) -> &str {
        &self.kind
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let readers = self.queue.readers.get() - 1;
        self.queue.readers.set(readers);
        if readers == 0 {
            self.of.queues.borrow_mut().remove(&self.kind);
            self.queue.room.notify_one();
        }
    }
}

impl Inboxes {
    pub(super) fn new(limits: MessageLimits) -> Inboxes {
        Inboxes {
            limits,
            queues: RefCell::default(),
            dropped: RefCell::default(),
            booting: Cell::new(true),
            closed: Cell::new(false),
        }
    }

    pub(super) fn open(self: &Rc<Inboxes>, kind: &str) -> Inbox {
        let queue = Rc::clone(self.queues.borrow_mut().entry(kind.to_string()).or_default());
        queue.readers.set(queue.readers.get() + 1);
        Inbox { queue, of: Rc::clone(self), kind: kind.to_string() }
    }

    /// Puts a message into its inbox, waiting for room; what nobody takes comes back.
    pub(super) async fn put(&self, message: Message) -> Result<(), Unwanted> {
        let queue = self.queues.borrow().get(message.kind()).map(Rc::clone);
        let queue = match queue {
            Some(queue) => queue,
            None if self.booting.get() && self.queues.borrow().len() < KINDS => {
                let kind = message.kind().to_string();
                Rc::clone(self.queues.borrow_mut().entry(kind).or_default())
            }
            None => return Err(self.drop_one(message, "nobody receives this kind")),
        };
        if !self.has_room(&queue, &message) {
            let room = async {
                while !self.has_room(&queue, &message) && queue.readers.get() > 0 {
                    queue.room.notified().await;
                }
            };
            let patience = if queue.stalled.get() { Duration::ZERO } else { PATIENCE };
            if tokio::time::timeout(patience, room).await.is_err() || queue.readers.get() == 0 {
                queue.stalled.set(true);
                return Err(self.drop_one(message, "its receiver does not read"));
            }
        }
        queue.bytes.set(queue.bytes.get() + message.bytes().len());
        queue.messages.borrow_mut().push_back(message);
        queue.came.notify_one();
        Ok(())
    }

    fn has_room(&self, queue: &Queue, message: &Message) -> bool {
        let waiting = queue.messages.borrow().len();
        let bytes = queue.bytes.get() + message.bytes().len();
        waiting == 0 || waiting < self.limits.queue_messages && bytes <= self.limits.queue_bytes
    }

    fn drop_one(&self, message: Message, why: &'static str) -> Unwanted {
        let first = self.count(message.kind(), 1);
        Unwanted { message, why, first }
    }

    /// Whether these are the first ones of their kind.
    fn count(&self, kind: &str, count: u64) -> bool {
        let mut dropped = self.dropped.borrow_mut();
        if let Some(before) = dropped.get_mut(kind) {
            *before += count;
            return false;
        }
        let tell = dropped.len() < KINDS;
        if tell {
            dropped.insert(kind.to_string(), count);
        }
        tell
    }

    /// What nobody has opened an inbox for by now is dropped; returns each kind with the number of its messages.
    pub(super) fn booted(&self) -> Vec<(String, usize)> {
        self.booting.set(false);
        let mut unread = Vec::new();
        self.queues.borrow_mut().retain(|kind, queue| {
            let read = queue.readers.get() > 0;
            if !read {
                unread.push((kind.clone(), queue.messages.borrow().len()));
            }
            read
        });
        for (kind, count) in &unread {
            self.count(kind, *count as u64);
        }
        unread
    }

    /// Messages that nobody took so far, by kind.
    pub(super) fn dropped(&self) -> BTreeMap<String, u64> {
        self.dropped.borrow().clone()
    }

    /// Nothing comes any more.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.queues.borrow().values().for_each(|queue| queue.came.notify_waiters());
    }
}

#[cfg(test)]
mod tests {
    use super::super::MessageSender;
    use super::super::envelope::tests::letter;
    use super::*;

    fn message(size: usize) -> Message {
        Message::new(MessageSender::Primary, letter("a", size))
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test);
    }

    #[test]
    fn what_comes_before_the_inbox_is_kept_until_the_worker_is_ready() {
        run(async {
            let inboxes = Rc::new(Inboxes::new(MessageLimits::default()));
            inboxes.put(message(1)).await.expect("kept");
            inboxes.put(Message::new(MessageSender::Primary, letter("b", 1))).await.expect("kept");
            let mut inbox = inboxes.open("a");
            assert_eq!(inboxes.booted(), [("b".to_string(), 1)]);
            assert!(inbox.recv().await.is_some() && inbox.try_recv().is_none());
            drop(inbox);
            let unwanted = inboxes.put(message(1)).await.expect_err("nobody listens");
            assert!(unwanted.first);
            assert!(!inboxes.put(message(1)).await.expect_err("still nobody").first);
            assert_eq!(inboxes.dropped()["a"], 2);
        });
    }

    #[test]
    fn a_full_inbox_is_waited_for_once_and_not_for_ever() {
        run(async {
            let inboxes = Rc::new(Inboxes::new(MessageLimits::default().queue_bounds(1 << 20, 1)));
            let mut inbox = inboxes.open("a");
            inboxes.put(message(1)).await.expect("room");
            let begun = tokio::time::Instant::now();
            let unwanted = inboxes.put(message(1)).await.expect_err("full");
            assert_eq!(unwanted.why, "its receiver does not read");
            assert!(begun.elapsed() >= PATIENCE);
            // It is known now that nobody reads.
            // A timer of no time at all may still be a tick away.
            let at_once = tokio::time::timeout(PATIENCE / 2, inboxes.put(message(1))).await;
            assert!(at_once.expect("no wait").is_err());
            assert!(inbox.recv().await.is_some());
            inboxes.put(message(1)).await.expect("room again");
            inboxes.close();
            assert!(inbox.recv().await.is_some() && inbox.recv().await.is_none());
        });
    }
}
