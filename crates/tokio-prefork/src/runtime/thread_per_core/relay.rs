//! The relay between the primary and the threads of one worker: orders go to all of them, words to the primary.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::channel::{HandOver, Heard, Order, PrimaryEnd, ToPrimary, ToWorker, Unread, WorkerEnd};
use crate::config::Config;
use crate::scoreboard::ThreadRow;
use prefork_supervisor::{Slot, WorkerTag};

/// How long a connection on its way out waits for room in the channel to the primary.
const PATIENCE: Duration = Duration::from_secs(5);

/// A thread, as the relay knows it.
pub(super) struct Member {
    /// `None` once it is closed.
    pub(super) end: RefCell<Option<PrimaryEnd>>,
    /// Hears what it says.
    pub(super) ear: RefCell<Option<JoinHandle<()>>>,
    pub(super) row: ThreadRow,
    /// Held while a word of it is being passed on, so that who waits for this has waited for its last word.
    pub(super) hearing: Mutex<()>,
}

/// What the relay's tasks share.
pub(super) struct Relay {
    pub(super) tag: WorkerTag,
    pub(super) channel: WorkerEnd,
    pub(super) config: Rc<Config>,
    pub(super) members: Vec<Member>,
    /// How many are ready.
    pub(super) ready: Cell<usize>,
    /// The primary has been told that the worker leaves, or has said so itself.
    pub(super) leaving: Cell<bool>,
}

/// Passes on what the primary wants, to its end.
pub(super) async fn obey(relay: Rc<Relay>) {
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
                if let Err(e) = prefork_os::fd::replace_stderr(&file) {
                    log::error!("{} cannot write to the reopened log: {e}", relay.tag);
                }
            }
            // One thread is enough for a socket that is there until the next worker comes.
            Order::Adopt { fd, slot, closing } => relay.adopt(&fd, slot, closing),
            Order::Word(ToWorker::Adopt { slot, .. }) => relay.say(&ToPrimary::NotAdopted(slot)),
            Order::Word(word @ ToWorker::GiveBack(_)) => relay.tell_all(&word),
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
pub(super) async fn listen(
    relay: Rc<Relay>,
    number: usize,
    ear: tokio::io::unix::AsyncFd<OwnedFd>,
) {
    while let Ok(mut ready) = ear.readable().await {
        if !relay.hear(number).await {
            return;
        }
        ready.clear_ready();
    }
}

impl Relay {
    /// All that a thread has said so far; `false` at the end of its channel.
    pub(super) async fn hear(&self, number: usize) -> bool {
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
                Heard::Word(word @ (ToPrimary::Retiring | ToPrimary::Disconnecting)) => {
                    self.leave(&word);
                }
                // The relay has said so when it began.
                Heard::Word(ToPrimary::Online) => {}
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

    /// Leaves as a whole, and says so in this word: whether it wants a replacement.
    pub(super) fn leave(&self, word: &ToPrimary) {
        if self.leaving.replace(true) {
            return;
        }
        self.say(word);
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

    /// Has a thread accept from a socket that the primary sent: the first one that takes it.
    fn adopt(&self, fd: &OwnedFd, slot: Slot, closing: bool) {
        let word = ToWorker::Adopt { slot, closing };
        if !self.members.iter().any(|member| member.takes(&word, fd)) {
            self.say(&ToPrimary::NotAdopted(slot));
        }
    }

    /// Gives a connection that another worker began to the thread with the fewest, else to any that takes it.
    fn place(&self, fd: &OwnedFd, unread: Unread) {
        let now = prefork_os::system::monotonic_ms();
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
