//! Messages and connections as the application's functions in the primary send them.

use std::time::{Duration, Instant};

use super::PrimaryHandle;
use crate::messages::{Back, Letter, letter};
use crate::messages::{Carried, Class, IntoPayload, Message, MessageError, PassedConnection};
use crate::messages::{MessageTarget, Place, ReplyTo, SendConnectionError};
use prefork_supervisor::WorkerId;

/// Messages. Nothing here waits: what cannot be done at once is an error.
impl PrimaryHandle<'_> {
    /// Sends a message to one worker.
    ///
    /// # Errors
    /// [`MessageError::Full`] if the worker has not read what waits for it, and the others as they say. Whether it arrives
    /// is another matter: a worker can end before it reads.
    pub fn send(
        &mut self,
        to: impl Into<MessageTarget>,
        kind: &str,
        payload: impl IntoPayload,
    ) -> Result<(), MessageError> {
        let letter = letter(Place::Primary, kind, payload.into_payload()?, Carried::Nothing)?;
        self.post(to.into(), letter).map(drop).map_err(|back| back.0)
    }

    /// Asks a worker, which answers with [`Worker::reply`](crate::Worker::reply). As nothing waits in the primary, what
    /// is to be done with the answer is a function. It is called once, under the rules of
    /// [`Cluster::on_event`](crate::Cluster::on_event):
    ///
    /// - with the answer;
    /// - with [`MessageError::Refused`] if nobody receives this kind there, or the worker says so;
    /// - with [`MessageError::TimedOut`] when `limit` has passed. An answer that comes later is thrown away;
    /// - with [`MessageError::Closed`] if the worker ends before.
    ///
    /// It is not called when the primary itself ends before, or becomes another image by an upgrade.
    ///
    /// # Errors
    /// As [`PrimaryHandle::send`], and [`MessageError::Full`] too if 65536 requests wait for answers. Then `then` is not
    /// called.
    pub fn request(
        &mut self,
        to: impl Into<MessageTarget>,
        kind: &str,
        payload: impl IntoPayload,
        limit: Duration,
        then: impl FnOnce(&mut PrimaryHandle<'_>, Result<Message, MessageError>) + 'static,
    ) -> Result<(), MessageError> {
        let letter = letter(Place::Primary, kind, payload.into_payload()?, Carried::Nothing)?;
        if !self.primary.messages.asked.has_room() {
            return Err(MessageError::Full);
        }
        let now = Instant::now();
        // A limit that no clock can reach is a day: a request must end.
        let until = now.checked_add(limit).unwrap_or(now + Duration::from_secs(86_400));
        let id = self.primary.messages.asked.next_id();
        let letter = Letter { class: Class::Request, id, ..letter };
        let worker = self.post(to.into(), letter).map_err(|back| back.0)?;
        self.primary.messages.asked.enter(worker, kind, until, Box::new(then));
        Ok(())
    }

    /// Answers that came after their request had ended, so far, and answers to nothing.
    pub fn late_replies(&self) -> u64 {
        self.primary.messages.asked.late()
    }

    /// Sends a message to every worker, also to those that boot or drain; returns to how many. Those whose queue is
    /// full do not get it, which is counted and logged.
    ///
    /// # Errors
    /// Nobody gets it: it is too large, its kind is no kind, or it cannot be encoded.
    pub fn broadcast(
        &mut self,
        kind: &str,
        payload: impl IntoPayload,
    ) -> Result<usize, MessageError> {
        let letter = letter(Place::Primary, kind, payload.into_payload()?, Carried::Nothing)?;
        self.primary.messages.hub.broadcast(&letter).map(|(sent, _)| sent)
    }

    /// Answers a request, now or in a later call.
    ///
    /// # Errors
    /// As [`PrimaryHandle::send`]. That nobody waits any more is no error, as nobody knows.
    pub fn reply(&mut self, to: &ReplyTo, payload: impl IntoPayload) -> Result<(), MessageError> {
        self.primary.messages.hub.reply(to, Class::Reply, payload.into_payload()?)
    }

    /// Tells who asked that there will be no answer, and why.
    ///
    /// # Errors
    /// As [`PrimaryHandle::reply`].
    pub fn refuse(&mut self, to: &ReplyTo, why: &str) -> Result<(), MessageError> {
        self.primary.messages.hub.reply(to, Class::Refusal, why.as_bytes().to_vec().into())
    }

    /// Sends a connection with a message. It is closed here once the kernel has it; to keep it, send a clone.
    ///
    /// # Errors
    /// As [`PrimaryHandle::send`], with the connection.
    pub fn send_connection(
        &mut self,
        to: impl Into<MessageTarget>,
        kind: &str,
        payload: impl IntoPayload,
        connection: impl Into<PassedConnection>,
    ) -> Result<(), SendConnectionError> {
        let connection = connection.into();
        let letter = match payload
            .into_payload()
            .and_then(|payload| letter(Place::Primary, kind, payload, Carried::Nothing))
        {
            Ok(letter) => letter,
            Err(error) => return Err(SendConnectionError::early(error, connection)),
        };
        let letter = Letter { carried: Carried::Here(connection.0), ..letter };
        self.post(to.into(), letter).map(drop).map_err(|back| SendConnectionError::new(*back))
    }

    /// To whom it went.
    fn post(&mut self, to: MessageTarget, letter: Letter) -> Result<WorkerId, Back> {
        let supervisor = &self.primary.supervisor;
        self.primary.messages.hub.send(to.into(), letter, &|id| supervisor.is_serving(id))
    }
}
