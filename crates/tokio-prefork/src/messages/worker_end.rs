//! The worker's end, on tokio: a task that reads, a task that writes, and what the application calls between them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, Notify};

use super::assembler::Assembler;
use super::busy_poll::BusyPoll;
use super::inbox::{Inboxes, Unwanted};
use super::packet_frame::PACKET;
use super::pending_requests::Requests;
use super::primary_end::{FULL, carried};
use super::send_queue::Outbox;
use super::{Back, Class, Inbox, Letter, Message, MessageError, MessageLimits};
use super::{MessageSender, Place, ReplyTo};
use crate::yield_now::yield_to_ready_tasks;
use prefork_os::async_fd::{register_readable_and_writable, wait_readable_busy_polling};
use prefork_os::fd_passing::{ReceivedMessage, receive_message, send_message};
use prefork_supervisor::WorkerTag;

/// Packets read in a row before other tasks have their turn.
const PACKETS_A_TURN: usize = 16;

/// When a packet with a connection is tried again that the kernel did not take: the socket may be writable all the
/// while, as there is a limit on descriptors under way, too.
const CROWDED: Duration = Duration::from_millis(2);

/// The worker's end of its mail channel. Made inside the worker's runtime.
#[derive(Debug)]
pub(crate) struct MailEnd {
    tag: WorkerTag,
    limits: MessageLimits,
    /// `None` where there is nobody to write to.
    channel: Option<AsyncFd<OwnedFd>>,
    closed: Cell<bool>,
    out: RefCell<Outbox>,
    /// Rung when there is something to send.
    work: Notify,
    /// Rung when something was sent, and when nothing can be any more.
    room: Notify,
    /// Held by the first of those who wait for room.
    line: Mutex<()>,
    inboxes: Rc<Inboxes>,
    requests: Rc<Requests>,
}

impl MailEnd {
    /// Registers the descriptor with the current runtime, and begins to read and to write.
    pub(crate) fn start(
        tag: WorkerTag,
        fd: Option<OwnedFd>,
        limits: MessageLimits,
    ) -> io::Result<Rc<MailEnd>> {
        let channel = fd.map(register_readable_and_writable).transpose()?;
        let end = Rc::new(MailEnd {
            tag,
            limits,
            closed: Cell::new(channel.is_none()),
            channel,
            out: RefCell::new(Outbox::new(limits)),
            work: Notify::new(),
            room: Notify::new(),
            line: Mutex::const_new(()),
            inboxes: Rc::new(Inboxes::new(limits)),
            requests: Rc::new(Requests::new()),
        });
        if end.closed.get() {
            end.inboxes.close();
        } else {
            let (reads, writes) = (Rc::clone(&end), Rc::clone(&end));
            tokio::task::spawn_local(async move { reads.read().await });
            tokio::task::spawn_local(async move { writes.write().await });
        }
        Ok(end)
    }

    /// The application has opened its inboxes: what has come for others is dropped.
    pub(crate) fn booted(&self) {
        for (kind, count) in self.inboxes.booted() {
            log::warn!(
                "{} dropped {count} messages of kind {kind:?}: nobody receives it",
                self.tag
            );
        }
    }

    pub(crate) fn open(&self, kind: &str) -> Inbox {
        self.inboxes.open(kind)
    }

    pub(crate) fn is_connected(&self) -> bool {
        !self.closed.get()
    }

    pub(crate) fn dropped(&self) -> BTreeMap<String, u64> {
        self.inboxes.dropped()
    }

    pub(crate) fn late_replies(&self) -> u64 {
        self.requests.late()
    }

    /// Sends without waiting; on an error the letter comes back.
    pub(crate) fn try_send(&self, letter: Letter) -> Result<(), Back> {
        if self.closed.get() {
            return Err(Box::new((MessageError::Closed, letter)));
        }
        self.out.borrow_mut().push(letter)?;
        self.work.notify_one();
        Ok(())
    }

    /// Sends, waiting for room in the queue as long as it takes. Those who wait stand in line, or one that always sends
    /// would keep the others waiting for ever.
    pub(crate) async fn send(&self, mut letter: Letter) -> Result<(), Back> {
        let _first = self.line.lock().await;
        loop {
            let room = self.room.notified();
            letter = match self.try_send(letter) {
                Err(back) if back.0 == MessageError::Full => back.1,
                done => return done,
            };
            room.await;
        }
    }

    /// Asks and waits for the answer, for `limit` in all.
    pub(crate) async fn request(
        &self,
        letter: Letter,
        limit: Duration,
    ) -> Result<Message, MessageError> {
        let mut asked = self.requests.ask(letter.place);
        let kind = letter.kind.clone();
        let letter = Letter { class: Class::Request, id: asked.id, ..letter };
        let answered = async {
            self.send(letter).await.map_err(|back| back.0)?;
            (&mut asked.answer).await.map_err(|_| MessageError::Closed)?
        };
        let late = |_| MessageError::TimedOut(kind.as_str().to_string());
        tokio::time::timeout(limit, answered).await.map_err(late)?
    }

    /// Waits until all is sent, or cannot be any more, or `limit` is over.
    pub(crate) async fn flush(&self, limit: Duration) {
        let flushed = async {
            loop {
                let sent = self.room.notified();
                if self.closed.get() || self.out.borrow().is_empty() {
                    return;
                }
                sent.await;
            }
        };
        if tokio::time::timeout(limit, flushed).await.is_err() {
            log::warn!("{} leaves with messages that the primary did not take", self.tag);
        }
    }

    async fn read(&self) {
        let mut buffer = vec![0; PACKET];
        let mut assembler = Assembler::new(self.limits.letter());
        let mut letters = VecDeque::new();
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
                    assembler.take(&buffer[..length], carried(passed), &mut letters)
                }
                Ok(Ok(ReceivedMessage::Closed)) => break,
                Ok(Ok(ReceivedMessage::Truncated)) => Err(super::packet_frame::Garbled::Packet),
                Ok(Err(e)) => Err(super::packet_frame::Garbled::Channel(e.to_string())),
                Err(_would_block) => continue,
            };
            if let Err(why) = got {
                log::error!("{} closes its mail: the primary sent {why}", self.tag);
                break;
            }
            for letter in letters.drain(..) {
                self.sort(letter).await;
            }
            packets += 1;
            if packets % PACKETS_A_TURN == 0 {
                tokio::task::yield_now().await;
            } else if length < FULL {
                // Hardly any more is there: whoever waited for this goes on, and what it says is sent, before we look.
                yield_to_ready_tasks().await;
                yield_to_ready_tasks().await;
            }
        }
        self.close();
    }

    async fn sort(&self, letter: Letter) {
        let from = match letter.place {
            Place::Worker(id) => MessageSender::Worker(id),
            _ => MessageSender::Primary,
        };
        if matches!(letter.class, Class::Reply | Class::Refusal) {
            return self.requests.answer(from, letter);
        }
        let Err(Unwanted { message, why, first }) =
            self.inboxes.put(Message::new(from, letter)).await
        else {
            return;
        };
        if first {
            let kind = message.kind();
            log::warn!("{} drops messages of kind {kind:?}: {why}", self.tag);
        }
        if let Some(to) = message.reply_to() {
            // Who asks hears nothing if there is no room, which is what its deadline is for.
            let _ = self.reply(&to, Class::Refusal, why.as_bytes().to_vec().into());
        }
    }

    pub(crate) fn reply(
        &self,
        to: &ReplyTo,
        class: Class,
        payload: bytes::Bytes,
    ) -> Result<(), MessageError> {
        self.try_send(to.letter(class, payload)).map_err(|back| back.0)
    }

    async fn write(&self) {
        // The last packet has a connection and was refused.
        let mut crowded = false;
        while let Some(channel) = &self.channel {
            if self.closed.get() {
                return;
            }
            if self.out.borrow().is_empty() {
                self.work.notified().await;
                continue;
            }
            let ready = match crowded {
                true => tokio::time::timeout(CROWDED, channel.writable()).await.ok(),
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
            crowded = false;
            match sent {
                Ok(()) => self.room.notify_waiters(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let mut out = self.out.borrow_mut();
                    crowded = out.packet().is_some_and(|packet| packet.connection().is_some());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The reader finds out what it means, after what the primary said last.
                Err(_) => return,
            }
        }
    }

    fn send_packet(&self, fd: &OwnedFd) -> io::Result<()> {
        let mut out = self.out.borrow_mut();
        if let Some(packet) = out.packet() {
            send_message(fd, &packet.bytes, packet.connection())?;
            out.sent();
        }
        Ok(())
    }

    fn close(&self) {
        self.closed.set(true);
        *self.out.borrow_mut() = Outbox::new(self.limits);
        self.room.notify_waiters();
        self.work.notify_one();
        self.inboxes.close();
        self.requests.close();
    }
}
