//! The hands: one thread, blocking, no async runtime, ever. It waits, asks the supervisor, and obeys.

mod journal;
mod observe;
mod perform;
mod requests;
mod reread;
mod sources;
mod spawn;

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Instant;

use crate::config::{Config, Workers};
use crate::control::Server;
use crate::error::{Error, Result};
use crate::identity::{Generation, WorkerId, WorkerTag};
use crate::ipc::PrimaryEnd;
use crate::listener::ListenerSet;
use crate::scoreboard::{RowIndex, Scoreboard};
use crate::seed::Entry;
use crate::supervisor::{Event, Outcome, Supervisor};
use crate::sys;
use crate::sys::signal::SignalPipe;
use journal::Journal;

/// Reads the configuration again, for a reload.
pub(crate) type Reread = Box<dyn Fn() -> Result<Config>>;

/// A living worker, as the kernel knows it.
struct Child {
    tag: WorkerTag,
    /// Ours until it is reaped; forgotten in the same moment.
    pid: u32,
    /// `None` once it was closed by either side.
    channel: Option<PrimaryEnd>,
    row: RowIndex,
}

/// Everything the primary process owns.
pub(crate) struct Primary {
    /// What workers of each generation are forked under; the last is the newest.
    configs: BTreeMap<Generation, Rc<Config>>,
    /// Reads the configuration again.
    reread: Reread,
    supervisor: Supervisor,
    signals: SignalPipe,
    listeners: ListenerSet,
    board: Scoreboard,
    children: BTreeMap<WorkerId, Child>,
    /// Events that are known but not yet handled, oldest first.
    queue: VecDeque<Event>,
    entry: Entry,
    journal: Journal,
    /// `None` where nobody may ask.
    control: Option<Server>,
    started: Instant,
}

impl Primary {
    /// Ready to run: signals are caught from here on.
    pub(crate) fn new(
        config: Config,
        reread: Reread,
        listeners: ListenerSet,
        entry: Entry,
    ) -> Result<Primary> {
        let policy = config.policy();
        // Twice the workers there can ever be: each may have a predecessor that is still finishing.
        let board = Scoreboard::create(2 * Workers::MAX as usize)
            .map_err(|e| Error::system("create the scoreboard in shared memory", e))?;
        let signals = SignalPipe::new(&sources::SIGNALS)
            .map_err(|e| Error::system("install signal handlers", e))?;
        let seed = sys::process::random_u64().map_err(|e| Error::system("read random bytes", e))?;
        let mut journal = Journal::default();
        journal.starting(policy.workers, &listeners.locals());
        let control = requests::open(&config.control, &mut journal)?;
        Ok(Primary {
            configs: BTreeMap::from([(Generation(1), Rc::new(config))]),
            reread,
            supervisor: Supervisor::new(policy, seed),
            signals,
            listeners,
            board,
            children: BTreeMap::new(),
            queue: VecDeque::from([Event::Started]),
            entry,
            journal,
            control,
            started: Instant::now(),
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

    /// The configuration of the newest generation, whose timeouts are in force.
    fn newest_config(&self) -> Option<&Rc<Config>> {
        self.configs.values().next_back()
    }

    fn publish(&self) {
        let mind = &self.supervisor;
        self.board.publish(mind.wanted(), mind.restarts(), mind.stopping());
    }
}
