//! The worker's end of its message channel, on tokio: a task that reads, a task that writes, and the calls of the application.
//!
//! Both tasks run on the loop that created the end; the calls of the application may come from any thread.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::assembler::EnvelopeAssembler;
use super::busy_poll::BusyPoll;
use super::inbox::{InboxRegistry, UndeliveredMessage};
use super::packet_frame::MAX_PACKET_BYTES;
use super::pending_requests::PendingRequests;
use super::primary_end::{LARGE_PACKET_BYTES, attached};
use super::send_queue::SendQueue;
use super::{
    Envelope, Inbox, Message, MessageClass, MessageError, MessageLimits, RejectedEnvelope,
};
use super::{MessageAddress, MessageSender, Payload, ReplyTo};
use crate::yield_now::yield_to_ready_tasks;
use prefork_os::async_fd::{register_readable_and_writable, wait_readable_busy_polling};
use prefork_os::fd_passing::{ReceivedMessage, receive_message, send_message};
use prefork_supervisor::WorkerTag;

/// Packets read in a row before other tasks run.
const MAX_PACKETS_PER_READ: usize = 16;

/// How long to wait before a packet with a refused descriptor is sent again.
///
/// The kernel limits descriptors in flight, so the socket may be writable all the while.
const FD_RETRY_INTERVAL: Duration = Duration::from_millis(2);

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
    inboxes: Arc<InboxRegistry>,
    requests: Arc<PendingRequests>,
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
            inboxes: Arc::new(InboxRegistry::new(limits)),
            requests: Arc::new(PendingRequests::new()),
        });
        if !end.is_connected() {
            end.inboxes.close();
        } else {
            let (reads, writes) = (Arc::clone(&end), Arc::clone(&end));
            tokio::task::spawn_local(async move { reads.read_loop().await });
            tokio::task::spawn_local(async move { writes.write_loop().await });
        }
        Ok(end)
    }

    /// Drops early messages of kinds that the application has opened no inbox for.
    pub(crate) fn finish_boot(&self) {
        for (kind, count) in self.inboxes.finish_boot() {
            log::warn!(
                "{} dropped messages without an inbox; kind={kind:?} count={count}",
                self.tag
            );
        }
    }

    pub(crate) fn open_inbox(&self, kind: &str) -> Inbox {
        self.inboxes.open_inbox(kind)
    }

    pub(crate) fn is_connected(&self) -> bool {
        !self.is_closed.load(Ordering::Acquire)
    }

    pub(crate) fn dropped_counts(&self) -> BTreeMap<String, u64> {
        self.inboxes.dropped_counts()
    }

    pub(crate) fn late_replies(&self) -> u64 {
        self.requests.late_replies()
    }

    /// Sends without waiting. Returns the envelope on an error.
    pub(crate) fn try_send(&self, envelope: Envelope) -> Result<(), RejectedEnvelope> {
        let mut send_queue = self.lock_send_queue();
        if !self.is_connected() {
            return Err(Box::new((MessageError::Closed, envelope)));
        }
        send_queue.push(envelope)?;
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

    /// Waits until everything is sent, the channel is closed, or `timeout` has passed.
    pub(crate) async fn flush(&self, timeout: Duration) {
        let flushed = async {
            loop {
                let sent = self.data_sent.notified();
                if !self.is_connected() || self.lock_send_queue().is_empty() {
                    return;
                }
                sent.await;
            }
        };
        if tokio::time::timeout(timeout, flushed).await.is_err() {
            log::warn!(
                "{} exits with unsent messages, which the primary did not read in time",
                self.tag
            );
        }
    }

    async fn read_loop(&self) {
        let mut buffer = vec![0; MAX_PACKET_BYTES];
        let mut assembler = EnvelopeAssembler::new(self.limits.max_envelope_bytes());
        let mut envelopes = VecDeque::new();
        let (mut packets, mut busy_poll) = (0, BusyPoll::default());
        while let Some(channel) = &self.channel {
            let Ok(mut ready) = wait_readable_busy_polling(channel, busy_poll.deadline()).await
            else {
                break;
            };
            let mut length = 0;
            let got = match ready.try_io(|fd| receive_message(fd.get_ref(), &mut buffer)) {
                Ok(Ok(ReceivedMessage::Message(bytes, passed))) => {
                    busy_poll.message_arrived(Instant::now());
                    length = bytes;
                    assembler.accept_packet(&buffer[..length], attached(passed), &mut envelopes)
                }
                Ok(Ok(ReceivedMessage::Closed)) => break,
                Ok(Ok(ReceivedMessage::Truncated)) => {
                    Err(super::packet_frame::MessageProtocolError::PacketTooLarge)
                }
                Ok(Err(e)) => {
                    Err(super::packet_frame::MessageProtocolError::ChannelFailed(e.to_string()))
                }
                Err(_would_block) => continue,
            };
            if let Err(reason) = got {
                log::error!(
                    "{} closes its message channel: the primary broke the protocol; error={reason}",
                    self.tag
                );
                break;
            }
            for envelope in envelopes.drain(..) {
                self.dispatch(envelope).await;
            }
            packets += 1;
            if packets % MAX_PACKETS_PER_READ == 0 {
                tokio::task::yield_now().await;
            } else if length < LARGE_PACKET_BYTES {
                // More data is unlikely. Tasks that waited for this message run, and their replies are sent, before the next read.
                yield_to_ready_tasks().await;
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
        let Err(UndeliveredMessage { message, reason, is_first_of_kind }) =
            self.inboxes.deliver(Message::new(from, envelope)).await
        else {
            return;
        };
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
        // Whether the kernel refused the last packet, which has a descriptor.
        let mut fd_was_refused = false;
        while let Some(channel) = &self.channel {
            if !self.is_connected() {
                return;
            }
            if self.lock_send_queue().is_empty() {
                self.data_queued.notified().await;
                continue;
            }
            let ready = match fd_was_refused {
                true => tokio::time::timeout(FD_RETRY_INTERVAL, channel.writable()).await.ok(),
                false => Some(channel.writable().await),
            };
            let sent = match ready {
                Some(Ok(mut ready)) => match ready.try_io(|fd| self.send_packet(fd.get_ref())) {
                    Ok(sent) => sent,
                    Err(_would_block) => Err(io::ErrorKind::WouldBlock.into()),
                },
                Some(Err(_)) => return,
                None => self.send_packet(channel.get_ref()),
            };
            fd_was_refused = false;
            match sent {
                Ok(()) => self.data_sent.notify_waiters(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let mut send_queue = self.lock_send_queue();
                    fd_was_refused = send_queue
                        .current_packet()
                        .is_some_and(|packet| packet.connection().is_some());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The reader handles the error, after it has read what the primary sent last.
                Err(_) => return,
            }
        }
    }

    fn send_packet(&self, fd: &OwnedFd) -> io::Result<()> {
        let mut send_queue = self.lock_send_queue();
        if let Some(packet) = send_queue.current_packet() {
            send_message(fd, &packet.bytes, packet.connection())?;
            send_queue.packet_sent();
        }
        Ok(())
    }

    /// Closes the end for the application: what is queued is dropped, and requests fail.
    pub(crate) fn close(&self) {
        let mut send_queue = self.lock_send_queue();
        self.is_closed.store(true, Ordering::Release);
        *send_queue = SendQueue::new(self.limits);
        drop(send_queue);
        self.data_sent.notify_waiters();
        self.data_queued.notify_one();
        self.inboxes.close();
        self.requests.close();
    }

    fn lock_send_queue(&self) -> MutexGuard<'_, SendQueue> {
        self.send_queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
