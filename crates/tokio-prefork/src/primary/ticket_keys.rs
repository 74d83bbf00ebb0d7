//! The keys of session tickets in the primary: created when TLS is configured, rotated when due, passed to the next image.
//!
//! A key makes tickets for one ticket lifetime and decrypts them for another one, so that each ticket can be used for its whole
//! lifetime. A key is gone after twice the lifetime.

use std::os::fd::{BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use super::event_log::EventLog;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::tls::{TicketKeyMemory, TicketKeyReader};
use crate::upgrade::UpgradeManifest;
use prefork_os::fd::take_inherited_fd;

/// How long to wait after a rotation that failed before the next attempt.
const ROTATION_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The keys of session tickets; without TLS there are none.
#[derive(Default)]
pub(super) struct TicketKeys {
    memory: Option<TicketKeyMemory>,
    /// When to try again after a rotation that failed.
    retry_at: Option<Instant>,
}

impl TicketKeys {
    /// Takes over the keys of the previous image, or creates them, if `config` wants tickets.
    ///
    /// # Errors
    /// The kernel has no memory, descriptors or random numbers left.
    pub(super) fn start(
        manifest: Option<&UpgradeManifest>,
        config: &Config,
        event_log: &mut EventLog,
    ) -> Result<TicketKeys> {
        let passed = manifest.and_then(|manifest| manifest.ticket_keys_fd);
        let mut keys = TicketKeys::inherit(passed, config.ticket_lifetime(), event_log);
        keys.prepare(config.ticket_lifetime(), event_log)?;
        Ok(keys)
    }

    /// Takes over the keys of the previous image, or closes them if `lifetime` says that there are no tickets. Without them, its tickets end: clients make a full handshake.
    fn inherit(
        passed: Option<RawFd>,
        lifetime: Option<Duration>,
        event_log: &mut EventLog,
    ) -> TicketKeys {
        let passed = passed.map(take_inherited_fd);
        if lifetime.is_none() {
            return TicketKeys::default();
        }
        let memory = passed.map(|taken| taken.and_then(TicketKeyMemory::inherit));
        let memory = memory.and_then(|inherited| match inherited {
            Ok(memory) => Some(memory),
            Err(e) => {
                event_log.log_ticket_keys_lost(&e);
                None
            }
        });
        TicketKeys { memory, retry_at: None }
    }

    /// Creates the keys, unless there are some or `lifetime` says that there are no tickets.
    ///
    /// # Errors
    /// The kernel has no memory, descriptors or random numbers left.
    pub(super) fn prepare(
        &mut self,
        lifetime: Option<Duration>,
        event_log: &mut EventLog,
    ) -> Result<()> {
        if lifetime.is_none() || self.memory.is_some() {
            return Ok(());
        }
        let memory = TicketKeyMemory::create()
            .map_err(|e| Error::system("create the keys of session tickets", e))?;
        if let Some(why) = memory.lock_error() {
            event_log.log_unlocked_ticket_keys(why);
        }
        self.memory = Some(memory);
        Ok(())
    }

    /// Rotates the keys if the current one has been in use for `lifetime`.
    pub(super) fn rotate_if_due(&mut self, lifetime: Option<Duration>, event_log: &mut EventLog) {
        let (Some(memory), Some(lifetime)) = (&self.memory, lifetime) else { return };
        let age = memory.current_key_age();
        if age < lifetime.as_secs() || self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        // After a time without TLS, or in which this process was stopped, the current key decrypts no valid ticket either.
        let is_outdated = age >= lifetime.as_secs().saturating_mul(2);
        let rotations = if is_outdated { 2 } else { 1 };
        match (0..rotations).try_for_each(|_| memory.rotate()) {
            Ok(()) => self.retry_at = None,
            Err(e) => {
                self.retry_at = Some(Instant::now() + ROTATION_RETRY_DELAY);
                event_log.log_ticket_key_rotation_error(&e);
            }
        }
    }

    /// Returns when the next rotation is due.
    pub(super) fn next_deadline(
        &self,
        lifetime: Option<Duration>,
        now: Instant,
    ) -> Option<Instant> {
        let (memory, lifetime) = (self.memory.as_ref()?, lifetime?);
        let remaining = lifetime.as_secs().saturating_sub(memory.current_key_age());
        Some(self.retry_at.unwrap_or(now + Duration::from_secs(remaining)))
    }

    /// Returns the memory of the keys, for the next image.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref().map(TicketKeyMemory::fd)
    }

    /// Returns, in a forked worker, the reader of the keys, and gives up the right to write them.
    ///
    /// # Errors
    /// The kernel refuses to unmap the memory.
    pub(super) fn take_for_worker(&mut self) -> Result<Option<TicketKeyReader>> {
        let reader = self.memory.take().map(TicketKeyMemory::into_reader).transpose();
        reader.map_err(|e| Error::system("keep only the right to read the keys of tickets", e))
    }

    /// Gives up the keys in a forked process that does not serve.
    pub(super) fn close_in_worker(&mut self) {
        if let Some(Err(e)) = self.memory.take().map(TicketKeyMemory::unmap) {
            log::error!("cannot unmap the keys of session tickets: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    const LIFETIME: Option<Duration> = Some(Duration::from_secs(3600));

    fn sequence(keys: &TicketKeys) -> String {
        format!("{:?}", keys.memory.as_ref().expect("keys"))
    }

    #[test]
    fn there_are_keys_only_if_tickets_are_wanted() {
        let mut log = EventLog::continue_after(0);
        let mut keys = TicketKeys::default();
        keys.prepare(None, &mut log).expect("nothing to do");
        assert!(keys.fd().is_none() && keys.next_deadline(LIFETIME, Instant::now()).is_none());
        keys.prepare(LIFETIME, &mut log).expect("keys");
        let fd = keys.fd().expect("keys").as_raw_fd();
        keys.prepare(LIFETIME, &mut log).expect("the same keys");
        assert_eq!(keys.fd().expect("keys").as_raw_fd(), fd);
        assert!(keys.next_deadline(None, Instant::now()).is_none());
    }

    #[test]
    fn keys_rotate_when_the_lifetime_of_tickets_has_passed() {
        let mut log = EventLog::continue_after(0);
        let mut keys = TicketKeys::default();
        keys.prepare(LIFETIME, &mut log).expect("keys");
        let now = Instant::now();
        let due = keys.next_deadline(LIFETIME, now).expect("a deadline");
        assert!((now + Duration::from_secs(3598)..=now + Duration::from_secs(3600)).contains(&due));
        keys.rotate_if_due(LIFETIME, &mut log);
        assert!(sequence(&keys).contains("sequence: 1 "), "{}", sequence(&keys));
        // A reload with a lifetime that has passed already: also the older key is replaced.
        keys.rotate_if_due(Some(Duration::ZERO), &mut log);
        assert!(sequence(&keys).contains("sequence: 3 "), "{}", sequence(&keys));
    }

    #[test]
    fn a_descriptor_that_was_not_passed_gives_new_keys() {
        let mut log = EventLog::continue_after(0);
        let mut keys = TicketKeys::inherit(Some(-1), LIFETIME, &mut log);
        assert!(keys.fd().is_none());
        keys.prepare(LIFETIME, &mut log).expect("keys");
        assert!(keys.fd().is_some());
    }
}
