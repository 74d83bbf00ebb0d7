//! The hands: one thread, blocking, no async runtime, ever. It waits, asks the supervisor, and obeys.

mod journal;
mod perform;
mod relay;
mod sources;
mod spawn;

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Instant;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::identity::{WorkerId, WorkerTag};
use crate::ipc::PrimaryEnd;
use crate::listener::ListenerSet;
use crate::scoreboard::{RowIndex, Scoreboard};
use crate::seed::Entry;
use crate::supervisor::{Event, Outcome, Supervisor};
use crate::sys;
use crate::sys::signal::SignalPipe;
use relay::Relay;

/// A living worker, as the kernel knows it.
struct Child {
    tag: WorkerTag,
    /// Ours until it is reaped; forgotten in the same moment.
    pid: u32,
    /// `None` once it was closed by either side.
    channel: Option<PrimaryEnd>,
    row: RowIndex,
    /// Connections of others that it was sent.
    sent: u64,
    /// It leaves: it is sent no more, and has been told so.
    released: bool,
    /// It has sent connections itself, and may do so faster than they can be passed on.
    sends: bool,
}

impl Child {
    fn new(tag: WorkerTag, pid: u32, channel: PrimaryEnd, row: RowIndex) -> Child {
        Child { tag, pid, channel: Some(channel), row, sent: 0, released: false, sends: false }
    }
}

/// Everything the primary process owns.
pub(crate) struct Primary {
    config: Rc<Config>,
    supervisor: Supervisor,
    signals: SignalPipe,
    listeners: ListenerSet,
    board: Scoreboard,
    children: BTreeMap<WorkerId, Child>,
    relay: Relay,
    /// Events that are known but not yet handled, oldest first.
    queue: VecDeque<Event>,
    entry: Entry,
}

impl Primary {
    /// Ready to run: signals are caught from here on.
    pub(crate) fn new(config: Rc<Config>, listeners: ListenerSet, entry: Entry) -> Result<Primary> {
        let policy = config.policy();
        // Twice the workers: each may have a predecessor that is still finishing.
        let rows = 2 * policy.workers as usize + 8;
        let board = Scoreboard::create(rows)
            .map_err(|e| Error::system("create the scoreboard in shared memory", e))?;
        let signals = SignalPipe::new(&sources::SIGNALS)
            .map_err(|e| Error::system("install signal handlers", e))?;
        let seed = sys::process::random_u64().map_err(|e| Error::system("read random bytes", e))?;
        journal::starting(policy.workers, &listeners.locals());
        Ok(Primary {
            config,
            supervisor: Supervisor::new(policy, seed),
            signals,
            listeners,
            board,
            children: BTreeMap::new(),
            relay: Relay::default(),
            queue: VecDeque::from([Event::Started]),
            entry,
        })
    }

    /// The only loop: wait, decide, perform.
    pub(crate) fn run(mut self) -> Result<Outcome> {
        loop {
            let event = self.next_event()?;
            let actions = self.supervisor.handle(Instant::now(), event);
            self.publish();
            for action in actions {
                if let Some(outcome) = self.perform(action) {
                    return Ok(outcome);
                }
            }
        }
    }

    fn publish(&self) {
        let mind = &self.supervisor;
        self.board.publish(mind.wanted(), mind.restarts(), mind.stopping());
    }
}
