//! Takes the stacks of workers: for the log when the event loop of a worker stalls, before a stalled worker is aborted, and
//! for clients of the control socket.
//!
//! The primary queues signals, forks a reader and polls its pipe. It waits for nobody: each reader has a deadline.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::Primary;
use super::event_log::EventLog;
use super::workers::{KilledChildren, WorkerProcess};
use crate::control::Reply;
use crate::error::Result;
use crate::scoreboard::WorkerPages;
use crate::stack::stack_reader::{CaptureTarget, StackReader};
use crate::stack::{ThreadStack, WorkerStack};
use prefork_os::poll::WatchedFd;
use prefork_os::signal::Signal;
use prefork_os::stack_capture::StackMemory;
use prefork_supervisor::{WorkerId, WorkerTag};

/// How many readers run at the same time. Each reads the debug information of the program.
const MAX_READERS: usize = 4;

/// How many workers may wait for a reader.
const MAX_QUEUED: usize = 64;

/// Why there is no stack of a foreign program.
const PROGRAM_REASON: &str = "the worker runs a program of its own, whose stack only its own tools can show, such as gdb, py-spy or node --inspect";

/// How long the abort of a stalled worker waits until its stack has been logged.
const MAX_ABORT_DELAY: Duration = Duration::from_millis(700);

/// How often the deadline of a delayed abort and the queue are looked at while readers run.
const QUEUE_RETRY: Duration = Duration::from_millis(100);

/// Why there is no stack while an upgrade executes the new binary.
const EXEC_REASON: &str = "the primary executes a new binary; ask again when it has started";

/// Why a stack is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The event loop has stalled: log it.
    Stall,
    /// The worker is about to be aborted: log where it stands now, if it has moved.
    BeforeAbort,
    /// A client waits for it.
    Reply(u64),
}

/// A stack that is being taken.
struct Capture {
    tag: WorkerTag,
    pages: WorkerPages,
    reader: StackReader,
    purposes: Vec<Purpose>,
}

/// The memory for stacks, and the stacks that are being taken.
#[derive(Default)]
pub(super) struct StackCaptures {
    /// `None` if the system has refused it.
    memory: Option<StackMemory>,
    /// The memories of the scoreboards of previous images.
    inherited: Vec<Option<StackMemory>>,
    running: BTreeMap<WorkerId, Capture>,
    queue: VecDeque<(WorkerId, Purpose)>,
    /// The number of the last request to a worker.
    last_number: u32,
    /// Workers that are aborted as soon as their stack has been logged, or then.
    delayed_aborts: BTreeMap<WorkerId, Instant>,
    /// Where the stalled workers stand: as text, and the functions.
    stalled_in: BTreeMap<WorkerId, (String, Vec<String>)>,
}

impl StackCaptures {
    /// Creates the memory with an area for each page of the scoreboard. Without it there are no stacks.
    pub(super) fn new(pages: usize, event_log: &mut EventLog) -> StackCaptures {
        let memory = StackMemory::create(pages).map_err(|e| event_log.log_stack_memory_error(&e));
        StackCaptures { memory: memory.ok(), ..StackCaptures::default() }
    }

    /// Returns the memory and the area of a worker.
    fn memory_of(&self, pages: WorkerPages) -> Option<(&StackMemory, usize)> {
        match pages {
            WorkerPages::Own(range) => Some((self.memory.as_ref()?, range.first)),
            WorkerPages::Inherited { board, pages } => {
                Some((self.inherited.get(board)?.as_ref()?, pages.first))
            }
        }
    }

    /// Installs the handler in a forked worker, and gives up everything of the primary.
    pub(super) fn become_worker(&mut self, tag: WorkerTag, pages: WorkerPages) {
        let StackCaptures { memory, running, .. } = std::mem::take(self);
        drop(running);
        let WorkerPages::Own(range) = pages else { return };
        let installed = memory.map(|memory| memory.install_handler(range.first));
        if let Some(Err(e)) = installed {
            log::warn!("{tag} cannot copy its stack when it stalls: {e}");
        }
    }

    pub(super) fn poll_sources(&self) -> impl Iterator<Item = WatchedFd<'_>> {
        self.running.values().map(|capture| WatchedFd::readable(capture.reader.as_fd()))
    }

    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let readers = self.running.values().map(|capture| capture.reader.deadline);
        let queue = (!self.queue.is_empty()).then(|| now + QUEUE_RETRY);
        readers.chain(self.delayed_aborts.values().copied()).chain(queue).min()
    }

    /// Returns whether `pid` is a reader that has not been reaped.
    pub(super) fn is_reader_pid(&self, pid: u32) -> bool {
        self.running.values().any(|capture| capture.reader.pid == pid)
    }

    /// Returns where the event loop of a worker has stalled.
    pub(super) fn stalled_in(&self, worker: WorkerId) -> Option<String> {
        self.stalled_in.get(&worker).map(|(text, _)| text.clone())
    }

    /// Forgets where a worker stood, as its event loop runs again.
    pub(super) fn clear_stall(&mut self, worker: WorkerId) {
        self.stalled_in.remove(&worker);
    }

    /// Clears the area of a dead worker. A running reader ends by itself.
    pub(super) fn forget_worker(&mut self, worker: WorkerId, pages: WorkerPages) {
        self.delayed_aborts.remove(&worker);
        if self.is_running(worker) {
            // The reader's stack is compared with that of the stall: `finish_capture` clears both.
            return;
        }
        self.clear_stall(worker);
        if let Some((memory, area)) = self.memory_of(pages) {
            memory.clear_area(area);
        }
    }

    fn is_running(&self, worker: WorkerId) -> bool {
        self.running.contains_key(&worker)
    }

    /// Returns the descriptors of all memories, this image's first; `boards` are the scoreboards that are still in use.
    pub(super) fn passed_fds(&self, boards: &[usize]) -> Vec<BorrowedFd<'_>> {
        let inherited = boards.iter().filter_map(|board| self.inherited.get(*board)?.as_ref());
        self.memory.iter().chain(inherited).map(AsFd::as_fd).collect()
    }

    /// Returns the numbers of the descriptors for the manifest, in the order of the scoreboards.
    pub(super) fn passed_fd_numbers(&self, boards: &[usize]) -> Vec<Option<i32>> {
        let number = |memory: &StackMemory| memory.as_fd().as_raw_fd();
        let inherited = boards.iter().map(|board| self.inherited.get(*board)?.as_ref());
        std::iter::once(self.memory.as_ref()).chain(inherited).map(|one| one.map(number)).collect()
    }

    /// Takes over the memory of a scoreboard of a previous image, in the order of the scoreboards.
    pub(super) fn inherit(&mut self, memory: Option<OwnedFd>) {
        self.inherited.push(memory.map(StackMemory::inherit));
    }

    /// Closes the memory of an inherited scoreboard whose last worker has ended.
    pub(super) fn release_inherited(&mut self, board: usize) {
        if let Some(memory) = self.inherited.get_mut(board) {
            *memory = None;
        }
    }

    /// Ends all readers, and returns the clients that wait.
    fn stop(&mut self, killed: &mut KilledChildren) -> Vec<u64> {
        let mut waiting: Vec<Purpose> = self.queue.drain(..).map(|(_, purpose)| purpose).collect();
        for (_, mut capture) in std::mem::take(&mut self.running) {
            let _ = capture.reader.finish();
            killed.add_child(capture.reader.pid);
            waiting.extend(capture.purposes);
        }
        let reply = |purpose| match purpose {
            Purpose::Reply(id) => Some(id),
            Purpose::Stall | Purpose::BeforeAbort => None,
        };
        waiting.into_iter().filter_map(reply).collect()
    }
}

impl Primary {
    /// Takes the stack of a worker for a client. `worker` or `slot` says of which.
    pub(super) fn request_stack(&mut self, reply_id: u64, worker: Option<u64>, slot: Option<u32>) {
        let Some(worker) = self.find_worker(worker, slot) else {
            let why = "no such worker: `prefork status` shows the ids and the slots";
            return self.control.reply(reply_id, &Reply::Refused(why.to_string()));
        };
        self.capture_stack(worker, Purpose::Reply(reply_id));
    }

    /// Finds a worker by its id, or the one that serves a slot: the newest one.
    fn find_worker(&self, worker: Option<u64>, slot: Option<u32>) -> Option<WorkerId> {
        match (worker, slot) {
            (Some(id), _) => Some(WorkerId(id)).filter(|id| self.workers.contains_key(id)),
            (None, Some(slot)) => {
                let in_slot = self.workers.values().filter(|process| process.tag.slot.0 == slot);
                let ids = in_slot.map(|process| process.tag.id);
                ids.max_by_key(|id| (self.supervisor.is_serving(*id), *id))
            }
            (None, None) => None,
        }
    }

    /// Logs where a worker stands whose event loop has stalled.
    pub(super) fn capture_stalled_worker(&mut self, worker: WorkerId) {
        self.capture_stack(worker, Purpose::Stall);
    }

    /// Aborts a stalled worker, as soon as its stack has been logged.
    pub(super) fn abort_after_capture(&mut self, worker: WorkerId) {
        self.stacks.delayed_aborts.insert(worker, Instant::now() + MAX_ABORT_DELAY);
        self.capture_stack(worker, Purpose::BeforeAbort);
        self.abort_captured_workers();
    }

    fn capture_stack(&mut self, worker: WorkerId, purpose: Purpose) {
        if self.workers.get(&worker).is_some_and(WorkerProcess::runs_program) {
            // The stack of its guard would say nothing, and a stall has been logged already.
            if let Purpose::Reply(id) = purpose {
                self.control.reply(id, &Reply::Refused(PROGRAM_REASON.to_string()));
            }
            return;
        }
        if self.upgrade.is_exec_scheduled() {
            return self.report_no_stack(worker, &[purpose], EXEC_REASON);
        }
        if let Some(capture) = self.stacks.running.get_mut(&worker) {
            return capture.purposes.push(purpose);
        }
        if self.stacks.running.len() < MAX_READERS {
            return self.start_capture(worker, vec![purpose]);
        }
        if self.stacks.queue.len() < MAX_QUEUED {
            return self.stacks.queue.push_back((worker, purpose));
        }
        self.report_no_stack(worker, &[purpose], "too many stacks are being taken, try again");
    }

    fn start_capture(&mut self, worker: WorkerId, purposes: Vec<Purpose>) {
        match self.try_start_capture(worker) {
            Ok(Some((tag, pages, reader))) => {
                self.stacks.running.insert(worker, Capture { tag, pages, reader, purposes });
            }
            Ok(None) => self.report_no_stack(worker, &purposes, "the worker has ended"),
            Err(e) => self.report_no_stack(worker, &purposes, &e.to_string()),
        }
    }

    fn try_start_capture(
        &mut self,
        worker: WorkerId,
    ) -> Result<Option<(WorkerTag, WorkerPages, StackReader)>> {
        self.stacks.last_number = self.stacks.last_number.checked_add(1).unwrap_or(1);
        let Some(process) = self.workers.get(&worker) else { return Ok(None) };
        let (tag, pages) = (process.tag, process.pages);
        let Some((memory, area)) = self.stacks.memory_of(pages) else {
            return Err(crate::Error::refused("the primary has no memory for stacks: see its log"));
        };
        let settings = self.process_settings.get(tag.kind);
        let of_kind = settings.and_then(|settings| settings.credentials.as_ref());
        let config = self.configs.config_of_generation(tag.generation).or(self.current_config());
        let target = CaptureTarget {
            pid: process.pid,
            area,
            has_own_image: matches!(pages, WorkerPages::Own(_)),
            memory,
            credentials: of_kind.or(config.and_then(|config| config.credentials())),
        };
        let reader = StackReader::start(&target, self.stacks.last_number)?;
        Ok(Some((tag, pages, reader)))
    }

    /// Reads the answers of readers. Called after each wait.
    pub(super) fn attend_stack_captures(&mut self) {
        let now = Instant::now();
        let mut ended = Vec::new();
        for (worker, capture) in &mut self.stacks.running {
            if capture.reader.read_answer() || capture.reader.deadline <= now {
                ended.push(*worker);
            }
        }
        ended.into_iter().for_each(|worker| self.finish_capture(worker));
        self.abort_captured_workers();
        while self.stacks.running.len() < MAX_READERS {
            let Some((worker, purpose)) = self.stacks.queue.pop_front() else { break };
            self.capture_stack(worker, purpose);
        }
    }

    /// Aborts the workers whose stacks have been logged, or could not be in time. So the log says where a worker stands before
    /// it says that it is dead.
    fn abort_captured_workers(&mut self) {
        let now = Instant::now();
        let StackCaptures { delayed_aborts, running, queue, .. } = &self.stacks;
        let is_due = |(worker, deadline): &(&WorkerId, &Instant)| {
            let is_waiting =
                running.contains_key(worker) || queue.iter().any(|(queued, _)| queued == *worker);
            !is_waiting || **deadline <= now
        };
        let due: Vec<WorkerId> = delayed_aborts.iter().filter(is_due).map(|one| *one.0).collect();
        for worker in due {
            self.stacks.delayed_aborts.remove(&worker);
            self.workers.signal(worker, Signal::SIGABRT, &mut self.event_log);
        }
    }

    fn finish_capture(&mut self, worker: WorkerId) {
        let Some(mut capture) = self.stacks.running.remove(&worker) else { return };
        let result = capture.reader.finish();
        self.killed_children.add_child(capture.reader.pid);
        if let Some((memory, area)) = self.stacks.memory_of(capture.pages) {
            // Its next worker may already have the area.
            match self.workers.contains_key(&worker) {
                true => memory.discard_copies(area),
                false if self.workers.values().any(|other| other.pages == capture.pages) => {}
                false => memory.clear_area(area),
            }
        }
        match result {
            Ok(threads) => self.report_stack(&capture, threads),
            Err(why) => self.report_no_stack(worker, &capture.purposes, &why),
        }
        if !self.workers.contains_key(&worker) {
            self.stacks.clear_stall(worker);
        }
    }

    fn report_stack(&mut self, capture: &Capture, threads: Vec<ThreadStack>) {
        let tag = capture.tag;
        let stack = WorkerStack {
            worker: tag.id.0,
            slot: tag.slot.0,
            kind: tag.kind.to_string(),
            generation: tag.generation.0,
            pid: tag.pid.unwrap_or_default(),
            threads,
        };
        for purpose in &capture.purposes {
            if let Purpose::Reply(id) = purpose {
                self.control.reply(*id, &Reply::Stack(Box::new(stack.clone())));
            }
        }
        let is_new_stall = capture.purposes.contains(&Purpose::Stall);
        if !is_new_stall && !capture.purposes.contains(&Purpose::BeforeAbort) {
            return;
        }
        let (text, functions) = (stack.stall_summary(), stack.stalled_functions());
        let before = self.stacks.stalled_in.get(&tag.id);
        if is_new_stall || before.is_none_or(|before| before.1 != functions) {
            match stack.stall_problem() {
                Some(problem) => self.event_log.log_no_stack(tag, &problem),
                None => self.event_log.log_stalled_in(tag, &text),
            }
        }
        if self.workers.contains_key(&tag.id) {
            self.stacks.stalled_in.insert(tag.id, (text, functions));
        }
    }

    /// Says why there is no stack: to clients, or in the log.
    fn report_no_stack(&mut self, worker: WorkerId, purposes: &[Purpose], why: &str) {
        for purpose in purposes {
            match purpose {
                Purpose::Reply(id) => self.control.reply(*id, &Reply::Refused(why.to_string())),
                Purpose::Stall | Purpose::BeforeAbort => {
                    if let Some(process) = self.workers.get(&worker) {
                        self.event_log.log_no_stack(process.tag, &why);
                    }
                }
            }
        }
    }

    /// Ends all readers before the exec of a new binary, which knows nothing of them.
    pub(super) fn stop_stack_captures(&mut self) {
        for id in self.stacks.stop(&mut self.killed_children) {
            self.control.reply(id, &Reply::Refused(EXEC_REASON.to_string()));
        }
        self.abort_captured_workers();
    }
}
