//! The application's messages as a worker sends and receives them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Worker;
use super::accepted_stream::AcceptedStream;
use crate::messages::{
    Carried, Class, Inbox, IntoPayload, Letter, Message, MessageError, PassedConnection,
};
use crate::messages::{MessageTarget, Place, ReplyTo, SendConnectionError, letter};

/// A letter with nothing but a message.
fn plain(place: Place, kind: &str, payload: impl IntoPayload) -> Result<Letter, MessageError> {
    letter(place, kind, payload.into_payload()?, Carried::Nothing)
}

/// Messages. They arrive whole, and those of one kind in the order in which they were sent. What was sent may still be
/// lost: with a process that ends before it reads, and where a receiver does not read (see [`Inbox`]).
impl Worker {
    /// Sends a message to the primary, which handles it with what `Cluster::on_message` gave it. Waits while the queue
    /// is full, as long as it takes.
    ///
    /// # Errors
    /// [`MessageError::TooLarge`], [`MessageError::Closed`], [`MessageError::BadKind`] or [`MessageError::Codec`].
    pub async fn send(&self, kind: &str, payload: impl IntoPayload) -> Result<(), MessageError> {
        self.post(plain(Place::Primary, kind, payload)?).await
    }

    /// Sends a message to the primary without waiting.
    ///
    /// # Errors
    /// As [`Worker::send`], and [`MessageError::Full`].
    pub fn try_send(&self, kind: &str, payload: impl IntoPayload) -> Result<(), MessageError> {
        self.0.messages.try_send(plain(Place::Primary, kind, payload)?).map_err(|back| back.0)
    }

    /// Sends a message to another worker, through the primary: `Slot(0)`, or the id of one. Waits while the queue is
    /// full.
    ///
    /// # Errors
    /// As [`Worker::send`]. If there is no such worker the message is dropped: whoever needs to know asks, with
    /// [`Worker::request_to`].
    pub async fn send_to(
        &self,
        to: impl Into<MessageTarget>,
        kind: &str,
        payload: impl IntoPayload,
    ) -> Result<(), MessageError> {
        self.post(plain(to.into().into(), kind, payload)?).await
    }

    /// Sends a message to all other workers, through the primary. Waits while the queue is full.
    ///
    /// # Errors
    /// As [`Worker::send`].
    pub async fn broadcast(
        &self,
        kind: &str,
        payload: impl IntoPayload,
    ) -> Result<(), MessageError> {
        self.post(plain(Place::Everybody, kind, payload)?).await
    }

    /// Asks the primary, and waits for its answer (`PrimaryHandle::reply`) for up to `limit`. An answer that comes
    /// later is thrown away.
    ///
    /// # Errors
    /// [`MessageError::TimedOut`], [`MessageError::Refused`], and as [`Worker::send`].
    pub async fn request(
        &self,
        kind: &str,
        payload: impl IntoPayload,
        limit: Duration,
    ) -> Result<Message, MessageError> {
        self.0.messages.request(plain(Place::Primary, kind, payload)?, limit).await
    }

    /// Asks another worker, and waits for its answer ([`Worker::reply`]) for up to `limit`.
    ///
    /// # Errors
    /// As [`Worker::request`].
    pub async fn request_to(
        &self,
        to: impl Into<MessageTarget>,
        kind: &str,
        payload: impl IntoPayload,
        limit: Duration,
    ) -> Result<Message, MessageError> {
        self.0.messages.request(plain(to.into().into(), kind, payload)?, limit).await
    }

    /// Answers a request of the primary, or of another worker.
    ///
    /// # Errors
    /// As [`Worker::try_send`]. That nobody waits any more is no error, as nobody knows.
    pub fn reply(&self, to: &ReplyTo, payload: impl IntoPayload) -> Result<(), MessageError> {
        self.0.messages.reply(to, Class::Reply, payload.into_payload()?)
    }

    /// The messages of `kind` that come from now on. What comes before the worker is ready waits for this; afterwards
    /// messages that no inbox is open for are dropped, counted, and told of once for each kind.
    ///
    /// An inbox is bounded (see [`MessageLimits`](crate::MessageLimits)). While it is full nothing is read from the
    /// channel, for a second; then what comes for this kind is dropped until it is read again.
    pub fn open_inbox(&self, kind: &str) -> Inbox {
        self.0.messages.open(kind)
    }

    /// Sends a connection to the primary, with a message. Waits while the queue is full. It is closed here once the
    /// kernel has it; to keep it, send a clone.
    ///
    /// # Errors
    /// As [`Worker::send`], with the connection.
    pub async fn send_connection(
        &self,
        kind: &str,
        payload: impl IntoPayload,
        connection: impl Into<PassedConnection>,
    ) -> Result<(), SendConnectionError> {
        self.post_connection(Place::Primary, kind, payload, connection.into()).await
    }

    /// Sends a connection to another worker, through the primary.
    ///
    /// # Errors
    /// As [`Worker::send_connection`].
    pub async fn send_connection_to(
        &self,
        to: impl Into<MessageTarget>,
        kind: &str,
        payload: impl IntoPayload,
        connection: impl Into<PassedConnection>,
    ) -> Result<(), SendConnectionError> {
        self.post_connection(to.into().into(), kind, payload, connection.into()).await
    }

    /// Whether there is a channel for messages: not in the trial of an upgrade, nor in a worker whose primary is gone
    /// or has become another image.
    pub fn has_message_channel(&self) -> bool {
        self.0.messages.is_connected()
    }

    /// Messages to this worker that were dropped so far, by kind.
    pub fn dropped_messages(&self) -> BTreeMap<String, u64> {
        self.0.messages.dropped()
    }

    /// Answers that came after their request had been given up, so far.
    pub fn late_replies(&self) -> u64 {
        self.0.messages.late_replies()
    }

    async fn post(&self, letter: Letter) -> Result<(), MessageError> {
        self.0.messages.send(letter).await.map_err(|back| back.0)
    }

    async fn post_connection(
        &self,
        place: Place,
        kind: &str,
        payload: impl IntoPayload,
        connection: PassedConnection,
    ) -> Result<(), SendConnectionError> {
        match plain(place, kind, payload) {
            Ok(letter) => {
                let letter = Letter { carried: Carried::Here(connection.0), ..letter };
                self.0.messages.send(letter).await.map_err(|back| SendConnectionError::new(*back))
            }
            Err(error) => Err(SendConnectionError::early(error, connection)),
        }
    }
}

impl TryFrom<AcceptedStream> for PassedConnection {
    type Error = std::io::Error;

    /// Takes the connection out of this worker's event loop.
    fn try_from(stream: AcceptedStream) -> std::io::Result<PassedConnection> {
        stream.into_fd().map(PassedConnection)
    }
}

impl TryFrom<PassedConnection> for AcceptedStream {
    type Error = std::io::Error;

    /// Registers the connection with this worker's event loop; an error if it is no TCP or Unix stream.
    fn try_from(connection: PassedConnection) -> std::io::Result<AcceptedStream> {
        let unix = prefork_os::socket::is_unix_stream(&connection)?;
        prefork_os::fd::set_nonblocking(&connection)?;
        AcceptedStream::new(connection.0, unix)
    }
}
