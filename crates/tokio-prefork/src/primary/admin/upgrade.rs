//! What an upgrade in place passes on of the admin listener.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Instant;

use super::{AdminListener, AdminProcess, UPGRADE_LIVENESS_TIMEOUT};
use crate::admin::{AdminMemory, AdminMemoryReader};
use crate::channel::PrimaryChannelEnd;
use crate::control::Event;
use crate::error::{Error, Result};
use crate::upgrade::{PassedAdmin, PassedAdminProcess, PassedListener};
use prefork_os::fd::take_inherited_fd;
use prefork_os::system::monotonic_ms;
use prefork_supervisor::{AdminProcessId, AdminProcessState, Generation};

impl AdminListener {
    /// Returns the sockets for a manifest. `None` without an admin listener.
    pub(in crate::primary) fn passed_sockets(&self) -> Option<PassedAdmin> {
        let listeners = self.sockets.set.listeners.iter().map(|listener| PassedListener {
            addr: listener.addr.to_string(),
            slot: listener.slot.0,
            keeper: listener.keeper.name().to_string(),
            fd: listener.as_fd().as_raw_fd(),
        });
        let listeners: Vec<_> = listeners.collect();
        let restarts = self.supervisor.restart_count();
        let is_empty = listeners.is_empty() && self.processes.is_empty();
        (!is_empty).then_some(PassedAdmin {
            listeners,
            processes: Vec::new(),
            memory_fd: None,
            restarts,
        })
    }

    /// Returns the descriptors of `passed_sockets`.
    pub(in crate::primary) fn socket_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.set.listeners.iter().map(AsFd::as_fd)
    }

    /// Adds the processes and the events, for the new image.
    pub(in crate::primary) fn pass_processes(&self, passed: &mut PassedAdmin) {
        let is_draining =
            |id: &AdminProcessId| self.supervisor.state_of(*id) != Some(AdminProcessState::Serving);
        let processes = self.processes.iter().map(|(id, process)| PassedAdminProcess {
            id: id.0,
            pid: process.pid,
            generation: process.generation.0,
            is_draining: is_draining(id),
            channel_fd: process.channel.as_ref().map(|channel| channel.as_fd().as_raw_fd()),
        });
        passed.processes = processes.collect();
        let memory = self.memory.as_ref().and_then(AdminMemory::memory_fd);
        passed.memory_fd = memory.map(|fd| fd.as_raw_fd());
    }

    /// Returns the descriptors of `pass_processes`.
    pub(in crate::primary) fn process_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let channels = self.processes.values().filter_map(|process| process.channel.as_ref());
        let memory = self.memory.as_ref().and_then(AdminMemory::memory_fd);
        channels.map(AsFd::as_fd).chain(memory)
    }

    /// Lets the primary count as alive while the new image loads the application, and the processes know that it replaces theirs.
    pub(in crate::primary) fn prepare_exec(&self) {
        let until = monotonic_ms() + UPGRADE_LIVENESS_TIMEOUT.as_millis() as u64;
        if let Some(memory) = &self.memory {
            memory.set_live_until(until);
            memory.set_image_replaced(true);
        }
    }

    /// Takes over the processes of the previous image, which serve until their successor does.
    pub(in crate::primary) fn restore_processes(&mut self, passed: &PassedAdmin) -> Result<()> {
        let now = Instant::now();
        self.supervisor.restore_restart_count(passed.restarts);
        for process in &passed.processes {
            let channel = process.channel_fd.map(take_inherited_fd).transpose();
            let channel = channel
                .map_err(|e| Error::system("take over the channel of the admin listener", e))?;
            let id = AdminProcessId(process.id);
            let taken = AdminProcess {
                pid: process.pid,
                channel: channel.map(PrimaryChannelEnd::new),
                page: None,
                generation: Generation(process.generation),
                forked_at: now,
                boot_error: None,
            };
            if process.is_draining {
                // It may not have been told: it may still have been booting.
                taken.drain();
                self.supervisor.add_inherited(id, AdminProcessState::Draining, now);
            } else {
                self.supervisor.add_inherited(id, AdminProcessState::Serving, now);
            }
            self.processes.insert(id, taken);
        }
        Ok(())
    }
}

/// Reads the events of the previous image, oldest first and without gaps.
pub(in crate::primary) fn read_passed_events(passed: &PassedAdmin) -> Vec<Event> {
    let memory = passed.memory_fd.and_then(|fd| take_inherited_fd(fd).ok());
    // Another layout has no events for this image.
    let reader = memory.and_then(|memory| AdminMemoryReader::of_previous_image(&memory).ok());
    let Some(reader) = reader else { return Vec::new() };
    let mut events: Vec<Event> = Vec::new();
    for sequence in reader.first_event()..=reader.last_event() {
        let event = reader.event(sequence).and_then(|json| serde_json::from_slice(&json).ok());
        match event {
            Some(event) => events.push(event),
            None => events.clear(),
        }
    }
    events
}
