//! Stands in for `ticket_keys` without the feature `tls`: there are no session tickets.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::event_log::EventLog;
use crate::config::Config;
use crate::error::Result;
use crate::tls::TicketKeyReader;
use crate::upgrade::UpgradeManifest;
use prefork_os::fd::take_inherited_fd;

#[derive(Default)]
pub(super) struct TicketKeys;

impl TicketKeys {
    pub(super) fn start(
        manifest: Option<&UpgradeManifest>,
        _: &Config,
        _: &mut EventLog,
    ) -> Result<TicketKeys> {
        // Closed: who has this descriptor can read the keys of the previous image.
        let passed = manifest.and_then(|manifest| manifest.ticket_keys_fd);
        drop(passed.map(take_inherited_fd));
        Ok(TicketKeys)
    }

    pub(super) fn prepare(&mut self, _: Option<Duration>, _: &mut EventLog) -> Result<()> {
        Ok(())
    }

    pub(super) fn rotate_if_due(&mut self, _: Option<Duration>, _: &mut EventLog) {}

    pub(super) fn next_deadline(&self, _: Option<Duration>, _: Instant) -> Option<Instant> {
        None
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    pub(super) fn take_for_worker(&mut self) -> Result<Option<TicketKeyReader>> {
        Ok(None)
    }

    pub(super) fn close_in_worker(&mut self) {}
}
