//! Where events come from: signals, worker channels, exits, and one deadline.

use std::os::fd::AsFd;
use std::time::Instant;

use super::handover_relay::HandoverRelay;
use super::round_robin::{Waits, acceptable, deal_on};
use super::{Primary, WorkerProcess};
use crate::channel::{Heard, PrimaryEnd, ToPrimary, ToWorker};
use crate::control::Server;
use crate::dispatch::round_robin::Table;
use crate::error::{Error, Result};
use crate::scoreboard::RowIndex;
use crate::upgrade::Proof;
use prefork_os::child::ChildStateChange;
use prefork_os::poll::{PollSet, WatchedFd};
use prefork_os::signal::Signal;
use prefork_supervisor::WorkerId;
use prefork_supervisor::{ClusterCommand, Event, Requester, ScaleChange};

/// The signals the primary handles. WINCH and ALRM are caught so that they do not disturb it: a terminal's resize
/// is no reason to do anything to a service, and nobody here sets an alarm.
pub(super) const SIGNALS: [Signal; 11] = [
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGWINCH,
    Signal::SIGALRM,
];

/// Words taken from one channel in one turn: a flooding worker must not keep the others waiting.
const WORDS_A_TURN: usize = 16;

/// Orphans of others that are reaped in one turn.
const STRANGERS_A_TURN: usize = 1024;

/// What a dead worker can have left unread is bounded by its socket's buffer, and this is more.
const LAST_WORDS: usize = 4096;

impl Primary {
    /// The next thing that happened; waits for it.
    pub(super) fn next_event(&mut self) -> Result<Event> {
        loop {
            if let Some(event) = self.pending_events.pop_front() {
                return Ok(event);
            }
            // Connections on their way would be closed by the exec: they are delivered first.
            if self.taking_over && self.handover.is_empty() && self.control_is_quiet() {
                // What does not fit now is lost with the channels of these workers.
                self.messages.hub.flush();
                self.take_over();
                continue;
            }
            self.wait().map_err(|e| Error::system("wait for signals and workers", e))?;
        }
    }

    /// Words are read before exits and deadlines are looked at: a READY that waits in its channel counts, even
    /// if this process was stopped while the deadline passed.
    fn wait(&mut self) -> std::io::Result<()> {
        let missing = self.event_log.tell_missing(Instant::now());
        self.settle_control();
        let deadline = self.supervisor.next_deadline();
        let now = Instant::now();
        self.relay(now);
        let dealing = self.deal(now);
        let telling = self.tend_manager(now);
        if !self.pending_events.is_empty() {
            return Ok(());
        }
        let (full, control) = (self.handover.is_full(), self.control.as_ref());
        let others = control.and_then(Server::deadline).into_iter().chain(self.messages.deadline());
        let others = others.chain(self.candidate.as_ref().map(|one| one.lookup.deadline));
        let next = deadline.into_iter().chain(others).chain(telling).min();
        let until = next.map(|at| at.saturating_duration_since(now));
        self.messages.hub.flush();
        let letters = self.messages.hub.wanted();
        let pauses = self.handover.pause().into_iter().chain(self.messages.hub.pause());
        let pauses = pauses.chain(self.desks_pause(now)).chain(missing).chain(self.quiet_pause());
        let until = until.into_iter().chain(pauses).min().map(|pause| now + pause);
        let open: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, child)| child.channel.is_some() && !(full && child.sends))
            .map(|(id, _)| *id)
            .collect();
        let ready = {
            let channels = open.iter().filter_map(|id| self.workers.get(id)?.channel.as_ref());
            let proof = self.proof.iter().flat_map(Proof::watched);
            let lookup = self.candidate.iter().map(|one| one.lookup.as_fd());
            let fds = self.signals.fd().into_iter().chain(channels.map(AsFd::as_fd));
            let fds = fds.chain(proof).chain(lookup);
            let asking = control.into_iter().flat_map(Server::watched);
            let mail = self.messages.hub.watches(&letters);
            let set = PollSet::new(fds.map(WatchedFd::readable).chain(mail).chain(asking));
            let table = Table {
                workers: &self.workers,
                scoreboard: &self.scoreboard,
                mind: &self.supervisor,
                listeners: acceptable(&self.listeners, self.taking_over),
            };
            let awake = self.messages.busy_poll.deadline();
            deal_on(&mut self.dealer, &table, set, Waits { dealing, until, awake, now })?
        };
        for (id, _) in open.iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            if let Some(child) = self.workers.get_mut(id) {
                self.pending_events.extend(child.listen(WORDS_A_TURN, &mut self.handover));
            }
        }
        let others = self.listen_to_children_at_work(&ready[1 + open.len()..]);
        let (mail, asked) = others.split_at(letters.len());
        let (mail, asked) = (mail.to_vec(), asked.to_vec());
        self.read_mail(&letters, &mail);
        // Last, as the end of the proof or of a worker may come out of it.
        if ready[0] {
            self.heed_signals()?;
        }
        self.attend_control(&asked);
        self.deliver_mail();
        self.tend_desks();
        self.tend_lookup();

        if deadline.is_some_and(|at| at <= Instant::now()) {
            self.pending_events.push_back(Event::DeadlineReached);
        }
        Ok(())
    }

    /// Reads what the new binary that is tried says. Returns the flags of all that is not it or a lookup of names.
    fn listen_to_children_at_work<'a>(&mut self, mut ready: &'a [bool]) -> &'a [bool] {
        if let Some(proof) = self.proof.as_mut() {
            let watched = proof.watched().count();
            if ready.split_off(..watched).is_some_and(|flags| flags.contains(&true)) {
                proof.listen();
            }
        }
        if self.candidate.is_some() {
            ready.split_off_first();
        }
        ready
    }

    pub(super) fn heed_signals(&mut self) -> std::io::Result<()> {
        for signal in self.signals.read_pending()? {
            match command_of(signal) {
                Some(command) => {
                    let by = Requester::without_reply(signal.as_str());
                    self.pending_events.push_back(Event::CommandReceived { command, by });
                }
                None if signal == Signal::SIGCHLD => self.reap(),
                None if signal == Signal::SIGUSR1 => self.reopen_log(),
                None => self.event_log.ignored(signal),
            }
        }
        Ok(())
    }

    /// Signals coalesce, so every child is asked, and only children: somebody else's are none of our business, unless
    /// they were left to us.
    pub(super) fn reap(&mut self) {
        if let Some(Ok(Some(status))) =
            self.proof.as_ref().map(|proof| prefork_os::child::reap_child(proof.pid))
        {
            self.proof_ended(status);
        }
        self.stopped_proofs.retain(|pid| matches!(prefork_os::child::reap_child(*pid), Ok(None)));
        let changed: Vec<_> = self
            .workers
            .iter()
            .filter_map(|(id, child)| match prefork_os::child::poll_child_state(child.pid) {
                Ok(change) => change.map(|change| (*id, change)),
                Err(e) => {
                    self.event_log.cannot_reap(child.tag, &e);
                    None
                }
            })
            .collect();
        for (worker, change) in changed {
            let status = match change {
                ChildStateChange::Exited(status) => status,
                ChildStateChange::Stopped => {
                    self.take_back(worker);
                    self.pending_events.push_back(Event::Stopped { worker });
                    continue;
                }
                ChildStateChange::Continued => {
                    self.pending_events.push_back(Event::Continued { worker });
                    continue;
                }
            };
            // From here on the pid is nobody's.
            let Some(mut child) = self.workers.remove(&worker) else { continue };
            self.pending_events.extend(child.listen(LAST_WORDS, &mut self.handover));
            self.messages.hub.bury(worker);
            self.dealer.bury(worker, child.queue.take());
            self.remove_dispatch_target(worker, child.lease);
            let requests_served = self.scoreboard.retire(child.row).requests;
            self.release_board(child.row);
            self.pending_events.push_back(Event::Exited { worker, status, requests_served });
        }
        if prefork_os::parent_death::is_orphan_reaper() {
            self.reap_strangers();
        }
    }

    /// The memory of a scoreboard of an image before this one is kept as long as one of its workers lives.
    fn release_board(&mut self, row: RowIndex) {
        let RowIndex::Inherited { board, .. } = row else { return };
        let is_on_it = |child: &WorkerProcess| matches!(child.row, RowIndex::Inherited { board: other, .. } if other == board);
        if !self.workers.values().any(is_on_it) {
            self.scoreboard.release_inherited(board);
        }
    }

    /// Whose parent has died becomes a child of the first process of a container, and would stay a zombie. No event
    /// comes of it. One of ours that ends meanwhile has its signal still to come.
    fn reap_strangers(&self) {
        for _ in 0..STRANGERS_A_TURN {
            match prefork_os::child::find_exited_child() {
                Some(pid) if !self.knows(pid) => drop(prefork_os::child::reap_child(pid)),
                Some(_) | None => return,
            }
        }
        // There may be more, and no other signal for them: this one brings us back.
        let _ = prefork_os::child::signal_child(std::process::id(), Signal::SIGCHLD);
    }

    fn knows(&self, pid: u32) -> bool {
        self.workers.values().any(|child| child.pid == pid)
            || self.proof.as_ref().is_some_and(|proof| proof.pid == pid)
            || self.candidate.as_ref().is_some_and(|candidate| candidate.lookup.pid == pid)
            || self.stopped_proofs.contains(&pid)
    }
}

impl WorkerProcess {
    /// Up to `words` things the worker said. Connections it sends go to `relay`.
    fn listen(&mut self, words: usize, relay: &mut HandoverRelay) -> Vec<Event> {
        let worker = self.tag.id;
        let mut events = Vec::new();
        for _ in 0..words {
            let Some(channel) = &self.channel else { break };
            let event = match channel.hear() {
                Heard::Nothing => break,
                Heard::Word(ToPrimary::Online) => Event::Online { worker },
                Heard::Word(ToPrimary::Ready) => Event::Ready { worker },
                Heard::Word(word @ (ToPrimary::Retiring | ToPrimary::Disconnecting)) => {
                    // If its channel is full, it leaves without having heard this.
                    let _ = channel.send(&ToWorker::Released);
                    self.released = true;
                    match word {
                        ToPrimary::Disconnecting => Event::Disconnecting { worker },
                        _ => Event::Retiring { worker },
                    }
                }
                Heard::Connection(fd, unread) => {
                    self.sends = true;
                    relay.take_in(fd, unread, Instant::now());
                    continue;
                }
                Heard::LostConnection => {
                    relay.lose(1, "no descriptor left (raise LimitNOFILE)");
                    continue;
                }
                Heard::Word(ToPrimary::NotAdopted(slot)) => Event::AdoptSlotFailed { worker, slot },
                // TRAVEL comes as `Connection`.
                Heard::Word(ToPrimary::Travel(_)) => continue,
                Heard::Word(ToPrimary::BootFailed(why)) => {
                    Event::BootFailed { worker, reason: why }
                }
                Heard::End => {
                    self.channel = None;
                    Event::ChannelClosed { worker }
                }
                Heard::Garbage(why) => {
                    self.channel.take().into_iter().for_each(PrimaryEnd::discard);
                    Event::ProtocolError { worker, reason: why }
                }
            };
            events.push(event);
        }
        events
    }
}

fn command_of(signal: Signal) -> Option<ClusterCommand> {
    match signal {
        Signal::SIGTERM | Signal::SIGINT => Some(ClusterCommand::Stop),
        Signal::SIGQUIT => Some(ClusterCommand::StopNow),
        Signal::SIGHUP => Some(ClusterCommand::Reload),
        Signal::SIGUSR2 => Some(ClusterCommand::Upgrade { wait: false }),
        Signal::SIGTTIN => Some(ClusterCommand::Scale(ScaleChange::Up(1))),
        Signal::SIGTTOU => Some(ClusterCommand::Scale(ScaleChange::Down(1))),
        _ => None,
    }
}
