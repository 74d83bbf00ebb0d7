//! The application's messages in the primary: read from the workers, handed to the application's functions, answered.
//!
//! The functions run between two waits of the primary, for a bounded time. The supervisor takes no part in it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::pending_requests::PendingRequests;
use super::{Primary, PrimaryHandle};
use crate::messages::{
    BusyPoll, Envelope, Message, MessageClass, MessageError, MessageLimits, MessagePollToken,
    MessageSender, PrimaryMessageEnd, ReplyTo, RouterStep,
};
use prefork_supervisor::{Event, WorkerId, WorkerTag};

/// How long message handlers run in a row before the primary turns to its other events.
const HANDLER_TIME_BUDGET: Duration = Duration::from_millis(10);

/// How long the last messages are handled before the primary ends.
const LAST_MESSAGES_TIME_BUDGET: Duration = Duration::from_secs(1);

/// How often lost messages are logged.
const LOSS_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How many kinds without a handler are logged and counted; a worker that sends more makes them up.
const MAX_UNKNOWN_KINDS: usize = 64;

/// A function of the application that receives messages of one kind.
pub(crate) type MessageHandler = Box<dyn FnMut(&mut PrimaryHandle<'_>, WorkerTag, Message)>;

/// A function of the application that receives the answer to a request of the primary, or the reason why there is none.
pub(super) type ReplyCallback =
    Box<dyn FnOnce(&mut PrimaryHandle<'_>, Result<Message, MessageError>)>;

/// The message channels to all workers, and the application's handlers.
#[derive(Default)]
pub(crate) struct AppMessages {
    pub(super) primary_end: PrimaryMessageEnd,
    pub(super) busy_poll: BusyPoll,
    handlers: BTreeMap<String, MessageHandler>,
    /// Receives the messages of kinds without a handler of their own.
    any_handler: Option<MessageHandler>,
    /// Kinds without a handler, and how many messages of each were dropped.
    unknown_kinds: BTreeMap<String, u64>,
    /// Requests of the primary itself.
    pub(super) requests: PendingRequests<ReplyCallback>,
    /// When lost messages were last reported in the log.
    last_loss_report: Option<Instant>,
}

impl AppMessages {
    /// Registers the handler for messages of `kind`, in place of an earlier one.
    pub(crate) fn on_message(&mut self, kind: &str, handler: MessageHandler) {
        self.handlers.insert(kind.to_string(), handler);
    }

    /// Registers the handler for messages of kinds without one of their own.
    pub(crate) fn on_any_message(&mut self, handler: MessageHandler) {
        self.any_handler = Some(handler);
    }

    /// Adds a program that sends and receives messages like a worker; `fd` is the primary's end of its channel.
    pub(crate) fn add_program(&mut self, tag: WorkerTag, fd: OwnedFd) {
        self.primary_end.add(tag, fd);
    }

    pub(crate) fn set_limits(&mut self, limits: MessageLimits) {
        self.primary_end = PrimaryMessageEnd::new(limits);
    }

    /// Reads the channels that are ready. Returns an event for each worker that broke the protocol.
    pub(super) fn read_ready(&mut self, ready: &[MessagePollToken]) -> Vec<Event> {
        if ready.iter().any(|one| one.is_read_token()) {
            self.busy_poll.message_arrived(Instant::now());
        }
        let broken = self.primary_end.read(ready).into_iter().map(|(worker, error)| {
            Event::ProtocolError { worker, reason: format!("message channel: {error}") }
        });
        broken.collect()
    }

    /// Answers a request with a refusal. A receiver without room does not get it and times out instead.
    fn refuse(&mut self, to: &ReplyTo, reason: &'static [u8]) {
        let _ =
            self.primary_end.reply(to, MessageClass::Refusal, Bytes::from_static(reason).into());
    }
}

impl Primary {
    /// Calls the handlers of received messages, one message of each worker in turn, within a time budget.
    pub(super) fn deliver_messages(&mut self) {
        let mut now = Instant::now();
        let deadline = now + HANDLER_TIME_BUDGET;
        self.deliver_held_messages(now);
        while now < deadline {
            let supervisor = &self.supervisor;
            match self.messages.primary_end.route_next(now, &|id| supervisor.is_serving(id)) {
                RouterStep::ForPrimary(from, envelope) => self.handle_message(from, envelope),
                RouterStep::Forwarded => {}
                RouterStep::Idle => break,
            }
            now = Instant::now();
        }
        // Messages that a worker has just returned.
        self.deliver_held_messages(now);
        self.end_failed_requests(now, deadline);
        self.report_lost_messages(now);
    }

    /// Delivers messages that waited for the next worker of their slot.
    pub(super) fn deliver_held_messages(&mut self, now: Instant) {
        let AppMessages { primary_end, requests, .. } = &mut self.messages;
        if !primary_end.has_held_messages() {
            return;
        }
        let supervisor = &self.supervisor;
        primary_end.deliver_held(now, &|id| supervisor.is_serving(id), &|slot| {
            supervisor.is_worker_expected(slot)
        });
        for (id, worker) in primary_end.take_moved_requests() {
            requests.move_to(id, worker);
        }
    }

    /// Logs lost messages by kind and reason, at most once a second.
    fn report_lost_messages(&mut self, now: Instant) {
        let AppMessages { primary_end, last_loss_report, .. } = &mut self.messages;
        let is_due = last_loss_report.is_none_or(|last| now >= last + LOSS_REPORT_INTERVAL);
        if primary_end.has_loss_report() && is_due {
            *last_loss_report = Some(now);
            let total = primary_end.lost_count();
            for loss in primary_end.take_loss_reports() {
                self.event_log.log_lost_messages(&loss, total);
            }
        }
    }

    /// Handles the last messages of exited workers before the primary ends, and reports those without a receiver.
    pub(super) fn finish_messages(&mut self) {
        let deadline = Instant::now() + LAST_MESSAGES_TIME_BUDGET;
        while self.messages.primary_end.has_work() && Instant::now() < deadline {
            self.deliver_messages();
        }
        let now = Instant::now();
        self.deliver_held_messages(now);
        self.messages.last_loss_report = None;
        self.report_lost_messages(now);
    }

    fn handle_message(&mut self, from: WorkerTag, envelope: Envelope) {
        if matches!(envelope.class, MessageClass::Reply | MessageClass::Refusal) {
            return self.handle_reply(from.id, envelope);
        }
        let message = Message::new(MessageSender::Worker(from.id), envelope);
        // The handler is removed while it runs, because it borrows the primary that owns it.
        if let Some((kind, mut handler)) = self.messages.handlers.remove_entry(message.kind()) {
            let function = format_args!("the function for messages of kind {kind:?}");
            self.call_application(&function, &from, |handle| handler(handle, from, message));
            self.messages.handlers.insert(kind, handler);
        } else if let Some(mut handler) = self.messages.any_handler.take() {
            let function = format!("the function for all messages, at kind {:?}", message.kind());
            self.call_application(&function, &from, |handle| handler(handle, from, message));
            self.messages.any_handler = Some(handler);
        } else {
            self.drop_unknown_kind(from, &message);
        }
    }

    /// Ends the request that a reply belongs to. A late or unsolicited reply is dropped.
    fn handle_reply(&mut self, from: WorkerId, envelope: Envelope) {
        let Some(callback) = self.messages.requests.take_answered(from, envelope.id) else {
            return;
        };
        let reply = match envelope.class {
            MessageClass::Refusal => Err(envelope.refusal_error()),
            _ => Ok(Message::new(MessageSender::Worker(from), envelope)),
        };
        self.call_reply_callback(from, callback, reply);
    }

    /// Ends requests that cannot be answered any more, until `limit`. The rest follows after the next wait, which is
    /// short as their deadlines have passed.
    fn end_failed_requests(&mut self, now: Instant, limit: Instant) {
        loop {
            let AppMessages { primary_end, requests, .. } = &mut self.messages;
            let Some((worker, callback, error)) =
                requests.take_failed(now, |id| primary_end.has_pending(id))
            else {
                return;
            };
            self.call_reply_callback(worker, callback, Err(error));
            if Instant::now() >= limit {
                return;
            }
        }
    }

    fn call_reply_callback(
        &mut self,
        worker: WorkerId,
        callback: ReplyCallback,
        reply: Result<Message, MessageError>,
    ) {
        let occasion = format_args!("the reply of worker={worker}");
        self.call_application(&"the function for a reply", &occasion, |handle| {
            callback(handle, reply);
        });
    }

    fn drop_unknown_kind(&mut self, from: WorkerTag, message: &Message) {
        let unknown = &mut self.messages.unknown_kinds;
        if let Some(count) = unknown.get_mut(message.kind()) {
            *count += 1;
        } else if unknown.len() < MAX_UNKNOWN_KINDS {
            unknown.insert(message.kind().to_string(), 1);
            self.event_log.log_missing_message_handler(message.kind(), from);
        }
        if let Some(to) = message.reply_to() {
            let reason = b"the primary has no function for this kind (Cluster::on_message)";
            self.messages.refuse(&to, reason);
        }
    }
}
