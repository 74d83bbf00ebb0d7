//! How we speak to the service manager, and what it passes to us.
//!
//! All of it is said in the environment of the primary alone (`NOTIFY_SOCKET`, `WATCHDOG_*`, `LISTEN_*`, `FDSTORE`): it is read
//! and removed once, at the start, so that neither workers nor what they start could speak in the primary's name. An
//! upgrade in place execs with the environment that the process was started with, so the next image finds it again.
//!
//! What is said when is decided in `herald`, which touches nothing; `notify` sends without ever waiting; `activation` reads
//! which sockets were passed; `store` has the names of those that the manager keeps for us.

mod fd_store;
mod notify_socket;
mod notify_state;
mod socket_activation;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

pub(crate) use fd_store::{StoreName, is_stored};
use notify_socket::Notifier;
pub(crate) use notify_state::{Figures, Herald};
pub(crate) use socket_activation::{Passed, numbers};

use crate::error::Result;

/// What the service manager says to the primary alone. A worker that had these could speak in its name.
pub(crate) const PRIMARYS_OWN: [&str; 9] = [
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

/// What this process was told by the service manager, if it has one.
pub(crate) struct Service {
    /// Sockets that it passed.
    pub(crate) passed: Vec<Passed>,
    notifier: Option<Notifier>,
    /// How often it wants to hear from us.
    watchdog: Option<Duration>,
    /// It says that it keeps descriptors for us.
    keeps: bool,
}

impl Service {
    /// Reads the environment and clears it. To be called once, at the start, while this process has one thread.
    ///
    /// # Errors
    /// Sockets were passed to this process in a way that makes no sense.
    pub(crate) fn take() -> Result<Service> {
        let text = |name: &str| std::env::var(name).ok();
        let service = Service {
            passed: socket_activation::passed(text, std::process::id())?,
            notifier: std::env::var_os("NOTIFY_SOCKET").and_then(Notifier::new),
            watchdog: notify_state::watchdog(text, std::process::id()),
            keeps: text("FDSTORE").and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n > 0),
        };
        prefork_os::process::remove_env_vars(|name| PRIMARYS_OWN.contains(&name))?;
        Ok(service)
    }

    /// Whether it says that it keeps descriptors for us.
    pub(crate) fn keeps(&self) -> bool {
        self.keeps
    }

    /// Whoever wants to hear from us. `stores` if sockets are to be kept there; `upgraded` if the workers of an image
    /// before this one serve; a start may take as long as `boot`.
    pub(crate) fn manager(self, stores: bool, upgraded: bool, boot: Duration) -> Option<Manager> {
        let now = Instant::now();
        let herald = match upgraded {
            true => Herald::upgraded(self.watchdog, now),
            false => Herald::new(self.watchdog, now, boot),
        };
        let notifier = self.notifier?;
        Some(Manager { notifier, herald, stores, full: false, failed: false })
    }
}

/// The service manager, as somebody to speak to.
pub(crate) struct Manager {
    notifier: Notifier,
    pub(crate) herald: Herald,
    stores: bool,
    /// It did not take the last message yet.
    full: bool,
    /// It could not be reached, which was told.
    failed: bool,
}

/// So long after a message that there was no room for it is tried again.
const FULL: Duration = Duration::from_millis(50);

impl Manager {
    /// Sends what is to be said, as far as there is room. The error is one that was not told yet.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.full = false;
        while let Some(message) = self.herald.next() {
            match self.notifier.send(message, None) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.full = true;
                    return Ok(());
                }
                outcome => {
                    self.herald.said();
                    self.once(outcome)?;
                }
            }
        }
        Ok(())
    }

    /// When something is to be said again.
    pub(crate) fn deadline(&self, now: Instant) -> Instant {
        let due = self.herald.deadline();
        if self.full { due.min(now + FULL) } else { due }
    }

    /// Whether sockets are to be kept by the manager.
    pub(crate) fn stores(&self) -> bool {
        self.stores
    }

    /// Gives a share in `socket` to the manager, under this name; whether it was sent. One that cannot be sent now is for
    /// a later time.
    pub(crate) fn store(&mut self, name: &str, socket: BorrowedFd<'_>) -> io::Result<bool> {
        // Without FDPOLL=0 it would drop a socket whose peer hung up, and a listening one has none.
        let message = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        match self.notifier.send(&message, Some(socket)) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.full = true;
                Ok(false)
            }
            Ok(()) => Ok(true),
            outcome => self.once(outcome).map(|()| false),
        }
    }

    /// The manager lets go of what it keeps under this name.
    pub(crate) fn forget(&mut self, name: &str) {
        self.herald.say(format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    }

    /// Nobody wants to read the same trouble each second.
    fn once(&mut self, outcome: io::Result<()>) -> io::Result<()> {
        match outcome {
            Err(e) if !std::mem::replace(&mut self.failed, true) => Err(e),
            Err(_) => Ok(()),
            Ok(()) => {
                self.failed = false;
                Ok(())
            }
        }
    }
}
