//! The application's messages in the primary: read, handed to its functions, sent. Between two waits, for a bounded
//! time; nothing of it passes the supervisor, as nothing is decided about it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Primary, PrimaryHandle};
use crate::identity::WorkerTag;
use crate::mail::{Class, Letter, MailHub, MailLimits, Message, ReplyTo, Sender, Turn, Wanted};
use crate::supervisor::Event;

/// How long functions of the application run, one after the other, before signals and words are looked at again.
const TURN: Duration = Duration::from_millis(10);

/// Kinds without a function that are told of; more are the mark of a worker that makes them up.
const UNKNOWN: usize = 64;

/// What the application does with messages of one kind.
pub(crate) type Handler = Box<dyn FnMut(&mut PrimaryHandle<'_>, WorkerTag, Message)>;

/// The channels, and what is done with what comes by them.
#[derive(Default)]
pub(crate) struct Mail {
    pub(super) hub: MailHub,
    handlers: BTreeMap<String, Handler>,
    /// Kinds without a function, and how many messages of them were dropped.
    unknown: BTreeMap<String, u64>,
    /// How many lost messages were told of.
    lost: u64,
}

impl Mail {
    pub(crate) fn on_message(&mut self, kind: &str, handler: Handler) {
        self.handlers.insert(kind.to_string(), handler);
    }

    pub(crate) fn limit(&mut self, limits: MailLimits) {
        self.hub = MailHub::new(limits);
    }
}

impl Primary {
    /// Takes in what came, where `ready` says so.
    pub(super) fn read_mail(&mut self, wanted: &[Wanted], ready: &[bool]) {
        for (worker, why) in self.mail.hub.read(wanted, ready) {
            self.queue.push_back(Event::Garbled { worker, why: format!("mail: {why}") });
        }
    }

    /// Handles what came, a letter of each worker in turn, for a bounded time.
    pub(super) fn deliver_mail(&mut self) {
        let begun = Instant::now();
        let mut now = begun;
        while now < begun + TURN {
            let supervisor = &self.supervisor;
            match self.mail.hub.next(now, &|id| supervisor.serves(id)) {
                Turn::Mine(from, letter) => self.handle_letter(from, letter),
                Turn::Moved => {}
                Turn::Idle => break,
            }
            now = Instant::now();
        }
        let lost = self.mail.hub.lost();
        if lost.checked_ilog2() != self.mail.lost.checked_ilog2() {
            self.journal.lost_mail(lost);
        }
        self.mail.lost = lost;
    }

    fn handle_letter(&mut self, from: WorkerTag, letter: Letter) {
        if matches!(letter.class, Class::Reply | Class::Refusal) {
            // The primary asks nobody: an answer is late, or made up.
            return;
        }
        let message = Message::new(Sender::Worker(from.id), letter);
        // Taken out while it runs, as it is lent the primary that it lives in.
        let Some((kind, mut handler)) = self.mail.handlers.remove_entry(message.kind()) else {
            return self.no_handler(from, &message);
        };
        let function = format_args!("the function for messages of kind {kind:?}");
        self.call_out(&function, &from, |handle| handler(handle, from, message));
        self.mail.handlers.insert(kind, handler);
    }

    fn no_handler(&mut self, from: WorkerTag, message: &Message) {
        let unknown = &mut self.mail.unknown;
        if let Some(count) = unknown.get_mut(message.kind()) {
            *count += 1;
        } else if unknown.len() < UNKNOWN {
            unknown.insert(message.kind().to_string(), 1);
            self.journal.no_handler(message.kind(), from);
        }
        if let Some(to) = message.reply_to() {
            self.refuse(&to, b"the primary has no function for this kind (Cluster::on_message)");
        }
    }

    /// Who asks and has no room for this hears nothing, which is what its deadline is for.
    fn refuse(&mut self, to: &ReplyTo, why: &'static [u8]) {
        let _ = self.mail.hub.reply(to, Class::Refusal, Bytes::from_static(why));
    }
}
