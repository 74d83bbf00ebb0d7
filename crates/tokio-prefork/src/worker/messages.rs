//! The methods of `Worker` that send and receive the application's messages.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::{Parts, Upgraded};
use hyper_util::rt::TokioIo;

use super::Worker;
use super::accepted_stream::AcceptedStream;
use super::http::hyper_io::HyperIo;
use super::local_state::LocalWorkerState;
use super::socket_stream::SocketStream;
use crate::client::ConnectionInfo;
use crate::messages::{
    AttachedConnection, Envelope, Inbox, IntoPayload, Message, MessageClass, MessageError,
    PassedConnection,
};
use crate::messages::{MessageAddress, MessageTarget, PassedHistory, ReplyTo, SendConnectionError};
use crate::runtime::threads::ThreadsServeContext;

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
/// Messages arrive whole, and those of one kind in the order in which they were sent. `Ok` of a function that sends means:
///
/// - If no earlier message waits, the message was written to the primary's socket. It arrives there even if this process exits or is
///   killed in the next moment.
/// - Otherwise it waits behind the others, and is lost if this process ends before the primary has read enough. [`Worker::flush`]
///   waits for that; a worker that drains or whose main loop returns does so by itself.
/// - It does not mean that the receiver has handled the message: use a request for that.
///
/// A message to a **slot** that its worker has not received before it drains or exits goes to the next worker of the slot, or to
/// another one of its kind if the slot stays empty. Such messages keep their order, and may arrive after newer ones. A message to a
/// worker **id** is refused or counted as lost, a broadcast is dropped. A worker that is killed loses what it had read from its
/// channel. Lost messages are counted in the status (`messages_lost`) and logged with kind and reason.
impl Worker {
    /// Sends a message to the primary, whose handler was set with `Cluster::on_message`.
    ///
    /// Waits without limit while the queue is full. See above for what `Ok` means.
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
    /// Waits while the queue is full. A message to a worker that does not exist is counted as lost; [`Worker::request_to`] reports
    /// it as an error.
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
        self.0.messages.open_inbox(Some(kind))
    }

    /// Opens an inbox for messages of all kinds without an inbox of their own.
    ///
    /// [`Message::kind`] tells them apart. The same limits hold as for [`Worker::open_inbox`].
    pub fn open_any_inbox(&self) -> Inbox {
        self.0.messages.open_inbox(None)
    }

    /// Waits until all messages of this worker are written to the primary's socket, for up to `limit`.
    ///
    /// Call it before `std::process::exit` in a worker that sends much. A worker that drains does it by itself.
    ///
    /// # Errors
    /// [`MessageError::NotFlushed`] if the primary does not read in time, [`MessageError::Closed`] if it is gone.
    pub async fn flush(&self, limit: Duration) -> Result<(), MessageError> {
        self.0.messages.flush(limit).await
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
    /// It is not while an upgrade is checked, nor after the primary has exited. An upgrade keeps it open.
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
        let PassedConnection { fd, history } = connection;
        let payload = payload.into_payload().map(|payload| payload.with_history(history.clone()));
        match payload.and_then(|payload| without_connection(address, kind, payload)) {
            Ok(envelope) => {
                let envelope = Envelope { attached: AttachedConnection::Present(fd), ..envelope };
                self.0
                    .messages
                    .send(envelope)
                    .await
                    .map_err(|rejected| SendConnectionError::new(*rejected))
            }
            Err(error) => {
                Err(SendConnectionError::not_sent(error, PassedConnection { fd, history }))
            }
        }
    }
}

impl TryFrom<AcceptedStream> for PassedConnection {
    type Error = std::io::Error;

    /// Removes the connection from this worker's event loop.
    fn try_from(stream: AcceptedStream) -> std::io::Result<PassedConnection> {
        let proxied = stream.connection_info().proxied_client().map(Box::new);
        let (fd, unread) = stream.into_parts()?;
        Ok(PassedConnection { fd, history: PassedHistory { unread, proxied } })
    }
}

impl TryFrom<PassedConnection> for AcceptedStream {
    type Error = std::io::Error;

    /// Registers the connection with this worker's event loop. Fails if it is neither a TCP nor a Unix stream.
    fn try_from(connection: PassedConnection) -> std::io::Result<AcceptedStream> {
        let unix = prefork_os::socket::is_unix_stream(&connection)?;
        prefork_os::fd::set_nonblocking(&connection)?;
        let worker = Worker::current();
        let names = worker.as_ref().map(|worker| Arc::clone(&worker.0.listener_names));
        let trusted = worker.map(|worker| worker.0.config.trusted_proxies.clone());
        let (names, trusted) = (names.unwrap_or_default(), trusted.unwrap_or_default());
        let info = ConnectionInfo::of_socket(&connection, &names, &trusted);
        let PassedConnection { fd, history: PassedHistory { unread, proxied } } = connection;
        let info = match proxied {
            Some(client) => info.with_proxied_client(*client),
            None => info,
        };
        Ok(AcceptedStream::new(SocketStream::new(fd, unix)?, unread, info))
    }
}

impl TryFrom<Upgraded> for PassedConnection {
    type Error = std::io::Error;

    /// Takes an HTTP/1 connection out of the server after its upgrade. From then on this worker no longer counts it.
    ///
    /// Fails for a tunnel of HTTP/2, which shares its socket with other requests, and for a connection of another server;
    /// either is closed. If the client reads so slowly that the response to the upgrade is not sent yet, fails as well.
    fn try_from(upgraded: Upgraded) -> std::io::Result<PassedConnection> {
        let of_threads = match downcast_upgraded::<LocalWorkerState>(upgraded) {
            Ok(parts) => return passed_connection(parts),
            Err(upgraded) => upgraded,
        };
        match downcast_upgraded::<ThreadsServeContext>(of_threads) {
            Ok(parts) => passed_connection(parts),
            Err(_) => Err(std::io::Error::new(
                std::io::ErrorKind::Unsupported,
                "only an upgraded HTTP/1 connection of this worker has a socket of its own",
            )),
        }
    }
}

/// Returns the parts of an upgraded connection that was served in a context of type `H`.
fn downcast_upgraded<H: 'static>(
    upgraded: Upgraded,
) -> std::result::Result<Parts<TokioIo<HyperIo<H>>>, Upgraded> {
    upgraded.downcast()
}

fn passed_connection<H>(parts: Parts<TokioIo<HyperIo<H>>>) -> std::io::Result<PassedConnection> {
    let hyper_io = parts.io.into_inner();
    let proxied = hyper_io.info.as_ref().and_then(ConnectionInfo::proxied_client);
    let proxied = proxied.map(Box::new);
    let (stream, received) = hyper_io.into_upgraded_parts()?;
    let unread = match parts.read_buf.is_empty() {
        true => received,
        false => [parts.read_buf, received].concat().into(),
    };
    Ok(PassedConnection { fd: stream.into_fd()?, history: PassedHistory { unread, proxied } })
}
