//! What the world does: the kernel on behalf of the primary, and the children of their own accord.

use super::super::{Action, Event, HealthSample};
use super::{Deed, Happening, SIGABRT, SIGKILL, World, code, ms, signal};
use crate::identity::WorkerId;

impl World {
    pub(super) fn perform(&mut self, action: Action) {
        match &action {
            Action::Fork(tag) => {
                let life = (self.fate)(*tag, &mut self.dice);
                self.plan(life.fork, Happening::ForkReturns(tag.id));
                self.forking.insert(tag.id, life);
            }
            Action::Drain(worker) => self.drain(*worker),
            Action::Kill(worker) => {
                self.plan(ms(1), Happening::Does(*worker, Deed::End(signal(SIGKILL))));
            }
            Action::Abort(worker) => self.abort(*worker),
            Action::ReadConfig(_) => {
                let (after, result) = (self.file)(&self.mind.policy, &mut self.dice);
                self.read = Some(result);
                self.plan(after, Happening::ReadsConfig);
            }
            Action::SampleHealth { with_memory } => {
                let samples = self.look(*with_memory);
                self.plan(ms(0), Happening::Sees(samples));
            }
            Action::StartUpgradeCheck => self.prove(),
            Action::StopUpgradeCheck => self.stop_proof(),
            Action::ExecNewBinary => self.take_over(),
            Action::Log(_) | Action::Reply { .. } | Action::KeepGenerations(_) => {}
            Action::CloseListeners => {}
            Action::OpenSockets { slots } => {
                let fails = self.dice.below(6) == 0;
                let result = if fails { Err("EMFILE".to_string()) } else { Ok(()) };
                let opened = Event::SocketsOpened { slots: *slots, result };
                self.plan(ms(0), Happening::Tells(opened));
            }
            Action::AdoptSlot { worker, slot } if self.is_deaf() => {
                let failed = Event::AdoptSlotFailed { worker: *worker, slot: *slot };
                self.plan(ms(0), Happening::Tells(failed));
            }
            Action::ReleaseSlot { worker, slot } if self.is_deaf() => {
                let failed = Event::ReleaseSlotFailed { worker: *worker, slot: *slot };
                self.plan(ms(0), Happening::Tells(failed));
            }
            Action::AdoptSlot { .. }
            | Action::ReleaseSlot { .. }
            | Action::SetDispatchTarget { .. } => {}
            Action::ConfirmRestart(exit) => {
                let restart = self.vetoes == 0 || self.dice.below(self.vetoes) > 0;
                let decided = Event::RestartDecided { worker: exit.worker.id, restart };
                self.plan(ms(0), Happening::Tells(decided));
            }
            Action::Exit(result) => self.exit = Some(*result),
        }
        self.log.push((self.now - self.began, action));
    }

    fn drain(&mut self, worker: WorkerId) {
        if let Some(time) = self.children.get(&worker).and_then(|child| child.life.drain) {
            self.plan(time, Happening::Does(worker, Deed::Finish));
        }
    }

    fn abort(&mut self, worker: WorkerId) {
        // A process that is stopped does not get the signal before it goes on.
        if let Some(child) = self.children.get(&worker)
            && let Some(time) = child.life.abort
        {
            self.plan(time, Happening::Does(worker, Deed::End(signal(SIGABRT))));
        }
    }

    /// Whether a channel is full.
    fn is_deaf(&mut self) -> bool {
        self.deafness > 0 && self.dice.below(self.deafness) == 0
    }

    fn look(&self, memory: bool) -> Vec<HealthSample> {
        let seen = self.children.iter().map(|(worker, child)| HealthSample {
            worker: *worker,
            heartbeat: child.beat(self.now),
            requests: child.requests(self.now),
            memory: memory.then(|| child.memory(self.now)),
            is_full: child.is_full(),
            current_request: child.is_frozen().then(|| "GET /fib/50".to_string()),
        });
        seen.collect()
    }

    pub(super) fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Asks(command) => self.ask(command),
            Happening::ReadsConfig => {
                if let Some(result) = self.read.take() {
                    self.tell(Event::ConfigRead { result });
                }
            }
            Happening::Upgrades(moment) => self.upgrades(moment),
            Happening::Tells(event) => self.tell(event),
            Happening::Sees(samples) => self.tell(Event::HealthSampled { samples }),
            Happening::ForkReturns(worker) => match self.forking.get(&worker) {
                Some(life) if life.fork_fails => {
                    self.tell(Event::ForkFailed { worker, reason: "EAGAIN".to_string() });
                }
                Some(_) => self.tell(Event::Forked { worker, pid: 1000 + worker.0 as u32 }),
                None => {}
            },
            Happening::Does(worker, deed) => {
                // It may be dead by now; and one that is frozen does nothing by itself.
                let able = self.children.get(&worker).is_some_and(|child| child.can(deed));
                if able {
                    self.does(worker, deed);
                }
            }
        }
    }

    pub(super) fn does(&mut self, worker: WorkerId, deed: Deed) {
        match deed {
            Deed::SayOnline => self.tell(Event::Online { worker }),
            Deed::SayReady => self.tell(Event::Ready { worker }),
            Deed::SayBootFailed => {
                self.tell(Event::BootFailed { worker, reason: "no".to_string() })
            }
            Deed::Work => self.tell(Event::RiskyJobStarted { worker }),
            Deed::Retire => {
                self.tell(Event::Retiring { worker });
                self.drain(worker);
            }
            Deed::Disconnect => {
                self.tell(Event::Disconnecting { worker });
                self.drain(worker);
            }
            Deed::CloseChannel => self.tell(Event::ChannelClosed { worker }),
            Deed::Freeze | Deed::Thaw => {
                if let Some(child) = self.children.get_mut(&worker) {
                    child.freeze(deed == Deed::Freeze, self.now);
                }
            }
            Deed::Stop => {
                self.does(worker, Deed::Freeze);
                self.tell(Event::Stopped { worker });
            }
            Deed::Continue => {
                self.does(worker, Deed::Thaw);
                self.tell(Event::Continued { worker });
            }
            Deed::Fill | Deed::Empty => {
                if let Some(child) = self.children.get_mut(&worker) {
                    child.fill(deed == Deed::Fill);
                }
            }
            Deed::Finish => self.does(worker, Deed::End(code(0))),
            Deed::Garble => self.tell(Event::ProtocolError { worker, reason: "noise".to_string() }),
            Deed::End(status) => {
                // The kernel closes a dead child's channel; which of both is learned first is open.
                if self.dice.below(2) == 0 {
                    self.tell(Event::ChannelClosed { worker });
                }
                self.tell(Event::Exited { worker, status, requests_served: 7 });
            }
        }
    }
}
