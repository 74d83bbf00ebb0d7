//! Isolated jobs in an upgrade: what the old image passes on, and how the new one continues.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use super::Primary;
use crate::error::{Error, Result};
use crate::isolated::{
    ISOLATED_JOBS_FORMAT, JOB_REPLY_KIND, JobPayload, SavedIsolatedJobs, SavedPayload, SavedPool,
};
use crate::messages::{AttachedConnection, Envelope, MAX_SAVED_STATE_BYTES, MessageAddress};
use crate::upgrade::PassedIsolatedJobs;
use prefork_os::fd::take_inherited_fd;
use prefork_supervisor::WorkerId;

/// The jobs of all pools on their way to the new image.
pub(super) struct PassedJobs<'a> {
    pub(super) state: PassedIsolatedJobs,
    memory: OwnedFd,
    attached: Vec<BorrowedFd<'a>>,
}

impl PassedJobs<'_> {
    /// Returns the descriptors that have to stay open over the exec.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.attached.iter().copied().chain([self.memory.as_fd()])
    }
}

impl Primary {
    /// Handles what must not wait for the new image. Without `can_pass_jobs` ends all jobs, as the new image cannot continue them.
    pub(super) fn settle_isolated_jobs(&mut self, can_pass_jobs: bool) {
        if self.isolated_pools.has_unhandled_exits() {
            self.deliver_messages();
            self.handle_all_isolated_exits();
        }
        if can_pass_jobs {
            return;
        }
        let saved = self.isolated_pools.save(Instant::now(), &mut Vec::new());
        for pool in saved {
            self.send_job_outcomes(pool);
        }
        self.isolated_pools.forget_callers();
        self.messages.primary_end.flush();
    }

    fn send_job_outcomes(&mut self, pool: SavedPool) {
        for (key, outcome) in pool.into_outcomes() {
            self.send_job_outcome(key, outcome);
        }
    }

    /// Saves the jobs of all pools for the new image.
    pub(super) fn save_isolated_jobs(&self) -> Result<PassedJobs<'_>> {
        let failed = |e| Error::system("save the isolated jobs", e);
        let mut attached = Vec::new();
        let pools = self.isolated_pools.save(Instant::now(), &mut attached);
        let unsent = self.isolated_pools.unsent_replies().map(|(caller, envelope)| {
            let fd = match &envelope.attached {
                AttachedConnection::Present(fd) => Some(fd.as_fd()),
                AttachedConnection::Absent | AttachedConnection::Lost => None,
            };
            attached.extend(fd);
            let fd = fd.map(|fd| fd.as_raw_fd());
            (caller.0, SavedPayload::new(envelope.payload.bytes(), fd))
        });
        let unsent_replies = unsent.collect();
        let bytes = SavedIsolatedJobs { pools, unsent_replies }.encode();
        let bytes = bytes.map_err(|why| failed(std::io::Error::other(why)))?;
        let memory = prefork_os::exec::create_sealed_memfd("prefork-isolated-jobs", &bytes);
        let memory = memory.map_err(failed)?;
        let state =
            PassedIsolatedJobs { format: ISOLATED_JOBS_FORMAT, state_fd: memory.as_raw_fd() };
        Ok(PassedJobs { state, memory, attached })
    }

    /// Continues with the jobs of the previous image. Workers below `inherited_below` are its own.
    pub(super) fn restore_isolated_jobs(
        &mut self,
        passed: &PassedIsolatedJobs,
        inherited_below: WorkerId,
    ) {
        let saved = match read_saved_jobs(passed) {
            Ok(saved) => saved,
            Err(reason) => return self.event_log.log_lost_isolated_jobs(&reason),
        };
        for (caller, reply) in saved.unsent_replies {
            if let Some(envelope) = reply_envelope(reply.restore()) {
                self.isolated_pools.push_unsent_reply(WorkerId(caller), envelope);
            }
        }
        let now = Instant::now();
        for pool in saved.pools {
            if let Some(unknown) = self.isolated_pools.restore(pool, inherited_below, now) {
                self.send_job_outcomes(unknown);
            }
        }
    }
}

fn reply_envelope(reply: JobPayload) -> Option<Envelope> {
    let attached = reply.attachment().ok()?;
    Envelope::new(MessageAddress::Primary, JOB_REPLY_KIND, reply.bytes.into(), attached).ok()
}

fn read_saved_jobs(passed: &PassedIsolatedJobs) -> std::result::Result<SavedIsolatedJobs, String> {
    if passed.format != ISOLATED_JOBS_FORMAT {
        let theirs = passed.format;
        return Err(format!("format {theirs} of jobs, this binary reads {ISOLATED_JOBS_FORMAT}"));
    }
    let state = take_inherited_fd(passed.state_fd)
        .and_then(|fd| prefork_os::exec::read_memfd(&fd, MAX_SAVED_STATE_BYTES));
    SavedIsolatedJobs::decode(&state.map_err(|e| e.to_string())?)
}
