//! The service manager: what it passes to the primary, and what the primary tells it.
//!
//! Its variables (`NOTIFY_SOCKET`, `WATCHDOG_*`, `LISTEN_*`, `FDSTORE`) are for the primary alone. They are read and
//! removed once, at the start, so that neither workers nor their children can speak for the primary. An upgrade in
//! place execs with the original environment, so the next image finds them again.

mod fd_store;
mod notify_socket;
mod notify_state;
mod socket_activation;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

pub(crate) use fd_store::{StoredSocketName, is_stored_socket_name};
use notify_socket::NotifySocket;
pub(crate) use notify_state::{ClusterSummary, NotifyState};
pub(crate) use socket_activation::{ActivationFd, activation_fd_numbers, parse_own_activation_fds};

use crate::error::Result;

/// The environment variables that the service manager sets for the primary.
pub(crate) const SERVICE_MANAGER_VARIABLES: [&str; 9] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "FDSTORE",
    "MAINPID",
];

/// How long to wait before a message is sent again that had no room.
const SEND_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// The variables that the service manager has passed in the environment.
pub(crate) struct ServiceEnvironment {
    /// The sockets of socket activation and of the descriptor store.
    pub(crate) activation_fds: Vec<ActivationFd>,
    notify_socket: Option<NotifySocket>,
    watchdog_interval: Option<Duration>,
    has_fd_store: bool,
}

impl ServiceEnvironment {
    /// Reads and removes the variables. Must be called once, at the start, while this process has one thread.
    ///
    /// # Errors
    /// `LISTEN_FDS` is invalid.
    pub(crate) fn take() -> Result<ServiceEnvironment> {
        let env = |name: &str| std::env::var(name).ok();
        let pid = std::process::id();
        let service = ServiceEnvironment {
            activation_fds: socket_activation::parse_activation_fds(env, pid)?,
            notify_socket: std::env::var_os("NOTIFY_SOCKET").and_then(NotifySocket::new),
            watchdog_interval: notify_state::watchdog_interval(env, pid),
            has_fd_store: env("FDSTORE").and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n > 0),
        };
        prefork_os::process::remove_env_vars(|name| SERVICE_MANAGER_VARIABLES.contains(&name))?;
        Ok(service)
    }

    /// Returns whether the service manager offers a descriptor store.
    pub(crate) fn has_fd_store(&self) -> bool {
        self.has_fd_store
    }

    /// Returns the service manager, if it wants to be notified.
    ///
    /// `stores_sockets` says whether listening sockets are kept in its store, `is_upgraded` whether workers of the
    /// previous image serve. A start may take as long as `boot_timeout`. `app` is the name and version
    /// of the application.
    pub(crate) fn service_manager(
        self,
        stores_sockets: bool,
        is_upgraded: bool,
        boot_timeout: Duration,
        app: String,
    ) -> Option<ServiceManager> {
        let now = Instant::now();
        let mut notify_state = match is_upgraded {
            true => NotifyState::after_upgrade(self.watchdog_interval, now),
            false => NotifyState::new(self.watchdog_interval, now, boot_timeout),
        };
        notify_state.set_app(app);
        Some(ServiceManager {
            notify_socket: self.notify_socket?,
            notify_state,
            stores_sockets,
            is_full: false,
            has_failed: false,
        })
    }
}

/// The connection to the service manager, with the messages queued for it.
pub(crate) struct ServiceManager {
    notify_socket: NotifySocket,
    pub(crate) notify_state: NotifyState,
    stores_sockets: bool,
    /// Whether the last message had no room.
    is_full: bool,
    /// Whether a send error has been returned already.
    has_failed: bool,
}

impl ServiceManager {
    /// Sends the queued messages, as far as there is room.
    ///
    /// # Errors
    /// The first error after a success. Further ones are dropped, or they would be logged each second.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.is_full = false;
        while let Some(message) = self.notify_state.next_message() {
            match self.notify_socket.send(message, None) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.is_full = true;
                    return Ok(());
                }
                result => {
                    self.notify_state.remove_sent_message();
                    self.report_first_error(result)?;
                }
            }
        }
        Ok(())
    }

    /// Returns when a message is due or is sent again.
    pub(crate) fn next_deadline(&self, now: Instant) -> Instant {
        let due = self.notify_state.next_deadline();
        if self.is_full { due.min(now + SEND_RETRY_INTERVAL) } else { due }
    }

    /// Returns whether listening sockets are kept in the store.
    pub(crate) fn stores_sockets(&self) -> bool {
        self.stores_sockets
    }

    /// Stores a duplicate of `socket` under this name. Returns whether it was sent; without room it has to be tried
    /// again.
    ///
    /// # Errors
    /// As [`ServiceManager::flush`].
    pub(crate) fn store_socket(&mut self, name: &str, socket: BorrowedFd<'_>) -> io::Result<bool> {
        // Without FDPOLL=0 the manager drops a socket that reports a hang-up.
        let message = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        match self.notify_socket.send(&message, Some(socket)) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.is_full = true;
                Ok(false)
            }
            Ok(()) => Ok(true),
            result => self.report_first_error(result).map(|()| false),
        }
    }

    /// Queues the removal of a stored socket.
    pub(crate) fn remove_socket(&mut self, name: &str) {
        self.notify_state.queue_message(format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    }

    /// Returns an error only if the call before has succeeded.
    fn report_first_error(&mut self, result: io::Result<()>) -> io::Result<()> {
        match result {
            Err(e) if !std::mem::replace(&mut self.has_failed, true) => Err(e),
            Err(_) => Ok(()),
            Ok(()) => {
                self.has_failed = false;
                Ok(())
            }
        }
    }
}
