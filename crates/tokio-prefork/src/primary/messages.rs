//! The application's messages in the primary: read, handed to its functions, sent. Between two waits, for a bounded
//! time; nothing of it passes the supervisor, as nothing is decided about it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::pending_requests::Asked;
use super::{Primary, PrimaryHandle};
use crate::messages::{
    BusyPoll, Class, Letter, MailHub, Message, MessageError, MessageLimits, MessageSender, ReplyTo,
    Turn, Wanted,
};
use prefork_supervisor::Event;
use prefork_supervisor::{WorkerId, WorkerTag};

/// How long functions of the application run, one after the other, before signals and words are looked at again.
const TURN: Duration = Duration::from_millis(10);

/// Kinds without a function that are told of; more are the mark of a worker that makes them up.
const UNKNOWN: usize = 64;

/// What the application does with messages of one kind.
pub(crate) type Handler = Box<dyn FnMut(&mut PrimaryHandle<'_>, WorkerTag, Message)>;

/// What the application does when a request of the primary has ended.
pub(super) type Answered = Box<dyn FnOnce(&mut PrimaryHandle<'_>, Result<Message, MessageError>)>;

/// The channels, and what is done with what comes by them.
#[derive(Default)]
pub(crate) struct Mail {
    pub(super) hub: MailHub,
    pub(super) busy_poll: BusyPoll,
    handlers: BTreeMap<String, Handler>,
    /// Kinds without a function, and how many messages of them were dropped.
    unknown: BTreeMap<String, u64>,
    /// What the primary itself has asked.
    pub(super) asked: Asked<Answered>,
    /// How many lost messages were told of.
    lost: u64,
}

impl Mail {
    pub(crate) fn on_message(&mut self, kind: &str, handler: Handler) {
        self.handlers.insert(kind.to_string(), handler);
    }

    pub(crate) fn limit(&mut self, limits: MessageLimits) {
        self.hub = MailHub::new(limits);
    }

    /// When a request of the primary ends at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.asked.deadline()
    }
}

impl Primary {
    /// Takes in what came, where `ready` says so.
    pub(super) fn read_mail(&mut self, wanted: &[Wanted], ready: &[bool]) {
        if wanted.iter().zip(ready).any(|(want, ready)| *ready && want.is_to_read()) {
            self.messages.busy_poll.message_arrived(Instant::now());
        }
        for (worker, why) in self.messages.hub.read(wanted, ready) {
            self.pending_events
                .push_back(Event::ProtocolError { worker, reason: format!("mail: {why}") });
        }
    }

    /// Handles what came, a letter of each worker in turn, for a bounded time.
    pub(super) fn deliver_mail(&mut self) {
        let begun = Instant::now();
        let mut now = begun;
        while now < begun + TURN {
            let supervisor = &self.supervisor;
            match self.messages.hub.next(now, &|id| supervisor.is_serving(id)) {
                Turn::Mine(from, letter) => self.handle_letter(from, letter),
                Turn::Moved => {}
                Turn::Idle => break,
            }
            now = Instant::now();
        }
        self.end_requests(now, begun + TURN);
        let lost = self.messages.hub.lost();
        if lost.checked_ilog2() != self.messages.lost.checked_ilog2() {
            self.event_log.lost_mail(lost);
        }
        self.messages.lost = lost;
    }

    fn handle_letter(&mut self, from: WorkerTag, letter: Letter) {
        if matches!(letter.class, Class::Reply | Class::Refusal) {
            return self.handle_answer(from.id, letter);
        }
        let message = Message::new(MessageSender::Worker(from.id), letter);
        // Taken out while it runs, as it is lent the primary that it lives in.
        let Some((kind, mut handler)) = self.messages.handlers.remove_entry(message.kind()) else {
            return self.no_handler(from, &message);
        };
        let function = format_args!("the function for messages of kind {kind:?}");
        self.call_out(&function, &from, |handle| handler(handle, from, message));
        self.messages.handlers.insert(kind, handler);
    }

    /// An answer to a request of the primary. One that is late, or made up, is thrown away.
    fn handle_answer(&mut self, from: WorkerId, letter: Letter) {
        let Some(then) = self.messages.asked.answered(from, letter.id) else { return };
        let answer = match letter.class {
            Class::Refusal => {
                Err(MessageError::Refused(String::from_utf8_lossy(&letter.payload).into_owned()))
            }
            _ => Ok(Message::new(MessageSender::Worker(from), letter)),
        };
        self.end_request(from, then, answer);
    }

    /// Ends the requests that will not be answered any more. What is left when `limit` has passed ends the next time,
    /// which is at once, as their deadlines have passed.
    fn end_requests(&mut self, now: Instant, limit: Instant) {
        loop {
            let hub = &self.messages.hub;
            let Some((worker, then, why)) = self.messages.asked.failed(now, |id| hub.knows(id))
            else {
                return;
            };
            self.end_request(worker, then, Err(why));
            if Instant::now() >= limit {
                return;
            }
        }
    }

    fn end_request(&mut self, of: WorkerId, then: Answered, answer: Result<Message, MessageError>) {
        let at = format_args!("the answer of worker {of}");
        self.call_out(&"what waits for an answer", &at, |handle| then(handle, answer));
    }

    fn no_handler(&mut self, from: WorkerTag, message: &Message) {
        let unknown = &mut self.messages.unknown;
        if let Some(count) = unknown.get_mut(message.kind()) {
            *count += 1;
        } else if unknown.len() < UNKNOWN {
            unknown.insert(message.kind().to_string(), 1);
            self.event_log.no_handler(message.kind(), from);
        }
        if let Some(to) = message.reply_to() {
            self.refuse(&to, b"the primary has no function for this kind (Cluster::on_message)");
        }
    }

    /// Who asks and has no room for this hears nothing, which is what its deadline is for.
    fn refuse(&mut self, to: &ReplyTo, why: &'static [u8]) {
        let _ = self.messages.hub.reply(to, Class::Refusal, Bytes::from_static(why));
    }
}
