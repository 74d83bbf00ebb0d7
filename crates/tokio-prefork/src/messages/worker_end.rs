//! The worker's end of its message channel, on tokio: the calls of the application, and tasks that read, write and return messages.
//!
//! The tasks run on the loop that created the end; the calls of the application may come from any thread. A message is written by the
//! call that sends it if nothing waits before it: then it arrives even if the process ends in the next moment. The writing task is
//! for what the socket does not take at once. The returning task sends back what nobody reads while the worker drains.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::assembler::EnvelopeAssembler;
use super::busy_poll::BusyPoll;
use super::channel_io::{
    FD_RETRY_INTERVAL, LARGE_PACKET_BYTES, ReadOutcome, WriteOutcome, read_packet, write_packets,
};
use super::inbox::{InboxRegistry, UndeliveredMessage};
use super::packet_frame::MAX_PACKET_BYTES;
use super::pending_requests::PendingRequests;
use super::send_queue::SendQueue;
use super::{
    Envelope, Inbox, Message, MessageClass, MessageError, MessageLimits, MessageRoute,
    RejectedEnvelope,
};
use super::{MessageAddress, MessageSender, Payload, ReplyTo};
use crate::isolated::{JOB_REPLY_KIND, PendingIsolatedJobs};
use crate::yield_now::yield_to_ready_tasks;
use prefork_os::async_fd::{register_readable_and_writable, wait_readable_busy_polling};
use prefork_supervisor::WorkerTag;

/// Packets read in a row before other tasks run.
const MAX_PACKETS_PER_READ: usize = 16;

/// The worker's end of its message channel. Created inside the worker's runtime.
#[derive(Debug)]
pub(crate) struct WorkerMessageEnd {
    tag: WorkerTag,
    limits: MessageLimits,
    /// `None` without a primary that takes messages.
    channel: Option<AsyncFd<OwnedFd>>,
    /// Changes only while `send_queue` is locked, so that no message is queued after the channel has closed.
    is_closed: AtomicBool,
    send_queue: Mutex<SendQueue>,
    /// Notified when there is something to send.
    data_queued: Notify,
    /// Notified when something was sent, and when the channel is closed.
    data_sent: Notify,
    /// Held by the first task that waits for room, so that waiting tasks are served in order.
    send_order: tokio::sync::Mutex<()>,
    /// Held while unread messages are returned, so that they keep their order.
    return_order: tokio::sync::Mutex<()>,
    /// How many messages are being returned.
    returning: AtomicUsize,
    /// Whether the primary sends nothing more.
    has_ended: AtomicBool,
    /// Notified when `has_ended` is set, and when the channel is closed.
    ended: Notify,
    inboxes: Arc<InboxRegistry>,
    requests: Arc<PendingRequests>,
    isolated_jobs: PendingIsolatedJobs,
}

impl WorkerMessageEnd {
    /// Registers the descriptor with the current runtime, and starts the tasks that read and write.
    pub(crate) fn start(
        tag: WorkerTag,
        fd: Option<OwnedFd>,
        limits: MessageLimits,
    ) -> io::Result<Arc<WorkerMessageEnd>> {
        let channel = fd.map(register_readable_and_writable).transpose()?;
        let end = Arc::new(WorkerMessageEnd {
            tag,
            limits,
            is_closed: AtomicBool::new(channel.is_none()),
            channel,
            send_queue: Mutex::new(SendQueue::new(limits)),
            data_queued: Notify::new(),
            data_sent: Notify::new(),
            send_order: tokio::sync::Mutex::const_new(()),
            return_order: tokio::sync::Mutex::const_new(()),
            returning: AtomicUsize::new(0),
            has_ended: AtomicBool::new(false),
            ended: Notify::new(),
            inboxes: Arc::new(InboxRegistry::new(limits)),
            requests: Arc::new(PendingRequests::new()),
            isolated_jobs: PendingIsolatedJobs::default(),
        });
        if !end.is_connected() {
            end.inboxes.close();
            end.isolated_jobs.close();
        } else {
            let [reads, writes, returns] = [&end; 3].map(Arc::clone);
            tokio::task::spawn_local(async move { reads.read_loop().await });
            tokio::task::spawn_local(async move { writes.write_loop().await });
            tokio::task::spawn_local(async move { returns.return_loop().await });
        }
        Ok(end)
    }

    /// Refuses early messages of kinds that the application has opened no inbox for.
    pub(crate) fn finish_boot(&self) {
        self.inboxes.finish_boot().into_iter().for_each(|undelivered| self.refuse(undelivered));
    }

    /// Opens an inbox of one kind, or of all kinds without one.
    pub(crate) fn open_inbox(&self, kind: Option<&str>) -> Inbox {
        self.inboxes.open_inbox(kind)
    }

    /// Returns messages that nobody reads to the primary, from now on.
    pub(crate) fn begin_drain(&self) {
        self.inboxes.begin_drain();
    }

    pub(crate) fn is_connected(&self) -> bool {
        !self.is_closed.load(Ordering::Acquire)
    }

    /// Returns the isolated jobs of this process that have no outcome yet.
    pub(crate) fn isolated_jobs(&self) -> &PendingIsolatedJobs {
        &self.isolated_jobs
    }

    pub(crate) fn dropped_counts(&self) -> BTreeMap<String, u64> {
        self.inboxes.dropped_counts()
    }

    pub(crate) fn late_replies(&self) -> u64 {
        self.requests.late_replies()
    }

    /// Sends without waiting: writes the message if no other one waits, else queues it. Returns the envelope on an error.
    pub(crate) fn try_send(&self, envelope: Envelope) -> Result<(), RejectedEnvelope> {
        let mut send_queue = self.lock_send_queue();
        let Some(channel) = self.channel.as_ref().filter(|_| self.is_connected()) else {
            return Err(Box::new((MessageError::Closed, envelope)));
        };
        let is_first = send_queue.is_empty();
        send_queue.push(envelope)?;
        if is_first && write_packets(channel.get_ref(), &mut send_queue).0 == WriteOutcome::Done {
            return Ok(());
        }
        drop(send_queue);
        self.data_queued.notify_one();
        Ok(())
    }

    /// Sends, and waits for room in the queue without limit. Waiting senders are served in order, so none starves.
    pub(crate) async fn send(&self, mut envelope: Envelope) -> Result<(), RejectedEnvelope> {
        let _first = self.send_order.lock().await;
        loop {
            let data_sent = self.data_sent.notified();
            envelope = match self.try_send(envelope) {
                Err(rejected) if rejected.0 == MessageError::Full => rejected.1,
                done => return done,
            };
            data_sent.await;
        }
    }

    /// Sends a request and waits for its reply, for `timeout` in total.
    pub(crate) async fn request(
        &self,
        envelope: Envelope,
        timeout: Duration,
    ) -> Result<Message, MessageError> {
        let mut request = self.requests.register(envelope.address);
        let kind = envelope.kind.clone();
        let envelope = Envelope { class: MessageClass::Request, id: request.id, ..envelope };
        let answered = async {
            self.send(envelope).await.map_err(|rejected| rejected.0)?;
            (&mut request.reply).await.map_err(|_| MessageError::Closed)?
        };
        let late = |_| MessageError::TimedOut(kind.as_str().to_string());
        tokio::time::timeout(timeout, answered).await.map_err(late)?
    }

    /// Waits until everything is written to the primary's socket, for up to `limit`.
    pub(crate) async fn flush(&self, limit: Duration) -> Result<(), MessageError> {
        let flushed = async {
            loop {
                let sent = self.data_sent.notified();
                match self.lock_send_queue().is_empty() {
                    _ if !self.is_connected() => return Err(MessageError::Closed),
                    true => return Ok(()),
                    false => {}
                }
                sent.await;
            }
        };
        let late =
            |_| MessageError::NotFlushed { messages: self.lock_send_queue().message_count() };
        tokio::time::timeout(limit, flushed).await.map_err(late)?
    }

    /// Returns all unread messages to the primary, and writes everything, for up to `limit`. Called before the worker exits.
    pub(crate) async fn leave(&self, limit: Duration) {
        self.inboxes.begin_leaving();
        let returned = async {
            // On an error the channel is closed, and there is nobody to return them to.
            let _ = self.send(Envelope::new_end(MessageClass::EndRequest)).await;
            loop {
                let ended = self.ended.notified();
                if self.has_ended.load(Ordering::Acquire) || !self.is_connected() {
                    break;
                }
                ended.await;
            }
            self.return_unread().await;
            // A closed channel has nothing to write.
            let _ = self.flush(limit).await;
        };
        if tokio::time::timeout(limit, returned).await.is_err() {
            let unread = self.returning.load(Ordering::Relaxed) + self.inboxes.take_unread().len();
            let unsent = self.lock_send_queue().message_count();
            log::warn!(
                "{} exits with messages that the primary did not take in time; unread={unread} unsent={unsent}",
                self.tag
            );
        }
    }

    /// Returns what nobody reads while the worker drains.
    async fn return_loop(&self) {
        while self.is_connected() {
            self.inboxes.wait_unread().await;
            self.return_unread().await;
        }
    }

    async fn return_unread(&self) {
        let _first = self.return_order.lock().await;
        let unread = self.inboxes.take_unread();
        self.returning.store(unread.len(), Ordering::Relaxed);
        for message in unread {
            let envelope = message.into_returned();
            // The sender of other messages has sent them to other workers too, or expects no more of this one.
            if envelope.delivery.route != MessageRoute::ThisWorkerOnly {
                // On an error the channel is closed.
                let _ = self.send(envelope).await;
            }
            self.returning.fetch_sub(1, Ordering::Relaxed);
        }
    }

    async fn read_loop(&self) {
        let mut buffer = vec![0; MAX_PACKET_BYTES];
        let mut assembler = EnvelopeAssembler::new(self.limits.max_envelope_bytes());
        let mut envelopes = VecDeque::new();
        let (mut packets, mut busy_poll, mut has_end) = (0, BusyPoll::default(), false);
        while let Some(channel) = &self.channel {
            let Ok(mut ready) = wait_readable_busy_polling(channel, busy_poll.deadline()).await
            else {
                break;
            };
            let read = ready.try_io(|fd| {
                match read_packet(fd.get_ref(), &mut buffer, &mut assembler, &mut envelopes) {
                    Ok(ReadOutcome::Empty) => Err(io::ErrorKind::WouldBlock.into()),
                    other => Ok(other),
                }
            });
            let length = match read {
                Ok(Ok(Ok(ReadOutcome::Packet(length)))) => {
                    busy_poll.message_arrived(Instant::now());
                    length
                }
                Ok(Ok(Err(reason))) => {
                    log::error!(
                        "{} closes its message channel: the primary broke the protocol; error={reason}",
                        self.tag
                    );
                    break;
                }
                Ok(_) => break,
                Err(_would_block) => continue,
            };
            for envelope in envelopes.drain(..) {
                match envelope.class {
                    MessageClass::EndOfMessages => has_end = true,
                    _ => self.dispatch(envelope).await,
                }
            }
            // A large message may still be on its way behind the mark.
            if has_end && !assembler.has_partial_envelope() {
                self.has_ended.store(true, Ordering::Release);
                self.ended.notify_waiters();
            }
            packets += 1;
            if packets % MAX_PACKETS_PER_READ == 0 {
                tokio::task::yield_now().await;
            } else if length < LARGE_PACKET_BYTES {
                // More data is unlikely. Tasks that waited for this message run, and send their replies, before the next read.
                yield_to_ready_tasks().await;
            }
        }
        self.close();
    }

    async fn dispatch(&self, envelope: Envelope) {
        let from = match envelope.address {
            MessageAddress::Worker(id) => MessageSender::Worker(id),
            _ => MessageSender::Primary,
        };
        if matches!(envelope.class, MessageClass::Reply | MessageClass::Refusal) {
            return self.requests.reply(from, envelope);
        }
        let message = Message::new(from, envelope);
        if from == MessageSender::Primary && message.kind() == JOB_REPLY_KIND {
            return self.isolated_jobs.handle_reply(message);
        }
        if let Err(undelivered) = self.inboxes.deliver(message).await {
            self.refuse(undelivered);
        }
    }

    /// Logs the first message of a kind without a receiver, and refuses a request.
    fn refuse(&self, undelivered: UndeliveredMessage) {
        let UndeliveredMessage { message, reason, is_first_of_kind } = undelivered;
        if is_first_of_kind {
            let kind = message.kind();
            log::warn!("{} drops messages; kind={kind:?} reason={reason:?}", self.tag);
        }
        if let Some(to) = message.reply_to() {
            // Without room for the refusal, the requester runs into its timeout.
            let _ = self.reply(
                &to,
                MessageClass::Refusal,
                Bytes::from_static(reason.as_bytes()).into(),
            );
        }
    }

    pub(crate) fn reply(
        &self,
        to: &ReplyTo,
        class: MessageClass,
        payload: Payload,
    ) -> Result<(), MessageError> {
        self.try_send(to.reply_envelope(class, payload)).map_err(|rejected| rejected.0)
    }

    async fn write_loop(&self) {
        let mut is_fd_refused = false;
        while let Some(channel) = &self.channel {
            if !self.is_connected() {
                return;
            }
            if self.lock_send_queue().is_empty() {
                self.data_queued.notified().await;
                continue;
            }
            let outcome = if is_fd_refused {
                tokio::time::sleep(FD_RETRY_INTERVAL).await;
                self.write_queued(channel.get_ref())
            } else {
                let Ok(mut ready) = channel.writable().await else { return };
                let written = ready.try_io(|fd| match self.write_queued(fd.get_ref()) {
                    WriteOutcome::SocketFull => Err(io::ErrorKind::WouldBlock.into()),
                    outcome => Ok(outcome),
                });
                match written {
                    Ok(Ok(outcome)) => outcome,
                    Ok(Err(_)) | Err(_) => WriteOutcome::SocketFull,
                }
            };
            is_fd_refused = outcome == WriteOutcome::FdRefused;
            // The reader handles the error, after it has read what the primary sent last.
            if outcome == WriteOutcome::PeerGone {
                return;
            }
        }
    }

    /// Writes what the socket accepts, and wakes those who wait for that.
    fn write_queued(&self, fd: &OwnedFd) -> WriteOutcome {
        let (outcome, has_written) = write_packets(fd, &mut self.lock_send_queue());
        if has_written {
            self.data_sent.notify_waiters();
        }
        outcome
    }

    /// Closes the end for the application: what is queued is dropped, and requests fail.
    pub(crate) fn close(&self) {
        let mut send_queue = self.lock_send_queue();
        self.is_closed.store(true, Ordering::Release);
        let unsent = send_queue.message_count();
        *send_queue = SendQueue::new(self.limits);
        drop(send_queue);
        if unsent > 0 {
            log::warn!("{} lost messages to the primary, which is gone; count={unsent}", self.tag);
        }
        self.data_sent.notify_waiters();
        self.ended.notify_waiters();
        self.data_queued.notify_one();
        self.inboxes.close();
        self.requests.close();
        self.isolated_jobs.close();
    }

    fn lock_send_queue(&self) -> MutexGuard<'_, SendQueue> {
        self.send_queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
