//! `thread-per-core`: a worker process whose threads each live a whole worker's life, with a loop, a service and a
//! row of their own.
//!
//! The process has one channel to the primary and the threads want one each. So the first thread serves nobody: it
//! is the *relay*. It sends every order on to all threads, and what they say to the primary; READY when all have
//! said it, RETIRING when the first does. A thread that blocks blocks no other, nor the relay: its beat stops, by
//! which the primary notices it and names its request.
//!
//! The end of the primary is passed on, too: the relay closes the channels of the threads, which then finish and
//! leave. A thread that ends before it was told (a bug: panics of handlers are contained) retires the worker.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::error::{Error, Result, exit};
use crate::identity::WorkerTag;
use crate::ipc::{HandOver, Heard, Order, PrimaryEnd, ToPrimary, ToWorker, Unread, WorkerEnd};
use crate::listener::Listener;
use crate::scoreboard::{OwnRow, Reader, ThreadRow};
use crate::seed::Seed;
use crate::sys;
use crate::worker::{self, App};

/// As much as the first thread of a process has, as the same handlers run here.
const STACK: usize = 8 << 20;

/// How long a connection on its way out waits for room in the channel to the primary.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a thread is born with: a seed that can cross to it.
struct Part {
    tag: WorkerTag,
    listeners: Vec<Listener>,
    channel: OwnedFd,
    row: OwnRow,
    board: Reader,
    config: Config,
    terminate: Arc<AtomicBool>,
}

/// A thread, as the relay knows it.
struct Member {
    /// `None` once it is closed.
    end: RefCell<Option<PrimaryEnd>>,
    /// Hears what it says.
    ear: RefCell<Option<JoinHandle<()>>>,
    row: ThreadRow,
    /// Held while a word of it is being passed on, so that who waits for this has waited for its last word.
    hearing: Mutex<()>,
}

/// What the relay's tasks share.
struct Relay {
    tag: WorkerTag,
    channel: WorkerEnd,
    config: Rc<Config>,
    members: Vec<Member>,
    /// How many are ready.
    ready: Cell<usize>,
    /// The primary has been told that the worker leaves, or has said so itself.
    leaving: Cell<bool>,
}

/// Tells the relay how a thread ended, however it did.
struct Obituary {
    number: usize,
    code: u8,
    to: mpsc::UnboundedSender<(usize, u8)>,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        // A relay that is gone takes the process with it.
        let _ = self.to.send((self.number, self.code));
    }
}

/// A worker's life, from its seed to its exit status.
pub(super) fn enter(seed: Seed, app: &App) -> u8 {
    let tag = seed.tag;
    let life = || -> Result<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default())
            .map_err(|e| Error::system("build the relay's runtime", e))?;
        runtime.block_on(lead(seed, app))
    };
    life().unwrap_or_else(|e| {
        log::error!("{tag} {e}");
        e.exit_status()
    })
}

async fn lead(seed: Seed, app: &App) -> Result<u8> {
    let Seed { tag, listeners, channel, rows, board, config, terminate } = seed;
    let channel = WorkerEnd::new(channel)
        .map_err(|e| Error::system("register the channel to the primary", e))?;
    let (obituaries, mut ended) = mpsc::unbounded_channel();
    let (mut members, mut ears) = (Vec::new(), Vec::new());
    for (number, row) in rows.into_iter().enumerate() {
        let (ours, theirs) = sys::socket::message_pair()
            .map_err(|e| Error::system("make a channel for a thread", e))?;
        let clones = listeners.iter().map(Listener::try_clone);
        let clones = clones.collect::<std::io::Result<_>>();
        let listeners = clones.map_err(|e| Error::system("share a listening socket", e))?;
        let ear = ours.try_clone().and_then(sys::readiness::readable);
        ears.push(ear.map_err(|e| Error::system("register the channel of a thread", e))?);
        let end = RefCell::new(Some(PrimaryEnd::new(ours)));
        members.push(Member {
            end,
            ear: RefCell::default(),
            row: row.of_thread(),
            hearing: Mutex::new(()),
        });
        let part = Part {
            tag,
            listeners,
            channel: theirs,
            row,
            board,
            config: Config::clone(&config),
            terminate: Arc::clone(&terminate),
        };
        begin(part, number, app, obituaries.clone())?;
    }
    // The threads have their shares; what ends when they let go of it must not live on here.
    drop(listeners);
    let (ready, leaving) = (Cell::new(0), Cell::new(false));
    let relay = Rc::new(Relay { tag, channel, config, members, ready, leaving });
    for (number, ear) in ears.into_iter().enumerate() {
        let task = tokio::task::spawn_local(listen(Rc::clone(&relay), number, ear));
        relay.members[number].ear.replace(Some(task));
    }
    tokio::task::spawn_local(obey(Rc::clone(&relay)));
    let (mut left, mut worst) = (0, exit::OK);
    while left < relay.members.len() {
        // We hold a sender ourselves, so this does not end.
        let Some((number, code)) = ended.recv().await else { break };
        relay.members[number].row.left();
        (left, worst) = (left + 1, worst.max(code));
        // Its last words, connections among them, may still be in its channel.
        relay.hear(number).await;
        // Nothing is given to it any more.
        relay.members[number].end.take();
        if code != exit::OK && relay.ready.get() < relay.members.len() {
            return Ok(code);
        }
        if !relay.leaving.get() {
            log::error!("{tag} lost thread {number}: it is replaced as a whole");
            relay.retire();
        }
    }
    Ok(worst)
}

/// Starts a thread.
fn begin(
    part: Part,
    number: usize,
    app: &App,
    to: mpsc::UnboundedSender<(usize, u8)>,
) -> Result<()> {
    let app = Arc::clone(app);
    let live = move || {
        let mut obituary = Obituary { number, code: exit::FAILURE, to };
        let Part { tag, listeners, channel, row, board, config, terminate } = part;
        let (rows, config) = (vec![row], Rc::new(config));
        let seed = Seed { tag, listeners, channel, rows, board, config, terminate };
        obituary.code = worker::enter(seed, &app);
    };
    let thread = std::thread::Builder::new().name(format!("loop {number}")).stack_size(STACK);
    thread.spawn(live).map(drop).map_err(|e| Error::system("start a thread of the worker", e))
}

/// Passes on what the primary wants, to its end.
async fn obey(relay: Rc<Relay>) {
    while let Some(order) = relay.channel.hear().await {
        match order {
            Order::Word(word @ ToWorker::Drain { .. }) => {
                relay.leaving.set(true);
                relay.tell_all(&word);
            }
            Order::Word(word @ ToWorker::Released) => relay.tell_all(&word),
            Order::Take(fd, unread) => relay.place(&fd, unread),
            Order::Log(file) => {
                // Standard error is one for all threads.
                if let Err(e) = sys::fd::replace_stderr(&file) {
                    log::error!("{} cannot write to the reopened log: {e}", relay.tag);
                }
            }
            // There is one slot, so there is none that somebody else has to serve; refused like any that cannot be.
            Order::Adopt { slot, .. } | Order::Word(ToWorker::Adopt { slot, .. }) => {
                relay.say(&ToPrimary::NotAdopted(slot));
            }
            Order::Word(ToWorker::GiveBack(_)) => {}
            // ARRIVE and LOG come with a descriptor, as `Take` and `Log`.
            Order::Word(ToWorker::Arrive(_) | ToWorker::Log) => {}
        }
    }
    // The primary is gone. The threads see the end of their channels, and know what that means.
    relay.leaving.set(true);
    for member in &relay.members {
        member.end.take();
        if let Some(ear) = member.ear.take() {
            ear.abort();
        }
    }
}

/// Hears what a thread says, to the end of its channel.
async fn listen(relay: Rc<Relay>, number: usize, ear: tokio::io::unix::AsyncFd<OwnedFd>) {
    while let Ok(mut ready) = ear.readable().await {
        if !relay.hear(number).await {
            return;
        }
        ready.clear_ready();
    }
}

impl Relay {
    /// All that a thread has said so far; `false` at the end of its channel.
    async fn hear(&self, number: usize) -> bool {
        let _one_at_a_time = self.members[number].hearing.lock().await;
        loop {
            let heard = match &*self.members[number].end.borrow() {
                Some(end) => end.hear(),
                None => return false,
            };
            match heard {
                Heard::Word(ToPrimary::Ready) => {
                    self.ready.set(self.ready.get() + 1);
                    if self.ready.get() == self.members.len() {
                        self.say(&ToPrimary::Ready);
                    }
                }
                // It has begun to drain already; the others have not.
                Heard::Word(ToPrimary::Retiring) => self.retire(),
                Heard::Word(word) => self.say(&word),
                Heard::Connection(fd, unread) => self.send_away(number, &fd, unread).await,
                Heard::LostConnection => {
                    log::error!("{} lost a connection: no descriptor left", self.tag);
                }
                Heard::Nothing => return true,
                Heard::End => return false,
                Heard::Garbage(why) => {
                    log::error!("{} cannot understand its thread {number}: {why}", self.tag);
                    return false;
                }
            }
        }
    }

    fn say(&self, word: &ToPrimary) {
        if let Err(e) = self.channel.send(word) {
            log::warn!("{} cannot tell the primary: {e}", self.tag);
        }
    }

    /// Leaves as a whole, and asks for a replacement.
    fn retire(&self) {
        if self.leaving.replace(true) {
            return;
        }
        self.say(&ToPrimary::Retiring);
        let hand_over = match self.config.hand_over {
            true => HandOver::WhenOthersServe,
            false => HandOver::Never,
        };
        let (grace, linger) = (self.config.graceful_timeout, self.config.linger_timeout);
        // Not DRAIN as the primary says it, after which no connection comes: RELEASED will say that.
        self.tell_all(&ToWorker::Drain { grace, linger, closing: false, hand_over });
    }

    fn tell_all(&self, word: &ToWorker) {
        for (number, member) in self.members.iter().enumerate() {
            let told = member.end.borrow().as_ref().map_or(Ok(()), |end| end.send(word));
            match told {
                // It has left.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
                // Its channel is full: it is frozen, and the deadline of the worker will find it.
                Err(e) => log::warn!("{} cannot tell its thread {number}: {e}", self.tag),
                Ok(()) => {}
            }
        }
    }

    /// Gives a connection that another worker began to the thread with the fewest, else to any that takes it.
    fn place(&self, fd: &OwnedFd, unread: Unread) {
        let now = sys::process::monotonic_ms();
        let mut takers: Vec<&Member> = self.members.iter().collect();
        takers.sort_by_key(|member| (!member.row.serves(now), member.row.open()));
        let word = ToWorker::Arrive(unread);
        let given = takers.into_iter().any(|taker| taker.takes(&word, fd));
        if !given {
            log::error!("{} lost a connection: no thread takes it", self.tag);
        }
    }

    /// Sends a connection of a thread to the primary. If that does not take it in time the thread gets it back.
    async fn send_away(&self, number: usize, fd: &OwnedFd, unread: Unread) {
        let word = ToPrimary::Travel(unread.clone());
        let sent = tokio::time::timeout(PATIENCE, self.channel.send_with(&word, fd.as_fd())).await;
        if !matches!(sent, Ok(Ok(()))) && !self.members[number].takes(&ToWorker::Arrive(unread), fd)
        {
            log::error!("{} lost a connection: the primary does not take it", self.tag);
        }
    }
}

impl Member {
    fn takes(&self, word: &ToWorker, fd: &OwnedFd) -> bool {
        let end = self.end.borrow();
        end.as_ref().is_some_and(|end| end.send_with(word, fd.as_fd()).is_ok())
    }
}
