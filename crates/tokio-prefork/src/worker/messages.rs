//! The methods of `Worker` that send and receive the application's messages.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Worker;
use super::accepted_stream::AcceptedStream;
use super::socket_stream::SocketStream;
use crate::client::ConnectionInfo;
use crate::messages::{
    AttachedConnection, Envelope, Inbox, IntoPayload, Message, MessageClass, MessageError,
    PassedConnection,
};
use crate::messages::{MessageAddress, MessageTarget, ReplyTo, SendConnectionError};

/// Creates a message without a connection attached.
fn without_connection(
    address: MessageAddress,
    kind: &str,
    payload: impl IntoPayload,
) -> Result<Envelope, MessageError> {
    Envelope::new(address, kind, payload.into_payload()?, AttachedConnection::Absent)
}

/// Sending and receiving messages.
///
/// Messages arrive whole, and those of one kind in the order in which they were sent. A message is lost if the receiver
/// exits before it reads, or does not read for too long (see [`Inbox`]).
impl Worker {
    /// Sends a message to the primary, whose handler was set with `Cluster::on_message`.
    ///
    /// Waits without limit while the queue is full.
    ///
    /// # Errors
    /// [`MessageError::TooLarge`], [`MessageError::Closed`], [`MessageError::BadKind`] or [`MessageError::Encode`].
    pub async fn send(&self, kind: &str, payload: impl IntoPayload) -> Result<(), MessageError> {
        self.send_envelope(without_connection(MessageAddress::Primary, kind, payload)?).await
    }

    /// Sends a message to the primary without waiting.
    ///
    /// # Errors
    /// As [`Worker::send`], and [`MessageError::Full`].
    pub fn try_send(&self, kind: &str, payload: impl IntoPayload) -> Result<(), MessageError> {
        self.0
            .messages
            .try_send(without_connection(MessageAddress::Primary, kind, payload)?)
            .map_err(|rejected| rejected.0)
    }

    /// Sends a message to another worker, through the primary: to a slot, as `Slot(0)`, or to a worker id.
    ///
    /// Waits while the queue is full. A message to a worker that does not exist is dropped without an error;
    /// [`Worker::request_to`] reports it.
    ///
    /// # Errors
    /// As [`Worker::send`].
    pub async fn send_to(
        &self,
        to: impl Into<MessageTarget>,
        kind: &str,
        payload: impl IntoPayload,
    ) -> Result<(), MessageError> {
        self.send_envelope(without_connection(to.into().into(), kind, payload)?).await
    }

    /// Sends a message to all other workers, through the primary.
    ///
    /// Waits while the queue is full.
    ///
    /// # Errors
    /// As [`Worker::send`].
    pub async fn broadcast(
        &self,
        kind: &str,
        payload: impl IntoPayload,
    ) -> Result<(), MessageError> {
        self.send_envelope(without_connection(MessageAddress::AllOthers, kind, payload)?).await
    }

    /// Sends a request to the primary, and waits for its reply (`PrimaryHandle::reply`) for up to `limit`.
    ///
    /// A later reply is discarded.
    ///
    /// # Errors
    /// [`MessageError::TimedOut`], [`MessageError::Refused`], and as [`Worker::send`].
    pub async fn request(
        &self,
        kind: &str,
        payload: impl IntoPayload,
        limit: Duration,
    ) -> Result<Message, MessageError> {
        self.0
            .messages
            .request(without_connection(MessageAddress::Primary, kind, payload)?, limit)
            .await
    }

    /// Sends a request to another worker, and waits for its reply ([`Worker::reply`]) for up to `limit`.
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
        self.0.messages.request(without_connection(to.into().into(), kind, payload)?, limit).await
    }

    /// Replies to a request of the primary or of another worker.
    ///
    /// # Errors
    /// As [`Worker::try_send`]. A reply that comes too late is not an error.
    pub fn reply(&self, to: &ReplyTo, payload: impl IntoPayload) -> Result<(), MessageError> {
        self.0.messages.reply(to, MessageClass::Reply, payload.into_payload()?)
    }

    /// Opens the inbox for messages of `kind`.
    ///
    /// Messages that arrive before the worker is ready wait for their inbox. After that, messages without an open
    /// inbox are dropped and counted, and logged once per kind.
    ///
    /// An inbox is bounded (see [`MessageLimits`](crate::MessageLimits)). While it is full, the worker reads nothing
    /// from the channel for one second, then drops messages of this kind until the inbox has room.
    pub fn open_inbox(&self, kind: &str) -> Inbox {
        self.0.messages.open_inbox(kind)
    }

    /// Sends a connection to the primary, with a message.
    ///
    /// Waits while the queue is full. The connection closes in this process once it is sent; to keep it, send a clone.
    ///
    /// # Errors
    /// As [`Worker::send`], with the connection.
    pub async fn send_connection(
        &self,
        kind: &str,
        payload: impl IntoPayload,
        connection: impl Into<PassedConnection>,
    ) -> Result<(), SendConnectionError> {
        self.send_with_connection(MessageAddress::Primary, kind, payload, connection.into()).await
    }

    /// Sends a connection to another worker, through the primary, with a message.
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
        self.send_with_connection(to.into().into(), kind, payload, connection.into()).await
    }

    /// Whether the channel for messages is open.
    ///
    /// It is not while an upgrade is checked, nor after the primary has exited or upgraded.
    pub fn has_message_channel(&self) -> bool {
        self.0.messages.is_connected()
    }

    /// Returns how many messages to this worker were dropped so far, by kind.
    pub fn dropped_messages(&self) -> BTreeMap<String, u64> {
        self.0.messages.dropped_counts()
    }

    /// Returns how many replies arrived after their request had timed out, so far.
    pub fn late_replies(&self) -> u64 {
        self.0.messages.late_replies()
    }

    async fn send_envelope(&self, envelope: Envelope) -> Result<(), MessageError> {
        self.0.messages.send(envelope).await.map_err(|rejected| rejected.0)
    }

    async fn send_with_connection(
        &self,
        address: MessageAddress,
        kind: &str,
        payload: impl IntoPayload,
        connection: PassedConnection,
    ) -> Result<(), SendConnectionError> {
        match without_connection(address, kind, payload) {
            Ok(envelope) => {
                let envelope =
                    Envelope { attached: AttachedConnection::Present(connection.0), ..envelope };
                self.0
                    .messages
                    .send(envelope)
                    .await
                    .map_err(|rejected| SendConnectionError::new(*rejected))
            }
            Err(error) => Err(SendConnectionError::not_sent(error, connection)),
        }
    }
}

impl TryFrom<AcceptedStream> for PassedConnection {
    type Error = std::io::Error;

    /// Removes the connection from this worker's event loop.
    fn try_from(stream: AcceptedStream) -> std::io::Result<PassedConnection> {
        stream.into_parts().map(|(fd, _)| PassedConnection(fd))
    }
}

impl TryFrom<PassedConnection> for AcceptedStream {
    type Error = std::io::Error;

    /// Registers the connection with this worker's event loop. Fails if it is neither a TCP nor a Unix stream.
    fn try_from(connection: PassedConnection) -> std::io::Result<AcceptedStream> {
        let unix = prefork_os::socket::is_unix_stream(&connection)?;
        prefork_os::fd::set_nonblocking(&connection)?;
        let names = Worker::current().map(|worker| Arc::clone(&worker.0.listener_names));
        let info = ConnectionInfo::of_socket(&connection, &names.unwrap_or_default());
        let socket = SocketStream::new(connection.0, unix)?;
        Ok(AcceptedStream::new(socket, Bytes::new(), info))
    }
}
