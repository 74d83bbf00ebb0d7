//! Stands in for `stack_captures` without the feature `stack-traces`: there are no stacks.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use super::Primary;
use super::event_log::EventLog;
use crate::control::Reply;
use crate::scoreboard::WorkerPages;
use prefork_os::poll::WatchedFd;
use prefork_os::signal::Signal;
use prefork_supervisor::{WorkerId, WorkerTag};

#[derive(Default)]
pub(super) struct StackCaptures;

impl StackCaptures {
    pub(super) fn new(_: usize, _: &mut EventLog) -> StackCaptures {
        StackCaptures
    }

    pub(super) fn become_worker(&mut self, _: WorkerTag, _: WorkerPages) {}

    pub(super) fn poll_sources(&self) -> impl Iterator<Item = WatchedFd<'_>> {
        std::iter::empty()
    }

    pub(super) fn next_deadline(&self, _: Instant) -> Option<Instant> {
        None
    }

    pub(super) fn is_reader_pid(&self, _: u32) -> bool {
        false
    }

    pub(super) fn stalled_in(&self, _: WorkerId) -> Option<String> {
        None
    }

    pub(super) fn clear_stall(&mut self, _: WorkerId) {}

    pub(super) fn forget_worker(&mut self, _: WorkerId, _: WorkerPages) {}

    pub(super) fn passed_fds(&self, _: &[usize]) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    pub(super) fn passed_fd_numbers(&self, _: &[usize]) -> Vec<Option<i32>> {
        Vec::new()
    }

    pub(super) fn inherit(&mut self, _: Option<OwnedFd>) {}

    pub(super) fn release_inherited(&mut self, _: usize) {}
}

impl Primary {
    pub(super) fn request_stack(&mut self, reply_id: u64, _: Option<u64>, _: Option<u32>) {
        let why = "the primary was built without the feature stack-traces";
        self.control.reply(reply_id, &Reply::Refused(why.to_string()));
    }

    pub(super) fn capture_stalled_worker(&mut self, _: WorkerId) {}

    pub(super) fn abort_after_capture(&mut self, worker: WorkerId) {
        self.workers.signal(worker, Signal::SIGABRT, &mut self.event_log);
    }

    pub(super) fn attend_stack_captures(&mut self) {}

    pub(super) fn stop_stack_captures(&mut self) {}
}
